"""Times of frames: those that a file bears, and those that have to be filled in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from statistics import median


def fill(times: Sequence[int | None], durations: Sequence[int], step: int) -> list[int]:
    """Rising times for frames in the order in which they are shown.

    What is given is kept where it can be: of times that contradict each other as many as rise together. A frame
    without one comes where the frames before it end, as long as that is before the next known time, else evenly
    between the two; before the first known time frames are counted back, behind the last on.

    Args:
        times: of each frame, or None.
        durations: of each frame, 0 where it is not known.
        step: how long a frame lasts that does not say.
    """
    lasting = [duration if duration > 0 else step for duration in durations]
    known = _rising(times)
    if not known:
        return [0, *accumulate(lasting[:-1])][: len(times)]
    first = known[0]
    begin = _time(times, first)
    filled = [begin - sum(lasting[place:first]) for place in range(first)] + [begin]
    for before, after in pairwise(known):
        start, end = _time(times, before), _time(times, after)
        reached = list(accumulate(lasting[before:after]))
        if reached[-1] > end - start:
            reached = [(end - start) * count // len(reached) for count in range(1, len(reached) + 1)]
        filled += [start + passed for passed in reached[:-1]] + [end]
    last = known[-1]
    return filled + [filled[last] + passed for passed in accumulate(lasting[last:-1])]


def _rising(times: Sequence[int | None]) -> list[int]:
    """The places of as many known times as rise together, with some for the frames between; the earliest such."""
    # A time less its place does not fall where there are enough: the longest sequence that does not fall, by patience,
    # from the end on. Of equal times the first counts, so that the next is filled in behind it.
    first = {time: place for place, time in reversed(list(enumerate(times))) if time is not None}
    tops: list[int] = []
    places: list[int] = []
    after: dict[int, int | None] = {}
    for time, place in sorted(first.items(), key=lambda item: -item[1]):
        depth = bisect_right(tops, place - time)
        after[place] = places[depth - 1] if depth else None
        tops[depth : depth + 1], places[depth : depth + 1] = [place - time], [place]
    chain: list[int] = []
    following = places[-1] if places else None
    while following is not None:
        chain.append(following)
        following = after[following]
    return chain


def _time(times: Sequence[int | None], place: int) -> int:
    time = times[place]
    assert time is not None
    return time


def usual_step(times: Sequence[int | None]) -> int:
    """How far frames are apart as a rule, in units of their times; 0 where there are no two."""
    steps = [b - a for a, b in pairwise(times) if a is not None and b is not None and b > a]
    return int(median(steps)) if steps else 0
