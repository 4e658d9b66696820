"""Check that each picture of an output is that of its source: decode both, scale them down, compare."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
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
    color = resolve(made.color, planar(made.pix_fmt), made.width, made.height)
    alpha, result = _has_alpha(delivery, made.pix_fmt), Compared(0, 1.0)
    for low, high in _runs(len(times), fast):
        end = made.pts[high] if high < len(made.pts) else None
        with closing(decoding.pictures(made, made.pts[low], end, Settings(deinterlace="off", quantiser=0))) as frames:
            found = _found(output, frames, color, delivery, alpha)
            result += _compare(output, found, delivery, times, (low, high), None, alpha)
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
        return _compare(output, found, delivery, times, (low, high), readers, alpha)


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


def _compare(
    output: Path,
    found: Iterator[Picture],
    delivery: Delivery,
    times: Sequence[int],
    span: tuple[int, int],
    readers: Readers | None,
    alpha: bool,
) -> Compared:
    """Compare pictures of the output, at the places `span` of `times`, with the source's there and beside them."""
    low, high = span
    tolerant = delivery.settings.tolerate_errors
    fine = 0.0
    source = _around(delivery, times, span, readers, alpha)
    with closing(source), closing(_ahead(found, delivery.info)) as batches:
        pictures = chain.from_iterable(batches)
        for first, (own, there) in zip(range(low, high, _AT_ONCE), source, strict=True):
            last = min(high, first + _AT_ONCE)
            part = list(islice(pictures, last - first))
            if len(part) < last - first:
                raise VerifyError(f"{output}: only {first + len(part)} frames can be decoded, expected {high}")
            found_there = np.stack(part)
            seconds = np.array(times[first:last]) * float(delivery.unit)
            for of, planes in _PLANES[: 1 + alpha]:
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
        for _, picture in thumbnails(frames, color, *delivery.turn.size(*_small_size(delivery)), alpha):
            yield picture
            count += 1
    except MediaError as error:
        raise VerifyError(f"{output}: cannot be decoded after {count} frames: {error}") from error


def _around(
    delivery: Delivery, times: Sequence[int], span: tuple[int, int], readers: Readers | None, alpha: bool
) -> Generator[tuple[NDArray[np.uint16], NDArray[np.bool_]], None, None]:
    """Small pictures of the source's frames, read as they are needed.

    Yields:
        For each `_AT_ONCE` places of `span`: the pictures from REACH places before to REACH after them, and which of
        these exist.
    """
    low, high = span
    reached = range(max(0, low - REACH), min(len(times), high + REACH))
    places = {times[place] + delivery.offset: place for place in reached}
    none = np.zeros((3 + alpha, *delivery.turn.size(*_small_size(delivery))), np.uint16)
    window: dict[int, Picture] = {}
    newest = -1
    with closing(_ahead(_read(delivery, places, readers, alpha), delivery.info)) as batches:
        for first in range(low, high, _AT_ONCE):
            wanted = range(first - REACH, min(high, first + _AT_ONCE) + REACH)
            window = {place: picture for place, picture in window.items() if place >= wanted[0]}
            while newest < wanted[-1] and (batch := next(batches, None)) is not None:
                window |= dict(batch)
                newest = batch[-1][0]
            yield np.stack([window.get(place, none) for place in wanted]), np.array([p in window for p in wanted])


def _read(
    delivery: Delivery, places: dict[int, int], readers: Readers | None, alpha: bool
) -> Iterator[tuple[int, Picture]]:
    """The place and the small picture of each frame of the source that has one of these times."""
    info, size = delivery.info, _small_size(delivery)
    settings = replace(delivery.settings, quantiser=0)  # which takes time to tell
    turns = delivery.turn != Turn()
    color = resolve(info.color, planar(info.pix_fmt), info.width, info.height, settings.matrix, settings.range)
    begin, end = decoding.part_around(info, delivery.unit, min(places), max(places), delivery.span)
    with closing(decoding.pictures(info, begin, end, settings, readers)) as frames:
        for pts, picture in thumbnails(frames, color, *size, alpha):
            if pts in places:
                yield places[pts], _turned(picture, delivery.turn) if turns else picture


def _turned(picture: Picture, turn: Turn) -> Picture:
    # torch cannot flip uint16: int16 has the same bits.
    return turn(torch.from_numpy(picture.view(np.int16))).contiguous().numpy().view(np.uint16)


def _small_size(delivery: Delivery) -> tuple[int, int]:
    """(height, width) of the small pictures before they are turned: multiples of 4."""
    height, width = delivery.info.height, delivery.info.width
    factor = min(1.0, _SIDE / max(height, width))
    return max(4, int(height * factor) // 4 * 4), max(4, int(width * factor) // 4 * 4)
