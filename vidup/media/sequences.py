"""Numbered pictures as a video: the files that ``frames/%05d.png`` names, and their order.

PyAV reads and writes them, too: it keeps 16 bits of PNG, TIFF and DPX exactly, and the half floats of OpenEXR.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from vidup.errors import MediaError

READ = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".exr", ".dpx", ".jp2"}
"""Endings of the pictures that a sequence may be of."""

WRITTEN = {".png": "png", ".tif": "tiff", ".tiff": "tiff", ".exr": "exr", ".dpx": "dpx"}
"""Endings of those that can be written -> the encoder."""

_PLACE = re.compile(r"%(?:0?(\d{1,2}))?d")
_NUMBER = re.compile(r"\d+(?=\D*$)")
_SAMPLE = 4096  # bytes of each picture that are hashed


@dataclass(frozen=True)
class Numbered:
    """The pictures of a sequence."""

    pattern: Path
    first: int
    count: int

    @property
    def paths(self) -> list[Path]:
        return [name(self.pattern, self.first + index) for index in range(self.count)]

    @property
    def for_ffmpeg(self) -> str:
        """The pattern for FFmpeg, in which other per cent signs of the path are doubled."""
        folder = str(self.pattern.parent).replace("%", "%%")
        before, place, after = _parts(self.pattern)
        return f"{folder}/{before.replace('%', '%%')}{place[0]}{after.replace('%', '%%')}"

    def fingerprint(self) -> dict[str, Any]:
        """A fingerprint as of `job.disk.fingerprint_file`: of the names and sizes of all pictures, 4 KiB of each."""
        digest, size, latest = hashlib.sha256(), 0, 0
        for path in self.paths:
            facts = path.stat()
            size, latest = size + facts.st_size, max(latest, facts.st_mtime_ns)
            digest.update(f"{path.name} {facts.st_size}\n".encode(errors="surrogateescape"))
            with path.open("rb") as file:
                file.seek(max(0, (facts.st_size - _SAMPLE) // 2))
                digest.update(file.read(_SAMPLE))
        return {"size": size, "mtime_ns": latest, "sha256": digest.hexdigest()}


def is_sequence(path: str | Path) -> bool:
    """Whether a path is a pattern of numbered pictures; that of an existing file, or of a video, is not."""
    path = Path(path)
    return path.suffix.lower() in READ and _PLACE.search(path.name) is not None and not path.is_file()


def name(pattern: Path, number: int) -> Path:
    """The path of the picture with a number."""
    before, place, after = _parts(pattern)
    return pattern.with_name(f"{before}{number:0{int(place[1] or 0)}d}{after}")


def _parts(pattern: Path) -> tuple[str, re.Match[str], str]:
    """What is before the place of the number in a pattern's name, the place itself, and what is after it."""
    place = _PLACE.search(pattern.name)
    assert place is not None
    return pattern.name[: place.start()], place, pattern.name[place.end() :]


def existing(pattern: Path) -> list[int]:
    """The numbers of the pictures that exist, rising."""
    if not pattern.parent.is_dir():
        return []
    before, _, after = _parts(pattern)
    fitting = re.compile(f"{re.escape(before)}([0-9]{{1,18}}){re.escape(after)}")
    names = {path.name for path in pattern.parent.iterdir()}
    numbers = {int(match[1]) for each in names if (match := fitting.fullmatch(each))}
    return sorted(number for number in numbers if name(pattern, number).name in names)  # with as many zeros


def find(pattern: Path) -> Numbered:
    """Find the pictures of a pattern; a MediaError where there are none, or some between them are missing."""
    numbers = existing(pattern)
    if not numbers:
        raise MediaError(f"{pattern}: there are no such pictures ({name(pattern, 1).name} and so on)")
    if pattern.suffix.lower() not in READ:
        raise MediaError(f"{pattern}: {pattern.suffix or 'no ending'} is none of {', '.join(sorted(READ))}")
    if gap := next(((a, b) for a, b in pairwise(numbers) if b != a + 1), None):
        first, last = (name(pattern, number).name for number in (gap[0] + 1, gap[1] - 1))
        missing = first if first == last else f"{first} to {last}"
        raise MediaError(f"{pattern}: {missing}: missing between its pictures, which have to be numbered without a gap")
    return Numbered(pattern, numbers[0], len(numbers))


def pattern_of(paths: Iterable[Path]) -> Path | None:
    """The pattern of files that are pictures of one kind, numbered without a gap; None where they are not."""
    names = sorted(paths)
    number = _NUMBER.search(names[0].stem) if names else None
    if len(names) < 2 or number is None or names[0].suffix.lower() not in READ:
        return None
    stem, digits = names[0].stem, len(number[0])
    width = f"%0{digits}d" if len({len(path.name) for path in names}) == 1 or number[0].startswith("0") else "%d"
    pattern = names[0].with_name(f"{stem[: number.start()]}{width}{stem[number.end() :]}{names[0].suffix}")
    numbers = existing(pattern)
    is_whole = bool(numbers) and numbers == list(range(numbers[0], numbers[0] + len(names)))
    return pattern if is_whole and {name(pattern, each) for each in numbers} == set(names) else None


def numbers_of(source: Path, first: int, count: int) -> Sequence[int]:
    """The numbers of an output's pictures: the input's from its place `first` on, if it is a sequence; else from 1."""
    begin = find(source).first + first if is_sequence(source) else 1
    return range(begin, begin + count)
