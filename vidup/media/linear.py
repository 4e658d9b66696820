"""OpenEXR: its linear light is converted by the sRGB curve when it is read, and back when it is written.

Models expect pictures as displays show them. Light above 1 is clipped.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vidup.frame import Frame
from vidup.media.frames import filled

DECODER_OPTIONS = {"apply_trc": "iec61966_2_1"}
"""Options with which FFmpeg's decoder of OpenEXR applies the sRGB curve (IEC 61966-2-1)."""


def encodable(frame: Frame, pix_fmt: str) -> Any:
    """A PyAV frame of linear floats, made from a frame of RGB in 16 bits; transparency is not changed.

    Args:
        pix_fmt: ``gbrpf32le``, or ``gbrapf32le``, which is opaque where the frame has no transparency.
    """
    opaque = np.full(frame.planes[0].shape, 65535, np.uint16)
    shown = [codes.astype(np.float32) / 65535 for codes in (*frame.planes, opaque)]
    light = [np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4).astype("<f4") for x in shown[:3]]
    return filled([*light, *shown[3:]], pix_fmt)
