"""Interlaced video: detect it, and turn its fields into pictures with FFmpeg's bwdif filter."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain, islice
from typing import Any, Literal

import av

from vidup.errors import MediaError

# FFmpeg's AVFieldOrder: the first letter is the field that is coded first, the second the one that is shown first.
_FIELD_ORDERS = {1: "progressive", 2: "tt", 3: "bb", 4: "tb", 5: "bt"}
_SHOWN_FIRST = {"tt": "tff", "bt": "tff", "bb": "bff", "tb": "bff"}

# Codecs that can hold woven fields without saying so, and the heights from which that is worth a look.
_MAY_BE_WOVEN = {
    *("ffv1", "ffvhuff", "huffyuv", "magicyuv", "utvideo", "lagarith", "rawvideo", "v210", "v410", "mjpeg", "jpeg2000"),
    *("cfhd", "dnxhd", "prores", "dvvideo", "qtrle", "mpeg1video", "mpeg2video", "mpeg4", "h264", "vc1", "wmv3"),
}
_LEAST_HEIGHT = 288

_TAGGED = 8  # frames whose flag is read
_LOOKED_AT = 60  # frames that are compared with their neighbours, where flags do not say enough
_CLEAR = 8  # frames that must speak for one order, and
_AGAINST = 10  # how many times as many as speak for another, or for none

_FINEST = 2**31 - 1  # units in a second that ffmpeg counts in

# What bwdif filters itself; others would be converted on their way, which is not exact.
_FILTERED = frozenset(
    [f"yuv{sampling}p" for sampling in (410, 411, 420, 422, 440, 444)]
    + [f"yuvj{sampling}p" for sampling in (411, 420, 422, 440, 444)]
    + [f"yuv{sampling}p{bits}le" for sampling in (420, 422, 444) for bits in (9, 10, 12, 14, 16)]
    + [f"yuva{sampling}p{bits}" for sampling in (420, 422, 444) for bits in ("", "9le", "10le", "16le")]
    + ["gray", "gray16le", "gbrap", "gbrap16le", "gbrp", *(f"gbrp{bits}le" for bits in (9, 10, 12, 14, 16))]
)


def detect(stream: Any, frames: Iterable[Any], elsewhere: Callable[[], Iterable[Iterable[Any]]] = lambda: []) -> str:
    """How the frames of a video stream are interlaced.

    Where the stream says that it is progressive, that counts. Where it says nothing, or that it is interlaced, the
    pictures are compared (FFmpeg's idet), because that tag is often wrong; progressive pictures are looked for in some
    more places then. What is not clear in the pictures is as the stream says.

    Args:
        stream: the PyAV stream.
        frames: its decoded frames from the first on; 60 are taken at most, and one where that is enough.
        elsewhere: gives its frames from other places on.

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
    if not flagged and not tagged and (codec not in _MAY_BE_WOVEN or seen[0].height < _LEAST_HEIGHT):
        return "progressive"
    found = _compare(chain(seen, pictures))
    if found == "progressive" and (flagged or tagged):  # its head may be: a title, a film of another kind
        others = (_compare(_readable(others)) for others in elsewhere())
        found = next((other for other in others if other not in (None, "progressive")), found)
    if found is not None:
        return found
    if not flagged and not tagged:
        return "progressive"
    if codec == "dvvideo" and seen[0].height <= 576:
        return "bb"  # all DV of standard definition, whatever the container says
    return {"tff": "tt", "bff": "bb"}[_SHOWN_FIRST.get(tagged, "tff")]


def deinterlaced(
    frames: Iterable[Any],
    mode: Literal["frame", "field"],
    field_order: str,
    end: int | None = None,
    only_flagged: bool = False,
) -> Generator[Any, None, None]:
    """Turn woven fields into whole pictures.

    Two frames are read ahead. The first and the last frame are there too, made from fewer neighbours.

    Args:
        frames: PyAV frames of one size and planar format in rising order, each with its `pts` and `time_base`.
        mode: ``frame`` gives a picture a frame, at the same times; ``field`` gives two: at the frame's time, and
            halfway to the next one's.
        field_order: as `detect` gives it.
        end: where the last frame ends, in units of its time base; where not given it lasts as long as the one before.
        only_flagged: in ``frame`` mode, frames that are not flagged as interlaced pass unchanged. For streams that
            flag their frames, and mix both kinds.

    Yields:
        New PyAV frames with the format and the colours of the source's. In ``field`` mode their unit is half of the
        source's `time_base`, so that all times are whole numbers; in ``frame`` mode it is the source's.

    Raises:
        MediaError: bwdif does not take the pixel format or the size, or half a unit of time is too little for ffmpeg.
    """
    graph = None
    waiting: deque[Any] = deque()  # source frames whose pictures have not come out yet
    step = 0
    fields = 2 if mode == "field" else 1
    for frame in chain(frames, [None]):
        if frame is not None:
            if waiting:
                step = frame.pts - waiting[-1].pts
            if Fraction(frame.time_base).denominator * fields > _FINEST:
                raise MediaError("its times are too fine to be halved: choose --deinterlace frame")
            graph = graph or _Bwdif(frame, mode, field_order, only_flagged and mode == "frame")
            waiting.append(frame)
        if graph is None:
            return
        pictures = graph.filter(frame)
        for first in pictures:
            source = waiting.popleft()
            later = waiting[0].pts if waiting else end if end is not None else source.pts + (step or source.duration)
            times = [source.pts] if mode == "frame" else [2 * source.pts, source.pts + later]
            for picture, pts, until in zip(
                (first, *islice(pictures, fields - 1)), times, [*times[1:], fields * later], strict=True
            ):
                picture.pts, picture.duration = pts, until - pts
                picture.time_base = Fraction(source.time_base) / fields
                yield picture
    if waiting:
        raise MediaError(f"bwdif gave no picture for {len(waiting)} frames: choose --deinterlace off")


class _Bwdif:
    """A filter graph with bwdif in it."""

    def __init__(self, frame: Any, mode: str, field_order: str, only_flagged: bool) -> None:
        name = frame.format.name
        if name not in _FILTERED:
            raise MediaError(f"interlaced {name} cannot be deinterlaced: choose --deinterlace off")
        parity, which = _SHOWN_FIRST.get(field_order, "auto"), "interlaced" if only_flagged else "all"
        graph = av.filter.Graph()
        # The graph's time base does not matter: times are set from the source's frames afterwards.
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        bwdif = graph.add("bwdif", f"mode=send_{mode}:parity={parity}:deint={which}")
        sink = graph.add("buffersink")
        source.link_to(bwdif)
        bwdif.link_to(sink)
        try:
            graph.configure()
        except (av.error.FFmpegError, ValueError) as error:
            raise MediaError(
                f"{frame.width}x{frame.height} {name} cannot be deinterlaced ({error}): choose --deinterlace off"
            ) from None
        self.graph = graph

    def filter(self, frame: Any) -> Iterator[Any]:
        """The pictures that are ready once this frame is in; all that are left after None."""
        self.graph.push(frame)
        with suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                yield self.graph.pull()


def _compare(frames: Iterable[Any]) -> str | None:
    """What idet sees in up to 60 frames: ``progressive``, ``tt``, ``bb``, or None where it is not clear."""
    graph, facts = None, {}
    for frame in islice(frames, _LOOKED_AT):
        if graph is None:
            graph = av.filter.Graph()
            nodes = [
                graph.add_buffer(
                    width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25)
                ),
                graph.add("idet"),
                graph.add("buffersink"),
            ]
            for node, following in zip(nodes, nodes[1:], strict=False):
                node.link_to(following)
            graph.configure()
        graph.push(frame)
        with suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                facts = graph.pull().metadata
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
    """Frames up to the first that cannot be decoded: damage is reported where the file is read for good."""
    with suppress(av.error.FFmpegError, IndexError):
        yield from frames
