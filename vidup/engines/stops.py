"""Whether to stop, asked while a picture is being made: before each call of a model and each band of a decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

Ask = Callable[[], None]
"""Raises what the work is to end with."""


@dataclass(frozen=True)
class Watch:
    """Who is told while pictures are made."""

    ask: Ask
    step: Callable[[int, int], None] = lambda done, count: None
    """Is told how many of a picture's steps are done, and how many there are."""


_watches: ContextVar[tuple[Watch, ...]] = ContextVar("watches", default=())


class Raised(BaseException):
    """Carries what was raised past those who take errors for those of a model."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Have somebody asked, beside those who are already, in what this thread does meanwhile."""
    before = _watches.get()
    token = _watches.set((*before, watch))
    try:
        yield
    finally:
        _watches.reset(token)


def check() -> None:
    """Go on, or raise `Raised` with what the work is to end with."""
    for watch in _watches.get():
        try:
            watch.ask()
        except BaseException as error:
            raise Raised(error) from None


def checked(item: T) -> T:
    """The item, of what is worked on one after the other, after a `check`."""
    check()
    return item


def step(done: int, count: int) -> None:
    """Tell that so many of a picture's steps are done; as `check`."""
    for watch in _watches.get():
        try:
            watch.step(done, count)
        except BaseException as error:
            raise Raised(error) from None
