"""Open films, their frames, and the newest pictures of runs."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from contextlib import suppress
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


class Newest:
    """The newest pictures of runs, each pair of before and after read together."""

    def __init__(self) -> None:
        self._pairs: OrderedDict[str, tuple[int, str, bytes, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def at(self, name: str, folder: Path) -> str | None:
        """The time of a run's newest picture in its input, in seconds; None if there is none."""
        with self._lock:
            with suppress(OSError, ValueError):
                written = (folder / "after.jpg").stat().st_mtime_ns
                if name not in self._pairs or self._pairs[name][0] != written:
                    before, after = (folder / "before.jpg").read_bytes(), (folder / "after.jpg").read_bytes()
                    times = [_comment(before), _comment(after)]
                    if times[0] == times[1]:  # otherwise it is being written: keep the previous pair
                        self._pairs[name] = written, times[0], before, after
                        while len(self._pairs) > _OPEN:
                            self._pairs.popitem(last=False)
            return self._pairs[name][1] if name in self._pairs else None

    def picture(self, name: str, folder: Path, which: str) -> bytes:
        """``after.jpg``, or ``before.jpg`` enlarged to its size by bicubic; raises Refused."""
        pair = self._pairs.get(name) if self.at(name, folder) is not None else None
        if pair is None or which not in ("before.jpg", "after.jpg"):
            raise Refused("there is no such picture yet", 404)
        if which == "after.jpg":
            return pair[3]
        with Image.open(io.BytesIO(pair[2])) as before, Image.open(io.BytesIO(pair[3])) as after:
            return jpeg(before.resize(after.size, Image.Resampling.BICUBIC))


def _comment(data: bytes) -> str:
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
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
