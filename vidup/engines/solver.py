"""Samplers (DPM++ 2M, UniPC, DDIM): the scalars of every step, then one loop over the model's answers.

The terms are those of Karras et al. 2022 and k-diffusion. A noisy sample of the noise level sigma is
x = signal * (x0 + sigma * noise); `signal` is 1 / sqrt(sigma^2 + 1) for variance-preserving models, else 1.
A network is preconditioned: x0 = skip * x + out * network(scale * x, time). From one noise level to the next
x / signal follows a flow whose exact solution for a constant x0 is after / now * x + (1 - after / now) * x0. A sampler
is a function that returns the weights with which the answers so far replace that x0.

Timesteps and noise levels come from diffusers' schedulers, so they are those of the hub.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from vidup.config import Settings
from vidup.engines import stops
from vidup.errors import EngineError

Levels = tuple[float, float]
"""The noise levels at which a step begins and ends."""

Weights = tuple[float, ...]
"""The weight of a sample x, then those of the answers x0, the newest first."""


@dataclass(frozen=True)
class Step:
    """One evaluation of the model and the update after it."""

    sigma: float
    time: float
    """The network's argument for the noise: its timestep, or log(sigma) / 4."""
    scale: float
    skip: float
    out: float
    predict: Weights
    """The weights of this sample and the answers in the next sample."""
    correct: Weights = ()
    """The weights of the sample before and the answers in this sample, once its answer is known; empty: no change."""


Model = Callable[[torch.Tensor, Step], torch.Tensor]
"""(scale * x, step) -> the network's answer, of the same shape."""


def solve(model: Model, x: torch.Tensor, steps: Sequence[Step]) -> torch.Tensor:
    """Follow the probability flow from noise to a sample.

    Args:
        x: noise of any shape, with the first step's noise level.

    Returns:
        x0, of the same shape and dtype.
    """
    before, answers = x, list[torch.Tensor]()
    for number, step in enumerate(steps):
        stops.step(number, len(steps))
        answer = model(x if step.scale == 1 else step.scale * x, step)
        answers = [step.skip * x + step.out * answer, *answers[:2]]
        if step.correct:
            x = _sum(step.correct, before, answers)
        before, x = x, _sum(step.predict, x, answers)
    return x


def _sum(weights: Weights, x: torch.Tensor, answers: list[torch.Tensor]) -> torch.Tensor:
    x = weights[0] * x + weights[1] * answers[0]
    for weight, answer in zip(weights[2:], answers[1:], strict=False):
        if weight:
            x = x + weight * answer
    return x


def ddim(levels: Sequence[Levels]) -> tuple[Weights, Weights]:
    """The newest answer alone: Song et al. 2020 with eta 0, which in these terms is Euler's method."""
    now, after = levels[-1]
    return (after / now, 1 - after / now), ()


def dpmpp_2m(levels: Sequence[Levels]) -> tuple[Weights, Weights]:
    """The line through the last two answers: DPM-Solver++(2M) of Lu et al. 2022."""
    (keep, gain), _ = ddim(levels)
    lean = 0.0  # how far to go on from the answer before
    if len(levels) > 1 and levels[-1][1] > 0:
        lean = _span(levels[-1]) / _span(levels[-2]) / 2
    return (keep, gain * (1 + lean), -gain * lean), ()


def unipc(levels: Sequence[Levels]) -> tuple[Weights, Weights]:
    """`dpmpp_2m`, and each sample corrected by its own answer: UniPC of order 2 with B2(h), Zhao et al. 2023."""
    predict, _ = dpmpp_2m(levels)
    if len(levels) == 1:
        return predict, ()
    (keep, gain), _ = ddim(levels[:-1])
    if len(levels) == 2:
        return predict, (keep, gain / 2, gain / 2)
    h = _span(levels[-2])
    reach = _span(levels[-3]) / h
    # How far to go along the differences of the older and of the newer answer to the one between: the two conditions
    # of order 2, equations (9) and (10) of the paper.
    first, second = 1 / gain - 1 / h, (1 - 2 * (1 - gain / h) / h) / gain
    older = (first - second) / (1 + reach)
    newer = first - older
    return predict, (keep, gain * newer, gain * (1 - newer + older / reach), -gain * older / reach)


def _span(levels: Levels) -> float:
    """The length of a step in the logarithm of the noise level."""
    return math.log(levels[0] / levels[1])


Sampler = Callable[[Sequence[Levels]], tuple[Weights, Weights]]
"""A function from the levels of the steps so far to the last step's `predict` and `correct`, for signal 1."""

SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "dpmpp_2m": dpmpp_2m, "unipc": unipc}


def variance_preserving(config: Mapping[str, Any], sampler: str, steps: int) -> list[Step]:
    """The steps of a variance-preserving model, from pure noise of variance 1.

    Args:
        config: the checkpoint's scheduler configuration, as diffusers saves it.
        sampler: a name in `SAMPLERS`; ``ddim`` uses the checkpoint's timesteps, the others levels that are uniform in
            their logarithm.
        steps: the number of evaluations of the model.

    Raises:
        EngineError: the checkpoint does not predict epsilon, v or x0, or has fewer timesteps.
    """
    kind = _check(config, steps, ("epsilon", "v_prediction", "sample"))
    if sampler == "ddim":
        times, levels = _own_timesteps(config, steps)
    else:
        names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
        given = {name: config[name] for name in names if name in config}
        scheduler = DPMSolverMultistepScheduler.from_config(given, prediction_type=kind, use_lu_lambdas=True)
        scheduler.set_timesteps(steps)
        times, levels = [int(time) for time in scheduler.timesteps], list(pairwise(scheduler.sigmas.double().tolist()))

    def signal(sigma: float) -> float:
        return 1 / math.sqrt(1 + sigma**2)

    def precondition(sigma: float) -> tuple[float, float, float]:
        shown = signal(sigma)
        known = {"v_prediction": (shown, -sigma * shown), "epsilon": (1 / shown, -sigma), "sample": (0.0, 1.0)}
        return 1.0, *known[kind]  # v as in Salimans and Ho 2022

    return _steps(times, levels, SAMPLERS[sampler], precondition, signal)


def variance_exploding(config: Mapping[str, Any], sampler: str, steps: int) -> tuple[list[Step], float]:
    """The steps of a model that is preconditioned as in Karras et al. 2022, table 1, with data of variance 1.

    Args:
        config, sampler, steps: as for `variance_preserving`; with ``ddim`` the noise levels are the checkpoint's.

    Returns:
        The steps, and the standard deviation of the initial noise.

    Raises:
        EngineError: the scheduler does not expect x0, or has fewer timesteps.
    """
    _check(config, steps, ("sample", "original_sample"))
    scheduler = EulerDiscreteScheduler.from_config(dict(config))
    scheduler.set_timesteps(steps)
    start = float(scheduler.init_noise_sigma)
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    if sampler != "ddim":
        cumulative = scheduler.alphas_cumprod.double().numpy()
        start, smallest = (math.sqrt(1 / cumulative[end] - 1) for end in (-1, 0))
        sigmas = [*np.geomspace(start, smallest, steps).tolist(), 0.0]

    def precondition(sigma: float) -> tuple[float, float, float]:
        shrink = (sigma**2 + 1) ** -0.5
        return shrink, shrink**2, sigma * shrink

    times = [float(torch.tensor(sigma, dtype=torch.float32).log() / 4) for sigma in sigmas[:-1]]
    return _steps(times, list(pairwise(sigmas)), SAMPLERS[sampler], precondition, lambda sigma: 1.0), start


def interval(settings: Settings, steps: int) -> list[bool]:
    """Whether each step is guided: those that begin within the settings' interval.

    Guidance in a limited interval is better and cheaper (Kynkäänniemi et al. 2024).
    """
    return [settings.guidance_start <= index / steps < settings.guidance_end for index in range(steps)]


def _check(config: Mapping[str, Any], steps: int, kinds: tuple[str, ...]) -> str:
    kind = str(config.get("prediction_type", "epsilon"))
    if kind not in kinds:
        raise EngineError(f"the scheduler's prediction_type is {kind!r}: expected {' or '.join(kinds)}")
    known = config.get("num_train_timesteps", 1000)
    if steps > known:
        raise EngineError(f"steps = {steps}: the model knows {known} timesteps; take no more")
    return kind


def _own_timesteps(config: Mapping[str, Any], steps: int) -> tuple[list[int], list[Levels]]:
    """The checkpoint's timesteps, and the levels of DDIM's steps, which may end elsewhere than at the next timestep."""
    # Latents have no range to be clipped to.
    scheduler = DDIMScheduler.from_config({**config, "clip_sample": False, "thresholding": False})
    scheduler.set_timesteps(steps)
    cumulative = scheduler.alphas_cumprod.double().numpy()
    stride = scheduler.config.num_train_timesteps // steps

    def level(time: int) -> float:
        signal = cumulative[time] if time >= 0 else float(scheduler.final_alpha_cumprod)
        return math.sqrt((1 - signal) / signal)

    times = [int(time) for time in scheduler.timesteps]
    return times, [(level(time), level(time - stride)) for time in times]


def _steps(
    times: Sequence[float],
    levels: Sequence[Levels],
    sampler: Sampler,
    precondition: Callable[[float], tuple[float, float, float]],
    signal: Callable[[float], float],
) -> list[Step]:
    """The steps, with weights for samples that are scaled by their `signal`."""

    def scaled(weights: Weights, source: float, target: float) -> Weights:
        keep, *gains = weights
        return (keep * signal(target) / signal(source), *(signal(target) * gain for gain in gains))

    found = []
    for index, (time, (now, after)) in enumerate(zip(times, levels, strict=True)):
        predict, correct = sampler(levels[: index + 1])
        correct = correct and scaled(correct, levels[index - 1][0], now)
        found.append(Step(now, time, *precondition(now), scaled(predict, now, after), correct))
    return found
