"""Read the packets of the part that is kept, each at its time."""

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
"""Seconds for which a text is shown at the most that does not say how long."""
_AHEAD = 1  # seconds by which packets of one time lie apart in a file
_FOREVER = 2**32 - 1  # milliseconds


@dataclass(frozen=True)
class Trim:
    """The part of the input that is kept, in seconds of its own time; the output begins at 0."""

    begin: Fraction
    end: Fraction


def kept_packets(
    source: Any,
    indices: Sequence[int],
    trim: Trim | None,
    damaged: Callable[[str], None] | None = None,
    mended: Callable[[str], None] = log.debug,
) -> Iterator[Any]:
    """The packets of some streams of an open input, those that overlap `trim`, moved to begin with it at 0.

    Args:
        damaged: called with what is wrong; where it returns, what cannot be read or put in any container is left out.
        mended: called, once a stream, where packets of sound had no times of their own.

    Raises:
        MediaError: the input is damaged, and there is no `damaged`.
    """
    if not indices:
        return

    def refuse(what: str) -> None:
        raise MediaError(f"{source.name.removeprefix('file:')}: {what}; --tolerate-errors leaves out what is damaged")

    tell, last = damaged or refuse, dict[int, tuple[int, int]]()
    spread, waiting = set[int](), dict[int, Any]()
    transport = source.format.name == "mpegts"
    packets = tolerant_demux(source, [source.streams[index] for index in indices], tell)
    for packet in packets if trim is None else _standing(packets, trim.begin):
        if not packet.size:
            continue
        index, kind = packet.stream.index, packet.stream.type
        if index in waiting and trim is not None:
            before = waiting.pop(index)
            before.duration = _until(packet, before)
            if _shift(before, trim):
                yield before
        is_long = kind == "audio" and not packet.duration and not _frame(packet)
        if packet.dts is not None and kind in ("audio", "video"):
            if kind == "audio" and not packet.duration:
                packet.duration = _length(packet, last.get(index))
            if kind == "audio" and index in last and _follow(packet, *last[index]) and index not in spread:
                spread.add(index)
                mended(f"stream {index}: packets at one time, as at {clock(packet.pts, packet.time_base)},"
                       " follow each other by their lengths")  # fmt: skip
            if packet.dts < last.get(index, (packet.dts,))[0] or (packet.pts is not None and packet.pts < packet.dts):
                tell(f"stream {index}: its packet at {clock(packet.pts, packet.time_base)} is out of order")
                continue
            last[index] = packet.dts, packet.duration or 0
        if transport and kind == "audio" and not _adts_holds(packet):
            tell(f"stream {index}: its packet at {clock(packet.pts, packet.time_base)} is damaged")
            continue
        if is_long and trim is not None and packet.dts is not None and packet.dts * packet.time_base < trim.begin:
            waiting[index] = packet  # whether it reaches into the part only the next one tells
        elif trim is None or _shift(packet, trim):
            yield packet
    yield from (packet for packet in waiting.values() if trim is not None and _shift(packet, trim))


def _standing(packets: Iterator[Any], begin: Fraction) -> Iterator[Any]:
    """Packets, of which those subtitles come at `begin` that stand there already and do not say for how long: pictures,
    as Blu-rays have them, are shown until the next, texts for 3 seconds at the most.
    """
    standing: dict[int, list[Any]] = {}  # by their stream: pictures may be in several packets of one time
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
        # Whether another one comes before the part begins is certain a little later: files are interleaved.
        for over in [one for one in standing if moment > begin + _AHEAD or (one == index and moment > begin)]:
            yield from _brought_to(standing.pop(over), begin)
        yield packet
    for left in standing.values():
        yield from _brought_to(left, begin)


def _brought_to(packets: list[Any], begin: Fraction) -> Iterator[Any]:
    """Packets of a subtitle that stands at `begin`, with that time; none where it has gone by then."""
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
    """Seconds for which a subtitle is shown that has no duration; None where it is until the next."""
    if packet.stream.codec_context.codec.text_sub:
        return LONGEST_TEXT
    with suppress(av.error.FFmpegError, ValueError):
        shown = packet.stream.codec_context.decode2(packet)  # of DVDs the picture itself says it
        if shown is not None and 0 < shown.end_display_time < _FOREVER:
            return Fraction(shown.end_display_time, 1000)
    return None


def _until(packet: Any, before: Any) -> int:
    """How long a packet of sound lasts that does not say it: until the next one."""
    apart = (packet.dts if packet.dts is not None else packet.pts or 0) - before.dts
    return int(apart if apart > 0 else before.duration)


def _frame(packet: Any) -> int:
    """Samples in every packet of a stream of sound; 0 where they differ, or that is not known."""
    context = packet.stream.codec_context
    return int(context.frame_size) if context is not None and context.sample_rate else 0


def _length(packet: Any, last: tuple[int, int] | None) -> int:
    """Of a packet of sound that does not say it, the last of a Matroska file: without it mp4 hides the packet."""
    if samples := _frame(packet):
        packets_a_second = Fraction(packet.stream.codec_context.sample_rate, samples)
        return round(1 / (packets_a_second * cast(Fraction, packet.time_base)))
    apart = 0 if last is None else int(packet.dts - last[0])
    return apart if 0 < apart * packet.time_base < 1 else 0


def _follow(packet: Any, before: int, length: int) -> bool:
    """Have a packet of sound that does not come after the one `before` it begin where that ends.

    Live streams and FLV give packets that were sent together one time, which mp4 cannot say. A packet that lies back
    by more than a second is left as it is.

    Returns:
        Whether it was moved.
    """
    if packet.dts > before or (before - packet.dts) * packet.time_base > 1:
        return False
    packet.pts = packet.dts = before + max(1, length)
    return True


def _adts_holds(packet: Any) -> bool:
    """Whether a packet of a transport stream has a header that can be taken off, where it is AAC (ISO/IEC 13818-7)."""
    if packet.stream.codec_context is None or packet.stream.codec_context.name != "aac":
        return True
    head = bytes(packet)[:7]
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
        return False
    return bool(int.from_bytes(head[3:6], "big") >> 5 & 0x1FFF <= packet.size)


def tolerance(info: MediaInfo, tell: Callable[..., None] = log.debug) -> Callable[[str], None] | None:
    """What `kept_packets` is given as `damaged`: None where an input was read without tolerance for errors."""
    return (lambda what: tell("%s: %s: left out", info.path, what)) if info.tolerant else None


def _shift(packet: Any, trim: Trim) -> bool:
    """Move a packet so that the kept part begins at 0; False where it lies outside."""
    if is_cover(packet.stream):
        return True
    time = packet.pts if packet.pts is not None else packet.dts
    if time is None:
        return False
    begin = time * packet.time_base
    end = begin + (packet.duration or 0) * packet.time_base
    if (end <= trim.begin and begin < trim.begin) or begin >= trim.end:
        return False
    if packet.stream.type == "subtitle":
        # A text that stands already, or still, when the part begins, or ends, is shown as long as the part lasts.
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
    """The longest unit of time that counts whole units and a moment, so that what is moved by it is not rounded; the
    given one where ffmpeg cannot count in that.
    """
    scale = unit.denominator * moment.denominator
    both = Fraction(math.gcd(unit.numerator * moment.denominator, moment.numerator * unit.denominator), scale)
    return both if max(both.numerator, both.denominator) < 2**31 and unit / both < 2**20 else unit
