"""Check that an animation shows its pictures at their times, by reading it back with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image

from vidup.errors import MediaError, VerifyError
from vidup.media import animation_input, animation_output
from vidup.media.delivery import Delivery
from vidup.media.encoder import Encoding
from vidup.proof import facts

_SIDE, _GRAIN = 64, 8  # pictures are compared reduced: at most pixels a side, at least pixels averaged into one
_MOST_DIFFERENCE = {"APNG": 0.5, "GIF": 12.0, "WebP": 8.0}
"""Mean difference, in codes of 0 to 255, above which it is another picture: GIF and WebP are lossy."""


def check(output: Path, delivery: Delivery, encoding: Encoding | None, times: Sequence[int]) -> None:
    """Check size, times and loop count of an animation; Pillow may have merged equal pictures.

    Args:
        times: when its pictures are shown, in `delivery.unit`.
    """
    sizes, made = _read(output)
    facts.check_size(output, sizes[0], delivery, encoding)
    expected = animation_output.durations(delivery, times)
    begins, found = ([0, *accumulate(one)] for one in (expected, made))
    if len(made) == 1:  # all are equal: it is a still picture
        return
    if found[-1] != begins[-1] or not set(found) <= set(begins):
        amiss = next((begin for begin in found if begin not in begins), found[-1])
        raise VerifyError(
            f"{output}: shows {len(made)} pictures in {found[-1]} ms, expected {len(expected)} in"
            f" {begins[-1]} ms; the first that differs is at {amiss} ms"
        )
    found_plays, plays = animation_input.plays(output), animation_input.plays(delivery.info.path)
    if found_plays != plays:
        raise VerifyError(f"{output}: is shown {found_plays} times (0 is without end), expected {plays}")


def check_pictures(output: Path, delivery: Delivery, times: Sequence[int], segments: Sequence[Path]) -> None:
    """Check that an animation shows the segments' pictures at their times, `times` as for `check`."""
    ends = list(accumulate(animation_output.durations(delivery, times)))
    is_still = len(_read(output)[1]) == 1  # all of its pictures are equal
    shown, until, small = animation_input.pictures(output), 0, np.zeros(0)
    for index, (picture, end) in enumerate(zip(animation_output.of(segments), ends, strict=True)):
        if end > until:
            there = next(shown, None)
            if there is None:
                raise VerifyError(f"{output}: ends before its picture {index}")
            until = ends[-1] if is_still else until + animation_input.duration(there)
            small = _small(there)
        away = float(np.abs(_small(picture) - small).mean())
        if away > _MOST_DIFFERENCE[delivery.container.name]:
            raise VerifyError(f"{output}: its picture {index} is not what was made (differs by {away:.1f} of 255)")


def _read(output: Path) -> tuple[list[tuple[int, int]], list[int]]:
    """(height, width) of each picture, and how long it is shown, in milliseconds."""
    sizes, durations = [], []
    try:
        for picture in animation_input.pictures(output):
            sizes.append((picture.height, picture.width))
            durations.append(animation_input.duration(picture))
    except (MediaError, OSError) as error:
        raise VerifyError(f"{output}: cannot be read back: {error}") from error
    return sizes, durations


def _small(picture: Image.Image) -> np.ndarray:
    """A reduced picture over gray, and its transparency."""
    width, height = (max(1, min(_SIDE, side // _GRAIN)) for side in picture.size)
    codes = np.asarray(picture.convert("RGBA").resize((width, height), Image.Resampling.BOX), np.float64)
    weight = codes[..., 3:] / 255
    return np.concatenate([codes[..., :3] * weight + 128 * (1 - weight), codes[..., 3:]], -1)
