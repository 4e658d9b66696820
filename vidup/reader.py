"""Read a video: what is in it (`probe`), and its frames as a stream (`decode`)."""

from __future__ import annotations

import logging
import struct
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np

from vidup.color import UNSPECIFIED, layout, resolve
from vidup.errors import MediaError
from vidup.frame import Color, Frame, MediaInfo, StreamInfo

log = logging.getLogger(__name__)

# Demuxers that open other files or devices than the one that was named.
_INDIRECT = {
    "concat",
    "dash",
    "ffmetadata",
    "hls",
    "imf",
    "lavfi",
    "rtp",
    "rtsp",
    "sap",
    "sdp",
    "tty",
    "webm_dash_manifest",
}

# Containers that state a duration in their header, so that a file cut short can be told.
_STATE_DURATION = {"matroska", "webm", "mov", "mp4", "avi", "flv", "asf"}

_SHORT_SECONDS = Fraction(1, 2)  # how far streams may end before the stated duration


@contextmanager
def open_input(path: str | Path) -> Iterator[Any]:
    """Open a media file as a PyAV container.

    Raises:
        MediaError: the file is missing, is a folder, is empty, or is no media file.
    """
    path = Path(path)
    if not path.exists():
        raise MediaError(f"{path}: there is no such file")
    if path.is_dir():
        raise MediaError(f"{path}: is a folder, expected a video file")
    if path.is_file() and path.stat().st_size == 0:
        raise MediaError(f"{path}: is empty")
    try:
        container = av.open(
            f"file:{path}",  # a colon in the name would be taken for a protocol otherwise
            metadata_errors="surrogateescape",
            # PyAV asks the demuxer to invent missing times, which ruins h264 in AVI.
            container_options={"fflags": "-genpts"},
            options={"format_whitelist": ",".join(sorted(av.formats_available - _INDIRECT))},
        )
    except av.error.InvalidDataError:
        raise MediaError(f"{path}: is no video, or is damaged at its head (no known format was found in it)") from None
    except OSError as error:
        raise MediaError(f"{path}: cannot be read: {error.strerror or error}") from None
    with container:
        yield container


def probe(path: str | Path) -> MediaInfo:
    """Read a file's headers, its first frame and the times of its packets.

    Raises:
        MediaError: no media file, no video stream, a codec that cannot be decoded, a file that is cut short.
    """
    with open_input(path) as container:
        stream = _video_stream(container, path)
        index, packets = stream.index, _read_packets(container, stream, path)
    with open_input(path) as container:
        stream = container.streams[index]
        first = _first_frame(container, stream, path)
        matrix = _side_data(first).get("DISPLAYMATRIX")
        color = _color(first)
        rate = packets.rate or stream.average_rate or stream.guessed_rate or Fraction(25)
        return MediaInfo(
            path=str(path),
            container=container.format.name,
            video_index=index,
            codec=stream.codec_context.name,
            width=first.width,
            height=first.height,
            pix_fmt=first.format.name,
            color=color,
            color_tagged=color.matrix != UNSPECIFIED,
            sample_aspect_ratio=Fraction(stream.sample_aspect_ratio or 1),
            rotation=first.rotation,
            display_matrix=struct.unpack("<9i", matrix) if matrix else None,
            interlaced=bool(first.interlaced_frame),
            time_base=stream.time_base,
            pts=tuple(packets.pts),
            begin=Fraction(container.start_time or 0, 1_000_000),
            end=packets.end,
            frames=packets.frames,
            rate=Fraction(rate).limit_denominator(100_000),  # encoders take 32 bits on either side
            variable_rate=packets.variable_rate,
            streams=tuple(_stream_info(s) for s in container.streams),
            chapters=len(container.chapters()),
        )


def decode(info: MediaInfo, begin: int | None = None, end: int | None = None) -> Generator[Frame, None, None]:
    """Decode the frames with ``begin <= pts < end``, in the order of their times.

    Frames are yielded with the times of the file in `info.time_base`; a frame lasts until the next one begins, the
    last one as long as the file says.

    Raises:
        MediaError: the stream is damaged, changes its frame size, or its times do not rise.
    """
    reader = _Decoder(info, begin)
    previous: Frame | None = None
    with closing(reader.frames()) as frames:
        for frame in frames:
            if previous is not None:
                yield _lasting(previous, frame.pts - previous.pts)
            previous = None
            if end is not None and frame.pts >= end:
                return
            if begin is None or frame.pts >= begin:
                previous = frame
    if previous is not None:
        known = info.end - previous.pts if info.pts and previous.pts == info.pts[-1] else 0
        yield _lasting(previous, known if known > 0 else previous.duration or reader.step)


@dataclass
class _Packets:
    """What the packets of a file tell without decoding."""

    frames: int = 0
    pts: list[int] = field(default_factory=list)
    end: int = 0
    rate: Fraction | None = None
    variable_rate: bool = False


def _video_stream(container: Any, path: str | Path) -> Any:
    attached = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & attached]
    if not streams:
        kinds = ", ".join(f"{s.type} {_codec_name(s)}" for s in container.streams) or "nothing"
        raise MediaError(f"{path}: has no video stream (it holds {kinds})")
    stream = streams[0]
    if stream.codec_context is None:
        raise MediaError(f"{path}: its video codec cannot be decoded")
    return stream


def _read_packets(container: Any, stream: Any, path: str | Path) -> _Packets:
    packets, times, total, last, timed = _Packets(), {}, 0, Fraction(0), True
    try:
        for packet in container.demux():
            if packet.size == 0 or packet.time_base is None:
                continue  # a flush packet
            begins = packet.pts if packet.pts is not None else packet.dts
            if begins is not None:
                last = max(last, (begins + (packet.duration or 0)) * packet.time_base)
            if packet.stream is not stream:
                continue
            total += 1
            if packet.is_corrupt:
                raise MediaError(f"{path}: is damaged or cut short at {_clock(begins, packet.time_base)}")
            if packet.is_discard:
                continue
            packets.frames += 1
            timed = timed and packet.pts is not None
            if packet.pts is not None:
                times[packet.pts] = packet.duration or 0
    except (av.error.FFmpegError, IndexError) as error:
        raise MediaError(f"{path}: is damaged at {float(last):.3f} s: {error}") from None
    if total == 0:
        raise MediaError(f"{path}: its video stream holds no frames")
    _check_whole(container, stream, total, last, path)
    if timed:
        packets.pts = sorted(times)
        steps = Counter(b - a for a, b in zip(packets.pts, packets.pts[1:], strict=False))
        usual = steps.most_common(1)[0][0] if steps else times[packets.pts[-1]]
        packets.end = packets.pts[-1] + (times[packets.pts[-1]] or usual)
        # Times that are rounded to the container's tick differ by one unit.
        packets.variable_rate = any(abs(step - usual) > 1 for step in steps)
        if len(packets.pts) > 1:
            packets.rate = (len(packets.pts) - 1) / ((packets.pts[-1] - packets.pts[0]) * stream.time_base)
    return packets


def _check_whole(container: Any, stream: Any, total: int, last: Fraction, path: str | Path) -> None:
    if stream.frames and total < stream.frames:
        raise MediaError(f"{path}: is cut short: it says {stream.frames} frames and holds {total}")
    formats = set(container.format.name.split(","))
    if container.duration and formats & _STATE_DURATION:
        stated = Fraction(container.duration, 1_000_000)  # with or without the time before the first frame
        if last < stated * Fraction(99, 100) - _SHORT_SECONDS:
            raise MediaError(f"{path}: is cut short: it says {float(stated):.3f} s and ends at {float(last):.3f} s")


def _first_frame(container: Any, stream: Any, path: str | Path) -> Any:
    try:
        for frame in container.decode(stream):
            return frame
    except av.error.FFmpegError as error:
        raise MediaError(f"{path}: its {_codec_name(stream)} video cannot be decoded: {error}") from None
    raise MediaError(f"{path}: its {_codec_name(stream)} video gives no frame")


class _Decoder:
    """Frames of one pass, with times that are checked and, for raw streams, made."""

    def __init__(self, info: MediaInfo, begin: int | None) -> None:
        self.info, self.begin = info, begin
        self.color = resolve(info.color, planar(info.pix_fmt), info.width, info.height)
        self.step = max(1, round(1 / info.rate / info.time_base))
        self.last: int | None = None

    def frames(self) -> Generator[Frame, None, None]:
        with open_input(self.info.path) as container:
            stream = container.streams[self.info.video_index]
            stream.thread_type = "AUTO"
            for frame in _from(container, stream, self.begin, self.info):
                yield self._frame(frame)

    def _frame(self, frame: Any) -> Frame:
        info = self.info
        pts = frame.pts if frame.pts is not None else frame.dts
        if pts is None:
            if self.last is None:
                log.warning("%s: the stream bears no times: taken as %.3f frames a second", info.path, float(info.rate))
            pts = 0 if self.last is None else self.last + (frame.duration or self.step)
        if self.last is not None and pts <= self.last:
            raise MediaError(
                f"{info.path}: the frame at {_clock(pts, info.time_base)} does not come after the one"
                f" at {_clock(self.last, info.time_base)}: its times are damaged"
            )
        self.last = pts
        if (frame.width, frame.height) != (info.width, info.height):
            raise MediaError(
                f"{info.path}: the frame size changes from {info.width}x{info.height} to "
                f"{frame.width}x{frame.height} at {_clock(pts, info.time_base)}: cut the file there first"
            )
        pix_fmt = planar(frame.format.name)
        if frame.format.name != pix_fmt:
            frame = frame.reformat(format=pix_fmt)
        planes: Any = tuple(np.from_dlpack(plane) for plane in frame.planes)
        return Frame(planes, pix_fmt, self.color, pts, frame.duration or 0, info.time_base)


def _from(container: Any, stream: Any, begin: int | None, info: MediaInfo) -> Iterator[Any]:
    """Decoded frames from `begin` on or a little before it.

    A container's index can be wrong or coarse: if the first frame after a seek is late, go further back.
    """
    if begin is None or not info.pts or begin <= info.pts[0]:
        yield from _decoded(container, stream, info)
        return
    second = int(1 / stream.time_base)
    back = 0
    while True:
        target = max(begin - back, info.pts[0])
        container.seek(target, stream=stream, backward=True)
        frames = _decoded(container, stream, info)
        first = next(frames, None)
        if first is not None and (first.pts if first.pts is not None else first.dts or 0) <= begin:
            break
        if target == info.pts[0]:  # nothing is further back: the whole file, from its head
            frames.close()
            with open_input(info.path) as fresh:
                yield from _decoded(fresh, fresh.streams[info.video_index], info)
            return
        back = max(second, 2 * back)
    yield first
    yield from frames


def _decoded(container: Any, stream: Any, info: MediaInfo) -> Generator[Any, None, None]:
    last: int | None = None
    try:
        for frame in container.decode(stream):
            last = frame.pts if frame.pts is not None else frame.dts
            yield frame
    except (av.error.FFmpegError, IndexError) as error:
        where = f"after {_clock(last, info.time_base)}" if last is not None else "at its first frame"
        raise MediaError(f"{info.path}: is damaged {where}: {error}") from None


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


def _color(frame: Any) -> Color:
    return Color(int(frame.colorspace), int(frame.color_primaries), int(frame.color_trc), int(frame.color_range) == 2)


def _side_data(frame: Any) -> dict[str, bytes]:
    try:
        return {item.type.name: bytes(item) for item in frame.side_data}
    except ValueError:  # a kind that PyAV has no name for
        return {}


def _stream_info(stream: Any) -> StreamInfo:
    context = stream.codec_context
    detail = ""
    if stream.type == "video" and context is not None:
        detail = f"{context.width}x{context.height} {context.pix_fmt or ''}".strip()
    elif stream.type == "audio" and context is not None:
        detail = f"{context.sample_rate} Hz {context.layout.name}"
    return StreamInfo(stream.index, stream.type, _codec_name(stream), detail, stream.metadata.get("language", ""))


def _codec_name(stream: Any) -> str:
    return cast(str, stream.codec_context.name) if stream.codec_context is not None else "of unknown codec"


def _clock(time: int | None, time_base: Fraction) -> str:
    return "an unknown time" if time is None else f"{float(time * time_base):.3f} s"


def _lasting(frame: Frame, duration: int) -> Frame:
    return Frame(frame.planes, frame.pix_fmt, frame.color, frame.pts, duration, frame.time_base)
