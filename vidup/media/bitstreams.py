"""What the bytes of a compressed picture say of its quantiser, where no decoder tells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from math import exp, fsum, log

_X265 = re.compile(rb"x265 \(build.{0,4000}? rc=(crf|cqp).{0,400}? (?:crf|qp)=(\d{1,2}(?:\.\d{1,2})?)", re.DOTALL)
"""The settings that x265 writes before the first picture."""
_ABOVE = 4
"""By which x265's quantiser lies above its crf, on average."""


def step_of_packet(codec: str, data: bytes) -> float | None:
    """Step of the quantiser, in codes of 0 to 255; None where this does not say it.

    Args:
        codec: as FFmpeg names its decoder.
        data: of a packet, with what the file holds for the decoder before it.
    """
    if codec == "mjpeg":
        return jpeg_step(_jpeg_tables(data))
    if codec == "hevc" and (found := _X265.search(data)):
        return step_of_qp(float(found[2]) + _ABOVE * (found[1] == b"crf"))
    return None


def step_of_qp(qp: float) -> float:
    """Step in codes for the quantiser's number in H.264 and H.265: it doubles with every 6 (ITU-T H.264, 8.5)."""
    return float(0.625 * 2 ** (qp / 6))


def jpeg_step(tables: Iterable[Sequence[int]]) -> float | None:
    """Step for the tables of a JPEG picture; None where there are none.

    The first is that of luma. It is coarse for what is fine, which is mostly nothing: the step of x264 that is as bad
    goes with the half of the table that is finer (fitted on photographs at qualities of 20 to 97).
    """
    table = sorted(next(iter(tables), ()))
    finer = table[: len(table) // 2]
    return 2 * exp(fsum(log(max(one, 1)) for one in finer) / len(finer)) ** 0.72 if finer else None


def _jpeg_tables(data: bytes) -> Iterator[Sequence[int]]:
    """The tables of quantisers before the picture's data, each with 64 numbers (ITU-T T.81, B.2.4.1)."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place + 1] == 0xDB:
            segment = data[place + 4 : place + 2 + length]
            while len(segment) >= 65:
                wide = 2 if segment[0] >> 4 else 1
                table, segment = segment[1 : 1 + 64 * wide], segment[1 + 64 * wide :]
                if len(table) == 64 * wide:
                    yield [int.from_bytes(table[i : i + wide], "big") for i in range(0, len(table), wide)]
        place += 2 + length
