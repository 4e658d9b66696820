"""Boxes of mov and mp4, elements of Matroska: what they state, and PyAV gives no access to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

_SAMPLE_ENTRY = 78  # bytes of a visual sample entry before its boxes (ISO/IEC 14496-12, 12.1.3)
_EBML, _SEGMENT, _TRACKS, _ENTRY, _NUMBER, _VIDEO = 0x1A45DFA3, 0x18538067, 0x1654AE6B, 0xAE, 0xD7, 0xE0
_PIXEL_CROP = {0x54AA: 1, 0x54BB: 1, 0x54CC: 0, 0x54DD: 0}  # bottom, top, left, right: is the height or width cropped

Part = tuple[int, int]
"""Begin and end of a part of a file."""


def shown_size(path: Path, family: str, track: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """The (width, height) in pixels to which a container cuts a video: clean aperture, or Matroska's PixelCrop.

    None where all of the picture is shown, or the file states nothing.

    Args:
        family: ``mov`` or ``matroska``; other files are not read.
        track: the number of the track in the file.
        size: (width, height) of the coded pictures.
    """
    try:
        with path.open("rb") as file:
            shown = {"mov": _clean_aperture, "matroska": _pixel_crop}[family](file, path.stat().st_size, track, size)
    except (KeyError, OSError, ValueError, IndexError, ZeroDivisionError):  # damaged, or another family
        return None
    return shown if shown is not None and min(shown) > 0 and shown != size else None


def missing_bytes(path: Path) -> int | None:
    """By how many bytes a Matroska file is shorter than its header states; None where it states nothing."""
    place, size = 0, path.stat().st_size
    with path.open("rb") as file:
        for wanted in (_EBML, _SEGMENT):
            file.seek(place)
            head = file.read(12)
            if len(head) < 12:
                return None
            name, inside, length = _element_head(head)
            if name != wanted or length is None:
                return None
            place += inside + length
    return max(0, place - size)


def _clean_aperture(file: BinaryIO, end: int, track: int, size: tuple[int, int]) -> tuple[int, int] | None:
    for trak in _find(_boxes, file, (0, end), b"moov", b"trak"):
        for header, _ in _find(_boxes, file, trak, b"tkhd"):
            number = header + (20 if _number(file, header, header + 1) == 1 else 12)
            if _number(file, number, number + 4) == track:
                return _aperture(file, trak)
    return None


def _aperture(file: BinaryIO, trak: Part) -> tuple[int, int] | None:
    for begin, stop in _find(_boxes, file, trak, b"mdia", b"minf", b"stbl", b"stsd"):
        for _, entry, last in _boxes(file, begin + 8, stop):
            for place, _ in _find(_boxes, file, (entry + _SAMPLE_ENTRY, last), b"clap"):
                numbers = [_number(file, at, at + 4) for at in range(place, place + 16, 4)]
                return round(Fraction(numbers[0], numbers[1])), round(Fraction(numbers[2], numbers[3]))
    return None


def _pixel_crop(file: BinaryIO, end: int, track: int, size: tuple[int, int]) -> tuple[int, int] | None:
    for entry in _find(_elements, file, (0, end), _SEGMENT, _TRACKS, _ENTRY):
        number = next(_find(_elements, file, entry, _NUMBER), None)
        if number is None or _number(file, *number) != track:
            continue
        for video in _find(_elements, file, entry, _VIDEO):
            shown = list(size)
            for name, begin, stop in _elements(file, *video):
                if name in _PIXEL_CROP:
                    shown[_PIXEL_CROP[name]] -= _number(file, begin, stop)
            return shown[0], shown[1]
    return None


def _find(
    read: Callable[..., Iterator[tuple[Any, int, int]]], file: BinaryIO, part: Part, *names: Any
) -> Iterator[Part]:
    """The contents of all boxes, or elements, to which a path of names leads within a part of a file."""
    for name, begin, stop in read(file, *part):
        if name == names[0]:
            yield from _find(read, file, (begin, stop), *names[1:]) if names[1:] else [(begin, stop)]


def _boxes(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and end of the content of each box between two places of a file."""
    while begin + 8 <= end:
        file.seek(begin)
        head = file.read(16)
        length, name, inside = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1:
            length, inside = int.from_bytes(head[8:16], "big"), 16
        stop = end if length == 0 else begin + length
        if not begin + inside <= stop <= end:
            return
        yield name, begin + inside, stop
        begin = stop


def _elements(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Id, begin and end of the content of each EBML element between two places of a file."""
    while begin < end:
        file.seek(begin)
        name, inside, length = _element_head(file.read(12))
        stop = end if length is None else begin + inside + length
        yield name, begin + inside, min(stop, end)
        begin = stop


def _element_head(head: bytes) -> tuple[int, int, int | None]:
    """Id of an EBML element, bytes of its head, and of its content; None where that is not known (RFC 8794, 4).

    The first set bit of each number gives its count of bytes; a length whose other bits are all set is not known.
    """
    id_length = 9 - head[0].bit_length()
    inside = id_length + 9 - head[id_length].bit_length()
    every = (1 << 7 * (inside - id_length)) - 1
    length = int.from_bytes(head[id_length:inside], "big") & every
    return int.from_bytes(head[:id_length], "big"), inside, length if head[id_length] and length != every else None


def _number(file: BinaryIO, begin: int, end: int) -> int:
    file.seek(begin)
    return int.from_bytes(file.read(min(8, end - begin)), "big")
