"""Flat scenes, painted back to front with Pillow on a canvas twice as large as the picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from vidup.mini.textures import Rgb, Rng, fractal, material, palette

Outline = NDArray[np.floating[Any]]
"""(points, 2), x and y of a closed polygon."""
Paint = tuple[int, int, int]


def paint(colour: NDArray[Any]) -> Paint:
    """A colour as Pillow wants it."""
    red, green, blue = (int(v) for v in np.clip(colour, 0, 255))
    return red, green, blue


def to_image(rgb: Rgb) -> Image.Image:
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))


def blob(rng: Rng, radius: float) -> Outline:
    """A closed outline about the origin: ellipse, rectangle, polygon, star or a smooth lump."""
    kind = rng.integers(5)
    if kind == 0:
        corners = rng.integers(3, 7)
        angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
        distance = rng.uniform(0.5, 1, corners)
    elif kind == 1:
        half = np.arctan(rng.uniform(0.03, 1))
        angle = np.array([half, np.pi - half, np.pi + half, -half])
        distance = np.ones(4)
    else:
        angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        distance = np.ones(48)
        if kind > 2:
            for harmonic in range(2, 7):
                distance += rng.normal(0, 0.5 / harmonic**1.3) * np.sin(harmonic * angle + rng.uniform(0, 7))
    points = radius * distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    points[:, 1] *= rng.uniform(0.3, 1) if kind != 1 else 1
    return turned(points, rng.uniform(0, 2 * np.pi))


def turned(points: Outline, angle: float) -> Outline:
    """Rotate about the origin."""
    cosine, sine = np.cos(angle), np.sin(angle)
    result: Outline = points @ np.array([[cosine, sine], [-sine, cosine]])
    return result


def draw(canvas: Image.Image, outline: Outline, fill: Paint) -> None:
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in outline], fill=fill)


def paste(canvas: Image.Image, outline: Outline, stuff: Image.Image, corner: tuple[int, int], soft: float) -> None:
    """Paste a window of a material into an outline, its edge blurred by `soft` pixels."""
    left, top = np.floor(outline.min(0) - 3 * soft).astype(int)
    right, bottom = np.ceil(outline.max(0) + 3 * soft).astype(int) + 1
    mask = Image.new("L", (int(right - left), int(bottom - top)), 0)
    ImageDraw.Draw(mask).polygon([(float(x - left), float(y - top)) for x, y in outline], fill=255)
    if soft:
        mask = mask.filter(ImageFilter.GaussianBlur(soft))
    window = stuff.crop((corner[0], corner[1], corner[0] + mask.width, corner[1] + mask.height))
    canvas.paste(window, (int(left), int(top)), mask)


def dead_leaves(rng: Rng, size: int) -> Image.Image:
    """Opaque shapes whose radii follow r^-3, each hiding what lies below: the statistics of natural pictures

    (Lee, Mumford and Huang, "Occlusion models for natural images", 2001).
    """
    colours = palette(rng)
    stuffs = [to_image(material(rng, size, colours)) for _ in range(5)]
    canvas = stuffs[0].copy()
    least, most = size * rng.choice([0.006, 0.012, 0.03, 0.06]), size * 0.4
    count = int(rng.integers(60, 500))
    blurred_until = count * rng.uniform(0, 0.9) if rng.random() < 0.4 else 0
    for index in range(count):
        u = rng.random()
        radius = float((u / most**2 + (1 - u) / least**2) ** -0.5)  # inverse of the distribution of r^-3
        centre = rng.uniform(0, size, 2)
        soft = float(rng.choice([0, 0, 0, rng.uniform(1, 8)])) if radius > 12 else 0.0
        stuff = stuffs[rng.integers(len(stuffs))]
        if rng.random() < 0.6:
            flat = Image.new("RGB", stuff.size, paint(colours[rng.integers(len(colours))] + rng.normal(0, 15, 3)))
            reach = int(2.2 * radius + 6 * soft) + 4
            flat = flat.crop((0, 0, min(reach, size), min(reach, size)))
            stuff = Image.blend(stuff.crop((0, 0, *flat.size)), flat, float(rng.uniform(0.4, 1)))
        reach = max(1, stuff.width - int(2 * radius))
        corner = (int(rng.integers(reach)), int(rng.integers(reach))) if stuff.width == size else (0, 0)
        paste(canvas, blob(rng, radius) + centre, stuff, corner, soft)
        if index == int(blurred_until) and index:  # what lies behind is out of focus, as in film
            canvas = canvas.filter(ImageFilter.GaussianBlur(float(rng.uniform(3, 14))))
    return canvas


def strokes(rng: Rng, size: int) -> Image.Image:
    """Grass, fur or hair: many thin curved lines that lie about one direction."""
    colours = palette(rng)
    canvas = to_image(material(rng, size, colours))
    pen = ImageDraw.Draw(canvas)
    direction, spread = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.5)
    length, width = rng.uniform(40, 260), int(rng.integers(1, 7))
    field = fractal(rng, size, 2.0)  # neighbours lie alike
    base, other = colours[rng.integers(len(colours), size=2)]
    for _ in range(int(rng.integers(300, 2500))):
        x, y = rng.uniform(-0.1, 1.1, 2) * size
        tuft = float(field[int(np.clip(y, 0, size - 1)), int(np.clip(x, 0, size - 1))])
        angle = direction + spread * tuft + rng.normal(0, 0.1)
        along = np.linspace(0, 1, 6)
        bent = angle + rng.normal(0, 0.5) * along
        reach = length * rng.uniform(0.4, 1) * along
        points = [(x + r * np.cos(a), y + r * np.sin(a)) for r, a in zip(reach, bent, strict=True)]
        shade = np.clip(0.5 + 0.4 * rng.normal(), 0, 1)
        pen.line(points, paint(base + shade * (other - base)), width=width)
    return canvas


def foliage(rng: Rng, size: int) -> Image.Image:
    """Leaves with veins and blossoms with petals, layer on layer, the rear ones dark or out of focus."""
    colours = palette(rng)
    green = np.array([rng.uniform(0.2, 0.9), 1, rng.uniform(0.1, 0.6)])
    canvas = to_image(material(rng, size, colours) * 0.5)
    scale = rng.uniform(14, 90)
    along = np.linspace(0, 1, 14)
    half = np.sin(np.pi * along**0.8) * rng.uniform(0.12, 0.4)
    leaf = np.concatenate([np.stack([along, half], 1), np.stack([along, -half], 1)[::-1]])
    layers = int(rng.integers(2, 5))
    for layer in range(layers):
        pen = ImageDraw.Draw(canvas)
        for _ in range(int(rng.uniform(6, 20) * (size / scale) ** 1.1 / layers)):
            x, y = rng.uniform(0, size, 2)
            light = rng.uniform(60, 230) * (layer + 1) / layers
            blossom = rng.random() < 0.06
            colour = light * (rng.uniform(0.5, 1.2, 3) if blossom else green * rng.uniform(0.8, 1.2))
            petals = int(rng.integers(5, 14)) if blossom else 1
            start = rng.uniform(0, 2 * np.pi)
            for petal in range(petals):
                angle = start + 2 * np.pi * petal / petals
                shape = turned(leaf * scale * rng.uniform(0.5, 1.3), angle) + np.array([x, y])
                draw(canvas, shape, paint(colour * rng.uniform(0.85, 1.1)))
                if not blossom:  # the shaded half and the vein
                    draw(canvas, np.concatenate([shape[:14], shape[:1]]), paint(colour * 0.8))
                    pen.line(
                        [tuple(shape[0]), tuple(shape[13])],
                        paint(colour * 1.2),
                        width=max(1, int(scale / 30)),
                    )
        if layer < layers - 1 and rng.random() < 0.5:
            canvas = canvas.filter(ImageFilter.GaussianBlur(float(rng.uniform(1, 9))))
    return canvas


def cartoon(rng: Rng, size: int) -> Image.Image:
    """Flat colours in dark outlines, each shape with a shadow side, before a soft background."""
    colours = rng.uniform(0, 255, (7, 3)).astype(np.float32)
    canvas = to_image(material(rng, size, palette(rng)))
    pen = ImageDraw.Draw(canvas)
    line = int(rng.integers(0, 9))
    ink = paint(rng.uniform(0, 50, 3))
    for _ in range(int(rng.integers(8, 45))):
        outline = blob(rng, size * float(rng.uniform(0.02, 0.25))) + rng.uniform(0, size, 2)
        colour = colours[rng.integers(7)]
        draw(canvas, outline, paint(colour))
        centre = outline.mean(0)
        shade = centre + 0.72 * (outline - centre) + 0.06 * np.ptp(outline, axis=0)
        draw(canvas, shade, paint(colour * 0.75))
        if line:
            points = [(float(x), float(y)) for x, y in np.concatenate([outline, outline[:2]])]
            pen.line(points, ink, width=line, joint="curve")
    for _ in range(int(rng.integers(0, 14))):  # loose pen strokes
        angle = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.normal(0, 2), 12)
        path = rng.uniform(0, size, 2) + np.cumsum(np.stack([np.cos(angle), np.sin(angle)], 1), 0) * rng.uniform(3, 40)
        pen.line([(float(x), float(y)) for x, y in path], ink, width=max(1, line), joint="curve")
    return canvas


WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dog",
    "light",
    "water",
    "night",
    "river",
    "house",
    "scene",
    "camera",
    "Score",
    "LEVEL",
    "Time",
    "12:45",
    "3,207",
    "x4",
    "GAME",
    "over",
    "Exit",
    "START",
    "frame",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "was",
    "for",
    "on",
    "are",
    "with",
    "his",
    "they",
    "be",
    "at",
    "one",
    "have",
]


def text(rng: Rng, size: int) -> Image.Image:
    """Lines of words in several sizes on a calm ground, some with an outline as captions have."""
    colours = palette(rng)
    canvas = to_image(material(rng, size, colours)) if rng.random() < 0.6 else dead_leaves(rng, size)
    y = float(rng.uniform(0, 40))
    while y < size:
        height = float(np.exp(rng.uniform(np.log(14), np.log(110))))
        font = ImageFont.load_default(size=height)
        words = " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=int(rng.integers(1, 14))))
        if rng.random() < 0.2:
            words = "".join(chr(c) for c in rng.integers(33, 127, 30))
        dark = rng.random() < 0.5
        fill = paint(rng.uniform(0, 60, 3) if dark else rng.uniform(190, 255, 3))
        edge = paint(rng.uniform(0, 60, 3) if not dark else rng.uniform(190, 255, 3))
        place, stroke = (float(rng.uniform(-20, size / 2)), y), int(rng.choice([0, 0, 3]))
        ImageDraw.Draw(canvas).text(place, words, fill, font, stroke_width=stroke, stroke_fill=edge)
        y += height * float(rng.uniform(1.1, 2.5))
    if rng.random() < 0.3:
        canvas = canvas.rotate(float(rng.normal(0, 15)), Image.Resampling.BICUBIC)
    return canvas


def hud(rng: Rng, size: int, background: Image.Image) -> Image.Image:
    """What a game draws over its picture: bars, numbers, a map, a crosshair, icons in frames."""
    canvas = background
    pen = ImageDraw.Draw(canvas)
    bright = [paint(c) for c in rng.uniform(100, 255, (4, 3))]
    for _ in range(int(rng.integers(1, 5))):
        x, y = (float(v) for v in rng.uniform(0, 0.8, 2) * size)
        width, height = float(rng.uniform(80, 300)), float(rng.uniform(10, 36))
        pen.rectangle([x, y, x + width, y + height], (20, 20, 20), bright[0], width=int(rng.integers(1, 5)))
        pen.rectangle([x + 4, y + 4, x + 4 + (width - 8) * float(rng.random()), y + height - 4], bright[1])
        label = ImageFont.load_default(size=float(rng.uniform(18, 60)))
        pen.text(
            (x, y + height + 4),
            str(rng.integers(10**6)),
            bright[2],
            label,
            stroke_width=2,
            stroke_fill=(0, 0, 0),
        )
    x, y, radius = (float(v) for v in (*rng.uniform(0.1, 0.9, 2) * size, rng.uniform(20, 110)))
    pen.ellipse([x - radius, y - radius, x + radius, y + radius], (30, 40, 30), bright[3], width=4)
    pen.line([x - radius, y, x + radius, y], bright[3], width=int(rng.integers(1, 4)))
    pen.line([x, y - radius, x, y + radius], bright[3], width=int(rng.integers(1, 4)))
    for column in range(int(rng.integers(0, 7))):
        left = 20.0 + 90 * column
        pen.rounded_rectangle(
            [left, size - 100.0, left + 78, size - 22.0], 10, (40, 40, 50), bright[column % 4], width=3
        )
        draw(canvas, blob(rng, 28) + np.array([left + 39, size - 61]), bright[(column + 1) % 4])
    return canvas


def face(rng: Rng, size: int) -> Image.Image:
    """A head in simple light: shaded skin, eyes, brows, nose, mouth, hair of strokes, out-of-focus background."""
    back = dead_leaves(rng, size).filter(ImageFilter.GaussianBlur(float(rng.uniform(2, 20))))
    skin = np.array([1.0, rng.uniform(0.68, 0.85), rng.uniform(0.5, 0.75)]) * rng.uniform(70, 245)
    centre, radius = rng.uniform(0.35, 0.65, 2) * size, size * rng.uniform(0.2, 0.6)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    u, v = (x - centre[0]) / (radius * 0.75), (y - centre[1]) / radius
    depth = np.sqrt(np.clip(1 - u * u - v * v, 0, 1))
    light = rng.normal(0, 1, 3) + np.array([0, 0, 1.2])
    light /= np.linalg.norm(light)
    shade = np.clip(light[0] * u + light[1] * v + light[2] * depth, 0.08, 1) * (1 + 0.015 * fractal(rng, size, 0.8))
    head = Image.fromarray(np.clip(shade[..., None] * skin, 0, 255).astype(np.uint8))
    mask = Image.fromarray(((u * u + v * v < 1) * 255).astype(np.uint8))
    back.paste(head, (0, 0), mask)
    pen = ImageDraw.Draw(back)

    def at(a: float, b: float) -> tuple[float, float]:
        return float(centre[0] + a * radius * 0.75), float(centre[1] + b * radius)

    iris = paint(rng.uniform(20, 140, 3))
    hair = rng.uniform(10, 160) * np.array([1, rng.uniform(0.6, 0.9), rng.uniform(0.3, 0.8)])
    for side in (-0.4, 0.4):
        (left, top), (right, bottom) = at(side - 0.17, -0.18), at(side + 0.17, -0.04)
        pen.ellipse([left, top, right, bottom], paint(skin * 0.3 + 150), paint(skin * 0.35), width=3)
        middle, r = at(side + 0.02, -0.11), (bottom - top) * 0.46
        pen.ellipse([middle[0] - r, middle[1] - r, middle[0] + r, middle[1] + r], iris, (10, 10, 10), width=3)
        pen.ellipse([middle[0] - r / 4, middle[1] - r / 2, middle[0] + r / 6, middle[1] - r / 8], (250, 250, 250))
        pen.line(
            [at(side - 0.22, -0.25), at(side, -0.32), at(side + 0.22, -0.25)],
            paint(hair),
            width=int(radius / 22) + 1,
        )
    pen.line([at(0, -0.05), at(0.09, 0.22), at(-0.06, 0.25)], paint(skin * 0.6), width=int(radius / 50) + 1)
    pen.polygon(
        [at(-0.28, 0.48), at(0, 0.43), at(0.28, 0.48), at(0, 0.58)],
        paint(skin * np.array([0.85, 0.45, 0.45])),
    )
    pen.line([at(-0.28, 0.48), at(0, 0.5), at(0.28, 0.48)], paint(skin * 0.3), width=int(radius / 60) + 1)
    for _ in range(int(rng.integers(100, 900))):
        a = rng.uniform(-1, 1)
        rim = -np.sqrt(1 - a * a)
        points = [
            at(a, rim * rng.uniform(0.75, 1.1)),
            at(a * 1.15, rim * 0.5),
            at(a * 1.25, rim * 0.5 + rng.uniform(0, 0.8)),
        ]
        pen.line(points, paint(hair * rng.uniform(0.5, 1.6)), width=int(rng.integers(1, 4)), joint="curve")
    return back


SCENES: dict[str, Callable[[Rng, int], Image.Image]] = {
    "dead leaves": dead_leaves,
    "strokes": strokes,
    "foliage": foliage,
    "cartoon": cartoon,
    "text": text,
    "face": face,
}
