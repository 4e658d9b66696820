"""Read the packets of the kept part of the input, each with its time in the output."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import av

from vidup.errors import MediaError
from vidup.frame import MediaInfo
from vidup.media.containers import is_cover
from vidup.media.opening import clock, tolerant_demux

log = logging.getLogger(__name__)

LONGEST_TEXT = Fraction(3)
"""The most seconds for which a subtitle text without a duration is shown."""
_AHEAD = 1  # seconds by which packets of one time may lie apart in a file
_FOREVER = 2**32 - 1  # milliseconds: FFmpeg's value for no end


@dataclass(frozen=True)
class Trim:
    """The part of the input that is kept, in seconds of its own time; the output begins at 0."""

    begin: Fraction
    end: Fraction


def kept_packets(
    source: Any, info: MediaInfo, indices: Sequence[int], trim: Trim | None, report: Callable[..., None] = log.debug
) -> Iterator[Any]:
    """The packets of some streams of an open input that overlap `trim`, their times counted from its begin.

    Args:
        report: logs damage that is left out, and, once a stream, that audio packets had the time of another and were
            moved.

    Raises:
        MediaError: the input is damaged, and was read without tolerance for errors.
    """
    if not indices:
        return

    def damaged(what: str) -> None:
        if not info.tolerant:
            raise MediaError(f"{info.path}: {what}; --tolerate-errors leaves out what is damaged")
        report("%s: %s: left out", info.path, what)

    last, spread, waiting = dict[int, tuple[int, int]](), set[int](), dict[int, Any]()
    transport = source.format.name == "mpegts"
    packets = tolerant_demux(source, [source.streams[index] for index in indices], damaged)
    for packet in packets if trim is None else _shown_at(packets, trim.begin):
        if not packet.size:
            continue
        index, kind = packet.stream.index, packet.stream.type
        if index in waiting:
            before = waiting.pop(index)
            apart = (packet.dts if packet.dts is not None else packet.pts or 0) - before.dts
            before.duration = apart if apart > 0 else before.duration
            if _shift(before, trim):
                yield before
        is_long = kind == "audio" and not packet.duration and not _samples(packet)
        if packet.dts is not None and kind in ("audio", "video"):
            if kind == "audio" and not packet.duration:
                packet.duration = _length(packet, last.get(index))
            if kind == "audio" and index in last and _follow(packet, *last[index]) and index not in spread:
                spread.add(index)
                when = clock(packet.pts, packet.time_base)
                report("stream %d: packets at one time, as at %s, follow each other by their lengths", index, when)
            if packet.dts < last.get(index, (packet.dts,))[0] or (packet.pts is not None and packet.pts < packet.dts):
                damaged(f"stream {index}: its packet at {clock(packet.pts, packet.time_base)} is out of order")
                continue
            last[index] = packet.dts, packet.duration or 0
        if transport and kind == "audio" and not _has_valid_adts(packet):
            damaged(f"stream {index}: its packet at {clock(packet.pts, packet.time_base)} is damaged")
            continue
        if is_long and trim is not None and packet.dts is not None and packet.dts * packet.time_base < trim.begin:
            waiting[index] = packet  # only the next one shows whether it reaches into the part
        elif _shift(packet, trim):
            yield packet
    yield from (packet for packet in waiting.values() if _shift(packet, trim))


def _shown_at(packets: Iterator[Any], begin: Fraction) -> Iterator[Any]:
    """Packets, where subtitles without a duration that are still shown at `begin` get that time.

    Pictures, as on Blu-rays, are shown until the next; texts for 3 seconds at most.
    """
    standing: dict[int, list[Any]] = {}  # by stream: a picture may be in several packets of one time
    for packet in packets:
        time = packet.pts if packet.pts is not None else packet.dts
        if not packet.size or time is None:
            yield packet
            continue
        index, moment = packet.stream.index, time * packet.time_base
        if packet.stream.type == "subtitle" and not packet.duration and moment <= begin:
            before = standing.get(index, [])
            standing[index] = [*before, packet] if before and before[0].pts == packet.pts else [packet]
            continue
        if packet.stream.type == "subtitle" and moment <= begin:
            standing.pop(index, None)
        # Files are interleaved: only a little later it is certain that no other one comes before the part begins.
        for over in [one for one in standing if moment > begin + _AHEAD or (one == index and moment > begin)]:
            yield from _moved_to(standing.pop(over), begin)
        yield packet
    for left in standing.values():
        yield from _moved_to(left, begin)


def _moved_to(packets: list[Any], begin: Fraction) -> Iterator[Any]:
    """The packets of a subtitle with the time `begin`; none where it is no longer shown then."""
    for packet in packets:
        unit, lasts = packet.time_base, _own_length(packet)
        time = -(-begin // unit)
        left = None if lasts is None else packet.pts * unit + lasts - time * unit
        if left is None or left > 0:
            is_text = packet.stream.codec_context.codec.text_sub
            packet.pts = packet.dts = time
            packet.duration = round(left / unit) if is_text and left is not None else 0
            yield packet


def _own_length(packet: Any) -> Fraction | None:
    """The seconds for which a subtitle whose packet has no duration is shown; None: until the next."""
    if packet.stream.codec_context.codec.text_sub:
        return LONGEST_TEXT
    with suppress(av.error.FFmpegError, ValueError):
        shown = packet.stream.codec_context.decode2(packet)  # the pictures of DVDs contain their duration
        if shown is not None and 0 < shown.end_display_time < _FOREVER:
            return Fraction(shown.end_display_time, 1000)
    return None


def _samples(packet: Any) -> int:
    """The number of samples in each packet of an audio stream; 0 where it varies or is not known."""
    context = packet.stream.codec_context
    return int(context.frame_size) if context is not None and context.sample_rate else 0


def _length(packet: Any, last: tuple[int, int] | None) -> int:
    """The duration of an audio packet that has none, such as Matroska's last: without it mp4 hides the packet."""
    if samples := _samples(packet):
        packets_a_second = Fraction(packet.stream.codec_context.sample_rate, samples)
        return round(1 / (packets_a_second * cast(Fraction, packet.time_base)))
    apart = 0 if last is None else int(packet.dts - last[0])
    return apart if 0 < apart * packet.time_base < 1 else 0


def _follow(packet: Any, before: int, length: int) -> bool:
    """Move an audio packet that is not later than the one `before` it to the end of that.

    Live streams and FLV give one time to packets that were sent together, which mp4 cannot store. False where it is
    more than a second early, and not changed.
    """
    if packet.dts > before or (before - packet.dts) * packet.time_base > 1:
        return False
    packet.pts = packet.dts = before + max(1, length)
    return True


def _has_valid_adts(packet: Any) -> bool:
    """Whether a packet of a transport stream, if it is AAC, has a valid ADTS header (ISO/IEC 13818-7)."""
    if packet.stream.codec_context is None or packet.stream.codec_context.name != "aac":
        return True
    head = bytes(packet)[:7]
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
        return False
    return bool(int.from_bytes(head[3:6], "big") >> 5 & 0x1FFF <= packet.size)


def _shift(packet: Any, trim: Trim | None) -> bool:
    """Count a packet's times from the begin of the kept part; False where it lies outside."""
    if trim is None or is_cover(packet.stream):
        return True
    time = packet.pts if packet.pts is not None else packet.dts
    if time is None:
        return False
    begin = time * packet.time_base
    end = begin + (packet.duration or 0) * packet.time_base
    if (end <= trim.begin and begin < trim.begin) or begin >= trim.end:
        return False
    if packet.stream.type == "subtitle":
        # A text that is on screen when the part begins or ends is shown within the part only.
        begin, end = max(begin, trim.begin), min(end, trim.end)
        packet.pts = packet.dts = round(begin / packet.time_base)
        packet.duration = round(end / packet.time_base) - packet.pts
    finer = common(packet.time_base, trim.begin)
    scale, offset = int(packet.time_base / finer), round(trim.begin / finer)
    if packet.pts is not None:
        packet.pts = packet.pts * scale - offset
    if packet.dts is not None:
        packet.dts = packet.dts * scale - offset
    packet.duration, packet.time_base = (packet.duration or 0) * scale, finer
    return True


def common(unit: Fraction, moment: Fraction) -> Fraction:
    """The longest time base in which both are whole, so that no shifted time is rounded; `unit` where none is."""
    scale = unit.denominator * moment.denominator
    both = Fraction(math.gcd(unit.numerator * moment.denominator, moment.numerator * unit.denominator), scale)
    return both if max(both.numerator, both.denominator) < 2**31 and unit / both < 2**20 else unit
