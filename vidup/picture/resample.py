"""Antialiased bicubic resampling, and the anchor."""

from __future__ import annotations

import torch
from torch.nn import functional


def anchor(picture: torch.Tensor, low_res: torch.Tensor, rounds: int) -> torch.Tensor:
    """Pull an enlarged picture back to its input: iterated back-projection (Irani and Peleg 1991).

    Each round adds ``up(low_res - down(picture))`` over the whole frame, with antialiased bicubic. It removes shifts of
    colour and flicker of low frequencies: the result, downscaled, is the input.

    Args:
        picture: float32 (T, 3, H, W).
        low_res: float32 (T, 3, h, w).
        rounds: 0 changes nothing.
    """
    for _ in range(rounds):
        picture = picture + resize(low_res - resize(picture, low_res.shape[-2:]), picture.shape[-2:])
    return picture


def resize(pictures: torch.Tensor, size: tuple[int, int] | torch.Size) -> torch.Tensor:
    """Resize pictures, (..., H, W) to (..., *size), by antialiased bicubic; nothing is done if they have that size."""
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    return functional.interpolate(pictures, tuple(size), mode="bicubic", antialias=True)
