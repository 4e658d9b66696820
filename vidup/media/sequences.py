"""Numbered pictures as a video: ``frames/%05d.png``, which files that names, and in which order.

They are read and written by PyAV, which does it for all others: its decoders and encoders keep 16 bits of PNG, TIFF and
DPX exactly and read and write the halves of OpenEXR, so that no further library is needed.
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
"""Endings of those that are written, and the encoder of each."""

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
        """The pattern in FFmpeg's words: of a per cent sign elsewhere in the path two are made."""
        folder = str(self.pattern.parent).replace("%", "%%")
        place = _PLACE.search(self.pattern.name)
        assert place is not None
        before, after = self.pattern.name[: place.start()], self.pattern.name[place.end() :]
        return f"{folder}/{before.replace('%', '%%')}{place[0]}{after.replace('%', '%%')}"

    def fingerprint(self) -> dict[str, Any]:
        """As `job.disk.fingerprint_file`, of all pictures: their names, sizes, and 4 KiB of the middle of each."""
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
    """Whether a path names numbered pictures; a file of that very name is meant itself, and so is a video's name."""
    path = Path(path)
    return path.suffix.lower() in READ and _PLACE.search(path.name) is not None and not path.is_file()


def name(pattern: Path, number: int) -> Path:
    """The path of a picture."""
    place = _PLACE.search(pattern.name)
    assert place is not None
    digits = f"{number:0{int(place[1] or 0)}d}"
    return pattern.with_name(pattern.name[: place.start()] + digits + pattern.name[place.end() :])


def existing(pattern: Path) -> list[int]:
    """The numbers of the pictures that are there, rising."""
    place = _PLACE.search(pattern.name)
    assert place is not None
    before, after = pattern.name[: place.start()], pattern.name[place.end() :]
    least = int(place[1] or 0)
    if not pattern.parent.is_dir():
        return []
    found = []
    for path in pattern.parent.iterdir():
        digits = path.name[len(before) : len(path.name) - len(after) or None]
        if path.name == before + digits + after and digits.isascii() and digits.isdigit() and _is_padded(digits, least):
            found.append(int(digits))
    return sorted(found)


def find(pattern: Path) -> Numbered:
    """The pictures that a pattern names.

    Raises:
        MediaError: there are none, or some between them are missing.
    """
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
    """The pattern of files that are numbered pictures of one kind without a gap; None where they are not."""
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
    """The numbers of an output's pictures: those of the source's where it is a sequence, else from 1 on.

    Args:
        first: the place of the first in the source.
    """
    begin = find(source).first + first if is_sequence(source) else 1
    return range(begin, begin + count)


def _is_padded(digits: str, least: int) -> bool:
    return len(digits) == max(least, len(str(int(digits))))
