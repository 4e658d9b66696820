"""Interlaced video: detect it, and deinterlace it with FFmpeg's bwdif filter."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain, islice
from typing import Any, Literal

import av

from vidup.errors import MediaError
from vidup.media.frames import pulled
from vidup.media.quantiser import tell, told

# FFmpeg's AVFieldOrder, by the field that is shown first: 4 and 5 are those in which the other one is coded first.
_FIELD_ORDERS = {1: "progressive", 2: "tt", 3: "bb", 4: "bb", 5: "tt"}
_PARITIES = {"tt": "tff", "bb": "bff"}

# Codecs whose frames may be interlaced without a flag, and the least height of a picture for which that is checked.
_MAY_BE_INTERLACED = {
    *("ffv1", "ffvhuff", "huffyuv", "magicyuv", "utvideo", "lagarith", "rawvideo", "v210", "v410", "mjpeg", "jpeg2000"),
    *("cfhd", "dnxhd", "prores", "dvvideo", "qtrle", "mpeg1video", "mpeg2video", "mpeg4", "h264", "vc1", "wmv3"),
}
_LEAST_HEIGHT = 288

_TAGGED = 8  # frames whose flag is read
_COMPARED = 60  # frames that are compared with their neighbours, where flags do not decide
_CLEAR = 8  # frames that must show one order, and
_AGAINST = 10  # how many times as many as show another

_FINEST = 2**31 - 1  # units in a second that ffmpeg can count in

# The pixel formats that bwdif supports; frames of others would be converted, which is not exact.
_FILTERED = frozenset(
    [f"yuv{sampling}p" for sampling in (410, 411, 420, 422, 440, 444)]
    + [f"yuvj{sampling}p" for sampling in (411, 420, 422, 440, 444)]
    + [f"yuv{sampling}p{bits}le" for sampling in (420, 422, 444) for bits in (9, 10, 12, 14, 16)]
    + [f"yuva{sampling}p{bits}" for sampling in (420, 422, 444) for bits in ("", "9le", "10le", "16le")]
    + ["gray", "gray16le", "gbrap", "gbrap16le", "gbrp", *(f"gbrp{bits}le" for bits in (9, 10, 12, 14, 16))]
)


def detect(stream: Any, frames: Iterable[Any], elsewhere: Callable[[], Iterable[Iterable[Any]]] = lambda: []) -> str:
    """Detect how the frames of a video stream are interlaced.

    A stream that is tagged as progressive is progressive. The tag interlaced is often wrong, and may be missing: there
    the pictures decide (FFmpeg's idet), and where those at the head are progressive, some from other places. Where the
    pictures are not clear, the tag counts.

    Args:
        stream: the PyAV stream.
        frames: its decoded frames from the first on; at most 60 are read.
        elsewhere: returns its frames from other places on.

    Returns:
        ``progressive``, or, as in FFmpeg, ``tt`` or ``bb``: the top or the bottom field is shown first.
    """
    context = stream.codec_context
    tagged, codec = _FIELD_ORDERS.get(int(context.field_order), ""), context.name
    pictures = _readable(frames)
    seen = list(islice(pictures, 1 if tagged == "progressive" else _TAGGED))
    flagged = any(frame.interlaced_frame for frame in seen)
    if not seen or (not flagged and tagged == "progressive"):
        return "progressive"
    if not flagged and not tagged and (codec not in _MAY_BE_INTERLACED or seen[0].height < _LEAST_HEIGHT):
        return "progressive"
    found = _compare(chain(seen, pictures))
    if found == "progressive" and (flagged or tagged):  # perhaps only its head is: a title, another kind of film
        others = (_compare(_readable(others)) for others in elsewhere())
        found = next((other for other in others if other not in (None, "progressive")), found)
    if found is not None:
        return found
    if not flagged and not tagged:
        return "progressive"
    if codec == "dvvideo" and seen[0].height <= 576:
        return "bb"  # all DV of standard definition, whatever the container says
    return "bb" if tagged == "bb" else "tt"


def deinterlaced(
    frames: Iterable[Any], mode: Literal["frame", "field"], field_order: str, end: int | None = None
) -> Generator[Any, None, None]:
    """Deinterlace frames.

    Two frames are read ahead. The first and the last frame are made from fewer neighbours.

    Args:
        frames: PyAV frames of one size and planar format in rising order, each with its `pts` and `time_base`.
        mode: ``frame`` yields one picture a frame, at the same times; ``field`` two: at the frame's time, and halfway
            to the next frame's.
        field_order: as `detect` returns it.
        end: when the last frame ends, in units of its time base; None: it lasts as long as the one before.

    Yields:
        New PyAV frames with the format and the colours of the source's. In ``field`` mode their unit is half of the
        source's `time_base`, so that all times are whole numbers; in ``frame`` mode it is the source's.

    Raises:
        MediaError: bwdif does not support the pixel format or the size, or half a unit of time is too short for ffmpeg.
    """
    graph = None
    waiting: deque[Any] = deque()  # source frames whose pictures have not been yielded yet
    apart = 0
    fields = 2 if mode == "field" else 1
    for frame in chain(frames, [None]):
        if frame is not None:
            if waiting:
                apart = frame.pts - waiting[-1].pts
            if Fraction(frame.time_base).denominator * fields > _FINEST:
                raise MediaError("its times are too fine to be halved: choose --deinterlace frame")
            graph = graph or _bwdif(frame, mode, field_order)
            waiting.append(frame)
        if graph is None:
            return
        graph.push(frame)
        pictures = pulled(graph)
        for first in pictures:
            source = waiting.popleft()
            later = waiting[0].pts if waiting else end if end is not None else source.pts + (apart or source.duration)
            times = [source.pts] if mode == "frame" else [2 * source.pts, source.pts + later]
            for picture, pts, until in zip(
                (first, *islice(pictures, fields - 1)), times, [*times[1:], fields * later], strict=True
            ):
                picture.pts, picture.duration = pts, until - pts
                picture.time_base = Fraction(source.time_base) / fields
                tell(picture, told(source))
                yield picture
    if waiting:
        raise MediaError(f"bwdif gave no picture for {len(waiting)} frames: choose --deinterlace off")


def _bwdif(frame: Any, mode: str, field_order: str) -> Any:
    name, parity = frame.format.name, _PARITIES[field_order]
    if name not in _FILTERED:
        raise MediaError(f"interlaced {name} cannot be deinterlaced: choose --deinterlace off")
    try:
        return _graph(frame, "bwdif", f"mode=send_{mode}:parity={parity}:deint=all")
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(
            f"{frame.width}x{frame.height} {name} cannot be deinterlaced ({error}): choose --deinterlace off"
        ) from None


def _graph(frame: Any, *filter_and_options: str) -> Any:
    """A filter graph with one filter, for frames like this one; its time base does not matter."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25))
    graph.link_nodes(source, graph.add(*filter_and_options), graph.add("buffersink")).configure()
    return graph


def _compare(frames: Iterable[Any]) -> str | None:
    """What idet finds in up to 60 frames: ``progressive``, ``tt``, ``bb``, or None where it is not clear."""
    graph, facts = None, {}
    for frame in islice(frames, _COMPARED):
        graph = graph or _graph(frame, "idet")
        graph.push(frame)
        for picture in pulled(graph):
            facts = picture.metadata
    counts = {
        kind: min(float(facts.get(f"lavfi.idet.{window}.{kind}", 0)) for window in ("single", "multiple"))
        for kind in ("tff", "bff", "progressive")
    }
    for kind, found in (("tff", "tt"), ("bff", "bb"), ("progressive", "progressive")):
        others = max(float(facts.get(f"lavfi.idet.multiple.{other}", 0)) for other in counts if other != kind)
        if counts[kind] >= _CLEAR and counts[kind] > _AGAINST * others:
            return found
    return None


def _readable(frames: Iterable[Any]) -> Iterator[Any]:
    """Frames up to the first that cannot be decoded; damage is reported when the frames are decoded for upscaling."""
    with suppress(av.error.FFmpegError, IndexError):
        yield from frames
