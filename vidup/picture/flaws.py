"""Measures the flaws of footage of which a plan tells: noise and grain, an encoder's blocks, bands in smooth areas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from statistics import fmean, median

import torch
from torch.nn import functional

from vidup.picture import temporal
from vidup.picture.metrics import luma

SIDE = 8
"""Of the squares in which noise is measured, in pixels."""
_TILE, _REACH = 32, 6
"""Side of the tiles whose motion is searched, and radius of the search, in pixels."""
_CENTRE = 256, 384
"""Height and width of the middle of a frame, in which noise is measured."""
_LEAST = 24
"""Squares without which noise is not measured."""
_SPREAD = (2 / (SIDE**2 - 6)) ** 0.5
"""Relative standard deviation of the variance of a square of white noise; the fitted surface has 6 parameters."""
_COARSE = 0.2
"""Correlation of neighbours above which noise is wider than a pixel, as film grain is."""
_PERIODS = range(4, 33)
_SURE = 6.0
"""Standard errors by which the edges of blocks must exceed all other columns."""
_STEP = 11.0
"""Codes of a quantiser's step for each by which the edges of its blocks stand out."""
_BAND = 1.75, 8.0
"""Least and largest step between two bands, in codes; steps of 1 are those of 8 bits, and invisible."""
_STAIR = 64
"""How far in pixels the next step of a gradient is looked for."""
_FAR = 8
_PLACES = [place for far in range(2, _FAR + 1, 2) for place in product((-far, 0, far), repeat=2)]
"""Rows and columns, from a pixel in bands, where what it becomes is looked for."""


@dataclass(frozen=True)
class Flaws:
    """The flaws of some consecutive frames."""

    noise: float = 0.0
    """Standard deviation of the noise in luma, in codes of 0 to 255."""
    coarse: bool = False
    """The noise is wider than a pixel, as film grain is."""
    period: int = 0
    """Side of visible blocks, in pixels; 0 if there are none."""
    blocking: float = 0.0
    """Height of the blocks' edges, in codes."""
    banding: float = 0.0
    """Share of the picture with bands."""


def measure(frames: torch.Tensor) -> Flaws:
    """Measure the flaws of consecutive frames.

    Args:
        frames: float32 (T, 3, h, w) in [0, 1], of one shot.
    """
    codes = luma(frames) * 255
    top, left = ((side - most) // 2 if side > most else 0 for side, most in zip(codes.shape[1:], _CENTRE, strict=True))
    sigma, correlation = noise(codes[:, top : top + _CENTRE[0], left : left + _CENTRE[1]])
    period, strength = blocking(codes[:1])
    return Flaws(sigma, correlation > _COARSE, period, strength, banding(codes[:1]))


def together(several: Sequence[Flaws]) -> Flaws:
    """The flaws of footage that was measured in one or several places, by majority, median or mean."""
    period = Counter(one.period for one in several).most_common(1)[0][0]
    return Flaws(
        median(one.noise for one in several),
        2 * sum(one.coarse for one in several) > len(several),
        period,
        fmean(one.blocking for one in several if one.period == period),
        fmean(one.banding for one in several),
    )


def noise(codes: torch.Tensor) -> tuple[float, float]:
    """Measure noise in the flattest squares of each frame, and in the differences of frames along their motion.

    A surface of second order is subtracted from each square of 8 x 8 pixels; the rest has the variance of the noise
    where there is no texture. Texture moves, so it cancels in the difference of frames, and noise does not.

    Args:
        codes: luma (T, h, w), 0 to 255.

    Returns:
        Standard deviation in codes, without the error of rounding, and the correlation of neighbouring pixels; 0 and 0
        where nothing can be measured.
    """
    if min(codes.shape[1:]) < SIDE:
        return 0.0, 0.0
    found = [one for frame in codes if (one := _flattest(_residuals(frame), 1)) is not None]
    if not found:
        return 0.0, 0.0
    variance, correlation = min(found)
    for before, after in zip(codes, codes[1:], strict=False):
        in_time = _flattest(_residuals(*_compensated(before, after)), 2)
        if in_time is not None:
            variance, correlation = min((variance, correlation), in_time)
    return max(0.0, variance - 1 / 12) ** 0.5, correlation


def _residuals(picture: torch.Tensor, usable: torch.Tensor | None = None) -> torch.Tensor:
    """Residuals (N, 8, 8) of fitting a surface of second order to the squares of a picture without clipped pixels."""
    height, width = (side // SIDE * SIDE for side in picture.shape)

    def squares(plane: torch.Tensor) -> torch.Tensor:
        parts = plane[:height, :width].unfold(0, SIDE, SIDE).unfold(1, SIDE, SIDE)
        return parts.reshape(-1, SIDE**2)

    values = squares(picture)
    good = squares(((picture > 1) & (picture < 254)) if usable is None else usable).all(1)
    values = values[good]
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIDE, dtype=values.dtype)] * 2, indexing="ij")
    basis = torch.linalg.qr(torch.stack([x**0, x, y, x * y, x * x, y * y], -1).reshape(-1, 6))[0]
    rest: torch.Tensor = values - values @ basis @ basis.T
    return rest.view(-1, SIDE, SIDE)


def _flattest(residuals: torch.Tensor, pictures: int) -> tuple[float, float] | None:
    """Variance and correlation of neighbours in the squares without texture; None if there are too few squares.

    Those have a variance within two standard deviations of the mean of them all, which is iterated from below.

    Args:
        pictures: 1, or 2 for the difference of two; the variance returned is that of one.
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


def _compensated(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The difference of two frames along the motion of tiles of 32 x 32, and where it can be used.

    It cannot where nothing moves or differs: there an encoder has repeated the frame before, with its noise.
    """
    height, width = (side // _TILE * _TILE for side in before.shape)
    if not height or not width:
        return before, torch.zeros_like(before, dtype=torch.bool)
    before, after = before[:height, :width], after[:height, :width]
    padded = functional.pad(before[None, None], [_REACH] * 4, mode="replicate")[0, 0]
    best = torch.full((height // _TILE, width // _TILE), torch.inf, dtype=torch.float32)
    difference, usable = torch.zeros_like(after), torch.zeros_like(after, dtype=torch.bool)
    for down in range(2 * _REACH + 1):
        for across in range(2 * _REACH + 1):
            apart = after - padded[down : down + height, across : across + width]
            cost = functional.avg_pool2d(apart.square()[None, None], _TILE)[0, 0]
            better = cost < best
            best = torch.where(better, cost, best)
            wide = better.repeat_interleave(_TILE, 0).repeat_interleave(_TILE, 1)
            difference = torch.where(wide, apart, difference)
            usable = torch.where(wide, (down != _REACH) | (across != _REACH), usable)
    differs = functional.max_pool2d(difference.abs()[None, None], SIDE)[0, 0] > 0
    usable |= differs.repeat_interleave(SIDE, 0).repeat_interleave(SIDE, 1)
    unclipped = (before > 1) & (before < 254) & (after > 1) & (after < 254)
    return difference, usable & unclipped


def blocking(codes: torch.Tensor) -> tuple[int, float]:
    """Find the grid of an encoder's blocks.

    Args:
        codes: luma (T, h, w), 0 to 255.

    Returns:
        The blocks' side in pixels, and the height of their edges in codes; 0 and 0 unless a grid stands out in both
        directions.
    """
    across, down = (_edges(plane) for plane in (codes, codes.transpose(-1, -2)))
    best = 0, 0.0, _SURE
    for period in _PERIODS:
        one, other = _grid(across, period), _grid(down, period)
        score = (one[0] + other[0]) / 2**0.5
        if min(one[0], other[0]) > _SURE / 2 and score > best[2]:
            best = period, (one[1] + other[1]) / 2, score
    return best[:2]


def step_of_blocks(period: int, strength: float) -> float | None:
    """Quantiser step in codes for the blocks that `blocking` found, None where there are none.

    Fitted on photographs through JPEG, MPEG-2 and MPEG-4, which smooth no edges: right within two fifths.
    """
    return _STEP * strength if period else None


def _edges(codes: torch.Tensor) -> torch.Tensor:
    """Mean height of the step between two columns above the steps beside it, less the median."""
    steps = codes.diff(dim=-1).abs()
    higher = (steps[..., 1:-1] - (steps[..., :-2] + steps[..., 2:]) / 2).clamp(-8, 8)
    profile = higher.flatten(0, -2).mean(0) if higher.numel() else higher.new_zeros(0)
    return profile - profile.median() if len(profile) else profile


def _grid(profile: torch.Tensor, period: int) -> tuple[float, float]:
    """By how many standard errors, and by how many codes, one column in each period stands out.

    Enlarging leaves a pattern, too, but of two or three columns: it has several peaks in a longer period.
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
    found = _steps(codes) | _steps(codes.transpose(-1, -2).contiguous()).transpose(-1, -2)
    if _is_empty(found):  # as in most pictures
        return found
    # Bands are long; a short step is a detail.
    long = found & (_count(_count(found, 7).transpose(-1, -2), 7).transpose(-1, -2) > 14)
    near = _count(_count(long, 16).transpose(-1, -2) > 0, 16).transpose(-1, -2) > 0
    spread = temporal.most(codes, 3) + temporal.most(-codes, 3)
    smooth = temporal.most(-spread, 3) >= -0.75
    return near & smooth


def unbanded(rgb: torch.Tensor) -> torch.Tensor:
    """Pictures, (T, 3, h, w) in [0, 1], whose bands are the mean of what is around them and nearly as bright."""
    where = bands(luma(rgb) * 255)[:, None]
    if _is_empty(where):
        return rgb
    # Mostly few pixels are chosen, but to find which would wait for a device.
    return _chosen(rgb, where) if rgb.device.type == "cpu" else torch.where(where, _everywhere(rgb), rgb)


def _everywhere(rgb: torch.Tensor) -> torch.Tensor:
    """What all pixels become in `unbanded`."""
    height, width = rgb.shape[-2:]
    padded = functional.pad(rgb, [_FAR] * 4, mode="replicate")
    rows = (padded[..., _FAR + down : _FAR + down + height, :] for down, _ in _PLACES)
    columns = (_FAR + across for _, across in _PLACES)
    return _smoothed(rgb, (row[..., first : first + width] for row, first in zip(rows, columns, strict=True)))


def _chosen(rgb: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """The pictures with what only the pixels become that `where`, (T, 1, h, w), chooses."""
    pixels = functional.pad(rgb, [_FAR] * 4, mode="replicate").transpose(0, 1).flatten(1)
    chosen, wide = functional.pad(where, [_FAR] * 4).flatten().nonzero()[:, 0], rgb.shape[-1] + 2 * _FAR
    others = (pixels.index_select(1, chosen + (down * wide + across))[None] for down, across in _PLACES)
    result = rgb.clone()
    result.transpose(0, 1)[:, where[:, 0]] = _smoothed(pixels.index_select(1, chosen)[None], others)[0]
    return result


def _smoothed(own: torch.Tensor, others: Iterable[torch.Tensor]) -> torch.Tensor:
    """The mean of pixels, (T, 3, ...), and of those around them that are nearly as bright."""
    total, count = own.clone(), torch.ones_like(own[:, :1])
    for other in others:
        near = ((other - own).abs_().amax(1, keepdim=True) < _BAND[1] / 255).to(own)
        total.addcmul_(near, other)
        count += near
    return total / count


def _is_empty(mask: torch.Tensor) -> bool:
    """Whether nothing is chosen, as far as that is known without waiting for a device."""
    return mask.device.type == "cpu" and not mask.any()


def _count(planes: torch.Tensor, reach: int) -> torch.Tensor:
    """The sum over a line's pixels within `reach` of each, int32 (T, h, w)."""
    sums = functional.pad(planes.cumsum(-1, dtype=torch.int32), (reach + 1, 0))
    sums = torch.cat([sums, sums[..., -1:].expand(*sums.shape[:-1], reach)], -1)
    return sums[..., 2 * reach + 1 :] - sums[..., : -2 * reach - 1]


def _steps(codes: torch.Tensor) -> torch.Tensor:
    """Where along a line five even pixels are followed, within three, by five others, a little brighter or darker.

    Only steps of a staircase count: one that has another beside it, in the same direction.
    """
    found = torch.zeros_like(codes, dtype=torch.bool)
    if codes.shape[-1] < 13:
        return found
    fives = [codes[..., first : codes.shape[-1] - 4 + first] for first in range(5)]
    brightest, darkest = reduce(torch.maximum, fives), reduce(torch.minimum, fives)
    even = brightest - darkest <= 0.75
    higher = brightest[..., 8:] - brightest[..., :-8]
    least, most = _BAND
    for apart in (higher, -higher):
        step = functional.pad(even[..., 8:] & even[..., :-8] & (apart >= least) & (apart <= most), (6, 6))
        if not _is_empty(step):
            found |= step & (_count(step, _STAIR) > _count(step, 4))
    return found
