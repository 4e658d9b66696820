"""Read the frames of a video as a stream."""

from __future__ import annotations

import logging
import zlib
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from itertools import chain, pairwise
from typing import Any, Literal, cast

import av
import numpy as np

from vidup.config import Settings
from vidup.errors import MediaError
from vidup.frame import Color, Frame, MediaInfo
from vidup.media import interlace
from vidup.media.captions import read_captions
from vidup.media.opening import _UNREADABLE, clock, open_input, reason, tolerant_demux, video_context
from vidup.picture.color import layout, resolve

log = logging.getLogger(__name__)


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_LEAD_IN = 2  # frames before a part that a deinterlacer looks back to


def decode_stream(container: Any, stream: Any, damaged: Callable[[str], None], exact: bool = False) -> Iterator[Any]:
    """The frames of a video stream as its decoder gives them; an error is told to `damaged`, as by `tolerant_demux`.

    Args:
        exact: an error costs no frame but its own: frames are not decoded side by side.
    """
    stream.thread_type = "SLICE" if exact else "AUTO"
    context = video_context(stream)
    last: int | None = None
    for packet in chain(tolerant_demux(container, stream, damaged), [None]):
        if packet is not None and packet.size == 0:
            continue  # would end the decoding
        if packet is not None and context.name == "ffv1" and _checksums_hold(bytes(packet)) is False:
            damaged(f"its frame at {clock(packet.pts, stream.time_base)} is damaged")
        try:
            frames = stream.decode(packet)
        except EOFError:
            continue
        except _UNREADABLE as error:
            if last is None and packet is not None:
                last = packet.pts if packet.pts is not None else packet.dts
            # Where frames are decoded side by side, an error comes with a later packet, but after the frames before it.
            where = "at its head" if last is None else f"after {clock(last, stream.time_base)}"
            damaged(f"is damaged {where}: {reason(error)}")
            continue
        for frame in frames:
            frame.time_base = stream.time_base  # the last ones, which come without a packet, have none
            time = own_time(frame)
            last = last if time is None else time
            yield frame


def _checksums_hold(data: bytes) -> bool | None:
    """Whether the slices of an FFV1 frame are whole; None where they bear no checksums. FFmpeg only logs that.

    A slice ends with its size in 3 bytes, a byte of status, and a CRC-32 (RFC 9043, 4.9), which counts the highest bit
    first; that of zlib counts the lowest.
    """
    end, whole = len(data), True
    while end >= 8:
        begin = end - 8 - int.from_bytes(data[end - 8 : end - 5], "big")
        if begin < 0:
            return None
        whole &= zlib.crc32(data[begin:end].translate(_MIRRORED), 0xFFFFFFFF) == 0xFFFFFFFF
        end = begin
    return whole if end == 0 else None


def rising(frames: Iterable[Any], unit: Fraction, damaged: Callable[[str], None]) -> Iterator[Any]:
    """Frames, each with its time as `pts`; those without one, or not after the one before, are told and left out."""
    last: int | None = None
    after: int | None = None
    for frame in frames:
        time = own_time(frame)
        time = after if time is None else time
        if time is None or (last is not None and time <= last):
            damaged(
                f"its frame after {clock(last, unit)} has no time"
                if last is not None
                else "its first frame has no time"
            )
            continue
        frame.pts = last = time
        after = time + frame.duration if frame.duration else None
        yield frame


def decode(
    info: MediaInfo, begin: int | None = None, end: int | None = None, settings: Settings | None = None
) -> Generator[Frame, None, None]:
    """Decode the frames with ``begin <= pts < end``, in the order of their times.

    A frame lasts until the next one begins, the last one as long as the file says. The times are in `info.time_base`;
    where fields become frames, in half of it.

    Args:
        begin, end: in units of `info.time_base`; all frames where not given.
        settings: its `matrix`, `range`, `deinterlace` and `tolerate_errors` are used; without, the picture is as it is.

    Raises:
        MediaError: the stream is damaged: a frame cannot be decoded, or comes at a time at which none is expected.
    """
    settings = settings or Settings(deinterlace="off")
    color = resolve(info.color, planar(info.pix_fmt), info.width, info.height, settings.matrix, settings.range)
    with closing(pictures(info, begin, end, settings)) as read:
        for picture in read:
            (converted,) = _in_planes([picture], info)
            frame = _frame(converted, planar(info.pix_fmt), color)
            captions = read_captions(picture)
            yield replace(frame, captions=captions) if captions and _is_own(picture, info) else frame


def pictures(info: MediaInfo, begin: int | None, end: int | None, settings: Settings) -> Generator[Any, None, None]:
    """The frames that `decode` gives, as PyAV's and in the decoder's own format, each with its time and duration."""
    low = 0 if begin is None else bisect_left(info.pts, begin)
    high = len(info.pts) if end is None else bisect_left(info.pts, end)
    if low >= high:
        return
    unit, spans = schedule(info, settings, low, high)
    deinterlacing = deinterlaces(info, settings)
    ahead, behind = (_LEAD_IN, 1) if deinterlacing else (0, 0)
    last = next(reversed(spans))
    with closing(_pictures(info, max(0, low - ahead), min(high + behind, len(info.pts)), settings)) as found:
        read: Iterator[Any] = found
        if deinterlacing:
            mode: Literal["frame", "field"] = "field" if settings.deinterlace == "field" else "frame"
            until = info.end if high == len(info.pts) else None
            read = interlace.deinterlaced(_in_planes(read, info), mode, info.field_order, until)
        for picture in read:
            if picture.pts in spans:
                picture.duration, picture.time_base = spans[picture.pts], unit
                yield picture
            if picture.pts >= last:
                return


def schedule(
    info: MediaInfo, settings: Settings, low: int = 0, high: int | None = None
) -> tuple[Fraction, dict[int, int]]:
    """The frames that `decode` gives: the unit of their times in seconds, and time -> duration, rising.

    Args:
        low, high: the source's frames with these places in `info.pts`; all where not given.
    """
    high = len(info.pts) if high is None else high
    begins = [*info.pts[low : high + 1], *([info.end] if high >= len(info.pts) else [])]
    if settings.deinterlace == "field" and deinterlaces(info, settings):
        # In half units the second field's moment is a whole number: between its frame and the next.
        halves = [(time, b - a) for a, b in pairwise(begins) for time in (2 * a, a + b)]
        return info.time_base / 2, dict(halves)
    return info.time_base, {a: b - a for a, b in pairwise(begins)}


def deinterlaces(info: MediaInfo, settings: Settings) -> bool:
    """Whether the frames of this file are deinterlaced."""
    return info.field_order != "progressive" and settings.deinterlace != "off"


def _pictures(info: MediaInfo, low: int, high: int, settings: Settings) -> Generator[Any, None, None]:
    """The source's frames with the places `low` to `high` in `info.pts`, as PyAV's, each at the time that is there."""
    place, resized = low, False

    def damaged(what: str) -> None:
        if not settings.tolerate_errors:
            raise MediaError(f"{info.path}: {what}; --tolerate-errors upscales what can be decoded")
        log.warning("%s: %s", info.path, what)

    for frame in _timed(info, info.pts[low], damaged, settings.tolerate_errors):
        if place >= high:
            return
        if frame.pts < info.pts[place]:
            continue  # before the part
        if frame.is_corrupt:
            damaged(f"its frame at {clock(frame.pts, info.time_base)} is damaged")
        if frame.pts != info.pts[place]:
            damaged(f"its frame at {clock(info.pts[place], info.time_base)} cannot be decoded")
            place = bisect_left(info.pts, frame.pts)
            if place >= high:
                return
        place += 1
        if (frame.width, frame.height) != (info.width, info.height) and not resized:
            log.warning(
                "%s: the frame size changes from %dx%d to %dx%d at %s: such frames are brought to the first size",
                *(info.path, info.width, info.height, frame.width, frame.height),
                clock(frame.pts, info.time_base),
            )
            resized = True
        yield frame
    if place < high:
        damaged(f"its frame at {clock(info.pts[place], info.time_base)} cannot be decoded")


def _timed(info: MediaInfo, begin: int, damaged: Callable[[str], None], exact: bool) -> Iterator[Any]:
    """Decoded frames from `begin` on or a little before it, each with its time."""
    if info.timing == "packets":
        yield from _from(info, begin, damaged, exact)
        return
    # Only counted from the head can frames be told that bear no times of their own.
    with open_input(info.path) as container:
        for pts, frame in zip(info.pts, _decoded(container, info, damaged, exact), strict=False):
            frame.pts, frame.time_base = pts, info.time_base
            yield frame


def _from(info: MediaInfo, begin: int, damaged: Callable[[str], None], exact: bool) -> Iterator[Any]:
    """A container's index can be wrong or coarse: if the first frame after a seek is late, go further back."""
    back, second = 0, max(1, int(1 / info.time_base))
    while (target := begin - back) > info.pts[0]:
        with open_input(info.path) as container:
            try:
                container.seek(target, stream=container.streams[info.video_index], backward=True)
            except av.error.FFmpegError:  # no index, and none can be made
                break
            frames = _decoded(container, info, damaged, exact)
            first = next(frames, None)
            if first is not None and first.pts <= begin:
                yield first
                yield from frames
                return
        back = max(second, 2 * back)
    with open_input(info.path) as container:
        yield from _decoded(container, info, damaged, exact)


def _decoded(container: Any, info: MediaInfo, damaged: Callable[[str], None], exact: bool) -> Iterator[Any]:
    frames = decode_stream(container, container.streams[info.video_index], damaged, exact)
    return rising(frames, info.time_base, damaged) if info.timing == "packets" else frames


def own_time(frame: Any) -> int | None:
    """The time at which a frame is shown, or, where the packets have none, at which it was decoded."""
    return cast("int | None", frame.pts if frame.pts is not None else frame.dts)


def _in_planes(pictures: Iterable[Any], info: MediaInfo) -> Iterator[Any]:
    """Frames in the format that vidup converts itself, all of the first one's size."""
    pix_fmt = planar(info.pix_fmt)
    for picture in pictures:
        is_sized = (picture.width, picture.height) == (info.width, info.height)
        if picture.format.name == pix_fmt and is_sized:
            yield picture
            continue
        times = picture.pts, picture.duration, picture.time_base
        scaler = "BILINEAR" if is_sized else "BICUBIC"
        picture = picture.reformat(info.width, info.height, pix_fmt, interpolation=scaler)
        picture.pts, picture.duration, picture.time_base = times
        yield picture


def _is_own(picture: Any, info: MediaInfo) -> bool:
    """Whether a picture is at the time of one of the source's: not the second that is made of a frame's fields."""
    time = picture.pts * picture.time_base / info.time_base
    return info.pts[bisect_left(info.pts, time) :][:1] == (time,)


def _frame(picture: Any, pix_fmt: str, color: Color) -> Frame:
    planes: Any = tuple(np.from_dlpack(plane) for plane in picture.planes)
    return Frame(planes, pix_fmt, color, picture.pts, picture.duration, picture.time_base)


def planar(pix_fmt: str) -> str:
    """The planar format, of those that vidup converts itself, that holds a pixel format's colours.

    Raises:
        MediaError: there is none.
    """
    if layout(pix_fmt) is not None:
        return pix_fmt
    try:
        kind = av.VideoFormat(pix_fmt)
    except ValueError:
        raise MediaError(f"pixel format {pix_fmt!r} is not known") from None
    bits = max(component.bits for component in kind.components)
    if len(kind.components) <= 2:
        family = "gray"
    elif kind.is_rgb or kind.has_palette:
        family = "gbrp"
    else:
        x, y = 64 // kind.chroma_width(64), 64 // kind.chroma_height(64)
        family = {(1, 1): "yuv444p", (2, 1): "yuv422p", (2, 2): "yuv420p", (4, 1): "yuv411p"}.get((x, y), "yuv444p")
    depth = next(depth for depth in (8, 10, 12, 16, 32) if bits <= depth)
    return family if depth == 8 else f"{family}{min(depth, 16)}le"
