"""The attention in the middle of a VAE, with one very wide head: over the whole frame, or in windows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional

WINDOW = 64
"""Side of a window of queries in latent pixels; its keys are those of a square of twice that side around it."""

_DEARER = 4  # times the keys of a window, from which on full attention costs more than all convolutions

_WIDEST = {"cpu": 2**20}  # the widest head for which torch's fused attention is fast; on GPUs 256


def is_windowed(setting: str, height: int, width: int) -> bool:
    """Whether windowed attention is used for a frame of latents.

    The cost of full attention grows with the square of the frame: for 480x272 it is 267 MFLOP a pixel, that of the
    convolutions of the VAE 155, and that of windowed attention 34. A window sees no less than a tile of diffusers.

    Args:
        setting: ``full``, ``windowed``, or ``auto``: where full attention costs more than all the rest.
    """
    if max(height, width) <= 2 * WINDOW:  # one window sees the whole frame
        return False
    return setting == "windowed" or (setting == "auto" and height * width > _DEARER * (2 * WINDOW) ** 2)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention of queries (rows, width) to keys and values (n, width)."""
    query, key, value = (one.view(len(one), heads, -1).transpose(0, 1) for one in (query, key, value))
    if fused(query.device, query.shape[-1]):
        answer = functional.scaled_dot_product_attention(query[None], key[None], value[None])[0]
    else:  # for heads this wide torch's fused kernels are several times slower than matrix products
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(1, 2)
        answer = scores.softmax(-1) @ value  # the softmax computes in float32
    return answer.transpose(0, 1).flatten(1)


def fused(device: torch.device, head: int) -> bool:
    """Whether attention with heads of this width stores no scores."""
    return head <= _WIDEST.get(device.type, 256)


def windows(height: int, width: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """The windows that cover a frame, each with the larger square of its keys; those have one size and lie inside."""

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
