"""The choice of batch, tiles and what the decoder keeps, so that a frame fits the device's memory.

What a UNet takes is not guessed at: its architecture is run once on torch's meta device, which costs a quarter of a
second and no memory, while the bytes that are alive together are counted. They are proportional to pixels and batch.
What the decoder in bands keeps follows from its widths.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from vidup.config import Runtime, Settings
from vidup.engines import Choice, Needs, single_file, windows
from vidup.engines.memory import LiveBytes, memory_limit
from vidup.engines.unet import Unet
from vidup.engines.vae import Decoder, Limits, fused
from vidup.picture import tiling

log = logging.getLogger(__name__)

LADDER = (4096, 3072, 2048, 1536, 1024, 768, 640, 512, 448, 384, 320, 256, 192, 160, 128)
"""Sides of tiles in input pixels, from which the largest that fits is taken."""
SMALLEST = 128

_BATCHES = (8, 4, 2, 1)
_LAZY = 2  # bands that recomputed rows hold at once
_PROBE = 64  # side of the picture that is traced


@dataclass(frozen=True)
class Planner:
    """Decides how much is done at once. Every answer follows from the needs, the settings and the arguments alone.

    A tile or a batch that the settings or the runtime give is kept.
    """

    needs: Needs
    settings: Settings
    runtime: Runtime

    @property
    def limit(self) -> int:
        """Bytes of the device that may be taken."""
        return memory_limit(self.runtime, self.needs.device)

    def choose(self, height: int, width: int) -> Choice:
        """The whole frame, or else the largest tiles, with the largest batch that fits, decoded as fast as fits."""
        limit = self.limit
        for choice in self._choices(height, width):
            if self.memory(choice, height, width) <= limit:
                return choice
        log.warning(
            "%dx%d takes about %.1f GB at the least; %.1f GB are what it may take",
            width, height, self.memory(choice, height, width) / 1e9, limit / 1e9,
        )  # fmt: skip
        return choice

    def smaller(self, choice: Choice, height: int, width: int) -> Choice | None:
        """The next choice that takes less memory: half the batch, then less kept or smaller tiles; None at the end."""
        if choice.batch > 1:
            return replace(choice, batch=choice.batch // 2)
        now = self.memory(choice, height, width)
        for other in self._choices(height, width):
            less = replace(other, batch=1)
            larger = choice.tile and (less.tile == 0 or less.tile > choice.tile)
            if not larger and self.memory(less, height, width) < now:
                return less
        return None

    def allows(self, choice: Choice, height: int, width: int) -> bool:
        """Whether it could be this planner's choice, now or once memory ran out; a stored one may have been changed."""
        return (
            all(type(number) is int for number in (choice.batch, choice.tile, choice.keep))
            and 1 <= choice.batch <= max(*_BATCHES, self.runtime.batch)
            and choice.tile in self._tiles(height, width)
            and choice.keep in (Choice.keep, *self.needs.keeps)
        )

    def memory(self, choice: Choice, height: int, width: int) -> int:
        """Bytes on the device at the peak of loading, of working on windows or of decoding, weights included."""
        needs, plan = self.needs, self.cut(choice, height, width)
        first, second = needs.weights
        carried = height * width * needs.carried
        working, decoding = self._working(choice, plan) + carried, self._decoding(choice, plan) + carried
        if self.runtime.offload:
            return round(max(first + working, second + decoding))
        graphs = needs.compiled and needs.device.type == "cuda"
        return first + second + round(max(needs.loading, working + decoding if graphs else max(working, decoding)))

    def cut(self, choice: Choice, height: int, width: int) -> tiling.Tiles:
        """The windows of a frame."""
        return windows.cut(choice, height, width, self.settings.tile_overlap, self.needs.multiple)

    def _choices(self, height: int, width: int) -> Iterator[Choice]:
        """All that come into question, from the fastest to the smallest."""
        for tile in self._tiles(height, width):
            for batch in [self.runtime.batch] if self.runtime.batch else self._batches(height, width, tile):
                for keep in self._keeps(Choice(batch, tile), height, width):
                    yield Choice(batch, tile, keep)

    def _tiles(self, height: int, width: int) -> list[int]:
        """The whole frame, then sides that cut it, from large to small."""
        if not self.needs.window:
            return [0]
        if self.settings.tile:
            return [self.settings.tile]
        least = max(SMALLEST, 3 * self.settings.tile_overlap)
        return [0, *(side for side in LADDER if self.needs.tiles and least <= side < max(height, width))]

    def _batches(self, height: int, width: int, tile: int) -> list[int]:
        pixels = min(height, tile or height) * min(width, tile or width)
        most = max(1, min(self.needs.batch, self.needs.busy // pixels))
        return [size for size in _BATCHES if size <= most]

    def _keeps(self, choice: Choice, height: int, width: int) -> list[int]:
        """Scales that take less and less; where tiles had to be, the decoder takes no more than they do."""
        plan = self.cut(choice, height, width)
        taken = {keep: self._decoding(replace(choice, keep=keep), plan) for keep in self.needs.keeps}
        falling = [keep for keep, size in taken.items() if size <= min(taken[k] for k in taken if k >= keep)]
        if choice.tile and not self.settings.tile:
            fits = [keep for keep in falling if taken[keep] <= self._working(choice, plan)]
            return fits[:1] or falling[-1:]
        return falling

    def _working(self, choice: Choice, plan: tiling.Tiles) -> float:
        window = plan.tile_height * plan.tile_width * self.needs.window
        return choice.batch * (plan.height * plan.width * self.needs.frame + window)

    def _decoding(self, choice: Choice, plan: tiling.Tiles) -> float:
        pictures = choice.batch + (choice.batch > 1)  # the one that is being made is not yet among the others
        held = pictures * plan.height * plan.width * self.needs.decoded
        return held + (self.needs.decoder(plan.height, plan.width, choice.keep) if self.needs.decoder else 0)


def trace_unet(unet: Any, tokens: int, guided: bool) -> float:
    """Bytes alive at the peak of an evaluation for each pixel of a window, its batch of two texts included.

    Args:
        unet: a `UNet2DConditionModel`; its configuration is built again on the meta device.
    """
    twin, batch, when = _unet_twin(unet, tokens, _PROBE, _PROBE)
    twin.conditions(1, guided)
    with torch.inference_mode(), LiveBytes() as live:
        twin(batch, when, guided)
    return float(live.peak) / _PROBE**2


def unet_flops(unet: Any, tokens: int, height: int, width: int) -> int:
    """FLOP of one evaluation of one window with one text."""
    twin, batch, when = _unet_twin(unet, tokens, height, width)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(batch, when, False)
    return int(counter.get_total_flops())


def decoder_flops(decoder: Decoder, height: int, width: int, limits: Limits) -> int:
    """FLOP of decoding one frame of latents."""
    twin, latents = _decoder_twin(decoder, height, width)
    with FlopCounterMode(display=False) as counter:
        twin(latents, latents.device, limits)
    return int(counter.get_total_flops())


def _unet_twin(unet: Any, tokens: int, height: int, width: int) -> tuple[Unet, torch.Tensor, torch.Tensor]:
    """The same architecture on the meta device, and the arguments that it is called with."""
    dtype, meta = next(unet.parameters()).dtype, torch.device("meta")
    with meta:
        twin = type(unet).from_config(unet.config)
    twin = torch.nn.Module.to(twin, dtype).eval().requires_grad_(False)
    text = torch.empty(1, tokens, unet.config.cross_attention_dim, dtype=dtype, device=meta)
    batch = torch.empty(1, unet.config.in_channels, height, width, dtype=dtype, device=meta)
    return Unet(twin, text, text, 2.0, 0, meta), batch, torch.zeros((), dtype=torch.long, device=meta)


def _decoder_twin(decoder: Decoder, height: int, width: int) -> tuple[Decoder, torch.Tensor]:
    dtype, meta = next(decoder.vae.parameters()).dtype, torch.device("meta")
    with meta:
        twin = type(decoder.vae).from_config(decoder.vae.config)
    twin = torch.nn.Module.to(twin, dtype).eval().requires_grad_(False)
    latents = torch.empty(1, decoder.vae.config.latent_channels, height, width, device=meta)
    return Decoder(twin, decoder.windowed), latents


def decoder_bytes(decoder: Decoder, height: int, width: int, device: torch.device, limits: Limits) -> float:
    """Bytes alive at the peak of decoding one frame of latents, without its picture, which the caller holds.

    Args:
        height, width: of the latents.
        device: where it will work; attention holds scores on some.
    """
    if decoder.unknown or not isinstance(decoder.vae, AutoencoderKL):
        return _trace_decoder(decoder, height, width, limits)
    size = next(decoder.vae.parameters()).element_size()
    peak, lasting = 0.0, 0.0
    for layer in _layers(decoder.vae.decoder):
        tall, wide = height * layer.scale, width * layer.scale
        rows = min(tall, max(1, limits.band // (4 * layer.wide * wide)) + 2)
        # A band in float32 while it is normed, in the model's precision, and what the convolution makes of it.
        band = rows * wide * layer.wide * (8 if size == 4 else 4 + 2 * size)
        if layer.scale <= limits.keep:
            lasting = layer.result * size * tall * wide
            peak = max(peak, layer.kept * size * tall * wide + band)
        else:  # rows of the layers between the last that is kept and this one, too
            peak = max(peak, lasting + _LAZY * band)
    for attention in decoder.vae.decoder.mid_block.attentions:
        if attention is None:
            continue
        channels, pixels = attention.to_q.out_features, height * width
        portion, scores = min(limits.band, 4 * channels * pixels), 0
        if not fused(device, channels // attention.heads):
            # In the model's precision, in float32 after the softmax, and back.
            scores = 2 * min(limits.scores, 4 * attention.heads * pixels**2)
        peak = max(peak, 3 * channels * size * pixels + portion * (1 + size / 4) + scores)
    return peak


@dataclass(frozen=True)
class _Standing:
    """What stands while one layer is worked on, in channels at its scale."""

    scale: int
    kept: float
    result: float
    wide: int


def _layers(decoder: Any) -> list[_Standing]:
    scale, found = 1, []
    for block in (decoder.mid_block, *decoder.up_blocks):
        for resnet in block.resnets:
            channels, result = resnet.conv1.in_channels, resnet.conv2.out_channels
            extra = result if result > channels else 0  # elsewhere it is written over its input
            found.append(_Standing(scale, channels + resnet.conv1.out_channels + extra, result, max(channels, result)))
        for upsampler in getattr(block, "upsamplers", None) or ():
            scale *= 2
            source, result = upsampler.conv.in_channels, upsampler.conv.out_channels
            found.append(_Standing(scale, source / 4 + result, result, max(source, result)))
    return found


def _trace_decoder(decoder: Decoder, height: int, width: int, limits: Limits) -> float:
    twin, latents = _decoder_twin(decoder, height, width)
    with LiveBytes() as live:
        twin(latents, latents.device, limits)
    return float(live.peak)


def weight_bytes(module: Any) -> int:
    """Bytes of a module's parameters and buffers."""
    return sum(one.numel() * one.element_size() for one in (*module.parameters(), *module.buffers()))


def text_bytes(place: Path, size: int) -> int:
    """Bytes of the text encoder in a layout or a single file, at `size` bytes a number; 0 where there is none."""
    files = [place] if place.is_file() else sorted((place / "text_encoder").glob("*.safetensors"))
    prefix = single_file.TEXT if place.is_file() else ""
    half = [path for path in files if ".fp16" in path.name]
    total = 0
    for path in [one for one in files if one not in half] or half:
        with safe_open(str(path), "pt") as weights:
            names = [name for name in weights.keys() if name.startswith(prefix)]  # noqa: SIM118
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in names) * size
    return total
