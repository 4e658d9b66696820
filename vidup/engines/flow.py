"""Optical flow between low-resolution frames by OpenCV, on the host."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional

from vidup.picture.metrics import luma

_OPENCV: Any = cv2  # its types are incomplete
_FINE = 2  # the factor by which pictures are enlarged for the flow from `current` to `previous`
_LEAST = 16  # sides in pixels below which OpenCV's search fails, or ends the process


def both_ways(previous: torch.Tensor, current: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The flow from `current` to `previous`, and back: dense inverse search (Kroeger et al. 2016).

    The first is computed with enlarged pictures, in which patches find finer motion. The second is only compared with
    it, and computed with the pictures themselves.

    Args:
        previous, current: RGB in [0, 1], (3, H, W), on the host.

    Returns:
        float32 (2, H, W) each: right and down, in pixels, to a pixel's place in the other picture.
    """
    before, now = _gray(previous), _gray(current)
    height, width = now.shape
    fine = _fast(_enlarged(now), _enlarged(before), refined=0)
    there = functional.interpolate(fine[None], (height, width), mode="area")[0] / _FINE
    return there, _fast(before, now, refined=1)


def accurate(of: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """The flow from one picture to another, for measuring: OpenCV's preset MEDIUM, at full size.

    Args:
        of, to: luma in [0, 1], (H, W), on the host.

    Returns:
        float32 (2, H, W): right and down, in pixels, to the place in `to` of a pixel of `of`.
    """
    search = _OPENCV.DISOpticalFlow_create(_OPENCV.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)  # the preset's is half the size, with twice the error
    return _flow(_codes(of), _codes(to), search)


def _gray(picture: torch.Tensor) -> np.ndarray:
    return _codes(luma(picture))


def _codes(brightness: torch.Tensor) -> np.ndarray:
    return (brightness.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _enlarged(codes: np.ndarray) -> np.ndarray:
    height, width = codes.shape
    enlarged: np.ndarray = _OPENCV.resize(codes, (_FINE * width, _FINE * height), interpolation=_OPENCV.INTER_CUBIC)
    return enlarged


def _fast(of: np.ndarray, to: np.ndarray, refined: int) -> torch.Tensor:
    search = _OPENCV.DISOpticalFlow_create(_OPENCV.DISOPTICAL_FLOW_PRESET_FAST)
    search.setFinestScale(0)
    search.setGradientDescentIterations(8)  # half of the preset's; carried pictures are as good
    search.setVariationalRefinementIterations(refined)
    return _flow(of, to, search)


def _flow(of: np.ndarray, to: np.ndarray, search: Any) -> torch.Tensor:
    height, width = of.shape
    if min(height, width) < _LEAST:
        edges = (0, max(0, _LEAST - height)), (0, max(0, _LEAST - width))
        of, to = np.pad(of, edges, "edge"), np.pad(to, edges, "edge")
    found = search.calc(of, to, None)[:height, :width]
    return torch.from_numpy(found).permute(2, 0, 1).contiguous()
