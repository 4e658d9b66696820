"""The list of the measures that a report shows and plots; `vidup.compare` and `faith` take them."""

from __future__ import annotations

from dataclasses import dataclass
from math import isinf, isnan


@dataclass(frozen=True)
class Figure:
    """A figure that is measured for each frame."""

    name: str
    """The name of its field."""
    title: str
    unit: str
    about: str
    digits: int = 3
    plotted: bool = False
    beside: tuple[tuple[str, str], ...] = ()
    """(title, name of the field) of each reference value, which is the same for all results."""


AGAINST_TRUTH = (
    Figure("psnr", "PSNR", "dB", "higher is nearer to the truth", plotted=True),
    Figure("ssim", "SSIM", "", "1 is the truth", 4, plotted=True),
    Figure("gmsd", "GMSD", "", "0 is the truth", 4),
    Figure("gradient_energy", "sharpness", "of the truth's", "below 1 is softer, above it sharper or noisier",
           plotted=True),
    Figure("warp_error", "flicker (E*warp)", "codes²", "lower is steadier; what is blurred flickers little",
           plotted=True, beside=(("bicubic", "warp_error_bicubic"), ("the truth itself", "warp_error_truth"))),
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
           plotted=True, beside=(("bicubic", "warp_error_bicubic"),)),
)  # fmt: skip
"""Of `faith.FaithFigures`."""


def written(value: float | None, digits: int) -> str:
    """A number as text: ∞ where it is infinite, a dash where it is not known."""
    if value is None or isnan(value):
        return "–"
    return "∞" if isinf(value) else f"{value:.{digits}f}"
