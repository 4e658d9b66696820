"""The words of a plan: what the footage is like, what a job will do, what will be converted or lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from math import log2
from typing import Any

from vidup.engines import anchor_rounds, family, native_scale
from vidup.job.pace import Foreseen, is_carried
from vidup.job.plan import Job, disk, host_memory
from vidup.media import animation_input, animation_output, captions, losses, side_data
from vidup.media.compression import quantiser_step
from vidup.media.delivery import lost_tags
from vidup.picture.flaws import Flaws
from vidup.picture.geometry import size_notes


def describe(job: Job) -> list[str]:
    """Lines that describe what a job will do, and what will be converted or lost."""
    info, encoding = job.info, job.encoding
    return [
        f"{info.path}: {info.width}x{info.height} {info.pix_fmt}, {len(job.times)} frames"
        f" -> {encoding.width}x{encoding.height} {encoding.pix_fmt}, {encoding.codec}, {job.container}",
        *(f"note: {note}" for note in _notes(job)),
    ]


def _notes(job: Job) -> Iterator[str]:
    info, encoding, container, settings = job.info, job.encoding, job.container, job.settings
    invents = family(settings).invents
    if invents:
        rounds = anchor_rounds(settings)
        by = f"{rounds} round{'s' * (rounds > 1)} of the anchor" if rounds else "nothing: the anchor is off"
        yield f"the result is pulled back to the input's colours and light by {by}"
    yield from info.notes
    yield from size_notes(settings, native_scale(settings), job.input_size, (encoding.height, encoding.width))
    yield from _notes_of_streams(job)
    if lost := lost_tags(job):
        yield f"tags of the file are lost ({', '.join(lost)}): {container} has no place for them"
    for subject in sorted(job.accepted):
        yield f"{container} cannot keep the {subject}"
    yield from losses.loses(info, encoding)
    yield from losses.limits(encoding)
    for kind in side_data.lost(info, _kept_side_data(job)):
        yield f"{kind}: lost, there is no way to write it"
    for kind in info.dynamic_hdr:
        yield f"{kind} is lost: no encoder here carries it"
    if not info.color_tagged and settings.matrix == "auto" and info.pix_fmt.startswith(("yuv", "nv", "p0", "uyvy")):
        standard = "BT.709" if encoding.color.matrix == 1 else "BT.601"
        yield (
            f"the file does not state its colour matrix: {standard} is assumed from its size, and written;"
            " --matrix sets another"
        )
    if invents and (found := quantiser(job) or 0.0) >= CLEAN:
        artefacts = "its artefacts are left out (--quantiser 0 trusts the whole picture)"
        yield f"the video is {compression(found)}: {artefacts}"
    if info.field_order != "progressive":
        how = {"frame": "deinterlaced, a picture a frame", "field": "deinterlaced, a picture a field"}
        yield f"the video is interlaced: {how.get(settings.deinterlace, 'upscaled as it is')}"
    if job.trim is not None and settings.start == 0 and settings.until is None:
        yield f"all streams begin {float(-job.trim.begin):.3f} s later: {container} has no time below 0"
    tick = container.tick
    if tick is not None and (job.unit / tick).denominator != 1:
        unit = "milliseconds" if tick == Fraction(1, 1000) else "hundredths of a second"
        yield f"{container} counts in {unit}: times are rounded by up to {float(500 * tick):g} ms"
    if container.is_animated:
        yield from animation_output.notes(job)
    elif container.family == "pictures" and info.container != "image2":
        yield f"pictures have no times: give the next program the rate, {float(info.rate):.3f} a second"
    if encoding.sample_aspect_ratio != 1 and not container.shows_aspect(encoding.codec):
        yield (
            f"{container} with {encoding.codec} does not keep the pixel aspect"
            f" {encoding.sample_aspect_ratio}: players will show square pixels"
        )


def _notes_of_streams(job: Job) -> Iterator[str]:
    becomes = {"drop": "left out", "copy": "copied as it is", "convert": "converted to {}"}
    for action, words in becomes.items():
        for stream in job.streams:
            if stream.action == action and (stream.reason or action != "copy"):
                does = words.format(stream.encoder)
                yield f"stream {stream.index} ({stream.name}) is {does}: {stream.reason}"


def _kept_side_data(job: Job) -> set[str]:
    packed = job.encoding.codec == "libx264" and job.info.stereo_mode in side_data.FRAME_PACKING
    stereo = job.info.stereo_mode and (packed or job.container.family == "matroska")
    captioned = captions.carries(job.encoding.codec)
    return {kind for kind, arrives in ((side_data.STEREO, stereo), (side_data.CAPTIONS, captioned)) if arrives}


def facts(job: Job, device: int | None, seen: Foreseen | None = None) -> Iterator[tuple[str, str]]:
    """What is in a file and what it will become, as (head, text) pairs; `device`: the model's bytes there, if known."""
    info, encoding = job.info, job.encoding
    kind = "variable" if info.variable_rate else "constant"
    light = "full" if info.color.full_range else "limited"
    codes = f"{info.color.matrix}/{info.color.primaries}/{info.color.transfer}" if info.color_tagged else "untagged"
    transfer = {16: ", PQ", 18: ", HLG"}.get(info.color.transfer, "")
    yield "file", f"{info.container}, {info.frames} frames, {float(info.rate):.3f} a second ({kind})"
    yield (
        "picture",
        f"{info.width}x{info.height} {info.pix_fmt}, {light} range, colour {codes}{transfer}"
        + (", HDR10 data" if info.hdr else ""),
    )
    yield (
        "shown",
        f"rotation {info.rotation}, pixels {info.sample_aspect_ratio}, fields {info.field_order},"
        f" begins at {float(info.begin):.3f} s",
    )
    yield (
        "output",
        f"{job.output}: {encoding.width}x{encoding.height} {encoding.pix_fmt}, {encoding.codec},"
        f" {len(job.times)} frames",
    )
    model = "what vidup bench --input measures" if device is None else f"{device / 2**30:.2f} GiB"
    yield (
        "takes",
        f"about {disk(job, job.high - job.low) / 2**30:.2f} GiB of disk,"
        f" {host_memory(job) / 2**30:.2f} GiB of memory for frames, and for the model {model}",
    )
    if is_carried(job.settings) and job.high - job.low > 1:
        yield "motion", share(seen)
    if job.container.is_animated:
        plays = animation_input.plays(info.path)
        yield "plays", {0: "without end", 1: "once"}.get(plays, f"{plays} times")
    if info.chapters:
        yield "chapters", str(info.chapters)


def share(seen: Foreseen | None) -> str:
    """The share of pixels that will be computed, in words."""
    if seen is None:
        return "vidup bench --input estimates how many pixels will be computed"
    return (
        f"about {100 * seen.computed:.0f} % of the pixels will be computed, the rest is carried along the motion:"
        f" planned from {seen.frames} frames of the middle"
    )


def streams(job: Job) -> Iterator[str]:
    """Lines with what will be done with each stream."""
    for stream in job.streams:
        reason = f": {stream.reason}" if stream.reason else ""
        to = f" to {stream.encoder}" if stream.encoder else ""
        detail = job.info.streams[stream.index].detail
        yield f"{stream.index}  {stream.action}{to:8} {stream.name} {detail}".rstrip() + reason


def quantiser(job: Job) -> float | None:
    """The step of the quantiser that an input was encoded with, in codes; None if nobody knows."""
    given = job.settings.quantiser
    return quantiser_step(job.info) if given == "auto" else given


CLEAN = 4.0
"""The quantiser step, in codes, below which compression is invisible."""


def compression(quantiser_step: float) -> str:
    """How hard pictures were compressed, in words."""
    crf = round(6 * log2(max(quantiser_step, 0.625) / 0.625))  # about the crf with which x264's key frames have it
    return f"{'compressed' if crf < 27 else 'compressed hard'}, like x264 at crf {crf}"


_AMOUNTS = ((0.75, "none"), (2.0, "little"), (5.0, "some"), (float("inf"), "much"))
_BANDING = 0.02
"""The share of the picture below which banding is not mentioned."""


def condition(quantiser_step: float | None, seen: Flaws) -> Iterator[str]:
    """What footage looks like, in words that users know; the quantiser step, in codes, is None if nobody knows it."""
    if quantiser_step is not None:
        yield compression(quantiser_step) if quantiser_step >= CLEAN else "hardly compressed"
    amount = next(word for most, word in _AMOUNTS if seen.noise < most)
    codes = f" (about {seen.noise:.1f} codes)" if amount != "none" else ""
    yield f"{'grain' if seen.coarse else 'noise'}: {amount}{codes}"
    if seen.period:
        yield f"blocks of {seen.period}x{seen.period} show"
    if seen.banding >= _BANDING:
        yield f"banding in {100 * seen.banding:.0f} % of the picture"


def footage(quantiser_step: float | None, seen: Flaws) -> dict[str, Any]:
    """The same in figures and in words, as values for JSON."""
    return {"quantiser": quantiser_step, **asdict(seen), "words": list(condition(quantiser_step, seen))}
