"""Transparency of VP9 and VP8: a second encoded picture beside each packet, which only Matroska and WebM can store.

FFmpeg's own decoders ignore it, those of libvpx decode it. PyAV passes it on with packets that it has read, and cannot
attach it to a packet that is made from bytes: so `packets` writes a minimal Matroska file in memory and demuxes that.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

import av

DECODERS = {"vp9": "libvpx-vp9", "vp8": "libvpx"}
"""The decoders that read transparency, by the name of FFmpeg's own decoder."""

_KIND = "matroska_block_additional"
_ID = 8  # bytes before the second picture that name its kind: 1 is transparency


def is_tagged(stream: Any) -> bool:
    """Whether the file tags one of its streams as transparent."""
    return any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items())


def decoder_for(stream: Any) -> str | None:
    """The decoder that reads the stream's transparency; None where it has none, or this build of FFmpeg none for it."""
    name = DECODERS.get(stream.codec_context.name) if stream.codec_context is not None else None
    return name if is_tagged(stream) and name in av.codecs_available else None


def of(packet: Any) -> bytes:
    """The second picture of a packet; empty where it has none."""
    found = next((bytes(data) for data in packet.iter_sidedata() if data.data_type == _KIND), b"")
    return found[_ID:]


def packets(pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[Any]:
    """PyAV packets, without times, of (picture, second picture) pairs."""
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
