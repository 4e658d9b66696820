"""Estimate how many of a file's pixels relay will compute, from a few frames and without a model."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing
from itertools import islice
from math import ceil
from typing import NamedTuple

import torch

from vidup import engines
from vidup.config import Settings
from vidup.engines.relay import Fit, Follower, fitted
from vidup.frame import Frame
from vidup.job.plan import Job
from vidup.media import decoding
from vidup.picture import color
from vidup.picture.geometry import Turn

_FRAMES = 12  # that are looked at: as many as the default of `refresh`
_FEWEST = 3  # in which a quarter of the picture is refreshed
QUICK = 3_000_000
"""Pixels for which one core needs at most three seconds."""


class Foreseen(NamedTuple):
    """The estimate."""

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
