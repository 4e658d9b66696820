"""Antialiased bicubic, and the anchor that is made of it."""

from __future__ import annotations

import torch
from torch.nn import functional


def anchor(picture: torch.Tensor, low_res: torch.Tensor, rounds: int) -> torch.Tensor:
    """Pull a picture back to what it enlarges: iterated back-projection (Irani and Peleg 1991).

    Each round adds ``up(low_res - down(picture))``, antialiased bicubic both ways, over the whole frame. It ends the
    shift of colours and the flicker of low frequencies, and makes the result, downscaled, the input.

    Args:
        picture: float32 (T, 3, H, W).
        low_res: float32 (T, 3, h, w).
        rounds: 0 leaves the picture as it is.
    """
    for _ in range(rounds):
        picture = picture + resize(low_res - resize(picture, low_res.shape[-2:]), picture.shape[-2:])
    return picture


def resize(pictures: torch.Tensor, size: tuple[int, int] | torch.Size) -> torch.Tensor:
    """Antialiased bicubic, (..., H, W) to (..., *size); nothing where they have that size."""
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    return functional.interpolate(pictures, tuple(size), mode="bicubic", antialias=True)
