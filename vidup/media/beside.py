"""Transparency of VP9 and VP8: a second picture that stands with each packet, in Matroska and WebM alone.

FFmpeg's own decoder leaves it out, that of libvpx reads it. PyAV hands it on with packets and makes none of bytes: what
a segment keeps of it goes through a Matroska of packets alone, in memory, which the demuxer reads as any other.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

import av

DECODERS = {"vp9": "libvpx-vp9", "vp8": "libvpx"}
"""Those that read it, by the name of FFmpeg's own."""

_KIND = "matroska_block_additional"
_ID = 8  # bytes before the second picture, which say what it is: 1 is transparency


def has(stream: Any) -> bool:
    """Whether an open file says so of one of its streams."""
    said = any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items())
    context = stream.codec_context
    return said and context is not None and context.name in DECODERS and DECODERS[context.name] in av.codecs_available


def of(packet: Any) -> bytes:
    """The second picture of an encoder's packet; empty where it has none."""
    found = next((bytes(data) for data in packet.iter_sidedata() if data.data_type == _KIND), b"")
    return found[_ID:]


def packets(pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[Any]:
    """PyAV packets of pictures and the second pictures beside them; without times."""
    body = b"".join(_group(data, second) for data, second in pairs)
    video = _element(0xE0, _element(0xB0, b"\x10") + _element(0xBA, b"\x10") + _element(0x53C0, b"\x01"))
    track = _element(0xAE, _number(0xD7, 1) + _number(0x73C5, 1) + _number(0x83, 1) + _number(0x55EE, 1)
                     + _element(0x86, b"V_VP9") + video)  # fmt: skip
    head = _element(0x1A45DFA3, _element(0x4282, b"webm") + _number(0x4287, 4) + _number(0x4285, 2))
    info = _element(0x1549A966, _element(0x2AD7B1, (1_000_000).to_bytes(3, "big")))
    parts = info + _element(0x1654AE6B, track) + _element(0x1F43B675, _number(0xE7, 0) + body)
    whole = head + _element(0x18538067, parts)
    with av.open(io.BytesIO(whole), format="matroska") as container:
        yield from (packet for packet in container.demux(video=0) if packet.size)


def _group(data: bytes, second: bytes) -> bytes:
    block = _element(0xA1, b"\x81\x00\x00\x00" + data)
    more = _element(0x75A1, _element(0xA6, _number(0xEE, 1) + _element(0xA5, second))) if second else b""
    return _element(0xA0, block + more)


def _number(name: int, value: int) -> bytes:
    return _element(name, value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big"))


def _element(name: int, data: bytes) -> bytes:
    """An element of EBML (RFC 8794): its name, eight bytes of length, its data."""
    return name.to_bytes((name.bit_length() + 7) // 8, "big") + (len(data) | 1 << 56).to_bytes(8, "big") + data
