"""Clips that are made of what is hard to carry along a motion: pictures as tensors, RGB (3, height, width) in [0, 1].

Each class is what happens to a picture of shapes with sharp edges over a fine texture: it moves, fades, turns.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi, sin

import torch
from torch.nn import functional


def canvas(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Patches of colour with sharp edges, and a texture in each that is fine and strong in some of them."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(channels: int, pitch: int) -> torch.Tensor:
        coarse = torch.randn(1, channels, height // pitch + 4, width // pitch + 4, generator=generator)
        return functional.interpolate(coarse, scale_factor=pitch, mode="bicubic")[0, :, :height, :width]

    patches = (drawn(1, 32) * 2).round() / 2
    tint = drawn(3, 48).sign()
    fine = drawn(1, 3) + 0.7 * drawn(1, 6)
    strength = drawn(1, 40).clamp(0, 1.5)
    picture = 0.5 + 0.2 * patches + 0.06 * tint + 0.11 * strength * fine
    picture[:, :: max(8, height // 12)] *= 0.5  # thin lines, as of a roof
    return picture.clamp(0.02, 0.98)


def view(
    whole: torch.Tensor, size: tuple[int, int], right: float = 0, down: float = 0, turned: float = 0, zoom: float = 1
) -> torch.Tensor:
    """What a camera sees of a picture: its middle moved by pixels, turned by degrees, and made larger."""
    height, width = size
    rows = torch.arange(2 * height) / 2 - height / 2 + 0.25  # two samples a pixel, or edges are jagged
    columns = torch.arange(2 * width) / 2 - width / 2 + 0.25
    y, x = torch.meshgrid(rows / zoom, columns / zoom, indexing="ij")
    angle = turned * pi / 180
    across = (cos(angle) * x - sin(angle) * y + right) * 2 / whole.shape[-1]
    downward = (sin(angle) * x + cos(angle) * y + down) * 2 / whole.shape[-2]
    grid = torch.stack([across, downward], -1)[None]
    seen = functional.grid_sample(whole[None], grid, "bilinear", "reflection", align_corners=False)
    return functional.avg_pool2d(seen, 2)[0].clamp(0, 1)


def pan(whole: torch.Tensor, size: tuple[int, int], count: int) -> list[torch.Tensor]:
    return [view(whole, size, 3.3 * index - 30, 0.8 * index) for index in range(count)]


def blur_ends(whole: torch.Tensor, size: tuple[int, int], count: int) -> list[torch.Tensor]:
    """A fast pan, blurred by its motion, that stops in the middle."""
    step, stop = 14.0, count // 2
    frames = []
    for index in range(count):
        left = min(index, stop) * step
        parts = [view(whole, size, left - step * part / 7 - 90) for part in range(8)] if index < stop else []
        frames.append(torch.stack(parts).mean(0) if parts else view(whole, size, left - 90))
    return frames


def flash(whole: torch.Tensor, size: tuple[int, int], count: int) -> list[torch.Tensor]:
    """One frame of light in the middle of a pan, and one that is half of it."""
    frames = pan(whole, size, count)
    frames[count // 2] = 0.95 + 0.05 * frames[count // 2]
    frames[count // 2 + 1] = 0.4 + 0.6 * frames[count // 2 + 1]
    return frames


def fade(whole: torch.Tensor, size: tuple[int, int], count: int) -> list[torch.Tensor]:
    """A pan that goes nearly to black."""
    return [frame * (1 - 0.95 * index / (count - 1)) for index, frame in enumerate(pan(whole, size, count))]


def dissolve(whole: torch.Tensor, size: tuple[int, int], count: int) -> list[torch.Tensor]:
    """A pan that goes over into another picture, which moves otherwise."""
    other = whole.flip(-1, -2)
    return [
        torch.lerp(frame, view(other, size, 0, -2.2 * index), min(1, max(0, (index - 2) / (count - 5))))
        for index, frame in enumerate(pan(whole, size, count))
    ]


def rotation(whole: torch.Tensor, size: tuple[int, int], count: int) -> list[torch.Tensor]:
    return [view(whole, size, turned=2.5 * index) for index in range(count)]


def zoom(whole: torch.Tensor, size: tuple[int, int], count: int) -> list[torch.Tensor]:
    return [view(whole, size, zoom=1.03**index) for index in range(count)]


def hud(whole: torch.Tensor, size: tuple[int, int], count: int) -> list[torch.Tensor]:
    """A frame of bars and marks that stands still over a pan, as a game has it; one number of it changes."""
    height, width = size
    frames = pan(whole, size, count)
    for index, frame in enumerate(frames):
        frame[:, : height // 8, : width // 3] = 0.1
        frame[:, height // 32 : height // 32 + 6, 8 : width // 3 - 8 - 2 * index] = 0.9
        frame[:, height // 12 : height // 12 + 4, 8 : width // 4 : 5] = 0.8
        frame[:, -height // 6 : -height // 6 + 3, width // 2 - 20 : width // 2 + 20] = 0.95
        frame[:, -height // 6 - 18 : -height // 6 + 21, width // 2 : width // 2 + 3] = 0.95
        if index % 4 > 1:
            frame[:, -24:-8, -40:-24] = 0.05
    return frames


def uncut(whole: torch.Tensor, size: tuple[int, int], count: int) -> list[torch.Tensor]:
    """A camera that walks to and fro and round about, slowly: for hundreds of frames without a cut."""
    return [
        view(
            whole, size, 40 * sin(index / 23), 25 * sin(index / 17), 6 * sin(index / 31), 1.15 + 0.15 * sin(index / 41)
        )
        for index in range(count)
    ]


CLASSES: dict[str, Callable[[torch.Tensor, tuple[int, int], int], list[torch.Tensor]]] = {
    "pan": pan,
    "blur ends": blur_ends,
    "flash": flash,
    "fade": fade,
    "dissolve": dissolve,
    "rotation": rotation,
    "zoom": zoom,
    "HUD": hud,
    "uncut": uncut,
}


def clip(name: str, size: tuple[int, int], count: int) -> list[torch.Tensor]:
    """A clip of one of the `CLASSES`, frames of (height, width)."""
    height, width = size
    return CLASSES[name](canvas(height + height // 2, width + width // 2 + 60), size, count)
