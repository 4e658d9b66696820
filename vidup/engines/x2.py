"""Stable Diffusion x2, the latent upscaler: loaded and run as its authors do, over diffusers' UNet and VAE.

The VAE encodes a frame, the UNet denoises latents of twice the size, conditioned on the frame's, the VAE decodes. The
UNet is preconditioned as in Karras et al. 2022, see `solver.variance_exploding`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, lru_cache

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn import functional
from transformers import CLIPTextModel

from vidup.config import Runtime, Settings
from vidup.engines import X2, Choice, Needs, Place, hub, prompts, solver, tracing, windows
from vidup.engines.diffusion import LATENTS, Diffusion
from vidup.engines.finite import clamped
from vidup.engines.hub import Parts
from vidup.engines.memory import weight_bytes
from vidup.engines.unused import warn_unused
from vidup.engines.vae import limits
from vidup.errors import EngineError

log = logging.getLogger(__name__)

_NOISE_EMBEDDING = 128  # cosines and sines of the noise level, which is 0: ones, then zeros

# Tensors of the widest stage that are alive at once, measured with the real architecture.
_UNET_TENSORS, _ENCODER_TENSORS = 14, 5


def identity(settings: Settings, half: bool) -> str:
    """Fingerprint of its files."""
    return hub.identity(hub.locate(settings.model, settings.revision, half, X2), half)


def foresee(settings: Settings, runtime: Runtime, device: torch.device, pixels: int) -> None:
    """None: only the loaded model has its needs."""


class LatentX2(Diffusion):
    """The x2 latent upscaler. It has no noise level: its authors found that noise only weakens the conditioning."""

    scale = 2
    multiple = 64

    def _load(self, settings: Settings, home: torch.device, vae_dtype: torch.dtype) -> Parts:
        return load_parts(settings, home, self.dtype, vae_dtype)

    def lend(self, settings: Settings) -> LatentX2 | None:
        """None for another prompt, which needs the text encoder."""
        before = self.settings
        if any(getattr(settings, name) != getattr(before, name) for name in ("prompt", "negative_prompt")):
            return None
        if (settings.guidance_scale > 0) != (before.guidance_scale > 0):  # whether the prompt was read
            return None
        return self._lent(settings, self.parts.texts)

    def _settle(self, settings: Settings) -> None:
        read = replace(settings, noise_level=settings.noise_level or "auto")  # 0 is no change
        warn_unused(read, "the x2 upscaler", ("vae", "tokenizer"), ("noise_level",))
        if 0 < settings.tile < 2 * self.multiple:
            raise EngineError(
                f"tile = {settings.tile}: the x2 upscaler takes tiles of {2 * self.multiple} and more, or 0"
            )
        self.factor = 2 ** (len(self.vae.module.config.block_out_channels) - 1)
        self.steps, self.start = solver.variance_exploding(self.parts.scheduler, settings.sampler, settings.steps)
        self._condition = lru_cache(maxsize=4)(self._make_condition)
        super()._settle(settings)

    @cached_property
    def _needs(self) -> Needs:
        """Estimated from the number of tensors of the widest stages that are alive at once."""
        unet = _UNET_TENSORS * self.unet.module.config.block_out_channels[0] * self.dtype.itemsize
        unet *= (2 if self.guided else 1) * (self.scale / self.factor) ** 2
        encoder = _ENCODER_TENSORS * self.vae.module.config.block_out_channels[0] * self.vae.module.dtype.itemsize
        frame = 12.0 * 3 + 12 * self.scale**2  # the clip, in [-1, 1], its latents; the picture

        @lru_cache(maxsize=32)
        def decoding(height: int, width: int, keep: int) -> float:
            tall, wide = (self.scale * side // self.factor for side in (height, width))
            return tracing.vae_bytes(self.vae, tall, wide, self.device, limits(self.device, keep))

        return Needs(
            self.device,
            frame=frame,
            window=max(unet, encoder),
            decoded=frame,
            decoding=decoding,
            keeps=(8, 4, 2, 1),
            weights=(weight_bytes(self.unet.module), weight_bytes(self.vae.module)),
            loading=self.parts.text_bytes,
            multiple=self.multiple,
            batch=4 if self.device.type == "cuda" else 1,
        )

    @torch.inference_mode()
    def __call__(self, clip: torch.Tensor, place: Place, choice: Choice) -> torch.Tensor:
        self.unet.run.begin(clip, place)
        pixels = self._cut(choice, *clip.shape[-2:])
        small = pixels.scaled(1, self.factor)
        latents = small.scaled(self.scale)
        overlap = math.ceil(self.settings.tile_overlap / self.multiple) * self.multiple // self.factor
        with self._vae_moves.at_work():
            image = windows.blend(
                self._encode, clip.clamp(0, 1) * 2 - 1, pixels, small, self._weights(small, overlap), choice.batch
            )
        image = functional.interpolate(image, scale_factor=self.scale, mode="nearest")
        field = self._noise(LATENTS, image.shape[1], latents.height, latents.width, place)
        start = self.start * field.expand(len(clip), -1, -1, -1)

        def evaluator(time: torch.Tensor, guided: bool) -> Callable[[torch.Tensor], torch.Tensor]:
            def evaluate(batch: torch.Tensor) -> torch.Tensor:
                condition = self._condition(len(batch), guided)
                return self.unet(batch, time, guided, timestep_cond=condition)[:, :-1]  # the last is a variance, unused

            return evaluate

        weights = self._weights(latents, self.scale * overlap)
        x0 = self._sample(start, image, latents, weights, choice.batch, evaluator)
        return clamped(self._decode(x0, choice).div_(2).add_(0.5), self.dtype)

    def _encode(self, batch: torch.Tensor) -> torch.Tensor:
        """The most likely latents of pictures in [-1, 1]; random samples would flicker."""
        likely: torch.Tensor = self.vae.module.encode(batch.to(self.vae.module.dtype), return_dict=False)[0].mode()
        return likely.float() * float(self.vae.module.config.scaling_factor)

    def _make_condition(self, count: int, guided: bool) -> torch.Tensor:
        """Noise level with pooled text, for `count` windows; twice if guided."""
        pooled = self.parts.pooled
        assert pooled is not None
        pooled = (pooled if guided else pooled[-1:]).to(self.device).repeat_interleave(count, 0)
        half = torch.ones(len(pooled), _NOISE_EMBEDDING // 2, dtype=pooled.dtype, device=self.device)
        return torch.cat([half, torch.zeros_like(half), pooled], 1)


load = LatentX2


def load_parts(settings: Settings, device: torch.device, unet_dtype: torch.dtype, vae_dtype: torch.dtype) -> Parts:
    """Load the modules, encode the prompts, and unload the text encoder.

    Raises:
        EngineError: the model is missing, a part is damaged, or it is no x2 latent upscaler.
    """
    half = unet_dtype != torch.float32
    folder = hub.locate(settings.model, settings.revision, half, X2)
    hub.quiet()
    with hub.load_errors(folder):
        scheduler = hub.schedule(folder, "scheduler", solver.variance_exploding)
        unet = hub.load_module(UNet2DConditionModel, folder, "unet", unet_dtype, device)
        vae = hub.load_vae(AutoencoderKL, folder, vae_dtype, device)
        encoder = hub.load_module(CLIPTextModel, folder, "text_encoder", unet_dtype, device)
        latent = vae.config.latent_channels
        found = (unet.config.in_channels, unet.config.out_channels, unet.config.time_cond_proj_dim)
        expected = (2 * latent, latent + 1, _NOISE_EMBEDDING + encoder.config.hidden_size)
        if found != expected:
            raise EngineError(
                f"model {folder}: is no x2 latent upscaler: its unet takes, gives and is conditioned on"
                f" {found} channels, expected {expected}"
            )
        encode = prompts.tokens(folder)
        # As in diffusers' pipeline, 0 means no prompt.
        prompt = settings.prompt if settings.guidance_scale > 0 else ""
        if prompt != settings.prompt:
            log.warning("guidance_scale = 0: the prompt has no effect")
        with torch.inference_mode():
            ids = torch.cat([encode(text)[0] for text in (settings.negative_prompt, prompt)]).to(device)
            prompts.check_known(ids, encoder)
            answer = encoder(ids, output_hidden_states=True)
        # From the last layer, not normalised.
        texts, pooled = answer.hidden_states[-1].to(unet_dtype), answer.pooler_output.to(unet_dtype)
        size = hub.text_bytes(folder, unet_dtype.itemsize)
        return Parts(unet, vae, texts, scheduler, hub.identity(folder, half), folder, size, pooled=pooled)
