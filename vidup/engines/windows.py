"""Windows of a frame: a model's answers for them put together, and how many, how large ones the memory holds."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import lru_cache

import torch

from vidup.config import Runtime, Settings
from vidup.engines import Choice
from vidup.engines.compiling import Compiled
from vidup.engines.memory import memory_limit
from vidup.picture import tiling

log = logging.getLogger(__name__)

_SMALLEST_TILE = 128
_LESS = 0.6  # a smaller tile must take this share of the memory, or the step was not worth a new attempt


def blend(
    model: Callable[[torch.Tensor], torch.Tensor],
    frames: torch.Tensor,
    source: tiling.Plan,
    target: tiling.Plan,
    weights: torch.Tensor,
    batch: int,
) -> torch.Tensor:
    """Call a model with every window of every frame and add up its weighted answers.

    Args:
        model: (batch, C, h, w) to (batch, D, H, W), where (h, w) are the sides of a window of `source`, (H, W) of
            `target`; called with one shape, the last batch filled up, so that rows do not depend on their company.
        frames: (T, C, height, width) of `source`.
        source, target: the same windows on the model's input and on its answer.
        weights: float32, (windows, 1, H, W), of sum 1 everywhere; of no effect where a window is the whole frame.
        batch: windows in one call.

    Returns:
        float32 (T, D, height, width) of `target`.
    """
    windows = [(frame, tile) for frame in range(len(frames)) for tile in range(len(source.origins))]
    blended: torch.Tensor | None = None
    for first in range(0, len(windows), batch):
        chosen = windows[first : first + batch]
        inputs = torch.stack([tiling.crop(frames[frame], source, tile) for frame, tile in chosen])
        if len(windows) > batch:
            inputs = torch.cat([inputs, inputs[-1:].expand(batch - len(chosen), -1, -1, -1)])
        answers = model(inputs)
        if blended is None:
            shape = (len(frames), answers.shape[1], target.height, target.width)
            blended = torch.zeros(shape, dtype=torch.float32, device=answers.device)
        for (frame, tile), answer in zip(chosen, answers, strict=False):
            if source.whole:
                blended[frame] = answer
            else:
                tiling.crop(blended[frame], target, tile).add_(answer.float() * weights[tile])
    assert blended is not None, "a clip has at least one frame, a plan at least one window"
    return blended


def seams(plan: tiling.Plan, overlap: int, margin: int) -> torch.Tensor:
    """Weights that leave out what is nearest to a cut, where a window sees too little, and ramp over what remains.

    Args:
        overlap: the pixels that neighbours share at the least.
        margin: of these, the pixels next to the cut that count nothing; less than half of them.

    Returns:
        float32, (windows, 1, tile_height, tile_width), of sum 1 everywhere: a raised cosine over the middle of the
        overlap. Where a model reaches no farther than `margin`, the blend is what the whole frame would have given.
    """
    rows = _profile(plan.height, plan.tile_height, sorted({top for top, _ in plan.origins}), overlap, margin)
    columns = _profile(plan.width, plan.tile_width, sorted({left for _, left in plan.origins}), overlap, margin)
    return torch.stack([(rows[top][:, None] * columns[left])[None] for top, left in plan.origins])


def _profile(length: int, side: int, starts: list[int], overlap: int, margin: int) -> dict[int, torch.Tensor]:
    """Weights along one axis, by the window's start."""
    depth = torch.arange(side) + 0.5
    raw = {}
    for start in starts:
        weight = torch.ones(side)
        for inside, distance in ((start > 0, depth), (start + side < length, side - depth)):
            if inside:
                ramp = ((distance - margin) / (overlap - 2 * margin)).clamp(0, 1)
                weight = weight * (0.5 - 0.5 * torch.cos(math.pi * ramp))
        raw[start] = weight
    total = torch.zeros(length)
    for start, weight in raw.items():
        total[start : start + side] += weight
    return {start: weight / total[start : start + side] for start, weight in raw.items()}


class Planner:
    """An engine's `choose`, `adopt`, `smaller` and `memory`: the batch first, then tiles, until it fits.

    What the settings and the runtime give is kept: a given tile is never made smaller, a given batch not by `choose`.

    Args:
        multiple: sides of tiles are multiples of it, in input pixels.
        batch: windows in one call where the runtime gives none and the memory holds them.
        weights: bytes of the model.
        window_bytes: bytes at the peak for each input pixel of one window.
        frame_bytes: bytes held meanwhile for each input pixel of one frame: the clip, and the canvas of the result.
        frame_peak: bytes at the peak of what is done to a whole frame of (height, width) at once, told how many it may
            take at the most.
        tiles: whether it can be cut at all.
        compiled: the model, where it may be. As CUDA graphs it keeps its memory while whole frames are worked on.
    """

    def __init__(
        self,
        settings: Settings,
        runtime: Runtime,
        device: torch.device,
        *,
        multiple: int,
        batch: int,
        weights: int,
        window_bytes: Callable[[], float],
        frame_bytes: float,
        frame_peak: Callable[[int, int, float], float] = lambda height, width, room: 0.0,
        tiles: bool = True,
        compiled: Compiled | None = None,
    ) -> None:
        self.settings, self.runtime, self.device = settings, runtime, device
        self.multiple, self.tiles, self._first_batch = multiple, tiles, runtime.batch or batch
        self.weights, self.window_bytes = weights, window_bytes
        self.frame_bytes, self.frame_peak, self.compiled = frame_bytes, frame_peak, compiled
        self.adopted: Choice | None = None
        self._chosen = lru_cache(maxsize=16)(self._choose)

    @property
    def graphs(self) -> bool:
        return self.compiled is not None and self.compiled.graphs

    @property
    def batch(self) -> int:
        return self._first_batch if self.adopted is None else self.adopted.batch

    def choose(self, height: int, width: int) -> Choice:
        return self.adopted or self._chosen(height, width)

    def _choose(self, height: int, width: int) -> Choice:
        choice = Choice(self._first_batch, self.settings.tile)
        limit = memory_limit(self.runtime, self.device)
        while self.memory(choice, height, width) > limit:
            smaller = self._smaller(choice, height, width, batch=not self.runtime.batch)
            if smaller is None:
                log.warning(
                    "%dx%d takes about %.1f GB at the least, more than the %.1f GB that it may take",
                    width, height, self.memory(choice, height, width) / 1e9, limit / 1e9,
                )  # fmt: skip
                break
            choice = smaller
        return choice

    def adopt(self, choice: Choice | None) -> None:
        self.adopted = choice

    def smaller(self, choice: Choice, height: int, width: int) -> Choice | None:
        return self._smaller(choice, height, width, batch=True)

    def memory(self, choice: Choice, height: int, width: int) -> int:
        plan = self.plan(choice, height, width)
        whole = self.frame_peak(plan.height, plan.width, self.room(choice, height, width))
        windows = self._windows(choice, plan)
        working = windows + whole if self.graphs else max(windows, whole)
        return round(self.weights + self._frames(choice, plan) + working)

    def room(self, choice: Choice, height: int, width: int) -> float:
        """Bytes for what is done to a whole frame: what is left, no more than tiles take where these had to be."""
        plan = self.plan(choice, height, width)
        left = memory_limit(self.runtime, self.device) - self.weights - self._frames(choice, plan)
        left -= self._windows(choice, plan) if self.graphs else 0
        return min(left, self._windows(choice, plan)) if choice.tile and not self.settings.tile else left

    def _windows(self, choice: Choice, plan: tiling.Plan) -> float:
        return choice.batch * plan.tile_height * plan.tile_width * self.window_bytes()

    def _frames(self, choice: Choice, plan: tiling.Plan) -> float:
        return choice.batch * plan.height * plan.width * self.frame_bytes

    def plan(self, choice: Choice, height: int, width: int) -> tiling.Plan:
        """The windows of a frame, its sides rounded up to the multiple."""
        height, width = (math.ceil(side / self.multiple) * self.multiple for side in (height, width))
        overlap = self.settings.tile_overlap
        return tiling.plan(height, width, choice.tile and max(choice.tile, self.multiple), overlap, self.multiple)

    def _smaller(self, choice: Choice, height: int, width: int, batch: bool) -> Choice | None:
        if batch and choice.batch > 1:
            return Choice(choice.batch // 2, choice.tile)
        if self.settings.tile or not self.tiles:
            return None
        now = self.memory(choice, height, width)
        smallest = math.ceil(max(_SMALLEST_TILE, 3 * self.settings.tile_overlap) / self.multiple) * self.multiple
        plan = self.plan(choice, height, width)
        largest = min(choice.tile or max(plan.height, plan.width), max(plan.tile_height, plan.tile_width))
        for side in range((largest - 1) // self.multiple * self.multiple, smallest - 1, -self.multiple):
            less = Choice(choice.batch, side)
            if self.memory(less, height, width) <= _LESS * now:
                return less
        last = Choice(choice.batch, smallest)
        return last if self.memory(last, height, width) < now else None
