"""What is in a file, what would become of it, and its frames."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, ImageOps

import vidup
from vidup.errors import MediaError, VidupError
from vidup.ui import forms
from vidup.ui.safety import Refused

_OPEN = 4
"""Files that are kept open."""
_AT_A_TIME = 3
"""Pictures that are decoded at once: each may take a hundred megabytes."""
_PLANS = 12
_AT_ONCE = 0.2
"""Seconds that are waited for what takes long."""
_OF_PICTURES = (
    *("model", "temporal", "trust", "refresh", "quantiser", "start", "duration", "end"),
    *("matrix", "range", "deinterlace", "fps", "bake_rotation", "tolerate_errors"),
)
"""Settings that decide what a few frames tell."""
_LATER = ("motion", "footage")
"""What they tell."""
_Seen = tuple[float | None, tuple[tuple[str, str], ...]]
Kept = TypeVar("Kept")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif")
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
"""Of Pillow's: others start programs, whatever a file is called."""


def told(found: vidup.Plan, form: forms.Form, estimate: float | None, more: bool) -> dict[str, Any]:
    """A plan as the page takes it; `more` will be known in a while."""
    info, (height, width), exists = found.info, found.size, found.output.exists()
    return {
        "facts": [list(fact) for fact in found.facts],
        "plan": list(found.streams),
        "notes": [note.removeprefix("note: ") for note in found.notes],
        "duration": round(float(info.end * info.time_base - info.begin), 3) if info is not None else 0.0,
        "frames": found.frames,
        "rate": float(info.rate) if info is not None else 0.0,
        "width": info.width if info is not None else found.table["width"],
        "height": info.height if info is not None else found.table["height"],
        "result": [width, height],
        "output": str(found.output),
        "exists": exists,
        "command": forms.shown(form.arguments(found.input, found.output, overwrite=exists)),
        "estimate": estimate,
        "still": info is None,
        "more": more,
    }


def estimate(found: vidup.Plan, seconds: float | None, whole: bool) -> float | None:
    """How long a file takes by what a frame took; None where that is not known.

    Args:
        whole: all of the frame was computed, of which a run carries a part.
    """
    if seconds is None:
        return None
    return round(seconds * found.frames * (found.computed if whole and found.computed is not None else 1), 2)


class Films:
    """Files that are kept open, the last few that were asked for; any thread may ask."""

    def __init__(self) -> None:
        self._videos: OrderedDict[tuple[str, int, int, str], vidup.Video] = OrderedDict()
        self._lock, self._few = threading.Lock(), threading.Semaphore(_AT_A_TIME)

    def video(self, path: Path, settings: vidup.Settings) -> vidup.Video:
        """A video; raises as `vidup.open`."""
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

    def picture(self, path: Path, at: float, settings: vidup.Settings) -> Image.Image:
        """The picture that is shown at a time, upright, of 8 bits.

        Raises:
            MediaError: the file cannot be read, or ends before.
        """
        with self._few:
            return self._picture(path, at, settings)

    def _picture(self, path: Path, at: float, settings: vidup.Settings) -> Image.Image:
        if is_picture(path):
            try:
                with Image.open(path, formats=_FORMATS) as image:
                    return ImageOps.exif_transpose(image).convert("RGB")
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                raise MediaError(f"{path}: cannot be read: {error}") from None
        video = self.video(path, settings)
        try:
            frame = video.at(at)
        except MediaError:  # it ends before, for which the last one stands
            frame = video[-1]
        return upright(as_image(frame), video.info.rotation)

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            while self._videos:
                self._videos.popitem()[1].close()


class Looks:
    """What would become of files, the last few that were asked for.

    What its pictures look like and how much of them is carried takes seconds to find out, and few settings decide it:
    another thread does, and it is told once it is known.
    """

    def __init__(self, films: Films) -> None:
        self._films = films
        self._plans: OrderedDict[Any, vidup.Plan] = OrderedDict()
        self._seen: OrderedDict[Any, Future[_Seen]] = OrderedDict()
        self._lock = threading.Lock()
        self._beside = ThreadPoolExecutor(1, "pictures")

    def plan(self, source: Path, form: forms.Form, output: Path | None) -> tuple[vidup.Plan, bool]:
        """What would become of a file, and whether more will be known in a while; raises as `vidup.plan`."""
        facts, settings, runtime = source.stat(), form.settings, form.runtime
        file = source, facts.st_mtime_ns, facts.st_size
        key = *file, settings, repr((settings.encoder_options, settings.muxer_options)), runtime, output
        found = self._plans.get(key)
        if found is None:
            film = source if is_picture(source) else self._films.video(source, settings)
            found = vidup.plan(film, output, settings, runtime, pictures=False)
        with self._lock:
            self._plans[key] = found
            _bound(self._plans)
            if found.info is None:
                return found, False
            key = *file, *(getattr(settings, name) for name in _OF_PICTURES)
            if key not in self._seen:
                self._seen[key] = self._beside.submit(self._look, source, settings, runtime)
                for gone in _bound(self._seen):
                    gone.cancel()
            seen = self._seen[key]
        try:
            computed, words = seen.result(_AT_ONCE)
        except (TimeoutError, CancelledError):
            return found, True
        except VidupError:  # a damaged film: told where its frames are wanted
            return found, False
        own = dict(found.facts)
        both = ((head, text if head in _LATER else own.get(head, text)) for head, text in words)
        return replace(found, computed=computed, facts=tuple(both)), False

    def _look(self, source: Path, settings: vidup.Settings, runtime: vidup.Runtime) -> _Seen:
        found = vidup.plan(self._films.video(source, settings), None, settings, runtime)
        return found.computed, found.facts

    def close(self) -> None:
        """Find out nothing more."""
        self._beside.shutdown(wait=False, cancel_futures=True)


def _bound(kept: OrderedDict[Any, Kept]) -> list[Kept]:
    """Let the oldest go, and return them."""
    return [kept.popitem(last=False)[1] for _ in range(len(kept) - _PLANS)]


class Newest:
    """The newest finished pictures of runs, each with what it was made of: kept as they were read together."""

    def __init__(self) -> None:
        self._pairs: OrderedDict[str, tuple[int, str, bytes, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def at(self, name: str, folder: Path) -> str | None:
        """The time of a run's newest picture, in seconds of its input; None where there is none yet."""
        with self._lock:
            with suppress(OSError, ValueError):
                written = (folder / "after.jpg").stat().st_mtime_ns
                if name not in self._pairs or self._pairs[name][0] != written:
                    before, after = (folder / "before.jpg").read_bytes(), (folder / "after.jpg").read_bytes()
                    times = [_comment(before), _comment(after)]
                    if times[0] == times[1]:  # else it is being written: the pair before stands
                        self._pairs[name] = written, times[0], before, after
                        while len(self._pairs) > _OPEN:
                            self._pairs.popitem(last=False)
            return self._pairs[name][1] if name in self._pairs else None

    def picture(self, name: str, folder: Path, which: str) -> bytes:
        """``before.jpg``, enlarged to the result's size, or ``after.jpg``; raises Refused."""
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
    """Whether a file is one of still images, by its name."""
    return path.suffix.lower() in PICTURES


def as_image(frame: vidup.Frame) -> Image.Image:
    """A frame as Pillow has pictures, of 8 bits."""
    rgb = frame.rgb()
    return Image.fromarray(rgb if rgb.dtype.itemsize == 1 else (rgb >> 8).astype("uint8"))


def upright(image: Image.Image, rotation: int) -> Image.Image:
    """A picture as a player shows it, which turns it by so many degrees counter-clockwise."""
    return image.rotate(rotation, expand=True) if rotation % 360 else image


def jpeg(image: Image.Image, height: int | None = None) -> bytes:
    """A picture as JPEG, made smaller where a height is given."""
    if height is not None and height < image.height:
        image = image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
