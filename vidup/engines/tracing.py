"""The bytes at the peak, and the FLOP, of a UNet and a VAE, found without using a device's memory.

A UNet is run once on torch's meta device, which takes a quarter of a second and no memory, while live bytes are
counted. They are proportional to pixels and batch. Those of a VAE that decodes in bands are computed from its widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from vidup.engines import attention
from vidup.engines.memory import LiveBytes
from vidup.engines.unet import Unet
from vidup.engines.vae import Limits, Vae

_LAZY = 2  # bands that are alive at once where rows are recomputed
_PROBE = 64  # side of the picture that is traced


def trace_unet(unet: Any, tokens: int, guided: bool) -> float:
    """Live bytes at the peak of an evaluation, for each pixel of a window, with both texts if guided.

    Args:
        unet: a `UNet2DConditionModel`, which is rebuilt from its configuration on the meta device.
    """
    evaluate = _evaluation(unet, tokens, _PROBE, _PROBE, guided)
    with torch.inference_mode(), LiveBytes() as live:
        evaluate()
    return float(live.peak) / _PROBE**2


def unet_flops(unet: Any, tokens: int, height: int, width: int) -> int:
    """FLOP of one evaluation of one window with one text."""
    evaluate = _evaluation(unet, tokens, height, width, False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        evaluate()
    return int(counter.get_total_flops())


def vae_flops(vae: Vae, height: int, width: int, limits: Limits) -> int:
    """FLOP of decoding one frame of latents."""
    with FlopCounterMode(display=False) as counter:
        _decoding(vae, height, width, limits)()
    return int(counter.get_total_flops())


def _evaluation(unet: Any, tokens: int, height: int, width: int, guided: bool) -> Callable[[], torch.Tensor]:
    """An evaluation of one window by the same architecture on the meta device."""
    dtype, config = next(unet.parameters()).dtype, unet.config
    with torch.device("meta"):
        texts = torch.empty(2, tokens, config.cross_attention_dim, dtype=dtype)
        batch = torch.empty(1, config.in_channels, height, width, dtype=dtype)
        time, level = (torch.zeros(shape, dtype=torch.long) for shape in ((), (1,)))
        width_of_condition = config.time_cond_proj_dim
        condition = None if width_of_condition is None else torch.empty(1, width_of_condition, dtype=dtype)
    twin = Unet(_twin(unet), texts, 2.0, texts.device)
    twin.text(1, guided)

    def evaluate() -> torch.Tensor:
        levels = torch.cat([level, level]) if guided else level
        return twin(batch, time, guided, class_labels=levels, timestep_cond=condition)

    return evaluate


def _decoding(vae: Vae, height: int, width: int, limits: Limits) -> Callable[[], torch.Tensor]:
    """The decoding of one frame of latents by the same architecture on the meta device."""
    latents = torch.empty(1, vae.module.config.latent_channels, height, width, device="meta")
    return partial(Vae(_twin(vae.module), vae.windows), latents, latents.device, limits)


def _twin(module: Any) -> Any:
    """The same architecture on the meta device."""
    with torch.device("meta"):
        twin = type(module).from_config(module.config)
    return torch.nn.Module.to(twin, next(module.parameters()).dtype).eval().requires_grad_(False)


def vae_bytes(vae: Vae, height: int, width: int, device: torch.device, limits: Limits) -> float:
    """Live bytes at the peak of decoding one frame of latents, without its picture.

    Args:
        height, width: of the latents.
        device: where it will work; on some, attention stores scores.
    """
    if vae.unknown or not isinstance(vae.module, AutoencoderKL):
        decode = _decoding(vae, height, width, limits)
        with LiveBytes() as live:
            decode()
        return float(live.peak)
    size = next(vae.module.parameters()).element_size()
    peak, lasting = 0.0, 0.0
    for layer in _layers(vae.module.decoder):
        tall, wide = height * layer.scale, width * layer.scale
        rows = min(tall, max(1, limits.band // (4 * layer.wide * wide)) + 2)
        # A band in float32 while it is normed, then in the model's precision, and the result of the convolution.
        band = rows * wide * layer.wide * (8 if size == 4 else 4 + 2 * size)
        if layer.scale <= limits.keep:
            lasting = layer.result * size * tall * wide
            peak = max(peak, layer.kept * size * tall * wide + band)
        else:  # with rows of the layers between the last that is kept and this one
            peak = max(peak, lasting + _LAZY * band)
    for middle in vae.module.decoder.mid_block.attentions:
        if middle is None:
            continue
        channels, pixels = middle.to_q.out_features, height * width
        portion, scores = min(limits.band, 4 * channels * pixels), 0.0
        if not attention.fused(device, channels // middle.heads):
            # Scores before and after the softmax, in the model's precision.
            scores = 2 * size / 4 * min(limits.scores, 4 * middle.heads * pixels**2)
        peak = max(peak, 3 * channels * size * pixels + portion * (1 + size / 4) + scores)
    return peak


@dataclass(frozen=True)
class _LayerSize:
    """The channels that are in memory while one layer is computed, at its scale."""

    scale: int
    kept: float
    result: float
    wide: int


def _layers(decoder: Any) -> list[_LayerSize]:
    scale, found = 1, []
    for block in (decoder.mid_block, *decoder.up_blocks):
        for resnet in block.resnets:
            channels, result = resnet.conv1.in_channels, resnet.conv2.out_channels
            extra = result if result > channels else 0  # otherwise it overwrites its input
            found.append(_LayerSize(scale, channels + resnet.conv1.out_channels + extra, result, max(channels, result)))
        for upsampler in getattr(block, "upsamplers", None) or ():
            scale *= 2
            source, result = upsampler.conv.in_channels, upsampler.conv.out_channels
            found.append(_LayerSize(scale, source / 4 + result, result, max(source, result)))
    return found
