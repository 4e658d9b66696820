"""Decide everything about a job before its first frame: `plan`, and tell it: `facts`, `describe`."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from vidup import color, encoder, engines, probing, reader, streams, writer
from vidup.config import Runtime, Settings
from vidup.conversion import StreamPlan, Trim
from vidup.encoder import Encoding
from vidup.errors import ConfigError, MediaError
from vidup.frame import MediaInfo
from vidup.reader import planar
from vidup.upscaler import Turn, output_size

_FOREVER = Fraction(2**40)  # seconds


@dataclass(frozen=True)
class Delivery:
    """What has to be in the output, however large its pictures are."""

    info: MediaInfo
    container: str
    """``mp4``, ``mov``, ``matroska`` or ``webm``."""
    settings: Settings
    streams: tuple[StreamPlan, ...]
    trim: Trim | None
    """The part of the input that is kept; None is all, at its own times."""
    low: int
    high: int
    """The places in `info.pts` of the frames that are kept: low <= place < high."""
    unit: Fraction
    """Seconds in one unit of `times`."""
    times: tuple[int, ...]
    """When each frame of the output is shown, rising."""

    @property
    def offset(self) -> int:
        """What is taken from a frame's time, in `unit`, so that a part begins at 0."""
        return 0 if self.trim is None else round(self.trim.begin / self.unit)

    @property
    def turn(self) -> Turn:
        """How pictures are turned to stand upright, where the rotation is baked in."""
        return Turn.of(self.info.display_matrix) if self.settings.bake_rotation else Turn()


@dataclass(frozen=True)
class Job(Delivery):
    """All that is decided before the first frame."""

    output: Path
    encoding: Encoding


def check_paths(source: Path, target: Path, overwrite: bool) -> None:
    """See that the input is there and the output can be.

    Raises:
        ConfigError: the output is a folder, the input, or there already, or its folder is not there.
        MediaError: the input is not there, or the output's folder cannot be written to.
        OSError: a name that is too long, a folder that must not be entered.
    """
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


def plan(source: Path, target: Path, settings: Settings) -> Job:
    """Decide everything about a job; nothing is written, no model is loaded.

    Raises:
        ConfigError: the settings do not fit the input or the container.
        MediaError: the input cannot be read.
    """
    if target.suffix.lower() not in writer.CONTAINERS:
        raise ConfigError(
            f"{target}: cannot write {target.suffix or 'a file without an ending'};"
            f" choose a name that ends in {', '.join(writer.CONTAINERS)}"
        )
    info = probing.probe(source, settings.tolerate_errors)
    delivery = deliver(info, writer.CONTAINERS[target.suffix.lower()], settings)
    native = engines.native_scale(settings)
    height, width = output_size(settings, native, *delivery.turn.size(info.height, info.width), even=True)
    encoding = encoder.choose(settings, _as_shown(delivery), width, height, delivery.container)
    writer.check_container(delivery.container, encoding)
    return Job(**vars(delivery), output=target, encoding=encoding)


def deliver(info: MediaInfo, container: str, settings: Settings) -> Delivery:
    """What has to be in an output.

    Raises:
        ConfigError: no frame lies in the part that is asked for.
    """
    low, high = _part(settings, info)
    unit, spans = reader.schedule(info, settings, low, high)
    trim = None
    if settings.start > 0 or settings.duration is not None:
        trim = Trim(info.pts[low] * info.time_base, _end_of_part(settings, info, high))
    elif info.pts[0] < 0 and container in ("mp4", "mov"):  # they hide what lies before 0
        trim = Trim(min(info.begin, info.pts[0] * info.time_base), _FOREVER)
    offset = 0 if trim is None else round(trim.begin / unit)
    return Delivery(
        info=info,
        container=container,
        settings=settings,
        streams=tuple(streams.plan_streams(info, container, settings)),
        trim=trim,
        low=low,
        high=high,
        unit=unit,
        times=tuple(time - offset for time in spans),
    )


def _as_shown(delivery: Delivery) -> MediaInfo:
    """The input as the encoder sees it: with fields as frames, moved to 0, turned."""
    info, aspect = delivery.info, delivery.info.sample_aspect_ratio
    return replace(
        info,
        time_base=delivery.unit,
        pts=delivery.times,
        rate=info.rate * info.time_base / delivery.unit,
        sample_aspect_ratio=1 / aspect if delivery.turn.transpose else aspect,
    )


def describe(job: Job) -> list[str]:
    """What will be done, and what will be converted or lost, a line each."""
    info, encoding = job.info, job.encoding
    lines = [
        f"{info.path}: {info.width}x{info.height} {info.pix_fmt}, {len(job.times)} frames"
        f" -> {encoding.width}x{encoding.height} {encoding.pix_fmt}, {encoding.codec}, {job.container}"
    ]
    lines += [f"note: {note}" for note in info.notes]
    lines += [f"note: stream {s.index} ({s.name}) is left out: {s.reason}" for s in job.streams if s.action == "drop"]
    lines += [
        f"note: stream {s.index} ({s.name}) is converted to {s.encoder}: {s.reason}"
        for s in job.streams
        if s.action == "convert"
    ]
    lines += [f"note: {loss}" for loss in encoder.loses(info, encoding)]
    lines += [f"note: {limit}" for limit in encoder.limits(encoding)]
    lines += [f"note: {kind} is lost: no encoder here carries it" for kind in info.dynamic_hdr]
    if not info.color_tagged and job.settings.matrix == "auto" and info.pix_fmt.startswith(("yuv", "nv", "p0", "uyvy")):
        standard = "BT.709" if encoding.color.matrix == 1 else "BT.601"
        lines.append(
            f"note: the file does not say its colour matrix: {standard} is assumed from its size, and written;"
            " --matrix says another"
        )
    if info.field_order != "progressive":
        how = {"frame": "deinterlaced, a picture a frame", "field": "deinterlaced, a picture a field"}
        lines.append(f"note: the video is interlaced: {how.get(job.settings.deinterlace, 'upscaled as it is')}")
    if job.trim is not None and job.settings.start == 0 and job.settings.duration is None:
        late = float(-job.trim.begin)
        lines.append(f"note: all streams begin {late:.3f} s later: {job.container} has no time below 0")
    if job.container in ("matroska", "webm") and (job.unit * 1000).denominator != 1:
        lines.append(f"note: {job.container} counts in milliseconds: times are rounded by up to 0.5 ms")
    if encoding.sample_aspect_ratio != 1 and not writer.keeps_aspect(job.container, encoding.codec):
        lines.append(
            f"note: {job.container} with {encoding.codec} does not keep the pixel aspect"
            f" {encoding.sample_aspect_ratio}: players will show square pixels"
        )
    return lines


QUEUE_BYTES = 256 * 2**20
"""Of frames that wait before the engine at the most, and as many before an encoder."""

_ENCODER_FRAMES = 64  # that an encoder holds: its lookahead and its threads


def host_memory(job: Job) -> int:
    """Bytes of the host's memory that frames take on their way.

    One queue before the engine, one behind it, and what the encoder looks ahead; these two again for the segment
    before, which may not be written yet.
    """
    kind = color.layout(planar(job.encoding.pix_fmt))
    assert kind is not None
    samples = 1 + (kind.planes - 1) / (kind.chroma_x * kind.chroma_y)
    frame = job.encoding.width * job.encoding.height * samples * (1 if kind.bits == 8 else 2)
    return round(3 * QUEUE_BYTES + 2 * frame * _ENCODER_FRAMES)


def device_memory(job: Job, runtime: Runtime) -> int | None:
    """Bytes of the device that the model will take; None where only the loaded model tells."""
    return engines.foresee(job.settings, runtime, *job.turn.size(job.info.height, job.info.width))


def disk(job: Job, frames: int) -> int:
    """Bytes that a job will take: what `frames` of the source's frames become, twice, and the streams that are copied.

    An estimate for ordinary pictures at the default quality: grain takes more, drawings take less.
    """
    bits = {"ffv1": 12.0, "prores_ks": 5.0}.get(job.encoding.codec, 0.25)  # a pixel
    pixels = job.encoding.width * job.encoding.height
    encoded = pixels * bits / 8 * len(job.times) / (job.high - job.low)
    return round(encoded * frames + encoded * (job.high - job.low) + Path(job.info.path).stat().st_size)


def lost(job: Job) -> list[str]:
    """The streams that do not arrive, though nobody asked for that, in words."""
    return [
        f"stream {stream.index} ({stream.name}) would be left out: {stream.reason}"
        for stream in job.streams
        if stream.action == "drop" and stream.reason != "as asked for"
    ]


def _part(settings: Settings, info: MediaInfo) -> tuple[int, int]:
    """The places in `info.pts` of the frames that are asked for."""
    if settings.start == 0 and settings.duration is None:
        return 0, len(info.pts)
    first = info.begin + Fraction(settings.start).limit_denominator(1_000_000)
    low = _place(info, first)
    high = len(info.pts)
    if settings.duration is not None:
        high = _place(info, first + Fraction(settings.duration).limit_denominator(1_000_000))
    if low >= high:
        raise ConfigError(
            f"start = {settings.start:g}: no frame begins there; the video lasts"
            f" {float(info.end * info.time_base - info.begin):.3f} s"
        )
    return low, high


def _end_of_part(settings: Settings, info: MediaInfo, high: int) -> Fraction:
    """Where a part's sound and texts end, in seconds: with its last frame, or after it where nothing was cut there."""
    if high < len(info.pts):
        return info.pts[high] * info.time_base
    if settings.duration is None:
        return _FOREVER
    asked = info.begin + Fraction(settings.start + settings.duration).limit_denominator(1_000_000)
    return max(info.end * info.time_base, asked)


def _place(info: MediaInfo, second: Fraction) -> int:
    """The place of the first frame that does not begin before a moment."""
    return bisect_left(info.pts, -(-second // info.time_base))


def facts(job: Job, runtime: Runtime) -> Iterator[str]:
    """What is in a file and what becomes of it, a line each."""
    info, encoding = job.info, job.encoding
    kind = "variable" if info.variable_rate else "constant"
    light = "full" if info.color.full_range else "limited"
    codes = f"{info.color.matrix}/{info.color.primaries}/{info.color.transfer}" if info.color_tagged else "untagged"
    transfer = {16: ", PQ", 18: ", HLG"}.get(info.color.transfer, "")
    yield f"{info.path}: {info.container}, {info.frames} frames, {float(info.rate):.3f} a second ({kind})"
    yield (
        f"  picture   {info.width}x{info.height} {info.pix_fmt}, {light} range, colour {codes}{transfer}"
        + (", HDR10 data" if info.hdr else "")
    )
    yield (
        f"  shown     rotation {info.rotation}, pixels {info.sample_aspect_ratio}, fields {info.field_order},"
        f" begins at {float(info.begin):.3f} s"
    )
    yield (
        f"  output    {job.output}: {encoding.width}x{encoding.height} {encoding.pix_fmt}, {encoding.codec},"
        f" {len(job.times)} frames"
    )
    device = device_memory(job, runtime)
    model = "what vidup bench --input tells" if device is None else f"{device / 2**30:.2f} GiB"
    yield (
        f"  takes     about {disk(job, job.high - job.low) / 2**30:.2f} GiB of disk,"
        f" {host_memory(job) / 2**30:.2f} GiB of memory for frames on their way, and for the model {model}"
    )
    for stream in job.streams:
        reason = f": {stream.reason}" if stream.reason else ""
        to = f" to {stream.encoder}" if stream.encoder else ""
        detail = info.streams[stream.index].detail
        yield f"  stream {stream.index}  {stream.action}{to:8} {stream.name} {detail}".rstrip() + reason
    if info.chapters:
        yield f"  chapters  {info.chapters}"
