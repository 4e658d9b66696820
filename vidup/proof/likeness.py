"""Measure how like pictures are to their frames of the source, and to the frames before and after those."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

REACH = 4
"""How many frames on either side a picture is compared with, too."""
OFFSETS = (*range(-REACH, 0), *range(1, REACH + 1))
"""How many frames later each of these neighbours is."""

_GRAIN = 4  # blocks of this side are averaged, because encoders change grain, but not light and motion
_AT_ONCE = 2**17  # floats of pictures in full detail that are in memory at a time

Floats = NDArray[np.float32]


@dataclass
class Likeness:
    """The distances of pictures from the source's: root mean square differences, as shares of black to white.

    Arrays of one value a picture, (n,), or one a picture and neighbour, (n, 8) in the order of `OFFSETS`. Grain and
    detail are averaged away in all but `fine`.
    """

    there: NDArray[np.bool_]
    """Whether the source has the picture; where not, the other values mean nothing."""
    fine: Floats
    """The distance with grain and detail."""
    distance: Floats
    contrast: Floats
    """The standard deviation of the source's picture."""
    found_contrast: Floats
    grain: Floats
    """The part of the contrast of the source's picture that averaging removes."""
    light: Floats
    """The distance of the source's picture from black."""
    found_light: Floats
    agreement: Floats
    """The correlation of the two pictures, independent of light and contrast: 1 is the same picture, 0 another."""
    colour: Floats
    """The distance of the source's picture from gray."""
    found_colour: Floats
    """The share of that colour in the picture: 1 is all, 0 none; complementary colours are below 0."""
    other_distance: Floats
    """The distance from the neighbour in the source."""
    change: Floats
    """The distance between the two frames of the source; 0 where there is no such neighbour."""
    shape_change: Floats
    """The same without changes of light and contrast, which models make."""
    share: Floats
    """Where the picture is between the two frames of the source: 0 is its own, 1 the neighbour."""
    _source: NDArray[np.uint16] = field(repr=False)

    def is_motion(self, index: int, place: int) -> bool:
        """Whether a frame of the source and its neighbour `OFFSETS[place]` differ by more than grain."""
        own, other = (_floats(self._source[one]) for one in (index + REACH, index + REACH + OFFSETS[place]))
        return bool(self.change[index, place] > _MOTION * _rms((own - other)[None])[0])


_MOTION = 0.5  # the share of a difference that averaging leaves, where it is more than grain


def measure(found: NDArray[np.uint16], source: NDArray[np.uint16], there: NDArray[np.bool_]) -> Likeness:
    """Compare pictures with their frames of the source and the neighbours of those.

    Args:
        found: (n, 3 or 1, height, width), 65535 is white; height and width are multiples of 4.
        source: (n + 8, 3, height, width): from the fourth before the first to the fourth after the last.
        there: (n + 8,), which of these the source has.
    """
    count = len(found)
    fine, fine_contrast = np.empty(count, np.float32), np.empty(count, np.float32)
    coarse, coarse_found = [_coarse(_floats(source[:REACH]))], []
    batch = max(1, _AT_ONCE // found[0].size)
    for first in range(0, count, batch):
        part = slice(first, first + batch)
        ours, own = _floats(found[part]), _floats(source[REACH : REACH + count][part])
        fine_contrast[part] = _deviation(own)
        coarse_found.append(_coarse(ours))
        coarse.append(_coarse(own))
        ours -= own
        fine[part] = _rms(ours)
    every = np.concatenate([*coarse, _coarse(_floats(source[count + REACH :]))])
    ours = np.concatenate(coarse_found)
    own = every[REACH : REACH + count]
    away, plain = ours - own, own - _mean(own)[..., None]
    power, away_plain = _dot(plain, plain), _dot(away, plain)
    contrast = np.sqrt(power.mean(1) / own.shape[2])
    ours_plain = ours - _mean(ours)[..., None]
    ours_power = _dot(ours_plain, ours_plain)
    agreement = (power + away_plain).sum(1) / np.sqrt(power.sum(1) * ours_power.sum(1)).clip(1e-9)
    hue, found_hue = own - own.mean(1, keepdims=True), ours - ours.mean(1, keepdims=True)
    colour = _dot(hue, hue).sum(1)
    return Likeness(
        there=there[REACH : REACH + count],
        fine=fine,
        distance=_rms(away),
        contrast=contrast,
        found_contrast=np.sqrt(ours_power.mean(1) / own.shape[2]),
        grain=np.sqrt((fine_contrast**2 - contrast**2).clip(0)),
        light=_rms(own),
        found_light=_rms(ours),
        agreement=agreement,
        colour=np.sqrt(colour / own[0].size),
        found_colour=_dot(hue, found_hue).sum(1) / colour.clip(1e-9),
        **_neighbours(every, there, away, plain),
        _source=source,
    )


def _neighbours(every: Floats, there: NDArray[np.bool_], away: Floats, plain: Floats) -> dict[str, Floats]:
    """The values of `Likeness` for the neighbours, from inner products of differences, for each channel."""
    count, pixels = len(away), away.shape[2]
    own = every[REACH : REACH + count]
    names = ("other_distance", "change", "shape_change", "share")
    result = {name: np.zeros((count, len(OFFSETS)), np.float32) for name in names}
    power, away_plain, away_mean = _dot(plain, plain).clip(1e-9), _dot(away, plain), _mean(away)
    away_square = _dot(away, away).sum(1)
    for place, later in enumerate(OFFSETS):
        change = every[REACH + later : REACH + later + count] - own
        square, along, with_away, mean = _dot(change, change), _dot(change, plain), _dot(change, away), _mean(change)
        # The change without its mean (a change of light) and its part along the picture (a change of contrast).
        shape = (square - pixels * mean**2 - along**2 / power).sum(1).clip(0)
        gone = (with_away - pixels * away_mean * mean - away_plain * along / power).sum(1)
        is_there = there[REACH + later : REACH + later + count]
        size = away[0].size
        result["change"][:, place] = np.sqrt(square.sum(1) / size) * is_there
        result["other_distance"][:, place] = np.sqrt(
            (away_square - 2 * with_away.sum(1) + square.sum(1)).clip(0) / size
        )
        result["shape_change"][:, place] = np.sqrt(shape / size) * is_there
        result["share"][:, place] = gone / shape.clip(1e-6 * size)
    return result


def _floats(pictures: NDArray[np.uint16]) -> Floats:
    """(..., 3, pixels), 1 is white; the last axes as they were."""
    result: Floats = np.multiply(pictures, np.float32(1 / 65535), dtype=np.float32)
    return result


def _coarse(pictures: Floats) -> Floats:
    """The means of blocks: (n, 3, blocks)."""
    height, width = pictures.shape[-2:]
    rows = pictures.reshape(*pictures.shape[:-2], height // _GRAIN, _GRAIN, width)
    sums = rows[..., 0, :] + rows[..., 1, :]
    for row in range(2, _GRAIN):
        sums += rows[..., row, :]
    columns = sums.reshape(*sums.shape[:-1], -1, _GRAIN)
    blocks: Floats = columns[..., 0] + columns[..., 1]
    for column in range(2, _GRAIN):
        blocks += columns[..., column]
    blocks /= np.float32(_GRAIN**2)
    return blocks.reshape(*pictures.shape[:-2], -1)


def _dot(one: Floats, other: Floats) -> Floats:
    product: Floats = np.einsum("nci,nci->nc", one, other)
    return product


def _mean(pictures: Floats) -> Floats:
    total: Floats = np.einsum("nci->nc", pictures)  # a multiple faster than mean() on short rows
    return total / np.float32(pictures.shape[2])


def _rms(pictures: Floats) -> Floats:
    flat = pictures.reshape(len(pictures), -1)
    result: Floats = np.sqrt(np.einsum("ni,ni->n", flat, flat) / flat.shape[1])
    return result


def _deviation(pictures: Floats) -> Floats:
    flat = pictures.reshape(*pictures.shape[:2], -1)
    result: Floats = np.sqrt((_dot(flat, flat) / flat.shape[2] - _mean(flat) ** 2).mean(1).clip(0))
    return result
