"""How like pictures are to their source's, and to those beside them: measured for many at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

REACH = 4
"""Frames on either side with which a picture may have been confused."""
OFFSETS = (*range(-REACH, 0), *range(1, REACH + 1))
"""By how many frames later each of `Others` is."""

_GRAIN = 4  # such blocks are averaged: encoders lose grain, or let it stand; of light and motion they do not
_AT_ONCE = 2**17  # floats of pictures with their detail that are in memory at a time

Floats = NDArray[np.float32]


@dataclass
class Likeness:
    """How far pictures are from their source's: root mean square differences, of the range from black to white.

    Arrays over the pictures, (n,); those of the neighbours (n, 8), in the order of `OFFSETS`. Grain and detail are
    averaged away in all but `fine`.
    """

    there: NDArray[np.bool_]
    """Whether the source has the picture; all else holds only there."""
    fine: Floats
    """With grain and detail."""
    distance: Floats
    contrast: Floats
    """Of the source's picture: the standard deviation."""
    found_contrast: Floats
    grain: Floats
    """Of the source's picture: what it has less without."""
    light: Floats
    """Of the source's picture: how far it is from black."""
    found_light: Floats
    agreement: Floats
    """The correlation of the two, where light and contrast do not count: 1 is the same picture, 0 another."""
    colour: Floats
    """Of the source's picture: how far it is from gray."""
    found_colour: Floats
    """The share of that colour that is in the picture: 1 is all of it, 0 none, less the contrary."""
    other_distance: Floats
    """From the source's frame beside its own."""
    step: Floats
    """From its own frame to that one; 0 where there is none."""
    shape_step: Floats
    """The same where changes of light and contrast do not count: models make such."""
    share: Floats
    """Of that way: 0 is its own, 1 the other."""
    _source: NDArray[np.uint16] = field(repr=False)

    def is_motion(self, index: int, place: int) -> bool:
        """Whether the source's frame and the one `OFFSETS[place]` later differ by more than grain."""
        own, other = (_floats(self._source[one]) for one in (index + REACH, index + REACH + OFFSETS[place]))
        return bool(self.step[index, place] > _MOTION * _rms((own - other)[None])[0])


_MOTION = 0.5  # the share of a difference that outlasts averaging, where it is more than grain


def measure(found: NDArray[np.uint16], source: NDArray[np.uint16], there: NDArray[np.bool_]) -> Likeness:
    """Compare pictures with their source's and those beside.

    Args:
        found: (n, 3, height, width), 65535 is white; both sides are multiples of 4.
        source: (n + 8, 3, height, width): from the fourth before the first to the fourth after the last.
        there: (n + 8,), which of these the source has.
    """
    count = len(found)
    fine, fine_contrast = np.empty(count, np.float32), np.empty(count, np.float32)
    coarse_found, coarse = [], [_coarse(_floats(source[:REACH])), _coarse(_floats(source[count + REACH :]))]
    middle = []
    step = max(1, _AT_ONCE // found[0].size)
    for first in range(0, count, step):
        part = slice(first, first + step)
        ours, own = _floats(found[part]), _floats(source[REACH : REACH + count][part])
        fine_contrast[part] = _deviation(own)
        coarse_found.append(_coarse(ours))
        middle.append(_coarse(own))
        ours -= own
        fine[part] = _rms(ours)
    every = np.concatenate([coarse[0], *middle, coarse[1]])
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
    """What `Likeness` has of the frames beside, by inner products of differences, a channel each."""
    count, pixels = len(away), away.shape[2]
    own = every[REACH : REACH + count]
    names = ("other_distance", "step", "shape_step", "share")
    result = {name: np.zeros((count, len(OFFSETS)), np.float32) for name in names}
    power, away_plain, away_mean = _dot(plain, plain).clip(1e-9), _dot(away, plain), _mean(away)
    away_square = _dot(away, away).sum(1)
    for place, later in enumerate(OFFSETS):
        way = every[REACH + later : REACH + later + count] - own
        square, along, with_away, mean = _dot(way, way), _dot(way, plain), _dot(way, away), _mean(way)
        # The way without what a change of light (its mean) or contrast (its part along the picture) makes of it.
        shape = (square - pixels * mean**2 - along**2 / power).sum(1).clip(0)
        gone = (with_away - pixels * away_mean * mean - away_plain * along / power).sum(1)
        beside = there[REACH + later : REACH + later + count]
        size = away[0].size
        result["step"][:, place] = np.sqrt(square.sum(1) / size) * beside
        result["other_distance"][:, place] = np.sqrt(
            (away_square - 2 * with_away.sum(1) + square.sum(1)).clip(0) / size
        )
        result["shape_step"][:, place] = np.sqrt(shape / size) * beside
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
