"""How like the truth a video is, frame by frame."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from fractions import Fraction
from statistics import fmean

import numpy as np

from vidup.errors import MediaError
from vidup.frame import Frame, MediaInfo
from vidup.media.decoding import decode
from vidup.media.probing import probe
from vidup.picture import color
from vidup.picture.metrics import gmsd, gradient_energy, luma, psnr, ssim

BORDER = 8
"""Pixels at every side that `compare` leaves out."""
_SAME = Fraction(1, 1000)  # seconds


@dataclass(frozen=True)
class FrameFigures:
    """One frame of a video against the truth's frame at the same time; on luma, without the border."""

    time: float
    """Seconds after the first frame."""
    psnr: float
    """dB; infinite where the frames are equal."""
    ssim: float
    gmsd: float
    """Gradient magnitude similarity deviation; 0 is best."""
    gradient_energy: float
    """As a share of the truth's; below 1 is softer, above 1 sharper or noisier."""


@dataclass(frozen=True)
class Comparison:
    """A video against the truth."""

    frames: tuple[FrameFigures, ...]
    missing: int
    """Frames of either video for which the other has none at that time."""
    change_between_equal: float | None
    """Largest change, in 8-bit steps, between neighbouring frames where the truth's are equal; None without such."""

    def mean(self) -> FrameFigures:
        """The mean of each figure over the frames."""
        names = [field.name for field in fields(FrameFigures)]
        return FrameFigures(**{name: fmean(getattr(frame, name) for frame in self.frames) for name in names})


def compare(truth: str | os.PathLike[str], other: str | os.PathLike[str]) -> Comparison:
    """Compare two videos of one size, frame by frame, those together that are shown at the same time.

    Times count from each video's first frame, and are the same within a millisecond, the tick of mkv and webm.

    Raises:
        MediaError: a file cannot be read, the sizes differ, the frames are too small or none coincide.
    """
    first, second = probe(os.fspath(truth)), probe(os.fspath(other))
    if (first.width, first.height) != (second.width, second.height):
        raise MediaError(
            f"{second.path}: is {second.width}x{second.height}, and {first.path} is {first.width}x{first.height};"
            " videos to compare have one size"
        )
    if min(first.width, first.height) < 2 * BORDER + 11:
        raise MediaError(f"{first.path}: frames of {first.width}x{first.height} are too small to compare")
    figures, changes, missing = [], [], 0
    previous: tuple[Frame, Frame] | None = None
    for time, one, two in _aligned(first, second):
        if one is None or two is None:
            missing += 1
            previous = None
            continue
        if previous is not None and all(map(np.array_equal, previous[0].planes, one.planes)):
            changes.append(255 * float((color.to_rgb(previous[1]) - color.to_rgb(two)).abs().max()))
        previous = one, two
        figures.append(_figures(float(time), one, two))
    if not figures:
        raise MediaError(f"{second.path}: no frame is shown when one of {first.path} is")
    return Comparison(tuple(figures), missing, max(changes) if changes else None)


def _figures(time: float, one: Frame, two: Frame) -> FrameFigures:
    a, b = (luma(color.to_rgb(frame).clamp(0, 1))[BORDER:-BORDER, BORDER:-BORDER] for frame in (one, two))
    sharpness = gradient_energy(a)
    energy = gradient_energy(b) / sharpness if sharpness else 1.0
    return FrameFigures(time, psnr(a, b), ssim(a, b), gmsd(a, b), energy)


def _aligned(first: MediaInfo, second: MediaInfo) -> Iterator[tuple[Fraction, Frame | None, Frame | None]]:
    """Frames of both videos in the order of their times; None where one has no frame."""
    ones, twos = _timed(first), _timed(second)
    one, two = next(ones, None), next(twos, None)
    while one is not None or two is not None:
        apart = one[0] - two[0] if one and two else Fraction(0)
        if two is None or (one and apart < -_SAME):
            assert one is not None
            yield one[0], one[1], None
            one = next(ones, None)
        elif one is None or apart > _SAME:
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
