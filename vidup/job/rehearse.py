"""Rehearse the join before the first picture, to find and work around what the container cannot store.

A few blank frames with times of the job are encoded, joined with all other streams, and checked like the result will
be, apart from the pictures. Converted streams stay in the job's folder for the join.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vidup import proof
from vidup.errors import ConfigError, MediaError, VerifyError
from vidup.frame import Frame, layout
from vidup.job.plan import NOT_IN_PART, Job
from vidup.media import animation_output, conversion_cache, decoding, joining, streams
from vidup.media.conversion import StreamPlan
from vidup.media.decoding import planar
from vidup.media.opening import open_input
from vidup.media.packets import kept_packets
from vidup.media.segment import encode_segment

log = logging.getLogger(__name__)

_CHEAP = 2**28  # bytes of an input whose audio is converted in seconds
_PICTURES = "rehearsal.packets"
_ACCEPTABLE = ("tag ", "flag ", "chapters", "pixel aspect")
"""Beginnings of the subjects of the proof in which a difference is only a warning."""


def rehearse(job: Job, folder: Path) -> Job:
    """Rehearse the join; returns the job with the conversions, left-out streams and differences that it needs.

    Converted streams stay in `folder`, the job's. A `ConfigError` says that the container cannot store when or how the
    pictures are shown.
    """
    _check_ticks(job)
    if job.container.is_animated:
        animation_output.check(job, job.encoding)
    if job.container.family == "pictures":  # which hold nothing else
        return job
    planned, pictures = job, folder / _PICTURES
    times = _times(job)
    try:
        encode_segment(_blank(job, times), job.encoding, pictures)
        while True:
            job = _converted(job, folder)
            found, shift = _faults(job, folder, times)
            if not found:
                break
            for subject, fault in found.items():
                job = _worked_around(job, subject, fault)
    finally:
        pictures.unlink(missing_ok=True)
    _log_changes(planned, job, shift)
    return job


def foresee(job: Job) -> tuple[Job, list[str]]:
    """`rehearse` for a job that will not be run, if that is cheap; returns the job and notes."""
    if job.facts["size"] > _CHEAP:
        return job, ["note: the join is rehearsed when the job begins: what its container cannot store is found then"]
    with TemporaryDirectory() as folder:
        return rehearse(job, Path(folder)), []


def _check_ticks(job: Job) -> None:
    tick = job.container.tick
    if tick is None or job.unit >= tick:
        return
    long, short = (job.unit / tick).as_integer_ratio()
    for before, after in pairwise(job.times):
        if (2 * before * long + short) // (2 * short) == (2 * after * long + short) // (2 * short):
            raise ConfigError(
                f"{job.output}: {job.container} counts in units of {float(tick):g} s, and two frames, at"
                f" {float(before * job.unit):.6f} and {float(after * job.unit):.6f} s, would have one time;"
                " choose an output that ends in .mp4 or .mov"
            )


def _times(job: Job) -> list[int]:
    """Some of the job's times: the first, the last, and those nearest to and farthest from each other."""
    gaps = [after - before for before, after in pairwise(job.times)]
    befores = {0, gaps.index(min(gaps)), gaps.index(max(gaps))} if gaps else set()
    places = {0, len(job.times) - 1, *befores, *(place + 1 for place in befores)}
    # A duration in mp4 has 32 bits: leaving out frames must not exceed that.
    longest = max([*gaps, int((2**31 - 1) * job.encoding.time_base / job.unit)])
    times = [job.times[0]]
    for place in sorted(places)[1:]:
        times += [job.times[place]] if job.times[place] - times[-1] <= longest else []
    return times


def _blank(job: Job, times: list[int]) -> list[Frame]:
    kind, size = layout(planar(job.encoding.pix_fmt)), (job.encoding.height, job.encoding.width)
    assert kind is not None
    chroma = -(-size[0] // kind.chroma_y), -(-size[1] // kind.chroma_x)
    blank = np.uint8 if kind.bits == 8 else np.uint16
    planes = tuple(np.zeros(chroma if index else size, blank) for index in range(kind.planes))
    _, lengths = decoding.schedule(job.info, job.settings, *job.span)
    return [
        Frame(planes, planar(job.encoding.pix_fmt), job.encoding.color, time, lengths[time + job.offset], job.unit)
        for time in times
    ]


def _converted(job: Job, folder: Path) -> Job:
    """Convert streams as planned; where that fails, the next conversion is tried, or the stream is left out."""
    for stream in job.streams:
        while stream.action == "convert":
            other, fault = None, "nothing of it can be decoded"
            try:
                if conversion_cache.convert(job, stream, folder):
                    break
                if not _lies_in_part(job, stream):
                    other = stream.dropped(NOT_IN_PART)
            except MediaError as error:
                fault = str(error)
            other = other or streams.instead(job.info, job.container, stream, fault)
            job, stream = _with_other(job, stream, other), other
    return job


def _lies_in_part(job: Job, stream: StreamPlan) -> bool:
    with open_input(job.info.path, whole=job.info.unlisted) as source:
        packets = kept_packets(source, job.info, [stream.index], job.trim)
        return next(packets, None) is not None


def _faults(job: Job, folder: Path, times: list[int]) -> tuple[dict[str, str], float]:
    """Join and prove: subject -> the difference, and the seconds by which all streams are later."""
    whole = folder / f"rehearsal{job.output.suffix}"
    try:
        joining.join(whole, job, job.encoding, [folder / _PICTURES], folder)
        _, found, kept = proof.findings(whole, job, job.encoding, times)
        return {subject: fault.replace(f"{whole}: ", "") for subject, fault in found.items()}, float(kept.shift)
    except (VerifyError, MediaError) as error:
        words = str(error).replace(f"{whole}: ", "")
        alone = [stream for stream in job.streams if stream.action in ("copy", "convert", "attach")]
        if isinstance(error, VerifyError) or not alone:
            raise ConfigError(
                f"{job.output}: {job.container} cannot hold these pictures as they are:"
                f" {words.partition('; --tolerate-errors')[0]}; choose another ending"
            ) from error
        faults = dict.fromkeys((f"stream {stream.index}" for stream in alone), words)
        if len(alone) > 1:  # find out which stream it is
            each = [_faults(replace(job, streams=(stream,)), folder, times)[0] for stream in alone]
            return {subject: fault for found in each for subject, fault in found.items()} or faults, 0.0
        _faults(replace(job, streams=()), folder, times)  # raises if even the pictures alone cannot be written
        return faults, 0.0
    finally:
        whole.unlink(missing_ok=True)


def _worked_around(job: Job, subject: str, fault: str) -> Job:
    stream = next((stream for stream in job.streams if subject == f"stream {stream.index}"), None)
    if stream is not None:
        fault = fault.removeprefix(f"stream {stream.index} ({stream.name}): ")
        return _with_other(job, stream, streams.instead(job.info, job.container, stream, fault))
    if subject.startswith(_ACCEPTABLE):
        log.warning("%s: %s cannot store it: %s", job.output, job.container, fault)
        return replace(job, accepted=job.accepted | {subject})
    hint = "; --bake-rotation turns the pictures themselves" if subject == "rotation" else ""
    raise ConfigError(f"{job.output}: {job.container} cannot store it: {fault}{hint}")


def _with_other(job: Job, stream: StreamPlan, other: StreamPlan) -> Job:
    return replace(job, streams=tuple(other if each is stream else each for each in job.streams))


def _log_changes(planned: Job, job: Job, shift: float) -> None:
    for before, stream in zip(planned.streams, job.streams, strict=True):
        if stream != before:
            becomes = "left out" if stream.action == "drop" else f"converted to {stream.encoder}"
            log.warning("%s: stream %d (%s) is %s: %s", job.output, stream.index, stream.name, becomes, stream.reason)
    if shift:
        log.info("note: all streams begin %.3f s later: %s has no time below 0", shift, job.container)
