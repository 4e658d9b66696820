"""How hard a file was compressed: in one figure for its user, and for frames that do not tell it themselves."""

from __future__ import annotations

from bisect import bisect_left
from contextlib import closing, suppress
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from statistics import fmean, median

import av

from vidup.config import Settings
from vidup.errors import MediaError
from vidup.frame import MediaInfo
from vidup.media.quantiser import is_lossless, luma_of, told
from vidup.media.reading import timed_frames
from vidup.picture import flaws

_PLACES, _FRAMES = (0.0, 0.35, 0.7), 8


@lru_cache(maxsize=4)  # planned again for other settings, a file is not decoded again
def quantiser_step(info: MediaInfo) -> float | None:
    """Step of the quantiser over some frames at three places of a file, in codes of 0 to 255.

    What a codec that loses nothing holds may have been compressed before: there the blocks that show tell it.

    Returns:
        The mean, in hundredths; None where nothing could be read, or in most places no blocks show.
    """
    lossless, steps, seen = _is_lossless(info), list[float](), list[float]()
    for share in _PLACES if info.timing == "packets" and info.entries else _PLACES[:1]:
        place = bisect_left(info.pts, info.entries[int(share * len(info.entries))][0]) if share else 0
        place = min(place, len(info.pts) - 1)
        with suppress(MediaError), closing(timed_frames(info, place, _ignore, False, True)) as frames:
            for frame in islice(frames, 1 if lossless else _FRAMES):
                if lossless:
                    seen.append(flaws.step_of_blocks(*flaws.blocking(luma_of(frame)[None])) or 0.0)
                elif (step := told(frame)) is not None:
                    steps.append(step)
    found = fmean(steps) if steps else median(seen) if seen else 0.0
    return round(found, 2) or None


def settled(settings: Settings, info: MediaInfo) -> Settings:
    """The settings, with the step of a file whose frames do not tell theirs."""
    if settings.quantiser != "auto" or not _is_lossless(info):
        return settings
    step = quantiser_step(info)
    return settings if step is None else replace(settings, quantiser=step)


def _is_lossless(info: MediaInfo) -> bool:
    return is_lossless(av.codec.Codec(info.codec, "r"))


def _ignore(_: str) -> None:
    """What is damaged is said by whoever reads the file for its pictures."""
