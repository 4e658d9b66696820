"""Seeded noise that is a function of the place in the picture.

A value depends only on the seed, the stream, the channel and the absolute position: not on the size of the picture or
of a tile, the batch, the frame's number or the order of calls. So equal frames give equal pictures, and a tile has the
noise that the whole frame has there.
"""

from __future__ import annotations

import numpy as np
import torch

BLOCK = 64
"""Side of the blocks that the endless field consists of, in pixels."""


def field(seed: int, stream: int, channels: int, height: int, width: int, top: int = 0, left: int = 0) -> torch.Tensor:
    """Crop a window from an endless field of white Gaussian noise.

    Each block of 64 x 64 comes from a counter-based generator whose counter is the block's place (Philox: Salmon et
    al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

    Args:
        seed: 0 to 2**63 - 1.
        stream: the number of one of several independent fields, such as latents and low-resolution noise.
        channels, height, width: the size of the window.
        top, left: its place, 0 or more.

    Returns:
        float32 on the CPU, (channels, height, width), mean 0 and variance 1.
    """
    rows = range(top // BLOCK, (top + height - 1) // BLOCK + 1)
    columns = range(left // BLOCK, (left + width - 1) // BLOCK + 1)
    blocks = [[_block(seed, stream, channels, row, column) for column in columns] for row in rows]
    whole = np.concatenate([np.concatenate(row, axis=2) for row in blocks], axis=1)
    y, x = top - rows.start * BLOCK, left - columns.start * BLOCK
    return torch.from_numpy(np.ascontiguousarray(whole[:, y : y + height, x : x + width]))


def _block(seed: int, stream: int, channels: int, row: int, column: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, row, column]))
    return generator.standard_normal((channels, BLOCK, BLOCK), dtype=np.float32)


NOISE_SHARE = 0.4
"""Noise that is added, as a share of the input's distance from a clean picture."""


def levels_for(distances: torch.Tensor, alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """The noise levels for inputs of some distances from clean pictures: noise conditioning augmentation (Ho et al.
    2022) makes a model ignore the smaller details of its input.

    Args:
        distances: (n,) root mean square distances of inputs from clean pictures, in codes of 0 to 255.
        alphas_cumprod: (levels,) of the schedule of the model's noise levels; on the same device.

    Returns:
        int64 (n,), the first level whose noise is two fifths of that distance, at most the last.
    """
    noise = 127.5 * (1 - alphas_cumprod).sqrt()  # the picture is in [-1, 1]
    return (noise < NOISE_SHARE * distances[:, None]).sum(1).clamp_max(len(noise) - 1)
