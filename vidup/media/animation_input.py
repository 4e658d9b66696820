"""Reads animations, GIF, APNG, WebP and AVIF, with Pillow, where FFmpeg cannot.

FFmpeg decodes no animated WebP, keeps an AVIF's transparency apart, and does not report loop counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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
"""How such files begin. For any other Pillow would load all of its readers."""
_DEFAULT_DURATION = 100  # milliseconds, for which players show a picture whose duration is 0


def is_animation(path: str | Path) -> bool:
    """Whether a file holds several pictures and is no video."""
    path = Path(path)
    if not path.is_file():  # opening a pipe would wait for its writer
        return False
    try:
        with path.open("rb") as file:
            if not _HEADS.match(file.read(12)):
                return False
        with Image.open(path, formats=_READ) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # Pillow's readers raise anything; reading the file as a still reports the error
        return False


def plays(path: str | Path) -> int:
    """How often an animation plays; 0 is without end, which a video gets, too, when it becomes an animation."""
    if not is_animation(path):
        return 0
    with _opened(Path(path)) as image:
        loop = image.info.get("loop")
        if image.format == "GIF":  # counts repetitions, and has no count if it plays once
            return 1 if loop is None else loop + 1 if loop else 0
        return int(loop or 0)


def pictures(path: Path) -> Iterator[Image.Image]:
    """Each picture as it is shown, with what remains of those before it; it is the same object each time."""
    with _opened(path) as image:
        try:
            for picture in ImageSequence.Iterator(image):
                picture.load()  # a WebP states no duration before
                yield picture
        except Exception as error:  # Pillow's readers raise anything
            raise MediaError(f"{path}: is damaged: {first_line(error)}") from None


def kind_of(path: Path) -> str | None:
    """``webp`` or ``avif`` if a file is an animation that FFmpeg cannot read, or reads as opaque; else None."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(32)
    if _is_animated_webp(head):
        return "webp"
    if head[4:12] != b"ftypavis" or not features.check("avif"):
        return None
    with _opened(path) as image:
        return "avif" if image.mode == "RGBA" else None


def for_ffmpeg(path: Path, most_pixels: int) -> BytesIO | None:
    """Convert an animation that has a `kind_of` to a file that FFmpeg reads; None for all other files.

    Raises:
        MediaError: the file is damaged, or claims more than `most_pixels`.
    """
    if kind_of(path) is None:
        return None
    facts = path.stat()
    with _opened(path) as image:
        if image.width * image.height > most_pixels:
            raise MediaError(f"{path}: claims {image.width}x{image.height}: more than {most_pixels} pixels")
    try:
        return BytesIO(_as_mov(path, facts.st_size, facts.st_mtime_ns))
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(f"{path}: is damaged: {first_line(error)}") from None


@lru_cache(maxsize=2)
def _as_mov(path: Path, size: int, mtime_ns: int) -> bytes:
    """A MOV of the pictures without loss, at their own times; cached, as vidup opens a file several times."""
    result, begin = BytesIO(), 0
    is_opaque = not any(is_transparent(picture) for picture in pictures(path))
    mode, pix_fmt = ("RGB", "rgb24") if is_opaque else ("RGBA", "rgba")
    with _opened(path) as image, av.open(result, "w", format="mov", options={"video_track_timescale": "1000"}) as out:
        stream = out.add_stream("png", rate=1000)
        stream.width, stream.height, stream.pix_fmt = image.width, image.height, pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for picture in pictures(path):
            frame = av.VideoFrame.from_ndarray(np.asarray(picture.convert(mode)), format=pix_fmt)
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
    """Set an animated WebP's flag of transparency, which libwebp omits where all that is drawn is opaque."""
    with path.open("r+b") as file:
        file.seek(20)
        flags = file.read(1)[0]
        file.seek(20)
        file.write(bytes([flags | _TRANSPARENT]))


def duration(picture: Image.Image) -> int:
    """How long a picture is shown, in milliseconds."""
    return round(float(picture.info.get("duration") or _DEFAULT_DURATION))


def _is_animated_webp(head: bytes) -> bool:
    return head[8:16] == b"WEBPVP8X" and len(head) > 20 and bool(head[20] & _ANIMATED)


def _opened(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            head = file.read(21)
            if not _is_animated_webp(head):
                return Image.open(path, formats=_READ)
            # It is transparent where nothing is drawn, whatever the flag states; see `mark_transparent`.
            return Image.open(BytesIO(head[:20] + bytes([head[20] | _TRANSPARENT]) + file.read()), formats=_READ)
    except Exception as error:
        raise MediaError(f"{path}: is no picture, or is damaged: {first_line(error)}") from None
