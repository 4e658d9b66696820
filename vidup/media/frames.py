"""PyAV frames and `Frame`s: one made from the other.

The linear light of OpenEXR is converted by the sRGB curve (IEC 61966-2-1) when it is read, and back when it is written:
models expect pictures as displays show them. Light above 1 is clipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vidup.frame import Color, Frame

EXR_OPTIONS = {"apply_trc": "iec61966_2_1"}
"""Options with which FFmpeg's decoder of OpenEXR applies the sRGB curve."""


def frame_of(picture: Any, pix_fmt: str, color: Color, times: tuple[int, int, Fraction] | None = None) -> Frame:
    """A frame that shares the planes of a PyAV frame of a planar format, at these times (with unit) or its own."""
    planes: Any = tuple(np.from_dlpack(plane) for plane in picture.planes)
    return Frame(planes, pix_fmt, color, *(times or (picture.pts, picture.duration, picture.time_base)))


def filled(planes: Sequence[NDArray[Any]], pix_fmt: str) -> Any:
    """A PyAV frame with copies of planes, in their format, one with transparency, or with samples in the high bits."""
    height, width = planes[0].shape
    result = av.VideoFrame(width, height, pix_fmt)
    shift = 16 - result.format.components[0].bits if pix_fmt.endswith("msble") else 0
    for plane, source in zip(result.planes, planes, strict=False):
        target = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        target[:, : source.shape[1] * source.itemsize] = np.ascontiguousarray(
            source << shift if shift else source
        ).view(np.uint8)
    for plane in result.planes[len(planes) :]:  # transparency that --pix-fmt adds: opaque
        bits = result.format.components[-1].bits
        np.frombuffer(plane, np.uint8 if bits == 8 else np.uint16)[:] = (1 << bits) - 1
    return result


def linear(frame: Frame, pix_fmt: str) -> Any:
    """A PyAV frame of linear floats, ``gbrpf32le`` or ``gbrapf32le``, from RGB of 16 bits; opacity is not changed."""
    opaque = np.full(frame.planes[0].shape, 65535, np.uint16)
    shown = [codes.astype(np.float32) / 65535 for codes in (*frame.planes, opaque)]
    light = [np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4).astype("<f4") for x in shown[:3]]
    return filled([*light, *shown[3:]], pix_fmt)


def tag(picture: Any, color: Color) -> None:
    """Set the colour tags of a PyAV frame."""
    picture.colorspace, picture.color_primaries = color.matrix, color.primaries
    picture.color_trc, picture.color_range = color.transfer, 2 if color.full_range else 1


def pulled(graph: Any) -> Iterator[Any]:
    """The frames that a filter graph has ready."""
    with suppress(av.error.BlockingIOError, av.error.EOFError):
        while True:
            yield graph.pull()
