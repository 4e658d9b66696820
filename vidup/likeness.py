"""See that each picture of an output is that of its source: decode both, make both small, compare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from statistics import median

import numpy as np
import torch

from vidup import color, reader
from vidup.config import Settings
from vidup.engines.resample import resize
from vidup.errors import MediaError, VerifyError
from vidup.frame import Frame, MediaInfo
from vidup.planning import Delivery
from vidup.prefetch import prefetch

_SIDE = 256  # of the small pictures, in pixels: enough to see motion of a pixel in the source
_SAMPLES, _RUN = 24, 4  # the fast way: so many places, so many frames at each

# Root mean square differences, of the range from black to white. A right picture is far below the limits, with or
# without a shift of colour; of wrong ones those pass that look like the right one.
_FOREIGN, _OF_CONTRAST = 0.06, 0.6
_OUTLIER, _OF_USUAL = 0.03, 8.0
_NEARER = 0.5  # a neighbour is nearer if it is by this factor


@dataclass(frozen=True)
class _Likeness:
    """How far a picture is from its source's, and that one from black."""

    index: int
    time: Fraction
    distance: float


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
        VerifyError: a picture is black, foreign, shifted, doubled or swapped with its neighbour.
    """
    found: list[_Likeness] = []
    for low, high in _runs(len(times), fast):
        found += _compare(output, made, delivery, times, low, high)
    usual = median(one.distance for one in found)
    for one in found:
        if one.distance > max(_OUTLIER, _OF_USUAL * usual):
            raise VerifyError(_foreign(output, one))
    return len(found), 1 - max(one.distance for one in found)


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
    wide = max(0, low - 1), min(len(times), high + 1)  # neighbours of the first and the last
    offset = delivery.offset
    expected = {times[index] + offset: index for index in range(*wide)}
    originals = _small(_source(delivery, times[wide[0]] + offset, times[wide[1] - 1] + offset), delivery, size)
    end = made.pts[high] if high < len(made.pts) else None
    results = _small(reader.decode(made, made.pts[low], end), None, size)
    with closing(prefetch(originals, 8)) as before, closing(prefetch(results, 8)) as after:
        window: dict[int, torch.Tensor] = {}
        rest = ((expected[frame.pts], small) for frame, small in before if frame.pts in expected)
        index = low
        try:
            for _, picture in after:
                while index + 1 not in window and (following := next(rest, None)) is not None:
                    window[following[0]] = following[1]
                if index not in window:
                    raise VerifyError(f"{output}: the source has no picture for frame {index}")
                yield _like(output, picture, window, index, times[index] * delivery.unit)
                window.pop(index - 1, None)
                index += 1
        except MediaError as error:
            raise VerifyError(f"{output}: frame {index} cannot be decoded: {error}") from error
    if index != high:
        raise VerifyError(f"{output}: only {index} frames can be decoded, expected {high}")


def _like(
    output: Path, picture: torch.Tensor, window: dict[int, torch.Tensor], index: int, time: Fraction
) -> _Likeness:
    own = window[index]
    result = _Likeness(index, time, _distance(picture, own))
    if result.distance > max(_FOREIGN, _OF_CONTRAST * float(own.std())):
        raise VerifyError(_foreign(output, result))
    for other in (index - 1, index + 1):
        # Where neighbours are equal they cannot be told apart, nor does it matter.
        nearer = other in window and _distance(picture, window[other]) < _NEARER * result.distance
        if nearer and _distance(own, window[other]) > result.distance / 2:
            raise VerifyError(
                f"{output}: frame {index} (at {float(time):.6f} s) shows what frame {other} of the source shows"
            )
    return result


def _foreign(output: Path, one: _Likeness) -> str:
    return (
        f"{output}: frame {one.index} (at {float(one.time):.6f} s) does not show what the source shows there"
        f" (differs by {100 * one.distance:.1f} % of the range)"
    )


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).square().mean().sqrt())


def _source(delivery: Delivery, first: int, last: int) -> Iterator[Frame]:
    """The source's frames between two of its times, in `delivery.unit`."""
    scale = delivery.info.time_base / delivery.unit  # 2 where fields became frames
    settings = replace(
        Settings(),
        **{name: getattr(delivery.settings, name) for name in ("matrix", "range", "deinterlace", "tolerate_errors")},
    )
    return reader.decode(delivery.info, int(first // scale), int(last // scale) + 1, settings)


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
