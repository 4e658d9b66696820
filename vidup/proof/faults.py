"""Judge the measured likeness of pictures: which are broken, which are another frame's, which only look unlike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vidup.proof.likeness import OFFSETS, Floats, Likeness

_AROUND = 24  # frames on either side that show what distance is usual

# Root mean square differences, as shares of the range from black to white. Correct pictures are far below these limits,
# also with coarse encodings and models that shift colours.
_LEAST, _OF_CONTRAST, _OF_GRAIN = 0.02, 0.5, 0.3
_OF_LIGHT, _MOST_OF_LIGHT = 0.6, 0.08
_OF_USUAL, _MOST_OF_USUAL = 4.0, 0.15
_BLANK, _DARK, _LEFT = 0.03, 0.015, 0.2  # contrast and light below which a source is blank or dark; the share kept
_COLOURED, _COLOUR_LEFT = 0.03, 0.2  # colour below which a source is gray; the share that coarse encodings keep

# Beyond these limits a picture is unlike its source's. It is broken if it has little in common with it, too.
_AGREEMENT, _FAR, _TEXTURE = 0.5, 0.25, (0.15, 5.0)

# A picture is another frame's if it is nearer to that by a factor, and the two frames of the source differ by more than
# encoders ignore: H.264 at crf 40 may leave out a change of 7 codes of 255, but not in every frame.
_NEARER, _CHANGE, _USUAL_CHANGE = 0.5, 0.03, 0.1
_RUN_CHANGE, _RUN_LENGTH, _RUN_SHARE = 0.004, 8, (0.7, 1.3)


class Fault(NamedTuple):
    """A difference of one or several pictures from the source."""

    words: str
    is_error: bool
    """False where it may be the model's work."""


def faults(found: Likeness, first: int, seconds: NDArray[np.float64]) -> Iterator[Fault]:
    """The faults of consecutive pictures: `first` is the number of the first, `seconds` when each is shown."""
    usual = _usual(found)
    limit = np.max([
        np.full_like(usual, _LEAST),
        _OF_CONTRAST * found.contrast,
        _OF_GRAIN * found.grain,
        np.minimum(_MOST_OF_LIGHT, _OF_LIGHT * found.light),
        np.minimum(_MOST_OF_USUAL, _OF_USUAL * usual),
    ], 0)  # fmt: skip
    unlike = found.there & (found.distance > limit)
    gone = (found.contrast > _BLANK) & (found.found_contrast < _LEFT * found.contrast)
    gone |= (found.light > _DARK) & (found.found_light < _LEFT * found.light)
    broken = found.there & (gone | (unlike & _has_little_in_common(found)))
    gray = found.there & (found.colour > _COLOURED) & (found.found_colour < _COLOUR_LEFT)
    shown = _shown_instead(found, np.clip(4 * usual, _CHANGE, _USUAL_CHANGE))
    for index in np.flatnonzero(broken | gray | (shown != 0)):
        name = f"frame {first + index} (at {seconds[index]:.6f} s)"
        differs = f"(differs by {100 * found.distance[index]:.1f} % of the range)"
        if shown[index]:
            yield Fault(f"{name} shows what frame {first + index + shown[index]} of the source shows", True)
        elif broken[index]:
            yield Fault(f"{name} does not show what the source shows there {differs}", True)
        else:
            yield Fault(f"{name} has lost the source's colour {differs}", True)
    yield from _displaced(found, first)
    only_unlike = np.flatnonzero(unlike & ~broken & ~gray & (shown == 0))
    if len(only_unlike):
        worst = only_unlike[np.argmax(found.distance[only_unlike])]
        count = f" and {len(only_unlike) - 1} more" if len(only_unlike) > 1 else ""
        yield Fault(
            f"frame {first + worst} (at {seconds[worst]:.6f} s){count} looks unlike the source's"
            f" (likeness {100 * (1 - found.distance[worst]):.1f} %): have a look at it",
            False,
        )


def _usual(found: Likeness) -> Floats:
    """The median distance of the pictures around each."""
    padded = np.pad(np.where(found.there, found.distance, np.nan), _AROUND, constant_values=np.nan)
    ranked = np.sort(sliding_window_view(padded, 2 * _AROUND + 1), axis=1)  # NaN comes last
    count = np.isfinite(ranked).sum(1)
    rows = np.arange(len(ranked))
    middle: Floats = (ranked[rows, (count - 1).clip(0) // 2] + ranked[rows, count // 2]) / 2
    return np.nan_to_num(middle).astype(np.float32)


def _has_little_in_common(found: Likeness) -> NDArray[np.bool_]:
    """Whether no model would have changed a picture so: it is another picture, or one where the source is blank."""
    foreign = (found.contrast > _BLANK) & (found.agreement < _AGREEMENT)
    texture = found.found_contrast > np.maximum(_TEXTURE[0], _TEXTURE[1] * found.contrast)
    result: NDArray[np.bool_] = foreign | texture | (found.distance > _FAR)
    return result


def _shown_instead(found: Likeness, least_change: Floats) -> NDArray[np.int64]:
    """How many frames later the source's frame is that a picture clearly shows instead of its own; 0: none."""
    clear = (found.change > least_change[:, None]) & (found.other_distance < _NEARER * found.distance[:, None])
    result = np.zeros(len(clear), np.int64)
    for index in np.flatnonzero(clear.any(1) & found.there):
        for place in np.argsort(found.other_distance[index]):
            if clear[index, place] and found.is_motion(int(index), int(place)):
                result[index] = OFFSETS[place]
                break
    return result


def _displaced(found: Likeness, first: int) -> Iterator[Fault]:
    """Runs of pictures that are all early or late by one number, with changes too small to judge a single picture."""
    moving = found.there[:, None] & (found.shape_change >= _RUN_CHANGE)
    low, high = _RUN_SHARE
    nearer = (low < found.share) & (found.share < high) & (found.other_distance < found.distance[:, None])
    for place, later in enumerate(OFFSETS):
        if (moving & nearer)[:, place].sum() < _RUN_LENGTH:
            continue
        run: list[int] = []
        for index in np.flatnonzero(moving[:, place]):
            if not found.is_motion(int(index), place):
                continue
            run = [*run, first + int(index)] if nearer[index, place] else []
            if len(run) == _RUN_LENGTH:
                direction = "later" if later > 0 else "earlier"
                words = f"frames {run[0]} to {run[-1]} show what the source shows {abs(later)} frames {direction}"
                yield Fault(words, True)
