"""Carry finished pictures along the motion: warping, trust, fades, and what is worth computing again.

Pure functions on tensors. What is judged is judged on the low-resolution frames alone, so that it depends on the input
and on nothing that was carried before. Differences and contrasts are in codes: 255 is the distance of black and white.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
from torch.nn import functional

from vidup.picture.metrics import luma

FINE = 2
"""Motion and trust are found on the low-resolution frames, enlarged so many times."""
CELL = 16
"""Side in low-resolution pixels of the cells of which it is decided whether they are computed again."""
CUT = 0.35
"""Mean trust below which nothing is carried: ordinary neighbours have .58 and more, cuts .06 and less."""

_FADE = 0.015  # a change of contrast that is followed; less is noise
_TEXTURE = 4.0  # contrast in codes from which a place tells of fades
_WORTH = 8.0  # contrast in codes at which a place that is not trusted counts half
_RECOMPUTED = 0.1  # mean importance from which a cell is computed again
_STILL = 0.3  # codes by which a flow must be better than standing still
_MOST_NOISE = 6.0  # codes; a cut is no noise
_FIRM = 4.0  # codes by which standing still must be better, for something to stand where all else moves
_EDGE = 4  # pixels beside it that hold its edges
_HIDDEN = 0.7  # of the contrast around it, which hides a difference
_APART = 2.0  # squared pixels by which flow there and back may differ, beside what their length allows
_CALL = 4.0  # cells that a call of the model costs beside its area
_SHARPER = 0.2  # of its contrast, and one code, by which a place may become sharper and still be trusted


Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Motion:
    """How a frame follows from an earlier one; tensors on the host."""

    flow: torch.Tensor
    """(2, FINE * h, FINE * w), right and down in pixels of that size: where in the earlier frame a pixel was."""
    trust: torch.Tensor
    """(FINE * h, FINE * w) in [0, 1]: how far what was carried is believed."""
    gain: float
    """By how much contrast has changed, as in a fade."""
    cells: torch.Tensor
    """bool, (rows, columns): the cells that are worth computing again."""


def mean(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """The mean of the square of `side` pixels around each pixel; beyond the edge the edge is repeated.

    Args:
        pictures: (C, H, W).
        side: odd.
    """
    reach = side // 2
    padded = functional.pad(pictures[None], (reach, reach, reach, reach), mode="replicate")[0]
    for axis in (-2, -1):  # adding what is shifted is faster than any filter of torch's on a processor
        length = padded.shape[axis] - 2 * reach
        sums = padded.narrow(axis, 0, length).clone()
        for shift in range(1, side):
            sums += padded.narrow(axis, shift, length)
        padded = sums
    return padded / side**2


def contrast(brightness: torch.Tensor, side: int = 5) -> torch.Tensor:
    """The standard deviation in the square around each pixel, (..., H, W)."""
    centred = brightness - brightness.mean((-2, -1), keepdim=True)  # sums of squares lose digits otherwise
    return (mean(centred.square(), side) - mean(centred, side).square()).clamp_min_(0).sqrt_()


def warp(picture: torch.Tensor, flow: torch.Tensor, mode: str = "bicubic") -> torch.Tensor:
    """Fetch each pixel from where the flow points to; beyond the edge the picture's edge is repeated.

    Args:
        picture: (C, H, W).
        flow: (2, H, W), right and down, in pixels.
    """
    height, width = picture.shape[-2:]
    rows = torch.arange(height, dtype=flow.dtype, device=flow.device).view(-1, 1)
    columns = torch.arange(width, dtype=flow.dtype, device=flow.device)
    grid = torch.stack([(flow[0] + columns + 0.5) * (2 / width) - 1, (flow[1] + rows + 0.5) * (2 / height) - 1], -1)
    return functional.grid_sample(picture[None], grid[None], mode, "border", align_corners=False)[0]


def resize_flow(flow: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A flow, (2, h, w), for pictures of another size, (2, *size)."""
    height, width = flow.shape[-2:]
    factors = flow.new_tensor([size[1] / width, size[0] / height]).view(2, 1, 1)
    return functional.interpolate(flow[None], size, mode="bilinear", align_corners=False)[0] * factors


def error(carried: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
    """How much a frame differs from what was carried to it, around each pixel; a change of light counts a quarter.

    Args:
        carried, current: RGB (3, H, W) in codes.

    Returns:
        (1, H, W) in codes.
    """
    difference = carried - current
    light = mean(difference, 9)
    plain = difference.abs().amax(0, keepdim=True)
    unlit = (difference - light).abs().amax(0, keepdim=True) + 0.25 * light.abs().amax(0, keepdim=True)
    return mean(torch.minimum(plain, unlit), 5)


def agree(forward: torch.Tensor, backward: torch.Tensor, allowed: float) -> torch.Tensor:
    """Where the flow there and the flow back cancel: elsewhere something was hidden (Sundaram et al. 2010).

    Args:
        forward, backward: (2, H, W) in pixels.
        allowed: squared pixels that they may differ by beside a hundredth of their lengths' squares.

    Returns:
        bool, (1, H, W).
    """
    back = warp(backward, forward, "bilinear")
    lengths = forward.square().sum(0, keepdim=True) + back.square().sum(0, keepdim=True)
    return (forward + back).square().sum(0, keepdim=True) < 0.01 * lengths + allowed


def inside(flow: torch.Tensor) -> torch.Tensor:
    """Where a flow, (2, H, W), points into the picture: bool, (1, H, W)."""
    height, width = flow.shape[-2:]
    x = flow[:1] + torch.arange(width, device=flow.device)
    y = flow[1:] + torch.arange(height, device=flow.device).view(-1, 1)
    return (x > -1) & (x < width) & (y > -1) & (y < height)


def still(pictures: torch.Tensor) -> torch.Tensor:
    """A decision, bool (1, H, W), as most of the 5 x 5 pixels around have it."""
    return mean(pictures.float(), 5) > 0.5


def smooth(trust: torch.Tensor) -> torch.Tensor:
    """Trust, (1, H, W), less near what is not trusted and without steps: eroded by 3 x 3, then a Gauss of 1 pixel."""
    eroded = -functional.max_pool2d(-trust[None], 3, 1, 1)[0]
    kernel = trust.new_tensor([0.0545, 0.2442, 0.4026, 0.2442, 0.0545])
    padded = functional.pad(eroded[None], (2, 2, 2, 2), mode="replicate")
    rows = functional.conv2d(padded, kernel.view(1, 1, 5, 1))
    return functional.conv2d(rows, kernel.view(1, 1, 1, 5))[0].clamp(0, 1)


def judge(
    previous: torch.Tensor, current: torch.Tensor, forward: torch.Tensor, backward: torch.Tensor, tolerance: float
) -> tuple[Motion, float]:
    """What of an earlier frame can be carried to this one.

    A flow is taken only where it explains the frame better than standing still: captions, still shots and letterboxes
    stay as they are. Trust falls where the carried frame differs by more than `tolerance` and a part of the contrast
    that hides it, where the flows disagree, and outside the frame.

    Args:
        previous, current: RGB in [0, 1], (3, H, W), of `FINE` times the low resolution.
        forward: where in `previous` each pixel of `current` was, (2, H, W); `backward` the other way.
        tolerance: codes by which what is carried may differ where nothing hides it, beside the input's noise.

    Returns:
        The motion, and the mean trust before the flows were compared, which tells of a cut.
    """
    previous, current = previous * 255, current * 255
    moved, stood = error(warp(previous, forward), current), error(previous, current)
    standing = still(stood <= moved + _STILL)
    flow = forward.masked_fill(standing, 0.0)
    around = contrast(luma(current)[None])
    missed = torch.where(standing, stood, moved)
    trust = (1.5 - missed / (tolerance + 2 * noise(missed, around) + _HIDDEN * around)).clamp(0, 1) * inside(flow)
    cut = trust.mean().item()
    trust = trust * (agree(flow, backward, _APART) | standing)
    before = warp(contrast(luma(previous)[None]), flow, "bilinear")
    gain = _gain(before, around, trust)
    # What became sharper, as when blur of motion ends, is not what was carried.
    sharper = (around - gain * before) / (1 + _SHARPER * around)
    trust = smooth(trust * (2 - sharper).clamp(0, 1))
    cells = recomputed(trust, around)
    # So narrow a fringe is not worth computing again: it is bicubic's.
    fringe = _beside(standing & (moved > stood + _FIRM), flow)
    return Motion(flow, (trust * (1 - mean(fringe, 3)))[0], gain, cells), cut


def _beside(firm: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """What moves past something that stands, such as a caption: it would take the rings at its edges along.

    Args:
        firm: bool, (1, H, W): what stands though all around it moves.
        flow: (2, H, W), 0 there.

    Returns:
        1 or 0, (1, H, W).
    """
    rows = functional.max_pool2d(firm[None].float(), (2 * _EDGE + 1, 1), 1, (_EDGE, 0))
    near = functional.max_pool2d(rows, (1, 2 * _EDGE + 1), 1, (0, _EDGE))[0]
    return (((near + warp(near, flow, "bilinear")) > 0) & flow.any(0, keepdim=True)).float()


def noise(missed: torch.Tensor, around: torch.Tensor) -> float:
    """The input's own noise, in codes: what differs in the flattest quarter of the frame, where nothing can move."""
    step = max(1, around.numel() // 40_000)  # a sample tells a median as well
    missed, around = missed.flatten()[::step], around.flatten()[::step]
    return min(_MOST_NOISE, missed[around <= around.quantile(0.25)].median().item())


def _gain(before: torch.Tensor, around: torch.Tensor, trust: torch.Tensor) -> float:
    textured = (before > _TEXTURE) & (trust > 0.5)
    if textured.float().mean() < 0.02:
        return 1.0
    gain = (around[textured] / before[textured]).median().clamp(0.25, 1.5).item()
    return gain if abs(gain - 1) > _FADE else 1.0


def recomputed(trust: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
    """The cells that are worth computing again: where texture is, and little trust.

    Args:
        trust: (1, FINE * h, FINE * w).
        around: the contrast there, in codes.

    Returns:
        bool, (rows, columns).
    """
    importance = (1 - trust) * around / (around + _WORTH)
    return functional.avg_pool2d(importance[None], CELL * FINE, ceil_mode=True)[0, 0] > _RECOMPUTED


def refreshed(rows: int, columns: int, number: int, period: int) -> torch.Tensor:
    """The cells that are refreshed in a frame, so that none is carried for ever: one block after another.

    As in the intra refresh of video codecs; the phase is that of the frame's place in the file.

    Args:
        number: of the frame in the file.
        period: frames after which all cells have had their turn; 0 refreshes none.

    Returns:
        bool, (rows, columns).
    """
    turn = torch.zeros(rows, columns, dtype=torch.bool)
    if period:
        across = max(1, min(period, round((period * columns / rows) ** 0.5)))
        down = period // across
        # Neighbours in space are not neighbours in time: blocks follow in steps of about the golden section.
        blocks = down * across
        step = next(step for step in range(max(1, round(0.618 * blocks)), 2 * blocks + 1) if gcd(step, blocks) == 1)
        place = number * step % blocks
        top, left = divmod(place, across)
        block = slice(columns * left // across, columns * (left + 1) // across)
        turn[rows * top // down : rows * (top + 1) // down, block] = True
    return turn


def cover(cells: torch.Tensor, halo: float) -> list[tuple[int, int, int, int]]:
    """Few rectangles that hold all chosen cells, cheap with a halo around each: the cheaper of one, or of two halves.

    Args:
        cells: bool, (rows, columns).
        halo: cells around each rectangle that are computed with it.

    Returns:
        (top, left, bottom, right) of each, in cells, halo not counted.
    """
    rows, columns = cells.shape

    chosen = cells.nonzero().tolist()

    def fitted(top: int, left: int, bottom: int, right: int) -> Box | None:
        part = [(row, column) for row, column in chosen if top <= row < bottom and left <= column < right]
        if not part:
            return None
        down, across = [row for row, _ in part], [column for _, column in part]
        return min(down), min(across), max(down) + 1, max(across) + 1

    def cost(box: Box | None) -> float:
        if box is None:
            return 0.0
        top, left, bottom, right = box
        tall = min(rows, bottom + halo) - max(0, top - halo)
        wide = min(columns, right + halo) - max(0, left - halo)
        return float(tall * wide + _CALL)

    def parted(box: Box) -> list[Box]:
        top, left, bottom, right = box
        halves = [(fitted(top, left, at, right), fitted(at, left, bottom, right)) for at in range(top + 1, bottom)]
        halves += [(fitted(top, left, bottom, at), fitted(top, at, bottom, right)) for at in range(left + 1, right)]
        best = min(halves, key=lambda two: cost(two[0]) + cost(two[1]), default=None)
        if best is None or cost(best[0]) + cost(best[1]) >= cost(box):
            return [box]
        return [part for half in best if half is not None for part in parted(half)]

    whole = fitted(0, 0, rows, columns)
    return [] if whole is None else parted(whole)
