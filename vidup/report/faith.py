"""How faithful a result is to the input that it was made of, frame by frame, where nobody has the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vidup.compare import aligned, mean
from vidup.engines import flow
from vidup.errors import MediaError, Stopped
from vidup.picture import flicker
from vidup.picture.metrics import gradient_energy, luma, psnr
from vidup.picture.resample import resize
from vidup.picture.temporal import resize_flow
from vidup.report.films import Film


@dataclass(frozen=True)
class FaithFigures:
    """One frame of a result against the input's at the same time; on luma."""

    time: float
    """Seconds after the first frame."""
    faithfulness: float
    """PSNR in dB of the result, made as small as the input, to the input; infinite where they are equal."""
    invented: float
    """Root mean square, in codes of 255, by which the result differs from the input enlarged by bicubic."""
    gradient_energy: float
    """As a share of bicubic's; above 1 is sharper or noisier."""
    warp_error: float | None = None
    """E*warp along the input's motion from the frame before, in squared codes of 255: flicker. None, as below, where
    the frame before is not there, and at a cut."""
    warp_error_bicubic: float | None = None
    """That of bicubic: what is blurred flickers little."""


@dataclass(frozen=True)
class Faithfulness:
    """A result against its input."""

    frames: tuple[FaithFigures, ...]
    missing: int
    """Frames of either video for which the other has none at that time."""

    def mean(self) -> FaithFigures:
        """The mean of each figure over the frames that have it."""
        return mean(self.frames)


def against_input(source: Film, result: Film, stop: Callable[[], bool] = lambda: False) -> Faithfulness:
    """Measure a result against its input, those frames together that are shown at the same time.

    Raises:
        MediaError: a file cannot be read, or no frames coincide.
        Stopped: `stop` was true before the end.
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
    return Faithfulness(tuple(figures), missing)


def measure(
    time: float, small: torch.Tensor, large: torch.Tensor, before: tuple[torch.Tensor, torch.Tensor] | None = None
) -> FaithFigures:
    """Measure one picture against what it was made of.

    Args:
        time: of the frame in seconds, for the result.
        small, large: the input and the result: RGB, float32 (3, h, w) and (3, H, W) on the host, in [0, 1].
        before: the same two of the frame before.
    """
    own, plain = luma(large), luma(enlarged(small, large))
    sharpness = gradient_energy(plain)
    return FaithFigures(
        time,
        psnr(luma(small), luma(resize(large[None], small.shape[-2:])[0].clamp(0, 1))),
        255 * float((own - plain).double().square().mean().sqrt()),
        gradient_energy(own) / sharpness if sharpness else 1.0,
        *(_flicker(small, large, plain, before) if before is not None else (None, None)),
    )


def enlarged(small: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
    """The input, (3, h, w), by bicubic as large as the result, (3, H, W)."""
    return resize(small[None], large.shape[-2:])[0].clamp(0, 1)


def _flicker(
    small: torch.Tensor, large: torch.Tensor, plain: torch.Tensor, before: tuple[torch.Tensor, torch.Tensor]
) -> tuple[float | None, float | None]:
    """E*warp of the result and of bicubic, along the motion of the small pictures."""
    size = (large.shape[-2], large.shape[-1])
    now, then = luma(small), luma(before[0])
    there = flow.accurate(now, then)
    followed = flicker.followed(there, flow.accurate(then, now))
    where = resize(followed[None, None].float(), size)[0, 0] > 0.99  # nothing beside what is not followed
    motion = resize_flow(there, size)
    return (
        flicker.warp_error(luma(before[1]), luma(large), motion, where),
        flicker.warp_error(luma(enlarged(before[0], large)), plain, motion, where),
    )
