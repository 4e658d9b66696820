"""The only thread code: run an iterator ahead of its consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from threading import Condition, Thread
from typing import Any, TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int = 2, size: Callable[[T], int] = lambda item: 1) -> Generator[T, None, None]:
    """Compute `items` in a thread of its own, ahead of the consumer.

    What the consumer sees is as if the thread were not there: the order holds, an error of `items` is raised after the
    items that came before it, and closing this generator closes `items` (in the thread that runs it) and joins.

    Args:
        depth: how much may wait, in the units of `size`; one item may wait however large it is.
        size: of an item, such as its bytes.
    """
    queue: deque[tuple[str, Any, int]] = deque()
    changed = Condition()
    waiting, stopped = 0, False

    def put(kind: str, value: Any, amount: int) -> None:
        nonlocal waiting
        with changed:
            while not stopped and queue and waiting + amount > depth:
                changed.wait()
            queue.append((kind, value, amount))
            waiting += amount
            changed.notify_all()

    def run() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                put("item", item, size(item))
                if stopped:
                    return
            put("end", None, 0)
        except BaseException as error:
            put("error", error, 0)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    thread = Thread(target=run, name="vidup-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                while not queue:
                    # A timeout keeps the main thread awake for Ctrl-C on Windows, where a bare wait() is deaf to it.
                    changed.wait(timeout=1.0)
                kind, value, amount = queue.popleft()
                waiting -= amount
                changed.notify_all()
            if kind == "error":
                try:
                    raise value
                finally:
                    del value  # its traceback holds this frame: a cycle that would keep the frames of a failed job
            if kind == "end":
                return
            yield value
    finally:
        with changed:
            stopped = True
            queue.clear()
            changed.notify_all()
        thread.join()


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Group `items` in lists of `size`; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
