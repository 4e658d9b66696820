"""The part of the picture that players show, as the container states it; PyAV gives no access to what FFmpeg reads."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

_INSIDE_TRAK = (b"mdia", b"minf", b"stbl", b"stsd")
_SAMPLE_ENTRY = 78  # bytes of a visual sample entry before its boxes (ISO/IEC 14496-12, 12.1.3)
_PIXEL_CROP = {0x54AA: 1, 0x54BB: 1, 0x54CC: 0, 0x54DD: 0}  # bottom, top, left, right: is the height or width cropped
_SEGMENT, _TRACKS, _ENTRY, _NUMBER, _VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0xD7, 0xE0


def shown_size(path: Path, family: str, track: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """The (width, height) in pixels to which a container cuts a video: clean aperture, or Matroska's PixelCrop.

    Args:
        family: ``mov`` or ``matroska``; other files are not read.
        track: the number of the track in the file.
        size: (width, height) of the coded pictures.

    Returns:
        None where all of the picture is shown, or the file states nothing.
    """
    try:
        with path.open("rb") as file:
            shown = {"mov": _clean_aperture, "matroska": _pixel_crop}[family](file, path.stat().st_size, track, size)
    except (KeyError, OSError, ValueError, IndexError, ZeroDivisionError):  # damaged, or another family
        return None
    return shown if shown is not None and min(shown) > 0 and shown != size else None


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


def _clean_aperture(file: BinaryIO, end: int, track: int, size: tuple[int, int]) -> tuple[int, int] | None:
    for name, begin, stop in _boxes(file, 0, end):
        if name != b"moov":
            continue
        for kind, inside, until in _boxes(file, begin, stop):
            if kind == b"trak" and _track_id(file, inside, until) == track:
                return _aperture(file, inside, until)
    return None


def _track_id(file: BinaryIO, begin: int, end: int) -> int:
    for name, inside, _ in _boxes(file, begin, end):
        if name == b"tkhd":
            file.seek(inside)
            head = file.read(24)
            return int.from_bytes(head[20:24] if head[0] == 1 else head[12:16], "big")
    return -1


def _aperture(file: BinaryIO, begin: int, end: int) -> tuple[int, int] | None:
    for wanted in _INSIDE_TRAK:
        found = next(((inside, stop) for name, inside, stop in _boxes(file, begin, end) if name == wanted), None)
        if found is None:
            return None
        begin, end = found
    for _, entry, stop in _boxes(file, begin + 8, end):
        for name, inside, _ in _boxes(file, entry + _SAMPLE_ENTRY, stop):
            if name == b"clap":
                file.seek(inside)
                numbers = [int.from_bytes(file.read(4), "big") for _ in range(4)]
                width, height = Fraction(numbers[0], numbers[1]), Fraction(numbers[2], numbers[3])
                return round(width), round(height)
    return None


def _elements(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Id, begin and end of the content of each EBML element between two places of a file (RFC 8794)."""
    while begin < end:
        file.seek(begin)
        head = file.read(12)
        id_length = 9 - head[0].bit_length()
        size_length = 9 - head[id_length].bit_length()
        name = int.from_bytes(head[:id_length], "big")
        size = int.from_bytes(head[id_length : id_length + size_length], "big") & (1 << 7 * size_length) - 1
        inside = begin + id_length + size_length
        unknown = size == (1 << 7 * size_length) - 1
        stop = end if unknown else inside + size
        yield name, inside, min(stop, end)
        begin = stop


def _pixel_crop(file: BinaryIO, end: int, track: int, size: tuple[int, int]) -> tuple[int, int] | None:
    for name, begin, stop in _elements(file, 0, end):
        if name != _SEGMENT:
            continue
        for kind, tracks, until in _elements(file, begin, stop):
            if kind == _TRACKS:
                for _, inside, last in _elements(file, tracks, until):
                    fields = {key: (a, b) for key, a, b in _elements(file, inside, last)}
                    if _VIDEO in fields and _number(file, *fields.get(_NUMBER, (0, 0))) == track:
                        shown = list(size)
                        for key, a, b in _elements(file, *fields[_VIDEO]):
                            if key in _PIXEL_CROP:
                                shown[_PIXEL_CROP[key]] -= _number(file, a, b)
                        return shown[0], shown[1]
                return None
    return None


def _number(file: BinaryIO, begin: int, end: int) -> int:
    file.seek(begin)
    return int.from_bytes(file.read(min(8, end - begin)), "big")
