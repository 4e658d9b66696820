"""Plan a job: decide everything before its first frame."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vidup import engines
from vidup.config import Settings
from vidup.errors import ConfigError
from vidup.frame import Frame, MediaInfo, layout
from vidup.job.disk import check_unchanged, fingerprint_file
from vidup.job.store import Segment
from vidup.media import encoder, probing
from vidup.media.animation_input import is_animation
from vidup.media.compression import settled
from vidup.media.containers import ANIMATIONS, CONTAINERS, MATROSKA, STILLS, check_ending, container_of
from vidup.media.decoding import planar
from vidup.media.delivery import Delivery, plan_delivery
from vidup.media.encoder import Encoding
from vidup.media.opening import check_file
from vidup.media.reading import KEPT, KEPT_BYTES
from vidup.media.sequences import WRITTEN, is_sequence
from vidup.media.streams import REQUESTED
from vidup.picture.geometry import output_size


@dataclass(frozen=True)
class Job(Delivery):
    """All that is decided before the first frame."""

    output: Path
    encoding: Encoding
    facts: dict[str, Any]
    """The input's fingerprint, from `disk.fingerprint_file` before all else."""

    def check_input(self) -> None:
        """Raise a `MediaError` if the input is gone, or has changed since the job was planned."""
        check_unchanged(Path(self.info.path), self.facts)


def span(job: Job, segment: Segment) -> tuple[int, int]:
    """The places in `job.times` of a segment's frames: low <= place < high."""
    low = bisect_left(job.times, int(segment.begin * job.info.time_base / job.unit) - job.offset)
    return low, low + segment.frames * job.frames_each


def default_output(source: Path, settings: Settings) -> Path:
    """The default path of an output: beside the input, with its ending where possible, and the scale in the name."""
    if settings.width and settings.height:
        mark = f"_{settings.width}x{settings.height}"
    elif settings.width or settings.height:
        mark = f"_{settings.width}w" if settings.width else f"_{settings.height}p"
    else:
        mark = f"_x{settings.scale or engines.native_scale(settings):g}"
    ending = source.suffix.lower()
    if is_sequence(source):  # in a folder beside the input's, with the same numbers
        folder = source.parent.resolve()
        return folder.with_name(folder.name + mark) / (source.name if ending in WRITTEN else f"{source.stem}.png")
    if ending == ".gif" and not is_animation(source):
        ending = ".png"
    kept = ending in {*CONTAINERS, *STILLS, *ANIMATIONS}
    return source.with_name(source.stem + mark + (ending if kept else MATROSKA.endings[0]))


def plan(source: Path, target: Path, settings: Settings, known: MediaInfo | None = None) -> Job:
    """Plan a job; nothing is written, no model is loaded.

    Args:
        known: what is in the input, where it was read before.

    Raises:
        ConfigError: the settings do not fit the input or the container.
        MediaError: the input cannot be read.
    """
    check_ending(source, target)
    container = container_of(target).with_options(settings.muxer_options)
    check_file(source)
    facts = fingerprint_file(source)
    info = probing.at_rate(known or probing.probe(source, settings.tolerate_errors), settings.fps)
    if engines.family(settings).invents:
        settings = settled(settings, info)
    delivery = plan_delivery(info, container, settings)
    size = output_size(settings, engines.native_scale(settings), *delivery.input_size, even=True)
    return job_of(delivery, target, settings, size, facts)


def job_of(delivery: Delivery, target: Path, settings: Settings, size: tuple[int, int], facts: dict[str, Any]) -> Job:
    """The job for a delivery.

    `settings` choose the encoder, which has to fit the input, the size (height, width) of the output's pictures, and
    the container; `facts` are the input's fingerprint.
    """
    height, width = size
    encoding = encoder.choose_encoding(settings, _as_shown(delivery), width, height, delivery.container)
    return Job(**vars(delivery), output=target, encoding=encoding, facts=facts)


def _as_shown(delivery: Delivery) -> MediaInfo:
    """The input's facts as the encoder gets its frames: with the output's times, turned."""
    info, aspect = delivery.info, delivery.info.sample_aspect_ratio
    return replace(
        info,
        time_base=delivery.unit,
        pts=delivery.times,
        rate=info.rate * info.time_base / delivery.unit,
        sample_aspect_ratio=1 / aspect if delivery.turn.transpose else aspect,
    )


QUEUE_BYTES = 256 * 2**20
"""The most bytes of frames in the queue before the engine, and in that before an encoder."""

_ENCODER_FRAMES = 64  # in an encoder: its lookahead and its threads
_DECODER_FRAMES = 32  # in the decoder of a segment's proof: reference pictures and its threads


def frame_bytes(frame: Frame) -> int:
    """The bytes of a frame's planes."""
    return sum(plane.nbytes for plane in frame.planes)


def host_memory(job: Job) -> int:
    """The bytes of the host's memory that frames take.

    They are in the queue before the engine, that before the encoder, and the encoder; in these two of the segment
    before, which may not be finished yet, and the decoder of its proof; and in the two decoders of the source that stay
    open from one segment to the next.
    """
    kind = layout(planar(job.encoding.pix_fmt))
    assert kind is not None
    samples = 1 + (kind.planes - 1) / (kind.chroma_x * kind.chroma_y) + kind.alpha
    frame = job.encoding.width * job.encoding.height * samples * (1 if kind.bits == 8 else 2)
    kept = min(KEPT * frame * job.info.width * job.info.height / (job.encoding.width * job.encoding.height), KEPT_BYTES)
    return round(3 * QUEUE_BYTES + frame * (2 * _ENCODER_FRAMES + _DECODER_FRAMES) + 2 * kept)


def pixels(job: Job) -> int:
    """The pixels of the input that a job upscales."""
    return len(job.times) * job.info.height * job.info.width


_BITS = {"ffv1": 12.0, "prores_ks": 5.0, "png": 14.0, "tiff": 24.0, "exr": 40.0, "dpx": 48.0}
"""Bits that a pixel takes with encoders that are not as compact as most."""


def disk(job: Job, frames: int) -> int:
    """Estimate the bytes of disk that a job needs: the segments of `frames` frames, the output, the copied streams.

    It is for ordinary pictures at the default quality: grain takes more, drawings take less.
    """
    bits = _BITS.get(job.encoding.codec, 0.25) * job.encoding.width * job.encoding.height * job.frames_each
    return round(bits / 8 * (frames + job.high - job.low) + int(job.facts["size"]))


NOT_IN_PART = "nothing of it lies in the part that is kept"
"""The reason of a stream that has no packet in the requested part."""


def refuse_losses(job: Job) -> None:
    """Raise a `ConfigError` that names the streams that would be left out although the settings do not request it."""
    lost = [
        f"stream {stream.index} ({stream.name}) would be left out: {stream.reason}"
        for stream in job.streams
        if stream.action == "drop" and stream.reason not in (REQUESTED, NOT_IN_PART)
    ]
    if lost:
        raise ConfigError(f"{job.info.path}: strict: {'; '.join(lost)}")
