"""A video as a sequence of frames; frames from and to PyAV, for users of the library."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, overload

from vidup.config import Given, Settings, settings_of
from vidup.errors import MediaError
from vidup.frame import Frame, MediaInfo
from vidup.media import decoding, frames, probing
from vidup.media.compression import quantiser_step, settled
from vidup.media.opening import check_file
from vidup.media.reading import Readers
from vidup.picture.color import resolve


def open(path: str | os.PathLike[str], settings: Given = None) -> Video:
    """Open a video as a sequence of its frames.

    Args:
        settings: its ``matrix``, ``range``, ``deinterlace`` and ``tolerate_errors`` are used.

    Raises:
        MediaError: no media file, no video stream, a codec that cannot be decoded, a file that is damaged or cut short.
    """
    settings = settings_of(settings)
    check_file(Path(path))
    return Video(probing.probe(os.fspath(path), settings.tolerate_errors), settings)


class Video(Sequence[Frame]):
    """The frames of a file in the order in which they are shown, each with its time; decoded on access.

    ``video[3]`` is a frame, ``video[::10]`` a sequence of some, ``for frame in video`` decodes once from the first to
    the last. Access in rising order is cheap; going back seeks to a key frame before. Any thread may read. `open`
    creates it.
    """

    def __init__(
        self, info: MediaInfo, settings: Settings, readers: Readers | None = None, places: range | None = None
    ) -> None:
        self.info = info
        """What is in the file."""
        self._settings, self._readers = settings, readers or Readers(info)
        # Where each field becomes a picture, there are two for one frame of the file.
        self._each = 2 if decoding.schedule(info, settings)[0] != info.time_base else 1
        self._places = range(len(info.pts) * self._each) if places is None else places

    @cached_property
    def quantiser(self) -> float | None:
        """Quantiser step that the file was encoded with, in codes of 255; None where nobody knows.

        The mean of some frames, which are decoded for it; each frame has its own, see `Frame.quantiser`.
        """
        return quantiser_step(self.info)

    @cached_property
    def _decoding(self) -> Settings:
        return settled(self._settings, self.info)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Frame: ...

    @overload
    def __getitem__(self, index: slice) -> Video: ...

    def __getitem__(self, index: int | slice) -> Frame | Video:
        """A frame, or a sequence of some of them.

        Raises:
            IndexError: there is no such frame.
            MediaError: the file is damaged there.
        """
        if isinstance(index, slice):
            return Video(self.info, self._settings, self._readers, self._places[index])
        place, field = divmod(self._places[index], self._each)
        end = next(iter(self.info.pts[place + 1 : place + 2]), None)
        found = list(islice(self._decoded(self.info.pts[place], end), field, field + 1))
        if not found:
            raise MediaError(f"{self.info.path}: its frame {index} cannot be decoded")
        return found[0]

    def __iter__(self) -> Iterator[Frame]:
        places = self._places
        if not places or self._each > 1 or places.step != 1:
            return super().__iter__()
        behind = places[-1] + 1
        return self._decoded(self.info.pts[places[0]], self.info.pts[behind] if behind < len(self.info.pts) else None)

    def at(self, seconds: float | Fraction) -> Frame:
        """The frame that a player shows at this time.

        Args:
            seconds: from the begin of the file.

        Raises:
            MediaError: the video is shorter.
        """
        info = self.info
        time = (info.begin + Fraction(seconds)) / info.time_base
        if seconds < 0 or time >= max(info.end, info.pts[-1] + 1):
            last = float(info.end * info.time_base - info.begin)
            raise MediaError(f"{info.path}: has nothing to show at {float(seconds):g} s: it lasts for {last:.3f} s")
        times = list(decoding.schedule(info, self._settings)[1]) if self._each > 1 else info.pts
        place = max(0, bisect_right(times, time * self._each) - 1)
        return Video(info, self._settings, self._readers)[place]

    def close(self) -> None:
        """Close the file; access to a frame opens it again."""
        self._readers.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Video({self.info!r}, {len(self)} frames)"

    def _decoded(self, begin: int, end: int | None) -> Iterator[Frame]:
        return decoding.decode(self.info, begin, end, self._decoding, self._readers)


def from_av(picture: Any) -> Frame:
    """As `Frame.from_av`, in the nearest planar format."""
    pix_fmt = decoding.planar(picture.format.name)
    color = resolve(probing.color_of(picture), pix_fmt, picture.width, picture.height)
    planes = picture if picture.format.name == pix_fmt else picture.reformat(format=pix_fmt)
    unit = picture.time_base or Fraction(1, 1000)
    frame = frames.frame_of(planes, pix_fmt, color, (picture.pts or 0, picture.duration or 0, unit))
    return replace(frame, planes=tuple(plane.copy() for plane in frame.planes))


def to_av(frame: Frame) -> Any:
    """As `Frame.to_av`."""
    result = frames.filled(frame.planes, frame.pix_fmt)
    result.pts, result.duration, result.time_base = frame.pts, frame.duration, frame.time_base
    frames.tag(result, frame.color)
    return result
