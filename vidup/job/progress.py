"""Progress events and where they go: a bar, JSON lines, or a function of the caller's."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal, TextIO

from tqdm import tqdm

log = logging.getLogger(__name__)

State = Literal["loading", "compiling", "upscaling", "joining", "verifying", "done"]


@dataclass(frozen=True)
class Progress:
    """Where a job stands."""

    state: State
    frame: int
    """Frames that are upscaled, and with the encoder."""
    frames: int
    """Frames of the whole job; 0 while that is not known."""
    fps: float
    """Frames a second since this run began to upscale."""
    eta: float | None
    """Seconds left; None before the rate is known."""
    output: str
    computed: float | None = None
    """Share of the pixels that were computed and not carried, as far as segments ended; None before the first did."""


Sink = Callable[[Progress], Any]
"""Is called with each event. An exception that it raises stops the job within a batch and is raised by the job."""


class SinkFailed(Exception):
    """Carries what a sink raised past those who take errors for those of a file; it is raised again at the top."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Tracker:
    """Turns what happens to a job, or to several, into events for a sink."""

    def __init__(self, sink: Sink | None) -> None:
        self._sink, self._output = sink, ""
        self._frame = self._frames = self._before = 0
        self._computed = self._pixels = 0
        self._began, self._compiling = time.monotonic(), False

    def expect(self, frames: int, done: int = 0) -> None:
        """One job more: of so many frames, of which some were done by an earlier run."""
        self._frames += frames
        self._frame += done
        self._before += done

    def enter(self, state: State, output: object = None) -> None:
        if output is not None:
            self._output = str(output)
        if state in ("compiling", "upscaling"):
            self._began = time.monotonic()
        self._compiling = state == "compiling"
        self._send(state)

    def advance(self, frames: int = 1, output: object = None) -> None:
        """So many frames more are upscaled; less than 0 where they have to be done again."""
        if output is not None:
            self._output = str(output)
        if self._compiling:  # that is over with the first frame, whose time says nothing of the others
            self._compiling, self._began, self._before = False, time.monotonic(), self._frame + frames
        self._frame += frames
        self._send("upscaling")

    def count(self, computed: int, pixels: int) -> None:
        """A segment ended: so many of its pixels were computed."""
        self._computed += computed
        self._pixels += pixels

    def _send(self, state: State) -> None:
        if self._sink is None:
            return
        elapsed, fresh = time.monotonic() - self._began, self._frame - self._before
        fps = fresh / elapsed if fresh > 0 and elapsed > 0 else 0.0
        left = max(0, self._frames - self._frame)
        eta = left / fps if fps and self._frames else None
        share = round(self._computed / self._pixels, 3) if self._pixels else None
        event = Progress(state, self._frame, self._frames, round(fps, 3), eta and round(eta, 1), self._output, share)
        try:
            self._sink(event)
        except Exception as error:
            raise SinkFailed(error) from None


class Bar:
    """A tqdm bar on standard error; nothing is drawn where that is no terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: tqdm[Any] | None = None
        self._sink = unread(self._draw)

    def __call__(self, event: Progress) -> None:
        self._sink(event)

    def _draw(self, event: Progress) -> None:
        if self._bar is None:
            self._bar = tqdm(total=event.frames or None, unit="frame", file=self._stream, disable=None, leave=True)
        self._bar.set_description(event.state, refresh=False)
        if event.computed is not None and event.computed != 1:
            self._bar.set_postfix_str(f"{event.computed:.0%} computed", refresh=False)
        self._bar.update(event.frame - self._bar.n)
        if event.state == "done":
            self.close()

    def close(self) -> None:
        """End the bar's line; may be called twice."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.close()
            self._bar = None


def json_lines(stream: TextIO) -> Sink:
    """A sink that writes one JSON object a line: state, frame, frames, fps, eta, output."""

    def write(event: Progress) -> None:
        stream.write(json.dumps(asdict(event)) + "\n")
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
