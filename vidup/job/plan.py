"""Decide everything about a job before its first frame."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vidup import engines
from vidup.config import Runtime, Settings
from vidup.frame import MediaInfo, layout
from vidup.job.disk import check_unchanged, fingerprint_file
from vidup.job.store import Segment
from vidup.media import encoder, probing
from vidup.media.containers import check_ending, container_of
from vidup.media.decoding import planar
from vidup.media.delivery import Delivery, plan_delivery
from vidup.media.encoder import Encoding
from vidup.media.opening import check_file
from vidup.media.quantiser import quantiser_step
from vidup.media.reading import KEPT, KEPT_BYTES
from vidup.picture.geometry import output_size


@dataclass(frozen=True)
class Job(Delivery):
    """All that is decided before the first frame."""

    output: Path
    encoding: Encoding
    facts: dict[str, Any]
    """Of the input's file, as `disk.fingerprint_file` read them before all else."""

    def check_input(self) -> None:
        """See that the input is what was planned for.

        Raises:
            MediaError: it is gone, or another file is there.
        """
        check_unchanged(Path(self.info.path), self.facts)


def span(job: Job, segment: Segment) -> tuple[int, int]:
    """The places in `job.times` of a segment's frames: low <= place < high."""
    low = bisect_left(job.times, int(segment.begin * job.info.time_base / job.unit) - job.offset)
    return low, low + segment.frames * (len(job.times) // (job.high - job.low))


def plan(source: Path, target: Path, settings: Settings) -> Job:
    """Decide everything about a job; nothing is written, no model is loaded.

    Raises:
        ConfigError: the settings do not fit the input or the container.
        MediaError: the input cannot be read.
    """
    check_ending(source, target)
    container = container_of(target).with_options(settings.muxer_options)
    check_file(source)
    facts = fingerprint_file(source)
    info = probing.at_rate(probing.probe(source, settings.tolerate_errors), settings.fps)
    if settings.quantiser == "auto" and engines.family(settings).invents:
        settings = replace(settings, quantiser=quantiser_step(info))
    delivery = plan_delivery(info, container, settings)
    native = engines.native_scale(settings)
    size = output_size(settings, native, *delivery.turn.size(info.height, info.width), even=True)
    return job_of(delivery, target, settings, size, facts)


def job_of(delivery: Delivery, target: Path, settings: Settings, size: tuple[int, int], facts: dict[str, Any]) -> Job:
    """The job that makes a delivery.

    Args:
        settings: choose the encoder.
        size: (height, width) of the output's pictures.
        facts: of the input's file.

    Raises:
        ConfigError: the encoder does not fit the input, the size or the container.
    """
    height, width = size
    encoding = encoder.choose_encoding(settings, _as_shown(delivery), width, height, delivery.container)
    return Job(**vars(delivery), output=target, encoding=encoding, facts=facts)


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


QUEUE_BYTES = 256 * 2**20
"""Of frames that wait before the engine at the most, and as many before an encoder."""

_ENCODER_FRAMES = 64  # that an encoder holds: its lookahead and its threads
_DECODER_FRAMES = 32  # that the decoder of a segment's proof holds: reference pictures and its threads


def host_memory(job: Job) -> int:
    """Bytes of the host's memory that frames take on their way.

    One queue before the engine, one behind it, and what the encoder looks ahead; these two again for the segment
    before, which may not be written yet; what its proof decodes; and the last frames of the source of the two decoders
    that stay open from one segment to the next.
    """
    kind = layout(planar(job.encoding.pix_fmt))
    assert kind is not None
    samples = 1 + (kind.planes - 1) / (kind.chroma_x * kind.chroma_y) + kind.alpha
    frame = job.encoding.width * job.encoding.height * samples * (1 if kind.bits == 8 else 2)
    kept = min(KEPT * frame * job.info.width * job.info.height / (job.encoding.width * job.encoding.height), KEPT_BYTES)
    return round(3 * QUEUE_BYTES + frame * (2 * _ENCODER_FRAMES + _DECODER_FRAMES) + 2 * kept)


def pixels(job: Job) -> int:
    """Pixels of the input that a job upscales."""
    return len(job.times) * job.info.height * job.info.width


def device_memory(job: Job, runtime: Runtime) -> int | None:
    """Bytes of the device that the model will take; None where it is known of the loaded model alone."""
    planner, size = engines.foresee(job.settings, runtime, pixels(job)), job.turn.size(job.info.height, job.info.width)
    return planner.planned(planner.choose(*size), *size) if planner is not None else None


_BITS = {"ffv1": 12.0, "prores_ks": 5.0, "png": 14.0, "tiff": 24.0, "exr": 40.0, "dpx": 48.0}
"""That a pixel takes, of encoders that take more than most."""


def disk(job: Job, frames: int) -> int:
    """Bytes that a job will take: what `frames` of the source's frames become, twice, and the streams that are copied.

    An estimate for ordinary pictures at the default quality: grain takes more, drawings take less.
    """
    bits = _BITS.get(job.encoding.codec, 0.25)
    pixels = job.encoding.width * job.encoding.height
    encoded = pixels * bits / 8 * len(job.times) / (job.high - job.low)
    return round(encoded * frames + encoded * (job.high - job.low) + int(job.facts["size"]))


NOT_IN_PART = "nothing of it lies in the part that is kept"


def lost(job: Job) -> list[str]:
    """The streams that do not arrive, though nobody requested that, in words."""
    return [
        f"stream {stream.index} ({stream.name}) would be left out: {stream.reason}"
        for stream in job.streams
        if stream.action == "drop" and stream.reason not in ("as asked for", NOT_IN_PART)
    ]
