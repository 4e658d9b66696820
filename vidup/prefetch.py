"""The only thread code: run an iterator ahead of its consumer."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.05  # how long a side waits before it looks whether the other one is gone


def prefetch(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """Compute `items` in a thread of its own, at most `depth` ahead of the consumer.

    What the consumer sees is as if the thread were not there: the order holds, an error of `items` is raised after the
    items that came before it, and closing this generator closes `items` (in the thread that runs it) and joins.
    """
    queue: Queue[tuple[str, Any]] = Queue(depth)
    stop = Event()

    def put(kind: str, value: Any) -> None:
        while not stop.is_set():
            try:
                queue.put((kind, value), timeout=_POLL_SECONDS)
                return
            except Full:
                continue

    def run() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                put("item", item)
                if stop.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    thread = Thread(target=run, name="vidup-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            # A timeout keeps the main thread awake for Ctrl-C on Windows, where a bare get() cannot be interrupted.
            try:
                kind, value = queue.get(timeout=1.0)
            except Empty:
                continue
            if kind == "error":
                try:
                    raise value
                finally:
                    del value  # its traceback holds this frame: a cycle that would keep the frames of a failed job
            if kind == "end":
                return
            yield value
    finally:
        stop.set()
        thread.join()


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Group `items` in lists of `size`; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
