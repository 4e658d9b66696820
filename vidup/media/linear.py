"""OpenEXR: its light is linear, and pictures here are as displays show them; by sRGB's curve, both ways.

Models know pictures as displays show them. Above 1 there is light that no display shows: it is clipped.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np

from vidup.frame import Frame

DECODER_OPTIONS = {"apply_trc": "iec61966_2_1"}
"""With these FFmpeg's decoder of OpenEXR gives sRGB's curve (IEC 61966-2-1)."""


def encodable(frame: Frame) -> Any:
    """A PyAV frame of linear floats, of one of RGB."""
    height, width = frame.planes[0].shape
    result = av.VideoFrame(width, height, "gbrpf32le")
    for plane, codes in zip(result.planes, frame.planes, strict=False):
        shown = codes.astype(np.float32) / 65535
        linear = np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4).astype("<f4")
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : 4 * width] = linear.view(np.uint8)
    return result
