"""A segment: frames that are encoded on their own, in a file of packets that is complete or written again."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain, tee
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from uuid import uuid4

import av

from vidup.errors import MediaError
from vidup.frame import Frame
from vidup.media import vp9_alpha
from vidup.media.captions import carries, with_captions
from vidup.media.encoder import Encoding, open_context, to_av
from vidup.media.frames import EXR_OPTIONS
from vidup.media.opening import reason, set_threads

_MAGIC = b"vidup segment 2\n"  # those of version 1 had not been proved
_PACKET = struct.Struct("<qqIB")  # pts, duration, size, flags
_SECOND = 2  # a flag, as 1 is that of a key frame: the data begin with the length and the picture of transparency
_CHECKSUM = struct.Struct("<QI")  # number of packets, CRC-32 of all before
_DECODERS = {"av1": "libdav1d"}
"""Format -> decoder, where it does not have the format's name: FFmpeg's own decoder of AV1 needs a GPU."""


class Packet(NamedTuple):
    """An encoded picture; its times are in the encoding's time base."""

    pts: int
    duration: int
    key: bool
    data: bytes
    second: bytes = b""
    """The encoded transparency, see `vp9_alpha`."""


def encode_segment(
    frames: Iterable[Frame], encoding: Encoding, path: Path, prove: Callable[[Path], Any] = lambda part: None
) -> Any:
    """Encode frames into a segment file, under a temporary name until it is complete and proved.

    Args:
        prove: reads the written file, and raises if it is wrong.

    Returns:
        What `prove` returns.

    Raises:
        ConfigError: the encoder cannot be opened.
        MediaError: the file cannot be written, or the encoder lost a frame.
    """
    part = path.with_name(f"{path.name}.{uuid4().hex[:8]}.part")  # unique: a lost worker may still be writing
    try:
        with part.open("wb") as file:
            _encode(frames, encoding, file)
            file.flush()
            os.fsync(file.fileno())
        proof = prove(part)
        part.replace(path)
        return proof
    except OSError as error:
        raise MediaError(f"{path}: cannot be written: {reason(error)}") from error
    finally:
        part.unlink(missing_ok=True)


def _encode(frames: Iterable[Frame], encoding: Encoding, file: BinaryIO) -> None:
    context = open_context(av.CodecContext.create(encoding.codec, "w"), encoding)
    checksum = 0

    def write(data: bytes) -> None:
        nonlocal checksum
        checksum = zlib.crc32(data, checksum)
        file.write(data)

    # Encoders change or lose durations, and round times that are too fine for them: by the time that the encoder got
    # for a frame, its packet gets the frame's own time and duration back.
    waiting: dict[int, tuple[int, int, bytes]] = {}

    def write_packets(packets: list[Any]) -> None:
        for packet in packets:
            if packet.pts not in waiting:
                raise MediaError(f"{encoding.codec} gave a picture for a time that no frame has ({packet.pts})")
            pts, duration, captions = waiting.pop(packet.pts)
            data = with_captions(bytes(packet), encoding.codec, captions)
            second = vp9_alpha.of(packet) if encoding.alpha_apart else b""
            if second:
                data = len(second).to_bytes(4, "little") + second + data
            write(_PACKET.pack(pts, duration, len(data), packet.is_keyframe | (_SECOND if second else 0)) + data)

    extradata = context.extradata or b""
    head = json.dumps({"extradata": extradata.hex(), "tag": context.codec_tag}).encode()
    write(_MAGIC + len(head).to_bytes(4, "little") + head)
    unit, count, given = encoding.encoder_time_base, 0, -(2**62)
    scale = encoding.time_base / unit
    for frame in frames:
        picture = to_av(frame, encoding)
        own = picture.pts, picture.duration
        given = max(round(own[0] * scale), given + 1)
        picture.pts, picture.duration, picture.time_base = given, round(own[1] * scale), unit
        waiting[given] = (*own, frame.captions if carries(encoding.codec) else b"")
        write_packets(context.encode(picture))
        count += 1
    write_packets(context.encode(None))
    if waiting:
        raise MediaError(f"{encoding.codec} took {count} frames and gave {count - len(waiting)} pictures")
    file.write(_CHECKSUM.pack(count, checksum))


def read_segment(path: Path) -> Iterator[Packet]:
    """The packets of a segment, in the order of decoding; a MediaError, perhaps only at the end, if it is damaged."""
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
            data, second = read(size), b""
            if key & _SECOND:
                begin = 4 + int.from_bytes(data[:4], "little")
                data, second = data[begin:], data[4:begin]
            yield Packet(pts, duration, bool(key & 1), data, second)
            count += 1
        if file.read() != _CHECKSUM.pack(count, checksum):
            raise MediaError(f"{path}: the segment is damaged")


def av_packets(path: Path, encoding: Encoding) -> Iterator[Any]:
    """As `read_segment`, PyAV packets, each with its time and duration."""
    stored, again = tee(read_segment(path))
    results: Iterator[Any] = (_in_memory_of_ffmpeg(packet.data) for packet in again)
    if encoding.alpha_apart:
        results = vp9_alpha.packets((packet.data, packet.second) for packet in again)
    for packet, result in zip(stored, results, strict=True):
        result.pts, result.duration, result.time_base = packet.pts, packet.duration, encoding.time_base
        result.is_keyframe = packet.key  # without it FFmpeg adds a PNG to the picture before
        yield result


def _in_memory_of_ffmpeg(data: bytes) -> Any:
    """A PyAV packet. Memory of Python's is freed under the interpreter's lock, for which the decoder's threads would
    wait while the thread that closes the decoder holds the lock and waits for them.
    """
    result = av.Packet(len(data))
    result.update(data)
    return result


def decode_segment(path: Path, encoding: Encoding) -> Generator[Any, None, None]:
    """The pictures of a segment as PyAV frames, rising, in the encoding's time base; a MediaError if one is damaged."""
    with path.open("rb") as file:
        file.seek(len(_MAGIC))
        head = json.loads(file.read(int.from_bytes(file.read(4), "little")))
    name = av.Codec(encoding.codec, "w").canonical_name
    decoder = vp9_alpha.DECODERS[name] if encoding.alpha_apart else _DECODERS.get(name, name)
    context: Any = av.CodecContext.create(decoder, "r")
    context.width, context.height, context.pix_fmt = encoding.width, encoding.height, encoding.pix_fmt
    context.options = dict(EXR_OPTIONS) if name == "exr" else {}
    context.extradata, context.codec_tag = bytes.fromhex(head["extradata"]) or None, head["tag"]
    set_threads(context)
    shown = 0
    for packet in chain(av_packets(path, encoding), [None]):
        try:
            pictures = context.decode(packet)
        except av.error.FFmpegError as error:
            raise MediaError(f"its picture {shown} cannot be decoded: {reason(error)}") from error
        for picture in pictures:
            if picture.is_corrupt:
                raise MediaError(f"its picture {shown} is damaged")
            shown += 1
            yield picture
