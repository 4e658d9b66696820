"""Digests of the packets of a file's streams."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from vidup.frame import MediaInfo
from vidup.media import texts
from vidup.media.opening import open_input
from vidup.media.packets import Trim, kept_packets

_START = b"\0\0\1"


@dataclass
class Track:
    """The times and digests of a stream's packets."""

    unit: Fraction
    """The stream's time base in seconds: times are no more exact than this."""
    codec: str
    tick: Fraction
    """Seconds in one unit of `pts`."""
    pts: array[int] = field(default_factory=lambda: array("q"))
    digests: list[bytes] = field(default_factory=list)
    whole: Any = field(default_factory=hashlib.sha256)
    shown: list[texts.Shown] = field(default_factory=list)

    def add(self, packet: Any) -> None:
        payload = _payload(packet, self.codec)
        if self.codec == "mov_text" and len(payload) <= 2:
            return  # mov fills gaps with empty texts
        time, self.tick = packet.pts if packet.pts is not None else packet.dts or 0, packet.time_base
        self.pts.append(time)
        self.digests.append(hashlib.blake2b(payload, digest_size=8).digest())
        self.whole.update(payload)
        if packet.stream.type == "subtitle" and (words := texts.words(packet)):
            end = (time + (packet.duration or 0)) * self.tick
            self.shown.append(texts.Shown(time * self.tick, end, words))

    def begin(self) -> Fraction:
        return self.pts[0] * self.tick


def _payload(packet: Any, codec: str) -> bytes:
    """A packet without what its container adds: ADTS headers of AAC; start codes or lengths of units of H.264."""
    data = bytes(packet)
    if codec == "aac" and data[:1] == b"\xff" and data[1] & 0xF6 == 0xF0:
        return data[7 if data[1] & 1 else 9 :]
    if codec in ("h264", "hevc"):
        is_annex_b = data[:3] == _START or data[:4] == b"\0" + _START
        return _START.join(units_by_start_code(data) if is_annex_b else units_by_length(data, 4))
    return data


def units_by_start_code(data: bytes) -> list[bytes]:
    """The NAL units of a packet with start codes (Annex B of H.264 and H.265)."""
    return [unit for part in data.split(_START) if (unit := part.rstrip(b"\0"))]


def units_by_length(data: bytes, length: int) -> list[bytes]:
    """The NAL units of a packet in which each follows its length, an integer of so many bytes."""
    units, place = [], 0
    while place + length < len(data):
        size = int.from_bytes(data[place : place + length], "big")
        units.append(data[place + length : place + length + size].rstrip(b"\0"))
        place += length + size
    return units


def tracks(info: MediaInfo, indices: Sequence[int], trim: Trim | None) -> dict[int, Track]:
    """Read the packets of some streams of a file that overlap `trim`; index -> track."""
    with open_input(info.path, whole=info.unlisted) as container:
        tracks = {}
        for index in indices:
            stream = container.streams[index]
            codec = stream.codec_context.name if stream.codec_context else ""
            tracks[index] = Track(stream.time_base, codec, stream.time_base)
        for packet in kept_packets(container, info, indices, trim):
            tracks[packet.stream.index].add(packet)
    return tracks
