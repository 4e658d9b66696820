"""Choose the frames of a video that a report shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Figures = Any  # `FrameFigures`, or `FaithFigures`


def choose(results: Sequence[Sequence[Figures]], likeness: str, invented: str | None = None) -> dict[float, str]:
    """Choose the worst frame of all results, the median and the most flickering, which may be the same.

    Args:
        results: the figures of each result, frame by frame.
        likeness: the name of the figure that ranks frames; of several results the worst counts.
        invented: the name of a figure whose maximum is chosen, too.

    Returns:
        The time of each, in seconds after the first frame -> why it was chosen.
    """
    worst = _each(results, likeness, min)
    ranked = sorted(worst, key=lambda time: (worst[time], time))
    found: dict[str, float | None] = {"the worst": ranked[0], "the median": ranked[len(ranked) // 2]}
    found["the most flickering"] = most_flickering(results)
    if invented is not None:
        found["the most invented"] = _most(_each(results, invented, max))
    chosen: dict[float, str] = {}
    for why, time in found.items():
        if time is not None:
            chosen[time] = f"{chosen[time]}, {why}" if time in chosen else why
    return chosen


def most_flickering(results: Sequence[Sequence[Figures]]) -> float | None:
    """The time of the frame with the largest E*warp of all results; None where none is known."""
    return _most(_each(results, "warp_error", max))


def _each(results: Sequence[Sequence[Figures]], name: str, of: Callable[[float, float], float]) -> dict[float, float]:
    """Time -> the worst value of a figure in all results."""
    worst: dict[float, float] = {}
    for frame in (frame for frames in results for frame in frames):
        value = getattr(frame, name)
        if value is not None:
            worst[frame.time] = of(worst.get(frame.time, value), value)
    return worst


def _most(values: dict[float, float]) -> float | None:
    return max(values, key=lambda time: (values[time], -time), default=None)
