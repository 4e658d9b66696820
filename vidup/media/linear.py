"""OpenEXR: its linear light is converted by the sRGB curve when it is read, and back when it is written.

Models expect pictures as displays show them. Light above 1 is clipped.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np

from vidup.frame import Frame

DECODER_OPTIONS = {"apply_trc": "iec61966_2_1"}
"""Options with which FFmpeg's decoder of OpenEXR applies the sRGB curve (IEC 61966-2-1)."""


def encodable(frame: Frame, pix_fmt: str) -> Any:
    """A PyAV frame of linear floats, made from a frame of RGB in 16 bits; transparency is not changed.

    Args:
        pix_fmt: ``gbrpf32le``, or ``gbrapf32le``, which is opaque where the frame has no transparency.
    """
    height, width = frame.planes[0].shape
    result = av.VideoFrame(width, height, pix_fmt)
    opaque = np.full((height, width), 65535, np.uint16)
    for index, (plane, codes) in enumerate(zip(result.planes, (*frame.planes, opaque), strict=False)):
        shown = codes.astype(np.float32) / 65535
        curved = np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4)
        linear = (shown if index == 3 else curved).astype("<f4")
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : 4 * width] = linear.view(np.uint8)
    return result
