"""All code with threads: a producer ahead of the caller, a consumer behind it, a thread for calls."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from itertools import islice
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_SECONDS = 1.0
"""The longest wait before a condition is checked again: Windows delivers Ctrl-C only between waits."""


class _Channel(Generic[T]):
    """A queue of bounded size from one thread to another, which either of them can end.

    `threading.Condition` and `queue.Queue` are written in Python: a Ctrl-C in them can leave their lock locked, and
    joining the other thread would then wait for ever. `SimpleQueue` is written in C.

    Args:
        depth: the size of all queued items, at most; one item may be queued whatever its size.
        size: the size of an item, such as its bytes.
    """

    def __init__(self, depth: int, size: Callable[[T], int]) -> None:
        self._depth, self._size = depth, size
        self._items: SimpleQueue[tuple[T, int] | None] = SimpleQueue()  # with their sizes; None wakes the taker
        self._taken: SimpleQueue[int] = SimpleQueue()  # sizes; 0 wakes the producer
        self._waiting, self._closed = 0, False
        self._error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Wait for space and queue an item; False where the other thread takes no more items."""
        amount = self._size(item)
        while not self._closed:
            if not self._waiting or self._waiting + amount <= self._depth:
                self._waiting += amount
                self._items.put((item, amount))
                return True
            with suppress(Empty):
                self._waiting -= self._taken.get(timeout=_SECONDS)
        return False

    def end(self, error: BaseException | None = None) -> None:
        """End the queue; after the queued items, the other thread gets the error."""
        self._error = error
        self._items.put(None)

    def close(self, error: BaseException | None = None) -> None:
        """Drop the queued items, and take no more; with an error, the other thread gets that."""
        self._error = error
        self._closed = True  # before all else: who finds the queue empty must not take it for ended
        with suppress(Empty):
            while True:
                self._items.get_nowait()
        self._items.put(None)
        self._taken.put(0)

    def __iter__(self) -> Iterator[T]:
        while True:
            try:
                got = self._items.get(timeout=_SECONDS)
            except Empty:
                continue
            if got is None or self._closed:
                break
            item, amount = got
            self._taken.put(amount)
            del got
            yield item
            del item
        _raise_error_of(self)


def _raise_error_of(one: _Channel[Any] | Consumer[Any]) -> None:
    error, one._error = one._error, None
    if error is not None:
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame: a cycle that would keep a failed job's frames alive


def prefetch(items: Iterable[T], depth: int = 2, size: Callable[[T], int] = lambda item: 1) -> Generator[T, None, None]:
    """Compute `items` in a thread of its own, ahead of the consumer by at most `depth`, see `_Channel`.

    The consumer notices no difference: items are in order, an error of `items` is raised after the items before it, and
    closing this generator closes `items` (in its thread) and joins the thread.
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
        if thread.is_alive():  # it may have ended, or not begun because of an interrupt
            thread.join()


class _Abandoned(Exception):
    """Ends a consumer that is closed."""


class Consumer(Generic[T]):
    """Calls a function with an iterator of items in a thread of its own, behind the producer by at most `depth`, see
    `_Channel`."""

    def __init__(
        self, consume: Callable[[Iterator[T]], Any], depth: int = 2, size: Callable[[T], int] = lambda item: 1
    ) -> None:
        self._channel = _Channel(depth, size)
        self._error: BaseException | None = None
        self.result: Any = None
        """What the function has returned."""

        def run() -> None:
            try:
                self.result = consume(iter(self._channel))
            except _Abandoned:
                pass
            except BaseException as error:
                self._error = error
            finally:
                self._channel.close()

        self._thread = Thread(target=run, name="vidup-consumer", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Queue an item; waits for space, and raises the function's exception."""
        if not self._channel.put(item):
            self.wait()

    def end(self) -> None:
        """End the items. Does not wait."""
        self._channel.end()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the function to return, at most so long; returns whether it has, and raises its exception."""
        self._thread.join(seconds)
        _raise_error_of(self)
        return not self._thread.is_alive()

    def close(self) -> None:
        """End the function by an exception if it has not returned, and join the thread; its exceptions are dropped."""
        self._channel.close(_Abandoned())
        self._thread.join()


class OwnThread:
    """A thread in which functions are called, one at a time; the first call starts it."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self.abandoned = False
        """Whether the caller was interrupted, and only waits for the running function to end."""

    def run(self, function: Callable[[], T]) -> T:
        """Call a function in the thread, with the caller's context variables; returns or raises as it does."""
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
        """End the thread; the next call starts another."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()


def batched(items: Iterable[T], size: int) -> Generator[list[T], None, None]:
    """Group `items` in lists of `size`; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
