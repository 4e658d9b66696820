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
_PLANS = 32
_AT_ONCE = 0.2
"""Seconds that are waited for what takes long."""
_OF_MOTION = (
    *("model", "temporal", "trust", "refresh", "start", "duration", "end"),
    *("matrix", "range", "deinterlace", "fps", "bake_rotation", "tolerate_errors"),
)
"""Settings that decide how much of a film is carried."""
Kept = TypeVar("Kept")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif")
VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".3gp", ".asf", ".avi", ".dv", ".f4v", ".flv", ".h264", ".hevc"),
    *(".m2ts", ".m2v", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogg", ".ogv", ".ts", ".vob", ".wmv", ".y4m"),
)
"""Endings of what can be upscaled; a file of another may be chosen all the same."""


class Looks:
    """What would become of files, the last few that were asked for.

    How much of a film is carried along its motion takes seconds to find out, and hangs on few settings: it is found out
    beside, and told once it is known.
    """

    def __init__(self) -> None:
        self._plans: OrderedDict[Any, vidup.Plan] = OrderedDict()
        self._motions: OrderedDict[Any, Future[vidup.Plan]] = OrderedDict()
        self._lock = threading.Lock()
        self._beside = ThreadPoolExecutor(1, "motion")

    def plan(self, source: Path, form: forms.Form, output: Path | None) -> tuple[vidup.Plan, bool]:
        """What would become of a file, and whether more will be known in a while; raises as `vidup.plan`."""
        file = source, source.stat().st_mtime_ns, source.stat().st_size
        settings, runtime = form.settings, form.runtime
        key = *file, settings, repr((settings.encoder_options, settings.muxer_options)), runtime, output
        known = self._plans.get(key)
        found = known or vidup.plan(source, output, settings, runtime, motion=False)
        with self._lock:
            self._plans[key] = found
            _bound(self._plans)
            if "motion" not in dict(found.facts):
                return found, False
            key = *file, *(getattr(settings, name) for name in _OF_MOTION)
            if key not in self._motions:
                self._motions[key] = self._beside.submit(vidup.plan, source, None, settings, runtime)
                for gone in _bound(self._motions):
                    gone.cancel()
            motion = self._motions[key]
        try:
            seen = motion.result(_AT_ONCE)
        except (TimeoutError, CancelledError):
            return found, True
        except VidupError:  # which the notes tell, where it is the file's
            return found, False
        facts = ((head, dict(seen.facts)["motion"] if head == "motion" else text) for head, text in found.facts)
        return replace(found, computed=seen.computed, facts=tuple(facts)), False

    def close(self) -> None:
        """Find out nothing more."""
        self._beside.shutdown(wait=False, cancel_futures=True)


def _bound(kept: OrderedDict[Any, Kept]) -> list[Kept]:
    """Let the oldest go, and return them."""
    return [kept.popitem(last=False)[1] for _ in range(len(kept) - _PLANS)]


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
                with Image.open(path) as image:
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
    with Image.open(io.BytesIO(data)) as image:
        return bytes(image.info.get("comment", b"")).decode("ascii", "replace")


def is_picture(path: Path) -> bool:
    """Whether a file is one of still images, by its name."""
    return path.suffix.lower() in _PICTURES


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
