"""What the engines of diffusion models have in common: UNet and VAE, steps, guidance, noise and tiles."""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Self

import torch

from vidup.config import Runtime, Settings
from vidup.engines import Choice, Engine, Needs, Place, hub, solver, tracing, windows
from vidup.engines.card import card, precisions
from vidup.engines.compiling import compiles
from vidup.engines.finite import in_wider
from vidup.engines.hub import Parts
from vidup.engines.unet import Moved, Unet
from vidup.engines.vae import Vae, check, limits
from vidup.picture import noise, tiling

log = logging.getLogger(__name__)

LOW_RES, LATENTS = 0, 1
"""Streams of noise, as for `noise.field`."""


class Diffusion(Engine):
    """An engine with a UNet and a VAE.

    Args:
        parts: the loaded model; None: `settings.model` is loaded.

    Raises:
        EngineError: the model, or a part of it, is missing or does not fit the settings.
    """

    scale: int
    multiple: int
    factor: int
    """Sides of pictures are divided by it for the VAE's latents."""
    invents = True
    steps: list[solver.Step]

    def __init__(self, settings: Settings, runtime: Runtime, device: torch.device, parts: Parts | None = None) -> None:
        self.runtime, self.device = runtime, device
        self.dtype, vae_dtype = precisions(settings.dtype, card(device), settings.model in hub.SHIPPED)
        home = torch.device("cpu") if runtime.offload else device  # where weights are while they are not used
        self.parts = parts = self._load(settings, home, vae_dtype) if parts is None else parts
        self.identity = parts.identity
        wish = compiles(runtime.compile, card(device), runtime.offload)
        self.unet = Unet(parts.unet, parts.texts, settings.guidance_scale, device, wish)
        self.vae = Vae(parts.vae, settings.vae_attention, device)
        if self.unet.run.active:
            self.vae.compile()
        self._unet_moves, self._vae_moves = (Moved(one, device, runtime.offload) for one in (parts.unet, parts.vae))
        if device.type == "mps":
            with self._vae_moves.at_work():
                check(self.vae, device)
        self._settle(settings)

    @abstractmethod
    def _load(self, settings: Settings, home: torch.device, vae_dtype: torch.dtype) -> Parts:
        """Load the model to `home`."""

    def _settle(self, settings: Settings) -> None:
        """Set all that depends on the settings; a subclass sets `steps` before."""
        self.settings = settings
        # With equal embeddings guidance is the identity to the bit, and would only cost twice as much.
        guides = settings.guidance_scale > 1 and not torch.equal(*self.parts.texts)
        self.guides = [guides and guided for guided in solver.interval(settings, len(self.steps))]
        # On the device in advance, so that the loop neither copies nor waits.
        self.times = {step.time: torch.tensor(step.time, device=self.device) for step in self.steps}
        self._cut = lru_cache(maxsize=8)(self._make_tiles)
        self._weights = lru_cache(maxsize=8)(self._make_weights)
        self._field = lru_cache(maxsize=4)(self._make_field)

    def _lent(self, settings: Settings, texts: torch.Tensor) -> Self:
        """An engine for other settings and embeddings that shares the weights."""
        other = copy.copy(self)
        other.parts = replace(self.parts, texts=texts)
        other.unet = self.unet.with_texts(texts, settings.guidance_scale)
        for name in ("_needs", "wider"):
            other.__dict__.pop(name, None)
        other._settle(settings)
        return other

    @property
    def guided(self) -> bool:
        """Whether any step is guided."""
        return any(self.guides)

    @property
    def evaluations(self) -> int:
        """Evaluations of the UNet for a window, with one text each."""
        return len(self.guides) + sum(self.guides)

    @property
    def needs(self) -> Needs:
        return replace(self._needs, compiled=self.unet.run.active)

    @property
    @abstractmethod
    def _needs(self) -> Needs:
        """`needs` while it is not compiled."""

    def expect(self, pixels: int) -> None:
        if self.unet.run.weighs:
            flops = self._unet_flops(64, 64) / 64**2 * (self.scale / self.factor) ** 2
            if self.unet.run.expect(pixels * self.evaluations * flops):
                self.vae.compile()

    def _unet_flops(self, height: int, width: int) -> int:
        return tracing.unet_flops(self.unet.module, self.parts.texts.shape[1], height, width)

    @cached_property
    def wider(self) -> Self | None:
        """Its weights are on the device only while it works."""
        return None if self.parts.folder is None else in_wider(self, offload=True)

    def close(self) -> None:
        self.unet.run.release()

    def flops(self, height: int, width: int, choice: Choice) -> tuple[int, float]:
        """FLOP of the UNet and the VAE for one frame, and evaluations of one window with one text."""
        tiles = self._cut(choice, height, width).scaled(self.scale, self.factor)
        once = self._unet_flops(tiles.tile_height, tiles.tile_width)
        evaluations = len(tiles.origins) * self.evaluations
        # With the few bands of the meta device: rows that bands share are not counted twice.
        decoding = tracing.vae_flops(self.vae, tiles.height, tiles.width, limits(torch.device("meta")))
        return evaluations * once + decoding, float(evaluations)

    def _sample(
        self,
        start: torch.Tensor,
        beside: torch.Tensor,
        tiles: tiling.Tiles,
        weights: torch.Tensor,
        batch: int,
        evaluator: Callable[[torch.Tensor, bool], Callable[[torch.Tensor], torch.Tensor]],
    ) -> torch.Tensor:
        """The latents at the end of all steps.

        Args:
            start: the latents as noise, (T, C, h, w).
            beside: the channels that the UNet gets beside them.
            tiles, weights, batch: the windows of the latents, as for `windows.blend`.
            evaluator: returns the model of a step, from its time and whether it is guided.
        """
        guides = iter(self.guides)

        def model(x: torch.Tensor, step: solver.Step) -> torch.Tensor:
            evaluate = evaluator(self.times[step.time], next(guides))
            return windows.blend(evaluate, torch.cat([x, beside], 1).to(self.dtype), tiles, tiles, weights, batch)

        with self._unet_moves.at_work():
            return solver.solve(model, start, self.steps)

    def _decode(self, latents: torch.Tensor, choice: Choice) -> torch.Tensor:
        """Pictures around [-1, 1]."""
        scaled = latents / self.vae.module.config.scaling_factor
        with self._vae_moves.at_work():
            return self.vae(scaled, self.device, limits(self.device, choice.keep))

    def _make_tiles(self, choice: Choice, height: int, width: int) -> tiling.Tiles:
        tiles = windows.cut(choice, height, width, self.settings.tile_overlap, self.multiple)
        if not tiles.whole:
            log.info("%s", tiles)
        return tiles

    def _make_weights(self, tiles: tiling.Tiles, overlap: int) -> torch.Tensor:
        weights = torch.ones(1, dtype=torch.float32) if tiles.whole else tiling.weights(tiles, overlap)
        return weights.to(self.device)

    def _noise(self, stream: int, channels: int, height: int, width: int, place: Place) -> torch.Tensor:
        """The noise of a clip's latents, from that of its whole frame: drawing each window's takes longer than mini."""
        sides = (side + -side % self.multiple for side in (place.height, place.width))
        tall, wide, top, left = (self.scale * side // self.factor for side in (*sides, place.top, place.left))
        return self._field(stream, channels, tall, wide)[:, top : top + height, left : left + width]

    def _make_field(self, stream: int, channels: int, height: int, width: int) -> torch.Tensor:
        return noise.field(self.settings.seed, stream, channels, height, width).to(self.device)
