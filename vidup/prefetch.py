"""The only thread code: a producer that runs ahead of this thread, a consumer behind it, one that works for many."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from itertools import islice
from threading import Lock, RLock, Thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")


_SECONDS = 1.0
"""How long a wait lasts before its condition is looked at again: Windows delivers Ctrl-C only between waits."""


class _Channel(Generic[T]):
    """A queue of bounded size between two threads, which either of them can end.

    Waiting is on bare locks, one for each wait. A Ctrl-C inside a `threading.Condition` or a `queue.Queue`, which are
    written in Python, can leave their lock held, and whoever then joins the other thread waits for ever.

    Args:
        depth: how much may wait, in the units of `size`; one item may wait however large it is.
        size: of an item, such as its bytes.
    """

    def __init__(self, depth: int, size: Callable[[T], int]) -> None:
        self._depth, self._size = depth, size
        self._queue: deque[tuple[T, int]] = deque()
        self._lock = RLock()
        self._bells: list[Any] = []  # of those that wait: locks that are held until something has changed
        self._waiting, self._ended, self._closed = 0, False, False
        self._error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Wait for space in the queue; False where nobody takes items any more."""
        amount = self._size(item)
        while True:
            with self._lock:
                if self._closed:
                    return False
                if not self._queue or self._waiting + amount <= self._depth:
                    self._queue.append((item, amount))
                    self._waiting += amount
                    self._ring()
                    return True
                bell = self._bell()
            bell.acquire(timeout=_SECONDS)

    def end(self, error: BaseException | None = None) -> None:
        """There will be no more items; an error is raised to the taker after those that wait."""
        with self._lock:
            self._ended, self._error = True, error
            self._ring()

    def close(self, error: BaseException | None = None) -> None:
        """Drop what waits: nobody takes items any more, or whoever does is to end with an error."""
        with self._lock:
            self._closed = True
            self._queue.clear()
            if error is not None:
                self._ended, self._error = True, error
            self._ring()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._lock:
                bell = None
                if self._queue:
                    item, amount = self._queue.popleft()
                    self._waiting -= amount
                    self._ring()
                elif self._ended:
                    error, self._error = self._error, None
                    break
                else:
                    bell = self._bell()
            if bell is not None:
                bell.acquire(timeout=_SECONDS)
            else:
                yield item
                del item
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame: a cycle that would keep the frames of a failed job

    def _bell(self) -> Any:
        bell = Lock()
        bell.acquire()
        self._bells.append(bell)
        return bell

    def _ring(self) -> None:
        while self._bells:
            self._bells.pop().release()


def prefetch(items: Iterable[T], depth: int = 2, size: Callable[[T], int] = lambda item: 1) -> Generator[T, None, None]:
    """Compute `items` in a thread of its own, ahead of the consumer.

    What the consumer sees is as if the thread were not there: the order holds, an error of `items` is raised after the
    items that came before it, and closing this generator closes `items` (in the thread that runs it) and joins.

    Args:
        depth, size: of what may wait; see `_Channel`.
    """
    channel = _Channel(depth, size)

    def run() -> None:
        iterator = None
        try:
            iterator = iter(items)
            for item in iterator:
                if not channel.put(item):
                    return
            channel.end()
        except BaseException as error:
            channel.end(error)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    thread = Thread(target=run, name="vidup-prefetch", daemon=True)
    try:
        thread.start()
        yield from channel
    finally:
        channel.close()
        if thread.is_alive():  # else it has ended, or an interrupt came before it began
            thread.join()


class _Abandoned(Exception):
    """Ends a consumer whose producer has given up."""


class Consumer(Generic[T]):
    """Runs a function over items in a thread of its own, behind the producer.

    Args:
        consume: takes an iterator of the items; what it has made of them by its return is what they were for.
        depth, size: of what may wait; see `_Channel`.
    """

    def __init__(
        self, consume: Callable[[Iterator[T]], Any], depth: int = 2, size: Callable[[T], int] = lambda item: 1
    ) -> None:
        self._channel = _Channel(depth, size)
        self._error: BaseException | None = None

        def run() -> None:
            try:
                consume(iter(self._channel))
            except _Abandoned:
                pass
            except BaseException as error:
                self._error = error
            finally:
                self._channel.close()

        self._thread = Thread(target=run, name="vidup-consumer", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Hand over an item; waits for space in the queue, and raises what the function raised."""
        if not self._channel.put(item):
            self.wait()

    def end(self) -> None:
        """There are no more items. Does not wait."""
        self._channel.end()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the function to return, at the most so long; whether it has. Raises what it raised."""
        self._thread.join(seconds)
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        return not self._thread.is_alive()

    def close(self) -> None:
        """Let the function end with an exception if it has not returned, and join. Its own errors are dropped."""
        self._channel.close(_Abandoned())
        self._thread.join()


class OwnThread:
    """A thread that works for whoever calls, one call at a time; it is made with the first."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self.abandoned = False
        """Whether the caller of what is running waits for its end alone: an interrupt came."""

    def run(self, function: Callable[[], T]) -> T:
        """What the function returns, or raises, called there with this thread's context variables."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "vidup-engine")
        future = self._executor.submit(copy_context().run, function)
        try:
            while not future.done():
                wait([future], _SECONDS)
            return future.result()
        finally:
            self.abandoned = not future.done()
            if self.abandoned:
                wait([future])
                self.abandoned = False

    def close(self) -> None:
        """Let the thread go; another call makes another."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()


def batched(items: Iterable[T], size: int) -> Generator[list[T], None, None]:
    """Group `items` in lists of `size`; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
