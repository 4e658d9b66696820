"""The anchor of a model's results to their input, as far as the input can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from vidup.config import Settings
from vidup.engines import anchor_rounds
from vidup.picture import footage
from vidup.picture.resample import anchor

Anchor = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""A function as `vidup.picture.resample.anchor`."""


def choose_anchor(settings: Settings) -> tuple[Anchor, int]:
    """The function that anchors pictures, and the number of its rounds; 0 is none."""
    auto = settings.anchor == "auto"
    return partial(footage.held, step=quantiser(settings)) if auto else anchor, anchor_rounds(settings)


def quantiser(settings: Settings) -> float:
    """The step of the input's quantiser in codes; pictures without a file are assumed to be clean."""
    return 0.0 if settings.quantiser == "auto" else settings.quantiser
