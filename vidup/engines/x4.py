"""Stable Diffusion x4: our own sampling loop over diffusers' UNet and VAE.

For a clip, noise is added to the input (noise conditioning augmentation), the latents start as noise, the UNet predicts
for the whole frame or for tiles that are blended at every step, the solver steps, the VAE decodes. All noise is cropped
from seeded fields, so equal frames give equal pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import torch

from vidup.config import Runtime, Settings
from vidup.engines import (
    DISTILLED,
    HOMES,
    Choice,
    Needs,
    Place,
    architecture,
    detail,
    hub,
    solver,
    tiny,
    tracing,
    windows,
)
from vidup.engines.card import card, precisions
from vidup.engines.compiling import WORTH, X4_FLOPS, compiles
from vidup.engines.diffusion import LATENTS, LOW_RES, Diffusion
from vidup.engines.finite import clamped
from vidup.engines.folding import fold
from vidup.engines.hub import Parts, load_parts
from vidup.engines.memory import weight_bytes
from vidup.engines.unused import warn_unused
from vidup.engines.vae import Vae, limits
from vidup.errors import EngineError
from vidup.picture import footage, noise

_DISTILLED_VAE = "madebyollin/taesd-x4-upscaler"
_DISTILLED_STEPS = 4  # at the timesteps 999, 749, 499 and 249
_NOT_DISTILLED = (
    *("steps", "sampler", "noise_level", "negative_prompt", "guidance_scale", "guidance_start", "guidance_end"),
)
"""Settings without effect for a distilled model."""


def identity(settings: Settings, half: bool) -> str:
    """Fingerprint of its files, and of another VAE."""
    kind = hub.kind_of(settings.model, settings.revision)
    own = hub.identity(hub.locate(settings.model, settings.revision, half, kind), half, kind)
    vae = settings.vae or (_DISTILLED_VAE if kind == DISTILLED else None)
    return own if vae is None else f"{own}+{tiny.identity(vae)}"


class DiffusionX4(Diffusion):
    """The x4 upscaler, at full size or as `mini`, and other models with its layout."""

    scale = factor = 4
    multiple = 8

    def _load(self, settings: Settings, home: torch.device, vae_dtype: torch.dtype) -> Parts:
        parts = load_parts(settings, home, self.dtype, vae_dtype)
        vae = settings.vae or (_DISTILLED_VAE if parts.vae is None else None)
        return parts if vae is None else with_tiny(parts, vae, home, self.dtype)

    def lend(self, settings: Settings) -> DiffusionX4 | None:
        """None for another prompt if the text encoder cannot be loaded separately."""
        texts, folder, before = self.parts.texts, self.parts.folder, self.settings
        if (settings.prompt, settings.negative_prompt) != (before.prompt, before.negative_prompt):
            if folder is None or folder.is_file() or self.runtime.offload:
                return None
            texts = hub.texts(folder, self.unet.module, self.device, self.dtype, settings)
        return self._lent(settings, texts)

    def _settle(self, settings: Settings) -> None:
        parts, most = self.parts, len(self.parts.noise_levels) - 1
        if parts.noise_level is None:
            warn_unused(settings, "a distilled model", (), _NOT_DISTILLED)
            trailing = {**parts.scheduler, "timestep_spacing": "trailing"}
            self.steps = solver.variance_preserving(trailing, "ddim", _DISTILLED_STEPS)
        else:
            if settings.noise_level != "auto" and settings.noise_level > most:
                raise EngineError(f"noise_level = {settings.noise_level}: the model knows 0 to {most}")
            self.steps = solver.variance_preserving(parts.scheduler, settings.sampler, settings.steps)
        self.cumulative = parts.noise_levels.to(self.device)
        super()._settle(settings)
        if parts.noise_level is None:
            self.guides = [False] * _DISTILLED_STEPS

    @cached_property
    def _needs(self) -> Needs:
        """The UNet is run on torch's meta device for them."""
        texts = self.parts.texts.shape[1], self.parts.text_bytes
        return needs(self.device, self.unet.module, self.vae, texts, self.guided, False)

    @torch.inference_mode()
    def __call__(self, clip: torch.Tensor, place: Place, choice: Choice) -> torch.Tensor:
        count, _, height, width = clip.shape
        self.unet.run.begin(clip, place)
        tiles = self._cut(choice, height, width)
        low_res = clip.clamp(0, 1) * 2 - 1
        levels = self._levels(clip, place.quantisers)
        signal = self.cumulative[levels].view(-1, 1, 1, 1)
        field = self._noise(LOW_RES, 3, height, width, place)
        noisy = signal.sqrt() * low_res + (1 - signal).sqrt() * field
        channels = self.vae.module.config.latent_channels
        start = self._noise(LATENTS, channels, height, width, place).expand(count, -1, -1, -1)
        rows = windows.spread(levels, tiles, choice.batch)

        def evaluator(time: torch.Tensor, guided: bool) -> Callable[[torch.Tensor], torch.Tensor]:
            each = iter(rows)
            return lambda batch: self.unet(batch, time, guided, class_labels=next(each).repeat(1 + guided))

        weights = self._weights(tiles, self.settings.tile_overlap)
        x0 = self._sample(start, noisy, tiles, weights, choice.batch, evaluator)
        picture = self._decode(x0, choice)
        if getattr(self.vae.module.config, "residual", False):
            picture += detail.up(low_res)
        return clamped(picture.div_(2).add_(0.5), self.dtype)

    def _levels(self, clip: torch.Tensor, quantisers: Sequence[float]) -> torch.Tensor:
        """The noise level of each picture, int64 (T,): the settings', else by its distance from a clean picture."""
        clean, level = self.parts.noise_level, self.settings.noise_level
        if clean is None:
            return torch.zeros(len(clip), dtype=torch.long, device=self.device)
        if level != "auto":
            return torch.full((len(clip),), level, device=self.device)
        distances = footage.distance(clip, quantisers)
        return noise.levels_for(distances, self.cumulative).clamp_min(clean)


load = DiffusionX4


def with_tiny(parts: Parts, name: str, device: torch.device, dtype: torch.dtype) -> Parts:
    """The same model with a tiny autoencoder, see `tiny.load_tiny`."""
    vae, own = tiny.load_tiny(name, parts.unet.config.out_channels, DiffusionX4.scale, device, dtype)
    return replace(parts, vae=vae, identity=f"{parts.identity}+{own}")


def random_parts(device: torch.device, unet_dtype: torch.dtype, vae_dtype: torch.dtype, narrower: int = 1) -> Parts:
    """The model with random weights, for measurements; see `architecture`."""
    unet = architecture.random_unet(device, unet_dtype, narrower)
    vae = architecture.random_vae(device, vae_dtype, narrower)
    if vae_dtype == torch.float16:
        fold(vae)
    texts = architecture.random_text(narrower).to(device, unet_dtype)
    levels, level = hub.default_levels(), architecture.NOISE_LEVEL
    identity = f"random, narrower {narrower}"
    return Parts(unet, vae, texts, architecture.SCHEDULER, identity, noise_levels=levels, noise_level=level)


# Numbers in float32 for each input pixel of a frame: in the loop those of the clip, noise, latents and inputs; while
# decoding those of the clip, the latents and the picture.
_LOOP, _DECODED = 46, 18 + 3 * DiffusionX4.scale**2


def needs(device: torch.device, unet: Any, vae: Vae, texts: tuple[int, int], guided: bool, compiled: bool) -> Needs:
    """The needs of an x4 upscaler, whose modules may be on the meta device.

    Args:
        texts: the number of the UNet's tokens, and the bytes of the text encoder's weights.
    """

    @lru_cache(maxsize=32)
    def decoding(height: int, width: int, keep: int) -> float:
        return tracing.vae_bytes(vae, height, width, device, limits(device, keep))

    return Needs(
        device,
        frame=4.0 * _LOOP,
        window=tracing.trace_unet(unet, texts[0], guided),
        decoded=4.0 * _DECODED,
        decoding=decoding,
        keeps=(4, 2, 1),
        weights=(weight_bytes(unet), weight_bytes(vae.module)),
        loading=texts[1],
        multiple=DiffusionX4.multiple,
        batch=8 if device.type == "cuda" else 1,
        busy=2**17,  # a frame of 480x270 keeps a card busy
        compiled=compiled,
    )


def foresee(settings: Settings, runtime: Runtime, device: torch.device, pixels: int) -> Needs | None:
    """The needs of the hub's model, from its architecture, or of `mini`, which is loaded quickly.

    None for another model, or with another VAE, which have to be loaded.
    """
    if settings.model in hub.SHIPPED:
        engine = DiffusionX4(settings, runtime, device)
        engine.expect(pixels)
        return engine.needs
    if settings.model not in HOMES or settings.vae is not None:
        return None
    facts = card(device)
    dtype, vae_dtype = precisions(settings.dtype, facts)
    meta = torch.device("meta")
    vae = Vae(architecture.random_vae(meta, vae_dtype), settings.vae_attention)
    guided = settings.guidance_scale > 1 and settings.prompt != settings.negative_prompt
    evaluations = settings.steps + guided * sum(solver.interval(settings, settings.steps))
    work = pixels * evaluations * X4_FLOPS
    wish = compiles(runtime.compile, facts, runtime.offload)
    return needs(
        device,
        architecture.random_unet(meta, dtype),
        vae,
        (architecture.TOKENS, architecture.TEXT_PARAMETERS * dtype.itemsize),
        guided,
        wish == "on" or (wish == "auto" and work >= WORTH),
    )
