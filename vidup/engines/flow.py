"""Optical flow between low-resolution frames, on the host: the only file that knows OpenCV."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch

from vidup.picture.metrics import luma


def both_ways(previous: torch.Tensor, current: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The flow from `current` to `previous`, and back: dense inverse search (Kroeger et al. 2016).

    The way back, which is only compared with the way there, is found at half the size.

    Args:
        previous, current: RGB in [0, 1], (3, H, W), on the host.

    Returns:
        float32 (2, H, W) each: right and down, in pixels, to where a pixel lies in the other picture.
    """
    before, now = _gray(previous), _gray(current)
    return _flow(now, before, finest=0), _flow(before, now, finest=1)


def _gray(picture: torch.Tensor) -> np.ndarray:
    return (luma(picture).clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _flow(of: np.ndarray, to: np.ndarray, finest: int) -> torch.Tensor:
    opencv: Any = cv2  # whose types are not whole
    search = opencv.DISOpticalFlow_create(opencv.DISOPTICAL_FLOW_PRESET_FAST)
    search.setFinestScale(finest)
    search.setGradientDescentIterations(8)  # half of the preset's, and less refinement: carried pictures are as good
    search.setVariationalRefinementIterations(2)
    return torch.from_numpy(search.calc(of, to, None)).permute(2, 0, 1).contiguous()
