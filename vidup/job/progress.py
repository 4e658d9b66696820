"""Progress events and where they go: a bar, JSON lines, or a function of the caller's."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal, TextIO

from tqdm.auto import tqdm

from vidup.proof import Receipt

log = logging.getLogger(__name__)

_DRAWN_EVERY = 0.1  # seconds, at the most
_WRITTEN_EVERY = 30  # seconds
_BEAT = 0.5  # seconds after which a picture that is not done tells of its steps

State = Literal["loading", "compiling", "upscaling", "joining", "verifying", "done", "failed"]


@dataclass(frozen=True)
class Progress:
    """Where a job stands, or a queue of them."""

    state: State
    """Of the file `output`: each ends as ``done`` or as ``failed``."""
    frame: int
    """Frames that are upscaled, and with the encoder, of all files."""
    frames: int
    """Frames of all files, without those of failed ones; 0 where that is not known."""
    fps: float
    """Frames a second since this run began to upscale; 0 while the model is loaded and compiled."""
    eta: float | None
    """Seconds left; None before the rate is known."""
    output: str
    computed: float | None = None
    """Share of the pixels that were computed and not carried, as far as segments ended; None before the first did."""
    step: int = 0
    """Steps of the model that are done of the pictures in hand; told where a picture takes long."""
    steps: int = 0
    """How many there are; 0 where that is not known."""
    file_frame: int = 0
    """As `frame`, of the file `output` alone."""
    file_frames: int = 0
    left: int = 0
    """Files that have not ended."""
    error: str = ""
    """What the file failed with."""
    receipt: Receipt | None = None
    """What was proved of the file, where it is done."""

    @staticmethod
    def bar() -> Bar:
        """For `on_progress`: a bar in a terminal or a notebook, elsewhere a line every half minute."""
        return Bar()


Sink = Callable[[Progress], Any]
"""Is called with each event. An exception that it raises stops the job within a batch and is raised by the job."""


class SinkFailed(Exception):
    """Carries what a sink raised past those who take errors for those of a file; it is raised again at the top."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Tracker:
    """Turns what happens to a job, or to several, into events for a sink."""

    def __init__(self, sink: Sink | None, files: int = 1) -> None:
        self._sink, self._output, self._left = sink, "", files
        self._of_file: dict[str, tuple[int, int]] = {}  # frames that are done and that there are, by the output
        self._frame = self._frames = self._before = 0
        self._computed = self._pixels = self._step = self._steps = 0
        self._state: State = "loading"
        self._told = 0.0
        self._began, self._first = time.monotonic(), 0

    def expect(self, frames: int, done: int = 0, output: object = "") -> None:
        """One job more: of so many frames, of which some were done by an earlier run."""
        self._frames += frames
        self._frame += done
        self._before += done
        before = self._of_file.get(_key(output), (0, 0))
        self._of_file[_key(output)] = before[0] + done, before[1] + frames

    def enter(self, state: State, output: object = None, first: int = 0) -> None:
        """Work of another kind begins.

        Args:
            first: frames whose time says nothing of the others: with them models are loaded and compiled.
        """
        if output is not None:
            self._output = str(output)
        if state in ("compiling", "upscaling"):
            self._began, self._before, self._first = time.monotonic(), self._frame, first
        self._send(state)

    def advance(self, frames: int = 1, output: object = None) -> None:
        """So many frames more are upscaled; less than 0 where they have to be done again."""
        if output is not None:
            self._output = str(output)
        self._frame += frames
        done, expected = self._of_file.get(_key(self._output), (0, 0))
        self._of_file[_key(self._output)] = done + frames, expected
        self._step = self._steps = 0
        if self._first > 0:
            self._first -= frames
            self._began, self._before = time.monotonic(), self._frame
        self._send("upscaling")

    def end(self, output: object, error: BaseException | None = None, receipt: Receipt | None = None) -> None:
        """A file has ended: it is delivered, or has failed; of that one no more frames are expected."""
        self._output = str(output)
        done, frames = self._of_file.get(_key(output), (0, 0))
        if error is not None:
            self._frames -= frames - done
        self._left -= 1
        self._send("done" if error is None else "failed", "" if error is None else str(error), receipt)

    def step(self, done: int, count: int) -> None:
        """Of the pictures in hand so many steps are done."""
        self._step, self._steps = done, count
        self.beat()

    def beat(self) -> None:
        """Work goes on: tell it where nothing was told for a while, so that a sink can stop what takes long."""
        if self._steps and self._state in ("compiling", "upscaling") and time.monotonic() - self._told > _BEAT:
            self._send(self._state)

    def count(self, computed: int, pixels: int) -> None:
        """A segment ended: so many of its pixels were computed."""
        self._computed += computed
        self._pixels += pixels

    def _send(self, state: State, error: str = "", receipt: Receipt | None = None) -> None:
        self._state, self._told = state, time.monotonic()
        if self._sink is None:
            return
        elapsed, fresh = time.monotonic() - self._began, self._frame - self._before
        fps = fresh / elapsed if fresh > 0 and elapsed > 0 and self._first <= 0 else 0.0
        left = max(0, self._frames - self._frame)
        eta = left / fps if fps and self._frames else None
        share = round(self._computed / self._pixels, 3) if self._pixels else None
        done, expected = self._of_file.get(_key(self._output), (0, 0))
        event = Progress(
            state, self._frame, self._frames, round(fps, 3), eta and round(eta, 1), self._output, share,
            self._step, self._steps, done, expected, self._left, error, receipt,
        )  # fmt: skip
        try:
            self._sink(event)
        except Exception as error:
            raise SinkFailed(error) from None


def _key(output: object) -> str:
    """The file that an output leads to, whatever it is called by."""
    try:
        return os.path.realpath(str(output))
    except (OSError, ValueError):
        return str(output)


class Bar:
    """A bar in a terminal or a notebook, by tqdm; elsewhere a line every half minute. On standard error.

    Rate and time left are the events' own: tqdm's would count loading, compiling and what an earlier run has done.
    """

    _COUNTED = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
    _UNCOUNTED = "{desc} {n_fmt} frames, {elapsed}{postfix}"  # through a pipe, or before all files are looked at

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: tqdm[Any] | None = None
        self._state, self._written = "", time.monotonic()
        self._sink = unread(self._draw if self._stream.isatty() or _in_notebook() else self._write)

    def __call__(self, event: Progress) -> None:
        self._sink(event)

    def _draw(self, event: Progress) -> None:
        try:
            self._show(event)
        except (OSError, ValueError):  # or tqdm would draw all later bars of this process below it
            self.close()
            raise

    def _show(self, event: Progress) -> None:
        bar = self._bar
        if bar is None:
            options: dict[str, Any] = {} if _in_notebook() else {"file": self._stream}
            # Not drawn while it is made: a stream that takes nothing would leave it open, and nobody could close it.
            options |= {"delay": 1e9, "miniters": 1, "mininterval": _DRAWN_EVERY, "bar_format": self._UNCOUNTED}
            bar = self._bar = tqdm(**options)
            bar.delay = 0
        if event.frames:  # which is known once all files are looked at
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
        """End the bar's line; may be called twice."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.close()
            self._bar = None


def _in_notebook() -> bool:
    """Whether this is a kernel of Jupyter's, whose pages draw bars."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())


def _figures(event: Progress) -> Iterator[str]:
    """What the bar says beside how many frames are done."""
    if event.step:
        yield f"step {event.step} of {event.steps}"
    if event.fps:
        yield f"{event.fps:.3g} frames/s" if event.fps >= 1 else f"{1 / event.fps:.3g} s/frame"
    if event.eta is not None and event.frame < event.frames:
        yield f"{tqdm.format_interval(event.eta)} left"
    if event.computed is not None and event.computed != 1:
        yield f"{event.computed:.0%} computed"


def json_lines(stream: TextIO) -> Sink:
    """A sink that writes one JSON object a line: state, frame, frames, fps, eta, output."""

    def write(event: Progress) -> None:
        stream.write(json.dumps(asdict(event), default=str) + "\n")
        stream.flush()

    return unread(write)


def unread(sink: Sink) -> Sink:
    """A sink that is left alone once it cannot be written to (closed, full, its reader gone): progress that nobody
    reads ends no job."""
    is_read = True

    def write(event: Progress) -> None:
        nonlocal is_read
        if is_read:
            try:
                sink(event)
            except (OSError, ValueError) as error:
                is_read = False
                reason = getattr(error, "strerror", None) or error
                log.warning("progress cannot be written (%s): the job goes on without", reason)

    return write
