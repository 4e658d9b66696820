"""Surfaces: fields of values, and the colours laid on them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Field = NDArray[np.float32]
"""(size, size) float32, about zero mean and unit standard deviation."""
Rgb = NDArray[np.float32]
"""(height, width, 3) float32 in 0..255."""


def fractal(rng: Rng, size: int, slope: float) -> Field:
    """Noise whose amplitude falls as frequency to the power -slope.

    Slope 1 is the spectrum of natural pictures (Field 1987), 2 looks like clouds, 0.5 like sand.
    """
    y, x = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    radius = np.hypot(y, x).astype(np.float32)
    radius[0, 0] = 1
    shape = (2, size, size // 2 + 1)
    real, imaginary = rng.standard_normal(shape, dtype=np.float32)
    field = np.fft.irfft2((real + 1j * imaginary) / radius**slope, s=(size, size)).astype(np.float32)
    return normalised(field)


def normalised(field: NDArray[np.floating]) -> Field:
    """Shift and scale to zero mean and unit standard deviation."""
    result: Field = ((field - field.mean()) / (field.std() + 1e-6)).astype(np.float32)
    return result


def _grid(size: int, rng: Rng) -> tuple[Field, Field]:
    """Coordinates in pixels, rotated by a random angle."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def stripes(rng: Rng, size: int) -> Field:
    """Parallel waves, sharp or soft, bent a little: cloth, wood, corrugated sheet."""
    x, y = _grid(size, rng)
    period = rng.uniform(5, 60)
    bend = rng.uniform(0, 0.4) * period * fractal(rng, size, 2.0)
    wave = np.sin(2 * np.pi * (x + bend) / period + 0.002 * y)
    return normalised(np.tanh(wave * rng.choice([0.5, 2.0, 8.0])))


def weave(rng: Rng, size: int) -> Field:
    """Two crossing wave trains: fabric, tiles, wire mesh."""
    x, y = _grid(size, rng)
    period, other = rng.uniform(6, 50, 2)
    a, b = np.cos(2 * np.pi * x / period), np.cos(2 * np.pi * y / other)
    kind = rng.integers(3)
    if kind == 0:
        return normalised(a * b)
    if kind == 1:  # wires: thin lines where either wave peaks
        return normalised(np.maximum(np.maximum(a, b) - rng.uniform(0.6, 0.95), 0))
    return normalised(np.tanh(6 * a * b))


def bricks(rng: Rng, size: int) -> Field:
    """Rows of blocks with joints, each block of its own shade."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    height = rng.uniform(12, 50)
    width = height * rng.uniform(1, 3)
    row = np.floor(y / height).astype(int)
    x = x + (row % 2) * width / 2
    column = np.floor(x / width).astype(int)
    shade = rng.standard_normal(4096)[(row * 61 + column) % 4096]
    joint = np.minimum((x / width) % 1 * width, (y / height) % 1 * height) < rng.uniform(1, 5)
    return normalised(np.where(joint, rng.choice([-3.0, 3.0]), 0.5 * shade))


def cells(rng: Rng, size: int) -> Field:
    """Distance to one scattered point a square (Worley 1996): pebbles, scales, leather, cracks."""
    side = rng.uniform(12, 60)
    count = int(size / side) + 3
    offsets = rng.uniform(0, 1, (count, count, 2)).astype(np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32) / np.float32(side) + 1
    row, column = y.astype(int), x.astype(int)
    first = np.full((size, size), 9, np.float32)
    second = first.copy()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            offset = offsets[row + dy, column + dx]
            distance = np.hypot(row + dy + offset[..., 0] - y, column + dx + offset[..., 1] - x)
            second = np.minimum(second, np.maximum(first, distance))
            first = np.minimum(first, distance)
    field = second - first if rng.random() < 0.5 else first
    if rng.random() < 0.4:
        field = np.minimum(field, np.quantile(field, 0.2))
    return normalised(field)


def ramp(rng: Rng, size: int) -> Field:
    """A straight or round gradient, as of a wall in soft light or a sky."""
    x, y = _grid(size, rng)
    if rng.random() < 0.5:
        return normalised(x)
    centre = rng.uniform(0, size, 2)
    return normalised(np.hypot(x - centre[0], y - centre[1]))


def surface(rng: Rng, size: int) -> Field:
    """One of the fields above, the smooth ones most often."""
    makers = [
        ramp,
        lambda rng, size: fractal(rng, size, rng.uniform(1.6, 2.4)),
        lambda rng, size: fractal(rng, size, rng.uniform(0.6, 1.5)),
        stripes,
        weave,
        bricks,
        cells,
    ]
    return makers[rng.choice(len(makers), p=[0.3, 0.2, 0.14, 0.1, 0.08, 0.08, 0.1])](rng, size)


def palette(rng: Rng, colours: int = 7) -> Rgb:
    """(colours, 3): related colours as one place has them, mostly muted, of differing brightness."""
    tint = rng.uniform(0.4, 1.0, 3)
    brightness = rng.uniform(5, 250, (colours, 1))
    chroma = rng.normal(0, rng.uniform(2, 60), (colours, 3))
    colour: Rgb = np.clip(brightness * (0.5 + 0.5 * tint) + chroma, 0, 255).astype(np.float32)
    return colour


def material(rng: Rng, size: int, colours: Rgb) -> Rgb:
    """(size, size, 3): a surface between two colours of the palette; usually of low contrast."""
    base, other = colours[rng.integers(len(colours), size=2)]
    contrast = 0.5 * rng.random() ** 2
    if rng.random() < 0.25:
        return np.full((size, size, 3), base, np.float32)
    mixed = base + contrast * surface(rng, size)[..., None] * (other - base)
    rgb: Rgb = np.clip(mixed, 0, 255).astype(np.float32)
    return rgb
