"""The attention in the middle of a decoder: over the whole frame, or in windows; one head that is very wide."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional

WINDOW = 64
"""Side of the squares of queries, in latent pixels, that windowed attention takes together; their keys are those of
the square and of half as much again on each side."""

_DEARER = 4  # times as many keys as a window has: from there on full attention costs more than all convolutions

_WIDEST = {"cpu": 2**20}  # heads that torch's fused attention is quick for; on GPUs up to 256


def is_windowed(setting: str, height: int, width: int) -> bool:
    """Whether a frame of latents is attended to in windows.

    The cost of full attention grows with the square of the frame: 267 MFLOP for each pixel of 480x272 beside 155 of
    the decoder's convolutions, and 34 in windows, in which each pixel still sees no less than in a tile of diffusers'.

    Args:
        setting: ``full``, ``windowed``, or ``auto``: in windows where full attention costs more than all the rest.
    """
    if max(height, width) <= 2 * WINDOW:  # which one window sees
        return False
    return setting == "windowed" or (setting == "auto" and height * width > _DEARER * (2 * WINDOW) ** 2)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """(rows, width) of queries with (n, width) of keys and values."""
    query, key, value = (one.view(len(one), heads, -1).transpose(0, 1) for one in (query, key, value))
    if fused(query.device, query.shape[-1]):
        answer = functional.scaled_dot_product_attention(query[None], key[None], value[None])[0]
    else:  # torch's fused kernels for heads this wide are several times slower than plain matrix products
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(1, 2)
        answer = scores.softmax(-1) @ value  # computed in float32, and written in the model's precision
    return answer.transpose(0, 1).flatten(1)


def fused(device: torch.device, head: int) -> bool:
    """Whether attention over heads of this width holds no scores."""
    return head <= _WIDEST.get(device.type, 256)


def windows(height: int, width: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Squares that cover a frame, and the larger ones that they see: all inside, the larger ones of one size."""

    def along(length: int) -> list[tuple[slice, slice]]:
        reach = min(length, 2 * WINDOW)
        starts = range(0, length, WINDOW)
        seen = [min(max(0, start - WINDOW // 2), length - reach) for start in starts]
        return [
            (slice(start, min(length, start + WINDOW)), slice(left, left + reach))
            for start, left in zip(starts, seen, strict=True)
        ]

    for inner_rows, outer_rows in along(height):
        for inner_columns, outer_columns in along(width):
            yield (inner_rows, inner_columns), (outer_rows, outer_columns)
