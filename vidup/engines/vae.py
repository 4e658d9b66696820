"""Decode the latents of frames of any size: exact, in bands of rows, with bounded memory.

diffusers decodes a whole frame with several copies of its widest tensors and with an attention that takes the square
of the frame, or in tiles that differ at their borders. Here each layer is computed for the whole frame, in bands of
rows, before the next: so the row that a convolution needs of a neighbouring band exists. What needs the whole frame is
computed from all bands: the mean and the variance of each group norm, and the keys and values of the middle attention,
whose queries are processed in portions.

Where memory is scarce, the layers of the largest scales are not kept: their rows are recomputed, whenever they are
needed, from the last layer that is kept. The result is the same.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn
from torch.nn import functional

from vidup.engines import attention, stops
from vidup.engines.card import memory_format
from vidup.engines.compiling import compiled_or_not
from vidup.engines.structure import unknown_part
from vidup.engines.tiny import decode_in_bands
from vidup.errors import EngineError

log = logging.getLogger(__name__)

_APART = 0.01  # the share of a picture's variance by which devices and precisions may differ


@dataclass(frozen=True)
class Limits:
    """How much is processed at once, and what is kept."""

    band: int
    """Bytes of a band's widest tensor, in float32."""
    scores: int
    """Bytes of a portion of attention's scores, in float32."""
    keep: int = 8
    """The largest scale, against the latents, whose layers are kept: 1, 2, 4. Others are recomputed when needed."""


def limits(device: torch.device, keep: int = 8) -> Limits:
    """Limits that keep a device busy: a GPU for about a millisecond, a CPU within its caches."""
    mebi = 2**20
    if device.type == "cpu":
        return Limits(32 * mebi, 32 * mebi, keep)
    share = 1 if keep >= 4 else 4  # if layers are not kept, memory is scarce: bands are smaller, too
    return Limits(256 * mebi // share, 512 * mebi // share, keep)


class Vae:
    """Decodes latents with an `AutoencoderKL`, an `AutoencoderTiny`, or another module that has a `decode`.

    An `AutoencoderKL` or `AutoencoderTiny` with diffusers' structure decodes in bands; the result is that of its own
    `decode` of the whole frame within rounding. Others decode the whole frame at once by their own `decode`.

    Args:
        module: in the dtype in which it works; its parts may be moved between devices.
        windows: whether attention is windowed, which changes the result: the setting for `attention.is_windowed`.
        device: where it will work, for the memory format of its weights.
    """

    def __init__(self, module: Any, windows: str = "full", device: torch.device | None = None) -> None:
        self.module, self.windows = module, windows
        self.functions = _Functions()
        self.unknown = unknown_part(module)
        """The first part of an unsupported structure; empty where it decodes in bands."""
        if isinstance(module, AutoencoderKL) and not self.unknown:
            # The format of the bands, so that convolutions convert nothing.
            module.decoder.to(memory_format=memory_format("cpu" if device is None else device.type, True))
        if isinstance(module, (AutoencoderKL, AutoencoderTiny)) and self.unknown:
            log.warning("the VAE's %s is of a kind that vidup does not know: frames are decoded whole", self.unknown)

    def compile(self) -> None:
        """Compile its two small functions, whose time is that of memory access."""
        self.functions = _Functions(compiled_or_not(scale_shift_silu), compiled_or_not(squared_deviations))

    @torch.inference_mode()
    def __call__(self, latents: torch.Tensor, device: torch.device, limits: Limits) -> torch.Tensor:
        """Decode the latents of frames, one after the other.

        Args:
            latents: float (N, C, h, w), already divided by the VAE's scaling factor.
            device: where the module is.

        Returns:
            float32 (N, 3, factor * h, factor * w) on `device`, nominally in [-1, 1].
        """
        dtype = next(self.module.parameters()).dtype
        first = self._frame(latents[:1].to(device, dtype), limits)
        if len(latents) == 1:
            return first
        pictures = first.new_empty(len(latents), *first.shape[1:])
        pictures[:1] = first
        for index in range(1, len(latents)):
            pictures[index : index + 1] = self._frame(latents[index : index + 1].to(device, dtype), limits)
        return pictures

    def _frame(self, latent: torch.Tensor, limits: Limits) -> torch.Tensor:
        if self.unknown:
            whole: torch.Tensor = self.module.decode(latent, return_dict=False)[0].float()
            return whole
        if isinstance(self.module, AutoencoderTiny):
            return decode_in_bands(self.module, latent, limits.band)
        windowed = attention.is_windowed(self.windows, *latent.shape[-2:])
        return _Frame(self.module, limits, windowed, self.functions).decode(latent)


def check(vae: Vae, device: torch.device) -> None:
    """Check that a device decodes as the CPU does: on MPS convolutions have silently been wrong.

    Raises:
        EngineError: a small picture differs.
    """
    host = torch.device("cpu")
    seeded = torch.Generator().manual_seed(0)
    latents = torch.randn(1, vae.module.config.latent_channels, 8, 8, generator=seeded)
    twin = nn.Module.to(copy.deepcopy(vae.module), host, torch.float32)
    expected = Vae(twin, vae.windows)(latents, host, limits(host))
    error = (vae(latents, device, limits(device)).cpu() - expected).square().mean() / expected.var()
    if not error < _APART:
        raise EngineError(
            f"device = {device.type!r}: decodes a small picture wrongly (error {error:.2g} of its variance, expected"
            f" below {_APART:g}); take another torch, or --device cpu"
        )


def scale_shift_silu(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """silu(x * scale + shift), computed in float32, in x's dtype. x (N, C, h, w), scale and shift (N, C, 1, 1)."""
    return functional.silu((x * scale).add_(shift), inplace=True).to(x.dtype)


def squared_deviations(x: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
    """The sum over pixels of (x - middle)^2 in float32. x (pixels, C), middle float32 (C,)."""
    return (x - middle).square_().sum(0)


@dataclass(frozen=True)
class _Functions:
    """Small functions that read and write whole layers; as one compiled kernel each takes a fraction of the time."""

    activate: Callable[..., torch.Tensor] = scale_shift_silu
    deviations: Callable[..., torch.Tensor] = squared_deviations


def _pixels(x: torch.Tensor) -> torch.Tensor:
    """(1, C, h, w), channels last, as (h * w, C): a view."""
    return x[0].permute(1, 2, 0).flatten(0, 1)


@dataclass(frozen=True)
class _Layer:
    """A layer's result for a whole frame, from which rows can be read: (1, C, rows, width)."""

    channels: int
    height: int
    width: int
    rows: Callable[[int, int], torch.Tensor]
    """Returns the rows `first` to `last`, which are kept or recomputed."""
    source: int = 0
    """The channels of the layer they are computed from."""


def _kept(x: torch.Tensor) -> _Layer:
    return _Layer(x.shape[1], x.shape[2], x.shape[3], lambda first, last: x[..., first:last, :])


class _Frame:
    """Decodes one frame by an `AutoencoderKL`. Tensors are (1, C, h, w), channels last, so that a band of rows is
    contiguous.
    """

    def __init__(self, vae: Any, limits: Limits, windowed: bool, functions: _Functions) -> None:
        self.vae, self.limits, self.windowed = vae, limits, windowed
        self.activate, self.deviations = functions.activate, functions.deviations

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        decoder = self.vae.decoder
        if self.vae.post_quant_conv is not None:
            latent = self.vae.post_quant_conv(latent)
        x = decoder.conv_in(latent).contiguous(memory_format=torch.channels_last)
        first, *rest = decoder.mid_block.resnets
        x = self._resnet(first, x)
        for middle, resnet in zip(decoder.mid_block.attentions, rest, strict=True):
            if middle is not None:
                self._attend(middle, x)
            x = self._resnet(resnet, x)
        layer, scale = _kept(x), 1
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                if scale <= self.limits.keep:
                    x = self._resnet(resnet, x)
                    layer = _kept(x)
                else:
                    layer = self._lazy_resnet(resnet, layer)
            for upsampler in block.upsamplers or ():
                scale *= 2
                layer = _upsampled(upsampler.conv, layer)
                if scale <= self.limits.keep:
                    x = self._keep(layer, x)
                    layer = _kept(x)
        norm = self._statistics(decoder.conv_norm_out, layer)
        picture = latent.new_empty(1, decoder.conv_out.out_channels, layer.height, layer.width, dtype=torch.float32)
        for top, bottom in self._bands(layer):
            picture[..., top:bottom, :] = self._convolve(decoder.conv_out, layer, norm, top, bottom)
        return picture

    def _resnet(self, resnet: Any, x: torch.Tensor) -> torch.Tensor:
        """Apply a resnet to a layer that is kept; the result overwrites it unless it is wider."""
        hidden = self._keep(self._first_half(resnet, _kept(x))[0], x)
        inner = _kept(hidden)
        norm = self._statistics(resnet.norm2, inner)
        channels = resnet.conv2.out_channels
        result = x[:, :channels] if channels <= x.shape[1] else _empty(x, channels, *x.shape[-2:])
        for top, bottom in self._bands(inner):
            band = self._convolve(resnet.conv2, inner, norm, top, bottom)
            result[..., top:bottom, :] = _joined(resnet, band, x[..., top:bottom, :])  # only these rows of x are read
        if channels < x.shape[1]:  # so that the wider tensor is freed
            return hidden.copy_(result) if hidden.shape == result.shape else result.clone()
        return result

    def _first_half(self, resnet: Any, source: _Layer) -> tuple[_Layer, _Norm]:
        """The result of a resnet's first convolution, and the norm before it."""
        norm = self._statistics(resnet.norm1, source)

        def rows(first: int, last: int) -> torch.Tensor:
            return self._convolve(resnet.conv1, source, norm, first, last)

        return _Layer(resnet.conv1.out_channels, source.height, source.width, rows, source.channels), norm

    def _lazy_resnet(self, resnet: Any, source: _Layer) -> _Layer:
        """A resnet whose rows are computed when they are needed; only the statistics of its norms are kept."""
        inner, outer = self._first_half(resnet, source)
        norm = self._statistics(resnet.norm2, inner)

        def rows(first: int, last: int) -> torch.Tensor:
            near = max(0, first - 1), min(source.height, last + 1)
            far = max(0, first - 2), min(source.height, last + 2)
            whole = source.rows(*far)  # once for both branches, or the work would double with each resnet
            hidden = _conv_rows(resnet.conv1, self.activate(whole, *outer), far[0] == near[0], far[1] == near[1])
            band = _conv_rows(resnet.conv2, self.activate(hidden, *norm), near[0] == first, near[1] == last)
            return _joined(resnet, band, whole[..., first - far[0] : last - far[0], :])

        return _Layer(resnet.conv2.out_channels, source.height, source.width, rows, source.channels)

    def _convolve(self, conv: nn.Conv2d, layer: _Layer, norm: _Norm, first: int, last: int) -> torch.Tensor:
        """Rows `first` to `last` of the convolution of silu(norm(layer))."""
        near = max(0, first - 1), min(layer.height, last + 1)
        return _conv_rows(conv, self.activate(layer.rows(*near), *norm), near[0] == first, near[1] == last)

    def _keep(self, layer: _Layer, like: torch.Tensor) -> torch.Tensor:
        """Compute all rows of a layer, in the dtype and on the device of another."""
        result = _empty(like, layer.channels, layer.height, layer.width)
        for top, bottom in self._bands(layer):
            result[..., top:bottom, :] = layer.rows(top, bottom)
        return result

    def _statistics(self, norm: nn.GroupNorm, layer: _Layer) -> _Norm:
        """The factors and offsets of a group norm over the whole frame.

        Means and sums of squared deviations of bands are merged as in Chan, Golub and LeVeque 1979, in float64 where
        the device has it.
        """
        groups, per_channel = norm.num_groups, layer.channels // norm.num_groups
        device = norm.weight.device
        exact = torch.float32 if device.type == "mps" else torch.float64
        mean = torch.zeros(groups, dtype=exact, device=device)
        squares, seen = torch.zeros_like(mean), 0
        for top, bottom in self._bands(layer):
            band = _pixels(layer.rows(top, bottom))
            count = len(band) * per_channel
            middle = band.mean(0, dtype=torch.float32).view(groups, -1).mean(1)
            squared = self.deviations(band, middle.repeat_interleave(per_channel))
            variance = squared.view(groups, -1).sum(1).to(exact) / count
            middle = middle.to(exact)
            apart, total = middle - mean, seen + count
            squares += variance * count + apart.square() * (seen * count / total)
            mean += apart * (count / total)
            seen = total
        deviation = (squares / seen + norm.eps).rsqrt()
        mean, deviation = (one.repeat_interleave(per_channel) for one in (mean, deviation))
        weight, bias = norm.weight.to(exact), norm.bias.to(exact)
        scale, shift = weight * deviation, bias - mean * deviation * weight
        return scale.float().view(1, -1, 1, 1), shift.float().view(1, -1, 1, 1)

    def _attend(self, middle: Any, x: torch.Tensor) -> None:
        """Add self-attention over all pixels, or over windows, to `x` in place."""
        scale, shift = (one.view(1, -1) for one in self._statistics(middle.group_norm, _kept(x)))
        height, width = x.shape[-2:]
        tokens = _pixels(x)

        def normed(which: slice | torch.Tensor) -> torch.Tensor:
            return (tokens[which] * scale).add_(shift).to(x.dtype)

        key, value = (x.new_empty(len(tokens), middle.to_k.out_features) for _ in range(2))
        portion = max(1, self.limits.band // (4 * tokens.shape[1]))
        for first in range(0, len(tokens), portion):
            part = slice(first, first + portion)
            source = normed(part)
            key[part], value[part] = middle.to_k(source), middle.to_v(source)
        everything = torch.arange(len(tokens), device=x.device)
        regions: list[tuple[torch.Tensor, slice | torch.Tensor]] = [(everything, slice(0, len(tokens)))]
        if self.windowed:
            grid = everything.view(height, width)
            regions = [
                (grid[inner].flatten(), grid[outer].flatten()) for inner, outer in attention.windows(height, width)
            ]
        for queries, others in regions:  # each pixel is a query once, so it can be overwritten
            seen = key[others], value[others]
            count = min(portion, max(1, self.limits.scores // (4 * middle.heads * len(seen[0]))))
            for where in map(stops.checked, torch.split(queries, count)):
                answer = attention.attend(middle.to_q(normed(where)), *seen, middle.heads)
                answer = middle.to_out[0](answer).add_(tokens[where])
                tokens[where] = answer.div_(middle.rescale_output_factor)

    def _bands(self, layer: _Layer) -> Iterator[tuple[int, int]]:
        """(first, last) rows of bands that cover a layer."""
        rows = max(1, self.limits.band // (4 * max(layer.channels, layer.source) * layer.width))
        count = math.ceil(layer.height / rows)
        edges = [layer.height * index // count for index in range(count + 1)]
        yield from (stops.checked(edge) for edge in pairwise(edges))


_Norm = tuple[torch.Tensor, torch.Tensor]
"""A group norm as a factor and an offset for each channel: float32 (1, C, 1, 1) both."""


def _empty(like: torch.Tensor, channels: int, height: int, width: int) -> torch.Tensor:
    shape = (1, channels, height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _joined(resnet: Any, band: torch.Tensor, skipped: torch.Tensor) -> torch.Tensor:
    """Add the skip connection to a resnet's convolutions."""
    band += skipped if resnet.conv_shortcut is None else resnet.conv_shortcut(_laid_out(skipped))
    return band if resnet.output_scale_factor == 1 else band.div_(resnet.output_scale_factor)


def _upsampled(conv: nn.Conv2d, source: _Layer) -> _Layer:
    """A layer of twice the size: pixels are repeated, then convolved."""
    height, width = 2 * source.height, 2 * source.width

    def rows(first: int, last: int) -> torch.Tensor:
        near = max(0, first - 1), min(height, last + 1)
        small = source.rows(near[0] // 2, (near[1] + 1) // 2)
        large = functional.interpolate(small, scale_factor=2.0, mode="nearest")
        begin = near[0] % 2
        large = large[..., begin : begin + near[1] - near[0], :]
        return _conv_rows(conv, large, near[0] == first, near[1] == last)

    return _Layer(conv.out_channels, height, width, rows, conv.in_channels)


def _laid_out(rows: torch.Tensor) -> torch.Tensor:
    """Rows in the memory format for convolutions; a copy only on MPS."""
    return rows.contiguous(memory_format=memory_format(rows.device.type, True))


def _conv_rows(conv: nn.Conv2d, rows: torch.Tensor, at_top: bool, at_bottom: bool) -> torch.Tensor:
    """A 3x3 convolution of rows with one more row on each side, except at the frame's edges, where it is zeros."""
    rows = _laid_out(rows)
    if not (at_top or at_bottom):
        return functional.conv2d(rows, conv.weight, conv.bias, padding=(0, 1))
    # Computing one row too many is cheaper than copying the band with its zeros.
    result = functional.conv2d(rows, conv.weight, conv.bias, padding=1)
    return result[..., int(not at_top) : result.shape[-2] - int(not at_bottom), :]
