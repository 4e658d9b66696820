"""Measure how faithful a result is to its input, frame by frame, without the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vidup.comparison import Measured, aligned, resized
from vidup.engines import flow
from vidup.errors import MediaError, Stopped
from vidup.picture import flicker
from vidup.picture.metrics import gradient_energy, luma, psnr
from vidup.picture.resample import resize
from vidup.picture.temporal import resize_flow
from vidup.report.films import Film


@dataclass(frozen=True)
class FaithFigures:
    """The figures of one frame of a result against the input's at the same time, on luma."""

    time: float
    """Seconds after the first frame."""
    faithfulness: float
    """PSNR in dB of the downscaled result to the input; infinite where they are equal."""
    invented: float
    """Root mean square difference of the result from the input enlarged by bicubic, in codes of 255."""
    gradient_energy: float
    """As a share of bicubic's; above 1 is sharper or noisier."""
    warp_error: float | None = None
    """Flicker: E*warp along the input's motion from the frame before, in squared codes of 255; None without a frame
    before, and at a cut."""
    warp_error_bicubic: float | None = None
    """The same of bicubic, which is blurred and flickers little."""


def against_input(source: Film, result: Film, stop: Callable[[], bool] = lambda: False) -> Measured[FaithFigures]:
    """Measure the frames of a result against those of its input that are shown at the same time.

    Raises MediaError, and Stopped once `stop` returns true.
    """
    figures, missing = [], 0
    before: tuple[torch.Tensor, torch.Tensor] | None = None
    for time, small, large in aligned(source.pictures(), result.pictures()):
        if stop():
            raise Stopped
        if small is None or large is None:
            missing, before = missing + 1, None
            continue
        figures.append(measure(float(time), small, large, before))
        before = small, large
    if not figures:
        raise MediaError(f"{result.info.path}: no frame is shown when one of {source.info.path} is")
    return Measured(tuple(figures), missing)


def measure(
    time: float, small: torch.Tensor, large: torch.Tensor, before: tuple[torch.Tensor, torch.Tensor] | None = None
) -> FaithFigures:
    """Measure one picture against its input.

    Args:
        time: the frame's time in seconds.
        small, large: the input and the result: RGB, float32 (3, h, w) and (3, H, W) on the host, in [0, 1].
        before: the same two pictures of the frame before.
    """
    own, plain = luma(large), luma(resized(small, large.shape[-2:]))
    sharpness = gradient_energy(plain)
    return FaithFigures(
        time,
        psnr(luma(small), luma(resized(large, small.shape[-2:]))),
        255 * float((own - plain).double().square().mean().sqrt()),
        gradient_energy(own) / sharpness if sharpness else 1.0,
        *(_flicker(small, large, plain, before) if before is not None else (None, None)),
    )


def _flicker(
    small: torch.Tensor, large: torch.Tensor, plain: torch.Tensor, before: tuple[torch.Tensor, torch.Tensor]
) -> tuple[float | None, float | None]:
    """E*warp of the result and of bicubic, along the motion of the small pictures."""
    size = (large.shape[-2], large.shape[-1])
    now, then = luma(small), luma(before[0])
    there = flow.accurate(now, then)
    followed = flicker.followed(there, flow.accurate(then, now))
    where = resize(followed[None, None].float(), size)[0, 0] > 0.99  # without the pixels next to an unreliable one
    motion = resize_flow(there, size)
    return (
        flicker.warp_error(luma(before[1]), luma(large), motion, where),
        flicker.warp_error(luma(resized(before[0], size)), plain, motion, where),
    )
