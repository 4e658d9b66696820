"""How much of a file's pixels relay will compute: its steps are planned for a few frames, and no model is loaded."""

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
from vidup.engines.relay import Follower
from vidup.frame import Frame
from vidup.job.plan import Job
from vidup.media import decoding
from vidup.picture import color
from vidup.picture.geometry import Turn

_FRAMES = 12  # that are planned: as many as the default of `refresh`
_FEWEST = 3  # in which a quarter of the picture has its turn to be refreshed
QUICK = 3_000_000
"""Pixels whose steps are planned in at most three seconds, by one core."""


class Foreseen(NamedTuple):
    """What planning alone tells."""

    computed: float
    """Pixels of a frame that will be computed, halos counted, to those that it has; a first frame is not in it."""
    frames: int
    """How many were planned."""
    seconds: float
    """That planning one took."""


def is_carried(settings: Settings) -> bool:
    """Whether only a part of the pixels is computed."""
    return settings.temporal == "relay" and engines.carries(settings)


def foresee(job: Job, most: int | None = None) -> Foreseen | None:
    """Plan the steps of consecutive frames from the middle of what a job takes.

    Args:
        most: pixels to look at; as many as a dozen frames have where not given.

    Returns:
        None where all is computed in any case, there are fewer than two frames, or `most` is too little.

    Raises:
        MediaError: the frames cannot be decoded.
    """
    count = min(_FRAMES, job.high - job.low - 1)
    if most is not None:
        room = most // (job.info.height * job.info.width)
        count = min(count, room) if room >= _FEWEST else 0
    if count < 1 or not is_carried(job.settings):
        return None
    first = job.low + (job.high - job.low - count - 1) // 2
    with closing(decoding.decode(job.info, job.info.pts[first], None, job.settings)) as frames:
        return planned(islice(frames, count + 1), job.settings, job.turn, first - job.low)


def planned(frames: Iterable[Frame], settings: Settings, turn: Turn, number: int = 0) -> Foreseen | None:
    """Plan the steps of frames that follow each other, the first of which is what the others are carried from.

    Args:
        number: of the first frame in its file.

    Returns:
        None where there are fewer than two frames.
    """
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
        step = follower(rgb)
        seconds += time.perf_counter() - began
        height, width = rgb.shape[-2:]
        boxes = step.windows(height, width)
        shares.append(sum((bottom - top) * (right - left) for top, left, bottom, right in boxes) / (height * width))
    count = len(shares) - 1
    return Foreseen(sum(shares[1:]) / count, count, seconds / count) if count > 0 else None


def whole_frames(settings: Settings, frames: int, computed: float | None) -> float:
    """Whole frames that are as much for the engine as so many of a job, of which that share of the pixels is computed.

    Where it is known, the frames that lead each segment in are counted, and those two at its border that are computed
    whole: the first of them, and the same one in the segment before.
    """
    if computed is None:
        return frames
    borders = max(0, ceil(frames / settings.segment_frames) - 1)
    whole = min(frames, 1 + 2 * borders)
    return whole + computed * (frames + borders * engines.LEAD_IN - whole)
