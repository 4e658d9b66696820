"""How pictures are rotated, and the size of results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch

from vidup.config import Settings
from vidup.errors import ConfigError


@dataclass(frozen=True)
class Turn:
    """A rotation and reflection of pictures: rows and columns are exchanged first, then mirrored."""

    transpose: bool = False
    left_right: bool = False
    top_bottom: bool = False

    @classmethod
    def of(cls, matrix: tuple[int, ...] | None) -> Turn:
        """The turn for a display matrix (ISO/IEC 14496-12, 6.2.2).

        Raises:
            ConfigError: it is no multiple of a quarter turn.
        """
        if matrix is None:
            return cls()
        a, b, _, c, d = matrix[:5]  # a point goes to (a * x + c * y, b * x + d * y)
        if b == c == 0 and a and d:
            return cls(False, a < 0, d < 0)
        if a == d == 0 and b and c:
            return cls(True, c < 0, b < 0)
        raise ConfigError("bake_rotation: the file is to be turned by less than a quarter; leave bake_rotation out")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the turned picture."""
        return (width, height) if self.transpose else (height, width)

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Turn pictures, (..., height, width)."""
        if self.transpose:
            pictures = pictures.transpose(-1, -2)
        axes = [axis for axis, mirrored in ((-1, self.left_right), (-2, self.top_bottom)) if mirrored]
        return pictures.flip(axes) if axes else pictures


def output_size(settings: Settings, engine_scale: float, height: int, width: int, even: bool) -> tuple[int, int]:
    """(height, width) of the result, in pixels.

    Args:
        even: round to even numbers, which video with subsampled colour needs.

    Raises:
        ConfigError: the result would be smaller than the input.
    """
    sides = (("height", settings.height, height, "lines"), ("width", settings.width, width, "columns"))
    factors = [Fraction(wanted, side) for _, wanted, side, _ in sides if wanted is not None]
    for name, wanted, side, unit in sides:
        if wanted is not None and wanted < side:
            raise ConfigError(f"{name} = {wanted}: the input has {side} {unit}; vidup only enlarges")
    if factors:
        tall, wide = float(height * min(factors)), float(width * min(factors))
    else:
        scale = settings.scale if settings.scale is not None else engine_scale
        tall, wide = height * scale, width * scale
    if even:
        return max(2, 2 * round(tall / 2)), max(2, 2 * round(wide / 2))
    return round(tall), round(wide)


def size_notes(
    settings: Settings, engine_scale: float, before: tuple[int, int], after: tuple[int, int]
) -> Iterator[str]:
    """Notes where a result's size is not the model's, or not the requested one.

    Args:
        before: (height, width) of the input as the model gets it.
        after: (height, width) of the result.
    """
    height, width = before
    made, result = (round(height * engine_scale), round(width * engine_scale)), f"{after[1]}x{after[0]}"
    factor = max(after[0] / height, after[1] / width)
    if factor < engine_scale and max(a - b for a, b in zip(made, after, strict=True)) > 1:
        yield f"the model makes {made[1]}x{made[0]} (x{engine_scale:g}), which is reduced to {result}"
    elif factor > engine_scale and max(b - a for a, b in zip(made, after, strict=True)) > 1:
        yield f"the model makes {made[1]}x{made[0]} (x{engine_scale:g}); from there to {result} is plain resampling"
    requested = {"height": (settings.height, after[0]), "width": (settings.width, after[1])}
    missed = {name: (want, got) for name, (want, got) in requested.items() if want not in (None, got)}
    if missed and all(want is not None and abs(want - got) == 1 for want, got in missed.values()):
        name, (want, _) = next(iter(missed.items()))
        yield f"{name} = {want}: the result is {result}, as the sides of video are even"
    elif missed:
        yield f"the result is {result}: the largest of the input's shape within {settings.width}x{settings.height}"
