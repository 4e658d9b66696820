"""One frame from another, pure functions: warping along the motion, trust, fades, what is worth computing again.

Pure functions on tensors. What is judged is judged on the low-resolution frames alone, so that it depends on the input
and on nothing that was carried before. Differences and contrasts are in codes: 255 is the distance of black and white.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd
from operator import or_

import torch
from torch.nn import functional

from vidup.picture.metrics import luma

CELL = 16
"""Side in low-resolution pixels of the cells of which it is decided whether they are computed again."""
CUT = 0.35
"""Mean trust below which nothing is carried: ordinary neighbours have .58 and more, cuts .06 and less."""

_FADE = 0.015  # a change of contrast that is followed; less is noise
_TEXTURE = 4.0  # contrast in codes from which a place tells of fades
_WORTH = 8.0  # contrast in codes at which a place that is not trusted counts half
_RECOMPUTED = 0.13  # mean importance from which a cell is computed again
_STILL = 0.3  # codes by which a flow must be better than standing still
_MOST_NOISE = 6.0  # codes; a cut is no noise
_FIRM = 16.0  # contrast in codes of what must not be taken along by what moves past it, such as a caption
_SLOW = 0.2  # pixels that it moves at the most
_PAST = 0.55  # and by which what moves past it moves at least
_EDGE = 2  # pixels beside it that hold its edges
_HIDDEN = 0.8  # of the contrast around it, which hides a difference
_APART = 1.0  # squared pixels by which flow there and back may differ, beside what their length allows
_CALL = 16.0  # cells that a call of the model costs beside its area; narrow windows are also less exact
_HALF = 0.6  # power of trust with which carried pixels go before bicubic: half trusted, they are still nearer
_SHARPER = 0.2  # of its contrast, and one code, by which a place may become sharper and still be trusted


Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Motion:
    """How a frame follows from an earlier one; tensors on the host."""

    flow: torch.Tensor
    """(2, h, w), right and down in low-resolution pixels: where in the earlier frame a pixel was."""
    trust: torch.Tensor
    """(h, w) in [0, 1]: how far what was carried is believed against what is computed."""
    fallback: torch.Tensor
    """(h, w) in [0, 1]: and against bicubic, where nothing is computed; what is half believed is better than that."""
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


def contrast(brightness: torch.Tensor, side: int = 3) -> torch.Tensor:
    """The standard deviation in the square around each pixel, (..., H, W)."""
    centred = brightness - brightness.mean((-2, -1), keepdim=True)  # sums of squares lose digits otherwise
    return (mean(centred.square(), side) - mean(centred, side).square()).clamp_min_(0).sqrt_()


def warp(picture: torch.Tensor, flow: torch.Tensor, mode: str = "bicubic") -> torch.Tensor:
    """Fetch each pixel from where the flow points to; beyond the edge the picture's edge is repeated.

    Args:
        picture: (C, H, W).
        flow: (2, h, w), right and down, in pixels of its own size, from which it is enlarged.
    """
    (height, width), (rows, columns) = picture.shape[-2:], flow.shape[-2:]
    # The grid's unit is half a picture. Factors that are no tensors need no copy to a device, which would wait for it.
    shares = torch.stack([flow[0] * (2 / columns), flow[1] * (2 / rows)])
    grid = shares[None].contiguous(memory_format=torch.channels_last)  # the grid's layout
    if (rows, columns) != (height, width):
        grid = functional.interpolate(grid, (height, width), mode="bilinear", align_corners=False)
    grid[0, 0] += _centres(width, flow)
    grid[0, 1] += _centres(height, flow).view(-1, 1)
    # On the CPU torch divides among its threads what is in a batch, not one picture: here bands of rows.
    bands = gcd(height, torch.get_num_threads()) if picture.device.type == "cpu" else 1
    grid = grid.permute(0, 2, 3, 1).reshape(bands, height // bands, width, 2)
    warped = functional.grid_sample(picture.expand(bands, -1, -1, -1), grid, mode, "border", align_corners=False)
    return warped.transpose(0, 1).reshape(-1, height, width)


def _centres(length: int, flow: torch.Tensor) -> torch.Tensor:
    """The centres of pixels in a row, -1 to 1 from edge to edge."""
    return (torch.arange(length, dtype=flow.dtype, device=flow.device) + 0.5) * (2 / length) - 1


def resize_flow(flow: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A flow, (2, h, w), for pictures of another size, (2, *size)."""
    height, width = flow.shape[-2:]
    factors = flow.new_tensor([size[1] / width, size[0] / height]).view(2, 1, 1)
    return functional.interpolate(flow[None], size, mode="bilinear", align_corners=False)[0] * factors


def most(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """The largest of the square of `side` pixels around each pixel, (C, H, W)."""
    for axis in (-2, -1):
        length, found = pictures.shape[axis], pictures.clone()
        for shift in range(1, min(side // 2 + 1, length)):
            near, far = pictures.narrow(axis, 0, length - shift), pictures.narrow(axis, shift, length - shift)
            for part, other in (
                (found.narrow(axis, shift, length - shift), near),
                (found.narrow(axis, 0, length - shift), far),
            ):
                torch.maximum(part, other, out=part)
        pictures = found
    return pictures


def error(carried: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
    """How much a frame differs from what was carried to it; a change of light counts a quarter.

    Args:
        carried, current: RGB (3, H, W) in codes.

    Returns:
        (1, H, W) in codes.
    """
    difference = carried - current
    light = mean(difference, 5)
    plain = difference.abs().amax(0, keepdim=True)
    unlit = (difference - light).abs_().amax(0, keepdim=True) + 0.25 * light.abs_().amax(0, keepdim=True)
    return torch.minimum(plain, unlit)


def changed(stood: torch.Tensor) -> Box | None:
    """The rectangle outside of which a frame is so like an earlier one that standing still explains it.

    Args:
        stood: the `error` of the earlier frame as it stands, (1, h, w).

    Returns:
        Top, left, bottom, right; None where all stands.
    """
    moved = mean(stood, 3)[0] > _STILL
    rows, columns = moved.any(1).nonzero(), moved.any(0).nonzero()
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def agree(forward: torch.Tensor, back: torch.Tensor, allowed: float) -> torch.Tensor:
    """Where the flow there and the flow back cancel: elsewhere something was hidden (Sundaram et al. 2010).

    Args:
        forward: (2, H, W) in pixels.
        back: the flow back, from where `forward` points to.
        allowed: squared pixels that they may differ by beside a hundredth of their lengths' squares.

    Returns:
        bool, (1, H, W).
    """
    lengths = forward.square().sum(0, keepdim=True) + back.square().sum(0, keepdim=True)
    return (forward + back).square().sum(0, keepdim=True) < 0.01 * lengths + allowed


def inside(flow: torch.Tensor) -> torch.Tensor:
    """Where a flow, (2, H, W), points into the picture: bool, (1, H, W)."""
    height, width = flow.shape[-2:]
    x = flow[:1] + torch.arange(width, device=flow.device)
    y = flow[1:] + torch.arange(height, device=flow.device).view(-1, 1)
    return (x > -1) & (x < width) & (y > -1) & (y < height)


def smooth(trust: torch.Tensor) -> torch.Tensor:
    """Trust, (C, H, W), without steps: [1 2 1] both ways."""
    padded = functional.pad(trust[None], (1, 1, 1, 1), mode="replicate")[0]
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 16


def judge(
    previous: torch.Tensor,
    current: torch.Tensor,
    stood: torch.Tensor,
    forward: torch.Tensor,
    backward: torch.Tensor,
    tolerance: float,
) -> tuple[Motion, float]:
    """What of an earlier frame can be carried to this one.

    A flow is taken only where it explains the frame better than standing still: captions, still shots and letterboxes
    stay as they are. Trust falls where the carried frame differs by more than `tolerance` and a part of the contrast
    that hides it, where the flows disagree, and outside the frame.

    Args:
        previous, current: RGB in codes, (3, h, w), of low resolution.
        stood: `error` of the one against the other.
        forward: where in `previous` each pixel of `current` was, (2, h, w); `backward` the other way.
        tolerance: codes by which what is carried may differ where nothing hides it, beside the input's noise.

    Returns:
        The motion, and the mean trust before the flows were compared, which tells of a cut.
    """
    moved = error(warp(previous, forward), current)
    standing = mean((mean(stood - moved, 3) <= _STILL).float(), 3) > 0.5
    flow = forward.masked_fill(standing, 0.0)
    around = contrast(luma(current)[None])
    missed = mean(torch.where(standing, stood, moved), 3)
    trust = (1.5 - missed / (tolerance + 2 * noise(missed, around) + _HIDDEN * around)).clamp_(0, 1) * inside(flow)
    cut = trust.mean().item()
    # What stands, such as a caption, and its edges: what moves past would take them along.
    speed = flow.square().sum(0, keepdim=True)
    firm = most(((speed < _SLOW**2) & (around > _FIRM)).float(), 2 * _EDGE + 1)
    there = warp(torch.cat([backward, contrast(luma(previous)[None]), firm]), flow, "bilinear")
    back, before, beside = there[:2], there[2:3], there[3:]
    trust = trust * (agree(flow, back, _APART) | standing)
    gain = _gain(before, around, trust)
    # What became sharper, as when blur of motion ends, is not what was carried.
    sharper = (around - gain * before) / (1 + _SHARPER * around)
    trust = -most(-trust * (2 - sharper).clamp_(0, 1), 3)  # less near what is not trusted
    both = smooth(torch.cat([trust, trust**_HALF]))
    cells = recomputed(both[:1], around)
    # So narrow a fringe is not worth computing again: it is bicubic's.
    fringe = (((firm + beside) > 0) & (speed > _PAST**2)).float()
    trust, fallback = both * (1 - mean(fringe, 3))
    return Motion(flow, trust, fallback, gain, cells), cut


def noise(missed: torch.Tensor, around: torch.Tensor) -> float:
    """The input's own noise, in codes: what differs in the flattest quarter of the frame, where nothing can move."""
    missed, around = _sample(missed), _sample(around)
    return min(_MOST_NOISE, missed[around <= around.quantile(0.25)].median().item())


def _sample(plane: torch.Tensor) -> torch.Tensor:
    """Some of the values, which tell a median as well."""
    return plane.flatten()[:: max(1, plane.numel() // 30_000)]


def _gain(before: torch.Tensor, around: torch.Tensor, trust: torch.Tensor) -> float:
    before, around = _sample(before), _sample(around)
    textured = (before > _TEXTURE) & (_sample(trust) > 0.5)
    if textured.float().mean() < 0.02:
        return 1.0
    gain = (around[textured] / before[textured]).median().clamp(0.25, 1.5).item()
    return gain if abs(gain - 1) > _FADE else 1.0


def recomputed(trust: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
    """The cells that are worth computing again: where texture is, and little trust.

    Args:
        trust: (1, h, w).
        around: the contrast there, in codes.

    Returns:
        bool, (rows, columns).
    """
    importance = (1 - trust) * around / (around + _WORTH)
    return functional.avg_pool2d(importance[None], CELL, ceil_mode=True)[0, 0] > _RECOMPUTED


def refreshed(rows: int, columns: int, number: int, period: int, last: int) -> torch.Tensor:
    """The cells that are refreshed in a frame, so that none is carried for ever: a quarter of the frame at a time.

    As in the intra refresh of video codecs, but in few blocks, whose halos cost less; the phase is that of the frame's
    place in the file.

    Args:
        number: of the frame in the file.
        period: frames after which all cells have had their turn; 0 refreshes none.
        last: number of the frame before that was computed, not equal to its own: what fell due since is done now.

    Returns:
        bool, (rows, columns).
    """
    turn = torch.zeros(rows, columns, dtype=torch.bool)
    if not period:
        return turn
    down, across = 1 + (period > 3), 1 + (period > 1)
    every = period // (down * across)
    for beat in range(max(last // every, number // every - down * across) + 1, number // every + 1):
        # Neighbours in time are not neighbours in space: diagonals first.
        top = beat % down
        left = (beat // down + top) % across
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
    across = [sum(chosen << column for column, chosen in enumerate(row)) for row in cells.tolist()]
    down = [sum(chosen << row for row, chosen in enumerate(column)) for column in cells.T.tolist()]

    def cost(box: Box) -> float:
        top, left, bottom, right = box
        tall = min(rows, bottom + halo) - max(0, top - halo)
        wide = min(columns, right + halo) - max(0, left - halo)
        return tall * wide + _CALL

    def parted(box: Box) -> list[Box]:
        top, left, bottom, right = box
        halves = list(_halves([row & (1 << right) - (1 << left) for row in across[top:bottom]], top))
        turned = _halves([column & (1 << bottom) - (1 << top) for column in down[left:right]], left)
        halves += [((a[1], a[0], a[3], a[2]), (b[1], b[0], b[3], b[2])) for a, b in turned]
        best = min(halves, key=lambda two: cost(two[0]) + cost(two[1]), default=None)
        if best is None or cost(best[0]) + cost(best[1]) >= cost(box):
            return [box]
        return [part for half in best for part in parted(half)]

    held = [row for row, mask in enumerate(across) if mask]
    if not held:
        return []
    left, right = _span(across)
    return parted((held[0], left, held[-1] + 1, right))


def _span(masks: Sequence[int]) -> tuple[int, int]:
    """From the lowest bit that any of these has to beyond the highest."""
    held = reduce(or_, masks)
    return (held & -held).bit_length() - 1, held.bit_length()


def _halves(lines: list[int], first: int) -> Iterator[tuple[Box, Box]]:
    """The two boxes, fitted, of each way to part lines that are numbered from `first`; outer ones are not empty."""
    end = first + len(lines)
    for at in range(1, len(lines)):
        upper, lower = at, at
        while not lines[upper - 1]:
            upper -= 1
        while not lines[lower]:
            lower += 1
        (a, b), (c, d) = _span(lines[:at]), _span(lines[at:])
        yield (first, a, first + upper, b), (first + lower, c, end, d)
