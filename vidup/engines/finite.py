"""Results that are no numbers: float16 ends at 65,504, and what is beyond must not become black in silence."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from vidup.errors import EngineError

if TYPE_CHECKING:
    from vidup.engines import Engine

log = logging.getLogger(__name__)


def wider(engine: Engine, model: str) -> Engine:
    """An engine's model in a precision that holds what overflowed.

    Raises:
        EngineError: its own has that range.
    """
    if engine.wider is None:
        raise failure(model, engine.dtype)
    return engine.wider


def checked(pictures: list[torch.Tensor], engine: Engine, model: str) -> list[torch.Tensor]:
    """An engine's results, which have to be numbers.

    Raises:
        EngineError: they are none.
    """
    if not is_finite(pictures):
        raise failure(model, engine.dtype)
    return pictures


def tell(dtype: torch.dtype, name: str) -> None:
    """Say that a model is loaded for what overflows in its own precision."""
    log.warning("%s does not hold what the model computes for some pictures: those are made in %s", _name(dtype), name)


def failure(model: str, dtype: torch.dtype) -> EngineError:
    """That a model's results are no numbers where it is not for want of range."""
    return EngineError(
        f"model = {model!r}: gives no numbers for a picture, in {_name(dtype)}: its weights are damaged or do not"
        " belong together; fetch them again"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def clamped(pictures: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Results in [0, 1], changed in place; what is NaN stays so, and in float16 what is infinite becomes NaN.

    Args:
        pictures: float32, any shape.
        dtype: of the model.
    """
    if dtype == torch.float16:  # elsewhere nothing is infinite beside which there is no NaN
        pictures.nan_to_num_(math.nan, math.nan, math.nan)
    return pictures.clamp_(0, 1)


def is_finite(pictures: Iterable[torch.Tensor]) -> bool:
    """Whether results are numbers; waits for them.

    Args:
        pictures: float32, nominally in [0, 1], so that their sums do not overflow.
    """
    return bool(torch.stack([one.sum() for one in pictures]).isfinite().all())
