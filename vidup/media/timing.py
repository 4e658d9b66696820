"""Times of frames: fill in those that a file lacks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from statistics import median


def fill(times: Sequence[int | None], durations: Sequence[int], usual: int) -> list[int]:
    """Rising times for frames in the order in which they are shown.

    Known times are kept; of times that contradict each other, the longest rising sequence. A frame without a time
    follows the end of the one before, or, where that would pass the next known time, frames between two known times are
    spaced evenly. Before the first known time frames are counted back, after the last on.

    Args:
        times: of each frame, None where it is not known.
        durations: of each frame, 0 where it is not known.
        usual: the duration of a frame where it is not known.
    """
    lasting = [duration if duration > 0 else usual for duration in durations]
    known = _rising(times)
    if not known:
        return [0, *accumulate(lasting[:-1])][: len(times)]
    first, begin = known[0]
    filled = [begin - sum(lasting[place:first]) for place in range(first)] + [begin]
    for (before, start), (after, end) in pairwise(known):
        reached = list(accumulate(lasting[before:after]))
        if reached[-1] > end - start:
            reached = [(end - start) * count // len(reached) for count in range(1, len(reached) + 1)]
        filled += [start + passed for passed in reached[:-1]] + [end]
    last, time = known[-1]
    return filled + [time + passed for passed in accumulate(lasting[last:-1])]


def _rising(times: Sequence[int | None]) -> list[tuple[int, int]]:
    """Place and time of the longest sequence of known times that rise by at least 1 a place; the earliest of such."""
    # That is the longest sequence in which time minus place does not fall, found by patience sorting from the end on.
    # Of equal times the first counts, so that the next is filled in after it.
    first = {time: place for place, time in reversed(list(enumerate(times))) if time is not None}
    tops: list[int] = []
    ends: list[tuple[int, int]] = []
    after: dict[tuple[int, int], tuple[int, int] | None] = {}
    for time, place in sorted(first.items(), key=lambda item: -item[1]):
        depth = bisect_right(tops, place - time)
        after[place, time] = ends[depth - 1] if depth else None
        tops[depth : depth + 1], ends[depth : depth + 1] = [place - time], [(place, time)]
    chain: list[tuple[int, int]] = []
    following = ends[-1] if ends else None
    while following is not None:
        chain.append(following)
        following = after[following]
    return chain


def usual_interval(times: Sequence[int | None]) -> int:
    """The median distance between the times of neighbouring frames; 0 where there are no two."""
    intervals = [b - a for a, b in pairwise(times) if a is not None and b is not None and b > a]
    return int(median(intervals)) if intervals else 0
