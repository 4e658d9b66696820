"""From a picture to the small one that a viewer might have: reduction by 4, sensor noise, light compression."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vidup.engines.detail import FACTOR, down

Rng = np.random.Generator
Pixels = NDArray[np.uint8]


def reduced(pixels: Pixels, kernel: str = "bicubic") -> Pixels:
    """Reduce by 4.

    Args:
        pixels: (4h, 4w, 3) uint8.
        kernel: ``bicubic`` (torch's antialiased one), ``area`` or ``lanczos`` (Pillow's).

    Returns:
        (h, w, 3) uint8, rounded.
    """
    if kernel == "bicubic":
        small = down(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())
        return small.round().clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()
    resample = Image.Resampling.BOX if kernel == "area" else Image.Resampling.LANCZOS
    size = (pixels.shape[1] // FACTOR, pixels.shape[0] // FACTOR)
    return np.asarray(Image.fromarray(pixels).resize(size, resample))


def degraded(rng: Rng, pixels: Pixels) -> Pixels:
    """A random reduction, now and then with a little noise or JPEG compression: (4h, 4w, 3) to (h, w, 3), uint8."""
    small = reduced(pixels, str(rng.choice(["bicubic", "area", "lanczos"], p=[0.6, 0.2, 0.2])))
    if rng.random() < 0.12:
        noise = rng.normal(0, rng.uniform(0.3, 2.5), small.shape)
        small = np.clip(np.round(small + noise), 0, 255).astype(np.uint8)
    if rng.random() < 0.15:
        stream = io.BytesIO()
        Image.fromarray(small).save(stream, "JPEG", quality=int(rng.integers(65, 97)))
        small = np.asarray(Image.open(stream).convert("RGB"))
    return small
