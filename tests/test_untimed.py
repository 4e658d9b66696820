"""Containers whose packets do not say when a frame is shown: Matroska with a codec of Video for Windows, and OGM."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest

import vidup
from vidup import Settings
from vidup.media.decoding import decode
from vidup.media.probing import probe

FRAMES, WIDTH, HEIGHT = 14, 64, 48
CODECS = {"libx264": b"H264", "mpeg4": b"XVID"}


class Stream(NamedTuple):
    """A video of two B-frames between two others, in the order of decoding."""

    fourcc: bytes
    extradata: bytes
    packets: list[tuple[bool, bytes]]


def light(number: int) -> int:
    return 40 + 12 * number


def encoded(codec: str) -> Stream:
    """Gray frames that become lighter, so that each can be told."""
    context: Any = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    context.time_base, context.framerate, context.thread_count = Fraction(1, 25), Fraction(25), 1
    context.options = {"bf": "2", "g": "8", "b_strategy": "0", "sc_threshold": "0", "qscale": "2"}
    if codec == "libx264":
        context.options = {"preset": "veryfast", "x264-params": "bframes=2:b-adapt=0:keyint=8:scenecut=0", "crf": "4"}
    packets = []
    for number in range(FRAMES):
        frame = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH), light(number), np.uint8), "gray8")
        frame = frame.reformat(format="yuv420p", src_color_range=1, dst_color_range=1)
        frame.pts = number
        packets += context.encode(frame)
    packets += context.encode(None)
    assert [packet.pts for packet in packets] != sorted(packet.pts for packet in packets), "no B-frames"
    return Stream(CODECS[codec], bytes(context.extradata or b""), [(p.is_keyframe, bytes(p)) for p in packets])


def element(name: int, *parts: bytes | int | float | str) -> bytes:
    """An element of EBML (RFC 8794)."""
    data = b""
    for part in parts:
        if isinstance(part, int):
            part = part.to_bytes(max(1, -(-part.bit_length() // 8)), "big")
        data += struct.pack(">d", part) if isinstance(part, float) else part.encode() if isinstance(part, str) else part
    identity = name.to_bytes(-(-name.bit_length() // 8), "big")
    return identity + (len(data) | 1 << 56).to_bytes(8, "big") + data


def video_for_windows(path: Path, stream: Stream) -> Path:
    """What AVI becomes in Matroska: a BITMAPINFOHEADER, and blocks with the times of decoding."""
    bitmap = struct.pack("<IiiHH4sIiiII", 40 + len(stream.extradata), WIDTH, HEIGHT, 1, 24, stream.fourcc, *[0] * 5)
    blocks = [
        element(0xA3, b"\x81" + struct.pack(">hB", 40 * number, 0x80 * key) + data)
        for number, (key, data) in enumerate(stream.packets)
    ]
    size = element(0xE0, element(0xB0, WIDTH), element(0xBA, HEIGHT))
    track = [element(0xD7, 1), element(0x73C5, 1), element(0x83, 1), element(0x23E383, 40_000_000)]
    track += [element(0x86, "V_MS/VFW/FOURCC"), element(0x63A2, bitmap + stream.extradata), size]
    body = [
        element(0x1549A966, element(0x2AD7B1, 1_000_000), element(0x4489, 40.0 * FRAMES)),
        element(0x1654AE6B, element(0xAE, *track)),
        element(0x1F43B675, element(0xE7, 0), *blocks),
    ]
    path.write_bytes(element(0x1A45DFA3, element(0x4282, "matroska"), element(0x4287, 4)) + element(0x18538067, *body))
    return path


def checksum(page: bytes) -> int:
    """That of Ogg (RFC 3533, 6): zlib's counts the bits the other way round, and inverts."""
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 1 << 31 else 0)) & 0xFFFFFFFF
    return value


def ogm(path: Path, stream: Stream) -> Path:
    """Ogg as DirectShow's muxers wrote it: a header of its own, a packet a page, pages that count frames decoded."""
    header = b"\1video\0\0\0" + stream.fourcc
    header += struct.pack("<IqqIIHHii", 52, 400_000, 1, 1, 1 << 16, 24, 0, WIDTH, HEIGHT) + bytes(4)
    comment = b"\3vorbis" + struct.pack("<II", 0, 0) + b"\1"
    packets = [(0, header), (0, comment)]
    for number, (key, data) in enumerate(stream.packets):
        extra = stream.extradata if number == 0 else b""
        packets.append((number + 1, bytes([8 * key]) + extra + data))
    pages = []
    for number, (granule, data) in enumerate(packets):
        flags = (number == 0) * 2 + (number == len(packets) - 1) * 4
        lacing = [255] * (len(data) // 255) + [len(data) % 255]
        assert len(lacing) < 256
        head = [struct.pack("<4sBBqII", b"OggS", 0, flags, granule, 7, number), bytes([len(lacing), *lacing]) + data]
        total = checksum(head[0] + bytes(4) + head[1])
        pages.append(head[0] + struct.pack("<I", total) + head[1])
    path.write_bytes(b"".join(pages))
    return path


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("write", "name"), [(video_for_windows, "in.mkv"), (ogm, "in.ogm")])
def test_frames_get_times_in_the_order_in_which_they_are_shown(
    tmp_path: Path, write: Callable[[Path, Stream], Path], name: str, codec: str
):
    source = write(tmp_path / name, encoded(codec))
    with av.open(str(source), options={"fflags": "-genpts"}) as opened:
        times = [packet.pts for packet in opened.demux(video=0) if packet.size]
        assert len(times) == FRAMES and (None in times or times == sorted(times)), "the packets say it"
    info = probe(source)
    steps = np.diff(info.pts) * float(info.time_base)
    assert len(info.pts) == FRAMES and np.allclose(steps, 0.04, atol=0.0011)
    shown = [float(frame.planes[0].mean()) for frame in decode(info)]
    assert np.allclose(np.diff(shown), np.diff([light(n) * 219 / 255 for n in range(FRAMES)]), atol=2)
    settings = Settings(model="nearest", scale=1, codec="ffv1", segment_frames=5)
    output = vidup.upscale(source, tmp_path / "out.mkv", settings)
    assert output.frames == output.compared == FRAMES
    assert vidup.verify(source, output, settings).frames == FRAMES
