"""Small RGB pictures of decoded frames, by FFmpeg's scaler: what a proof compares.

Nothing of vidup's own conversion is in them, so that a fault there shows as a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from vidup.frame import Color
from vidup.picture.color import YCGCO

_SCALER_CODES = {1: 1, 4: 4, 7: 7, 9: 9}  # the matrices of H.273 that the scaler knows beside BT.601
_BT601 = 5
_FULL = 2  # AVCOL_RANGE_JPEG


class Thumbnail(NamedTuple):
    """A small picture, and when it is shown."""

    pts: int
    """In the frame's time base."""
    picture: NDArray[np.uint16]
    """(3, height, width), RGB, 65535 is white."""


def thumbnails(frames: Iterable[Any], color: Color, height: int, width: int) -> Iterator[Thumbnail]:
    """Scale PyAV frames of any format by area.

    Args:
        color: the matrix and range that the frames are meant in, whatever they say themselves; RGB is full range.
        height, width: of the small pictures: a multiple of 4 each, which lets the scaler's rows be read as they lie.
    """
    scaler, area = VideoReformatter(), int(Interpolation.AREA)  # a name is looked up for each frame
    matrix = _SCALER_CODES.get(color.matrix, _BT601)  # always said: it refuses some tags of frames
    for frame in frames:
        kind = frame.format
        is_rgb = kind.is_rgb or kind.has_palette
        ycgco = color.matrix == YCGCO and not is_rgb and len(kind.components) >= 3
        small: Any = scaler.reformat(
            frame,
            width,
            height,
            "yuv444p16le" if ycgco else "gbrp16le",
            src_colorspace=matrix,
            dst_colorspace=matrix,
            interpolation=area,
            src_color_range=_FULL if is_rgb or color.full_range else 1,
            dst_color_range=_FULL,
            threads=1,
        )
        planes = [np.frombuffer(plane, np.uint16).reshape(height, -1)[:, :width] for plane in small.planes]
        if ycgco:
            picture = _from_ycgco(*planes)
        else:  # the planes are green, blue, red
            picture = np.empty((3, height, width), np.uint16)
            picture[1], picture[2], picture[0] = planes
        # The scaler takes these formats as full range, whatever is set.
        if not color.full_range and kind.name.startswith(("gray", "ya", "yuvj")):
            picture = _expanded(picture)
        yield Thumbnail(frame.pts, picture)


def _from_ycgco(*planes: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """A matrix that the scaler does not know (H.273, table 4): Cg stands in the place of Cb, Co in that of Cr."""
    luma, green, orange = (plane.astype(np.int32) for plane in planes)
    green, orange = green - 32768, orange - 32768
    codes = np.stack([luma - green + orange, luma + green, luma - green - orange])
    return codes.clip(0, 65535).astype(np.uint16)


def _expanded(picture: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Limited range that was read as full: 16 and 235 of 255 become black and white."""
    codes = (picture.astype(np.float32) - 16 * 257) * (255 / 219)
    return codes.clip(0, 65535).astype(np.uint16)
