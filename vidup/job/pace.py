"""Estimate how long a job will take: one batch of its frames goes through all stages before the job begins."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from vidup.frame import Frame
from vidup.job.plan import Job
from vidup.job.relay_share import whole_frames
from vidup.media import decoding
from vidup.media.encoder import Encoding
from vidup.media.segment import encode_segment
from vidup.picture import color
from vidup.picture.geometry import Turn
from vidup.picture.resample import resize
from vidup.upscaler import Upscaler

_LEAST = 50  # batches of a job, below which an estimate is not worth the time of one batch


@dataclass
class Clock:
    """Adds up the seconds of each stage, waiting for the device."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def now(self) -> float:
        """The time in seconds, once the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Count the time of the block for a stage."""
        began = self.now()
        yield
        self.seconds[stage] += self.now() - began


def enlarged(upscaler: Upscaler, clip: Sequence[Frame], encoding: Encoding, turn: Turn, clock: Clock) -> list[Frame]:
    """Upscale frames without carrying; the results have a constant rate."""
    with clock.of("to RGB"):
        rgb = turn(torch.stack([color.to_rgb(frame, upscaler.engine.device) for frame in clip]))
    with clock.of("engine"):
        pictures = resize(upscaler(rgb), (encoding.height, encoding.width))  # the encoding's sides are even
    with clock.of("to planes"):
        pix_fmt = decoding.planar(encoding.pix_fmt)
        planes = [color.from_rgb(picture, pix_fmt, encoding.color) for picture in pictures]
    return [_at(frame, index, one, encoding) for index, (frame, one) in enumerate(zip(clip, planes, strict=True))]


def encoded(frames: Sequence[Frame], encoding: Encoding) -> int:
    """The bytes of a segment of these frames."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.seg"
        encode_segment((_at(f, i, f.planes, encoding) for i, f in enumerate(frames)), encoding, path)
        return path.stat().st_size


def seconds_left(job: Job, upscaler: Upscaler, frames: int, computed: float | None = None) -> float | None:
    """Estimate the seconds that so many frames of the input take; None where that is not worth the time.

    Decoding and encoding run in parallel with the engine: the slowest of the three decides. `computed` is the share of
    pixels that is computed, see `relay_share.foresee`; None: all.
    """
    batch = upscaler.choose(*job.input_size).batch
    if frames < _LEAST * batch:
        return None
    clock = Clock(upscaler.engine.device)
    with closing(decoding.decode(job.info, job.info.pts[job.low], None, job.settings)) as pictures:
        clip = list(islice(pictures, 1))  # not timed: those before it are decoded, too
        with clock.of("decode"):
            clip += islice(pictures, batch)
    clip, decoded = (clip * batch)[:batch], max(1, len(clip) - 1)
    for _ in range(2 if upscaler.compiles else 0):  # the first call compiles, the second records a CUDA graph
        enlarged(upscaler, clip, job.encoding, job.turn, Clock(clock.device))
    results = enlarged(upscaler, clip, job.encoding, job.turn, clock)
    with clock.of("encode"):
        encoded(results, job.encoding)
    decode, encode = clock.seconds.pop("decode") / decoded, clock.seconds.pop("encode") / batch
    engine = clock.seconds.pop("engine") / batch * whole_frames(job.settings, frames, computed)
    return max(decode * frames, encode * frames, engine + sum(clock.seconds.values()) / batch * frames)


def in_words(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{max(1, round(seconds))} s"
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def _at(frame: Frame, index: int, planes: Any, encoding: Encoding) -> Frame:
    """A frame of the result at the place `index` of a constant rate."""
    duration = max(1, round(1 / (encoding.rate * encoding.time_base)))
    return replace(
        frame, planes=planes, pix_fmt=decoding.planar(encoding.pix_fmt), color=encoding.color,
        pts=index * duration, duration=duration, time_base=encoding.time_base,
    )  # fmt: skip
