"""Draw lines over time as SVG, whatever they measure.

There is no plotting library: a plot is a line and a band for each result, and a library would add a dependency and
megabytes to each page. Labels are HTML around the SVG, so that they keep their size in a narrow window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from math import ceil, floor, isfinite, log10
from statistics import fmean

from vidup.report.figures import written

POINTS = 600
"""The most points of a line; of a longer video each is the mean of several frames, and a band shows their range."""
WIDTH, HEIGHT = 1000, 200
_TICKS = 4  # at least, of an axis


@dataclass(frozen=True)
class Curve:
    """A figure of one result over time."""

    label: str
    style: str
    """A CSS class."""
    times: tuple[float, ...]
    """Seconds after the first frame."""
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class _Point:
    time: float
    mean: float | None
    low: float
    high: float


def _points(curve: Curve) -> list[_Point]:
    """The points of a curve, at most `POINTS`."""
    stride = -(-len(curve.times) // POINTS)
    found = []
    for first in range(0, len(curve.times), stride):
        known = [value for value in curve.values[first : first + stride] if value is not None]
        finite = [value for value in known if isfinite(value)]
        mean = fmean(finite) if finite else known[0] if known else None
        low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
        found.append(_Point(curve.times[first], mean, low, high))
    return found


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from one at or below `low` to one at or above `high`."""
    raw = ((high - low) or abs(high) or 1.0) / _TICKS
    power = 10.0 ** floor(log10(raw))
    apart = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = floor(low / apart + 1e-9)
    last = max(first + 1, ceil(high / apart - 1e-9))
    return [place * apart for place in range(first, last + 1)]


def plot(number: int, title: str, curves: Sequence[Curve], digits: int, marks: Sequence[float]) -> str:
    """A plot as HTML, with a line for each curve.

    Args:
        number: the number of the plot on its page.
        title: the figure's title and unit, as HTML.
        marks: times that are marked.
    """
    drawn = [(curve, _points(curve)) for curve in curves]
    finite = [p for _, points in drawn for p in points if p.mean is not None and isfinite(p.mean)]
    heights = ticks(min((p.low for p in finite), default=0.0), max((p.high for p in finite), default=1.0))
    begin, end = _span(curves)

    def x(time: float) -> float:
        return round((time - begin) / (end - begin) * WIDTH, 1)

    def y(value: float) -> float:
        share = (value - heights[0]) / (heights[-1] - heights[0])
        return round((1 - max(0.0, min(1.0, share))) * HEIGHT, 1)

    shapes = [f'<path class="grid" d="M0 {y(tick)}H{WIDTH}"/>' for tick in heights]
    shapes += [f'<path class="mark" d="M{x(time)} 0V{HEIGHT}"/>' for time in marks if begin <= time <= end]
    for curve, points in drawn:
        shape = "".join(_band([(x(p.time), y(p.low), y(p.high)) for p in run]) for run in _runs(points))
        if len(points) < len(curve.times) and shape:
            shapes.append(f'<path class="band {curve.style}" d="{shape}"/>')
        line = "".join(_line([(x(p.time), y(p.mean or 0.0)) for p in run]) for run in _runs(points))
        shapes.append(f'<path class="line {curve.style}" d="{line}"/>')
    decimals = _decimals(heights[1] - heights[0])
    labels = [
        f'<span class="y" style="top:{100 * y(tick) / HEIGHT:.1f}%">{tick:.{decimals}f}</span>' for tick in heights
    ]
    labels += [
        f'<span class="x" style="left:{x(tick) * 100 / WIDTH:.1f}%">{_seconds(tick)}</span>'
        for tick in ticks(begin, end)
        if begin <= tick <= end
    ]
    keys = "".join(
        f'<li><i class="key {curve.style}"></i>{escape(curve.label)} <output></output></li>' for curve in curves
    )
    return (
        f'<figure class="plot" data-plot="{number}"><figcaption>{title} <output class="time"></output></figcaption>'
        f'<div class="chart" tabindex="0" role="img" aria-label="{escape(_in_words(curves, digits))}">'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true">{"".join(shapes)}'
        f'<path class="cursor" d=""/></svg>{"".join(labels)}</div><ul class="keys">{keys}</ul></figure>'
    )


def readings(curves: Sequence[Curve], digits: int) -> list[dict[str, object]]:
    """What the page's script shows of each curve: times, as text and as shares of the plot's width, values as text."""
    begin, end = _span(curves)
    return [
        {
            "at": [round((p.time - begin) / (end - begin), 4) for p in points],
            "time": [f"{p.time:.3f} s" for p in points],
            "value": [written(p.mean, digits) for p in points],
        }
        for points in map(_points, curves)
    ]


def _span(curves: Sequence[Curve]) -> tuple[float, float]:
    begin = min(curve.times[0] for curve in curves)
    return begin, max(*(curve.times[-1] for curve in curves), begin + 1e-3)


def _runs(points: Sequence[_Point]) -> list[list[_Point]]:
    """Runs of points with a mean."""
    return [list(run) for known, run in groupby(points, lambda point: point.mean is not None) if known]


def _line(run: Sequence[tuple[float, float]]) -> str:
    (x, y), *others = run
    return f"M{x} {y}" + ("".join(f"L{a} {b}" for a, b in others) or "h0")


def _band(run: Sequence[tuple[float, float, float]]) -> str:
    there = "".join(f"L{x} {high}" for x, _, high in run)[1:]
    return f"M{there}" + "".join(f"L{x} {low}" for x, low, _ in reversed(run)) + "Z"


def _decimals(apart: float) -> int:
    """The decimals of ticks that are so far apart."""
    return max(0, -floor(log10(apart) + 1e-9) + (1 if round(apart / 10 ** floor(log10(apart)), 6) == 2.5 else 0))


def _seconds(time: float) -> str:
    minutes, seconds = divmod(time, 60)
    return f"{int(minutes)}:{seconds:04.1f}" if minutes else f"{time:g} s"


def _in_words(curves: Sequence[Curve], digits: int) -> str:
    """A plot in words, for screen readers."""
    parts = []
    for curve in curves:
        known = [value for value in curve.values if value is not None]
        low, high = (written(of(known), digits) if known else "–" for of in (min, max))
        parts.append(f"{curve.label}: from {low} to {high}")
    return "; ".join(parts)
