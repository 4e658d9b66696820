"""What is told of jobs: progress events and their sinks (a bar, JSON lines, a function), the outcome of each file."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from tqdm.auto import tqdm

from vidup.errors import MediaError, Stopped, VidupError, system_words
from vidup.proof import Receipt

log = logging.getLogger(__name__)

_DRAWN_EVERY = 0.1  # seconds between two updates of a bar, at least
_WRITTEN_EVERY = 30  # seconds between two lines
_BEAT = 0.5  # seconds without an event after which the steps of a picture are reported

State = Literal["loading", "compiling", "upscaling", "joining", "verifying", "done", "failed"]


@dataclass(frozen=True)
class Progress:
    """The progress of a job, or of a queue of jobs."""

    state: State
    """The state of the file `output`: each ends as ``done`` or as ``failed``."""
    frame: int
    """The number of upscaled frames, of all files."""
    frames: int
    """The number of frames of all files but failed ones; 0 where it is not known."""
    fps: float
    """Frames a second since this run began to upscale; 0 while the model is loaded and compiled."""
    eta: float | None
    """Seconds left; None before the rate is known."""
    output: str
    computed: float | None = None
    """The share of pixels that were computed and not carried, in finished segments; None before the first."""
    step: int = 0
    """The number of finished steps of the model for the current pictures, where these take long."""
    steps: int = 0
    """The number of steps; 0 where it is not known."""
    file_frame: int = 0
    """As `frame`, for the file `output` alone."""
    file_frames: int = 0
    """As `frames`, for the file `output` alone."""
    left: int = 0
    """The number of files that have not ended."""
    error: str = ""
    """The error of a failed file."""
    receipt: Receipt | None = None
    """The result of the proof of a file that is done."""

    @staticmethod
    def bar() -> Bar:
        """A sink for `on_progress`: a bar in a terminal or a notebook, elsewhere a line every half minute."""
        return Bar()


Sink = Callable[[Progress], Any]
"""Called with each event. An exception of a sink stops the job within a batch, and the job raises it."""


class SinkFailed(Exception):
    """Wraps an exception of a sink, which must not be taken for a file's error; `upscale_files` raises that again."""


class Tracker:
    """Counts the progress of jobs, and sends events to a sink."""

    def __init__(self, sink: Sink | None, files: int = 1) -> None:
        self._sink, self._output, self._left = sink, "", files
        self._done, self._expected = Counter[str](), Counter[str]()  # frames, by output
        self._failed = 0  # frames of failed files that will not come
        self._computed = self._pixels = self._step = self._steps = 0
        self._state: State = "loading"
        self._sent = 0.0
        self._began, self._before, self._first = time.monotonic(), 0, 0

    def expect(self, frames: int, done: int = 0, output: object = "") -> None:
        """Add frames of a job, and frames that an earlier run has finished."""
        self._expected[str(output)] += frames
        self._done[str(output)] += done
        self._before += done

    def enter(self, state: State, output: object = None, first: int = 0) -> None:
        """Enter another state; its `first` frames, with which models are loaded or compiled, do not count as rate."""
        if output is not None:
            self._output = str(output)
        if state in ("compiling", "upscaling"):
            self._began, self._before, self._first = time.monotonic(), self._done.total(), first
        self._send(state)

    def advance(self, frames: int = 1, output: object = None) -> None:
        """Count upscaled frames; a negative number where some have to be upscaled again."""
        if output is not None:
            self._output = str(output)
        self._done[self._output] += frames
        self._step = self._steps = 0
        if self._first > 0:
            self._first -= frames
            self._began, self._before = time.monotonic(), self._done.total()
        self._send("upscaling")

    def end(self, output: object, error: BaseException | None = None, receipt: Receipt | None = None) -> None:
        """End a file, which is delivered or has failed; the missing frames of a failed one are no longer expected."""
        self._output = str(output)
        self._left -= 1
        if error is None:
            self._send("done", receipt=receipt)
        else:
            self._failed += self._expected[self._output] - self._done[self._output]
            self._send("failed", str(error))

    def step(self, done: int, count: int) -> None:
        """Count the finished steps of the current pictures."""
        self._step, self._steps = done, count
        self.beat()

    def beat(self) -> None:
        """Send an event if the last was some time ago, so that a sink can stop a job whose pictures take long."""
        if self._steps and self._state in ("compiling", "upscaling") and time.monotonic() - self._sent > _BEAT:
            self._send(self._state)

    def count(self, computed: int, pixels: int) -> None:
        """Count the computed pixels, and all pixels, of a finished segment."""
        self._computed += computed
        self._pixels += pixels

    def _send(self, state: State, error: str = "", receipt: Receipt | None = None) -> None:
        self._state, self._sent = state, time.monotonic()
        if self._sink is None:
            return
        frame, frames = self._done.total(), self._expected.total() - self._failed
        elapsed, fresh = time.monotonic() - self._began, frame - self._before
        fps = fresh / elapsed if fresh > 0 and elapsed > 0 and self._first <= 0 else 0.0
        eta = max(0, frames - frame) / fps if fps and frames else None
        share = round(self._computed / self._pixels, 3) if self._pixels else None
        event = Progress(
            state, frame, frames, round(fps, 3), eta and round(eta, 1), self._output, share, self._step, self._steps,
            self._done[self._output], self._expected[self._output], self._left, error, receipt,
        )  # fmt: skip
        try:
            self._sink(event)
        except Exception as error:
            raise SinkFailed(error) from None


@dataclass
class Outcome:
    """The outcome for one input."""

    input: Path
    output: Path
    error: VidupError | None = None
    skipped: bool = False
    """Whether the output was complete before, so that nothing was done."""
    receipt: Receipt | None = None
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


class Bar:
    """A bar of tqdm's in a terminal or a notebook; elsewhere a line every half minute. On standard error.

    Rate and time left are those of the events: tqdm's would count loading, compiling and the frames of earlier runs.
    """

    _COUNTED = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
    _UNCOUNTED = "{desc} {n_fmt} frames, {elapsed}{postfix}"  # while the number of frames is not known

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: tqdm[Any] | None = None
        self._state, self._written = "", time.monotonic()
        self._sink = may_fail(self._draw if self._stream.isatty() or _in_notebook() else self._write, self.close)

    def __call__(self, event: Progress) -> None:
        self._sink(event)

    def _draw(self, event: Progress) -> None:
        bar = self._bar
        if bar is None:
            options: dict[str, Any] = {"miniters": 1, "mininterval": _DRAWN_EVERY, "bar_format": self._UNCOUNTED}
            if not _in_notebook():  # whose bar a delay would hide for ever
                # Not drawn by its constructor: if the stream failed there, the bar could not be closed.
                options |= {"file": self._stream, "delay": 1e9}
            bar = self._bar = tqdm(**options)
            bar.delay = 0
        if event.frames:
            bar.total, bar.bar_format = event.frames, self._COUNTED
        entered = event.state != self._state
        self._state = event.state
        bar.set_description_str(f"{event.state:9}", refresh=False)
        bar.set_postfix_str(", ".join(_figures(event)), refresh=False)
        bar.update(event.frame - bar.n)
        if entered:
            bar.refresh()
        if event.state in ("done", "failed") and not event.left:
            self.close()

    def _write(self, event: Progress) -> None:
        if time.monotonic() - self._written >= _WRITTEN_EVERY:
            self._written = time.monotonic()
            count = f"{event.frame} of {event.frames} frames" if event.frames else f"{event.frame} frames"
            print(", ".join([f"{event.state}: {count}", *_figures(event)]), file=self._stream, flush=True)

    def close(self) -> None:
        """End the line of the bar, or tqdm would draw all later bars of this process below it; may be called twice."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.close()
            self._bar = None


def _in_notebook() -> bool:
    """Whether this process is a kernel of Jupyter's."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())


def _figures(event: Progress) -> Iterator[str]:
    """What a bar shows beside the number of frames."""
    if event.step:
        yield f"step {event.step} of {event.steps}"
    if event.fps:
        yield f"{event.fps:.3g} frames/s" if event.fps >= 1 else f"{1 / event.fps:.3g} s/frame"
    if event.eta is not None and event.frame < event.frames:
        yield f"{tqdm.format_interval(event.eta)} left"
    if event.computed is not None and event.computed != 1:
        yield f"{event.computed:.0%} computed"


def json_lines(stream: TextIO) -> Sink:
    """A sink that writes each event as a line of JSON, with the fields of `Progress`."""

    return may_fail(lambda event: print(json.dumps(asdict(event), default=str), file=stream, flush=True))


def may_fail(sink: Sink, close: Callable[[], None] = lambda: None) -> Sink:
    """A sink that is closed and no longer called once it has failed to write (closed, full, its reader gone), with a
    warning."""
    works = True

    def write(event: Progress) -> None:
        nonlocal works
        if works:
            try:
                sink(event)
            except (OSError, ValueError) as error:
                works = False
                close()
                reason = getattr(error, "strerror", None) or error
                log.warning("progress cannot be written (%s): the job goes on without", reason)

    return write
