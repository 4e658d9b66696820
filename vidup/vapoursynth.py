"""A function for VapourSynth scripts; it needs VapourSynth's own module, and nothing else here imports this one.

from vidup.vapoursynth import upscale
clip = upscale(core.resize.Bicubic(clip, format=vs.RGBS, matrix_in_s="709"), "mini")
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
import torch
import vapoursynth as vs

from vidup.config import Given, Runtime, settings_of
from vidup.engines import LEAD_IN, carries
from vidup.errors import ConfigError
from vidup.upscaler import Upscaler

_KEPT = 2 * LEAD_IN  # results: several threads request frames, and not in order


def upscale(clip: vs.VideoNode, settings: Given = None, runtime: Runtime | None = None) -> vs.VideoNode:
    """Upscale a clip of RGBS or RGBH to one of the same format; the properties of its frames are kept.

    From one frame to the next, pictures are carried along the motion. After a seek, `LEAD_IN` frames before are
    upscaled, too, so that there is something to carry.

    Args:
        settings: what decides the picture; a string or a path is a preset.
        runtime: device and memory; the batch is 1.

    Raises:
        ConfigError: the clip has another format, or one that changes.
        EngineError: the model is missing.
    """
    if clip.format is None or clip.format.id not in (vs.RGBS, vs.RGBH) or not clip.width or not clip.height:
        name = "one that changes" if clip.format is None else clip.format.name
        raise ConfigError(f"vapoursynth: a clip of format {name}: expected RGBS or RGBH, as by resize.Bicubic")
    upscaler = Upscaler(settings_of(settings), replace(runtime or Runtime(), batch=1))
    height, width = upscaler.size(clip.height, clip.width)
    sequence = _Sequence(upscaler, LEAD_IN if carries(upscaler.settings) else 0)
    # Requested beforehand, not within: a filter that waits for frames may wait for itself.
    before = [clip.std.DuplicateFrames([0] * late)[: len(clip)] for late in range(sequence.lead, 0, -1)]

    def enlarged(n: int, f: Sequence[vs.VideoFrame]) -> vs.VideoFrame:
        blank, *sources = f
        result, planes = blank.copy(), sequence(n, sources)
        for place in range(3):
            np.copyto(np.asarray(result[place]), planes[place])
        result.props.clear()
        result.props.update(sources[-1].props)
        return result

    blank = clip.std.BlankClip(width=width, height=height, keep=True)
    return blank.std.ModifyFrame([blank, *before, clip], enlarged)


class _Sequence:
    """Results of frames by number, made in order where possible."""

    def __init__(self, upscaler: Upscaler, lead: int) -> None:
        self.lead = lead
        self._upscaler, self._lock = upscaler, Lock()
        self._made: dict[int, Any] = {}
        self._next = 0
        self._begin()

    def __call__(self, n: int, sources: Sequence[vs.VideoFrame]) -> Any:
        """The result of frame `n`, (3, height, width); `sources` are the frames from `n - lead` to `n`."""
        with self._lock:
            if n not in self._made:
                if not self._next <= n <= self._next + self.lead:
                    self._end()
                    self._results.close()
                    self._begin()
                    self._next = max(0, n - self.lead)
                for number in range(self._next, n + 1):
                    frame = sources[self.lead - (n - number)]
                    self._coming.put(torch.from_numpy(np.stack([np.asarray(frame[place]) for place in range(3)])))
                    self._made[number] = next(self._results).numpy()
                    self._next = number + 1
            for old in sorted(self._made, key=lambda number: abs(number - n))[_KEPT:]:
                del self._made[old]
            return self._made[n]

    def _begin(self) -> None:
        self._coming: SimpleQueue[torch.Tensor | None] = SimpleQueue()
        coming = (frame for frame in iter(self._coming.get, None) if frame is not None)
        self._results = self._upscaler.frames(coming)
        self._end = weakref.finalize(self, self._coming.put, None)  # else the thread that reads ahead never ends
