"""Read the frames of a video as a stream."""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal

import av

from vidup.config import Settings
from vidup.errors import MediaError
from vidup.frame import Frame, MediaInfo, layout
from vidup.media import frames, interlace
from vidup.media.captions import read_captions
from vidup.media.opening import clock
from vidup.media.quantiser import tell, told
from vidup.media.reading import Readers, timed_frames
from vidup.picture.color import resolve

log = logging.getLogger(__name__)

_LEAD_IN = 2  # frames before a part that deinterlacing needs


def decode(
    info: MediaInfo,
    begin: int | None = None,
    end: int | None = None,
    settings: Settings | None = None,
    readers: Readers | None = None,
) -> Generator[Frame, None, None]:
    """Decode the frames that are shown from `begin` to `end`, in the order of their times.

    A frame lasts until the next one begins or the part ends, the last one as long as the file states. The frame that is
    on screen at `begin` gets that time. Times are in `info.time_base`; where each field becomes a frame, in half of it,
    and each of the two lasts for half of the time that their frame is shown in the part.

    Args:
        begin, end: in units of `info.time_base`; None: from the first frame, to the last.
        settings: its `matrix`, `range`, `quantiser`, `deinterlace` and `tolerate_errors` are used; None: nothing is
            deinterlaced.
        readers: open decoders of the file, for reading part after part.

    Raises:
        MediaError: the stream is damaged: a frame cannot be decoded, or has a time that the file did not announce.
    """
    settings = settings or Settings(deinterlace="off", quantiser=0)
    color = resolve(info.color, planar(info.pix_fmt), info.width, info.height, settings.matrix, settings.range)
    with closing(pictures(info, begin, end, settings, readers)) as read:
        for picture in read:
            frame = frames.frame_of(_in_planes(picture, info), planar(info.pix_fmt), color)
            captions = read_captions(picture)
            captions = captions if captions and _is_own(picture, info) else b""
            step = told(picture) if settings.quantiser == "auto" else settings.quantiser
            yield replace(frame, captions=captions, quantiser=step)


def pictures(
    info: MediaInfo, begin: int | None, end: int | None, settings: Settings, readers: Readers | None = None
) -> Generator[Any, None, None]:
    """The frames of `decode` as PyAV frames in the decoder's pixel format, each with its time and duration."""
    low, high = places(info, begin, end)
    if low >= high:
        return
    unit, spans = schedule(info, settings, begin, end)
    own = schedule(info, settings, info.pts[low], info.pts[high] if high < len(info.pts) else None)[1]
    shown = dict(zip(own, spans, strict=True))  # frames may begin before the part, or end after it
    deinterlacing = deinterlaces(info, settings)
    ahead, behind = (_LEAD_IN, 1) if deinterlacing else (0, 0)
    last = next(reversed(own))
    around = max(0, low - ahead), min(high + behind, len(info.pts))
    with closing(_pictures(info, *around, settings, readers)) as found:
        read: Iterator[Any] = found
        if deinterlacing:
            mode: Literal["frame", "field"] = "field" if settings.deinterlace == "field" else "frame"
            until = info.end if high == len(info.pts) else None
            read = interlace.deinterlaced((_in_planes(frame, info) for frame in found), mode, info.field_order, until)
        for picture in read:
            time = picture.pts
            if time in shown:
                picture.pts, picture.duration, picture.time_base = shown[time], spans[shown[time]], unit
                yield picture
            if time >= last:
                return


def places(info: MediaInfo, begin: int | None = None, end: int | None = None) -> tuple[int, int]:
    """The places in `info.pts` of the frames that `decode` yields: low <= place < high."""
    low = 0 if begin is None else bisect_left(info.pts, begin)
    high = len(info.pts) if end is None else bisect_left(info.pts, end)
    if begin is None or begin >= info.end:
        return low, high
    return max(0, bisect_right(info.pts, begin) - 1), high


def schedule(
    info: MediaInfo, settings: Settings, begin: int | None = None, end: int | None = None
) -> tuple[Fraction, dict[int, int]]:
    """When the frames of `decode` are shown: the unit of their times in seconds, and time -> duration, rising."""
    low, high = places(info, begin, end)
    times = [*info.pts[low : high + 1], *([info.end] if high >= len(info.pts) else [])]
    if begin is not None and low < high:
        times[0] = max(times[0], begin)
    if end is not None and low < high:
        times[-1] = min(times[-1], end)
    if settings.deinterlace == "field" and deinterlaces(info, settings):
        # In half units the second field's moment is a whole number: between its frame and the next.
        halves = [(time, b - a) for a, b in pairwise(times) for time in (2 * a, a + b)]
        return info.time_base / 2, dict(halves)
    return info.time_base, {a: b - a for a, b in pairwise(times)}


def part_around(
    info: MediaInfo, unit: Fraction, first: int, last: int, within: tuple[int | None, int | None]
) -> tuple[int, int | None]:
    """Begin and end, in `info.time_base`, of the part to decode for the frames that `schedule` has between two times.

    Args:
        first, last: times of a schedule, whose unit is `unit` seconds.
        within: the part that the schedule covers.
    """
    fields = int(info.time_base / unit)
    begin, end = info.pts[max(0, bisect_right(info.pts, first // fields) - 1)], within[1]
    following = bisect_right(info.pts, last // fields)
    if following < len(info.pts):
        end = info.pts[following] if end is None else min(end, info.pts[following])
    return begin if within[0] is None else max(begin, within[0]), end


def deinterlaces(info: MediaInfo, settings: Settings) -> bool:
    """Whether the frames of this file are deinterlaced."""
    return info.field_order != "progressive" and settings.deinterlace != "off"


def _pictures(
    info: MediaInfo, low: int, high: int, settings: Settings, readers: Readers | None
) -> Generator[Any, None, None]:
    """PyAV frames of the places `low` to `high` in `info.pts`; a missing one is an error or a warning."""
    place, resized = low, False
    troubles: list[str] = []

    def warn(what: str) -> None:
        if what not in troubles:
            troubles.append(what)
            log.warning("%s: %s", info.path, what)

    def report_missing() -> None:
        why = f" ({troubles[-1]})" if troubles else ""
        what = f"its frame at {clock(info.pts[place], info.time_base)} cannot be decoded{why}"
        if not settings.tolerate_errors:
            raise MediaError(f"{info.path}: {what}; --tolerate-errors upscales what can be decoded")
        log.warning("%s: %s", info.path, what)

    exact, tells = settings.tolerate_errors, settings.quantiser == "auto"
    frames = timed_frames(info, low, warn, exact, tells) if readers is None else readers.frames(low, warn, exact)
    with closing(frames):
        for frame in frames:
            if place >= high:
                return
            if frame.pts < info.pts[place]:
                continue  # before the part
            if frame.pts != info.pts[place]:
                report_missing()
                place = bisect_left(info.pts, frame.pts)
                if place >= high:
                    return
            if frame.is_corrupt:
                warn(f"its frame at {clock(frame.pts, info.time_base)} is damaged: used as the decoder conceals it")
            place += 1
            if (frame.width, frame.height) != (info.width, info.height) and not resized:
                log.warning(
                    "%s: the frame size changes from %dx%d to %dx%d at %s: such frames are resized to the first size",
                    *(info.path, info.width, info.height, frame.width, frame.height),
                    clock(frame.pts, info.time_base),
                )
                resized = True
            yield frame
    if place < high:
        report_missing()


def _in_planes(picture: Any, info: MediaInfo) -> Any:
    """A PyAV frame in the planar format of the video, of the size that the file states."""
    pix_fmt = planar(info.pix_fmt)
    is_sized = (picture.width, picture.height) == (info.width, info.height)
    if picture.format.name == pix_fmt and is_sized:
        return picture
    scaler = "BILINEAR" if is_sized else "BICUBIC"
    result = picture.reformat(info.width, info.height, pix_fmt, interpolation=scaler)
    result.pts, result.duration, result.time_base = picture.pts, picture.duration, picture.time_base
    tell(result, told(picture))
    return result


def _is_own(picture: Any, info: MediaInfo) -> bool:
    """Whether a picture has the time of a frame of the file: false for the second of the two made from its fields."""
    time = picture.pts * picture.time_base / info.time_base
    return info.pts[bisect_left(info.pts, time) :][:1] == (time,)


def planar(pix_fmt: str) -> str:
    """The planar format that keeps a pixel format's colours and transparency; a MediaError if FFmpeg has no such."""
    if layout(pix_fmt) is not None:
        return pix_fmt
    try:
        kind = av.VideoFormat(pix_fmt)
    except ValueError:
        raise MediaError(f"pixel format {pix_fmt!r} is not known") from None
    bits = max(component.bits for component in kind.components)
    alpha = kind.components[-1].is_alpha and not kind.has_palette
    if kind.is_rgb or kind.has_palette:  # first: a palette has one component
        family = "gbrap" if alpha else "gbrp"
    elif alpha and len(kind.components) == 2:
        family = "gbrap"  # no planar format is gray with transparency
    elif len(kind.components) <= 2:
        family = "gray"
    else:
        x, y = 64 // kind.chroma_width(64), 64 // kind.chroma_height(64)
        family = {(1, 1): "yuv444p", (2, 1): "yuv422p", (2, 2): "yuv420p", (4, 1): "yuv411p"}.get((x, y), "yuv444p")
        family = family.replace("yuv", "yuva") if alpha else family
    depth = next(depth for depth in (8, 10, 12, 16, 32) if bits <= depth)
    return family if depth == 8 else f"{family}{min(depth, 16)}le"
