"""A record for the differences that a proof has found, by subject; others judge them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vidup.errors import VerifyError


class Findings(dict[str, str]):
    """Subject, such as ``stream 2`` or ``tag title of the file`` -> the difference, in words.

    Args:
        accepted: subjects that may differ.
    """

    def __init__(self, accepted: frozenset[str]) -> None:
        super().__init__()
        self._accepted = accepted

    @contextmanager
    def of(self, subject: str) -> Iterator[None]:
        """Record a `VerifyError` of the block, and continue after it."""
        try:
            yield
        except VerifyError as error:
            if subject not in self._accepted:
                self.setdefault(subject, str(error))
