"""Estimate what a job will take, from a few of its frames: the share that relay will compute, and how long it lasts."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch

from vidup import engines
from vidup.config import Settings
from vidup.engines.relay import Fit, Follower, fitted
from vidup.frame import Frame
from vidup.job.plan import Job
from vidup.media import decoding
from vidup.media.encoder import Encoding
from vidup.media.segment import encode_segment
from vidup.picture import color
from vidup.picture.geometry import Turn
from vidup.picture.resample import resize
from vidup.upscaler import Upscaler

_FRAMES = 12  # that are looked at: as many as the default of `refresh`
_FEWEST = 3  # in which a quarter of the picture is refreshed
QUICK = 3_000_000
"""Pixels for which one core needs at most three seconds."""
_LEAST = 50  # batches of a job, below which an estimate is not worth the time of one batch


class Foreseen(NamedTuple):
    """The estimate of what relay will compute."""

    computed: float
    """The share of a frame's pixels that will be computed, with halos; the first frame is not counted."""
    frames: int
    """The number of frames that it is from."""
    seconds: float
    """The time that planning a frame took."""


def is_carried(settings: Settings) -> bool:
    """Whether only a part of the pixels is computed, and the rest carried from the frame before."""
    return settings.temporal == "relay" and engines.carries(settings)


def foresee(job: Job, most: int | None = None, fit: Fit | None = None) -> Foreseen | None:
    """Estimate from consecutive frames of the middle of a job.

    Args:
        most: the most pixels to look at; None: those of a dozen frames.
        fit: see `relay.fitted`.

    Returns:
        None where all pixels are computed, there are fewer than two frames, or `most` is too small.
    """
    count = min(_FRAMES, job.high - job.low - 1)
    if most is not None:
        room = most // (job.info.height * job.info.width)
        count = min(count, room) if room >= _FEWEST else 0
    if count < 1 or not is_carried(job.settings):
        return None
    first = job.low + (job.high - job.low - count - 1) // 2
    with closing(decoding.decode(job.info, job.info.pts[first], None, job.settings)) as frames:
        return planned(islice(frames, count + 1), job.settings, job.turn, first - job.low, fit)


def planned(
    frames: Iterable[Frame], settings: Settings, turn: Turn, number: int = 0, fit: Fit | None = None
) -> Foreseen | None:
    """Estimate from consecutive frames, at least two; the first, `number` in its file, is computed whole."""
    follower, host = Follower(number, settings.trust, settings.refresh), torch.device("cpu")
    shares = list[float]()
    last: Frame | None = None
    rgb = torch.empty(0)
    seconds = 0.0
    for frame in frames:
        if last is None or not frame.shows(last):
            rgb = turn(color.to_rgb(frame, host))
        last = frame
        began = time.perf_counter()
        carrying = follower(rgb)
        seconds += time.perf_counter() - began
        height, width = rgb.shape[-2:]
        boxes = {*fitted(carrying.windows(height, width), height, width, fit)}
        shares.append(sum((bottom - top) * (right - left) for top, left, bottom, right in boxes) / (height * width))
    count = len(shares) - 1
    return Foreseen(sum(shares[1:]) / count, count, seconds / count) if count > 0 else None


def whole_frames(settings: Settings, frames: int, computed: float | None) -> float:
    """The number of whole frames that are as much work for the engine as `frames` of a job, of whose pixels a share is
    computed (None: all).

    The lead-in frames of segments are counted, and two whole frames for each border between segments: the first lead-in
    frame, and the same frame in the segment before.
    """
    if computed is None:
        return frames
    borders = max(0, ceil(frames / settings.segment_frames) - 1)
    whole = min(frames, 1 + 2 * borders)
    return whole + computed * (frames + borders * engines.LEAD_IN - whole)


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
    """Upscale frames without carrying."""
    with clock.of("to RGB"):
        rgb = turn(torch.stack([color.to_rgb(frame, upscaler.engine.device) for frame in clip]))
    with clock.of("engine"):
        pictures = resize(upscaler(rgb), (encoding.height, encoding.width))  # the encoding's sides are even
    with clock.of("to planes"):
        pix_fmt = decoding.planar(encoding.pix_fmt)
        planes = [color.from_rgb(picture, pix_fmt, encoding.color) for picture in pictures]
    return [
        replace(frame, planes=one, pix_fmt=pix_fmt, color=encoding.color)
        for frame, one in zip(clip, planes, strict=True)
    ]


def encoded(frames: Sequence[Frame], encoding: Encoding) -> int:
    """The bytes of a segment of these frames, shown at a constant rate."""
    duration = max(1, round(1 / (encoding.rate * encoding.time_base)))
    timed = (
        replace(frame, pts=index * duration, duration=duration, time_base=encoding.time_base)
        for index, frame in enumerate(frames)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.seg"
        encode_segment(timed, encoding, path)
        return path.stat().st_size


def seconds_left(job: Job, upscaler: Upscaler, frames: int, computed: float | None = None) -> float | None:
    """Estimate the seconds that so many frames of the input take; None where that is not worth the time.

    Decoding and encoding run in parallel with the engine: the slowest of the three decides. `computed` is the share of
    pixels that is computed, see `foresee`; None: all.
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
