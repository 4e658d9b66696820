"""Planes <-> RGB tensors: matrix, range, bit depth and chroma siting. Pure functions, in float32.

Formulas: ITU-T H.273 (matrix and range). Chroma is sited left in a row and between the rows, the default of MPEG-2,
H.264 and HEVC. Transfer and primaries are kept, never converted.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from vidup.errors import MediaError
from vidup.frame import Color, Frame, Layout, layout

UNSPECIFIED, RGB, BT709, BT601, BT2020, YCGCO = 2, 0, 1, 6, 9, 8

MATRIX_NAMES = {
    0: "RGB",
    1: "BT.709",
    4: "FCC",
    5: "BT.601",
    6: "BT.601",
    7: "SMPTE 240M",
    8: "YCgCo",
    9: "BT.2020",
    10: "BT.2020 with constant luminance",
    14: "ICtCp",
}
"""The names of the codes of H.273."""

_SETTINGS = {"bt709": BT709, "bt601": BT601, "bt2020": BT2020, "smpte240m": 7, "fcc": 4}

# Kr and Kb of the matrix codes of H.273 that have them and are linear in R'G'B'.
_LUMA = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}


def resolve(
    color: Color, pix_fmt: str, width: int, height: int, matrix_setting: str = "auto", range_setting: str = "auto"
) -> Color:
    """Fill in a matrix that is not tagged, as players do: BT.709 from 720 lines on, else BT.601.

    Args:
        matrix_setting: `Settings.matrix`, instead of the file's tag; planes of RGB have none.
        range_setting: `Settings.range`, instead of the file's tag.

    Raises:
        MediaError: the tagged matrix cannot be converted.
    """
    kind = layout(pix_fmt)
    matrix = _SETTINGS.get(matrix_setting, color.matrix)
    if kind is not None and kind.family == "gbr":
        matrix = RGB
    elif matrix in (UNSPECIFIED, RGB):
        matrix = BT709 if height >= 720 or width >= 1280 else BT601
    else:
        matrix = _known(matrix)
    full = color.full_range or pix_fmt.startswith("yuvj") or matrix == RGB
    if range_setting != "auto":
        full = range_setting == "full"
    return Color(matrix, color.primaries, color.transfer, full)


def to_rgb(frame: Frame, device: torch.device | str = "cpu") -> torch.Tensor:
    """Convert a frame's planes to RGB.

    Returns:
        float32 (3, height, width) on `device`, nominally in [0, 1]; values beyond, as in limited-range footage, are
        kept.

    Raises:
        MediaError: the planes are YUV, and the matrix is unspecified or cannot be converted.
    """
    kind = _layout(frame.pix_fmt)
    planes = [_uploaded(plane, device) for plane in frame.planes[: kind.planes]]
    scale, offset = _luma_codes(kind, frame.color.full_range)
    if kind.family == "gbr":
        green, blue, red = planes
        return torch.stack([red, green, blue]).sub_(offset).div_(scale)
    luma = planes[0].sub_(offset).div_(scale)
    if kind.family == "gray":
        return luma.expand(3, -1, -1).clone()
    swing, middle = _chroma_codes(kind, frame.color.full_range)
    height, width = luma.shape
    chroma = [_enlarge(plane.sub_(middle).div_(swing), kind, height, width) for plane in planes[1:]]
    matrix = _to_rgb_matrix(_known(frame.color.matrix), luma.device)
    rgb: torch.Tensor = torch.tensordot(matrix, torch.stack([luma, *chroma]), 1)
    return rgb


def from_rgb(rgb: torch.Tensor, pix_fmt: str, color: Color) -> tuple[NDArray[np.uint8] | NDArray[np.uint16], ...]:
    """Convert RGB to planes on the CPU, as `to_codes`: uint8 for 8 bits and uint16 above."""
    return planes_of(to_codes(rgb, pix_fmt, color))


def to_codes(
    rgb: torch.Tensor, pix_fmt: str, color: Color, alpha: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """Convert RGB to the codes of planes, rounded to the nearest and only then clipped.

    Args:
        rgb: float (3, height, width), nominally in [0, 1], any device.
        pix_fmt: a planar format in ffmpeg's name.
        color: matrix and range of the planes.
        alpha: transparency in [0, 1], (1, height, width); the last plane where the format has one.

    Returns:
        (height, width) each, on the device of `rgb`: uint8 for 8 bits, int32 above.

    Raises:
        MediaError: the pixel format, or the matrix of YUV, cannot be converted.
    """
    kind = _layout(pix_fmt)
    rgb = rgb.to(torch.float32)
    peak = float((1 << kind.bits) - 1)

    def codes(plane: torch.Tensor, scale: float, offset: float) -> torch.Tensor:
        rounded = (plane * scale).add_(offset).round_().clamp_(0, peak)
        # torch has few kernels for uint16: the codes are int32 until they are numpy's.
        return rounded.to(torch.uint8 if kind.bits == 8 else torch.int32)

    luma_codes, chroma_codes = _luma_codes(kind, color.full_range), _chroma_codes(kind, color.full_range)
    behind = (codes(alpha[0].to(rgb), peak, 0.0),) if alpha is not None and kind.alpha else ()
    if kind.family == "gbr":
        red, green, blue = rgb
        return codes(green, *luma_codes), codes(blue, *luma_codes), codes(red, *luma_codes), *behind
    if kind.family == "gray":  # pictures that were RGB may have no other matrix
        to_gray = _to_ycc_on(color.matrix if _converts(color.matrix) else BT709, rgb.device)[0]
        return (codes(torch.tensordot(to_gray, rgb, 1), *luma_codes),)
    ycc = torch.tensordot(_to_ycc_on(_known(color.matrix), rgb.device), rgb, 1)
    chroma = _reduce(ycc[1:], kind)
    return codes(ycc[0], *luma_codes), codes(chroma[0], *chroma_codes), codes(chroma[1], *chroma_codes), *behind


def check_target(pix_fmt: str, color: Color) -> None:
    """Check that RGB can be converted to these planes; raises as `to_codes`, but before the model has worked."""
    if _layout(pix_fmt).family == "yuv":
        _known(color.matrix)


def to_array(frame: Frame) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """A frame as R, G, B: (height, width, 3), uint8 from 8 bits, else uint16 of which 65535 is white."""
    deep = _layout(frame.pix_fmt).bits > 8
    green, blue, red = from_rgb(to_rgb(frame), "gbrp16le" if deep else "gbrp", Color(RGB, full_range=True))
    array: NDArray[Any] = np.stack([red, green, blue], -1)
    return array


def alpha_of(frame: Frame, device: torch.device | str = "cpu") -> torch.Tensor | None:
    """A frame's transparency in [0, 1], float32 (1, h, w) on `device`; None where it has none."""
    kind = _layout(frame.pix_fmt)
    if len(frame.planes) == kind.planes:
        return None
    return _uploaded(frame.planes[-1], device)[None] / ((1 << kind.bits) - 1)


def check_codes(frame: Frame) -> None:
    """Check that no sample is above its format's white, as samples in the high bits are.

    Raises:
        MediaError: a plane has such a sample.
    """
    bits = _layout(frame.pix_fmt).bits
    if bits in (8, 16):
        return
    for index, plane in enumerate(frame.planes):
        if (most := int(plane.max())) >= 1 << bits:
            raise MediaError(
                f"frame: plane {index} of {frame.pix_fmt}, {plane.dtype} of shape {plane.shape}, holds {most}, and"
                f" {(1 << bits) - 1} is the most in {bits} bits: shift samples down that stand in the high bits"
            )


def _converts(matrix: int) -> bool:
    return matrix in _LUMA or matrix == YCGCO


def _known(matrix: int) -> int:
    """The matrix of planes of YUV, checked.

    Raises:
        MediaError: it cannot be converted; it may be unspecified, or that of RGB.
    """
    if _converts(matrix):
        return matrix
    if matrix in (UNSPECIFIED, RGB):
        raise MediaError(
            f"colour matrix {matrix} ({MATRIX_NAMES.get(matrix, 'unspecified')}) says nothing of planes of YUV:"
            f" give Color({BT709}) for BT.709, Color({BT601}) for BT.601"
        )
    name = f" ({MATRIX_NAMES[matrix]})" if matrix in MATRIX_NAMES else ""
    raise MediaError(
        f"colour matrix {matrix} of ITU-T H.273{name} is not supported: convert the video to BT.709 first,"
        " or say with --matrix what it truly is"
    )


def planes_of(codes: Iterable[torch.Tensor]) -> tuple[NDArray[np.uint8] | NDArray[np.uint16], ...]:
    """The results of `to_codes` as arrays: uint8, or uint16 where they are int32."""
    arrays = (one.cpu().numpy() for one in codes)
    return tuple(one if one.dtype == np.uint8 else one.astype(np.uint16) for one in arrays)


def _uploaded(plane: NDArray[Any], device: torch.device | str) -> torch.Tensor:
    """A plane as floats on the device; a GPU copies its codes from pinned memory asynchronously."""
    kind = torch.device(device).type
    wide = kind == "mps" and plane.dtype == np.uint16  # older versions of torch have no uint16 there
    codes = torch.from_numpy(plane.astype(np.int32) if wide else plane.copy())  # those of decoders are read-only
    codes = codes.pin_memory().to(device, non_blocking=True) if kind == "cuda" else codes.to(device)
    return codes.to(torch.float32)


@cache
def _to_ycc_matrix(code: int) -> torch.Tensor:
    """R'G'B' to Y'CbCr, Y' in [0, 1] and chroma in [-1/2, 1/2]: float64 (3, 3)."""
    if code == YCGCO:  # Cg is in the place of Cb, Co in that of Cr
        return torch.tensor([[0.25, 0.5, 0.25], [-0.25, 0.5, -0.25], [0.5, 0.0, -0.5]], dtype=torch.float64)
    kr, kb = _LUMA[code]
    luma = torch.tensor([kr, 1 - kr - kb, kb], dtype=torch.float64)
    red, blue = torch.eye(3, dtype=torch.float64)[[0, 2]]
    return torch.stack([luma, (blue - luma) / (2 * (1 - kb)), (red - luma) / (2 * (1 - kr))])


# On the device once: with a copy for each frame the host would wait for the device's whole queue.


@cache
def _to_ycc_on(code: int, device: torch.device) -> torch.Tensor:
    """The same as float32 on a device."""
    return _to_ycc_matrix(code).float().to(device)


@cache
def _to_rgb_matrix(code: int, device: torch.device) -> torch.Tensor:
    """Y'CbCr to R'G'B': float32 (3, 3) on a device."""
    inverse: torch.Tensor = torch.linalg.inv(_to_ycc_matrix(code))
    return inverse.float().to(device)


def _luma_codes(kind: Layout, full_range: bool) -> tuple[float, float]:
    """Code = value * scale + offset, for Y', R', G' and B'."""
    unit = 1 << (kind.bits - 8)
    return (float((1 << kind.bits) - 1), 0.0) if full_range else (219.0 * unit, 16.0 * unit)


def _chroma_codes(kind: Layout, full_range: bool) -> tuple[float, float]:
    scale = (1 << kind.bits) - 1 if full_range else 224 << (kind.bits - 8)
    return float(scale), float(1 << (kind.bits - 1))


def _layout(pix_fmt: str) -> Layout:
    kind = layout(pix_fmt)
    if kind is None:
        raise MediaError(f"pixel format {pix_fmt!r} is not planar YUV, gray or RGB: choose another with --pix-fmt")
    return kind


def _enlarge(chroma: torch.Tensor, kind: Layout, height: int, width: int) -> torch.Tensor:
    """Interpolate chroma linearly to luma's places: it is sited on the left column of a group, between the rows."""
    if kind.chroma_x > 1:
        chroma = _interpolate(chroma, kind.chroma_x, 0.0)[:, :width]
    if kind.chroma_y > 1:
        chroma = _interpolate(chroma.T, kind.chroma_y, (kind.chroma_y - 1) / 2).T[:height]
    return chroma


def _interpolate(rows: torch.Tensor, factor: int, site: float) -> torch.Tensor:
    """Interpolate samples of the last axis, sited at ``factor * i + site``, at every integer; edges are repeated."""
    before = torch.cat([rows[:, :1], rows[:, :-1]], 1)
    after = torch.cat([rows[:, 1:], rows[:, -1:]], 1)
    phases = []
    for place in range(factor):
        share = (place - site) / factor  # of the distance from this sample to the next (below 0: to the one before)
        neighbour = after if share >= 0 else before
        phases.append(rows if share == 0 else rows * (1 - abs(share)) + neighbour * abs(share))
    return torch.stack(phases, -1).flatten(1)


def _reduce(chroma: torch.Tensor, kind: Layout) -> torch.Tensor:
    """Filter and decimate chroma, (2, height, width): the mean of a group's rows, a tent around its left column."""
    x, y = kind.chroma_x, kind.chroma_y
    if y > 1:
        chroma = functional.pad(chroma, (0, 0, 0, -chroma.shape[1] % y), mode="replicate")
        chroma = sum(chroma[:, row::y] for row in range(y)) / y  # type: ignore[assignment]
    if x > 1:
        count = -(-chroma.shape[2] // x)
        padded = functional.pad(chroma, (x - 1, count * x - chroma.shape[2], 0, 0), mode="replicate")
        taps = [(1 - abs(place - (x - 1)) / x) / x for place in range(2 * x - 1)]
        chroma = sum(tap * padded[:, :, place::x][:, :, :count] for place, tap in enumerate(taps))  # type: ignore[assignment]
    return chroma
