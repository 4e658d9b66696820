"""Check that each picture of an output is that of its source: decode both, scale them down, compare."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from vidup.config import Settings
from vidup.errors import MediaError, VerifyError
from vidup.frame import Color, MediaInfo, layout
from vidup.media import decoding
from vidup.media.decoding import planar
from vidup.media.delivery import Delivery
from vidup.media.encoder import Encoding
from vidup.media.opening import is_small
from vidup.media.reading import Readers
from vidup.media.segment import decode_segment, read_segment
from vidup.media.thumbnails import thumbnails
from vidup.picture.color import resolve
from vidup.picture.geometry import Turn
from vidup.prefetch import batched, prefetch
from vidup.proof.faults import faults
from vidup.proof.likeness import REACH, measure

log = logging.getLogger(__name__)

_SIDE = 256  # of the small pictures, in pixels: enough to see motion of a pixel in the source
_SAMPLES, _RUN = 24, 4  # the fast check: the number of places, and of frames at each
_AT_ONCE = 96  # pictures that are measured together
_PLANES = ("", slice(3)), ("transparency: ", slice(3, 4))
_BATCH = 16  # pictures that are passed together from thread to thread

T = TypeVar("T")
Picture = NDArray[np.uint16]


@dataclass(frozen=True)
class Compared:
    """The result of a comparison without a fault."""

    pictures: int
    least_likeness: float
    """1 minus the largest root mean square difference."""

    def __add__(self, other: Compared) -> Compared:
        return Compared(self.pictures + other.pictures, min(self.least_likeness, other.least_likeness))


def check_pictures(output: Path, made: MediaInfo, delivery: Delivery, times: Sequence[int], fast: bool) -> Compared:
    """Decode the output and the source, and compare every picture.

    A picture that looks unlike its source's, but is neither broken nor another frame's, causes a warning.

    Args:
        made: what is in the output, with as many frames as `times` has.
        times: when its frames are shown, in `delivery.unit`.
        fast: compare samples only.

    Raises:
        VerifyError: a picture is black, broken, without its colour, shifted, doubled or swapped with one beside it.
    """
    color, alpha = (
        resolve(made.color, planar(made.pix_fmt), made.width, made.height),
        _has_alpha(delivery, made.pix_fmt),
    )
    result = Compared(0, 1.0)
    for low, high in _runs(len(times), fast):
        end = made.pts[high] if high < len(made.pts) else None
        with closing(decoding.pictures(made, made.pts[low], end, Settings(deinterlace="off"))) as frames:
            found = _found(output, frames, color, delivery, alpha)
            result += _compare(output, found, _Source(delivery, times, low, high, None, alpha), times)
    return result


def check_segment(
    output: Path,
    segment: Path,
    encoding: Encoding,
    delivery: Delivery,
    times: Sequence[int],
    span: tuple[int, int],
    fast: bool,
    readers: Readers | None,
) -> Compared:
    """Check the pictures of a segment's file as `check_pictures` does, and their times.

    Args:
        output: the output it is a segment of, for messages.
        times: when the output's frames are shown, in `delivery.unit`.
        span: the places of the segment's frames in `times`: low <= place < high.
        fast: compare the first few only.
        readers: open decoders of the source, where segment after segment is proved.
    """
    low, high = span
    scale, by = (delivery.unit / encoding.time_base).as_integer_ratio()
    expected = [time * scale // by for time in times[low:high]]
    packets = sorted(packet.pts for packet in read_segment(segment))
    if packets != expected:
        amiss = next((time for time in expected if time not in set(packets)), packets[-1]) * encoding.time_base
        raise VerifyError(
            f"{output}: the segment from {float(times[low] * delivery.unit):.3f} s on holds {len(packets)} frames,"
            f" expected {len(expected)}; the first that differs should be at {float(amiss):.6f} s"
        )
    if low == high:  # with tolerated damage there may be no frame
        return Compared(0, 1.0)
    high, alpha = min(high, low + _RUN) if fast else high, _has_alpha(delivery, encoding.pix_fmt)
    with closing(decode_segment(segment, encoding)) as frames:
        found = _found(output, frames, encoding.color, delivery, alpha)
        return _compare(output, found, _Source(delivery, times, low, high, readers, alpha), times)


def _has_alpha(delivery: Delivery, pix_fmt: str) -> bool:
    """Whether the source has transparency, and the output has a place for it."""
    kinds = layout(planar(delivery.info.pix_fmt)), layout(planar(pix_fmt))
    return all(kind is not None and kind.alpha for kind in kinds)


def _runs(count: int, fast: bool) -> Iterator[tuple[int, int]]:
    if not fast or count <= _SAMPLES * _RUN:
        yield 0, count
        return
    for sample in range(_SAMPLES):
        low = (count - _RUN) * sample // (_SAMPLES - 1)
        yield low, low + _RUN


def _compare(output: Path, found: Iterator[Picture], source: _Source, times: Sequence[int]) -> Compared:
    """Compare pictures of the output with their frames of the source and the neighbours of those."""
    delivery, low, high = source.delivery, source.low, source.high
    tolerant = delivery.settings.tolerate_errors
    fine = 0.0
    with closing(source.pictures), closing(_ahead(found, delivery.info)) as batches:
        pictures = chain.from_iterable(batches)
        for first in range(low, high, _AT_ONCE):
            last = min(high, first + _AT_ONCE)
            part = list(islice(pictures, last - first))
            if len(part) < last - first:
                raise VerifyError(f"{output}: only {first + len(part)} frames can be decoded, expected {high}")
            found_there, (own, there) = np.stack(part), source.around(first, last)
            seconds = np.array(times[first:last]) * float(delivery.unit)
            for of, planes in _PLANES[: 1 + found_there.shape[1] // 4]:
                likeness = measure(found_there[:, planes], own[:, planes], there)
                if not likeness.there.all() and not tolerant:
                    missing = first + int(np.argmin(likeness.there))
                    raise VerifyError(f"{output}: the source has no picture for frame {missing}")
                for fault in faults(likeness, first, seconds):
                    # Some decoders leave the damaged parts of pictures to chance.
                    if fault.is_error and not tolerant:
                        raise VerifyError(f"{output}: {of}{fault.words}")
                    log.warning("%s: %s%s", output, of, fault.words)
                fine = max(fine, float((likeness.fine * likeness.there).max()))
    return Compared(high - low, 1 - fine)


def _ahead(pictures: Iterator[T], info: MediaInfo) -> Generator[list[T], None, None]:
    """Batches of small pictures, made in a thread where the source's frames are large enough for that."""
    batches = batched(pictures, _BATCH)
    return batches if is_small(info.width, info.height) else prefetch(batches)


def _found(output: Path, frames: Iterable[Any], color: Color, delivery: Delivery, alpha: bool) -> Iterator[Picture]:
    """Small pictures of the output's frames."""
    count = 0
    try:
        for thumbnail in thumbnails(frames, color, *delivery.turn.size(*_small_size(delivery)), alpha):
            yield thumbnail.picture
            count += 1
    except MediaError as error:
        raise VerifyError(f"{output}: cannot be decoded after {count} frames: {error}") from error


class _Source:
    """Small pictures of the source's frames and of their neighbours, read as they are needed.

    Args:
        times: as for `check_pictures`.
        low, high: the places in `times` of the frames that are compared.
        alpha: with transparency.
    """

    def __init__(
        self, delivery: Delivery, times: Sequence[int], low: int, high: int, readers: Readers | None, alpha: bool
    ) -> None:
        self.delivery, self.low, self.high = delivery, low, high
        self._readers, self._alpha = readers, alpha
        self._size, self._turn = _small_size(delivery), delivery.turn
        self._is_upright = delivery.turn == Turn()
        begin, end = max(0, low - REACH), min(len(times), high + REACH)
        self._places = {times[place] + delivery.offset: place for place in range(begin, end)}
        self._window: dict[int, Picture] = {}
        self.pictures = _ahead(self._read(times[begin], times[end - 1]), delivery.info)
        self._last = -1

    def around(self, first: int, last: int) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """The pictures of the places `first` - REACH to `last` + REACH, and which of them exist."""
        for place in [place for place in self._window if place < first - REACH]:
            del self._window[place]
        while self._last < last + REACH - 1 and (batch := next(self.pictures, None)) is not None:
            self._window |= dict(batch)
            self._last = batch[-1][0]
        places = range(first - REACH, last + REACH)
        height, width = self._turn.size(*self._size)
        none = np.zeros((3 + self._alpha, height, width), np.uint16)
        return (
            np.stack([self._window.get(place, none) for place in places]),
            np.array([place in self._window for place in places]),
        )

    def _read(self, first: int, last: int) -> Iterator[tuple[int, Picture]]:
        delivery = self.delivery
        info, given = delivery.info, delivery.settings
        color = resolve(info.color, planar(info.pix_fmt), info.width, info.height, given.matrix, given.range)
        times = first + delivery.offset, last + delivery.offset
        begin, end = decoding.part_around(info, delivery.unit, *times, delivery.span)
        with closing(decoding.pictures(info, begin, end, given, self._readers)) as frames:
            for pts, picture in thumbnails(frames, color, *self._size, self._alpha):
                if pts in self._places:
                    yield self._places[pts], self._turned(picture)

    def _turned(self, picture: Picture) -> Picture:
        if self._is_upright:
            return picture
        # torch cannot flip uint16: int16 has the same bits.
        turned = self._turn(torch.from_numpy(picture.view(np.int16))).contiguous()
        return turned.numpy().view(np.uint16)


def _small_size(delivery: Delivery) -> tuple[int, int]:
    """(height, width) of the small pictures before they are turned: multiples of 4."""
    height, width = delivery.info.height, delivery.info.width
    factor = min(1.0, _SIDE / max(height, width))
    return max(4, int(height * factor) // 4 * 4), max(4, int(width * factor) // 4 * 4)
