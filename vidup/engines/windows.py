"""Windows of a frame: cut it, and blend a model's answers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vidup.engines import Choice, stops
from vidup.picture import tiling


def cut(choice: Choice, height: int, width: int, overlap: int, multiple: int) -> tiling.Tiles:
    """The windows of a frame, its sides rounded up to the multiple."""
    height, width = (side + -side % multiple for side in (height, width))
    return tiling.cover(height, width, choice.tile and max(choice.tile, multiple), overlap, multiple)


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
