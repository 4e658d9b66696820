"""Measures the flaws of an input (`picture.flaws`) on a few of its frames."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from contextlib import closing
from itertools import islice

import torch

from vidup.job.plan import Job
from vidup.media import decoding
from vidup.picture import color, flaws

_PLACES, _FRAMES = (0.15, 0.5, 0.85), 2


def look(job: Job) -> flaws.Flaws:
    """Measure a job's input at up to three keyframes.

    Raises:
        MediaError: the frames cannot be decoded.
    """
    info, found = job.info, list[flaws.Flaws]()
    entries = [time for time, _ in info.entries]
    for share in _PLACES if entries else _PLACES[:1]:
        place = job.low + int(share * (job.high - job.low)) if entries else job.low
        entry = bisect_right(entries, info.pts[place]) - 1
        if entry >= 0:
            place = min(max(job.low, bisect_left(info.pts, entries[entry])), job.high - 1)
        with closing(decoding.decode(info, info.pts[place], None, job.settings)) as frames:
            read = [color.to_rgb(frame, torch.device("cpu")) for frame in islice(frames, _FRAMES)]
        if read:
            found.append(flaws.measure(torch.stack(read)))
    return flaws.together(found) if found else flaws.Flaws()
