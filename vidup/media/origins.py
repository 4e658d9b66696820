"""Files whose clock restarts in the middle, such as joined transport streams and VOBs: find the places, and correct."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

_BACK, _AHEAD = Fraction(1), Fraction(600)  # seconds that a stream's clock may step back or on without a restart


class Origin(NamedTuple):
    """The begin of a part of a file whose clock has another zero."""

    place: int
    """The position of its first byte in the file."""
    shift: Fraction
    """Seconds to add to its times for the clock of the file's first part."""


@dataclass
class _Part:
    place: int
    begins: dict[int, Fraction] = field(default_factory=dict)
    """By the index of the stream, in seconds."""
    ends: dict[int, Fraction] = field(default_factory=dict)


def find(packets: Iterable[Any]) -> tuple[Origin, ...]:
    """The places at which the clock of a file, given by all its packets, restarts; most files have none.

    Within a part, the decode times of audio and video rise. The stream of a part that lasts longest is followed by the
    next part without a gap.
    """
    parts, part_of = [_Part(0)], dict[int, int]()
    last: dict[int, Fraction] = {}
    place = 0
    for packet in packets:
        place = place if packet.pos is None else packet.pos
        if packet.dts is None or not packet.time_base or packet.stream.type not in ("audio", "video"):
            continue
        index, time = packet.stream.index, packet.dts * packet.time_base
        number = part_of.setdefault(index, len(parts) - 1)
        if not last.get(index, time) - _BACK <= time <= last.get(index, time) + _AHEAD:
            number = part_of[index] = number + 1
            if number == len(parts):
                parts.append(_Part(place))
            parts[number].place = min(parts[number].place, place)
        last[index] = time
        part = parts[number]
        shown = time if packet.pts is None else packet.pts * packet.time_base
        part.begins[index] = min(part.begins.get(index, shown), shown)
        part.ends[index] = max(part.ends.get(index, shown), shown + (packet.duration or 0) * packet.time_base)
    found: list[Origin] = []
    for before, after in zip(parts, parts[1:], strict=False):
        base = found[-1].shift if found else Fraction(0)
        both = before.ends.keys() & after.begins.keys()
        found.append(Origin(after.place, max(base + before.ends[index] - after.begins[index] for index in both)))
    return tuple(found)


def on_one_clock(packets: Iterable[Any], origins: tuple[Origin, ...]) -> Iterator[Any]:
    """Packets with the times of later parts moved to the first part's clock; one without a place as that before it."""
    places = [origin.place for origin in origins]
    shifts: dict[int, Fraction] = {}
    for packet in packets:
        index = packet.stream.index
        if packet.pos is not None:
            part = bisect_right(places, packet.pos)
            shifts[index] = origins[part - 1].shift if part else Fraction(0)
        if shift := shifts.get(index):
            ticks = round(shift / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks
        yield packet
