"""The main job: plan, upscale, join, verify, deliver."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from vidup import encoder, reader, verify, writer
from vidup.config import Runtime, Settings
from vidup.encoder import Encoding
from vidup.engines import INTERPOLATIONS
from vidup.errors import ConfigError, MediaError
from vidup.frame import Frame, MediaInfo
from vidup.prefetch import prefetch
from vidup.progress import Sink, Tracker
from vidup.reader import planar
from vidup.upscaler import Upscaler, output_size
from vidup.writer import StreamPlan, Trim

log = logging.getLogger(__name__)

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}
"""Endings of the still images that go in and out."""


@dataclass(frozen=True)
class Job:
    """All that is decided before the first frame."""

    output: Path
    container: str
    settings: Settings
    info: MediaInfo
    encoding: Encoding
    streams: tuple[StreamPlan, ...]
    trim: Trim | None

    @property
    def frames(self) -> int:
        """How many frames there will be."""
        if self.trim is None or not self.info.pts:
            return self.info.frames
        unit = self.info.time_base
        return sum(self.trim.begin <= pts * unit < self.trim.end for pts in self.info.pts)


def upscale(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    settings: Settings | None = None,
    *,
    runtime: Runtime | None = None,
    on_progress: Sink | None = None,
) -> Path:
    """Upscale a video, or a still image, into a new file.

    The output path holds the whole, checked result, or what it held before. `KeyboardInterrupt`, and whatever
    `on_progress` raises, stop the job within a batch.

    Args:
        input: a file that ffmpeg reads, or an image.
        output: where to; its ending chooses the container. Beside the input with ``_x4`` in its name where not given.
        settings: what decides the result.
        runtime: where it runs; ``overwrite`` allows to replace the output.
        on_progress: is called with each `Progress` event.

    Returns:
        The path of the output.

    Raises:
        ConfigError, MediaError, EngineError, VerifyError: each with one line that says what, which value, what to do.
    """
    with Upscaler(settings, runtime) as upscaler:
        return upscale_file(upscaler, input, output, on_progress)


def upscale_file(
    upscaler: Upscaler,
    input: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    on_progress: Sink | None = None,
) -> Path:
    """`upscale` with an `Upscaler` that is used again: the model is loaded once for many files."""
    settings = upscaler.settings
    source = Path(input)
    target = Path(output) if output is not None else default_output(source, settings)
    _check_paths(source, target, upscaler.runtime.overwrite)
    if source.suffix.lower() in IMAGES and target.suffix.lower() in IMAGES:
        return _upscale_image(upscaler, source, target, on_progress)
    job = plan(source, target, settings)
    for line in describe(job):
        log.info("%s", line)
    return run(job, upscaler, on_progress)


def plan(source: Path, target: Path, settings: Settings) -> Job:
    """Decide everything about a job; nothing is written, no model is loaded.

    Raises:
        ConfigError: the settings do not fit the input or the container.
        MediaError: the input cannot be read.
    """
    container = writer.CONTAINERS.get(target.suffix.lower())
    if container is None:
        raise ConfigError(
            f"{target}: cannot write {target.suffix or 'a file without an ending'};"
            f" choose a name that ends in {', '.join(writer.CONTAINERS)}"
        )
    info = reader.probe(source)
    native = (settings.scale or 4) if settings.model in INTERPOLATIONS else 4
    height, width = output_size(settings, native, info.height, info.width, even=True)
    encoding = encoder.choose(settings, info, width, height, container)
    writer.check_container(container, encoding)
    trim = _trim(settings, info)
    streams = tuple(writer.plan_streams(info, container, trimmed=trim is not None))
    return Job(target, container, settings, info, encoding, streams, trim)


def describe(job: Job) -> list[str]:
    """What will be done and what will be lost, a line each."""
    info, encoding = job.info, job.encoding
    lines = [
        f"{info.path}: {info.width}x{info.height} {info.pix_fmt}, {job.frames} frames"
        f" -> {encoding.width}x{encoding.height} {encoding.pix_fmt}, {encoding.codec}, {job.container}"
    ]
    lines += [f"note: stream {s.index} ({s.name}) is left out: {s.reason}" for s in job.streams if s.action == "drop"]
    lines += [f"note: {loss}" for loss in encoder.loses(info, encoding)]
    if not info.color_tagged and not info.pix_fmt.startswith(("gray", "gbr", "rgb", "bgr", "pal")):
        standard = "BT.709" if encoding.color.matrix == 1 else "BT.601"
        lines.append(f"note: the file does not say its colour matrix: {standard} is assumed from its size, and written")
    if info.interlaced:
        lines.append("note: the video is interlaced and is upscaled as it is; deinterlace it first for a clean picture")
    if job.container in ("matroska", "webm") and (info.time_base * 1000).denominator != 1:
        lines.append(f"note: {job.container} counts in milliseconds: times are rounded by up to 0.5 ms")
    return lines


def run(job: Job, upscaler: Upscaler, on_progress: Sink | None = None) -> Path:
    """Do what was planned.

    Raises:
        MediaError, EngineError, VerifyError: and nothing is at the output path that was not there before.
    """
    tracker = Tracker(on_progress, job.frames, str(job.output))
    with _work_folder(job.output) as folder:
        tracker.enter("loading")
        upscaler.reset()
        tracker.enter("upscaling")
        segment, times = folder / "00000.seg", []
        for frame in _upscale_segment(job, upscaler, segment):
            times.append(frame.pts * frame.time_base)
            tracker.advance()
        tracker.enter("joining")
        whole = folder / f"whole{job.output.suffix}"
        writer.join(whole, job.container, job.encoding, [segment], job.info, job.streams, job.trim)
        size = (job.encoding.height, job.encoding.width)
        verify.check_output(whole, job.container, times, size, job.info, job.streams, job.trim)
        _deliver(whole, job.output)
    tracker.enter("done")
    return job.output


def _upscale_segment(job: Job, upscaler: Upscaler, path: Path) -> Iterator[Frame]:
    """A frame's way: decode -> upscale -> encode. Yields each frame once the encoder has it."""
    info, unit = job.info, job.info.time_base
    begin = end = None
    offset = 0
    if job.trim is not None:
        begin, end = round(job.trim.begin / unit), round(job.trim.end / unit)
        offset = begin
    # Closed here, not when they are collected: the traceback of an error would keep their threads.
    with closing(prefetch(reader.decode(info, begin, end), depth=2 * upscaler.engine.clip_length)) as decoded:
        larger = upscaler.frames(decoded, planar(job.encoding.pix_fmt), job.encoding.color)
        with closing(prefetch((replace(frame, pts=frame.pts - offset) for frame in larger), depth=2)) as frames:
            yield from writer.encode_segment(frames, job.encoding, path)


def _trim(settings: Settings, info: MediaInfo) -> Trim | None:
    """The part that is asked for, moved to where its frames begin and end."""
    if settings.start == 0 and settings.duration is None:
        return None
    if not info.pts:
        raise ConfigError(
            f"{info.path}: its packets bear no times, so that start and duration cannot be used;"
            " put it into a container such as mkv first"
        )
    unit = info.time_base
    first = info.begin + Fraction(settings.start).limit_denominator(1_000_000)
    last = None if settings.duration is None else first + Fraction(settings.duration).limit_denominator(1_000_000)
    kept = [pts for pts in info.pts if pts * unit >= first and (last is None or pts * unit < last)]
    if not kept:
        raise ConfigError(
            f"start = {settings.start:g}: no frame begins there; the video lasts"
            f" {float(info.end * unit - info.begin):.3f} s"
        )
    after = next((pts for pts in info.pts if pts > kept[-1]), info.end)
    return Trim(kept[0] * unit, after * unit)


def default_output(source: Path, settings: Settings) -> Path:
    """The output's name where none is given: beside the input, in its family of containers, with the scale in it."""
    mark = f"_{settings.height}p" if settings.height else f"_x{settings.scale or 4:g}"
    ending = source.suffix.lower()
    return source.with_name(source.stem + mark + (ending if ending in {*writer.CONTAINERS, *IMAGES} else ".mkv"))


def _check_paths(source: Path, target: Path, overwrite: bool) -> None:
    if not source.exists():
        raise MediaError(f"{source}: there is no such file")
    if target.is_dir():
        raise ConfigError(f"{target}: is a folder; give a file name for the output")
    if target.exists() and target.samefile(source):
        raise ConfigError(f"{target}: is the input; give the output another name")
    if target.exists() and not overwrite:
        raise ConfigError(f"{target}: exists; add -y (overwrite) to replace it, or give another name")
    if not target.parent.is_dir():
        raise ConfigError(f"{target.parent}: there is no such folder for the output; make it first")
    if not os.access(target.parent, os.W_OK):
        raise MediaError(f"{target.parent}: cannot be written to; choose another folder for the output")


@contextmanager
def _work_folder(output: Path) -> Iterator[Path]:
    """A folder beside the output, on the same disk, so that the result moves into place in one step."""
    folder = output.with_name(output.name + ".vidup")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise MediaError(f"{folder}: cannot be made: {error.strerror or error}") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _deliver(whole: Path, output: Path) -> None:
    try:
        with whole.open("rb+") as file:
            os.fsync(file.fileno())
        whole.replace(output)
    except OSError as error:
        raise MediaError(f"{output}: cannot be written: {error.strerror or error}") from error


def _upscale_image(upscaler: Upscaler, source: Path, target: Path, on_progress: Sink | None) -> Path:
    from PIL import Image, UnidentifiedImageError

    tracker = Tracker(on_progress, 1, str(target))
    try:
        with Image.open(source) as image:
            image.load()
            pictures = getattr(image, "n_frames", 1)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(f"{source}: is no image, or is damaged: {error}") from None
    if pictures > 1:
        raise ConfigError(f"{source}: holds {pictures} pictures; give an output that ends in .mp4 or .mkv")
    if image.mode.startswith("I"):
        log.info("note: 16 bits a sample become 8")
    options: dict[str, Any] = {key: image.info[key] for key in ("icc_profile", "exif", "dpi") if key in image.info}
    with _work_folder(target) as folder:
        tracker.enter("loading")
        upscaler.reset()
        tracker.enter("upscaling")
        result = upscaler.image(image)
        if target.suffix.lower() in (".jpg", ".jpeg", ".bmp") and result.mode == "RGBA":
            log.warning("%s: has no transparency: the picture is made opaque", target)
            result = result.convert("RGB")
        if target.suffix.lower() in (".jpg", ".jpeg", ".webp"):
            options["quality"] = 95
        whole = folder / f"whole{target.suffix}"
        result.save(whole, **options)
        tracker.advance()
        _deliver(whole, target)
    tracker.enter("done")
    return target
