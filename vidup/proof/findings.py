"""What a proof finds wrong, by what it is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vidup.errors import VerifyError


class Findings(dict[str, str]):
    """Subject, such as ``stream 2`` or ``tag title of the file`` -> what is wrong with it, in words.

    Args:
        accepted: subjects that may be wrong.
    """

    def __init__(self, accepted: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._accepted = accepted

    @contextmanager
    def of(self, subject: str) -> Iterator[None]:
        """Note a `VerifyError` of the block, and go on after it."""
        try:
            yield
        except VerifyError as error:
            if subject not in self._accepted:
                self.setdefault(subject, str(error))
