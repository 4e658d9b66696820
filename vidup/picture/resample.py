"""Antialiased bicubic resampling, and the anchor."""

from __future__ import annotations

from functools import lru_cache, reduce

import torch
from torch.nn import functional


def anchor(picture: torch.Tensor, low_res: torch.Tensor, rounds: int) -> torch.Tensor:
    """Pull a picture back to what it enlarges: iterated back-projection (Irani and Peleg 1991).

    Each round adds ``up(low_res - down(picture))``, antialiased bicubic both ways, over the whole frame. It ends the
    shift of colours and the flicker of low frequencies, and makes the result, downscaled, the input.

    Args:
        picture: float32 (T, 3, H, W).
        low_res: float32 (T, 3, h, w).
        rounds: 0 leaves the picture as it is.
    """
    if rounds == 0:
        return picture
    return back_project(picture, low_res - resize(picture, low_res.shape[-2:]), rounds)


def back_project(picture: torch.Tensor, missing: torch.Tensor, rounds: int) -> torch.Tensor:
    """Add to a picture what it lacks at low resolution, as `anchor` does.

    All rounds but for the last enlargement take place at low resolution: what is missing after one is
    ``missing - down(up(missing))``, and enlarging is linear.

    Args:
        picture: float32 (T, 3, H, W).
        missing: float32 (T, 3, h, w), what its downscaled pixels lack.
        rounds: 1 and more.
    """
    total = missing
    for _ in range(rounds - 1):
        shown = missing
        for axis in (-2, -1):
            shown = _there_and_back(shown, axis, picture.shape[axis])
        missing = missing - shown
        total = total + missing
    return picture + resize(total, picture.shape[-2:])


_REACH = 3
"""Pixels to either side on which one depends that was enlarged by a whole factor and reduced again."""
_LEAST = 4 * _REACH


def _there_and_back(pictures: torch.Tensor, axis: int, length: int) -> torch.Tensor:
    """Enlarge an axis to a length and reduce it again: one filter, but for both ends of the axis."""
    short = pictures.shape[axis]
    if length % short or short < _LEAST:
        return _multiplied(_matrix(short, length, pictures.device), pictures, axis)
    size = _LEAST, _LEAST * (length // short)
    inner, result = short - 2 * _REACH, torch.zeros_like(pictures)
    middle = result.narrow(axis, _REACH, inner)
    for shift, tap in enumerate(_taps(*size)):
        middle.add_(pictures.narrow(axis, shift, inner), alpha=tap)
    matrix = _matrix(*size, pictures.device)
    for rows, first, place in ((matrix[:_REACH], 0, 0), (matrix[-_REACH:], short - _LEAST, short - _REACH)):
        result.narrow(axis, place, _REACH).copy_(_multiplied(rows, pictures.narrow(axis, first, _LEAST), axis))
    return result


def _multiplied(matrix: torch.Tensor, pictures: torch.Tensor, axis: int) -> torch.Tensor:
    """A matrix times an axis; element by element, so that bits do not depend on how many pictures there are."""
    columns = (column.view(-1, 1) if axis == -2 else column for column in matrix.unbind(1))
    products = (column * one for column, one in zip(columns, torch.split(pictures, 1, axis), strict=True))
    total: torch.Tensor = reduce(torch.add, products)
    return total


@lru_cache(maxsize=16)
def _matrix(short: int, length: int, device: torch.device) -> torch.Tensor:
    """What enlarging an axis to a length and reducing it again does to it, (short, short)."""
    return resize(resize(torch.eye(short)[None, None], (length, short)), (short, short))[0, 0].to(device)


@lru_cache(maxsize=16)
def _taps(short: int, length: int) -> tuple[float, ...]:
    """The same for a pixel far from the ends: weights of it and of `_REACH` pixels to either side."""
    middle = short // 2
    row: list[float] = _matrix(short, length, torch.device("cpu"))[middle].tolist()
    return tuple(row[middle - _REACH : middle + _REACH + 1])


def resize(pictures: torch.Tensor, size: tuple[int, int] | torch.Size) -> torch.Tensor:
    """Resize pictures, (..., H, W) to (..., *size), by antialiased bicubic; nothing is done if they have that size."""
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    return functional.interpolate(pictures, tuple(size), mode="bicubic", antialias=True)
