"""Memory: what a model takes at its peak, and the choice of batch and tiles that fits what there is.

The UNet is not guessed at: its architecture is run once on torch's meta device, which costs a quarter of a second and
no memory, while the bytes that are alive together are counted. They are proportional to pixels and batch. What the
decoder in bands keeps follows from its widths.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from vidup.config import Runtime, Settings
from vidup.engines import Choice, architecture, single_file
from vidup.engines.compiling import Compiled, compiles
from vidup.engines.hub import precisions
from vidup.engines.memory import LiveBytes, memory_limit
from vidup.engines.unet import Unet
from vidup.engines.vae import Decoder, Limits, fused, limits
from vidup.picture import tiling

log = logging.getLogger(__name__)

LADDER = (1024, 768, 640, 512, 448, 384, 320, 256, 192, 160, 128)
"""Sides of tiles in input pixels, from which the largest that fits is taken."""
SMALLEST = 128

_BATCH_PIXELS = 2**19  # input pixels in one call that keep a GPU busy
_BATCHES = (8, 4, 2, 1)
_LAZY = 2  # bands that rows worked out again hold at once
_PROBE = 64  # side of the picture that is traced
_SCALE = 4
# Numbers in float32 that are held for each input pixel of a frame: in the loop the clip, noise, latents and inputs;
# while decoding the clip and the latents.
_LOOP, _LATENTS = 46, 18


class Planner:
    """How much memory an x4 upscaler takes, and what follows from that.

    Args:
        unet: on whatever device; only its configuration and its size are looked at.
        decoder: as it will decode.
        tokens: of the texts that the UNet reads.
        guided: each window is evaluated with two texts.
        text_bytes: the weights of the text encoder, which is there while the model is loaded.
        device: where it runs.
        multiple: sides of tiles are multiples of it.
        compiled: the UNet, where it may be: CUDA graphs keep their memory while the decoder works.
    """

    def __init__(
        self,
        settings: Settings,
        runtime: Runtime,
        device: torch.device,
        unet: Any,
        decoder: Decoder,
        *,
        tokens: int,
        guided: bool,
        text_bytes: int,
        multiple: int,
        compiled: Compiled | None = None,
    ) -> None:
        self.settings, self.runtime, self.device, self.multiple = settings, runtime, device, multiple
        self.compiled = compiled
        self.unet, self.decoder, self.tokens, self.guided, self.text_bytes = unet, decoder, tokens, guided, text_bytes
        self.weights = tuple(_bytes(module) for module in (unet, decoder.vae))
        self.choose = lru_cache(maxsize=16)(self._choose)
        self.decoder_bytes = lru_cache(maxsize=16)(self._decoder_bytes)

    @property
    def graphs(self) -> bool:
        return self.compiled is not None and self.compiled.graphs

    @cached_property
    def limit(self) -> int:
        """Bytes that may be taken."""
        return memory_limit(self.runtime, self.device)

    @cached_property
    def window_bytes(self) -> float:
        """Bytes alive at the peak of an evaluation, for each pixel of a window."""
        return trace_unet(self.unet, self.tokens, self.guided)

    def plan(self, choice: Choice, height: int, width: int) -> tiling.Plan:
        """The windows of a frame whose sides are multiples of `multiple`."""
        return tiling.plan(height, width, choice.tile, self.settings.tile_overlap, self.multiple)

    def memory(self, choice: Choice, height: int, width: int) -> int:
        """Bytes on the device at the peak of loading, of evaluating or of decoding, weights included."""
        height, width = (side + -side % self.multiple for side in (height, width))
        unet, vae = self.weights
        loading = 0 if self.runtime.offload else unet + vae + self.text_bytes
        evaluating = self._evaluating(choice, height, width)
        decoding = self._decoding(height, width, choice.batch, self.keep(choice, height, width))
        if self.runtime.offload:
            return round(max(unet + evaluating, vae + decoding))
        working = evaluating + decoding if self.graphs else max(evaluating, decoding)
        return round(max(loading, unet + vae + working))

    def smaller(self, choice: Choice, height: int, width: int) -> Choice | None:
        """The next choice that takes less: the batch halved, then the next smaller tile; a given tile is kept."""
        if choice.batch > 1:
            return Choice(choice.batch // 2, choice.tile)
        if self.settings.tile:
            return None
        now = self.memory(choice, height, width)
        for tile in self._tiles(height, width):
            less = Choice(1, tile)
            if (not choice.tile or tile < choice.tile) and tile and self.memory(less, height, width) < now:
                return less
        return None

    def _choose(self, height: int, width: int) -> Choice:
        """The whole frame, or else the largest tiles, with the largest batch that fits; what is given is kept."""
        tiles = [self.settings.tile] if self.settings.tile else self._tiles(height, width)
        choice = Choice(1, tiles[-1])
        for tile in tiles:
            for batch in [self.runtime.batch] if self.runtime.batch else self._batches(height, width, tile):
                choice = Choice(batch, tile)
                if self.memory(choice, height, width) <= self.limit:
                    return choice
        log.warning(
            "%dx%d takes about %.1f GB at the least; %.1f GB are what it may take",
            width, height, self.memory(choice, height, width) / 1e9, self.limit / 1e9,
        )  # fmt: skip
        return choice

    def _tiles(self, height: int, width: int) -> list[int]:
        """The whole frame, then sides that cut it, from large to small."""
        least = max(SMALLEST, 3 * self.settings.tile_overlap)
        return [0, *(side for side in LADDER if least <= side < max(height, width))]

    def _batches(self, height: int, width: int, tile: int) -> list[int]:
        if self.device.type != "cuda":
            return [1]
        pixels = min(height, tile or height) * min(width, tile or width)
        return [size for size in _BATCHES if size == 1 or size * pixels <= _BATCH_PIXELS]

    def keep(self, choice: Choice, height: int, width: int) -> int:
        """The largest scale whose layers the decoder keeps: all that fit, but no more than the UNet takes where tiles
        were chosen for want of memory."""
        height, width = (side + -side % self.multiple for side in (height, width))
        may = self.limit - (self.weights[1] if self.runtime.offload else sum(self.weights))
        may -= round(self._evaluating(choice, height, width)) if self.graphs else 0
        if choice.tile and not self.settings.tile:
            may = min(may, round(self._evaluating(choice, height, width)))
        fits = (keep for keep in (4, 2) if self._decoding(height, width, choice.batch, keep) <= may)
        return next(fits, 1)

    def _decoder_bytes(self, height: int, width: int, keep: int) -> float:
        return decoder_bytes(self.decoder, height, width, self.device, limits(self.device, keep))

    def _decoding(self, height: int, width: int, batch: int, keep: int) -> float:
        pictures = (batch + (batch > 1)) * 3 * 4 * (_SCALE * height) * (_SCALE * width)
        return 4 * _LATENTS * height * width * batch + pictures + self.decoder_bytes(height, width, keep)

    def _evaluating(self, choice: Choice, height: int, width: int) -> float:
        plan = self.plan(choice, height, width)
        window = plan.tile_height * plan.tile_width * self.window_bytes
        return choice.batch * (4 * _LOOP * height * width + window)


def trace_unet(unet: Any, tokens: int, guided: bool) -> float:
    """Bytes alive at the peak of an evaluation for each pixel of a window, its batch of two texts included.

    Args:
        unet: a `UNet2DConditionModel`; its configuration is built again on the meta device.
    """
    asked, batch, when = _unet_twin(unet, tokens, _PROBE, _PROBE)
    asked.conditions(1, guided)
    with torch.inference_mode(), LiveBytes() as live:
        asked(batch, when, guided)
    return float(live.peak) / _PROBE**2


def unet_flops(unet: Any, tokens: int, height: int, width: int) -> int:
    """FLOP of one evaluation of one window with one text."""
    asked, batch, when = _unet_twin(unet, tokens, height, width)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        asked(batch, when, False)
    return int(counter.get_total_flops())


def decoder_flops(decoder: Decoder, height: int, width: int, limits: Limits) -> int:
    """FLOP of decoding one frame of latents."""
    twin, latents = _decoder_twin(decoder, height, width)
    with FlopCounterMode(display=False) as counter:
        twin(latents, latents.device, limits)
    return int(counter.get_total_flops())


def _unet_twin(unet: Any, tokens: int, height: int, width: int) -> tuple[Unet, torch.Tensor, torch.Tensor]:
    """The same architecture on the meta device, and what it is asked."""
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


def _bytes(module: Any) -> int:
    return sum(one.numel() * one.element_size() for one in (*module.parameters(), *module.buffers()))


def foresee(settings: Settings, runtime: Runtime, device: torch.device, height: int, width: int) -> int:
    """Bytes that the x4 upscaler will take for frames of this size, from its architecture alone: nothing is loaded."""
    dtype, vae_dtype = precisions(settings.dtype, device)
    meta = torch.device("meta")
    unet = architecture.random_unet(meta, dtype)
    planner = Planner(
        settings,
        runtime,
        device,
        unet,
        Decoder(architecture.random_vae(meta, vae_dtype), settings.vae_attention == "windowed"),
        tokens=architecture.TOKENS,
        guided=settings.guidance_scale > 1 and settings.prompt != settings.negative_prompt,
        text_bytes=architecture.TEXT_PARAMETERS * dtype.itemsize,
        multiple=8,
        compiled=Compiled(unet, compiles(runtime.compile, device, runtime.offload), device),
    )
    return planner.memory(planner.choose(height, width), height, width)


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
