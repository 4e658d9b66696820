"""The things in the game: solids that rays can hit, their textures, the hero, and the world around it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw
from raster import Array, Rgb, Texture, bricks, cells, fractal, mix, smoothstep, write


@dataclass
class Solid:
    """A ball, box or cylinder (upright in its own space), of half-sizes `half`, turned by `turn`."""

    kind: str
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    colour: Rgb = (1.0, 1.0, 1.0)
    skin: str = ""
    turn: tuple[float, float] = (0.0, 0.0)
    """Radians about y, then about x."""
    shine: float = 0.0

    def matrix(self) -> Array:
        """World from local, without the centre."""
        (sy, sx), (cy, cx) = np.sin(self.turn), np.cos(self.turn)
        about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
        return (about_y @ about_x * np.array(self.half)).astype(np.float32)

    def corners(self) -> Array:
        """The eight corners of the box around it, in the world."""
        signs = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1)
        return (self.matrix() @ signs).T + np.array(self.centre)

    def local(self, points: Array, directions: Array) -> tuple[Array, Array]:
        inverse = np.linalg.inv(self.matrix()).T.astype(np.float32)
        return (points - np.array(self.centre, np.float32)) @ inverse, directions @ inverse

    def span(self, origin: Array, ray: Array) -> tuple[Array, Array]:
        """Where local rays enter and leave it; they miss where they leave before they enter."""
        if self.kind == "box":
            return slab(origin, ray, (0, 1, 2))
        axes = [0, 1, 2] if self.kind == "ball" else [0, 2]
        o, d = origin[..., axes], ray[..., axes]
        a, b, c = (np.sum(p, -1) for p in (d * d, o * d, o * o))
        inside = b * b - a * (c - 1)
        root = np.sqrt(np.maximum(inside, 0))
        enter = np.where(inside > 0, (-b - root) / a, np.inf)
        leave = np.where(inside > 0, (-b + root) / a, -np.inf)
        if self.kind == "cylinder":
            low, high = slab(origin, ray, (1,))
            enter, leave = np.maximum(enter, low), np.minimum(leave, high)
        return enter, leave


def slab(origin: Array, ray: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Entry and exit of rays through the planes at -1 and 1 of the given axes."""
    enter, leave = np.float32(-np.inf), np.float32(np.inf)
    for axis in axes:
        inverse = 1 / np.where(np.abs(ray[..., axis]) < 1e-7, np.float32(1e-7), ray[..., axis])
        one, two = (-1 - origin[..., axis]) * inverse, (1 - origin[..., axis]) * inverse
        enter, leave = np.maximum(enter, np.minimum(one, two)), np.minimum(leave, np.maximum(one, two))
    return enter, leave


def crate_picture(rng: np.random.Generator) -> Texture:
    """Planks in a frame with a star on it."""
    image = Image.new("RGB", (256, 256), (150, 98, 48))
    draw = ImageDraw.Draw(image)
    for plank in range(6):
        tone = int(rng.integers(-16, 16))
        draw.rectangle((0, plank * 43, 256, plank * 43 + 39), fill=(186 + tone, 128 + tone, 66 + tone))
    draw.line((20, 236, 236, 20), fill=(126, 78, 36), width=34)
    draw.line((20, 236, 236, 20), fill=(206, 150, 84), width=26)
    draw.rectangle((0, 0, 255, 255), outline=(110, 66, 30), width=34)
    draw.rectangle((4, 4, 251, 251), outline=(216, 160, 92), width=24)
    for x in (16, 240):
        for y in (16, 240):
            draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill=(84, 60, 44))
    star = [(128 + r * np.sin(k * np.pi / 5), 128 - r * np.cos(k * np.pi / 5)) for k, r in enumerate([64, 28] * 5)]
    draw.polygon(star, fill=(250, 222, 90), outline=(96, 58, 24))
    grit = fractal(256, 0.6, rng)[..., None] * 0.4 + 0.8
    return Texture.of(np.asarray(image, np.float32) / 255 * grit, 256)


@lru_cache(maxsize=1)
def props() -> SimpleNamespace:
    """All textures; the same ones in every process."""
    rng = np.random.default_rng(1985)
    rough = fractal(512, 1.0, rng)
    joint, stone = cells(512, 7, rng)
    slab_colour = mix((0.66, 0.60, 0.52), (0.88, 0.82, 0.70), stone * 0.7 + rough * 0.5)
    paving = mix((0.34, 0.34, 0.24), slab_colour, smoothstep(0.03, 0.12, joint))
    paving *= (0.78 + 0.22 * smoothstep(0.05, 0.3, joint) + 0.35 * (rough - 0.5))[..., None]
    edge, value = bricks((512, 512), (64, 32), rng)
    wall = mix((0.46, 0.42, 0.40), mix((0.66, 0.58, 0.52), (0.86, 0.78, 0.68), value), edge)
    blade = fractal(512, 0.45, rng)
    grass = mix((0.20, 0.46, 0.13), (0.56, 0.78, 0.24), np.clip(blade * 2.2 - 0.55, 0, 1))
    flower = fractal(512, 0.8, rng) > 0.90
    grass = np.where(flower[..., None], np.array((0.98, 0.90, 0.55), np.float32), grass)
    foliage = mix((0.10, 0.34, 0.14), (0.50, 0.74, 0.24), smoothstep(0.3, 0.75, fractal(256, 0.8, rng)))
    banner = Image.new("RGB", (512, 140), (150, 34, 52))
    draw = ImageDraw.Draw(banner)
    draw.rectangle((5, 5, 506, 134), outline=(250, 214, 110), width=6)
    write(draw, (256, 70), "GATE 7", 80, (255, 240, 200))
    return SimpleNamespace(
        paving=Texture.of(paving, 512 / 3.2),
        brick=Texture.of(wall * (0.75 + 0.5 * rough)[..., None], 128),
        grass=Texture.of(grass, 512 / 5),
        patches=Texture.of(fractal(256, 1.7, rng), 256 / 30),
        leaf=Texture.of(foliage, 256 / 3),
        crate=crate_picture(rng),
        clouds=Texture.of(fractal(512, 1.7, rng), 1.0),
        ridge=np.stack([fractal(512, 1.9, rng)[0], fractal(512, 1.6, rng)[0]]),
        banner=Texture.of(banner, 128),
    )


def hero(x: float, y: float, z: float, stride: float) -> list[Solid]:
    """A small robot seen from behind, in mid-run; `stride` is the phase of its steps."""
    swing, white, red, dark = np.sin(stride), (0.94, 0.95, 0.98), (0.90, 0.22, 0.20), (0.20, 0.23, 0.32)
    parts = [
        Solid("ball", (x, y + 0.80, z), (0.27, 0.31, 0.23), red, shine=0.5),
        Solid("box", (x, y + 0.84, z - 0.23), (0.17, 0.19, 0.09), (0.20, 0.46, 0.86), shine=0.3),
        Solid("box", (x, y + 0.90, z - 0.325), (0.10, 0.05, 0.01), (0.55, 0.96, 0.98)),
        Solid("ball", (x, y + 1.28, z), (0.27, 0.24, 0.25), white, turn=(0.15 * swing, 0.0), shine=0.7),
        Solid("cylinder", (x, y + 1.26, z), (0.275, 0.05, 0.255), dark, shine=0.4),
        Solid("cylinder", (x, y + 1.58, z), (0.018, 0.12, 0.018), dark),
        Solid("ball", (x, y + 1.73, z), (0.065, 0.065, 0.065), (1.0, 0.80, 0.20), shine=0.8),
    ]
    for side in (-1, 1):
        move = 0.8 * swing * side
        parts += [
            Solid("ball", (x + 0.28 * side, y + 1.28, z), (0.07, 0.10, 0.10), red, shine=0.5),
            Solid(
                "ball",
                (x + 0.34 * side, y + 0.78, z - 0.12 * swing * side),
                (0.085, 0.22, 0.09),
                white,
                turn=(0.0, move),
                shine=0.3,
            ),
            Solid("ball", (x + 0.36 * side, y + 0.60, z - 0.28 * swing * side), (0.10, 0.10, 0.10), dark),
            Solid(
                "ball",
                (x + 0.14 * side, y + 0.36, z + 0.14 * swing * side),
                (0.10, 0.25, 0.11),
                white,
                turn=(0.0, -move),
                shine=0.3,
            ),
            Solid(
                "ball",
                (x + 0.14 * side, y + 0.12 + 0.1 * max(0.0, -swing * side), z + 0.30 * swing * side + 0.05),
                (0.11, 0.10, 0.18),
                red,
                turn=(0.0, -0.5 * move),
                shine=0.4,
            ),
        ]
    return parts


def world(time: float, hero_at: tuple[float, float, float]) -> list[Solid]:
    """All that stands or moves above the ground at `time` seconds."""
    rng = np.random.default_rng(64)
    solids = [Solid("box", (side * 2.25, 0.06, 60), (0.25, 0.14, 66), skin="brick") for side in (-1, 1)]
    for row in range(9):
        z = 3.0 + row * 5.5
        for side in (-1, 1):
            x, tall = side * rng.uniform(5.0, 8.5), rng.uniform(1.3, 2.0)
            solids += [Solid("cylinder", (x, tall / 2, z), (0.22, tall / 2, 0.22), (0.46, 0.31, 0.20))]
            for dx, dy, r in ((0, 0.9, 1.25), (-0.7, 0.3, 0.9), (0.75, 0.35, 0.95)):
                solids += [Solid("ball", (x + dx, tall + dy, z + 0.3 * dx), (r, r * 0.85, r), skin="leaf")]
            if row % 2 == 0:
                solids += [
                    Solid("cylinder", (side * 3.1, 0.9, z + 2), (0.32, 0.9, 0.32), skin="brick"),
                    Solid("ball", (side * 3.1, 2.0, z + 2), (0.3, 0.3, 0.3), (0.98, 0.76, 0.28), shine=0.8),
                ]
    for x, y, z, turn in (
        (-1.35, 0.5, 9.0, 0.2),
        (1.45, 0.5, 13.5, -0.3),
        (1.35, 1.5, 13.6, 0.15),
        (-1.4, 0.5, 21.0, 0.5),
        (1.5, 0.5, 5.2, 0.1),
    ):
        solids += [Solid("box", (x, y, z), (0.5, 0.5, 0.5), skin="crate", turn=(turn, 0.0))]
    for coin in range(11):
        z = 5.0 + coin * 1.6
        x, y = 0.9 * np.sin(z * 0.45), 0.75 + 0.35 * max(0.0, np.sin((z - 6.6) * 0.55))
        if z > hero_at[2] + 0.2:  # the hero has taken the others
            solids += [
                Solid(
                    "cylinder",
                    (x, y, z),
                    (0.28, 0.05, 0.28),
                    (1.0, 0.80, 0.18),
                    turn=(3.0 * time + coin * 0.5, np.pi / 2),
                    shine=1.0,
                )
            ]
    hop = abs(np.sin(2 * np.pi * time * 0.9))
    sx, sz, squash = 0.4 + 0.9 * np.sin(1.5 * time), 17.0 - 1.2 * time, 0.85 + 0.2 * hop
    solids += [
        Solid(
            "ball",
            (sx, 0.42 * squash + 0.7 * hop, sz),
            (0.55, 0.45 * squash, 0.5),
            (0.58, 0.28, 0.82),
            shine=0.8,
        )
    ]
    for side in (-1, 1):
        solids += [
            Solid("ball", (sx + 0.2 * side, 0.58 * squash + 0.7 * hop, sz - 0.4), (0.12, 0.15, 0.1), (1, 1, 1)),
            Solid(
                "ball",
                (sx + 0.2 * side, 0.58 * squash + 0.7 * hop, sz - 0.48),
                (0.06, 0.08, 0.05),
                (0, 0, 0.1),
            ),
            Solid("box", (side * 2.9, 2.2, 26), (0.5, 2.2, 0.5), skin="brick"),
            Solid("box", (side * 2.9, 4.6, 26), (0.65, 0.2, 0.65), (0.86, 0.80, 0.70)),
            Solid("cylinder", (side * 9.0, 6.0, 84), (3.2, 9.0, 3.2), skin="brick"),
            Solid("cylinder", (side * 9.0, 15.4, 84), (3.8, 0.8, 3.8), (0.40, 0.44, 0.66)),
            Solid("box", (side * 9.0, 18.0, 84), (0.1, 2.4, 0.1), (0.4, 0.3, 0.2)),
            Solid("box", (side * 9.0 + 1.3, 19.4, 84), (1.2, 0.7, 0.05), (0.86, 0.18, 0.24)),
        ]
    solids += [
        Solid("box", (0, 3.95, 26), (2.0, 0.547, 0.2), skin="banner"),
        Solid("box", (0, 4.0, 86), (9, 8, 1), skin="brick"),
    ]
    return solids
