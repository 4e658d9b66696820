"""How pictures are turned, and how large they become."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vidup.config import Settings
from vidup.errors import ConfigError

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turn:
    """How pictures are turned: rows and columns exchanged first, then mirrored."""

    transpose: bool = False
    left_right: bool = False
    top_bottom: bool = False

    @classmethod
    def of(cls, matrix: tuple[int, ...] | None) -> Turn:
        """The turn that players make by a display matrix (ISO/IEC 14496-12, 6.2.2).

        Raises:
            ConfigError: it is no quarter turn.
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
    if settings.height is not None:
        if settings.height < height:
            raise ConfigError(f"height = {settings.height}: the input has {height} lines; vidup only enlarges")
        tall, wide = float(settings.height), width * settings.height / height
    else:
        scale = settings.scale if settings.scale is not None else engine_scale
        tall, wide = height * scale, width * scale
    if even:
        return max(2, 2 * round(tall / 2)), max(2, 2 * round(wide / 2))
    return round(tall), round(wide)
