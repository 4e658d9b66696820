"""Videos as a report reads them: all frames in order, and some of them again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import torch

from vidup.comparison import SAME
from vidup.config import Settings
from vidup.errors import ConfigError, MediaError
from vidup.frame import MediaInfo
from vidup.media.decoding import decode, part_around, schedule
from vidup.media.opening import check_file
from vidup.media.probing import probe
from vidup.picture import color
from vidup.picture.geometry import Turn


@dataclass(frozen=True)
class Film:
    """A video, or a part of it; its pictures are turned as players turn them."""

    info: MediaInfo
    settings: Settings = field(default_factory=lambda: Settings(deinterlace="off"))
    """How it is decoded, see `decode`."""
    begin: int | None = None
    end: int | None = None
    """The part, in units of ``info.time_base``."""
    times: tuple[Fraction, ...] = ()
    """The times of its frames, in seconds after the first; its own unless there are as many others."""

    def __post_init__(self) -> None:
        unit, pts = self._schedule
        if len(self.times) != len(pts):
            object.__setattr__(self, "times", tuple((one - pts[0]) * unit for one in pts))

    @cached_property
    def _schedule(self) -> tuple[Fraction, tuple[int, ...]]:
        unit, spans = schedule(self.info, self.settings, self.begin, self.end)
        return unit, tuple(spans)

    @cached_property
    def _turn(self) -> Turn:
        try:
            return Turn.of(self.info.display_matrix)
        except ConfigError:  # no multiple of a quarter turn: shown as it is stored
            return Turn()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its pictures, as they are shown."""
        return self._turn.size(self.info.height, self.info.width)

    @property
    def stretch(self) -> float:
        """Width of a pixel divided by its height, as it is shown."""
        pixel = self.info.sample_aspect_ratio or 1
        return float(1 / pixel if self._turn.transpose else pixel)

    def pictures(self, low: int = 0, high: int | None = None) -> Generator[tuple[Fraction, torch.Tensor], None, None]:
        """The frames with the places `low` to `high`, each with its time: RGB, float32 (3, H, W) in [0, 1].

        Raises MediaError.
        """
        unit, every = self._schedule
        high = len(every) if high is None else min(high, len(every))
        if low >= high:
            return
        places = {pts: place for place, pts in enumerate(every[low:high], low)}
        begin, end = part_around(self.info, unit, every[low], every[high - 1], (self.begin, self.end))
        with closing(decode(self.info, begin, end, self.settings)) as frames:
            for frame in frames:
                if frame.pts in places:
                    yield self.times[places[frame.pts]], self._turn(color.to_rgb(frame).clamp(0, 1))

    def place(self, time: float) -> int | None:
        """The place of the frame that begins at a time; None where there is none."""
        near = Fraction(time)
        place = bisect_left(self.times, near - SAME)
        return place if place < len(self.times) and self.times[place] <= near + SAME else None

    def at(self, time: float) -> torch.Tensor | None:
        """The picture of the frame that begins at a time, as in `pictures`; None where there is none."""
        place = self.place(time)
        return None if place is None else next((picture for _, picture in self.pictures(place, place + 1)), None)


def film(path: str) -> Film:
    """Open a whole video, without deinterlacing; raises MediaError."""
    check_file(Path(path))
    found = Film(probe(path))
    if not found.times:
        raise MediaError(f"{path}: shows no frame")
    return found
