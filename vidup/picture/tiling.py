"""Tiles: the whole frame, or overlapping tiles of equal size, and the weights with which they are blended."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tiles:
    """Windows of one size that cover a frame."""

    height: int
    """Size of the frame in pixels."""
    width: int
    tile_height: int
    """Size of each window; equal, so that they can be a batch."""
    tile_width: int
    origins: tuple[tuple[int, int], ...]
    """(top, left) of each window."""

    @property
    def whole(self) -> bool:
        return len(self.origins) == 1

    def __str__(self) -> str:
        return f"{self.width}x{self.height} in {len(self.origins)} tiles of {self.tile_width}x{self.tile_height}"

    def scaled(self, times: int, by: int = 1) -> Tiles:
        """The same tiles for a picture that is `times` larger, and `by` smaller."""
        height, width, tall, wide = (
            side * times // by for side in (self.height, self.width, self.tile_height, self.tile_width)
        )
        origins = tuple((top * times // by, left * times // by) for top, left in self.origins)
        return Tiles(height, width, tall, wide, origins)


def cover(height: int, width: int, tile: int, overlap: int, multiple: int) -> Tiles:
    """Cover a frame with as few tiles as possible, as small as that allows.

    Args:
        height, width: the frame, in pixels, multiples of `multiple`.
        tile: the largest side of a tile, in pixels; 0 is the whole frame.
        overlap: the least number of pixels that neighbours share; less than half of `tile`.
        multiple: every tile's sides and place are multiples of it.

    Returns:
        The tiles; one window where the frame is no larger than a tile.
    """
    rows, tile_height = _cover(height, tile, overlap, multiple)
    columns, tile_width = _cover(width, tile, overlap, multiple)
    return Tiles(height, width, tile_height, tile_width, tuple((top, left) for top in rows for left in columns))


def _cover(length: int, tile: int, overlap: int, multiple: int) -> tuple[list[int], int]:
    if tile == 0 or length <= tile:
        return [0], length
    tile = tile // multiple * multiple
    overlap = math.ceil(overlap / multiple) * multiple  # places are rounded to the multiple, too
    count = math.ceil((length - overlap) / max(multiple, tile - overlap))
    # The smallest tile that still covers the frame with this many.
    side = math.ceil((length + (count - 1) * overlap) / count / multiple) * multiple
    span = length - side
    return [span * index // (count - 1) // multiple * multiple for index in range(count - 1)] + [span], side


def weights(tiles: Tiles, overlap: int, margin: int = 0) -> torch.Tensor:
    """The weights of the windows at each pixel, which sum to 1.

    A window's weight falls as a raised cosine over `overlap` pixels towards the sides that have a neighbour, as in
    MultiDiffusion and Mixture of Diffusers (Bar-Tal et al. 2023; Jiménez 2023).

    Args:
        overlap: the least number of pixels that neighbours share.
        margin: of these, the number next to the cut with weight 0, as a window sees too little there; less than half.
            Where it is the reach of a model, the blend equals the result for the whole frame.

    Returns:
        float32, (windows, 1, tile_height, tile_width).
    """
    raw = torch.stack(
        [
            _ramp(tiles.height, tiles.tile_height, top, overlap, margin)[:, None]
            * _ramp(tiles.width, tiles.tile_width, left, overlap, margin)
            for top, left in tiles.origins
        ]
    )
    total = torch.zeros(tiles.height, tiles.width, dtype=torch.float32)
    for index, weight in enumerate(raw):
        crop(total, tiles, index).add_(weight)
    for index, weight in enumerate(raw):
        weight /= crop(total, tiles, index)
    return raw[:, None]


def _ramp(length: int, side: int, start: int, overlap: int, margin: int) -> torch.Tensor:
    depth = (torch.arange(overlap, dtype=torch.float32) + 0.5 - margin).clamp(0, overlap - 2 * margin)
    rise = 0.5 - 0.5 * torch.cos(math.pi * depth / (overlap - 2 * margin))
    weight = torch.ones(side, dtype=torch.float32)
    count = min(overlap, side)
    if start > 0:
        weight[:count] *= rise[:count]
    if start + side < length:
        weight[side - count :] *= rise[:count].flip(0)
    return weight


def crop(canvas: torch.Tensor, tiles: Tiles, index: int) -> torch.Tensor:
    """The view of window `index` in `canvas`, (..., height, width)."""
    top, left = tiles.origins[index]
    return canvas[..., top : top + tiles.tile_height, left : left + tiles.tile_width]
