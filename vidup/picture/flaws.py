"""What footage is like, in figures: noise and grain, blocks of an encoder, bands in smooth parts. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

import torch
from torch.nn import functional

from vidup.picture.metrics import luma

SIDE = 8
"""Of the squares that noise is measured in, in pixels."""
_TILE, _REACH = 32, 6
"""Side of the tiles whose motion is looked for, and how far, in pixels."""
_ENOUGH = 256, 384
"""Lines and columns of the middle of a frame from which noise is told."""
_LEAST = 24
"""Squares from which noise is told."""
_SPREAD = (2 / (SIDE**2 - 6)) ** 0.5
"""Of the variance in a square of white noise, against its mean: 6 numbers are spent on how the light falls there."""
_COARSE = 0.2
"""Correlation of neighbours from which noise is wider than a pixel, as film grain is."""
_PERIODS = range(4, 33)
_SURE = 6.0
"""Standard errors by which the edges of blocks must stand out of all others."""
_BAND = 1.75, 8.0
"""Codes that a step of a band has. One of 1 is that of 8 bits, and nobody sees it."""


@dataclass(frozen=True)
class Flaws:
    """What some frames that follow each other are like."""

    noise: float = 0.0
    """Standard deviation of the noise in luma, in codes of 0 to 255."""
    coarse: bool = False
    """The noise is wider than a pixel, as film grain is."""
    period: int = 0
    """Side of the blocks whose edges are seen, in pixels; 0 where there are none."""
    blocking: float = 0.0
    """Codes by which their edges stand out."""
    banding: float = 0.0
    """Share of the picture that lies beside the steps of a gradient that has too few of them."""


def measure(frames: torch.Tensor) -> Flaws:
    """Find out what footage is like.

    Args:
        frames: float32 (T, 3, h, w) in [0, 1], of one shot.
    """
    codes = luma(frames) * 255
    top, left = ((side - most) // 2 if side > most else 0 for side, most in zip(codes.shape[1:], _ENOUGH, strict=True))
    sigma, correlation = noise(codes[:, top : top + _ENOUGH[0], left : left + _ENOUGH[1]])
    period, strength = blocking(codes[:1])
    return Flaws(sigma, correlation > _COARSE, period, strength, banding(codes[:1]))


def together(several: Sequence[Flaws]) -> Flaws:
    """What footage is like of which some places were measured, at least one: what most of them say."""
    period = Counter(one.period for one in several).most_common(1)[0][0]
    return Flaws(
        median(one.noise for one in several),
        2 * sum(one.coarse for one in several) > len(several),
        period,
        fmean(one.blocking for one in several if one.period == period),
        fmean(one.banding for one in several),
    )


def noise(codes: torch.Tensor) -> tuple[float, float]:
    """Standard deviation of the noise, from the flattest places, and from what cannot be carried in time.

    A surface of second order is taken out of each square of 8 x 8 pixels; what is left has the variance of the noise
    where there is no texture. Texture, which moves as a whole, is told from noise by the difference of frames.

    Args:
        codes: luma (T, h, w), 0 to 255.

    Returns:
        Codes, rounding left out, and the correlation of neighbouring pixels; 0 and 0 where there is nothing to see.
    """
    if min(codes.shape[1:]) < SIDE:
        return 0.0, 0.0
    found = [one for frame in codes if (one := _flattest(_residuals(frame), 1)) is not None]
    if not found:
        return 0.0, 0.0
    variance, correlation = min(found)
    for before, after in zip(codes, codes[1:], strict=False):
        in_time = _flattest(_residuals(*_carried(before, after)), 2)
        if in_time is not None:
            variance, correlation = min((variance, correlation), in_time)
    return max(0.0, variance - 1 / 12) ** 0.5, correlation


def _residuals(picture: torch.Tensor, usable: torch.Tensor | None = None) -> torch.Tensor:
    """What a surface of second order leaves of the squares of a picture that holds nothing clipped, (N, 8, 8)."""
    height, width = (side // SIDE * SIDE for side in picture.shape)

    def squares(plane: torch.Tensor) -> torch.Tensor:
        parts = plane[:height, :width].unfold(0, SIDE, SIDE).unfold(1, SIDE, SIDE)
        return parts.reshape(-1, SIDE**2)

    values = squares(picture)
    good = squares(((picture > 1) & (picture < 254)) if usable is None else usable).all(1)
    values = values[good]
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    basis = torch.linalg.qr(torch.stack([x**0, x, y, x * y, x * x, y * y], -1).reshape(-1, 6))[0]
    rest: torch.Tensor = values - values @ basis @ basis.T
    return rest.view(-1, SIDE, SIDE)


def _flattest(residuals: torch.Tensor, pictures: int) -> tuple[float, float] | None:
    """Variance and correlation of neighbours in the squares that hold noise alone; None where they are too few.

    Those are within what chance makes of the mean of them all: a fixed point, which is sought from below.

    Args:
        pictures: that each square is the difference or the sum of: the variance is that of one.
    """
    variances = residuals.square().sum((1, 2)) / (SIDE**2 - 6)
    if len(variances) < _LEAST:
        return None
    level = float(variances.quantile(0.05)) / (1 - 1.65 * _SPREAD)
    chosen = variances <= level
    for _ in range(12):
        chosen = variances <= level * (1 + 2 * _SPREAD) + 1e-6
        level = float(variances[chosen].mean()) if chosen.any() else level
    flat = residuals[chosen]
    power = float(flat.square().mean()) + 1e-6
    beside = float((flat[:, 1:] * flat[:, :-1]).mean() + (flat[:, :, 1:] * flat[:, :, :-1]).mean()) / 2
    return level / pictures, beside / power


def _carried(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The difference of two frames along the motion of tiles of 32 x 32, and where it can be used.

    What stands and does not differ tells nothing of noise: there an encoder has repeated what was there.
    """
    height, width = (side // _TILE * _TILE for side in before.shape)
    if not height or not width:
        return before, torch.zeros_like(before, dtype=torch.bool)
    before, after = before[:height, :width], after[:height, :width]
    padded = functional.pad(before[None, None], [_REACH] * 4, mode="replicate")[0, 0]
    best = torch.full((height // _TILE, width // _TILE), torch.inf)
    difference, told = torch.zeros_like(after), torch.zeros_like(after, dtype=torch.bool)
    for down in range(2 * _REACH + 1):
        for across in range(2 * _REACH + 1):
            apart = after - padded[down : down + height, across : across + width]
            cost = functional.avg_pool2d(apart.square()[None, None], _TILE)[0, 0]
            better = cost < best
            best = torch.where(better, cost, best)
            wide = better.repeat_interleave(_TILE, 0).repeat_interleave(_TILE, 1)
            difference = torch.where(wide, apart, difference)
            told = torch.where(wide, (down != _REACH) | (across != _REACH), told)
    differs = functional.max_pool2d(difference.abs()[None, None], SIDE)[0, 0] > 0
    told |= differs.repeat_interleave(SIDE, 0).repeat_interleave(SIDE, 1)
    unclipped = (before > 1) & (before < 254) & (after > 1) & (after < 254)
    return difference, told & unclipped


def blocking(codes: torch.Tensor) -> tuple[int, float]:
    """Find the grid of an encoder's blocks.

    Args:
        codes: luma (T, h, w), 0 to 255.

    Returns:
        The blocks' side in pixels, and the codes by which a step at their edges is higher than elsewhere; 0 and 0 where
        no grid stands out both ways.
    """
    across, down = (_edges(plane) for plane in (codes, codes.transpose(-1, -2)))
    best = 0, 0.0, _SURE
    for period in _PERIODS:
        one, other = _grid(across, period), _grid(down, period)
        score = (one[0] + other[0]) / 2**0.5
        if min(one[0], other[0]) > _SURE / 2 and score > best[2]:
            best = period, (one[1] + other[1]) / 2, score
    return best[:2]


def _edges(codes: torch.Tensor) -> torch.Tensor:
    """By how much the step between two columns is higher than those beside it, on average; its middle is 0."""
    steps = codes.diff(dim=-1).abs()
    higher = (steps[..., 1:-1] - (steps[..., :-2] + steps[..., 2:]) / 2).clamp(-8, 8)
    profile = higher.flatten(0, -2).mean(0) if higher.numel() else higher.new_zeros(0)
    return profile - profile.median() if len(profile) else profile


def _grid(profile: torch.Tensor, period: int) -> tuple[float, float]:
    """How surely every so many columns stand out, in standard errors, and by how much.

    Enlarging leaves a pattern, too, but one of two or three columns: it stands out more than once in a longer period.
    """
    count = len(profile) // period
    if count < 3:
        return 0.0, 0.0
    means = profile[: count * period].view(count, period).mean(0)
    strength, place = float(means.max()), int(means.argmax())
    others = means.roll(-place)[2:-1]
    if float(others.max()) > 0.6 * strength:
        return 0.0, 0.0
    spread = float((profile.quantile(0.75) - profile.quantile(0.25)) / 1.35) + 0.02
    return strength * count**0.5 / spread, strength


def banding(codes: torch.Tensor) -> float:
    """Share of the picture that lies within 16 pixels of bands: steps that are even on both sides.

    Args:
        codes: luma (T, h, w), 0 to 255.
    """
    return float(bands(codes).float().mean()) if codes.numel() else 0.0


def bands(codes: torch.Tensor) -> torch.Tensor:
    """Where bands are, bool (T, h, w)."""
    found = _steps(codes) | _steps(codes.transpose(-1, -2)).transpose(-1, -2)
    # They are long: a step that is alone is a detail.
    long = found & (functional.avg_pool2d(found[:, None].float(), 15, 1, 7)[:, 0] > 14 / 225)
    near = functional.max_pool2d(functional.max_pool2d(long[:, None].float(), (1, 33), 1, (0, 16)), (33, 1), 1, (16, 0))
    smooth = functional.max_pool2d(-_range(codes, 3), 3, 1, 1)[:, 0] >= -0.75
    return (near[:, 0] > 0) & smooth


def _range(codes: torch.Tensor, side: int) -> torch.Tensor:
    """The largest less the smallest of the squares around pixels, (T, 1, h, w)."""
    planes = codes[:, None]
    return functional.max_pool2d(planes, side, 1, side // 2) + functional.max_pool2d(-planes, side, 1, side // 2)


def _steps(codes: torch.Tensor) -> torch.Tensor:
    """Where along a line five even pixels are followed, within three, by five others, a little brighter or darker."""
    found = torch.zeros_like(codes, dtype=torch.bool)
    if codes.shape[-1] < 13:
        return found
    brightest, darkest = (functional.max_pool2d(one[:, None], (1, 5), 1)[:, 0] for one in (codes, -codes))
    even = brightest + darkest <= 0.75
    apart = (brightest[..., 8:] - brightest[..., :-8]).abs()
    least, most = _BAND
    found[..., 6:-6] = even[..., 8:] & even[..., :-8] & (apart >= least) & (apart <= most)
    return found
