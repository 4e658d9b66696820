"""The outcome of each file of a queue."""

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
    """The outcome for one input."""

    input: Path
    output: Path
    error: VidupError | None = None
    skipped: bool = False
    """Whether the output was complete before, so that nothing was done."""
    receipt: proof.Receipt | None = None
    """The result of the proof, where there is no error."""


@contextmanager
def failing(outcome: Outcome, tracker: Tracker) -> Iterator[None]:
    """Record an error of vidup's, or of the system, as the outcome; other exceptions pass."""
    try:
        yield
    except Stopped:
        raise
    except VidupError as error:
        fail(outcome, error, tracker)
    except OSError as error:  # a folder that is gone, too many open files
        fail(outcome, MediaError(system_words(error, outcome.output)), tracker)


def fail(outcome: Outcome, error: VidupError, tracker: Tracker) -> None:
    """Record the first error of a file, and report it."""
    if outcome.error is None:
        outcome.error = error
        tracker.end(outcome.output, error)
