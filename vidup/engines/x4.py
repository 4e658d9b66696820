"""Stable Diffusion x4: our own sampling loop over diffusers' UNet and VAE.

For one clip: the input gets noise (noise conditioning augmentation), the latents start as noise, the UNet predicts for
the whole frame or for tiles that are blended at every step, the solver follows, the VAE decodes. All noise is cropped
from seeded fields that belong to places, so equal frames give equal pictures.
"""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
from diffusers import DDPMScheduler

from vidup.config import Runtime, Settings
from vidup.engines import Choice, Place, detail, planner, solver
from vidup.engines.compiling import compiles
from vidup.engines.hub import Parts, load_parts, locate, precisions
from vidup.engines.tiny import load_tiny
from vidup.engines.unet import Moved, Unet, at_work
from vidup.engines.vae import Decoder, limits
from vidup.errors import EngineError
from vidup.picture import noise, tiling

log = logging.getLogger(__name__)

_LOW_RES, _LATENTS = 0, 1  # streams of noise


class DiffusionX4:
    """The x4 upscaler, at full size or as `mini`: whatever has its layout on disk.

    Args:
        parts: the model, where it is at hand already; else it is loaded as `settings.model` says.

    Raises:
        EngineError: the model, or a part of it, is not to be had, or does not go with the settings.
    """

    scale = 4
    multiple = 8
    invents = True

    def __init__(self, settings: Settings, runtime: Runtime, device: torch.device, parts: Parts | None = None) -> None:
        self.settings, self.device = settings, device
        self.dtype, vae_dtype = precisions(settings.dtype, device)
        home = torch.device("cpu") if runtime.offload else device  # where weights are while they do not work
        text_bytes = 0
        if parts is None:
            folder = locate(settings.model, settings.revision, half=self.dtype != torch.float32)
            parts = load_parts(
                folder, home, self.dtype, vae_dtype, settings.prompt, settings.negative_prompt, settings.tokenizer
            )
            text_bytes = planner.text_bytes(folder, self.dtype.itemsize)
        if settings.noise_level > parts.max_noise_level:
            raise EngineError(f"noise_level = {settings.noise_level}: the model knows 0 to {parts.max_noise_level}")
        self.identity = parts.identity
        self.vae = parts.vae
        if settings.vae is not None:
            channels = self.vae.config.latent_channels
            self.vae, own = load_tiny(settings.vae, channels, self.scale, home, self.dtype)
            self.identity = f"{self.identity}+{own}"
        self.steps = solver.variance_preserving(parts.scheduler, settings.sampler, settings.steps)

        # With equal embeddings guidance is the identity, bit for bit: half the cost for nothing lost.
        differ = settings.guidance_scale > 1 and not torch.equal(parts.positive, parts.negative)
        self.guides = [differ and guided for guided in solver.interval(settings, len(self.steps))]
        self.guided = any(self.guides)
        compiled = compiles(runtime.compile, device, runtime.offload)
        self.unet = Unet(
            parts.unet, parts.negative, parts.positive, settings.guidance_scale, settings.noise_level, device, compiled
        )
        self.decoder = Decoder(self.vae, settings.vae_attention == "windowed", device if self.unet.run.active else None)
        modules = (parts.unet, self.vae)
        self._unet_moves, self._vae_moves = (Moved(one, device) if runtime.offload else None for one in modules)
        self.planner = planner.Planner(
            settings, runtime, device, parts.unet, self.decoder,
            tokens=parts.positive.shape[1], guided=self.guided, text_bytes=text_bytes, multiple=self.multiple,
            compiled=self.unet.run,
        )  # fmt: skip
        self.smaller, self.memory = self.planner.smaller, self.planner.memory
        self.release = self.unet.run.release
        self._adopted: Choice | None = None
        self._first_batch = runtime.batch or (4 if device.type == "cuda" else 1)

        cumulative = DDPMScheduler.from_config(parts.low_res_scheduler).alphas_cumprod[settings.noise_level].item()
        self.signal, self.noise = cumulative**0.5, (1 - cumulative) ** 0.5
        # On the device once: the loop neither copies nor waits. Frames of a job have one size.
        self.times = {step.time: torch.tensor(step.time, device=device) for step in self.steps}
        self._plan = lru_cache(maxsize=4)(self._make_plan)
        self._weights = lru_cache(maxsize=8)(self._make_weights)
        self._field = lru_cache(maxsize=8)(self._make_field)

    @property
    def compiles(self) -> bool:
        return self.unet.run.active

    @property
    def clip_length(self) -> int:
        return self._first_batch if self._adopted is None else self._adopted.batch

    def choose(self, height: int, width: int) -> Choice:
        """As adopted, else the whole frame, or the largest tiles, with the largest batch that the memory holds."""
        return self._adopted or self.planner.choose(height, width)

    def adopt(self, choice: Choice | None) -> None:
        """Do as this says from now on; None forgets."""
        self._adopted = choice

    @torch.inference_mode()
    def __call__(self, clip: torch.Tensor, place: Place) -> torch.Tensor:
        count, _, height, width = clip.shape
        choice = self.choose(height, width)
        plan = self._plan(height, width, choice.tile)
        # A single picture, for which nothing was adopted, is not worth a batch that is filled up.
        size = choice.batch if self._adopted else min(choice.batch, count * len(plan.origins))
        low_res = clip.clamp(0, 1) * 2 - 1
        noisy = self.signal * low_res + self.noise * self._field(_LOW_RES, 3, height, width, place.top, place.left)
        channels = self.vae.config.latent_channels
        start = self._field(_LATENTS, channels, height, width, place.top, place.left).expand(count, -1, -1, -1)

        guides = iter(self.guides)

        def model(x: torch.Tensor, step: solver.Step) -> torch.Tensor:
            return self._predict(torch.cat([x, noisy], 1), step.time, plan, size, next(guides))

        with at_work(self._unet_moves):
            x0 = solver.solve(model, start, self.steps)
        keep = self.planner.keep(choice, height, width)
        with at_work(self._vae_moves):
            latents = x0 / self.vae.config.scaling_factor
            picture = self.decoder(latents, self.device, limits(self.device, keep))
        if getattr(self.vae.config, "residual", False):
            picture += detail.up(low_res)
        return picture.div_(2).add_(0.5).clamp_(0, 1)

    def flops(self, height: int, width: int) -> tuple[int, float]:
        """FLOP for one frame, and evaluations of one window with one text."""
        height, width = (side + -side % self.multiple for side in (height, width))
        choice = self.choose(height, width)
        plan = self._plan(height, width, choice.tile)
        once = planner.unet_flops(self.unet.module, self.planner.tokens, plan.tile_height, plan.tile_width)
        evaluations = len(plan.origins) * (len(self.guides) + sum(self.guides))
        # In few bands, however many there will be: what they share is worked out once here, as in the whole frame.
        whole = limits(torch.device("meta"))
        return evaluations * once + planner.decoder_flops(self.decoder, height, width, whole), float(evaluations)

    def _predict(self, inputs: torch.Tensor, time: float, plan: tiling.Plan, size: int, guided: bool) -> torch.Tensor:
        """The UNet's answer for every pixel, blended over the windows that see it, `size` windows in a call."""
        inputs = inputs.to(self.dtype)
        channels = self.vae.config.latent_channels
        answer = torch.zeros(len(inputs), channels, *inputs.shape[-2:], device=self.device)
        weights = self._weights(plan)
        windows = [(frame, tile) for frame in range(len(inputs)) for tile in range(len(plan.origins))]
        for first in range(0, len(windows), size):
            chosen = windows[first : first + size]
            batch = torch.stack([tiling.crop(inputs[frame], plan, tile) for frame, tile in chosen])
            # One shape for every call: rows then do not depend on their company, and code is compiled once.
            if len(windows) > size or self.unet.run.active:
                batch = torch.cat([batch, batch[-1:].expand(size - len(batch), -1, -1, -1)])
            for (frame, tile), row in zip(chosen, self.unet(batch, self.times[time], guided), strict=False):
                tiling.crop(answer[frame], plan, tile).add_(row if plan.whole else row * weights[tile])
        return answer

    def _make_weights(self, plan: tiling.Plan) -> torch.Tensor:
        if plan.whole:
            return torch.ones(1, device=self.device)
        return tiling.weights(plan, self.settings.tile_overlap).to(self.device)

    def _make_field(self, stream: int, channels: int, height: int, width: int, top: int, left: int) -> torch.Tensor:
        return noise.field(self.settings.seed, stream, channels, height, width, top, left).to(self.device)

    def _make_plan(self, height: int, width: int, tile: int) -> tiling.Plan:
        plan = tiling.plan(height, width, tile, self.settings.tile_overlap, self.multiple)
        if not plan.whole:
            log.info("%dx%d in %d tiles of %dx%d", width, height, len(plan.origins), plan.tile_width, plan.tile_height)
        return plan
