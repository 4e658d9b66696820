"""Measures of a video's flicker, on the luma of neighbouring frames. Pure functions."""

from __future__ import annotations

import torch
from torch.nn import functional

from vidup.picture.temporal import agree, inside, warp

LEAST = 0.2
"""The least share of a frame with a reliable flow: at a cut it is a twentieth, else mostly three quarters."""

_HIDDEN = 0.5  # squared pixels by which flow there and back may differ, beside a hundredth of their lengths' squares
_EDGE = 0.002  # squared gradient of the flow, beside a hundredth of its length's square


def followed(forward: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
    """Where a flow is reliable: no occlusion, and no edge between motions (Ruder et al. 2016).

    Args:
        forward: (2, H, W), in pixels, to where a pixel was in the frame before.
        backward: the flow of the opposite direction.

    Returns:
        bool, (H, W); false where a pixel was outside the frame before.
    """
    squares = sum(one.square().sum(0) for one in torch.gradient(forward, dim=(-2, -1)))
    edges = squares > 0.01 * forward.square().sum(0) + _EDGE
    return agree(forward, warp(backward, forward, "bilinear"), _HIDDEN)[0] & inside(forward)[0] & ~edges


def warp_error(previous: torch.Tensor, current: torch.Tensor, flow: torch.Tensor, where: torch.Tensor) -> float | None:
    """E*warp (Lai et al. 2018): the mean square by which a frame differs from the one before, moved along the flow.

    Args:
        previous, current: luma in [0, 1], (H, W).
        flow: (2, H, W), in pixels, to where a pixel of `current` was.
        where: bool, (H, W): the pixels that count.

    Returns:
        Squared codes of 255; None where less than `LEAST` of the frame counts.
    """
    if where.float().mean() < LEAST:
        return None
    return 255**2 * float((warp(previous[None], flow)[0] - current)[where].double().square().mean())


def flow_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """tOF (Chu et al. 2020, TecoGAN): the mean distance in pixels between two flows, (2, ...)."""
    return float((one - other).double().square().sum(0).sqrt().mean())


def unchanged(previous: torch.Tensor, current: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The pixels of pictures of `size` around which the low-resolution frames, RGB (3, h, w), are equal: bool, `size`.

    The eight neighbours of a low-resolution pixel are equal as well.
    """
    changed = (previous != current).any(0).float()[None, None]
    near = functional.max_pool2d(changed, 3, 1, 1)
    return functional.interpolate(near, size, mode="nearest")[0, 0] == 0


def deviation(previous: torch.Tensor, current: torch.Tensor, where: torch.Tensor) -> float | None:
    """The standard deviation over time, from neighbouring frames: by their mean square difference (von Neumann 1941).

    Args:
        previous, current: luma in [0, 1], (H, W).
        where: bool, (H, W): the pixels that count.

    Returns:
        Codes of 255; None where no pixel counts.
    """
    if not where.any():
        return None
    return 255 * float(((current - previous)[where].double().square().mean() / 2).sqrt())
