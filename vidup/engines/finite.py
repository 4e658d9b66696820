"""Results that are not finite: values beyond float16's 65,504 must not silently become black."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from vidup.engines import Engine, card
from vidup.errors import EngineError

log = logging.getLogger(__name__)


def wider(engine: Engine, model: str) -> Engine:
    """An engine's model in a precision with more range.

    Raises:
        EngineError: there is none, so it did not overflow.
    """
    if engine.wider is None:
        raise failure(model, engine.dtype)
    return engine.wider


def checked(pictures: list[torch.Tensor], engine: Engine, model: str) -> list[torch.Tensor]:
    """Return an engine's results if they are finite.

    Raises:
        EngineError: they are not.
    """
    if not is_finite(pictures):
        raise failure(model, engine.dtype)
    return pictures


def in_wider(engine: Any, offload: bool, bfloat16: bool = True) -> Any:
    """An engine with the model loaded in a precision with more range, with a warning; None where there is none.

    Args:
        bfloat16: whether the model holds in it.
    """
    name = card.wider(engine.dtype, card.card(engine.device))
    if name is None:
        return None
    name = name if bfloat16 else "float32"
    log.warning("%s overflows in the model for some pictures: those are recomputed in %s", _name(engine.dtype), name)
    runtime = replace(engine.runtime, compile="off", offload=offload)
    return type(engine)(replace(engine.settings, dtype=name), runtime, engine.device)


def failure(model: str, dtype: torch.dtype) -> EngineError:
    """The error where a model's results are not finite although it has not overflowed."""
    return EngineError(
        f"model = {model!r}: gives no numbers for a picture, in {_name(dtype)}: its weights are damaged or do not"
        " belong together; fetch them again"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def clamped(pictures: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Clamp results to [0, 1] in place; NaN stays NaN, and in float16 infinities become NaN.

    Args:
        pictures: float32, any shape.
        dtype: the model's precision.
    """
    if dtype == torch.float16:  # with other precisions, infinities never occur without NaN
        pictures.nan_to_num_(math.nan, math.nan, math.nan)
    return pictures.clamp_(0, 1)


def is_finite(pictures: Iterable[torch.Tensor]) -> bool:
    """Whether results are finite; waits for the device.

    Args:
        pictures: float32, nominally in [0, 1], so that their sums do not overflow.
    """
    return bool(torch.stack([one.sum() for one in pictures]).isfinite().all())
