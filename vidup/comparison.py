"""Measure how like the truth a video is, frame by frame."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from statistics import fmean
from typing import Any, Generic, TypeVar

import torch

from vidup.engines import flow
from vidup.errors import MediaError
from vidup.frame import Frame, MediaInfo
from vidup.media.decoding import decode
from vidup.media.probing import probe
from vidup.picture import color, flicker
from vidup.picture.metrics import gmsd, gradient_energy, luma, psnr, ssim
from vidup.picture.resample import resize

BORDER = 8
"""Pixels at every side that `compare` leaves out."""
REDUCED = 4
"""The factor by which the truth is downscaled for the input of bicubic, the reference."""
SAME = Fraction(1, 1000)
"""Seconds by which equal times may differ: the tick of mkv and webm."""

_One = TypeVar("_One")
_Figures = TypeVar("_Figures")


@dataclass(frozen=True)
class FrameFigures:
    """The figures of a frame against the truth's frame at the same time, on luma, without the border."""

    time: float
    """Seconds after the first frame."""
    psnr: float
    """dB; infinite where the frames are equal."""
    ssim: float
    gmsd: float
    """Gradient magnitude similarity deviation; 0 is best."""
    gradient_energy: float
    """As a share of the truth's; below 1 is softer, above 1 sharper or noisier."""
    warp_error: float | None = None
    """Flicker: E*warp (Lai et al. 2018) along the truth's motion from the frame before, in squared codes of 255. This
    and all below are None without a frame before, and at a cut."""
    warp_error_bicubic: float | None = None
    """The same of bicubic, enlarged from the truth downscaled by 4, which is blurred and flickers little."""
    warp_error_truth: float | None = None
    """The same of the truth itself: the error of the flow, below which a difference means nothing."""
    flow_distance: float | None = None
    """tOF (Chu et al. 2020): mean distance in pixels between the flows of the video and of the truth."""
    still_deviation: float | None = None
    """Standard deviation over time, in codes of 255, where the truth downscaled by 4 does not change."""


@dataclass(frozen=True)
class Measured(Generic[_Figures]):
    """The measurements of a video, frame by frame."""

    frames: tuple[_Figures, ...]
    missing: int
    """The number of frames of either video without a frame of the other at that time."""

    def mean(self) -> _Figures:
        """The mean of each figure over the frames that have it; None where none has."""
        kind: Any = type(self.frames[0])
        means: dict[str, Any] = {}
        for name in (field.name for field in fields(kind)):
            known = [value for frame in self.frames if (value := getattr(frame, name)) is not None]
            means[name] = fmean(known) if known else None
        figures: _Figures = kind(**means)
        return figures


@dataclass(frozen=True)
class Comparison(Measured[FrameFigures]):
    """The measurements of a video against the truth."""

    change_between_equal: float | None
    """Largest change, in codes of 255, between neighbouring frames where the truth's are equal; None without such."""


def compare(truth: str | os.PathLike[str], other: str | os.PathLike[str]) -> Comparison:
    """Compare the frames of two videos of one size that are shown at the same time.

    Times are counted from each video's first frame, and equal within a millisecond, the tick of mkv and webm.

    Raises:
        MediaError: a file cannot be read, the sizes differ, the frames are too small or none coincide.
    """
    first, second = probe(os.fspath(truth)), probe(os.fspath(other))
    if (first.width, first.height) != (second.width, second.height):
        raise MediaError(
            f"{second.path}: is {second.width}x{second.height}, and {first.path} is {first.width}x{first.height};"
            " videos to compare have one size"
            + ("; with -o report.html the smaller is taken as its input" if enlarges(first, second) else "")
        )
    if min(first.width, first.height) < 2 * BORDER + 11:
        raise MediaError(f"{first.path}: frames of {first.width}x{first.height} are too small to compare")
    figures, changes, missing = [], [], 0
    previous: Frame | None = None
    before: tuple[torch.Tensor, torch.Tensor] | None = None
    for time, one, two in aligned(_timed(first), _timed(second)):
        if one is None or two is None:
            missing += 1
            previous = before = None
            continue
        pair = color.to_rgb(one), color.to_rgb(two)
        if previous is not None and before is not None and one.shows(previous):
            changes.append(255 * float((before[1] - pair[1]).abs().max()))
        figures.append(measure(float(time), *pair, before))
        previous, before = one, pair
    if not figures:
        raise MediaError(f"{second.path}: no frame is shown when one of {first.path} is")
    return Comparison(tuple(figures), missing, max(changes) if changes else None)


def enlarges(first: MediaInfo, second: MediaInfo) -> bool:
    """Whether both sides of a video, which may be turned, are longer in another."""
    (low, high), (other_low, other_high) = (sorted((one.width, one.height)) for one in (first, second))
    return other_low > low and other_high > high


def measure(
    time: float, truth: torch.Tensor, other: torch.Tensor, before: tuple[torch.Tensor, torch.Tensor] | None = None
) -> FrameFigures:
    """Measure one picture against the truth.

    Args:
        time: the frame's time in seconds.
        truth, other: RGB, float32 (3, H, W) on the host, nominally in [0, 1]; sides of ``2 * BORDER + 11`` or more.
        before: the same two pictures of the frame before.
    """
    one, two = (luma(picture.clamp(0, 1)) for picture in (truth, other))
    a, b = (brightness[BORDER:-BORDER, BORDER:-BORDER] for brightness in (one, two))
    sharpness = gradient_energy(a)
    energy = gradient_energy(b) / sharpness if sharpness else 1.0
    alone = FrameFigures(time, psnr(a, b), ssim(a, b), gmsd(a, b), energy)
    return alone if before is None else replace(alone, **_over_time((truth, other), before))


def _over_time(now: tuple[torch.Tensor, torch.Tensor], before: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Any]:
    """The figures that need a frame and the one before: (truth, video) of each, RGB."""
    (truth, other), (truth_before, other_before) = ((luma(x.clamp(0, 1)) for x in pair) for pair in (now, before))
    reduced, reduced_before = _reduced(now[0]), _reduced(before[0])
    bicubic, bicubic_before = (luma(resized(small, truth.shape)) for small in (reduced, reduced_before))
    motion = flow.accurate(truth, truth_before)
    inner = torch.zeros(truth.shape, dtype=torch.bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    where = flicker.followed(motion, flow.accurate(truth_before, truth)) & inner
    distance = None
    if where.float().mean() >= flicker.LEAST:
        distance = flicker.flow_distance(motion[:, inner], flow.accurate(other, other_before)[:, inner])
    still = flicker.unchanged(reduced_before, reduced, (truth.shape[0], truth.shape[1])) & inner
    return {
        "warp_error": flicker.warp_error(other_before, other, motion, where),
        "warp_error_bicubic": flicker.warp_error(bicubic_before, bicubic, motion, where),
        "warp_error_truth": flicker.warp_error(truth_before, truth, motion, where),
        "flow_distance": distance,
        "still_deviation": flicker.deviation(other_before, other, still),
    }


def _reduced(truth: torch.Tensor) -> torch.Tensor:
    """The truth, downscaled and rounded to 8 bits, as an input would be: RGB (3, h, w)."""
    height, width = (max(1, side // REDUCED) for side in truth.shape[-2:])
    return (resized(truth, (height, width)) * 255).round() / 255


def resized(picture: torch.Tensor, size: tuple[int, int] | torch.Size) -> torch.Tensor:
    """A picture, (3, h, w), resized by bicubic to (3, *size), in [0, 1]."""
    return resize(picture[None], size)[0].clamp(0, 1)


def aligned(
    ones: Iterator[tuple[Fraction, _One]], twos: Iterator[tuple[Fraction, _One]]
) -> Iterator[tuple[Fraction, _One | None, _One | None]]:
    """Pairs of the frames of two videos with the same time, in seconds; None where one video has no frame then."""
    one, two = next(ones, None), next(twos, None)
    while one is not None or two is not None:
        apart = one[0] - two[0] if one and two else Fraction(0)
        if two is None or (one and apart < -SAME):
            assert one is not None
            yield one[0], one[1], None
            one = next(ones, None)
        elif one is None or apart > SAME:
            yield two[0], None, two[1]
            two = next(twos, None)
        else:
            yield one[0], one[1], two[1]
            one, two = next(ones, None), next(twos, None)


def _timed(info: MediaInfo) -> Iterator[tuple[Fraction, Frame]]:
    begin: int | None = None
    for frame in decode(info):
        begin = frame.pts if begin is None else begin
        yield (frame.pts - begin) * frame.time_base, frame
