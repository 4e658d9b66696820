"""Small RGB pictures of decoded frames, which the proof compares.

FFmpeg's scaler makes them: a fault of vidup's own conversion shows as a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from vidup.frame import Color
from vidup.picture.color import YCGCO

_SCALER_MATRICES = (1, 4, 7, 9)  # those of H.273 that the scaler knows, beside BT.601
_BT601 = 5
_FULL = 2  # AVCOL_RANGE_JPEG
_EVERY_COLUMN = 0x2000  # SWS_FULL_CHR_H_INT: packed pixels get their own colour each, as planar ones do


def thumbnails(
    frames: Iterable[Any], color: Color, height: int, width: int, alpha: bool = False
) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """Scale PyAV frames of any format by area.

    Args:
        color: the frames' matrix and range, whatever their tags; RGB is full range.
        height, width: of the small pictures: multiples of 4, for which the scaler's rows have no padding.
        alpha: with transparency; frames without it are opaque.

    Yields:
        When it is shown, in the frame's time base, and the picture: RGB (3, height, width), of which 65535 is white, or
        with transparency (4, height, width), of which 65535 is opaque.
    """
    scaler, area = VideoReformatter(), int(Interpolation.AREA)  # a name would be looked up for each frame
    matrix = color.matrix if color.matrix in _SCALER_MATRICES else _BT601  # the scaler refuses some tags of frames
    for frame in frames:
        kind = frame.format
        is_rgb = kind.is_rgb or kind.has_palette
        is_ycgco = color.matrix == YCGCO and not is_rgb and len(kind.components) >= 3
        # Packed pixels are one plane to take, at half of the time of a tiny picture, and the same bits where the size
        # changes; where it does not, the scaler converts some formats more coarsely.
        is_packed = not is_ycgco and (frame.width, frame.height) != (width, height)
        small: Any = scaler.reformat(
            frame,
            width,
            height,
            "yuv444p16le" if is_ycgco else "rgb48le" if is_packed else "gbrp16le",
            src_colorspace=matrix,
            dst_colorspace=matrix,
            interpolation=area | _EVERY_COLUMN if is_packed else area,
            src_color_range=_FULL if is_rgb or color.full_range else 1,
            dst_color_range=_FULL,
            threads=1,
        )
        planes = [np.frombuffer(plane, np.uint16).reshape(height, -1) for plane in small.planes]
        if is_packed:
            pixels = planes[0][:, : 3 * width].reshape(height, width, 3)
            picture = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        elif is_ycgco:
            picture = _from_ycgco(*(plane[:, :width] for plane in planes))
        else:  # the planes are green, blue, red
            picture = np.empty((3, height, width), np.uint16)
            picture[1], picture[2], picture[0] = (plane[:, :width] for plane in planes)
        if not color.full_range and kind.name.startswith(("gray", "ya", "yuvj")):
            picture = _expanded(picture)  # the scaler reads these as full range, whatever is set
        if alpha:
            small = scaler.reformat(frame, width, height, "gbrap16le", interpolation=area, threads=1)
            opacity = np.frombuffer(small.planes[3], np.uint16).reshape(height, -1)[:, :width]
            picture = np.concatenate([picture, opacity[None]])
        yield frame.pts, picture


def _from_ycgco(*planes: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Convert YCgCo, which the scaler does not know (H.273, table 4): Cg is in the place of Cb, Co in that of Cr."""
    luma, green, orange = (plane.astype(np.int32) for plane in planes)
    green, orange = green - 32768, orange - 32768
    codes = np.stack([luma - green + orange, luma + green, luma - green - orange])
    return codes.clip(0, 65535).astype(np.uint16)


def _expanded(picture: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Limited range that was read as full: 16 and 235 of 255 become black and white."""
    codes = (picture.astype(np.float32) - 16 * 257) * (255 / 219)
    return codes.clip(0, 65535).astype(np.uint16)
