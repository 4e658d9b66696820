"""Fingerprints of a file's streams: what their packets hold, and when, without keeping them."""

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
from vidup.media.packets import Trim, kept_packets, tolerance

_START = b"\0\0\1"


@dataclass
class Track:
    """Fingerprint of a stream's packets."""

    unit: Fraction
    """Seconds, of the stream's times: they are no more exact than this."""
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
            return  # an empty text, with which mov fills gaps
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
    """The packet without what belongs to its container: of AAC in a transport stream the ADTS header; of H.264 and
    H.265 the start codes there, and the lengths elsewhere, with which the units of a picture are separated.
    """
    data = bytes(packet)
    if codec == "aac" and data[:1] == b"\xff" and data[1] & 0xF6 == 0xF0:
        return data[7 if data[1] & 1 else 9 :]
    if codec in ("h264", "hevc"):
        if data[:3] == b"\0\0\1" or data[:4] == b"\0\0\0\1":
            return _START.join(unit.rstrip(b"\0") for unit in data.split(_START) if unit.strip(b"\0"))
        units, place = [], 0
        while place + 4 < len(data):
            size = int.from_bytes(data[place : place + 4], "big")
            units.append(data[place + 4 : place + 4 + size].rstrip(b"\0"))
            place += 4 + size
        return _START.join(units)
    return data


def tracks(info: MediaInfo, indices: Sequence[int], trim: Trim | None) -> dict[int, Track]:
    with open_input(info.path, whole=info.unlisted) as container:
        tracks = {}
        for index in indices:
            stream = container.streams[index]
            codec = stream.codec_context.name if stream.codec_context else ""
            tracks[index] = Track(stream.time_base, codec, stream.time_base)
        for packet in kept_packets(container, indices, trim, tolerance(info)):
            tracks[packet.stream.index].add(packet)
    return tracks
