"""See that each picture of an output is that of its source: decode both, make both small, compare."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from vidup.config import Settings
from vidup.errors import MediaError, VerifyError
from vidup.frame import Frame, MediaInfo
from vidup.media import decoding
from vidup.media.delivery import Delivery
from vidup.picture import color
from vidup.picture.resample import resize
from vidup.prefetch import prefetch

log = logging.getLogger(__name__)

_SIDE = 256  # of the small pictures, in pixels: enough to see motion of a pixel in the source
_GRAIN = 4  # such blocks of them are averaged: encoders lose grain, or let it stand; of light and motion they do not
_SAMPLES, _RUN = 24, 4  # the fast way: so many places, so many frames at each
_REACH = 4  # frames on either side with which a picture may have been confused
_AROUND = 24  # frames on either side that tell what is usual here

# Root mean square differences, of the range from black to white. Right pictures are far below these limits, those of
# coarse encodings and of models that shift colours too.
_LEAST, _OF_CONTRAST, _OF_GRAIN = 0.02, 0.5, 0.3
_OF_LIGHT, _MOST_OF_LIGHT = 0.6, 0.08
_OF_USUAL, _MOST_OF_USUAL = 4.0, 0.15
_BLANK, _DARK, _LEFT = 0.03, 0.015, 0.2  # the least contrast and light of what can be said to be gone

# A picture is another frame's if it is nearer to that one by a factor, and the two of the source differ by more than
# encoders drop: H.264 at crf 40 may leave a step of 7 codes of 255 for the next frame, but not in every frame.
_NEARER, _STEP, _USUAL_STEP = 0.5, 0.03, 0.1
_RUN_STEP, _RUN_LENGTH, _RUN_SHARE = 0.004, 8, (0.7, 1.3)
_MOTION = 0.5  # the share of a difference that outlasts averaging, where it is more than grain


class _Other(NamedTuple):
    """What a picture has of the source's frame beside its own."""

    distance: float
    step: float
    """From its own frame to that one."""
    motion: bool
    """Whether the two differ by more than grain."""
    shape_step: float
    """From its own frame to that one where changes of light and contrast do not count: models make such."""
    share: float
    """Of that way: 0 is its own, 1 the other."""


@dataclass(frozen=True)
class _Likeness:
    """How far a picture is from its source's, and from those beside that."""

    index: int
    time: Fraction
    fine: float
    """With grain and detail."""
    distance: float
    """Without them, as all that follows."""
    contrast: float
    """Of the source's picture: the standard deviation."""
    found_contrast: float
    grain: float
    """Of the source's picture: what it has less without."""
    light: float
    """Of the source's picture: how far it is from black."""
    found_light: float
    others: dict[int, _Other]
    """By how many frames later each is."""


def check_pictures(
    output: Path, made: MediaInfo, delivery: Delivery, times: Sequence[int], fast: bool
) -> tuple[int, float]:
    """Decode the output and the source and see that every picture is the one that belongs there.

    Args:
        made: what is in the output, with as many frames as `times` has.
        times: when they are shown, in `delivery.unit`.
        fast: samples only.

    Returns:
        How many pictures were compared, and the least likeness: 1 minus the largest root mean square difference.

    Raises:
        VerifyError: a picture is black, foreign, shifted, doubled or swapped with one beside it.
    """
    found: list[_Likeness] = []
    for low, high in _runs(len(times), fast):
        part = list(_compare(output, made, delivery, times, low, high))
        for fault in _faults(part):
            # Where a source is damaged, what is missing in its pictures is left to chance by some decoders.
            if not delivery.settings.tolerate_errors:
                raise VerifyError(f"{output}: {fault}")
            log.warning("%s: %s", output, fault)
        found += part
    return len(found), 1 - max((one.fine for one in found), default=0.0)


def _faults(part: Sequence[_Likeness]) -> Iterator[str]:
    """What is wrong, in words, with pictures that follow each other."""
    for place, one in enumerate(part):
        usual = median(other.distance for other in part[max(0, place - _AROUND) : place + _AROUND + 1])
        foreign = max(
            _LEAST,
            _OF_CONTRAST * one.contrast,
            _OF_GRAIN * one.grain,
            min(_MOST_OF_LIGHT, _OF_LIGHT * one.light),
            min(_MOST_OF_USUAL, _OF_USUAL * usual),
        )
        blank = one.contrast > _BLANK and one.found_contrast < _LEFT * one.contrast
        black = one.light > _DARK and one.found_light < _LEFT * one.light
        shown = _shown_instead(one, max(_STEP, min(_USUAL_STEP, 4 * usual)))
        if shown is not None:
            yield f"frame {one.index} (at {float(one.time):.6f} s) shows what frame {shown} of the source shows"
        elif blank or black or one.distance > foreign:
            yield (
                f"frame {one.index} (at {float(one.time):.6f} s) does not show what the source shows there"
                f" (differs by {100 * one.distance:.1f} % of the range)"
            )
    for later in range(-_REACH, _REACH + 1):
        yield from _runs_of(part, later)


def _shown_instead(one: _Likeness, step: float) -> int | None:
    """The frame of the source that a picture clearly shows instead of its own."""
    for later, other in sorted(one.others.items(), key=lambda item: item[1].distance):
        if other.motion and other.step > step and other.distance < _NEARER * one.distance:
            return one.index + later
    return None


def _runs_of(part: Sequence[_Likeness], later: int) -> Iterator[str]:
    """Runs of pictures that are all as early or late, by steps that would mean nothing in one of them."""
    run: list[int] = []
    for one in part:
        other = one.others.get(later)
        if other is None or not other.motion or other.shape_step < _RUN_STEP:
            continue
        if _RUN_SHARE[0] < other.share < _RUN_SHARE[1] and other.distance < one.distance:
            run.append(one.index)
        else:
            run.clear()
        if len(run) == _RUN_LENGTH:
            yield (
                f"frames {run[0]} to {run[-1]} show what the source shows {abs(later)} frames"
                f" {'later' if later > 0 else 'earlier'}"
            )


def _runs(count: int, fast: bool) -> Iterator[tuple[int, int]]:
    if not fast or count <= _SAMPLES * _RUN:
        yield 0, count
        return
    for sample in range(_SAMPLES):
        low = (count - _RUN) * sample // (_SAMPLES - 1)
        yield low, low + _RUN


def _compare(
    output: Path, made: MediaInfo, delivery: Delivery, times: Sequence[int], low: int, high: int
) -> Iterator[_Likeness]:
    """Frames `low` to `high` of the output, each against the source's at its time and those beside it."""
    size = _small_size(made, delivery)
    wide = max(0, low - _REACH), min(len(times), high + _REACH)  # neighbours of the first and the last
    offset = delivery.offset
    expected = {times[index] + offset: index for index in range(*wide)}
    originals = _small(_source(delivery, times[wide[0]] + offset, times[wide[1] - 1] + offset), delivery, size)
    end = made.pts[high] if high < len(made.pts) else None
    results = _small(decoding.decode(made, made.pts[low], end), None, size)
    with closing(prefetch(originals, 8)) as before, closing(prefetch(results, 8)) as after:
        window: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        rest = ((expected[frame.pts], small) for frame, small in before if frame.pts in expected)
        index = low
        try:
            for _, picture in after:
                while max(window, default=-1) < index + _REACH and (following := next(rest, None)) is not None:
                    window[following[0]] = following[1], _coarse(following[1])
                if index in window:
                    yield _like(picture, window, index, times[index] * delivery.unit)
                elif not delivery.settings.tolerate_errors:
                    raise VerifyError(f"{output}: the source has no picture for frame {index}")
                window.pop(index - _REACH, None)
                index += 1
        except MediaError as error:
            raise VerifyError(f"{output}: frame {index} cannot be decoded: {error}") from error
    if index != high:
        raise VerifyError(f"{output}: only {index} frames can be decoded, expected {high}")


def _like(
    picture: torch.Tensor, window: dict[int, tuple[torch.Tensor, torch.Tensor]], index: int, time: Fraction
) -> _Likeness:
    fine, own = window[index]
    found = _coarse(picture)
    away = found - own
    others = {}
    for other in range(index - _REACH, index + _REACH + 1):
        if other == index or other not in window:
            continue
        beside_fine, beside = window[other]
        step = _distance(own, beside)
        if step == 0:
            continue  # equal ones cannot be told apart, nor does it matter
        motion = step > _MOTION * _distance(fine, beside_fine)
        way = _shape(beside - own, own)
        shape_step = float(way.square().mean().sqrt())
        share = float((away * way).mean()) / max(shape_step, 1e-6) ** 2
        others[other - index] = _Other(_distance(found, beside), step, motion, shape_step, share)
    contrast = _contrast(own)
    return _Likeness(
        index=index,
        time=time,
        fine=_distance(picture, fine),
        distance=float(away.square().mean().sqrt()),
        contrast=contrast,
        found_contrast=_contrast(found),
        grain=max(0.0, _contrast(fine) ** 2 - contrast**2) ** 0.5,
        light=float(own.square().mean().sqrt()),
        found_light=float(found.square().mean().sqrt()),
        others=others,
    )


def _coarse(picture: torch.Tensor) -> torch.Tensor:
    """The means of blocks."""
    height, width = picture.shape[1:]
    return functional.adaptive_avg_pool2d(picture, (-(-height // _GRAIN), -(-width // _GRAIN)))


def _shape(difference: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """A difference without what a change of light or of contrast makes of a picture, a channel."""
    plain = picture - picture.mean(dim=(1, 2), keepdim=True)
    difference = difference - difference.mean(dim=(1, 2), keepdim=True)
    power = plain.square().mean(dim=(1, 2), keepdim=True)
    return difference - plain * ((difference * plain).mean(dim=(1, 2), keepdim=True) / power.clamp_min(1e-9))


def _contrast(picture: torch.Tensor) -> float:
    return float(picture.std(dim=(1, 2), correction=0).square().mean().sqrt())


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).square().mean().sqrt())


def _source(delivery: Delivery, first: int, last: int) -> Iterator[Frame]:
    """The source's frames between two of its times, in `delivery.unit`."""
    scale = delivery.info.time_base / delivery.unit  # 2 where fields became frames
    settings = replace(
        Settings(),
        **{name: getattr(delivery.settings, name) for name in ("matrix", "range", "deinterlace", "tolerate_errors")},
    )
    return decoding.decode(delivery.info, int(first // scale), int(last // scale) + 1, settings)


def _small_size(made: MediaInfo, delivery: Delivery) -> tuple[int, int]:
    height, width = delivery.turn.size(delivery.info.height, delivery.info.width)
    factor = min(1.0, _SIDE / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _small(
    frames: Iterable[Frame], delivery: Delivery | None, size: tuple[int, int]
) -> Iterator[tuple[Frame, torch.Tensor]]:
    """Each frame, and a small RGB picture of it: float32 (3, height, width)."""
    with torch.inference_mode():
        for frame in frames:
            kind = color.layout(frame.pix_fmt)
            assert kind is not None
            # Made small before it is made RGB: planes of 4K are large. Codes of 16 bits keep the means exact enough.
            reduced = []
            for plane in frame.planes[: kind.planes]:
                codes = torch.from_numpy(plane.astype(np.float32)) * float(1 << (16 - kind.bits))
                height, width = size if delivery is None or not delivery.turn.transpose else size[::-1]
                reduced.append(resize(codes[None, None], (height, width))[0, 0].round().clamp(0, 65535))
            planes = tuple(plane.to(torch.int32).numpy().astype(np.uint16) for plane in reduced)
            name = {"yuv": "yuv444p16le", "gray": "gray16le", "gbr": "gbrp16le"}[kind.family]
            rgb = color.to_rgb(Frame(planes, name, frame.color))
            yield frame, rgb if delivery is None else delivery.turn(rgb)
