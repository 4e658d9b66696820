"""The baseline: nearest, bilinear, bicubic and lanczos resampling, at any scale."""

from __future__ import annotations

import logging

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from vidup.config import Runtime, Settings
from vidup.engines import Choice, Engine, Needs, Place
from vidup.engines.unused import warn_unused

log = logging.getLogger(__name__)


def load(settings: Settings, runtime: Runtime, device: torch.device) -> Interpolation:
    """Create it; warns of settings without effect."""
    warn_unused(
        settings, settings.model, (), ("prompt", "negative_prompt", "revision", "vae", "tokenizer", "vae_attention")
    )
    for name in ("compile", "offload"):
        if getattr(runtime, name) in ("on", True):
            log.warning("%s: has no effect with %s", name, settings.model)
    return Interpolation(settings.model, scale(settings), device)


def identity(settings: Settings, half: bool) -> str:
    """Its name."""
    return settings.model


def scale(settings: Settings) -> float:
    """The requested scale."""
    return settings.scale or 4


def foresee(settings: Settings, runtime: Runtime, device: torch.device, pixels: int) -> Needs:
    """Its needs, which are known without loading anything."""
    return Interpolation(settings.model, scale(settings), device).needs


class Interpolation(Engine):
    """Resampling without a model. Values beyond [0, 1], and overshoot, are clipped only by the last conversion."""

    multiple = 1
    invents = False
    dtype = torch.float32

    def __init__(self, method: str, scale: float, device: torch.device) -> None:
        self.method, self.scale, self.device = method, scale, device
        self.identity = method

    @property
    def needs(self) -> Needs:
        # A clip and its enlargement as float32 RGB, and a copy of each.
        return Needs(self.device, frame=2 * 12 * (1 + self.scale**2), batch=4)

    def lend(self, settings: Settings) -> Interpolation:
        return Interpolation(self.method, scale(settings), self.device)

    def __call__(self, clip: torch.Tensor, place: Place, choice: Choice) -> torch.Tensor:
        size = (round(clip.shape[-2] * self.scale), round(clip.shape[-1] * self.scale))
        if self.method == "nearest":
            return functional.interpolate(clip, size, mode="nearest-exact")
        if self.method == "lanczos":
            return _lanczos(clip, size)
        return functional.interpolate(clip, size, mode=self.method, antialias=True)


def _lanczos(clip: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Lanczos resampling by Pillow, as torch has none, a channel at a time in float32."""
    planes = clip.cpu().numpy().reshape(-1, *clip.shape[-2:])
    height, width = size
    enlarged = [
        np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS)) for plane in planes
    ]
    return torch.from_numpy(np.stack(enlarged)).reshape(*clip.shape[:2], height, width).to(clip.device)
