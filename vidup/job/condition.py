"""What a file's pictures are like before anything is done to them: measured on a few frames, and said in words."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from math import log2
from typing import Any

import torch

from vidup.job.plan import Job
from vidup.media import decoding
from vidup.picture import color, flaws

CLEAN = 6.0
"""Step of the quantiser, in codes, under which nobody sees it."""
_PLACES, _FRAMES = (0.15, 0.5, 0.85), 2
_AMOUNTS = ((0.75, "none"), (2.0, "little"), (5.0, "some"), (float("inf"), "much"))
_SHARE = 0.02
"""Of the picture, under which bands are not worth a word."""


def look(job: Job) -> flaws.Flaws:
    """Measure some frames of what a job takes, where decoding can begin.

    Raises:
        MediaError: they cannot be decoded.
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


def table(step: float | None, seen: flaws.Flaws) -> dict[str, Any]:
    """The same in figures and in words, made for JSON."""
    return {"quantiser": step, **asdict(seen), "words": list(words(step, seen))}


def words(step: float | None, seen: flaws.Flaws) -> Iterator[str]:
    """What a user knows it by.

    Args:
        step: of the quantiser, in codes; None where nobody knows.
    """
    if step is not None:
        yield compression(step) if step >= CLEAN else "hardly compressed"
    amount = next(word for most, word in _AMOUNTS if seen.noise < most)
    codes = f" (about {seen.noise:.1f} codes)" if amount != "none" else ""
    yield f"{'grain' if seen.coarse else 'noise'}: {amount}{codes}"
    if seen.period:
        yield f"blocks of {seen.period}x{seen.period} show"
    if seen.banding >= _SHARE:
        yield f"banding in {100 * seen.banding:.0f} % of the picture"


def left_out(step: float | None) -> Iterator[str]:
    """A note where pictures are so compressed that not all of them is trusted."""
    if step is not None and step >= CLEAN:
        yield f"note: the video is {compression(step)}: its artefacts are left out (--quantiser 0 trusts all of it)"


def compression(step: float) -> str:
    """How hard pictures were compressed, from the step of their quantiser in codes."""
    crf = round(6 * log2(max(step, 0.625) / 0.625) - 4)  # where x264's constant quality has that step, about
    return f"{'compressed' if crf < 27 else 'compressed hard'}, like x264 at crf {crf}"
