"""Windows of a frame: cut it, and blend a model's answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch

from vidup.engines import Choice, Place, stops
from vidup.picture import tiling
from vidup.picture.temporal import Box


def cut(choice: Choice, height: int, width: int, overlap: int, multiple: int) -> tiling.Tiles:
    """The windows of a frame, its sides rounded up to the multiple."""
    height, width = (side + -side % multiple for side in (height, width))
    return tiling.cover(height, width, choice.tile and max(choice.tile, multiple), overlap, multiple)


_SHAPES = ((0.15, 0.15), (0.25, 0.25), (0.25, 0.5), (0.5, 0.25), (0.5, 0.5), (0.6, 0.6), (0.75, 0.75), (1.0, 1.0))
"""Shares of a frame's height and width, by area, of windows that are compiled or recorded once for each shape.

Of seven and the whole frame these cover what moves in real footage with the fewest pixels: .38 of them where boxes that
fit took .26, and three by three sides .44 to .46.
"""
_MULTIPLE = 16  # pixels, of which their sides are multiples


def shapes(height: int, width: int) -> list[tuple[int, int]]:
    """The few shapes, (rows, columns), of the windows of frames of this size, by area; the last is the whole frame."""
    found = {(_length(height, tall), _length(width, wide)) for tall, wide in _SHAPES}
    return sorted(found, key=lambda shape: (shape[0] * shape[1], shape))


def _length(side: int, share: float) -> int:
    return min(side, math.ceil(side * share / _MULTIPLE) * _MULTIPLE)


def fixed(box: Box, height: int, width: int) -> Box:
    """The smallest window of one of `shapes` that contains a box of a frame; it lies within the frame."""
    top, left, bottom, right = box
    rows, columns = next(
        (rows, columns) for rows, columns in shapes(height, width) if rows >= bottom - top and columns >= right - left
    )
    top, left = _begin(top, bottom, rows, height), _begin(left, right, columns, width)
    return top, left, top + rows, left + columns


def _begin(begin: int, end: int, length: int, side: int) -> int:
    # At multiples of 8, as boxes lie, so that the levels of a network combine the same pixels.
    first = min(max(0, (begin + end - length) // 2) // 8 * 8, side - length)
    return min(first + 8, side - length) if first + length < end else first


def split(rgb: torch.Tensor, place: Place, portions: Sequence[int]) -> Iterator[tuple[torch.Tensor, Place]]:
    """A clip and its place in portions of so many pictures."""
    quantisers = iter(place.quantisers)
    for clip in torch.split(rgb, list(portions)):
        yield clip, replace(place, quantisers=tuple(islice(quantisers, len(clip))))


def filled(rgb: torch.Tensor, place: Place, count: int) -> tuple[torch.Tensor, Place]:
    """A clip and its place, with the last picture repeated up to a count."""
    if (lacking := count - len(rgb)) <= 0:
        return rgb, place
    quantisers = place.quantisers + place.quantisers[-1:] * lacking
    return torch.cat([rgb, rgb[-1:].expand(lacking, -1, -1, -1)]), replace(place, quantisers=quantisers)


def blend(
    model: Callable[[torch.Tensor], torch.Tensor],
    frames: torch.Tensor,
    source: tiling.Tiles,
    target: tiling.Tiles,
    weights: torch.Tensor,
    batch: int,
) -> torch.Tensor:
    """Call a model with every window of every frame and add up its weighted answers.

    Args:
        model: (batch, C, h, w) to (batch, D, H, W), where (h, w) is the size of a window of `source`, (H, W) that of
            `target`. The last batch is filled up: batches of one shape give the same results to the bit.
        frames: (T, C, height, width) of `source`.
        source, target: the same windows on the model's input and on its answer.
        weights: float32, (windows, 1, H, W), with sum 1 everywhere; unused if the window is the whole frame.
        batch: windows in one call.

    Returns:
        float32 (T, D, height, width) of `target`.
    """
    windows = [(frame, tile) for frame in range(len(frames)) for tile in range(len(source.origins))]
    blended: torch.Tensor | None = None
    for first in range(0, len(windows), batch):
        stops.check()
        chosen = windows[first : first + batch]
        inputs = torch.stack([tiling.crop(frames[frame], source, tile) for frame, tile in chosen])
        if len(windows) > batch:
            inputs = torch.cat([inputs, inputs[-1:].expand(batch - len(chosen), -1, -1, -1)])
        answers = model(inputs)
        if blended is None:
            shape = (len(frames), answers.shape[1], target.height, target.width)
            blended = torch.zeros(shape, dtype=torch.float32, device=answers.device)
        for (frame, tile), answer in zip(chosen, answers, strict=False):
            if source.whole:
                blended[frame] = answer
            else:
                tiling.crop(blended[frame], target, tile).add_(answer.float() * weights[tile])
    assert blended is not None, "a clip has at least one frame, a frame at least one window"
    return blended


def spread(values: torch.Tensor, source: tiling.Tiles, batch: int) -> list[torch.Tensor]:
    """Values of frames, (T,), for the windows of each call of the model in `blend`."""
    rows = values.repeat_interleave(len(source.origins))
    if len(rows) > batch:
        rows = torch.cat([rows, rows[-1:].expand(-len(rows) % batch)])
    return list(torch.split(rows, batch))
