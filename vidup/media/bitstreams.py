"""Reads the quantiser of a compressed picture from its bytes, for codecs whose decoder does not export it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from math import exp, fsum, log

_X265 = re.compile(rb"x265 \(build.{0,4000}? rc=(crf|cqp).{0,400}? (?:crf|qp)=(\d{1,2}(?:\.\d{1,2})?)", re.DOTALL)
"""The settings that x265 writes before the first picture."""
_QP_ABOVE_CRF = 4
"""On average, in x265."""


def step_of_packet(codec: str, data: bytes) -> float | None:
    """Step of the quantiser, in codes of 0 to 255; None if the packet does not state it.

    Args:
        codec: FFmpeg's name of the decoder.
        data: of a packet, after the decoder's extradata.
    """
    if codec == "mjpeg":
        return jpeg_step(_jpeg_tables(data))
    if codec == "hevc" and (found := _X265.search(data)):
        return step_of_qp(float(found[2]) + _QP_ABOVE_CRF * (found[1] == b"crf"))
    return None


def step_of_qp(qp: float) -> float:
    """Step in codes for a QP of H.264 or H.265: it doubles with every 6 (ITU-T H.264, 8.5)."""
    return float(0.625 * 2 ** (qp / 6))


def jpeg_step(tables: Iterable[Sequence[int]]) -> float | None:
    """Step of x264 that does equal damage, for the quantisation tables of a JPEG; None without tables.

    Only the finer half of the luma table counts: the coarser half is for high frequencies, which are mostly zero. The
    formula is fitted on photographs at qualities of 20 to 97.
    """
    table = sorted(next(iter(tables), ()))
    finer = table[: len(table) // 2]
    return 2 * exp(fsum(log(max(one, 1)) for one in finer) / len(finer)) ** 0.72 if finer else None


def _jpeg_tables(data: bytes) -> Iterator[Sequence[int]]:
    """The quantisation tables of a JPEG, each with 64 numbers (ITU-T T.81, B.2.4.1)."""
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
