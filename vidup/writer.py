"""Write a video in two steps: encode frames into a segment, then join segments and copied streams into a container.

A segment is a file of packets, not a container: it is either whole (its checksum says so) or it is made again.
"""

from __future__ import annotations

import heapq
import io
import json
import logging
import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import av

from vidup.encoder import DEFAULTS, Encoding, open_context, to_av
from vidup.errors import ConfigError, MediaError
from vidup.frame import Frame, MediaInfo
from vidup.reader import open_input

log = logging.getLogger(__name__)

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""The formats that are written, by the ending of the output's name."""

_MAGIC = b"vidup segment 1\n"
_PACKET = struct.Struct("<qqIB")  # pts, duration, size, key frame
_CHECKSUM = struct.Struct("<QI")  # packets, CRC-32 of all that stands before
_TIME_SCALE_LIMIT = 2**31 - 1


class Packet(NamedTuple):
    """An encoded picture, times in the encoding's time base."""

    pts: int
    duration: int
    key: bool
    data: bytes


@dataclass(frozen=True)
class StreamPlan:
    """What happens to a stream of the input."""

    index: int
    name: str
    """What it is, in words: ``audio aac``."""
    action: Literal["upscale", "copy", "attach", "drop"]
    reason: str = ""


@dataclass(frozen=True)
class Trim:
    """The part of the input that is kept, in seconds of its own time; the output begins at 0."""

    begin: Fraction
    end: Fraction


def encode_segment(frames: Iterable[Frame], encoding: Encoding, path: Path) -> Iterator[Frame]:
    """Encode frames into a segment file, written beside its place and moved there when it is whole.

    Yields:
        Each frame once the encoder has it; the file stands when the iterator is exhausted.

    Raises:
        ConfigError: the encoder cannot be opened.
        MediaError: the file cannot be written, or the encoder lost a frame.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield from _encode(frames, encoding, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise MediaError(f"{path}: cannot be written: {error.strerror or error}") from error


def _encode(frames: Iterable[Frame], encoding: Encoding, file: BinaryIO) -> Iterator[Frame]:
    context = open_context(av.CodecContext.create(encoding.codec, "w"), encoding)
    checksum = 0

    def write(data: bytes) -> None:
        nonlocal checksum
        checksum = zlib.crc32(data, checksum)
        file.write(data)

    # Encoders change or forget durations; by the time of its frame each packet gets its own back.
    durations: dict[int, int] = {}
    encoded = 0

    def write_packets(packets: list[Any]) -> None:
        nonlocal encoded
        for packet in packets:
            if packet.pts not in durations:
                raise MediaError(f"{encoding.codec} gave a picture for a time that no frame has ({packet.pts})")
            data = bytes(packet)
            write(_PACKET.pack(packet.pts, durations.pop(packet.pts), len(data), packet.is_keyframe) + data)
            encoded += 1

    extradata = context.extradata or b""
    head = json.dumps({"extradata": extradata.hex()}).encode()
    write(_MAGIC + len(head).to_bytes(4, "little") + head)
    count = 0
    for frame in frames:
        picture = to_av(frame, encoding)
        durations[picture.pts] = picture.duration
        write_packets(context.encode(picture))
        count += 1
        yield frame
    write_packets(context.encode(None))
    if durations or encoded != count:
        raise MediaError(f"{encoding.codec} took {count} frames and gave {encoded} pictures")
    file.write(_CHECKSUM.pack(count, checksum))


def read_segment(path: Path) -> Iterator[Packet]:
    """The packets of a segment, in the order of decoding.

    Raises:
        MediaError: the file is damaged (told at its end).
    """
    with path.open("rb") as file:
        checksum, left, count = 0, path.stat().st_size - _CHECKSUM.size, 0

        def read(size: int) -> bytes:
            nonlocal checksum, left
            data = file.read(size) if size <= left else b""
            if len(data) != size:
                raise MediaError(f"{path}: the segment is damaged")
            checksum, left = zlib.crc32(data, checksum), left - size
            return data

        if read(len(_MAGIC)) != _MAGIC:
            raise MediaError(f"{path}: is no segment")
        read(int.from_bytes(read(4), "little"))
        while left > 0:
            pts, duration, size, key = _PACKET.unpack(read(_PACKET.size))
            yield Packet(pts, duration, bool(key), read(size))
            count += 1
        if file.read() != _CHECKSUM.pack(count, checksum):
            raise MediaError(f"{path}: the segment is damaged")


def plan_streams(info: MediaInfo, container: str, trimmed: bool) -> list[StreamPlan]:
    """What the output container takes of the input, found by a dry run for each stream.

    Args:
        container: ``mp4``, ``mov``, ``matroska`` or ``webm``.
        trimmed: only a part of the input is kept, so that other video cannot be copied.

    Raises:
        ConfigError: an audio stream does not fit.
    """
    plans = []
    with open_input(info.path) as source:
        for stream in source.streams:
            known = info.streams[stream.index]
            name = f"{known.kind} {known.codec}" + (f" ({known.language})" if known.language else "")
            if stream.index == info.video_index:
                plans.append(StreamPlan(stream.index, name, "upscale"))
                continue
            refusal = _refusal(stream, container)
            if trimmed and stream.type == "video" and not _is_cover(stream):
                refusal = "copied video cannot begin in its middle"
            if refusal is None:
                plans.append(StreamPlan(stream.index, name, "copy"))
            elif container == "matroska" and _is_cover(stream):
                plans.append(StreamPlan(stream.index, name, "attach"))
            elif stream.type == "audio":
                raise ConfigError(
                    f"{info.path}: stream {stream.index} ({name}) does not fit into {container}: {refusal};"
                    " choose an output that ends in .mkv"
                )
            else:
                plans.append(StreamPlan(stream.index, name, "drop", refusal))
    return plans


def _refusal(stream: Any, container: str) -> str | None:
    """Why a container does not take a stream as it is; None where it does."""
    if _is_cover(stream) and container != "mp4":
        return "a cover is no video track"
    if container in ("mp4", "mov") and stream.type in ("data", "attachment"):
        return f"{container} has no place for it"
    codec = stream.codec_context.name if stream.codec_context is not None else None
    if codec is None and stream.type != "attachment":
        return "its codec is not known"
    if container == "mp4" and codec is not None and codec.startswith("pcm_"):
        return "few players read PCM in mp4"
    with suppress(OSError), io.BytesIO() as nowhere:  # closing a container without packets may fail: it is thrown away
        target = av.open(nowhere, "w", format=container)
        try:
            target.add_stream_from_template(stream, opaque=True)
            target.start_encoding()
        except (av.error.FFmpegError, ValueError) as error:
            return getattr(error, "strerror", None) or str(error)
        target.close()
    return None


def _is_cover(stream: Any) -> bool:
    return bool(stream.type == "video" and stream.disposition & av.stream.Disposition.attached_pic)


def join(
    output: Path,
    container: str,
    encoding: Encoding,
    segments: Sequence[Path],
    info: MediaInfo,
    plans: Sequence[StreamPlan],
    trim: Trim | None = None,
) -> None:
    """Join segments with the streams that are copied from the input.

    Raises:
        ConfigError: the container does not take the encoded video.
        MediaError: a segment is damaged, the input cannot be read or the output cannot be written.
    """
    order = sorted(packet.pts for segment in segments for packet in read_segment(segment))
    if len(order) != len(set(order)):
        raise MediaError(f"{output}: two pictures have the same time")
    with open_input(info.path) as source:
        target = None
        try:
            options = _muxer_options(source, encoding, container)
            target = av.open(
                f"file:{output}", "w", format=container, container_options=options, metadata_errors="surrogateescape"
            )
            video = _add_video(target, source.streams[info.video_index], encoding, info.variable_rate)
            copies = _add_copies(target, source, plans)
            _add_facts(target, source, trim)
            if info.display_matrix is not None:
                video.set_display_matrix(info.display_matrix)
            target.start_encoding()
            own = _video_packets(segments, encoding, video, order)
            for packet in heapq.merge(own, _copied_packets(source, copies, trim), key=_decode_time):
                target.mux(packet)
            target.close()
        except av.error.FFmpegError as error:
            raise MediaError(f"{output}: cannot be written: {error}") from error
        finally:
            if target is not None:
                with suppress(av.error.FFmpegError):
                    target.close()


def check_container(container: str, encoding: Encoding) -> None:
    """See by a dry run that the container takes the encoded video.

    Raises:
        ConfigError: it does not.
    """
    if not _holds(container, encoding.codec):
        held = ", ".join(name for name in DEFAULTS if _holds(container, name))
        raise ConfigError(
            f"codec = {encoding.codec!r}: {container} does not hold it; take one of {held},"
            " or an output that ends in .mkv"
        )


def _holds(container: str, codec: str) -> bool:
    with io.BytesIO() as nowhere:
        try:
            av.open(nowhere, "w", format=container).add_stream(codec)
        except ValueError:
            return False
        return True


def _muxer_options(source: Any, encoding: Encoding, container: str) -> dict[str, str]:
    options = {"fflags": "+bitexact"}  # no version or random ids: the same job writes the same bytes
    if container in ("mp4", "mov"):
        # Start times are kept in movie ticks, 1000 a second by default, which loses what is finer.
        scale = encoding.time_base.denominator
        for stream in source.streams:
            if stream.type in ("video", "audio") and stream.time_base:
                both = math.lcm(scale, stream.time_base.denominator)
                scale = both if both <= _TIME_SCALE_LIMIT else scale
        options["movie_timescale"] = str(scale)
    return options


def _add_video(target: Any, source: Any, encoding: Encoding, variable_rate: bool) -> Any:
    stream = target.add_stream(encoding.codec, rate=encoding.rate)
    context = stream.codec_context  # never fed: it tells the muxer size, colour and extradata
    if variable_rate and target.format.name in ("matroska", "webm"):
        # Without a rate, else mkv states a constant frame duration; the extradata are those of the true rate.
        open_context(context, replace(encoding, rate=Fraction(0), time_base=Fraction(1, 25)))
        context.extradata = open_context(av.CodecContext.create(encoding.codec, "w"), encoding).extradata
    else:
        open_context(context, encoding)
    stream.time_base = encoding.time_base
    if encoding.codec in ("libx265", "hevc_nvenc") and target.format.name in ("mp4", "mov"):
        context.codec_tag = "hvc1"  # what Apple's players want
    stream.metadata.update(source.metadata)
    stream.disposition = source.disposition
    return stream


def _add_copies(target: Any, source: Any, plans: Sequence[StreamPlan]) -> dict[int, Any]:
    copies = {}
    for plan in plans:
        stream = source.streams[plan.index]
        if plan.action == "copy":
            copy = target.add_stream_from_template(stream, opaque=True)
            copy.metadata.update(stream.metadata)
            if stream.type != "attachment":
                copy.disposition = stream.disposition
                copies[plan.index] = copy
        elif plan.action == "attach":
            packet = next(packet for packet in source.demux(stream) if packet.size)
            kind = {"mjpeg": ("cover.jpg", "image/jpeg")}.get(stream.codec_context.name, ("cover.png", "image/png"))
            target.add_attachment(*kind, bytes(packet))
            source.seek(0)
    return copies


def _add_facts(target: Any, source: Any, trim: Trim | None) -> None:
    written_by_muxer = {"major_brand", "minor_version", "compatible_brands", "encoder"}
    target.metadata.update(
        {key: value for key, value in source.metadata.items() if key.lower() not in written_by_muxer}
    )
    chapters = []
    for chapter in source.chapters():
        unit = chapter["time_base"]
        if trim is not None:
            begin, end = max(chapter["start"] * unit, trim.begin), min(chapter["end"] * unit, trim.end)
            if begin >= end:
                continue
            chapter |= {"start": round((begin - trim.begin) / unit), "end": round((end - trim.begin) / unit)}
        chapters.append(chapter)
    target.set_chapters(chapters)


def _video_packets(segments: Sequence[Path], encoding: Encoding, stream: Any, order: list[int]) -> Iterator[Any]:
    decode_times = iter(_decode_times(segments, order))
    for segment in segments:
        for packet in read_segment(segment):
            result = av.Packet(packet.data)
            result.stream, result.time_base = stream, encoding.time_base
            result.pts, result.dts, result.duration = packet.pts, next(decode_times), packet.duration
            result.is_keyframe = packet.key
            yield result


def _decode_times(segments: Sequence[Path], order: list[int]) -> list[int]:
    """Times at which packets are decoded: the presentation times in rising order, late enough for all of them.

    An encoder's own decode times belong to one segment; across segments they would overlap.
    """
    rank = {pts: index for index, pts in enumerate(order)}
    position = (index - rank[p.pts] for index, p in enumerate(p for s in segments for p in read_segment(s)))
    delay = max(0, max(position, default=0))
    step = order[1] - order[0] if len(order) > 1 else 1
    ahead = [order[0] - (delay - index) * step for index in range(min(delay, len(order)))]
    return ahead + order[: len(order) - len(ahead)]


def _copied_packets(source: Any, copies: dict[int, Any], trim: Trim | None) -> Iterator[Any]:
    for packet in kept_packets(source, list(copies), trim):
        packet.stream = copies[packet.stream.index]
        yield packet


def kept_packets(source: Any, indices: Sequence[int], trim: Trim | None) -> Iterator[Any]:
    """The packets of some streams of an open input, those that overlap `trim`, moved to begin with it at 0."""
    if not indices:
        return
    for packet in source.demux([source.streams[index] for index in indices]):
        if packet.size and (trim is None or _shift(packet, trim)):
            yield packet


def _shift(packet: Any, trim: Trim) -> bool:
    """Move a packet so that the kept part begins at 0; False where it lies outside."""
    time = packet.pts if packet.pts is not None else packet.dts
    if time is None:
        return False
    begin = time * packet.time_base
    end = begin + (packet.duration or 0) * packet.time_base
    if end <= trim.begin or begin >= trim.end:
        return False
    offset = round(trim.begin / packet.time_base)
    if packet.pts is not None:
        packet.pts -= offset
    if packet.dts is not None:
        packet.dts -= offset
    return True


def _decode_time(packet: Any) -> Fraction:
    time = packet.dts if packet.dts is not None else packet.pts
    return time * packet.time_base if time is not None else Fraction(0)
