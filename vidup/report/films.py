"""Videos as a report reads them: from the first frame to the last, and some of their frames once more."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import torch

from vidup.compare import SAME
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
    """A video, or the part of it that counts; its pictures are turned as players turn them."""

    info: MediaInfo
    settings: Settings = field(default_factory=lambda: Settings(deinterlace="off"))
    """How it is read: `decode` says which of them count."""
    begin: int | None = None
    end: int | None = None
    """The part, in units of ``info.time_base``."""
    times: tuple[Fraction, ...] = ()
    """Of its frames, in seconds after the first: its own where they are not given."""
    _pts: tuple[int, ...] = field(init=False, repr=False)
    _turn: Turn = field(init=False, repr=False)

    def __post_init__(self) -> None:
        unit, spans = schedule(self.info, self.settings, self.begin, self.end)
        pts = tuple(spans)
        object.__setattr__(self, "_pts", pts)
        times = self.times if len(self.times) == len(pts) else tuple((one - pts[0]) * unit for one in pts)
        object.__setattr__(self, "times", times)
        try:
            turn = Turn.of(self.info.display_matrix)
        except ConfigError:  # by less than a quarter: shown as it is stored
            turn = Turn()
        object.__setattr__(self, "_turn", turn)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its pictures, as they are shown."""
        return self._turn.size(self.info.height, self.info.width)

    @property
    def stretch(self) -> float:
        """Width of a pixel by its height, as it is shown."""
        pixel = self.info.sample_aspect_ratio or 1
        return float(1 / pixel if self._turn.transpose else pixel)

    def pictures(self, low: int = 0, high: int | None = None) -> Generator[tuple[Fraction, torch.Tensor], None, None]:
        """The frames with the places `low` to `high`, each with its time: RGB, float32 (3, H, W) in [0, 1].

        Raises:
            MediaError: the file is damaged there.
        """
        high = len(self._pts) if high is None else min(high, len(self._pts))
        if low >= high:
            return
        unit = schedule(self.info, self.settings, self.begin, self.end)[0]
        places = {pts: place for place, pts in enumerate(self._pts[low:high], low)}
        begin, end = part_around(self.info, unit, self._pts[low], self._pts[high - 1], (self.begin, self.end))
        with closing(decode(self.info, begin, end, self.settings)) as frames:
            for frame in frames:
                if frame.pts in places:
                    yield self.times[places[frame.pts]], self._turn(color.to_rgb(frame).clamp(0, 1))

    def place(self, time: float) -> int | None:
        """The place of the frame that is shown first at a time; None where there is none."""
        near = Fraction(time)
        place = bisect_left(self.times, near - SAME)
        return place if place < len(self.times) and self.times[place] <= near + SAME else None

    def at(self, time: float) -> torch.Tensor | None:
        """The frame that is shown first at a time, as `pictures` gives it."""
        place = self.place(time)
        found: Iterator[tuple[Fraction, torch.Tensor]] = iter(())
        if place is not None:
            found = self.pictures(place, place + 1)
        return next((picture for _, picture in found), None)


def film(path: str) -> Film:
    """A video that is read as it is.

    Raises:
        MediaError: no media file, or one that cannot be read.
    """
    check_file(Path(path))
    found = Film(probe(path))
    if not found.times:
        raise MediaError(f"{path}: shows no frame")
    return found
