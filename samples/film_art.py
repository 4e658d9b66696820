"""The things that stand, sail, walk and fly in the film: drawn with Pillow on boards scaled in metres."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from raster import Array, Texture, bricks, font, fractal, mix, smoothstep, write

WALL_Z, WALL_RIGHT, WALL_LEFT, WALL_TOP = 14.0, 1.2, -8.4, 7.4


class Board:
    """A metre-scaled drawing board: y counts up from its lower edge."""

    def __init__(self, width: float, height: float, scale: float, base: Array | None = None):
        size = (round(width * scale), round(height * scale))
        self.scale, self.height = scale, height
        if base is None:
            self.image = Image.new("RGBA", size, (0, 0, 0, 0))
        else:
            self.image = Image.fromarray((np.clip(base, 0, 1) * 255).astype(np.uint8))  # RGB: paint blends
        self.draw = ImageDraw.Draw(self.image, "RGBA")

    def points(self, *xy: float) -> list[tuple[float, float]]:
        """Pixels of the points x, y, x, y ... in metres."""
        return [(x * self.scale, (self.height - y) * self.scale) for x, y in zip(xy[::2], xy[1::2], strict=True)]

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: tuple[int, ...]) -> None:
        (left, bottom), (right, top) = self.points(x0, y0, x1, y1)
        self.draw.rectangle((left, top, right - 1, bottom - 1), fill=fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: tuple[int, ...]) -> None:
        (left, bottom), (right, top) = self.points(x - rx, y - ry, x + rx, y + ry)
        self.draw.ellipse((left, top, right, bottom), fill=fill)

    def shape(self, fill: tuple[int, ...], *xy: float) -> None:
        self.draw.polygon(self.points(*xy), fill=fill)

    def line(self, fill: tuple[int, ...], width: float, *xy: float) -> None:
        self.draw.line(self.points(*xy), fill=fill, width=max(1, round(width * self.scale)), joint="curve")

    def text(self, x: float, y: float, text: str, cap: float, fill: tuple[int, ...], spacing: float = 0.1) -> None:
        """Letters centred at x, y, `spacing` (in capital heights) between them, as sign painters do."""
        face, gap = font(cap * self.scale), spacing * cap * self.scale
        widths = [face.getlength(letter) + gap for letter in text]
        (left, middle), left_most = self.points(x, y)[0], (sum(widths) - gap) / 2
        for letter, start in zip(text, np.cumsum([0, *widths[:-1]]), strict=True):
            write(self.draw, (left - left_most + start, middle), letter, cap * self.scale, fill, anchor="lm")

    def texture(self) -> Texture:
        return Texture.of(self.image, self.scale)


def window(board: Board, x: float, y: float, w: float, h: float, rng: np.random.Generator) -> None:
    """A sash window with a stone lintel and sill, curtains and the sky in its panes."""
    board.box(x - 0.14, y + h, x + w + 0.14, y + h + 0.24, (203, 190, 166))
    board.box(x + w / 2 - 0.1, y + h, x + w / 2 + 0.1, y + h + 0.3, (222, 210, 186))
    board.box(x - 0.02, y, x + w + 0.02, y + h + 0.02, (60, 40, 34))
    board.box(x + 0.03, y, x + w - 0.03, y + h - 0.04, (238, 234, 222))
    for column in range(2):
        for row in range(3):
            x0, x1 = x + 0.1 + column * (w - 0.14) / 2, x + 0.04 + (column + 1) * (w - 0.14) / 2
            y0, y1 = y + 0.09 + row * (h - 0.18) / 3, y + 0.04 + (row + 1) * (h - 0.18) / 3
            shade = rng.uniform(0.75, 1.15) + 0.25 * row
            board.box(x0, y0, x1, y1, tuple(int(c * shade) for c in (58, 78, 98)))
            board.shape((205, 220, 228, 90), x0, y0, x0 + 0.12, y0, x1, y1, x1 - 0.16, y1)
    for side in (0.1, w - 0.26):
        board.box(x + side, y + 0.1, x + side + 0.16, y + h - 0.12, (226, 206, 180, 150))
    board.box(x - 0.16, y - 0.12, x + w + 0.16, y, (214, 202, 180))
    board.box(x - 0.12, y - 0.24, x + w + 0.12, y - 0.12, (40, 22, 18, 110))


def facade(rng: np.random.Generator) -> Texture:
    """The front of the cafe, with its sign, as wide and high as the wall."""
    scale, width = 128, WALL_RIGHT - WALL_LEFT
    shape = (round(WALL_TOP * scale), round(width * scale))
    brick, value = bricks(shape, (0.30 * scale, 0.105 * scale), rng)
    dirt = np.tile(fractal(512, 1.1, rng), (2, 3))[: shape[0], : shape[1]]
    wall = mix((0.50, 0.20, 0.13), (0.76, 0.40, 0.25), value * 0.75 + dirt * 0.4)
    wall = mix((0.63, 0.56, 0.48), wall, brick) * (0.72 + 0.5 * dirt)[..., None]
    board = Board(width, WALL_TOP, scale, wall)
    for column in range(40):  # roof tiles, row over row
        for row in range(5):
            x, y, tone = column * 0.25 - 0.12 * (row % 2), 7.2 - row * 0.22, rng.integers(0, 36)
            board.oval(x + 0.12, y - 0.06, 0.125, 0.22, (88 + tone, 66 + tone // 2, 62 + tone // 2))
            board.oval(x + 0.10, y - 0.04, 0.075, 0.17, (112 + tone, 84 + tone // 2, 76 + tone // 2))
    board.box(0, 5.98, width, 6.28, (226, 214, 190))  # cornice and its teeth
    for tooth in range(32):
        board.box(tooth * 0.3 + 0.06, 5.84, tooth * 0.3 + 0.2, 5.98, (206, 192, 168))
    board.box(0, 5.74, width, 5.84, (52, 26, 20, 90))
    for x in (0.75, 3.0, 5.25, 7.5):
        window(board, x, 4.25, 1.15, 1.35, rng)
        for _ in range(170):  # the flower box
            colour = [(70, 110, 48), (52, 88, 40), (196, 44, 60), (238, 190, 70)][rng.choice(4, p=(0.4, 0.3, 0.2, 0.1))]
            radius = rng.uniform(0.02, 0.05)
            board.oval(x + rng.uniform(-0.1, 1.25), 4.2 + rng.normal(0, 0.07), radius, radius, colour)
    board.box(0.35, 2.85, 9.25, 3.98, (38, 18, 14, 110))  # the sign, with its shadow
    board.box(0.3, 2.92, 9.3, 4.0, (222, 200, 140))
    board.box(0.37, 2.99, 9.23, 3.93, (22, 66, 84))
    board.text(4.84, 3.42, "HARBOUR CAFE", 0.68, (8, 32, 44))
    board.text(4.80, 3.46, "HARBOUR CAFE", 0.68, (252, 238, 200))
    board.box(0.5, 0.0, 5.35, 2.6, (70, 48, 36))  # the shop front
    for pane in range(3):
        x = 0.65 + pane * 1.56
        board.box(x, 0.62, x + 1.42, 2.5, (46, 52, 56))
        board.box(x, 0.62, x + 1.42, 1.25, (92, 70, 48))
        for _ in range(9):  # cups, loaves and lamps behind the glass
            lamp = rng.uniform(0.05, 0.13)
            board.oval(
                x + rng.uniform(0.15, 1.25),
                rng.uniform(0.75, 1.35),
                lamp,
                lamp * 0.8,
                tuple(rng.integers((150, 100, 50), (255, 210, 140))),
            )
        board.oval(x + 0.7, 1.95, 0.2, 0.14, (255, 222, 150))
        board.shape((220, 228, 230, 46), x + 0.1, 0.62, x + 0.5, 0.62, x + 1.3, 2.5, x + 0.8, 2.5)
    board.box(0.5, 0.0, 5.35, 0.55, (34, 82, 96))
    for stripe in range(20):  # the awning, with scallops
        colour = (236, 226, 206) if stripe % 2 else (186, 48, 44)
        x = 0.4 + stripe * 0.25
        board.shape(colour, x, 2.02, x + 0.25, 2.02, x + 0.25, 2.82, x, 2.82)
        board.oval(x + 0.125, 2.02, 0.125, 0.13, colour)
    board.box(0.5, 1.5, 5.35, 1.88, (10, 8, 10, 80))
    board.box(5.75, 0.0, 6.95, 2.6, (216, 204, 180))  # the door
    board.box(5.87, 0.0, 6.83, 2.15, (30, 84, 70))
    for x in (5.97, 6.41):
        board.box(x, 1.0, x + 0.34, 2.0, (70, 92, 100))
        board.box(x, 0.2, x + 0.34, 0.85, (22, 62, 52))
    board.oval(6.72, 1.02, 0.04, 0.04, (236, 200, 110))
    board.text(6.35, 2.38, "12", 0.24, (60, 40, 30))
    board.box(7.3, 0.95, 9.2, 2.5, (232, 220, 190))  # the menu board
    board.box(7.37, 1.02, 9.13, 2.43, (34, 40, 40))
    for line, (text, cap) in enumerate((("FISH", 0.34), ("& CHIPS", 0.26), ("SOUP  TEA", 0.16))):
        board.text(8.25, 2.13 - line * 0.43, text, cap, (244, 240, 220))
    return board.texture()


def plaster(rng: np.random.Generator) -> Texture:
    """The side of the cafe: old plaster, bricks where it fell off, two shutters."""
    scale, shape = 64, (round(WALL_TOP * 64), 512)
    brick, value = bricks(shape, (0.30 * scale, 0.105 * scale), rng)
    bare = smoothstep(0.60, 0.64, fractal(512, 1.3, rng)[: shape[0]])
    wall = mix((0.86, 0.76, 0.58), (0.72, 0.60, 0.44), fractal(512, 1.0, rng)[: shape[0]])
    wall = mix(wall, mix((0.6, 0.52, 0.44), mix((0.50, 0.22, 0.15), (0.70, 0.38, 0.25), value), brick), bare)
    board = Board(8, WALL_TOP, scale, wall * 0.96)
    for x in (1.2, 4.6):
        for y in (1.0, 4.2):
            board.box(x, y, x + 1.6, y + 1.5, (44, 96, 108))
            for slat in range(14):
                board.box(x + 0.1, y + 0.1 + slat * 0.1, x + 1.5, y + 0.14 + slat * 0.1, (28, 64, 76))
    board.box(0, 5.98, 8, 6.28, (226, 214, 190))
    board.box(0, 6.28, 8, WALL_TOP, (110, 82, 74))
    return board.texture()


def leaves(width: float, height: float, count: int, rng: np.random.Generator, flowers: bool = False) -> Board:
    """A loose mass of leaves, dark behind and bright in front; with `flowers`, blossoms on top."""
    board = Board(width, height, 200)
    for index in range(count):
        x, y = np.clip(rng.normal(0.5, 0.2, 2), 0.05, 0.95) * (width, height)
        light, angle, length = index / count, rng.uniform(0, np.pi), rng.uniform(0.05, 0.11)
        dx, dy = np.cos(angle) * length, np.sin(angle) * length
        colour = mix((0.10, 0.20, 0.07), (0.52, 0.64, 0.22), light * rng.uniform(0.55, 1.0))
        if flowers and light > 0.8 and rng.random() < 0.5:
            colour = np.array([(0.93, 0.36, 0.44), (0.98, 0.80, 0.34), (0.94, 0.92, 0.96)][rng.integers(3)])
            board.oval(x, y, 0.045, 0.045, tuple(int(c * 255) for c in colour))
            board.oval(x, y, 0.015, 0.015, (150, 90, 30))
        else:
            board.shape(
                tuple(int(c * 255) for c in colour),
                x - dx,
                y - dy,
                x - dy * 0.35,
                y + dx * 0.35,
                x + dx,
                y + dy,
                x + dy * 0.35,
                y - dx * 0.35,
            )
    return board


def planter(rng: np.random.Generator) -> Texture:
    """A wooden tub full of flowers, in the foreground."""
    board = Board(1.9, 1.4, 200)
    board.image.alpha_composite(leaves(1.9, 1.0, 1900, rng, flowers=True).image, (0, 0))
    for plank in range(8):
        tone = int(rng.integers(-14, 14))
        board.box(0.25 + plank * 0.175, 0.02, 0.415 + plank * 0.175, 0.52, (128 + tone, 88 + tone, 54 + tone))
    board.box(0.22, 0.42, 1.68, 0.54, (96, 64, 40))
    return board.texture()


def lighthouse() -> Texture:
    """Red and white, on a rock."""
    board = Board(9, 13, 48)
    board.shape((88, 82, 78), 0, 0, 0.6, 1.0, 2.0, 1.3, 2.8, 2.3, 6.0, 2.4, 7.2, 1.4, 8.6, 0.9, 9, 0)
    board.shape((122, 112, 100), 0.9, 0.9, 2.2, 1.2, 2.9, 2.2, 4.4, 2.3, 3.6, 1.2, 2.4, 0.6)
    for band in range(6):
        y, half = 2.2 + band * 1.3, 1.25 - band * 0.09
        for strip in range(24):  # the roundness of the tower
            x0, x1 = 4.5 - half + strip * half / 12, 4.5 - half + (strip + 1) * half / 12 + 0.03
            light = 0.55 + 0.45 * np.sin(np.pi * (strip + 0.5) / 24 * 0.8 + 0.55)
            colour = (196, 52, 44) if band % 2 else (244, 238, 226)
            board.box(x0, y, x1, y + 1.33, tuple(int(c * light) for c in colour))
        board.box(4.3, y + 0.45, 4.6, y + 0.85, (48, 52, 64))
    board.box(3.3, 9.95, 5.7, 10.2, (66, 62, 64))
    board.box(3.9, 10.2, 5.1, 11.2, (255, 232, 160))
    for x in (3.9, 4.25, 4.65, 5.02):
        board.box(x, 10.2, x + 0.09, 11.2, (60, 50, 50))
    board.shape((176, 44, 38), 3.7, 11.2, 4.5, 12.2, 5.3, 11.2)
    return board.texture()


def sailing_boat() -> Texture:
    board = Board(6, 7, 64)
    board.line((96, 70, 50), 0.09, 2.9, 0.7, 2.9, 6.7)
    board.shape((246, 238, 220), 3.0, 1.3, 3.0, 6.5, 5.6, 1.4)
    board.shape((224, 210, 186), 3.0, 1.3, 3.0, 6.5, 4.0, 1.35)
    board.shape((204, 72, 54), 2.8, 1.4, 2.8, 6.1, 0.5, 1.3)
    for y in (2.6, 3.9, 5.1):
        board.line((190, 176, 152), 0.03, 3.0, y, 5.6 - (y - 1.4) * 0.5, y - 0.1)
    board.text(3.75, 2.2, "7", 0.5, (40, 66, 110))
    board.shape((240, 234, 222), 0.2, 1.15, 5.7, 1.15, 5.0, 0.45, 1.0, 0.45)
    board.shape((28, 62, 102), 0.35, 0.95, 5.5, 0.95, 4.8, 0.3, 1.1, 0.3)
    return board.texture()


def railing() -> Texture:
    """Posts and two sagging chains; repeats every two metres."""
    board = Board(2, 1.2, 128)
    for low in (0.45, 0.78):
        for link in range(33):
            x = link / 16
            board.oval(x, low + 0.14 * (x - 1) ** 2, 0.045, 0.028, (52, 54, 60))
    board.box(0.94, 0, 1.06, 1.05, (38, 46, 54))
    board.box(0.94, 0, 0.97, 1.05, (96, 104, 110))
    board.oval(1.0, 1.08, 0.09, 0.09, (46, 54, 62))
    return board.texture()


def walker(time: float) -> Texture:
    """A passer-by in a yellow coat, a step every half second."""
    board, swing = Board(1.4, 2.0, 160), np.sin(2 * np.pi * time)
    for side, tone in ((-1, 0.7), (1, 1.0)):
        knee, foot = 0.7 + 0.16 * swing * side + 0.03, 0.7 + 0.33 * swing * side
        lift = 0.10 * max(0.0, np.cos(2 * np.pi * time) * side)
        cloth = tuple(int(c * tone) for c in (52, 58, 84))
        board.line(cloth, 0.15, 0.7, 0.92, knee, 0.5, foot - 0.03, 0.1 + lift)
        board.oval(foot + 0.04, 0.06 + lift, 0.12, 0.055, (44, 32, 28))
    board.shape((206, 160, 52), 0.5, 0.8, 0.54, 1.45, 0.66, 1.54, 0.82, 1.45, 0.9, 0.8)
    board.line((176, 130, 40), 0.11, 0.68, 1.42, 0.68 - 0.2 * swing, 1.12, 0.72 - 0.3 * swing, 0.88)
    board.oval(0.72, 1.68, 0.12, 0.15, (214, 164, 132))
    board.oval(0.69, 1.76, 0.135, 0.1, (74, 44, 30))
    board.line((214, 56, 60), 0.1, 0.6, 1.52, 0.84, 1.52)
    return board.texture()


def gull(phase: float) -> Texture:
    board, beat = Board(1.6, 1.0, 160), np.sin(phase)
    for side in (-1, 1):
        elbow, tip = (0.8 + 0.30 * side, 0.58 + 0.16 * beat), (0.8 + 0.74 * side, 0.50 + 0.34 * beat)
        board.shape((170, 174, 182), 0.8, 0.44, 0.8, 0.58, elbow[0], elbow[1] + 0.03, *tip, elbow[0], elbow[1] - 0.13)
        board.shape((52, 54, 62), tip[0] - 0.2 * side, tip[1] - 0.02 - 0.06 * beat, *tip, tip[0] - 0.2 * side, tip[1])
    board.oval(0.8, 0.5, 0.1, 0.085, (250, 250, 248))
    board.oval(0.84, 0.55, 0.06, 0.055, (255, 255, 255))
    board.shape((238, 176, 60), 0.89, 0.57, 0.96, 0.54, 0.89, 0.53)
    return board.texture()
