"""A video through pipes: Y4M is read or written, frame by frame, without segments."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from vidup.config import Runtime, Settings
from vidup.errors import ConfigError, MediaError, Stopped, system_words
from vidup.frame import Color, Frame
from vidup.job.plan import QUEUE_BYTES, frame_bytes
from vidup.job.progress import Tracker
from vidup.media import decoding, delivery, probing, y4m
from vidup.media.compression import settled
from vidup.media.containers import MATROSKA
from vidup.picture.color import UNSPECIFIED, resolve
from vidup.picture.geometry import Turn, output_size, size_notes
from vidup.prefetch import Consumer, prefetch
from vidup.upscaler import Upscaler

log = logging.getLogger(__name__)

_OF_FILES = ("workers", "ray", "restart", "keep_work", "skip_done", "watch")
_OF_ENCODERS = ("codec", "crf", "bitrate", "encoder_options", "muxer_options")


@dataclass(frozen=True)
class _Source:
    """The input: its head, colours and frames."""

    name: str
    head: y4m.Head
    color: Color
    turn: Turn
    count: int
    """The number of frames; 0 where it is not known."""
    frames: Generator[Frame, None, None]
    faults: list[MediaError] = field(default_factory=list)
    """The error that ended it, which is raised after the frames before it have been upscaled."""


def upscale_piped(
    upscaler: Upscaler, source: Path | BinaryIO, target: BinaryIO, tracker: Tracker, stop: Callable[[], bool]
) -> int:
    """Upscale Y4M, or the pictures of a file, into Y4M.

    Args:
        source: a file, or a stream of Y4M.
        target: a stream to which Y4M is written.
        stop: called after each frame.

    Returns:
        The number of frames that were written.

    Raises:
        ConfigError: a setting is not possible with pipes, or a file has no constant rate.
        MediaError: the input is no Y4M or is cut short, or the reader of the output is gone.
        Stopped: `stop` returned true before the end.
    """
    settings = upscaler.settings
    _check(settings, upscaler.runtime)
    tracker.enter("loading", "-")
    found = _of_file(source, settings) if isinstance(source, Path) else _of_stream(source, settings)
    size = found.turn.size(found.head.height, found.head.width)
    after = output_size(settings, upscaler.engine.scale, *size, even=True)
    pix_fmt = settings.pix_fmt or y4m.nearest(found.head.pix_fmt)
    head = found.head.enlarged(after[1], after[0], pix_fmt)
    color = resolve(found.color, pix_fmt, *after[::-1]) if pix_fmt != found.head.pix_fmt else found.color
    upscaler.reset()
    log.info("%s: %dx%d %s -> %dx%d %s, y4m", found.name, *size[::-1], found.head.pix_fmt, *after[::-1], pix_fmt)
    for note in _notes(found, size_notes(settings, upscaler.engine.scale, size, after)):
        log.info("note: %s", note)
    tracker.expect(found.count, 0, "-")
    tracker.enter("compiling" if upscaler.compiles else "upscaling", first=upscaler.choose(*size).batch)
    frames = upscaler.frames(_watched(found, stop), head.pix_fmt, color, found.turn)
    count = 0
    for _ in _written(frames, replace(head, full_range=color.full_range), target):
        tracker.advance()
        count += 1
    if found.faults:
        tracker.end("-", found.faults[0])
        raise found.faults[0]
    if not count:
        raise MediaError(f"{found.name}: holds no frame")
    tracker.end("-")
    return count


def _watched(found: _Source, stop: Callable[[], bool]) -> Generator[Frame, None, None]:
    """The frames of a source, read ahead in a thread of their own, until it ends or fails, or the job has to stop."""
    with closing(prefetch(found.frames, QUEUE_BYTES, frame_bytes)) as read:
        try:
            for frame in read:
                if stop():
                    raise Stopped
                yield frame
        except MediaError as error:
            found.faults.append(error)


def _written(frames: Iterator[Frame], head: y4m.Head, target: BinaryIO) -> Iterator[Frame]:
    """Write frames in a thread of its own; yields each once it is queued, and ends once all are written."""

    def write(waiting: Iterator[Frame]) -> None:
        try:
            target.write(head.line())
            for frame in waiting:
                y4m.write_frame(target, frame)
        except BrokenPipeError:
            raise MediaError("standard output: its reader is gone") from None
        except (OSError, ValueError) as error:
            reason = system_words(error) if isinstance(error, OSError) else str(error)
            raise MediaError(f"standard output: cannot be written: {reason}") from None

    writer = Consumer(write, QUEUE_BYTES, frame_bytes)
    try:
        for frame in frames:
            writer.put(frame)
            yield frame
        writer.end()
        writer.wait()
    finally:
        writer.close()


def _of_stream(stream: BinaryIO, settings: Settings) -> _Source:
    head = y4m.read_head(stream)
    if head.interlaced and settings.deinterlace != "off":
        raise ConfigError(
            f"{y4m.NAME}: is interlaced: deinterlace it before (ffmpeg -vf bwdif); --deinterlace off takes it as it is"
        )
    tags = Color(UNSPECIFIED, full_range=head.full_range)
    color = resolve(tags, head.pix_fmt, head.width, head.height, settings.matrix, settings.range)
    begin = Fraction(settings.start)
    end = None if settings.until is None else Fraction(settings.until)

    def frames() -> Generator[Frame, None, None]:
        for frame in y4m.read_frames(stream, head, color):
            if end is not None and frame.pts * frame.time_base >= end:
                return
            if frame.pts * frame.time_base >= begin:
                yield frame

    return _Source(y4m.NAME, head, color, Turn(), 0, frames())


def _of_file(path: Path, settings: Settings) -> _Source:
    info = probing.at_rate(probing.probe(path, settings.tolerate_errors), settings.fps)
    if info.variable_rate:
        raise ConfigError(f"{path}: its frames have uneven times, which y4m cannot store; give a file as output")
    planned = delivery.plan_delivery(info, MATROSKA, settings)
    pix_fmt = decoding.planar(info.pix_fmt)
    color = resolve(info.color, pix_fmt, info.width, info.height, settings.matrix, settings.range)
    turn = Turn.of(info.display_matrix)
    fitting = y4m.nearest(pix_fmt)
    head = y4m.Head(
        info.width, info.height, info.rate * planned.frames_each, pix_fmt, y4m.chroma_of(fitting), color.full_range,
        1 / info.sample_aspect_ratio if turn.transpose else info.sample_aspect_ratio,
    )  # fmt: skip
    frames = decoding.decode(info, *planned.span, settled(settings, info))
    return _Source(str(path), head, color, turn, len(planned.times), frames)


def _notes(found: _Source, sizes: Iterator[str]) -> Iterator[str]:
    yield from sizes
    yield "through a pipe nothing is kept: a stopped job starts again from the beginning, and the result is not proved"
    yield "y4m stores pictures at a constant rate: no sound or other streams, no colour matrix, primaries and transfer"
    if found.color.matrix and found.name == y4m.NAME:
        standard = {1: "BT.709", 9: "BT.2020"}.get(found.color.matrix, "BT.601")
        yield f"y4m does not state its colour matrix: {standard} is assumed; --matrix sets another"


def _check(settings: Settings, runtime: Runtime) -> None:
    """Check the settings: some are only for files."""
    if given := [name for name in _OF_FILES if getattr(runtime, name) != getattr(Runtime(), name)]:
        raise ConfigError(f"{given[0]}: a job through pipes has none; leave it out, or give files")
    if ignored := [name for name in _OF_ENCODERS if getattr(settings, name) != getattr(Settings(), name)]:
        log.warning("%s: without effect: y4m is not encoded", ", ".join(ignored))
