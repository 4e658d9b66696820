"""Makes previews: one frame, or two seconds, before and after. The model stays loaded between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

import vidup
from vidup.errors import ConfigError
from vidup.ui.films import Films, is_picture
from vidup.ui.forms import Form

if TYPE_CHECKING:
    from vidup.job.outlook import Plan

SECONDS = 2.0
"""Of a moving preview."""
_ABANDONED = 120.0
"""Seconds after which a preview that no tab polls is stopped. Hidden tabs poll once a minute."""
_QUICK = 10.0
"""Seconds under which a picture is made a second time, to be timed."""
_AS_A_PICTURE: dict[str, Any] = {
    **{"codec": None, "crf": None, "bitrate": None, "pix_fmt": None, "encoder_options": {}, "muxer_options": {}},
    **{"streams": None, "drop_streams": None, "start": 0.0, "duration": None, "end": None},
}
"""Settings without effect for a single picture."""
_AS_A_CLIP: dict[str, Any] = {
    **_AS_A_PICTURE,
    **{"codec": "libx264", "crf": 14, "pix_fmt": "yuv420p", "encoder_options": {"preset": "veryfast"}},
    **{"bake_rotation": True, "no_audio": True, "no_subtitles": True, "duration": SECONDS},
}
"""An MP4 that browsers play."""
_AS_A_PREVIEW: dict[str, Any] = {
    **{"workers": 1, "ray": None, "overwrite": True, "restart": False, "skip_done": False, "keep_work": False},
    **{"report": False, "watch": None, "strict": False, "verify": "fast"},
}
_PLAIN = ("nearest", "bilinear", "bicubic", "lanczos")
"""Models without use for the quantiser."""

State = Literal["waiting", "running", "done", "stopped", "failed"]


@dataclass
class Preview:
    """A preview and its progress."""

    id: str
    source: Path
    at: float
    form: Form
    kind: Literal["frame", "moving"]
    folder: Path
    state: State = "waiting"
    done: float = 0.0
    """Progress, 0 to 1."""
    line: str = ""
    error: str = ""
    seconds_a_frame: float | None = None
    """Measured without loading the model, and without the encoder's start."""
    size: tuple[int, int] = (0, 0)
    """Width and height of the result."""
    rate: float = 0.0
    cancelled: bool = False
    asked: float = field(default_factory=time.monotonic)
    """When it was last polled, by `time.monotonic`."""

    def stopping(self) -> bool:
        """Whether it was cancelled or abandoned."""
        return self.cancelled or time.monotonic() - self.asked > _ABANDONED

    def estimate(self, found: Plan) -> float | None:
        """How long a run of the file takes, in seconds, by its plan; None if unknown."""
        if self.seconds_a_frame is None:
            return None
        # A single frame is computed as a whole, while a run carries a part of it.
        computed = found.computed if self.kind == "frame" and found.computed is not None else 1
        return round(self.seconds_a_frame * found.frames * computed, 2)


class Maker:
    """Makes previews, one at a time; `stop` is that of `Upscaler`."""

    def __init__(self, films: Films, stop: Callable[[], bool]) -> None:
        self._films, self._stop = films, stop
        self._loaded: tuple[Any, vidup.Upscaler] | None = None

    def make(self, preview: Preview) -> None:
        """Make the files of a preview; raises as `Upscaler.upscale`."""
        preview.folder.mkdir(parents=True)
        (self._frame if preview.kind == "frame" else self._moving)(preview)

    def preload(self) -> None:
        """Load `mini`, and with it the libraries of all diffusion models, whose import takes longer than a preview."""
        settings, runtime = vidup.Settings.preset("mini"), replace(vidup.Runtime(), **_AS_A_PREVIEW)
        upscaler = vidup.Upscaler(settings, runtime, stop=self._stop)
        upscaler.reset()
        self._loaded = _key(settings, runtime), upscaler

    def unload(self) -> None:
        """Unload the model and free its memory."""
        if self._loaded is not None:
            self._loaded[1].close()
            self._loaded = None

    def _frame(self, preview: Preview) -> None:
        """Write before.png (bicubic) and after.png."""
        image = self._films.picture(preview.source, preview.at, preview.form.settings, exact=True)
        source, after = preview.folder / "source.png", preview.folder / "after.bmp"
        image.save(source, compress_level=1)
        settings = preview.form.settings.replace(**_AS_A_PICTURE)
        if settings.quantiser == "auto":
            settings = settings.replace(quantiser=self._quantiser(preview))
        upscaler = self._upscale(preview, settings, source, after)
        with Image.open(after) as result:
            preview.size = result.size
            result.save(preview.folder / "after.png", compress_level=1)
        image.resize(preview.size, Image.Resampling.BICUBIC).save(preview.folder / "before.png", compress_level=1)
        after.unlink()
        if preview.seconds_a_frame and preview.seconds_a_frame < _QUICK:
            # A model prepares itself at the first picture of a size, which no other frame of the film will wait for.
            began = time.monotonic()
            upscaler(image)
            preview.seconds_a_frame = round(min(preview.seconds_a_frame, time.monotonic() - began), 4)

    def _moving(self, preview: Preview) -> None:
        """Write before.mp4 (bicubic) and after.mp4, which have equal frames."""
        if is_picture(preview.source):
            raise ConfigError(f"{preview.source}: is a still image; look at its frame")
        given = preview.form.settings
        info = self._films.video(preview.source, given).info
        length = float(info.end * info.time_base - info.begin)
        start = max(0.0, min(preview.at - SECONDS / 2, length - SECONDS))
        settings = given.replace(**{**_AS_A_CLIP, "start": start})
        after, before = preview.folder / "after.mp4", preview.folder / "before.mp4"
        self._upscale(preview, settings, preview.source, after)
        plain = settings.replace(model="bicubic")
        if settings.scale is None and settings.height is None and settings.width is None:
            plain = plain.replace(scale=vidup.Upscaler(settings).size(1000, 1000)[0] / 1000)  # the model's own
        with vidup.Upscaler(plain, replace(preview.form.runtime, **_AS_A_PREVIEW), stop=self._stop) as upscaler:
            upscaler.upscale(preview.source, before)
        with vidup.open(after) as video:
            preview.size, preview.rate = (video.info.width, video.info.height), float(video.info.rate)

    def _quantiser(self, preview: Preview) -> float | Literal["auto"]:
        """How coarsely the picture was encoded, as a run reads it from the file; auto where nobody knows."""
        settings = preview.form.settings
        if settings.model in _PLAIN:
            return "auto"
        if is_picture(preview.source):
            found = vidup.plan(preview.source, settings=settings).table.get("footage", {}).get("quantiser")
        else:
            found = self._films.frame(preview.source, preview.at, settings).quantiser
        return "auto" if found is None else found

    def _upscale(self, preview: Preview, settings: vidup.Settings, source: Path, after: Path) -> vidup.Upscaler:
        """Upscale a file with the loaded model, if it is the same; otherwise that is unloaded first."""
        runtime = replace(preview.form.runtime, **_AS_A_PREVIEW)
        key = _key(settings, runtime)
        if self._loaded is not None and self._loaded[0] == key:
            upscaler = self._loaded[1].replace(**{one.name: getattr(settings, one.name) for one in fields(settings)})
        else:
            self.unload()
            upscaler = vidup.Upscaler(settings, runtime, stop=self._stop)
            self._loaded = key, upscaler
        progress = _Progress(preview)
        upscaler.upscale(source, after, on_progress=progress)
        self._loaded = key, upscaler  # its prompt is encoded
        preview.seconds_a_frame = round(progress.seconds(), 4)
        return upscaler


def _key(settings: vidup.Settings, runtime: vidup.Runtime) -> tuple[Any, ...]:
    """Previews with an equal key share the loaded model."""
    key = *(getattr(settings, name) for name in ("model", "revision", "dtype", "vae", "vae_attention")), runtime
    if settings.model == "x2" or Path(settings.model).is_file():  # cannot load the text encoder separately
        key += settings.prompt, settings.negative_prompt, settings.tokenizer, settings.guidance_scale > 0
    return key


class _Progress:
    """Updates a preview with the progress events of its job."""

    def __init__(self, preview: Preview) -> None:
        self._preview, self._began = preview, 0.0
        self._times: list[tuple[int, float]] = []  # of the first frame and of the last

    def __call__(self, event: vidup.Progress) -> None:
        preview, now = self._preview, time.monotonic()
        if event.state in ("loading", "compiling"):
            preview.line = f"{event.state} the model"
            return
        if event.state == "upscaling":
            self._began = self._began or now
            if event.frame and (not self._times or event.frame > self._times[-1][0]):
                self._times = [*self._times[:1], (event.frame, now)]
        share = (event.frame + (event.step / event.steps if event.steps else 0)) / max(1, event.frames)
        preview.done = round(min(share, 0.99), 3)
        step = f", step {event.step} of {event.steps}" if event.step else ""
        count = f"frame {min(event.frame + 1, event.frames)} of {event.frames}" if event.frames > 1 else "the frame"
        preview.line = f"upscaling {count}{step}" if event.state == "upscaling" else "writing the result"

    def seconds(self) -> float:
        """Seconds a frame, without the lead-in frames."""
        (first, began), (last, ended) = self._times[0], self._times[-1]
        return (ended - began) / (last - first) if last > first else ended - self._began
