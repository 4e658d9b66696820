"""Progress events and where they go: a bar, JSON lines, or a function of the caller's."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TextIO

from tqdm import tqdm

State = Literal["loading", "upscaling", "joining", "done"]


@dataclass(frozen=True)
class Progress:
    """Where a job stands."""

    state: State
    frame: int
    """Frames that are upscaled and encoded."""
    frames: int
    """Frames of the whole job; 0 while that is not known."""
    fps: float
    """Frames a second since the first frame."""
    eta: float | None
    """Seconds left; None before there is a rate to tell it from."""
    output: str


Sink = Callable[[Progress], Any]
"""Is called with each event. An exception that it raises stops the job within a batch and is raised by the job."""


class Tracker:
    """Turns 'one more frame' into events for a sink."""

    def __init__(self, sink: Sink | None, frames: int, output: str) -> None:
        self._sink, self._frames, self._output = sink, frames, output
        self._frame, self._began = 0, time.monotonic()

    def enter(self, state: State) -> None:
        if state == "upscaling":
            self._began = time.monotonic()
        self._send(state)

    def advance(self) -> None:
        self._frame += 1
        self._send("upscaling")

    def _send(self, state: State) -> None:
        if self._sink is None:
            return
        elapsed = time.monotonic() - self._began
        fps = self._frame / elapsed if self._frame and elapsed > 0 else 0.0
        left = max(0, self._frames - self._frame)
        eta = left / fps if fps and self._frames else None
        self._sink(Progress(state, self._frame, self._frames, round(fps, 3), eta and round(eta, 1), self._output))


class Bar:
    """A tqdm bar on standard error; nothing is drawn where that is no terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: tqdm[Any] | None = None

    def __call__(self, event: Progress) -> None:
        if self._bar is None:
            self._bar = tqdm(total=event.frames or None, unit="frame", file=self._stream, disable=None, leave=True)
        self._bar.set_description(event.state, refresh=False)
        self._bar.update(event.frame - self._bar.n)
        if event.state == "done":
            self.close()

    def close(self) -> None:
        """End the bar's line; may be called twice."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def json_lines(stream: TextIO) -> Sink:
    """A sink that writes one JSON object a line: state, frame, frames, fps, eta, output."""

    def write(event: Progress) -> None:
        stream.write(json.dumps(asdict(event)) + "\n")
        stream.flush()

    return write
