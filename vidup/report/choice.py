"""Choose the frames of a video that a report shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Figures = Any  # `FrameFigures`, or `FaithFigures`


@dataclass(frozen=True)
class Chosen:
    """A chosen frame."""

    time: float
    """Seconds after the first frame."""
    why: tuple[str, ...]
    """The reasons."""


def choose(results: Sequence[Sequence[Figures]], likeness: str, invented: str | None = None) -> list[Chosen]:
    """Choose the worst frame of all results, the median and the most flickering, which may be the same.

    Args:
        results: the figures of each result, frame by frame.
        likeness: the name of the figure that ranks frames; of several results the worst counts.
        invented: the name of a figure whose maximum is chosen, too.
    """
    ranked = sorted(_each(results, likeness, min).items(), key=lambda pair: (pair[1], pair[0]))
    found: dict[str, float] = {"the worst": ranked[0][0], "the median": ranked[len(ranked) // 2][0]}
    if (steady := most_flickering(results)) is not None:
        found["the most flickering"] = steady
    if invented is not None:
        found["the most invented"] = _most(_each(results, invented, max))
    reasons: dict[float, list[str]] = {}
    for why, time in found.items():
        reasons.setdefault(time, []).append(why)
    return [Chosen(time, tuple(why)) for time, why in reasons.items()]


def most_flickering(results: Sequence[Sequence[Figures]]) -> float | None:
    """The time of the frame with the largest E*warp of all results; None where none is known."""
    errors = _each(results, "warp_error", max)
    return _most(errors) if errors else None


def _each(results: Sequence[Sequence[Figures]], name: str, of: Callable[[float, float], float]) -> dict[float, float]:
    """Time -> the worst value of a figure in all results."""
    worst: dict[float, float] = {}
    for frames in results:
        for frame in frames:
            value = getattr(frame, name)
            if value is not None:
                worst[frame.time] = of(worst[frame.time], value) if frame.time in worst else value
    return worst


def _most(values: dict[float, float]) -> float:
    return max(values, key=lambda time: (values[time], -time))
