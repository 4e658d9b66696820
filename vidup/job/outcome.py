"""What becomes of each file of a queue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vidup import proof
from vidup.errors import MediaError, Stopped, VidupError, system_words
from vidup.job.progress import Tracker


@dataclass
class Outcome:
    """What became of one input."""

    input: Path
    output: Path
    error: VidupError | None = None
    skipped: bool = False
    """It was delivered before."""
    receipt: proof.Receipt | None = None
    """What was proved of the output, where there is no error."""


@contextmanager
def failing(outcome: Outcome, tracker: Tracker) -> Iterator[None]:
    """An error of vidup's own, or of the system, is the outcome; all others pass."""
    try:
        yield
    except Stopped:
        raise
    except VidupError as error:
        fail(outcome, error, tracker)
    except OSError as error:  # a folder that is gone, too many open files
        fail(outcome, MediaError(system_words(error, outcome.output)), tracker)


def fail(outcome: Outcome, error: VidupError, tracker: Tracker) -> None:
    """A file has failed; that is told once."""
    if outcome.error is None:
        outcome.error = error
        tracker.end(outcome.output, error)
