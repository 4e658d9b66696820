"""What both scenes are painted with: noise, textures that stay free of aliasing, and a camera's rays.

Pictures are float32 arrays, `(height, width, channels)`, values in [0, 1], display-referred. The world is in
metres: x to the right, y up, z away from the viewer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Array = np.ndarray
Rgb = tuple[float, float, float]


def fractal(size: int, smoothness: float, rng: np.random.Generator) -> Array:
    """Cloud-like noise `(size, size)` in [0, 1] that tiles, mean one half; more `smoothness`, softer."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    radius = np.hypot(fy, fx)
    radius[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * radius**-smoothness
    noise = np.fft.irfft2(spectrum, s=(size, size))
    return np.clip(0.5 + noise / noise.std() / 6, 0, 1).astype(np.float32)


def cells(size: int, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Tiling irregular stones, `count` x `count`: the distance to the joint (in stones), one value each."""
    points = rng.uniform(0.18, 0.82, (count, count, 2)).astype(np.float32)
    value = rng.random((count, count)).astype(np.float32)
    y, x = np.meshgrid(*[(np.arange(size, dtype=np.float32) + 0.5) * count / size] * 2, indexing="ij")
    row, column = y.astype(int), x.astype(int)
    first, second = np.full_like(x, 9), np.full_like(x, 9)
    stone = np.zeros_like(x)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            r, c = (row + dy) % count, (column + dx) % count
            distance = np.hypot(y - row - dy - points[r, c, 0], x - column - dx - points[r, c, 1])
            nearer = distance < first
            second = np.where(nearer, first, np.minimum(second, distance))
            stone = np.where(nearer, value[r, c], stone)
            first = np.where(nearer, distance, first)
    return second - first, stone


def bricks(shape: tuple[int, int], brick: tuple[float, float], rng: np.random.Generator) -> tuple[Array, Array]:
    """Running bond: 1 on a brick and 0 on mortar with a soft edge, and one random value a brick.

    Args:
        shape: Height and width in texels.
        brick: Width and height of a brick with its joint, in texels.
    """
    y, x = np.meshgrid(np.arange(shape[0]) / brick[1], np.arange(shape[1]) / brick[0], indexing="ij")
    row = y.astype(int)
    x = x + 0.5 * (row % 2)
    value = rng.random((row.max() + 1, int(x.max()) + 1))[row, x.astype(int)]
    edge_x = np.minimum(x % 1, 1 - x % 1) * brick[0]
    edge_y = np.minimum(y % 1, 1 - y % 1) * brick[1]
    return np.clip(np.minimum(edge_x, edge_y) - 0.6, 0, 1).astype(np.float32), value.astype(np.float32)


def mix(a: Array | Rgb, b: Array | Rgb, amount: Array | float) -> Array:
    """Colours: `a` where amount is 0, `b` where it is 1; `amount` has no channel axis."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    return a + (b - a) * np.asarray(amount, np.float32)[..., None]


def smoothstep(low: float, high: float, x: Array) -> Array:
    """0 below `low`, 1 above `high`, smooth between; `low` may be the larger one."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def font(cap_height: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font, its capitals `cap_height` pixels tall."""
    probe = ImageFont.load_default(size=100)
    box = probe.getbbox("H")
    return ImageFont.load_default(size=100 * cap_height / (box[3] - box[1]))


def write(
    draw: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    text: str,
    cap_height: float,
    fill: object,
    anchor: str = "mm",
    bold: float = 0.07,
    edge: object = None,
) -> None:
    """Bold text, its anchor at `xy`; with `edge`, outlined in that colour."""
    face, stroke = font(cap_height), max(1, round(bold * cap_height))
    if edge is not None:
        wide = stroke + max(1, round(0.13 * cap_height))
        draw.text(xy, text, font=face, fill=edge, anchor=anchor, stroke_width=wide)
    draw.text(xy, text, font=face, fill=fill, anchor=anchor, stroke_width=stroke, stroke_fill=fill)


@dataclass
class Texture:
    """A picture with ever smaller versions of itself, so that far away it blurs and does not flicker."""

    levels: list[Array]
    """From full size down, each half the one before; with four channels the colour is premultiplied."""

    scale: float
    """Texels a metre in `levels[0]`."""

    @classmethod
    def of(cls, picture: Array | Image.Image, scale: float) -> Texture:
        """From `(h, w)`, `(h, w, 3)` or `(h, w, 4)` floats in [0, 1], or from a Pillow image."""
        if isinstance(picture, Image.Image):
            picture = np.asarray(picture, np.float32) / 255
        level = np.array(picture if picture.ndim == 3 else picture[..., None], np.float32)
        if level.shape[2] == 4:
            level[..., :3] *= level[..., 3:]
        levels = [level]
        while min(level.shape[:2]) >= 8:
            h, w = (side // 2 * 2 for side in level.shape[:2])
            level = level[:h, :w].reshape(h // 2, 2, w // 2, 2, -1).mean((1, 3))
            levels.append(level)
        return cls(levels, scale)

    def at(self, x: Array, y: Array, texel: Array | float) -> Array:
        """Colours at metres `x` to the right and `y` down from the top left corner; the texture repeats.

        Args:
            texel: How many metres a pixel of the rendered picture spans there: chooses the level.
        """
        full_h, full_w = self.levels[0].shape[:2]
        u, v = x * (self.scale / full_w), y * (self.scale / full_h)
        level = np.clip(np.log2(np.maximum(texel, 1e-6) * self.scale), 0, len(self.levels) - 1)
        level = np.broadcast_to(level, u.shape)
        out = np.zeros((*u.shape, self.levels[0].shape[2]), np.float32)
        if not u.size:
            return out
        for index in range(int(level.min()), int(np.ceil(level.max())) + 1):
            weight = np.clip(1 - np.abs(level - index), 0, 1)
            chosen = weight > 0
            out[chosen] += weight[chosen, None] * _bilinear(self.levels[index], u[chosen], v[chosen])
        return out


def _bilinear(picture: Array, u: Array, v: Array) -> Array:
    h, w, channels = picture.shape
    flat = picture.reshape(-1, channels)
    x, y = (u % 1) * w - 0.5, (v % 1) * h - 0.5
    left, top = np.floor(x), np.floor(y)
    fx, fy = (x - left)[:, None].astype(np.float32), (y - top)[:, None].astype(np.float32)
    c0, r0 = left.astype(np.int32) % w, top.astype(np.int32) % h
    c1, r1 = (c0 + 1) % w, (r0 + 1) % h
    upper = flat[r0 * w + c0] * (1 - fx) + flat[r0 * w + c1] * fx
    lower = flat[r1 * w + c0] * (1 - fx) + flat[r1 * w + c1] * fx
    return upper * (1 - fy) + lower * fy


@dataclass
class Camera:
    """A pinhole camera. A ray's third component in camera space is 1, so a ray's parameter is the depth."""

    position: tuple[float, float, float]
    yaw: float
    """Radians to the right."""
    pitch: float
    """Radians up."""
    size: tuple[int, int]
    """Width and height in pixels."""
    field_of_view: float = 1.05
    """Horizontal, radians."""
    focal: float = field(init=False)
    axes: Array = field(init=False)

    def __post_init__(self) -> None:
        self.focal = self.size[0] / 2 / np.tan(self.field_of_view / 2)
        sy, cy, sp, cp = np.sin(self.yaw), np.cos(self.yaw), np.sin(self.pitch), np.cos(self.pitch)
        right, up, ahead = (cy, 0, -sy), (-sy * sp, cp, -cy * sp), (sy * cp, sp, cy * cp)
        self.axes = np.array([right, up, ahead], np.float32)

    def rays(self) -> Array:
        """Directions `(h, w, 3)`, one a pixel."""
        w, h = self.size
        x = (np.arange(w, dtype=np.float32) + 0.5 - w / 2) / self.focal
        y = (h / 2 - np.arange(h, dtype=np.float32) - 0.5) / self.focal
        return (x[None, :, None] * self.axes[0] + y[:, None, None] * self.axes[1] + self.axes[2]).astype(np.float32)

    def project(self, points: Array) -> tuple[Array, Array, Array]:
        """Columns, rows and depths of world points `(n, 3)`."""
        x, y, depth = ((points - np.array(self.position)) @ self.axes.T).T
        safe = np.maximum(depth, 1e-3)
        return self.size[0] / 2 + x / safe * self.focal, self.size[1] / 2 - y / safe * self.focal, depth
