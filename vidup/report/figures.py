"""The figures that a report shows: what they are called, and how numbers are written."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, isinf


@dataclass(frozen=True)
class Figure:
    """A figure of each frame."""

    name: str
    """Of the field that holds it."""
    title: str
    unit: str
    about: str
    digits: int = 3
    plotted: bool = False
    beside: tuple[tuple[str, str], ...] = ()
    """Fields of what it is measured against, and what these are: the same for all results."""


AGAINST_TRUTH = (
    Figure("psnr", "PSNR", "dB", "higher is nearer to the truth", plotted=True),
    Figure("ssim", "SSIM", "", "1 is the truth", 4, plotted=True),
    Figure("gmsd", "GMSD", "", "0 is the truth", 4),
    Figure("gradient_energy", "sharpness", "of the truth's", "below 1 is softer, above it sharper or noisier",
           plotted=True),
    Figure("warp_error", "flicker (E*warp)", "codes²", "lower is steadier; what is blurred flickers little",
           plotted=True, beside=(("warp_error_bicubic", "bicubic"), ("warp_error_truth", "the truth itself"))),
    Figure("flow_distance", "tOF", "px", "how far the motion is from the truth's"),
    Figure("still_deviation", "deviation where still", "codes", "over time, where the truth stands still"),
)  # fmt: skip
"""Of `compare.FrameFigures`."""

AGAINST_INPUT = (
    Figure("faithfulness", "faithfulness", "dB", "PSNR of the result, made as small as the input, to the input",
           plotted=True),
    Figure("invented", "invented", "codes", "how far the result is from the input enlarged by bicubic", plotted=True),
    Figure("gradient_energy", "sharpness", "of bicubic's", "above 1 is sharper or noisier", plotted=True),
    Figure("warp_error", "flicker (E*warp)", "codes²", "along the input's motion; what is blurred flickers little",
           plotted=True, beside=(("warp_error_bicubic", "bicubic"),)),
)  # fmt: skip
"""Of `faith.FaithFigures`."""


def written(value: float | None, digits: int) -> str:
    """A number for people; ∞ for figures of equal pictures, a dash for one that is not known."""
    if value is None or (not isfinite(value) and not isinf(value)):
        return "–"
    return "∞" if isinf(value) else f"{value:.{digits}f}"
