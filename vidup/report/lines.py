"""One line of the picture over time, as an image: flicker shows as ragged edges."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch

from vidup.comparison import aligned, resized
from vidup.report.films import Film
from vidup.report.pictures import LINE, corner, embedded, farthest

FRAMES = 96
"""The most frames of an image."""


@dataclass(frozen=True)
class Lines:
    """The same line of several videos over the same time."""

    row: int
    left: int
    columns: int
    begin: float
    """Seconds after the first frame."""
    end: float
    frames: int
    pictures: tuple[tuple[str, str], ...]
    """(name, data URI) of each: a row for each frame, the first at the top."""


def lines(first: Film, others: Mapping[str, Film], time: float | None, name: str) -> Lines | None:
    """Cut the line that flickers most at a time out of consecutive frames.

    Args:
        first: the truth, or the input, which is enlarged by bicubic.
        others: results by their names.
        time: the time of the most flickering frame; None: the middle of the video.
        name: the name of the first.

    Returns:
        None where there are fewer than two frames.
    """
    middle = first.place(time) if time is not None else None
    middle = len(first.times) // 2 if middle is None else middle
    low = corner(middle, FRAMES, len(first.times))
    high = min(low + FRAMES, len(first.times))
    if high - low < 2:
        return None
    row, left, size = _where(first, others, max(middle, 1))
    right = min(left + LINE, size[1])
    found: dict[str, list[torch.Tensor]] = {name: [], **{other: [] for other in others}}
    times: list[float] = []
    for label, film in others.items():
        begin, end = _span(film, first.times[low], first.times[high - 1])
        for when, one, two in aligned(first.pictures(low, high), film.pictures(begin, end)):
            if one is None:
                continue
            if two is None:
                two = torch.zeros(3, *size)
            if label == next(iter(others)):
                found[name].append(resized(one, size)[:, row, left:right].clone())
                times.append(float(when))
            found[label].append(two[:, row, left:right].clone())  # so that the whole picture is freed
    pictures = tuple((label, embedded(torch.stack(rows, 1))) for label, rows in found.items())
    return Lines(row, left, right - left, times[0], times[-1], len(times), pictures)


def _span(film: Film, begin: Fraction, end: Fraction) -> tuple[int, int]:
    """The places of the frames that begin from one time to another: low <= place < high."""
    near = Fraction(1, 500)
    return bisect_right(film.times, begin - near), bisect_right(film.times, end + near)


def _where(first: Film, others: Mapping[str, Film], place: int) -> tuple[int, int, tuple[int, int]]:
    """The row and the first column of the line where the results change most and `first` does not, and their size."""
    size = next(iter(others.values())).size
    best = -1.0, size[0] // 2, corner(size[1] // 2, LINE, size[1])
    for film in others.values():
        times = first.times[place - 1 : place + 1]
        found = [picture for one in (first, film) for time in times if (picture := one.at(float(time))) is not None]
        if len(found) < 4:
            continue
        before, now, result_before, result = found
        change, expected = result - result_before, resized(now, size) - resized(before, size)
        left = corner(farthest(change, expected)[1], LINE, size[1])
        rows = (change - expected)[..., left : left + LINE].square().mean((0, 2))
        best = max(best, (float(rows.max()), int(rows.argmax()), left))
    return best[1], best[2], size
