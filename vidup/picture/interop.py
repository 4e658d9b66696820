"""Pictures of NumPy, torch and Pillow: to RGB and transparency in [0, 1], and results back to the kind of the input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from vidup.errors import MediaError
from vidup.frame import Color, layout
from vidup.picture.color import BT709, RGB, planes_of, to_codes
from vidup.picture.metrics import luma

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {
    *("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"),
    *("I;16", "I;16L", "I;16B", "I;16N"),
}
"""Pillow's modes whose samples have a known range, so that they can be converted to RGB."""

_CONVERTED_BACK = {"YCbCr", "HSV", "CMYK", "RGBX", "RGBa"}
"""Modes to which a result is converted; palettes and single bits cannot represent a result."""

_WHITE = {torch.uint8: 255, torch.uint16: 65535}
_DARKEST, _BRIGHTEST = -1.0, 2.0
"""The range of floats: what is beyond it is integer codes or linear light, and would be clipped to white.

Overshoots of sharpening are within. So are frames of 0 to 255, as MoviePy's fades give them, that are black up to 2 of
255: they are misread, but the result is in their own numbers, and within two codes of the input.
"""


@dataclass(frozen=True)
class Taken:
    """Pictures of another library, converted to RGB."""

    rgb: torch.Tensor
    """float32 (T, 3, h, w), nominally in [0, 1]."""
    alpha: torch.Tensor | None
    """float32 (T, 1, h, w) in [0, 1]; None where they are opaque."""
    back: Callable[[torch.Tensor, torch.Tensor | None], Any]
    """Converts a result's RGB and transparency, float32 (T, 3 or 1, H, W), to the kind of the input."""

    def shows(self, other: Taken) -> bool:
        """Whether both are the same pictures."""
        if self.alpha is None or other.alpha is None:
            return self.alpha is other.alpha and torch.equal(self.rgb, other.rgb)
        return torch.equal(self.rgb, other.rgb) and torch.equal(self.alpha, other.alpha)


def take(picture: Any) -> Taken:
    """Read a picture of another library.

    Args:
        picture: a NumPy array (h, w) or (h, w, 1 to 4), a tensor (h, w), (1 to 4, h, w) or (T, 1 to 4, h, w), uint8,
            uint16 or float, or a Pillow image of a mode in `MODES`. One channel is gray, two are gray and
            transparency, three RGB, four RGB and transparency (not premultiplied).

    Raises:
        MediaError: it is something else, has NaN or infinities, or floats far outside of [0, 1].
    """
    if isinstance(picture, np.ndarray):
        return _array(picture)
    if isinstance(picture, torch.Tensor):
        return _tensor(picture)
    from PIL import Image as pillow

    if isinstance(picture, pillow.Image):
        return _image(picture)
    raise MediaError(
        f"picture: is of type {type(picture).__name__}: expected an array of NumPy, a tensor, a Pillow image or a Frame"
    )


def to_planes(
    array: NDArray[Any], pix_fmt: str | None, color: Color | None
) -> tuple[tuple[NDArray[np.uint8] | NDArray[np.uint16], ...], str, Color]:
    """Convert an array to planes, with their format and colour; see `Frame.from_rgb`."""
    taken = _array(array)
    if pix_fmt is None:
        family = "gray" if array.ndim == 2 or array.shape[2] < 3 else "gbrap" if array.shape[2] == 4 else "gbrp"
        pix_fmt = family if array.dtype == np.uint8 else f"{family}16le"
    gray, kind = pix_fmt.startswith("gray"), layout(pix_fmt)
    if taken.alpha is not None and kind is not None and not kind.alpha:
        raise MediaError(f"picture: of shape {array.shape}, with transparency, for which {pix_fmt} has no plane")
    color = color or Color(BT709 if gray else RGB, full_range=True)
    alpha = None if taken.alpha is None else taken.alpha[0]
    return planes_of(to_codes(taken.rgb[0], pix_fmt, color, alpha)), pix_fmt, color


def _array(array: NDArray[Any]) -> Taken:
    named = f"picture: an array of shape {array.shape} and dtype {array.dtype}"
    dtype = array.dtype
    if dtype.kind not in "uf" or (dtype.kind == "u" and dtype.itemsize > 2):
        raise MediaError(f"{named}: expected uint8, uint16 or a float")
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] > 4):
        raise MediaError(f"{named}: expected (height, width) or (height, width, channels), of 1 to 4 channels")
    native = np.ascontiguousarray(array, dtype.newbyteorder("="))
    if dtype.kind == "f" and dtype.itemsize not in (2, 4, 8):
        native = native.astype(np.float64)
    own = torch.from_numpy(native if native.flags.writeable and native is not array else native.copy())
    taken = _planes((own if own.dim() == 3 else own[..., None]).permute(2, 0, 1)[None], own.dtype, named)

    def back(rgb: torch.Tensor, alpha: torch.Tensor | None) -> NDArray[Any]:
        pixels: NDArray[Any] = taken.back(rgb, alpha)[0].permute(1, 2, 0).contiguous().cpu().numpy()
        pixels = pixels if array.ndim == 3 else pixels[..., 0]
        return pixels.astype(dtype, copy=False)

    return Taken(taken.rgb, taken.alpha, back)


def _tensor(tensor: torch.Tensor) -> Taken:
    named = f"picture: a tensor of shape {tuple(tensor.shape)} and dtype {str(tensor.dtype)[6:]}"
    if tensor.dtype not in _WHITE and not tensor.dtype.is_floating_point:
        raise MediaError(f"{named}: expected uint8, uint16 or a float")
    channels = tensor.shape[-3] if tensor.dim() > 2 else 1
    if not 2 <= tensor.dim() <= 4 or not tensor.numel() or channels > 4:
        raise MediaError(
            f"{named}: expected (height, width), (channels, height, width) or (T, channels, height, width)"
        )
    taken = _planes(tensor.detach().reshape(-1, channels, *tensor.shape[-2:]), tensor.dtype, named)

    def back(rgb: torch.Tensor, alpha: torch.Tensor | None) -> torch.Tensor:
        planes: torch.Tensor = taken.back(rgb, alpha).to(tensor.device)
        if planes.is_inference() and not torch.is_inference_mode_enabled():
            planes = planes.clone()  # an ordinary tensor, for autograd and in-place operations
        return planes.reshape(*tensor.shape[:-2], *planes.shape[-2:])

    return Taken(taken.rgb, taken.alpha, back)


def _image(image: Image) -> Taken:
    from PIL import Image as pillow

    if image.mode not in MODES:
        raise MediaError(f"picture: an image of mode {image.mode}, whose white is not known: make it RGB, L or I;16")
    mode = image.mode
    if mode.startswith("I;16"):
        source = np.asarray(image).astype(np.uint16)
    else:
        opaque = "L" if mode in ("1", "L", "LA") else "RGB"
        transparent = "a" in "".join(image.getbands()).lower() or "transparency" in image.info
        source = np.asarray(image.convert(opaque + "A" * transparent))
    taken = _array(source)

    def back(rgb: torch.Tensor, alpha: torch.Tensor | None) -> Image:
        result = pillow.fromarray(taken.back(rgb, alpha))
        if mode in _CONVERTED_BACK:
            result = result.convert(mode)
        result.info = {key: value for key, value in image.info.items() if key != "transparency"}
        return result

    return Taken(taken.rgb, taken.alpha, back)


def _planes(planes: torch.Tensor, dtype: torch.dtype, named: str) -> Taken:
    """Convert a tensor (T, 1 to 4, h, w) whose results have `dtype`, too."""
    count, white, values = planes.shape[1], _WHITE.get(dtype), planes.to(torch.float32)
    within = white is not None or _check_floats(values, named)
    if white is not None:
        values = values / white
    colors, alpha = (values[:, :-1], values[:, -1:].clamp(0, 1)) if count in (2, 4) else (values, None)

    def back(rgb: torch.Tensor, alpha: torch.Tensor | None) -> torch.Tensor:
        found = luma(rgb).unsqueeze(-3) if count < 3 else rgb
        found = found if alpha is None else torch.cat([found, alpha.to(found)], 1)
        if white is None:  # what lies a little beyond would turn around where it is made a code
            return (found.clamp(0, 1) if within else found).to(dtype)
        codes = (found * white).round_().clamp_(0, white)
        return codes.to(torch.int32).to(dtype)

    return Taken(colors.expand(-1, 3, -1, -1).contiguous(), alpha, back)


def _check_floats(values: torch.Tensor, named: str) -> bool:
    """Refuse floats that cannot be meant; returns whether all lie within [0, 1]."""
    low, high = (float(bound) for bound in values.aminmax())
    if not (abs(low) < float("inf") and abs(high) < float("inf")):  # false for NaN, too
        count = int((~values.isfinite()).sum())
        raise MediaError(f"{named}: {count} of its values are NaN or infinite, which would spoil all around them")
    if low < _DARKEST or high > _BRIGHTEST:
        raise MediaError(
            f"{named}: holds {low:g} to {high:g}, and floats are expected in [0, 1], as a display shows them: divide"
            " codes by their white, or make them uint8 or uint16 again; tone-map linear light"
        )
    return low >= 0 and high <= 1
