"""The solver: per-step scalars prepared once, then one short loop over (model, x).

`ddim` follows Song et al. 2020 (eta 0) on the checkpoint's own timesteps; `dpmpp_2m` is DPM-Solver++(2M) of Lu et al.
2022, uniform in log-SNR. Timesteps and noise levels come from diffusers' schedulers, so they are those of the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from vidup.config import Settings
from vidup.errors import EngineError

Model = Callable[[torch.Tensor, int], torch.Tensor]
"""(noisy latents, timestep) -> prediction, of the same shape."""


@dataclass(frozen=True)
class Step:
    """One evaluation of the model and the update after it.

    With the noisy x = alpha * x0 + sigma * noise, the model's answer gives x0 = x_to_x0 * x + answer_to_x0 * answer,
    and the next x is x_to_x * x + x0_to_x * x0 + last_to_x * (x0 of the step before).
    """

    timestep: int
    x_to_x0: float
    answer_to_x0: float
    x_to_x: float
    x0_to_x: float
    last_to_x: float


def prepare(config: Mapping[str, Any], sampler: str, steps: int) -> list[Step]:
    """The scalars of every step.

    Args:
        config: the checkpoint's scheduler configuration, as diffusers saves it.
        sampler: ``ddim`` or ``dpmpp_2m``.
        steps: evaluations of the model.

    Raises:
        EngineError: the checkpoint predicts something else than epsilon, v or x0, or has fewer timesteps.
    """
    kind = config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction", "sample"):
        raise EngineError(f"the scheduler's prediction_type is {kind!r}: expected epsilon, v_prediction or sample")
    known = config.get("num_train_timesteps", 1000)
    if steps > known:
        raise EngineError(f"steps = {steps}: the model knows {known} timesteps; take no more")
    return _ddim(config, steps, kind) if sampler == "ddim" else _dpmpp_2m(config, steps, kind)


def solve(model: Model, x: torch.Tensor, steps: list[Step]) -> torch.Tensor:
    """Follow the probability flow from noise to a sample.

    Args:
        x: standard normal noise of any shape.

    Returns:
        x0, of the same shape and dtype.
    """
    last = torch.zeros_like(x)
    for step in steps:
        x0 = step.x_to_x0 * x + step.answer_to_x0 * model(x, step.timestep)
        x = step.x_to_x * x + step.x0_to_x * x0
        if step.last_to_x:
            x = x + step.last_to_x * last
        last = x0
    return x


def interval(settings: Settings, steps: int) -> list[bool]:
    """Which steps are guided: those that begin within the settings' shares of all steps.

    Guidance in a limited interval is better as well as cheaper (Kynkäänniemi et al. 2024).
    """
    return [settings.guidance_start <= index / steps < settings.guidance_end for index in range(steps)]


def _ddim(config: Mapping[str, Any], steps: int, kind: str) -> list[Step]:
    if config.get("clip_sample", True) or config.get("thresholding", False):
        config = {**config, "clip_sample": False, "thresholding": False}  # latents have no range to clip to
    scheduler = DDIMScheduler.from_config(dict(config))
    scheduler.set_timesteps(steps)
    cumulative = scheduler.alphas_cumprod.double().numpy()
    times = [int(t) for t in scheduler.timesteps]
    stride = scheduler.config.num_train_timesteps // steps
    prepared = []
    for time in times:
        before = time - stride
        after = cumulative[before] if before >= 0 else float(scheduler.final_alpha_cumprod)
        alpha, sigma = cumulative[time] ** 0.5, (1 - cumulative[time]) ** 0.5
        next_alpha, next_sigma = after**0.5, (1 - after) ** 0.5
        # noise = (x - alpha * x0) / sigma, so x' = next_alpha * x0 + next_sigma * noise
        ratio = next_sigma / sigma
        prepared.append(Step(time, *_to_x0(kind, alpha, sigma), ratio, next_alpha - ratio * alpha, 0.0))
    return prepared


def _dpmpp_2m(config: Mapping[str, Any], steps: int, kind: str) -> list[Step]:
    scheduler = DPMSolverMultistepScheduler.from_config(
        {
            key: config[key]
            for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
            if key in config
        },
        prediction_type=kind,
        use_lu_lambdas=True,
    )
    scheduler.set_timesteps(steps)
    ratios = scheduler.sigmas.double().numpy()  # sigma / alpha of each step and of its end
    alphas = 1 / np.sqrt(1 + ratios**2)
    sigmas = ratios * alphas
    prepared: list[Step] = []
    for index, time in enumerate(int(t) for t in scheduler.timesteps):
        alpha, sigma, alpha_end, sigma_end = alphas[index], sigmas[index], alphas[index + 1], sigmas[index + 1]
        shrink = sigma_end / sigma
        gain = alpha_end - shrink * alpha  # = -alpha_end * expm1(-h), with h the step in log-SNR / 2
        lean = 0.0  # how far the second order leans on the difference to the step before
        if index and sigma_end > 0:
            h = np.log(ratios[index] / ratios[index + 1])
            before = np.log(ratios[index - 1] / ratios[index])
            lean = h / before / 2
        prepared.append(Step(time, *_to_x0(kind, alpha, sigma), shrink, gain * (1 + lean), -gain * lean))
    return prepared


def _to_x0(kind: str, alpha: float, sigma: float) -> tuple[float, float]:
    """x0 from x and the model's answer; v is that of Salimans and Ho 2022."""
    if kind == "v_prediction":
        return alpha, -sigma
    return (1 / alpha, -sigma / alpha) if kind == "epsilon" else (0.0, 1.0)
