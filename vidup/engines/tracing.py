"""The bytes at the peak, and the FLOP, of a UNet and a decoder, found without using a device's memory.

A UNet is run once on torch's meta device, which takes a quarter of a second and no memory, while live bytes are
counted. They are proportional to pixels and batch. Those of the decoder in bands are computed from its widths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from vidup.engines import attention, single_file
from vidup.engines.memory import LiveBytes
from vidup.engines.unet import Unet
from vidup.engines.vae import Decoder, Limits

_LAZY = 2  # bands that are alive at once where rows are recomputed
_PROBE = 64  # side of the picture that is traced


def trace_unet(unet: Any, tokens: int, guided: bool) -> float:
    """Live bytes at the peak of an evaluation, for each pixel of a window, with both texts if guided.

    Args:
        unet: a `UNet2DConditionModel`, which is rebuilt from its configuration on the meta device.
    """
    twin, batch, when, levels = _unet_twin(unet, tokens, _PROBE, _PROBE)
    twin.text(1, guided)
    with torch.inference_mode(), LiveBytes() as live:
        twin(batch, when, guided, levels)
    return float(live.peak) / _PROBE**2


def unet_flops(unet: Any, tokens: int, height: int, width: int) -> int:
    """FLOP of one evaluation of one window with one text."""
    twin, batch, when, levels = _unet_twin(unet, tokens, height, width)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(batch, when, False, levels)
    return int(counter.get_total_flops())


def decoder_flops(decoder: Decoder, height: int, width: int, limits: Limits) -> int:
    """FLOP of decoding one frame of latents."""
    twin, latents = _decoder_twin(decoder, height, width)
    with FlopCounterMode(display=False) as counter:
        twin(latents, latents.device, limits)
    return int(counter.get_total_flops())


def _unet_twin(
    unet: Any, tokens: int, height: int, width: int
) -> tuple[Unet, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same architecture on the meta device, with a batch, a time and noise levels for a call."""
    dtype, meta = next(unet.parameters()).dtype, torch.device("meta")
    with meta:
        twin = type(unet).from_config(unet.config)
    twin = torch.nn.Module.to(twin, dtype).eval().requires_grad_(False)
    text = torch.empty(1, tokens, unet.config.cross_attention_dim, dtype=dtype, device=meta)
    batch = torch.empty(1, unet.config.in_channels, height, width, dtype=dtype, device=meta)
    time, levels = (torch.zeros(shape, dtype=torch.long, device=meta) for shape in ((), (1,)))
    return Unet(twin, text, text, 2.0, meta), batch, time, levels


def _decoder_twin(decoder: Decoder, height: int, width: int) -> tuple[Decoder, torch.Tensor]:
    dtype, meta = next(decoder.vae.parameters()).dtype, torch.device("meta")
    with meta:
        twin = type(decoder.vae).from_config(decoder.vae.config)
    twin = torch.nn.Module.to(twin, dtype).eval().requires_grad_(False)
    latents = torch.empty(1, decoder.vae.config.latent_channels, height, width, device=meta)
    return Decoder(twin, decoder.windows), latents


def decoder_bytes(decoder: Decoder, height: int, width: int, device: torch.device, limits: Limits) -> float:
    """Live bytes at the peak of decoding one frame of latents, without its picture.

    Args:
        height, width: of the latents.
        device: where it will work; on some, attention stores scores.
    """
    if decoder.unknown or not isinstance(decoder.vae, AutoencoderKL):
        return _trace_decoder(decoder, height, width, limits)
    size = next(decoder.vae.parameters()).element_size()
    peak, lasting = 0.0, 0.0
    for layer in _layers(decoder.vae.decoder):
        tall, wide = height * layer.scale, width * layer.scale
        rows = min(tall, max(1, limits.band // (4 * layer.wide * wide)) + 2)
        # A band in float32 while it is normed, then in the model's precision, and the result of the convolution.
        band = rows * wide * layer.wide * (8 if size == 4 else 4 + 2 * size)
        if layer.scale <= limits.keep:
            lasting = layer.result * size * tall * wide
            peak = max(peak, layer.kept * size * tall * wide + band)
        else:  # with rows of the layers between the last that is kept and this one
            peak = max(peak, lasting + _LAZY * band)
    for middle in decoder.vae.decoder.mid_block.attentions:
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


def _trace_decoder(decoder: Decoder, height: int, width: int, limits: Limits) -> float:
    twin, latents = _decoder_twin(decoder, height, width)
    with LiveBytes() as live:
        twin(latents, latents.device, limits)
    return float(live.peak)


def text_bytes(place: Path, size: int) -> int:
    """The bytes of the text encoder in a layout or a single file, with `size` bytes a number; 0 without one."""
    files = [place] if place.is_file() else sorted((place / "text_encoder").glob("*.safetensors"))
    prefix = single_file.TEXT if place.is_file() else ""
    half = [path for path in files if ".fp16" in path.name]
    total = 0
    for path in [one for one in files if one not in half] or half:
        with safe_open(str(path), "pt") as weights:
            names = [name for name in weights.keys() if name.startswith(prefix)]  # noqa: SIM118
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in names) * size
    return total
