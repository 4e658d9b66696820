"""How far footage is from a clean picture, place by place, and the anchor that follows it; models read it too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from vidup.picture.flaws import unbanded
from vidup.picture.metrics import luma
from vidup.picture.resample import back_project, resize
from vidup.picture.temporal import mean

WEIGHTS = Path(__file__).with_name("footage.safetensors")
BLUR = 9
CELL = 2
"""Side in pixels of the places for which an estimate is made."""


class Estimator(nn.Module):
    """From luma and the step of an encoder's quantiser to the root mean square of what is wrong, for each 2 x 2 pixels.

    A small stack of convolutions that sees 34 x 34 pixels, enough for two blocks of most codecs, trained by the
    likelihood of the true error under a Gaussian of the answered width (Kendall and Gal 2017; a network that estimates
    noise place by place: Guo et al., CBDNet, 2019).
    """

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        dilations = (1, 1, 2, 2, 1)
        self.first = nn.Conv2d(CELL**2 + 1, channels, 3)
        self.inner = nn.ModuleList([nn.Conv2d(channels, channels, 3, dilation=one) for one in dilations])
        self.last = nn.Conv2d(channels, 1, 1)
        self.border = 1 + sum(dilations)

    def forward(self, luma: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Natural logarithm of the error in codes.

        Args:
            luma: float32 (T, 1, h, w) in [0, 1], sides even.
            steps: (T,) in codes.

        Returns:
            (T, 1, h/2, w/2).
        """
        around = functional.pad(luma, [BLUR // 2] * 4, mode="replicate")
        # What is wrong is in the fine structure; how bright a place is would drown it.
        x = functional.pixel_unshuffle((luma - functional.avg_pool2d(around, BLUR, 1)) * 16, CELL)
        plane = (steps.log1p() / 2).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[-2:])
        x = torch.cat([x, plane], 1)
        x = functional.pad(x, [self.border] * 4, mode="replicate")
        x = functional.relu(self.first(x))
        for layer in self.inner:
            x = functional.relu(layer(x))
        answer: torch.Tensor = self.last(x)
        return answer


@lru_cache(maxsize=4)
def _estimator(device: torch.device) -> Estimator:
    estimator = Estimator()
    estimator.load_state_dict({name: one.float() for name, one in load_file(WEIGHTS).items()})
    if device.type == "cpu":
        estimator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster there
    return estimator.eval().requires_grad_(False).to(device)


def _errors(rgb: torch.Tensor, steps: Sequence[float]) -> torch.Tensor:
    """The estimate for each cell, codes."""
    gray = luma(rgb)[:, None]
    gray = functional.pad(gray, (0, -gray.shape[-1] % CELL, 0, -gray.shape[-2] % CELL), mode="replicate")
    # Filled on the device: to copy them there would wait for it.
    told = torch.cat([rgb.new_full((1,), step, dtype=torch.float32) for step in steps or [0.0] * len(rgb)])
    codes: torch.Tensor = _estimator(rgb.device)(gray, told).exp()
    return codes


def error(rgb: torch.Tensor, steps: Sequence[float]) -> torch.Tensor:
    """Estimate how far pictures are from clean ones, place by place.

    Args:
        rgb: float32 (T, 3, h, w) in [0, 1].
        steps: of the quantiser that each was encoded with, in codes of 0 to 255; 0 where it was not, empty if none was.

    Returns:
        float32 (T, 1, h, w), the root mean square error to be expected at each pixel, in codes of 0 to 255.
    """
    height, width = rgb.shape[-2:]
    return functional.interpolate(_errors(rgb, steps), scale_factor=CELL, mode="nearest")[..., :height, :width]


def distance(rgb: torch.Tensor, steps: Sequence[float]) -> torch.Tensor:
    """Estimate how far pictures are from clean ones: the root mean square of `error`, (T,), in codes."""
    return _errors(rgb, steps).square().mean((1, 2, 3)).sqrt()


WIDE, NARROW = 17, 7
CLEAN = 1.0
"""Codes of error that the estimate finds in clean pictures, too."""


class Known(NamedTuple):
    """What is known of pictures from themselves alone, float32."""

    clean: torch.Tensor
    """The pictures with their bands smoothed, (T, 3, h, w)."""
    noise: torch.Tensor
    """The power to be expected of what is wrong in their luma, (T, 1, h, w), and"""
    colour_noise: torch.Tensor
    """in their colours."""


def know(low_res: torch.Tensor, steps: Sequence[float]) -> Known:
    """Estimate what `held` needs of low-resolution pictures; `steps` as for `error`."""
    noise = (error(low_res, steps).square() - CLEAN**2).clamp_min(0) / 255**2
    colour_noise = torch.minimum(noise, _around(_changes(_parted(low_res)[1]), NARROW))
    return Known(unbanded(low_res), noise, colour_noise)


def held(
    picture: torch.Tensor, low_res: torch.Tensor, rounds: int, steps: Sequence[float], known: Known | None = None
) -> torch.Tensor:
    """Pull a picture back to what is trustworthy in its input: the anchor, with noise and compression left out.

    Where the input differs from the picture, downscaled, by no more than the error that it is expected to have, it says
    nothing: the empirical Wiener filter (Lee 1980), on all but the mean over a neighbourhood, in which noise averages
    out, so that colours and light come from the input everywhere. An input without differences of colour has no noise
    in them, so that a gray one stays gray. Bands of a gradient are smoothed before, or they would come back.

    Args:
        picture: float32 (T, 3, H, W).
        low_res: float32 (T, 3, h, w).
        rounds: of `vidup.picture.resample.anchor`; 0 leaves the picture as it is.
        steps: as for `error`.
        known: of `low_res`, where that was estimated before.
    """
    if rounds == 0:
        return picture
    clean, noise, colour_noise = known or know(low_res, steps)
    wrong = clean - resize(picture, low_res.shape[-2:])
    coarse = _around(wrong, WIDE)
    bright, colours = _parted(wrong - coarse)
    trusted = _weight(noise, bright) * bright + _weight(colour_noise, colours) * colours
    return back_project(picture, coarse + trusted, rounds)


def _parted(rgb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The luma of pictures, (T, 1, h, w), and what their channels have beside it."""
    bright = luma(rgb)[:, None]
    return bright, rgb - bright


def _power(planes: torch.Tensor) -> torch.Tensor:
    """The mean square of a plane, or of red's and blue's, which tell green's: (T, 1, h, w)."""
    return planes[:, ::2].square().mean(1, keepdim=True)


def _changes(planes: torch.Tensor) -> torch.Tensor:
    """The power of the differences from the pixel to the left and from that above; of noise four times its own."""
    return _power(functional.pad(planes.diff(dim=-1), (1, 0))) + _power(
        functional.pad(planes.diff(dim=-2), (0, 0, 1, 0))
    )


def _weight(noise: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    """Share of the planes that is more than noise."""
    return (1 - noise / _around(_power(planes), NARROW).clamp_min(1e-12)).clamp(0, 1)


def _around(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """Means over squares around each pixel, (T, C, h, w)."""
    return mean(pictures.flatten(0, 1), side).view_as(pictures)
