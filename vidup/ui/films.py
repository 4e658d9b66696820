"""Open films, their frames, and the newest pictures of runs."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps

import vidup
from vidup.errors import MediaError
from vidup.ui.safety import Refused

_OPEN = 4
"""The number of files kept open."""
_AT_A_TIME = 3
"""The number of pictures decoded at once, each of which may take a hundred megabytes."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif")
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
"""The formats that Pillow may detect; some others run external programs."""


class Films:
    """The few files that were used last, kept open. Thread-safe."""

    def __init__(self) -> None:
        self._videos: OrderedDict[tuple[str, int, int, str], vidup.Video] = OrderedDict()
        self._lock, self._few = threading.Lock(), threading.Semaphore(_AT_A_TIME)

    def video(self, path: Path, settings: vidup.Settings) -> vidup.Video:
        """The open video; raises as `vidup.open`."""
        facts = path.stat()
        taken = f"{settings.matrix} {settings.range} {settings.deinterlace} {settings.tolerate_errors}"
        key = str(path), facts.st_mtime_ns, facts.st_size, taken
        with self._lock:
            if key not in self._videos:
                self._videos[key] = vidup.open(path, settings)
                while len(self._videos) > _OPEN:
                    self._videos.popitem(last=False)[1].close()
            self._videos.move_to_end(key)
            return self._videos[key]

    def picture(self, path: Path, at: float, settings: vidup.Settings, exact: bool = False) -> Image.Image:
        """The picture at a time, upright, 8 bits; the last one for a time after it. Raises MediaError.

        Args:
            exact: convert colours by torch, as for a model. Only the thread that loads models may: diffusers changes
                torch's default dtype for all threads while it loads.
        """
        with self._few:
            if is_picture(path):
                try:
                    with Image.open(path, formats=_FORMATS) as image:
                        return ImageOps.exif_transpose(image).convert("RGB")
                except (OSError, ValueError, Image.DecompressionBombError) as error:
                    raise MediaError(f"{path}: cannot be read: {error}") from None
            frame = self.frame(path, at, settings)
            rgb = frame.rgb() if exact else frame.to_av().to_ndarray(format="rgb24")
            shown = Image.fromarray(rgb if rgb.dtype.itemsize == 1 else (rgb >> 8).astype("uint8"))
            rotation = self.video(path, settings).info.rotation
            return shown.rotate(rotation, expand=True)  # counter-clockwise, as a player turns it

    def frame(self, path: Path, at: float, settings: vidup.Settings) -> vidup.Frame:
        """A video's frame at a time, or the last one; raises MediaError."""
        video = self.video(path, settings)
        try:
            return video.at(at)
        except MediaError:
            return video[-1]

    def close(self) -> None:
        with self._lock:
            while self._videos:
                self._videos.popitem()[1].close()


def newest_time(folder: Path) -> str | None:
    """The time in its input, in seconds, of a run's newest picture; None without one, and while it is being written."""
    with suppress(OSError, ValueError):
        before, after = (_comment(folder / name, (folder / name).stat().st_mtime_ns) for name in _NEWEST)
        if before == after:
            return after
    return None


def newest_picture(folder: Path, name: str) -> bytes:
    """``after.jpg``, or ``before.jpg`` enlarged to its size by bicubic; raises Refused."""
    if name not in _NEWEST or newest_time(folder) is None:
        raise Refused("there is no such picture yet", 404)
    if name == "after.jpg":
        return (folder / name).read_bytes()
    with Image.open(folder / "before.jpg") as before, Image.open(folder / "after.jpg") as after:
        return jpeg(before.resize(after.size, Image.Resampling.BICUBIC))


_NEWEST = ("before.jpg", "after.jpg")


@lru_cache(1024)
def _comment(path: Path, written: int) -> str:
    """The comment of a JPEG that was written at a time: it is asked for each second."""
    with Image.open(path, formats=["JPEG"]) as image:
        return bytes(image.info.get("comment", b"")).decode("ascii", "replace")


def is_picture(path: Path) -> bool:
    """Whether the name is that of a still image."""
    return path.suffix.lower() in PICTURES


def jpeg(image: Image.Image, height: int | None = None) -> bytes:
    """Encode a picture as JPEG, reduced to a height if one is given."""
    if height is not None and height < image.height:
        image = image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
