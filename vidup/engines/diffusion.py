"""Stable Diffusion x4: our own sampling loop over diffusers' UNet and VAE.

For one clip: the input gets noise (noise conditioning augmentation), the latents start as noise, the UNet predicts for
the whole frame or for tiles that are blended at every step, the solver follows, the VAE decodes. All noise is cropped
from seeded fields that belong to places, so equal frames give equal pictures.
"""

from __future__ import annotations

import logging
from functools import lru_cache

import psutil
import torch
from diffusers import DDPMScheduler

from vidup import noise, tiling
from vidup.config import Runtime, Settings
from vidup.engines import Place, detail, sampler
from vidup.engines.hub import load_parts, locate
from vidup.errors import EngineError

log = logging.getLogger(__name__)

_LOW_RES, _LATENTS = 0, 1  # streams of noise
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# What the automatic plan counts with: tensors of the widest stage that are alive at once, and the share of the device's
# memory that they may take. The UNet's was measured at 480x272 and 856x480 (7.4 kB a pixel in fp16 with 256 channels).
_UNET_TENSORS, _VAE_TENSORS, _MEMORY_SHARE = 15, 8, 0.6
_SMALLEST_TILE = 128


class DiffusionX4:
    """The x4 upscaler, at full size or as `mini`: whatever has its layout on disk."""

    scale = 4
    multiple = 8
    invents = True

    def __init__(self, settings: Settings, runtime: Runtime, device: torch.device) -> None:
        self.settings, self.device = settings, device
        unet_dtype, vae_dtype = _dtypes(settings.dtype, device)
        folder = locate(settings.model, settings.revision, half=unet_dtype != torch.float32)
        parts = load_parts(folder, device, unet_dtype, vae_dtype, settings.prompt, settings.negative_prompt)
        if settings.noise_level > parts.max_noise_level:
            raise EngineError(f"noise_level = {settings.noise_level}: the model knows 0 to {parts.max_noise_level}")
        self.unet, self.vae, self.dtype = parts.unet, parts.vae, unet_dtype
        # The CPU's convolutions want channels last; on CUDA GroupNorm would turn each tensor back.
        self.memory_format = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        self.unet.to(memory_format=self.memory_format)
        self.steps = sampler.prepare(parts.scheduler, settings.sampler, settings.steps)
        self.clip_length = runtime.batch or (4 if device.type == "cuda" else 1)

        # With equal embeddings guidance is the identity, bit for bit: half the cost for nothing lost.
        self.guided = settings.guidance_scale > 1 and not torch.equal(parts.positive, parts.negative)
        self.text = torch.cat([parts.negative, parts.positive]) if self.guided else parts.positive

        cumulative = DDPMScheduler.from_config(parts.low_res_scheduler).alphas_cumprod[settings.noise_level].item()
        self.signal, self.noise = cumulative**0.5, (1 - cumulative) ** 0.5
        # On the device once: the loop neither copies nor waits. Frames of a job have one size.
        self.times = {step.timestep: torch.tensor(step.timestep, device=device) for step in self.steps}
        self._conditions = lru_cache(maxsize=4)(self._make_conditions)
        self._plan = lru_cache(maxsize=4)(self._make_plan)
        self._weights = lru_cache(maxsize=8)(self._make_weights)
        self._field = lru_cache(maxsize=8)(self._make_field)

    @torch.inference_mode()
    def __call__(self, clip: torch.Tensor, place: Place) -> torch.Tensor:
        count, _, height, width = clip.shape
        plan = self._plan(height, width)
        low_res = clip.clamp(0, 1) * 2 - 1
        noisy = self.signal * low_res + self.noise * self._field(_LOW_RES, 3, height, width, place.top, place.left)
        channels = self.vae.config.latent_channels
        start = self._field(_LATENTS, channels, height, width, place.top, place.left).expand(count, -1, -1, -1)

        x0 = sampler.solve(lambda x, time: self._predict(torch.cat([x, noisy], 1), time, plan), start, self.steps)

        picture = self._decode(x0 / self.vae.config.scaling_factor, plan)
        if getattr(self.vae.config, "residual", False):
            picture += detail.up(low_res)
        return (picture / 2 + 0.5).clamp_(0, 1)

    def _predict(self, inputs: torch.Tensor, time: int, plan: tiling.Plan) -> torch.Tensor:
        """The UNet's answer for every pixel, blended over the windows that see it."""
        inputs = inputs.to(self.dtype)
        channels = self.vae.config.latent_channels
        answer = torch.zeros(len(inputs), channels, *inputs.shape[-2:], device=self.device)
        weights = self._weights(plan, 1)
        windows = [(frame, tile) for frame in range(len(inputs)) for tile in range(len(plan.origins))]
        for first in range(0, len(windows), self.clip_length):
            chosen = windows[first : first + self.clip_length]
            batch = torch.stack([tiling.crop(inputs[frame], plan, tile) for frame, tile in chosen])
            if len(windows) > self.clip_length:  # one shape for every call: rows then do not depend on their company
                batch = torch.cat([batch, batch[-1:].expand(self.clip_length - len(batch), -1, -1, -1)])
            batch = batch.contiguous(memory_format=self.memory_format)
            for (frame, tile), row in zip(chosen, self._evaluate(batch, time), strict=False):
                tiling.crop(answer[frame], plan, tile).add_(row * weights[tile])
        return answer

    def _evaluate(self, batch: torch.Tensor, time: int) -> torch.Tensor:
        count = len(batch)
        if self.guided:
            batch = torch.cat([batch, batch])
        text, level = self._conditions(count)
        answer: torch.Tensor = self.unet(
            batch, self.times[time], encoder_hidden_states=text, class_labels=level, return_dict=False
        )[0].float()
        if self.guided:
            negative, positive = answer.chunk(2)
            answer = negative + self.settings.guidance_scale * (positive - negative)
        return answer

    def _decode(self, latents: torch.Tensor, plan: tiling.Plan) -> torch.Tensor:
        """Latents to pictures in [-1, 1], a window at a time: the VAE takes the most memory."""
        large = plan.scaled(self.scale)
        pictures = torch.zeros(len(latents), 3, large.height, large.width, device=self.device)
        weights = self._weights(plan, self.scale)
        dtype = next(self.vae.parameters()).dtype
        for frame, latent in enumerate(latents):
            for tile in range(len(plan.origins)):
                window = tiling.crop(latent, plan, tile)[None].to(dtype)
                row = self.vae.decode(window, return_dict=False)[0][0].float()
                tiling.crop(pictures[frame], large, tile).add_(row * weights[tile])
        return pictures

    def _make_conditions(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Text and noise level for a batch of `count` windows, twice as many where it is guided."""
        text = self.text.repeat_interleave(count, 0)
        return text, torch.full((len(text),), self.settings.noise_level, device=self.device)

    def _make_weights(self, plan: tiling.Plan, scale: int) -> torch.Tensor:
        if plan.whole:
            return torch.ones(1, device=self.device)
        return tiling.weights(plan.scaled(scale), self.settings.tile_overlap * scale).to(self.device)

    def _make_field(self, stream: int, channels: int, height: int, width: int, top: int, left: int) -> torch.Tensor:
        return noise.field(self.settings.seed, stream, channels, height, width, top, left).to(self.device)

    def _make_plan(self, height: int, width: int) -> tiling.Plan:
        tile = self.settings.tile or self._largest_tile(height, width)
        plan = tiling.plan(height, width, tile, self.settings.tile_overlap, self.multiple)
        if not plan.whole:
            log.info("%dx%d in %d tiles of %dx%d", width, height, len(plan.origins), plan.tile_width, plan.tile_height)
        return plan

    def _largest_tile(self, height: int, width: int) -> int:
        """0 where the whole frame fits the memory, else the side of the largest square tile that does."""
        pixels = self._memory() / self._bytes_per_pixel()
        if height * width <= pixels:
            return 0
        smallest = max(_SMALLEST_TILE, 3 * self.settings.tile_overlap)
        return max(smallest, int(pixels**0.5) // self.multiple * self.multiple)

    def _memory(self) -> float:
        """Bytes for activations. From what the device has, not what is free now: the plan must not change by chance."""
        if self.device.type == "cuda":
            total = torch.cuda.get_device_properties(self.device).total_memory
        else:
            total = psutil.virtual_memory().total
        weights = sum(p.numel() * p.element_size() for module in (self.unet, self.vae) for p in module.parameters())
        return float(max(0.0, total * _MEMORY_SHARE - weights))

    def _bytes_per_pixel(self) -> float:
        unet = _UNET_TENSORS * self.unet.config.block_out_channels[0] * self.dtype.itemsize
        unet *= self.clip_length * (2 if self.guided else 1)
        widest = getattr(self.vae.config, "block_out_channels", [3])[0]
        vae = _VAE_TENSORS * widest * self.scale**2 * next(self.vae.parameters()).element_size()
        return float(max(unet, vae))


def _dtypes(name: str, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """Of the UNet and of the VAE, whose decoder overflows in float16."""
    unet = _DTYPES.get(name, torch.float16 if device.type == "cuda" else torch.float32)
    if unet == torch.float32:
        return unet, unet
    has_bfloat16 = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported())
    return unet, torch.bfloat16 if has_bfloat16 else torch.float32
