"""The baseline: nearest, bilinear, bicubic, lanczos, at any scale."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from vidup.config import Runtime
from vidup.engines import Choice, Place
from vidup.engines.memory import memory_limit


class Interpolation:
    """Resampling without a model. Values beyond [0, 1] are kept, and overshoot is left to the last conversion."""

    multiple = 1
    invents = False
    compiles = False

    def __init__(self, method: str, scale: float, runtime: Runtime, device: torch.device) -> None:
        self.method, self.scale, self.runtime, self.device = method, scale, runtime, device
        self.identity = method
        self.adopted: Choice | None = None

    @property
    def clip_length(self) -> int:
        return self.runtime.batch or 4 if self.adopted is None else self.adopted.batch

    def choose(self, height: int, width: int) -> Choice:
        """As adopted, else the batch given, else as many pictures as the memory holds."""
        choice = self.adopted or Choice(self.clip_length, 0)
        if self.adopted is None and not self.runtime.batch:
            limit = memory_limit(self.runtime, self.device)
            while choice.batch > 1 and self.memory(choice, height, width) > limit:
                choice = Choice(choice.batch // 2, 0)
        return choice

    def adopt(self, choice: Choice | None) -> None:
        self.adopted = choice

    def release(self) -> None:
        pass

    def smaller(self, choice: Choice, height: int, width: int) -> Choice | None:
        return Choice(choice.batch // 2, 0) if choice.batch > 1 else None

    def memory(self, choice: Choice, height: int, width: int) -> int:
        """A clip and its enlargement as float32 RGB, and one of each on the way."""
        return round(choice.batch * 2 * 12 * height * width * (1 + self.scale**2))

    def __call__(self, clip: torch.Tensor, place: Place) -> torch.Tensor:
        size = (round(clip.shape[-2] * self.scale), round(clip.shape[-1] * self.scale))
        if self.method == "nearest":
            return functional.interpolate(clip, size, mode="nearest-exact")
        if self.method == "lanczos":
            return _lanczos(clip, size)
        return functional.interpolate(clip, size, mode=self.method, antialias=True)


def _lanczos(clip: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Pillow's kernel of three lobes, which torch lacks, a channel at a time in float32."""
    planes = clip.cpu().numpy().reshape(-1, *clip.shape[-2:])
    height, width = size
    enlarged = [
        np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS)) for plane in planes
    ]
    return torch.from_numpy(np.stack(enlarged)).reshape(*clip.shape[:2], height, width).to(clip.device)
