"""Stable Diffusion x4: our own sampling loop over diffusers' UNet and VAE.

For a clip, noise is added to the input (noise conditioning augmentation), the latents start as noise, the UNet predicts
for the whole frame or for tiles that are blended at every step, the solver steps, the VAE decodes. All noise is cropped
from seeded fields, so equal frames give equal pictures.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler

from vidup.config import Runtime, Settings
from vidup.engines import HOMES, Choice, Needs, Place, architecture, detail, hub, solver, tiny, tracing, windows
from vidup.engines.anchoring import quantiser
from vidup.engines.card import card, precisions, wider
from vidup.engines.compiling import WORTH, X4_FLOPS, compiles
from vidup.engines.finite import clamped, warn_wider
from vidup.engines.hub import Parts, load_parts, locate
from vidup.engines.memory import weight_bytes
from vidup.engines.unet import Moved, Unet, at_work
from vidup.engines.unused import warn_unused
from vidup.engines.vae import Decoder, check, limits
from vidup.errors import EngineError
from vidup.picture import footage, noise, tiling

log = logging.getLogger(__name__)

_LOW_RES, _LATENTS = 0, 1  # streams of noise

_OTHER_DECODER = {"distilled": "madebyollin/taesd-x4-upscaler"}
_DISTILLED_STEPS = 4  # at the timesteps 999, 749, 499 and 249
_NOT_DISTILLED = (
    *("steps", "sampler", "noise_level", "negative_prompt", "guidance_scale", "guidance_start", "guidance_end"),
)
"""Settings without effect for a distilled model."""


def load(settings: Settings, runtime: Runtime, device: torch.device) -> DiffusionX4:
    """The settings' model."""
    return DiffusionX4(settings, runtime, device)


def identity(settings: Settings, half: bool) -> str:
    """Fingerprint of its files, and of another decoder."""
    kind = hub.kind_of(settings.model, settings.revision)
    own = hub.identity(hub.locate(settings.model, settings.revision, half, kind), half, kind)
    vae = settings.vae or _OTHER_DECODER.get(kind)
    return own if vae is None else f"{own}+{tiny.identity(vae)}"


class DiffusionX4:
    """The x4 upscaler, at full size or as `mini`, and other models with its layout.

    Args:
        parts: the loaded model; None: `settings.model` is loaded.

    Raises:
        EngineError: the model, or a part of it, is missing or does not fit the settings.
    """

    scale = 4
    multiple = 8
    invents = True

    def __init__(self, settings: Settings, runtime: Runtime, device: torch.device, parts: Parts | None = None) -> None:
        self.runtime, self.device = runtime, device
        self.dtype, vae_dtype = precisions(settings.dtype, card(device), settings.model in hub.SHIPPED)
        home = torch.device("cpu") if runtime.offload else device  # where weights are while they are not used
        text_bytes = 0
        self._folder: Path | None = None
        if parts is None:
            kind = hub.kind_of(settings.model, settings.revision)
            self._folder = folder = locate(settings.model, settings.revision, self.dtype != torch.float32, kind)
            parts = load_parts(
                folder, home, self.dtype, vae_dtype, settings.prompt, settings.negative_prompt, settings.tokenizer
            )
            text_bytes = tracing.text_bytes(folder, self.dtype.itemsize)
        self._parts, self._home = parts, home
        self.identity = parts.identity
        self.vae = parts.vae
        if vae := settings.vae or (_OTHER_DECODER["distilled"] if parts.vae is None else None):
            channels = parts.unet.config.out_channels
            self.vae, own = tiny.load_tiny(vae, channels, self.scale, home, self.dtype)
            self.identity = f"{self.identity}+{own}"
        compiled = compiles(runtime.compile, card(device), runtime.offload)
        self.unet = Unet(parts.unet, parts.negative, parts.positive, settings.guidance_scale, device, compiled)
        self.decoder = Decoder(self.vae, settings.vae_attention, device)
        if self.unet.run.active:
            self.decoder.compile()
        modules = (parts.unet, self.vae)
        self._unet_moves, self._vae_moves = (Moved(one, device) if runtime.offload else None for one in modules)
        if device.type == "mps":
            with at_work(self._vae_moves):
                check(self.decoder, device)
        self._tokens, self._text_bytes = parts.positive.shape[1], text_bytes
        self._settle(settings)

    def lend(self, settings: Settings) -> DiffusionX4 | None:
        """See `Engine.lend`; None for another prompt if the text encoder cannot be loaded separately."""
        other, before = copy.copy(self), self.settings
        if (settings.prompt, settings.negative_prompt) != (before.prompt, before.negative_prompt):
            if self._folder is None or self._folder.is_file() or self._unet_moves is not None:
                return None
            texts = hub.texts(
                self._folder, self.unet.module, self._home, self.dtype, settings.prompt, settings.negative_prompt
            )
            other._parts = replace(self._parts, positive=texts[0], negative=texts[1])
        parts = other._parts
        other.unet = self.unet.with_texts(parts.negative, parts.positive, settings.guidance_scale)
        for name in ("_needs", "wider"):
            other.__dict__.pop(name, None)
        other._settle(settings)
        return other

    def _settle(self, settings: Settings) -> None:
        """Set all that depends on the settings."""
        self.settings, parts, device = settings, self._parts, self.device
        if parts.low_res_scheduler is None or parts.max_noise_level is None:
            warn_unused(settings, "a distilled model", (), _NOT_DISTILLED)
            self.steps = solver.variance_preserving(
                {**parts.scheduler, "timestep_spacing": "trailing"}, "ddim", _DISTILLED_STEPS
            )
            guides, cumulative = False, torch.ones(1, dtype=torch.float32)
        else:
            if settings.noise_level != "auto" and settings.noise_level > parts.max_noise_level:
                raise EngineError(f"noise_level = {settings.noise_level}: the model knows 0 to {parts.max_noise_level}")
            self.steps = solver.variance_preserving(parts.scheduler, settings.sampler, settings.steps)
            # With equal embeddings guidance is the identity to the bit, and would only cost twice as much.
            guides = settings.guidance_scale > 1 and not torch.equal(parts.positive, parts.negative)
            cumulative = DDPMScheduler.from_config(parts.low_res_scheduler).alphas_cumprod[: parts.max_noise_level + 1]
        self.cumulative = cumulative.to(device)
        self.guides = [guides and guided for guided in solver.interval(settings, len(self.steps))]
        self.guided = any(self.guides)
        # On the device in advance, so that the loop neither copies nor waits.
        self.times = {step.time: torch.tensor(step.time, device=device) for step in self.steps}
        self._weights = lru_cache(maxsize=8)(self._make_weights)
        self._field = lru_cache(maxsize=4)(self._make_field)

    @property
    def needs(self) -> Needs:
        """See `Engine.needs`; the UNet is run on torch's meta device for them."""
        return replace(self._needs, compiled=self.unet.run.active)

    @cached_property
    def _needs(self) -> Needs:
        texts = self._tokens, self._text_bytes
        return needs(self.device, self.unet.module, self.decoder, texts, self.guided, False)

    def expect(self, pixels: int) -> None:
        """See `Engine.expect`."""
        run, evaluations = self.unet.run, len(self.guides) + sum(self.guides)
        if run.weighs:
            flops = tracing.unet_flops(self.unet.module, self._tokens, 64, 64) / 64**2
            if run.expect(pixels * evaluations * flops):
                self.decoder.compile()

    @cached_property
    def wider(self) -> DiffusionX4 | None:
        """See `Engine.wider`; its weights are on the device only while it works."""
        name = wider(self.dtype, card(self.device))
        if name is None or self._folder is None:
            return None
        warn_wider(self.dtype, name)
        settings, runtime = replace(self.settings, dtype=name), replace(self.runtime, compile="off", offload=True)
        return DiffusionX4(settings, runtime, self.device)

    def close(self) -> None:
        """See `Engine.close`."""
        self.unet.run.release()

    @torch.inference_mode()
    def __call__(self, clip: torch.Tensor, place: Place, choice: Choice) -> torch.Tensor:
        count, _, height, width = clip.shape
        self.unet.run.begin(clip, place)
        tiles = windows.cut(choice, height, width, self.settings.tile_overlap, self.multiple)
        weights = self._weights(tiles)
        low_res = clip.clamp(0, 1) * 2 - 1
        levels = self._levels(clip)
        signal = self.cumulative[levels].view(-1, 1, 1, 1)
        field = self._crop(_LOW_RES, 3, height, width, place)
        noisy = signal.sqrt() * low_res + (1 - signal).sqrt() * field
        channels = self.vae.config.latent_channels
        start = self._crop(_LATENTS, channels, height, width, place).expand(count, -1, -1, -1)

        guides, rows = iter(self.guides), windows.spread(levels, tiles, choice.batch)

        def model(x: torch.Tensor, step: solver.Step) -> torch.Tensor:
            unet, each = partial(self.unet, time=self.times[step.time], guided=next(guides)), iter(rows)

            def evaluate(inputs: torch.Tensor) -> torch.Tensor:
                return unet(inputs, levels=next(each))

            inputs = torch.cat([x, noisy], 1).to(self.dtype)
            return windows.blend(evaluate, inputs, tiles, tiles, weights, choice.batch)

        with at_work(self._unet_moves):
            x0 = solver.solve(model, start, self.steps)
        with at_work(self._vae_moves):
            latents = x0 / self.vae.config.scaling_factor
            picture = self.decoder(latents, self.device, limits(self.device, choice.keep))
        if getattr(self.vae.config, "residual", False):
            picture += detail.up(low_res)
        return clamped(picture.div_(2).add_(0.5), self.dtype)

    def _levels(self, clip: torch.Tensor) -> torch.Tensor:
        """The noise level of each picture, int64 (T,): the settings', else by its distance from a clean picture."""
        level = 0 if self._parts.max_noise_level is None else self.settings.noise_level
        if level != "auto":
            return torch.full((len(clip),), level, device=self.device)
        distances = footage.distance(clip, quantiser(self.settings))
        return noise.levels_for(distances, self.cumulative).clamp_min(self._parts.noise_level)

    def flops(self, height: int, width: int, choice: Choice) -> tuple[int, float]:
        """FLOP for one frame, and evaluations of one window with one text."""
        tiles = windows.cut(choice, height, width, self.settings.tile_overlap, self.multiple)
        once = tracing.unet_flops(self.unet.module, self._tokens, tiles.tile_height, tiles.tile_width)
        evaluations = len(tiles.origins) * (len(self.guides) + sum(self.guides))
        # With the few bands of the meta device: rows that bands share are not counted twice.
        decoding = tracing.decoder_flops(self.decoder, tiles.height, tiles.width, limits(torch.device("meta")))
        return evaluations * once + decoding, float(evaluations)

    def _make_weights(self, tiles: tiling.Tiles) -> torch.Tensor:
        if tiles.whole:
            return torch.ones(1, dtype=torch.float32, device=self.device)
        log.info("%s", tiles)
        return tiling.weights(tiles, self.settings.tile_overlap).to(self.device)

    def _crop(self, stream: int, channels: int, height: int, width: int, place: Place) -> torch.Tensor:
        """The noise of a clip, from that of its whole frame: drawing it anew for each window takes longer than mini."""
        sides = (side + -side % self.multiple for side in (place.height, place.width))
        whole = self._field(stream, channels, *sides)
        return whole[:, place.top : place.top + height, place.left : place.left + width]

    def _make_field(self, stream: int, channels: int, height: int, width: int) -> torch.Tensor:
        return noise.field(self.settings.seed, stream, channels, height, width).to(self.device)


# Numbers in float32 for each input pixel of a frame: in the loop those of the clip, noise, latents and inputs; while
# decoding those of the clip, the latents and the picture.
_LOOP, _DECODED = 46, 18 + 3 * DiffusionX4.scale**2


def needs(
    device: torch.device, unet: Any, decoder: Decoder, texts: tuple[int, int], guided: bool, compiled: bool
) -> Needs:
    """The needs of an x4 upscaler, whose modules may be on the meta device.

    Args:
        texts: the number of the UNet's tokens, and the bytes of the text encoder's weights.
    """

    @lru_cache(maxsize=32)
    def decoding(height: int, width: int, keep: int) -> float:
        return tracing.decoder_bytes(decoder, height, width, device, limits(device, keep))

    return Needs(
        device,
        frame=4.0 * _LOOP,
        window=tracing.trace_unet(unet, texts[0], guided),
        decoded=4.0 * _DECODED,
        decoder=decoding,
        keeps=(4, 2, 1),
        weights=(weight_bytes(unet), weight_bytes(decoder.vae)),
        loading=texts[1],
        multiple=DiffusionX4.multiple,
        batch=8 if device.type == "cuda" else 1,
        busy=2**17,  # a frame of 480x270 keeps a card busy
        compiled=compiled,
    )


def foresee(settings: Settings, runtime: Runtime, device: torch.device, pixels: int) -> Needs | None:
    """The needs of the hub's model, from its architecture, or of `mini`, which is loaded quickly.

    None for another model, or with another decoder, which have to be loaded.
    """
    if settings.vae is not None and settings.model in HOMES:
        return None
    if settings.model not in HOMES:
        if settings.model not in hub.SHIPPED:
            return None
        engine = load(settings, runtime, device)
        engine.expect(pixels)
        return engine.needs
    facts = card(device)
    dtype, vae_dtype = precisions(settings.dtype, facts)
    meta = torch.device("meta")
    decoder = Decoder(architecture.random_vae(meta, vae_dtype), settings.vae_attention)
    guided = settings.guidance_scale > 1 and settings.prompt != settings.negative_prompt
    evaluations = settings.steps + guided * sum(solver.interval(settings, settings.steps))
    work = pixels * evaluations * X4_FLOPS
    wish = compiles(runtime.compile, facts, runtime.offload)
    return needs(
        device,
        architecture.random_unet(meta, dtype),
        decoder,
        (architecture.TOKENS, architecture.TEXT_PARAMETERS * dtype.itemsize),
        guided,
        wish == "on" or (wish == "auto" and work >= WORTH),
    )
