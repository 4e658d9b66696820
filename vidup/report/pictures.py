"""Pictures for a page: whole and in detail, maps of differences, WebP."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from vidup.comparison import resized
from vidup.picture.metrics import luma
from vidup.picture.temporal import mean

WHOLE = 1280
"""The largest side of a picture in pixels; a larger one is downscaled, and a detail of it is shown, too."""
DETAIL = (400, 640)
"""Height and width of that detail."""
LINE = 480
"""The length of a line over time, in pixels."""

_REACH = 31  # side of the square over which differences are averaged
_HEAT = ((0, 0, 0), (80, 20, 120), (200, 50, 70), (250, 150, 30), (255, 250, 200))


@dataclass(frozen=True)
class View:
    """Pictures of one size and one part of the frame, of which the page shows two, one over the other."""

    about: str
    width: int
    height: int
    shown: int
    """The width at which they are shown, if the window is wide enough."""
    pictures: tuple[tuple[str, str], ...]
    """(name, data URI) of each."""


def views(pictures: Mapping[str, torch.Tensor], maps: Mapping[str, torch.Tensor]) -> list[View]:
    """Views of the whole pictures and, where these are too large, of the detail where the first two differ most.

    Args:
        pictures: RGB (3, H, W) in [0, 1], all of one size.
        maps: differences, (H, W) in [0, 1].
    """
    every = {**pictures, **{name: heat(shares) for name, shares in maps.items()}}
    first, *others = pictures.values()
    height, width = first.shape[-2:]
    if max(height, width) <= WHOLE:
        enlarged = min(width * max(1, round(960 / width)), WHOLE)  # small pictures, by an integer
        return [_view(f"whole, {width}x{height}", every, enlarged)]
    share = WHOLE / max(height, width)
    size = max(1, round(height * share)), max(1, round(width * share))
    small = {name: resized(picture, size) for name, picture in every.items()}
    y, x = farthest(first, others[0] if others else first)
    top, left = corner(y, DETAIL[0], height), corner(x, DETAIL[1], width)
    part = {name: one[:, top : top + DETAIL[0], left : left + DETAIL[1]] for name, one in every.items()}
    return [
        _view(f"whole, made smaller: {width}x{height} as {size[1]}x{size[0]}", small, size[1]),
        _view(f"1:1, where they differ most: from x {left}, y {top}", part, min(DETAIL[1], width)),
    ]


def _view(about: str, pictures: Mapping[str, torch.Tensor], shown: int) -> View:
    height, width = next(iter(pictures.values())).shape[-2:]
    return View(about, width, height, shown, tuple((name, embedded(picture)) for name, picture in pictures.items()))


def corner(middle: int, side: int, length: int) -> int:
    """The begin of a part of length `side` around `middle`, within `length`."""
    return max(0, min(middle - side // 2, length - side))


def farthest(one: torch.Tensor, other: torch.Tensor) -> tuple[int, int]:
    """The row and the column around which two pictures differ most."""
    difference = (one - other).square().mean(0, keepdim=True)
    side = min(_REACH, *(length - 1 + length % 2 for length in difference.shape[-2:]))
    place = int(mean(difference, side).argmax())
    return divmod(place, difference.shape[-1])


def difference(one: torch.Tensor, other: torch.Tensor, codes: float) -> torch.Tensor:
    """The difference of pictures, (H, W): 1 where their channels differ by `codes` of 255 or more on average."""
    return ((one - other).abs().mean(0) * (255 / codes)).clamp(0, 1)


def texture(one: torch.Tensor, other: torch.Tensor, codes: float) -> torch.Tensor:
    """The root mean square difference of luma around each pixel, (H, W): 1 from `codes` of 255 on."""
    side = min(7, *(length - 1 + length % 2 for length in one.shape[-2:]))
    return (mean((luma(one) - luma(other)).square()[None], side)[0].clamp(min=0).sqrt() * (255 / codes)).clamp(0, 1)


def as_large(shares: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A map, (h, w), resized by nearest neighbour."""
    return functional.interpolate(shares[None, None], tuple(size), mode="nearest")[0, 0]


def heat(shares: torch.Tensor) -> torch.Tensor:
    """A map, (H, W) in [0, 1], as RGB: from black by violet and orange to white."""
    places = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(shares.numpy(), places, codes) for codes in zip(*_HEAT, strict=True)]
    return torch.from_numpy(np.stack(channels)).float() / 255


def embedded(picture: torch.Tensor) -> str:
    """A picture, RGB (3, H, W) in [0, 1], as a data URI: lossless WebP, a third smaller than PNG."""
    codes = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(codes).save(file, "WEBP", lossless=True, quality=50, method=2)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
