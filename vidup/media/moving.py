"""Pictures that move, GIF, APNG, animated WebP and AVIF, as Pillow reads them: what FFmpeg does not know of them.

FFmpeg decodes no animated WebP, keeps an AVIF's transparency apart, and does not say how often any of them is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageSequence, features

from vidup.errors import MediaError, first_line

_READ = ("GIF", "PNG", "WEBP", "AVIF")
_ANIMATED, _TRANSPARENT = 2, 16  # flags of WebP
_HEADS = re.compile(rb"GIF8[79]a|\x89PNG\r\n\x1a\n|RIFF....WEBP|....ftyp(avi[fs]|m(if|sf)1)", re.DOTALL)
"""How such files begin. For another one Pillow would load all of its readers."""
_USUAL = 100  # milliseconds, which players take for a time that is 0


@dataclass(frozen=True)
class Moving:
    """What a file says of its pictures."""

    size: tuple[int, int]
    """(height, width)."""
    durations: tuple[int, ...]
    """Of each picture, in milliseconds."""
    plays: int
    """How often it is shown; 0 is without end."""


def moves(path: str | Path) -> bool:
    """Whether a file is an animation of pictures."""
    path = Path(path)
    if not path.is_file():  # to open a pipe would wait for its writer
        return False
    try:
        with path.open("rb") as file:
            if not _HEADS.match(file.read(12)):
                return False
        with Image.open(path, formats=_READ) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # each of Pillow's readers fails in its own ways; whoever reads it as a still says how
        return False


def plays(path: str | Path) -> int:
    """How often an animation is shown; 0 is without end, as what is none is when it becomes one."""
    if not moves(path):
        return 0
    with _opened(Path(path)) as image:
        return _plays(image)


def read(path: Path) -> Moving:
    """Read what an animation, or a single picture, says; all of its pictures are decoded.

    Raises:
        MediaError: it is damaged.
    """
    with _opened(path) as image:
        durations = tuple(duration(picture) for picture in pictures(path, image))
        return Moving((image.height, image.width), durations, _plays(image))


def pictures(path: Path, image: Image.Image | None = None) -> Iterator[Image.Image]:
    """Each picture as it is shown: with what stands of those before it. It is the same object each time.

    Raises:
        MediaError: it is damaged.
    """
    opened = _opened(path) if image is None else image
    try:
        for picture in ImageSequence.Iterator(opened):
            picture.load()  # before which a WebP does not say how long it is shown
            yield picture
    except Exception as error:  # each of Pillow's readers fails in its own ways
        raise MediaError(f"{path}: is damaged: {first_line(error)}") from None
    finally:
        if image is None:
            opened.close()


def kind_of(path: Path) -> str | None:
    """``webp`` or ``avif`` where a file is an animation that FFmpeg does not read as it is shown; None else.

    Raises:
        MediaError: it is damaged at its head.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(32)
    if head[8:16] == b"WEBPVP8X" and head[20:] and head[20] & _ANIMATED:
        return "webp"
    if head[4:12] != b"ftypavis" or not features.check("avif"):
        return None
    with _opened(path) as image:
        return "avif" if image.mode == "RGBA" else None


def for_ffmpeg(path: Path, most_pixels: int) -> BytesIO | None:
    """An animation that FFmpeg does not read as it is shown, as one that it does; None for all others.

    Raises:
        MediaError: it is damaged, or claims more pixels than are read.
    """
    if kind_of(path) is None:
        return None
    facts = path.stat()
    with _opened(path) as image:
        if image.width * image.height > most_pixels:
            raise MediaError(f"{path}: claims {image.width}x{image.height}: more than {most_pixels} pixels")
    return BytesIO(_as_mov(path, facts.st_size, facts.st_mtime_ns))


@lru_cache(maxsize=2)
def _as_mov(path: Path, size: int, mtime_ns: int) -> bytes:
    """The pictures without loss, at their own times; a file is opened several times."""
    result, begin = BytesIO(), 0
    mode = "RGBA" if any(is_transparent(picture) for picture in pictures(path)) else "RGB"
    with _opened(path) as image, av.open(result, "w", format="mov", options={"video_track_timescale": "1000"}) as out:
        stream = out.add_stream("png", rate=1000)
        stream.width, stream.height, stream.pix_fmt = image.width, image.height, {"RGBA": "rgba"}.get(mode, "rgb24")
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for picture in pictures(path, image):
            frame = av.VideoFrame.from_ndarray(np.asarray(picture.convert(mode)), format=stream.pix_fmt)
            frame.pts, frame.time_base, length = begin, Fraction(1, 1000), duration(picture)
            for packet in stream.encode(frame):
                packet.duration = length
                out.mux(packet)
            begin += length
    return result.getvalue()


def is_transparent(picture: Image.Image) -> bool:
    """Whether a picture is not opaque everywhere."""
    return picture.has_transparency_data and bool(np.asarray(picture.convert("RGBA"))[..., 3].min() < 255)


def mark_transparent(path: Path) -> None:
    """Have an animated WebP say that it is transparent: libwebp does not where all that is drawn is opaque."""
    with path.open("r+b") as file:
        file.seek(20)
        flags = file.read(1)[0]
        file.seek(20)
        file.write(bytes([flags | _TRANSPARENT]))


def duration(picture: Image.Image) -> int:
    """How long a picture is shown, in milliseconds."""
    return round(float(picture.info.get("duration") or _USUAL))


def _opened(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            head = file.read(21)
            if head[8:16] != b"WEBPVP8X" or not head[20:] or not head[20] & _ANIMATED:
                return Image.open(path, formats=_READ)
            # Where nothing is drawn it is transparent, whatever it says: `mark_transparent`.
            return Image.open(BytesIO(head[:20] + bytes([head[20] | _TRANSPARENT]) + file.read()), formats=_READ)
    except Exception as error:
        raise MediaError(f"{path}: is no picture, or is damaged: {first_line(error)}") from None


def _plays(image: Image.Image) -> int:
    """GIF says how often it is shown again, and nothing where it is shown once."""
    loop = image.info.get("loop")
    if image.format == "GIF":
        return 1 if loop is None else loop + 1 if loop else 0
    return int(loop or 0)
