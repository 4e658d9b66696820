"""The anchor of a model's results to their input, as far as the input can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from vidup.config import Settings
from vidup.engines import anchor_rounds
from vidup.picture import footage, resample

Anchor = Callable[[torch.Tensor, torch.Tensor, int, Sequence[float], footage.Known | None], torch.Tensor]
"""A function as `vidup.picture.footage.held`."""


def choose_anchor(settings: Settings) -> tuple[Anchor, int]:
    """The function that anchors pictures, and the number of its rounds; 0 is none."""
    return footage.held if settings.anchor == "auto" else anchor, anchor_rounds(settings)


def anchor(
    picture: torch.Tensor, low_res: torch.Tensor, rounds: int, _: Sequence[float] = (), __: footage.Known | None = None
) -> torch.Tensor:
    """Anchor pictures to all that is in their input, whatever its quantiser was."""
    return resample.anchor(picture, low_res, rounds)


def quantiser(settings: Settings, told: float | None = None) -> float:
    """The step of a picture's quantiser in codes: the settings', else what its file tells, else 0: it is clean."""
    return (told or 0.0) if settings.quantiser == "auto" else settings.quantiser
