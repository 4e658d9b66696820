"""The picture maker: every picture that `mini` learns from is made here, from its seed alone.

Scenes are painted at twice the size, then photographed: light, colour grading, lens blur, motion blur, reduction,
film grain. Most of what comes out is smooth, as film is, with sharp edges and some fine detail.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from vidup.mini.scenes import SCENES, hud
from vidup.mini.solids import solids
from vidup.mini.textures import Rgb, Rng, fractal

MIX = {
    "dead leaves": 0.26,
    "foliage": 0.15,
    "solids": 0.17,
    "strokes": 0.10,
    "cartoon": 0.12,
    "text": 0.11,
    "face": 0.09,
}
"""How often each kind of scene is made."""


def picture(seed: int, size: int = 384) -> NDArray[np.uint8]:
    """Make one picture.

    Args:
        seed: decides everything.
        size: side in pixels, 64 or more.

    Returns:
        (size, size, 3) uint8, RGB as displays expect it.
    """
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(list(MIX), p=list(MIX.values())))
    canvas = solids(rng, 2 * size) if kind == "solids" else SCENES[kind](rng, 2 * size)
    if rng.random() < 0.1:
        canvas = hud(rng, 2 * size, canvas)
    return photographed(rng, canvas, size)


def photographed(rng: Rng, canvas: Image.Image, size: int) -> NDArray[np.uint8]:
    """Light, lens, sensor: from a canvas of any size to (size, size, 3) uint8."""
    if rng.random() < 0.12:  # the camera moves while the shutter is open
        canvas = _moved(rng, canvas)
    filters = [Image.Resampling.BOX, Image.Resampling.LANCZOS, Image.Resampling.BICUBIC]
    canvas = canvas.resize((size, size), filters[rng.integers(3)])
    blur = float(rng.choice([0.0, rng.uniform(0.3, 0.9), rng.uniform(0.8, 2.2)], p=[0.3, 0.45, 0.25]))
    if blur:
        canvas = canvas.filter(ImageFilter.GaussianBlur(blur))
    if rng.random() < 0.15:  # sharpening in the camera
        canvas = canvas.filter(ImageFilter.UnsharpMask(float(rng.uniform(0.6, 2)), int(rng.integers(20, 120)), 0))
    rgb = np.asarray(canvas, np.float32)
    light = 1 + rng.uniform(0, 0.25) * fractal(rng, size, 2.2)
    rgb = _graded(rng, (rgb * light[..., None]).astype(np.float32))
    if rng.random() < 0.4:  # grain is coarser than a pixel, and alike in all channels for the most part
        grain = fractal(rng, size, rng.uniform(0, 0.5))[..., None] + 0.4 * rng.standard_normal((size, size, 3))
        rgb = (rgb + rng.uniform(0, 3.5) * rng.random() * grain).astype(np.float32)
    return np.clip(np.round(rgb), 0, 255).astype(np.uint8)


def _graded(rng: Rng, rgb: Rgb) -> Rgb:
    """Saturation, gamma, contrast and a cast, leaning to the subdued and dark side as films do."""
    grey = rgb.mean(-1, keepdims=True)
    coloured = grey + (rgb - grey) * rng.uniform(0.1, 1.2)
    curved = 255 * np.clip(coloured / 255, 0, 1) ** rng.uniform(0.7, 1.5)
    gain = rng.uniform(0.35, 1.0) * rng.uniform(0.92, 1.0, 3)
    graded: Rgb = (curved * gain + rng.uniform(0, 25)).astype(np.float32)
    return graded


def _moved(rng: Rng, canvas: Image.Image) -> Image.Image:
    """The mean of the canvas along a short straight path."""
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(2, 16)
    steps = int(length) + 2
    total = np.zeros((canvas.height, canvas.width, 3), np.float32)
    for along in np.linspace(0, length, steps):
        dx, dy = along * np.cos(angle), along * np.sin(angle)
        shift = (1, 0, float(dx), 0, 1, float(dy))
        shifted = canvas.transform(canvas.size, Image.Transform.AFFINE, shift, Image.Resampling.BILINEAR)
        total += np.asarray(shifted, np.float32)
    return Image.fromarray(np.clip(total / steps, 0, 255).astype(np.uint8))
