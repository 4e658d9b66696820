"""How results are held to their input, as far as that can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from vidup.config import Settings
from vidup.engines import anchor_rounds
from vidup.picture import footage
from vidup.picture.resample import anchor

Anchor = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""As `vidup.picture.resample.anchor`."""


def anchoring(settings: Settings) -> tuple[Anchor, int]:
    """What holds a picture to its input, and in how many rounds: 0 is none."""
    auto = settings.anchor == "auto"
    return partial(footage.held, step=quantiser(settings)) if auto else anchor, anchor_rounds(settings)


def quantiser(settings: Settings) -> float:
    """The step of the input's quantiser in codes; pictures that come from no file are taken for clean ones."""
    return 0.0 if settings.quantiser == "auto" else settings.quantiser
