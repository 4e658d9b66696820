"""Animations of pictures, GIF, APNG and WebP, in and out: their own times, their loops, their transparency; by Pillow.

FFmpeg decodes no animated WebP and keeps neither loops nor transparency of the others; Pillow does. Such a file is made
in one go, all of it in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from vidup.errors import ConfigError, MediaError, VerifyError, first_line
from vidup.job.disk import beside, put_in_place
from vidup.job.progress import Tracker
from vidup.media.opening import MOST_PIXELS
from vidup.picture.geometry import output_size, size_notes
from vidup.proof import Receipt, sha256
from vidup.upscaler import Upscaler

log = logging.getLogger(__name__)

WRITTEN = {".gif": "GIF", ".png": "PNG", ".apng": "PNG", ".webp": "WEBP"}
"""Endings of the animations that are written, and what Pillow calls each."""

_READ = ("GIF", "PNG", "WEBP", "AVIF")
_MOST_BYTES = 4 << 30  # of an animation's results, which are all in memory
_USUAL = 100  # milliseconds, which players take for a time that is 0


@dataclass(frozen=True)
class Animation:
    """What a file says of its pictures."""

    size: tuple[int, int]
    """(height, width)."""
    durations: tuple[int, ...]
    """Of each picture, in milliseconds."""
    plays: int
    """How often it is shown; 0 is without end."""
    transparent: bool

    def __str__(self) -> str:
        height, width = self.size
        often = {0: "without end", 1: "once"}.get(self.plays, f"{self.plays} times")
        return (
            f"an animation of {width}x{height}, {len(self.durations)} pictures, {sum(self.durations) / 1000:.3f} s,"
            f" shown {often}"
        )


def moves(path: Path) -> bool:
    """Whether a file is an animation that is read here."""
    if not path.is_file():  # to open a pipe would wait for its writer
        return False
    try:
        with Image.open(path, formats=_READ) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # each of Pillow's readers fails in its own ways; whoever reads it as a still says how
        return False


def read(path: Path) -> Animation:
    """Read what an animation says of its pictures, all of which are decoded once.

    Raises:
        MediaError: it is damaged, or claims more pixels than are read.
    """
    durations, transparent = [], False
    with _opened(path) as image:
        if image.width * image.height > MOST_PIXELS:
            raise MediaError(f"{path}: claims {image.width}x{image.height}: more than {MOST_PIXELS} pixels")
        plays = _plays(image)
        size = image.height, image.width
        for picture in _pictures(path, image):
            durations.append(round(float(picture.info.get("duration") or _USUAL)))
            transparent |= _is_transparent(picture)
    return Animation(size, tuple(durations), plays, transparent)


def upscale(upscaler: Upscaler, source: Path, target: Path, tracker: Tracker) -> Receipt:
    """Upscale an animation into a new file, and read that again.

    Raises:
        ConfigError: the output's format holds no animation, or the result would not fit into memory.
        MediaError: it is damaged, or the output cannot be written.
        VerifyError: what was written has another size, other times or another number of plays.
    """
    kind = WRITTEN.get(target.suffix.lower())
    if kind is None:
        raise ConfigError(f"{target}: holds one picture, and {source} moves; take {', '.join(WRITTEN)}, .mp4 or .mkv")
    what = read(source)
    count, settings = len(what.durations), upscaler.settings
    height, width = size = output_size(settings, upscaler.engine.scale, *what.size, even=False)
    if count * height * width * 4 > _MOST_BYTES:
        raise ConfigError(f"{target}: {count} pictures of {width}x{height} are too many to be held; take .mp4 or .mkv")
    log.info("%s: %dx%d, %d pictures -> %dx%d, %s", source, *what.size[::-1], count, width, height, kind)
    for note in (*size_notes(settings, upscaler.engine.scale, what.size, size), *_notes(what, kind)):
        log.info("note: %s", note)
    tracker.expect(count - 1, 0, target)  # one is expected of every picture
    tracker.enter("upscaling", target)
    results = []
    with _opened(source) as image:
        upscaler.reset()
        mode = "RGBA" if what.transparent else "RGB"
        for large in upscaler.frames(picture.convert(mode) for picture in _pictures(source, image)):
            large.info = {}  # Pillow would write what the input said of itself
            results.append(_limited(large) if kind == "GIF" else large)
            tracker.advance()
    tracker.enter("verifying", target)
    _write(results, what, kind, target, upscaler.runtime.overwrite)
    log.info("%s: delivered and verified, %d pictures", target, count)
    return Receipt(source, target, count, 0, 1.0, size, (), 0, sha256(target))


def verify(source: Path, target: Path, size: tuple[int, int]) -> None:
    """See that a file is such an animation.

    Raises:
        MediaError, VerifyError: as `upscale`.
    """
    what = read(source)
    _check(target, target, what, size, sum(_durations(what, WRITTEN.get(target.suffix.lower(), ""))))


def _durations(what: Animation, kind: str) -> list[int]:
    """As a format can say them."""
    return [max(10, round(each, -1)) if kind == "GIF" else each for each in what.durations]


def _write(results: list[Image.Image], what: Animation, kind: str, target: Path, overwrite: bool) -> None:
    part = beside(target, f".vidup{target.suffix}")
    durations = _durations(what, kind)
    options: dict[str, Any] = {"duration": durations, "save_all": True, "append_images": results[1:]}
    if kind == "GIF":
        options |= {"disposal": 2 if what.transparent else 1, "optimize": False}
        options |= {"loop": max(0, what.plays - 1)} if what.plays != 1 else {}
    else:
        options |= {"loop": what.plays} | ({"quality": 90, "method": 4} if kind == "WEBP" else {})
    try:
        part.unlink(missing_ok=True)  # a link would be written through
        results[0].save(part, kind, **options)
        _check(part, target, what, results[0].size[::-1], sum(durations))
        put_in_place(part, target, overwrite)
    except OSError as error:
        raise MediaError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _check(part: Path, target: Path, what: Animation, size: tuple[int, int], length: int) -> None:
    """See that a written file says what it should; equal pictures may have become one that is shown for longer."""
    made = read(part)
    found = made.size, sum(made.durations), made.plays
    if found != (size, length, what.plays):
        raise VerifyError(f"{target}: has (size, milliseconds, plays) {found}, expected {(size, length, what.plays)}")


def _notes(what: Animation, kind: str) -> Iterator[str]:
    if kind == "GIF":
        yield "GIF has 256 colours a picture and full transparency or none; .png and .webp hold all"
        if any(each % 10 or each < 10 for each in what.durations):
            yield "GIF counts in hundredths of a second: times are rounded"
    yield "an animation is made in one go: what is stopped begins anew"


def _limited(picture: Image.Image) -> Image.Image:
    """With transparency that is full or none, as GIF has it."""
    if picture.mode != "RGBA":
        return picture
    codes = np.array(picture)
    codes[..., 3] = np.where(codes[..., 3] < 128, 0, 255)
    return Image.fromarray(codes)


def _opened(path: Path) -> Any:
    try:
        return Image.open(path, formats=_READ)
    except Exception as error:
        raise MediaError(f"{path}: is no picture, or is damaged: {first_line(error)}") from None


def _pictures(path: Path, image: Image.Image) -> Iterator[Image.Image]:
    """Each picture as it is shown: with what stands of those before it."""
    try:
        for picture in ImageSequence.Iterator(image):  # one object, which shows one after the other
            picture.load()  # before which a WebP does not say how long it is shown
            yield picture
    except Exception as error:  # each of Pillow's readers fails in its own ways
        raise MediaError(f"{path}: is damaged: {first_line(error)}") from None


def _plays(image: Image.Image) -> int:
    """How often it is shown. GIF says how often it is shown again, and nothing where it is shown once."""
    loop = image.info.get("loop")
    if image.format == "GIF":
        return 1 if loop is None else loop + 1 if loop else 0
    return int(loop or 0)


def _is_transparent(picture: Image.Image) -> bool:
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return False
    return bool(np.asarray(picture.convert("RGBA"))[..., 3].min() < 255)
