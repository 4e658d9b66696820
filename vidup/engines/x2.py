"""Stable Diffusion x2, the latent upscaler: loaded and run as its authors do, over diffusers' UNet and VAE.

The VAE encodes a frame, the UNet denoises latents of twice the size, conditioned on the frame's, the VAE decodes. The
UNet is preconditioned as in Karras et al. 2022, see `solver.variance_exploding`.
"""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextModel

from vidup.config import Runtime, Settings
from vidup.engines import Choice, Needs, Place, hub, prompts, solver, tracing, windows
from vidup.engines.card import card, precisions, wider
from vidup.engines.compiling import Compiled, compiles
from vidup.engines.finite import clamped, warn_wider
from vidup.engines.memory import weight_bytes
from vidup.engines.unet import Moved, at_work
from vidup.engines.unused import warn_unused
from vidup.engines.vae import Decoder, check, limits
from vidup.errors import EngineError
from vidup.picture import noise, tiling

log = logging.getLogger(__name__)

_LATENTS = 1  # stream of noise
_NOISE_EMBEDDING = 128  # cosines and sines of the noise level, which is 0: ones, then zeros

# Tensors of the widest stage that are alive at once, measured with the real architecture.
_UNET_TENSORS, _ENCODER_TENSORS = 14, 5


def load(settings: Settings, runtime: Runtime, device: torch.device) -> LatentX2:
    """The settings' model."""
    return LatentX2(settings, runtime, device)


def identity(settings: Settings, half: bool) -> str:
    """Fingerprint of its files."""
    return hub.identity(hub.locate(settings.model, settings.revision, half, "x2"), half)


def foresee(settings: Settings, runtime: Runtime, device: torch.device, pixels: int) -> None:
    """None: only the loaded model has its needs."""


class LatentX2:
    """The x2 latent upscaler. It has no noise level: its authors found that noise only weakens the conditioning."""

    scale = 2
    multiple = 64
    invents = True

    def __init__(self, settings: Settings, runtime: Runtime, device: torch.device) -> None:
        self.runtime, self.device = runtime, device
        self.dtype, vae_dtype = precisions(settings.dtype, card(device))
        home = torch.device("cpu") if runtime.offload else device  # where weights are while they are not used
        parts = load_parts(settings, home, self.dtype, vae_dtype)
        self.vae, self.identity, self._text_bytes = parts.vae, parts.identity, parts.text_bytes
        compiled = compiles(runtime.compile, card(device), runtime.offload)
        self.unet = Compiled(parts.unet, compiled, device, parts.unet)
        self.decoder = Decoder(self.vae, settings.vae_attention, device)
        if self.unet.active:
            self.decoder.compile()
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        modules = (parts.unet, self.vae)
        self._unet_moves, self._vae_moves = (Moved(one, device) if runtime.offload else None for one in modules)
        self.text, self.pooled, self._scheduler = parts.text.to(device), parts.pooled.to(device), parts.scheduler
        self._settle(settings)
        if device.type == "mps":
            with at_work(self._vae_moves):
                check(self.decoder, device)

    def lend(self, settings: Settings) -> LatentX2 | None:
        """See `Engine.lend`; None for another prompt, which needs the text encoder."""
        before = self.settings
        if any(getattr(settings, name) != getattr(before, name) for name in ("prompt", "negative_prompt")):
            return None
        if (settings.guidance_scale > 0) != (before.guidance_scale > 0):  # whether the prompt was read
            return None
        other = copy.copy(self)
        other.__dict__.pop("wider", None)
        other._settle(settings)
        return other

    def _settle(self, settings: Settings) -> None:
        """Set all that depends on the settings."""
        self.settings, device = settings, self.device
        read = replace(settings, noise_level=settings.noise_level or "auto")  # 0 is no change
        warn_unused(read, "the x2 upscaler", ("vae", "tokenizer"), ("noise_level",))
        if 0 < settings.tile < 2 * self.multiple:
            raise EngineError(
                f"tile = {settings.tile}: the x2 upscaler takes tiles of {2 * self.multiple} and more, or 0"
            )
        self.steps, self.start = solver.variance_exploding(self._scheduler, settings.sampler, settings.steps)

        # With equal embeddings guidance is the identity.
        differ = settings.guidance_scale > 1 and not torch.equal(self.text[0], self.text[1])
        self.guides = [differ and guided for guided in solver.interval(settings, len(self.steps))]
        self.guided = any(self.guides)
        self.times = {step.time: torch.tensor(step.time, device=device) for step in self.steps}
        self._conditions = lru_cache(maxsize=4)(self._make_conditions)
        self._weights = lru_cache(maxsize=8)(self._make_weights)
        self._field = lru_cache(maxsize=4)(self._make_field)
        self._decoder_bytes = lru_cache(maxsize=32)(self._count_decoder_bytes)

    @property
    def needs(self) -> Needs:
        """See `Engine.needs`; estimated from the number of tensors of the widest stages that are alive at once."""
        unet = _UNET_TENSORS * self.unet.module.config.block_out_channels[0] * self.dtype.itemsize
        unet *= (2 if self.guided else 1) * (self.scale / self.factor) ** 2
        encoder = _ENCODER_TENSORS * self.vae.config.block_out_channels[0] * self.vae.dtype.itemsize
        frame = 12.0 * 3 + 12 * self.scale**2  # the clip, in [-1, 1], its latents; the picture
        return Needs(
            self.device,
            frame=frame,
            window=max(unet, encoder),
            decoded=frame,
            decoder=self._decoder_bytes,
            keeps=(8, 4, 2, 1),
            weights=(weight_bytes(self.unet.module), weight_bytes(self.vae)),
            loading=self._text_bytes,
            multiple=self.multiple,
            batch=4 if self.device.type == "cuda" else 1,
            compiled=self.unet.active,
        )

    def expect(self, pixels: int) -> None:
        """See `Engine.expect`."""
        evaluations = len(self.guides) + sum(self.guides)
        flops = self._unet_flops(64, 64) / 64**2 * (self.scale / self.factor) ** 2
        if self.unet.weighs and self.unet.expect(pixels * evaluations * flops):
            self.decoder.compile()

    @cached_property
    def wider(self) -> LatentX2 | None:
        """See `Engine.wider`; its weights are on the device only while it works."""
        name = wider(self.dtype, card(self.device))
        if name is None:
            return None
        warn_wider(self.dtype, name)
        settings, runtime = replace(self.settings, dtype=name), replace(self.runtime, compile="off", offload=True)
        return LatentX2(settings, runtime, self.device)

    def close(self) -> None:
        """See `Engine.close`."""
        self.unet.release()

    @torch.inference_mode()
    def __call__(self, clip: torch.Tensor, place: Place, choice: Choice) -> torch.Tensor:
        height, width = clip.shape[-2:]
        self.unet.begin(clip, place)
        pixels = windows.cut(choice, height, width, self.settings.tile_overlap, self.multiple)
        small = pixels.scaled(1, self.factor)
        latents = small.scaled(self.scale)

        overlap = math.ceil(self.settings.tile_overlap / self.multiple) * self.multiple
        weights = self._weights(small, overlap // self.factor)
        with at_work(self._vae_moves):
            image = windows.blend(self._encode, clip.clamp(0, 1) * 2 - 1, pixels, small, weights, choice.batch)
        image = functional.interpolate(image, scale_factor=self.scale, mode="nearest")
        top, left = (self.scale * side // self.factor for side in (place.top, place.left))
        field = self._field(image.shape[1], latents.height, latents.width, top, left)

        x = self.start * field.expand(len(clip), -1, -1, -1)
        with at_work(self._unet_moves):
            x = self._sample(
                x, image, latents, self._weights(latents, self.scale * overlap // self.factor), choice.batch
            )
        with at_work(self._vae_moves):
            picture = self.decoder(x / self.vae.config.scaling_factor, self.device, limits(self.device, choice.keep))
        return clamped(picture / 2 + 0.5, self.dtype)

    def flops(self, height: int, width: int, choice: Choice) -> tuple[int, float]:
        """FLOP of the UNet and the decoder for one frame, and evaluations of one window with one text."""
        pixels = windows.cut(choice, height, width, self.settings.tile_overlap, self.multiple)
        tiles = pixels.scaled(1, self.factor).scaled(self.scale)
        once = self._unet_flops(tiles.tile_height, tiles.tile_width)
        evaluations = len(tiles.origins) * (len(self.guides) + sum(self.guides))
        decoding = tracing.decoder_flops(self.decoder, tiles.height, tiles.width, limits(torch.device("meta")))
        return evaluations * once + decoding, float(evaluations)

    def _unet_flops(self, height: int, width: int) -> int:
        """FLOP of one evaluation of latents of this size with one text."""
        meta = torch.device("meta")
        text, condition = (one.to(meta) for one in self._conditions(1, False))
        with meta:
            twin = UNet2DConditionModel.from_config(self.unet.module.config)
            batch = torch.empty(1, twin.config.in_channels, height, width, dtype=self.dtype)
            time = torch.zeros((), dtype=torch.float32)
        torch.nn.Module.to(twin, self.dtype).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            twin(batch, time, encoder_hidden_states=text, timestep_cond=condition)
        return int(counter.get_total_flops())

    def _sample(
        self, x: torch.Tensor, image: torch.Tensor, tiles: tiling.Tiles, weights: torch.Tensor, batch: int
    ) -> torch.Tensor:
        guides = iter(self.guides)

        def model(x: torch.Tensor, step: solver.Step) -> torch.Tensor:
            evaluate = partial(self._evaluate, step=step, guided=next(guides))
            return windows.blend(evaluate, torch.cat([x, image], 1).to(self.dtype), tiles, tiles, weights, batch)

        return solver.solve(model, x, self.steps)

    def _evaluate(self, batch: torch.Tensor, step: solver.Step, guided: bool) -> torch.Tensor:
        text, condition = self._conditions(len(batch), guided)
        answer: torch.Tensor = self.unet(
            torch.cat([batch, batch]) if guided else batch,
            self.times[step.time],
            encoder_hidden_states=text,
            timestep_cond=condition,
            return_dict=False,
        )[0].float()
        answer = answer[:, :-1]  # the last channel is a variance, which is unused
        if guided:
            negative, positive = answer.chunk(2)
            answer = negative + self.settings.guidance_scale * (positive - negative)
        return answer

    def _encode(self, batch: torch.Tensor) -> torch.Tensor:
        """The most likely latents of pictures in [-1, 1]; random samples would flicker."""
        likely: torch.Tensor = self.vae.encode(batch.to(self.vae.dtype), return_dict=False)[0].mode()
        return likely.float() * float(self.vae.config.scaling_factor)

    def _make_conditions(self, count: int, guided: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Text, and noise level with pooled text, for `count` windows; twice if guided."""
        text, pooled = (
            (both if guided else both[-1:]).repeat_interleave(count, 0) for both in (self.text, self.pooled)
        )
        half = torch.ones(len(pooled), _NOISE_EMBEDDING // 2, dtype=pooled.dtype, device=self.device)
        return text, torch.cat([half, torch.zeros_like(half), pooled], 1)

    def _make_weights(self, tiles: tiling.Tiles, overlap: int) -> torch.Tensor:
        weights = torch.ones(1, dtype=torch.float32) if tiles.whole else tiling.weights(tiles, overlap)
        return weights.to(self.device)

    def _make_field(self, channels: int, height: int, width: int, top: int, left: int) -> torch.Tensor:
        return noise.field(self.settings.seed, _LATENTS, channels, height, width, top, left).to(self.device)

    def _count_decoder_bytes(self, height: int, width: int, keep: int) -> float:
        tall, wide = (self.scale * side // self.factor for side in (height, width))
        return tracing.decoder_bytes(self.decoder, tall, wide, self.device, limits(self.device, keep))


@dataclass(frozen=True)
class Parts:
    """The loaded parts of the checkpoint."""

    unet: Any
    vae: Any
    text: torch.Tensor
    """Embeddings of the negative prompt and the prompt, from the last layer, not normalised: (2, tokens, width)."""
    pooled: torch.Tensor
    """The pooled embeddings, (2, width)."""
    scheduler: dict[str, Any]
    identity: str
    text_bytes: int


def load_parts(settings: Settings, device: torch.device, unet_dtype: torch.dtype, vae_dtype: torch.dtype) -> Parts:
    """Load the modules, encode the prompts, and unload the text encoder.

    Raises:
        EngineError: the model is missing, a part is damaged, or it is no x2 latent upscaler.
    """
    half = unet_dtype != torch.float32
    folder = hub.locate(settings.model, settings.revision, half, "x2")
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
        text, pooled = answer.hidden_states[-1].to(unet_dtype), answer.pooler_output.to(unet_dtype)
        size = tracing.text_bytes(folder, unet_dtype.itemsize)
        return Parts(unet, vae, text, pooled, scheduler, hub.identity(folder, half), size)
