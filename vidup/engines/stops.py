"""Checks, while a picture is made, whether to stop: before each call of a model and each band of a decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Watch:
    """Functions that are called while pictures are made."""

    check: Callable[[], None]
    """Raises an exception to stop the work."""
    step: Callable[[int, int], None] = lambda done, count: None
    """Gets the number of a picture's finished steps, and that of all."""


_watches: ContextVar[tuple[Watch, ...]] = ContextVar("watches", default=())


class Raised(BaseException):
    """Wraps the exception of a watch, which must not be taken for a model's error."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Add a watch for the work of this thread in the block."""
    token = _watches.set((*_watches.get(), watch))
    try:
        yield
    finally:
        _watches.reset(token)


def check() -> None:
    """Call all watches; raises `Raised` to stop the work."""
    _tell(lambda watch: watch.check())


def checked(item: T) -> T:
    """`check`, then return the item: for a loop's iterator."""
    check()
    return item


def step(done: int, count: int) -> None:
    """Report a picture's finished steps to all watches; raises as `check`."""
    _tell(lambda watch: watch.step(done, count))


def _tell(call: Callable[[Watch], None]) -> None:
    for watch in _watches.get():
        try:
            call(watch)
        except BaseException as error:
            raise Raised(error) from None
