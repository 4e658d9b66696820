"""Describe in words what a job will do, and what will be converted or lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from math import log2
from typing import Any

from vidup.engines import anchor_rounds, family, native_scale
from vidup.engines.anchoring import quantiser
from vidup.job.plan import Job, disk, host_memory
from vidup.job.relay_share import Foreseen, is_carried
from vidup.media import animation_input, animation_output, captions, losses, side_data
from vidup.media.delivery import lost_tags
from vidup.picture.flaws import Flaws
from vidup.picture.geometry import size_notes


def describe(job: Job) -> list[str]:
    """Lines that describe what a job will do, and what will be converted or lost."""
    info, encoding = job.info, job.encoding
    lines = [
        f"{info.path}: {info.width}x{info.height} {info.pix_fmt}, {len(job.times)} frames"
        f" -> {encoding.width}x{encoding.height} {encoding.pix_fmt}, {encoding.codec}, {job.container}"
    ]
    if family(job.settings).invents:
        rounds = anchor_rounds(job.settings)
        by = f"{rounds} round{'s' * (rounds > 1)} of the anchor" if rounds else "nothing: the anchor is off"
        lines.append(f"note: the result is pulled back to the input's colours and light by {by}")
    lines += [f"note: {note}" for note in info.notes]
    result = encoding.height, encoding.width
    lines += [f"note: {note}" for note in size_notes(job.settings, native_scale(job.settings), job.input_size, result)]
    lines += [f"note: stream {s.index} ({s.name}) is left out: {s.reason}" for s in job.streams if s.action == "drop"]
    lines += [
        f"note: stream {s.index} ({s.name}) is copied as it is: {s.reason}"
        for s in job.streams
        if s.action == "copy" and s.reason
    ]
    lines += [
        f"note: stream {s.index} ({s.name}) is converted to {s.encoder}: {s.reason}"
        for s in job.streams
        if s.action == "convert"
    ]
    if lost := lost_tags(job):
        lines.append(f"note: tags of the file are lost ({', '.join(lost)}): {job.container} has no place for them")
    lines += [f"note: {job.container} cannot keep the {subject}" for subject in sorted(job.accepted)]
    lines += [f"note: {loss}" for loss in losses.loses(info, encoding)]
    lines += [f"note: {limit}" for limit in losses.limits(encoding)]
    lines += [f"note: {kind}: lost, there is no way to write it" for kind in side_data.lost(info, _carried(job))]
    lines += [f"note: {kind} is lost: no encoder here carries it" for kind in info.dynamic_hdr]
    if not info.color_tagged and job.settings.matrix == "auto" and info.pix_fmt.startswith(("yuv", "nv", "p0", "uyvy")):
        standard = "BT.709" if encoding.color.matrix == 1 else "BT.601"
        lines.append(
            f"note: the file does not state its colour matrix: {standard} is assumed from its size, and written;"
            " --matrix sets another"
        )
    if family(job.settings).invents and quantiser(job.settings) >= CLEAN:
        lines.append(f"note: the video is {compression(quantiser(job.settings))}: {LEFT_OUT}")
    if info.field_order != "progressive":
        how = {"frame": "deinterlaced, a picture a frame", "field": "deinterlaced, a picture a field"}
        lines.append(f"note: the video is interlaced: {how.get(job.settings.deinterlace, 'upscaled as it is')}")
    if job.trim is not None and job.settings.start == 0 and job.settings.until is None:
        late = float(-job.trim.begin)
        lines.append(f"note: all streams begin {late:.3f} s later: {job.container} has no time below 0")
    tick = job.container.tick
    if tick is not None and (job.unit / tick).denominator != 1:
        unit = "milliseconds" if tick == Fraction(1, 1000) else "hundredths of a second"
        lines.append(f"note: {job.container} counts in {unit}: times are rounded by up to {float(500 * tick):g} ms")
    if job.container.is_animated:
        lines += [f"note: {note}" for note in animation_output.notes(job)]
    elif job.container.family == "pictures" and info.container != "image2":
        lines.append(f"note: pictures have no times: give the next program the rate, {float(info.rate):.3f} a second")
    if encoding.sample_aspect_ratio != 1 and not job.container.shows_aspect(encoding.codec):
        lines.append(
            f"note: {job.container} with {encoding.codec} does not keep the pixel aspect"
            f" {encoding.sample_aspect_ratio}: players will show square pixels"
        )
    return lines


def _carried(job: Job) -> set[str]:
    """The kinds of side data that are kept."""
    packed = job.encoding.codec == "libx264" and job.info.stereo_mode in side_data.FRAME_PACKING
    stereo = job.info.stereo_mode and (packed or job.container.family == "matroska")
    captioned = captions.carries(job.encoding.codec)
    return {kind for kind, arrives in ((side_data.STEREO, stereo), (side_data.CAPTIONS, captioned)) if arrives}


def facts(job: Job, device: int | None, seen: Foreseen | None = None) -> Iterator[tuple[str, str]]:
    """What is in a file and what it will become, as (head, text) pairs; for other streams see `streams`.

    Args:
        device: as `plan.device_memory` returns it.
    """
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


CLEAN = 6.0
"""The quantiser step, in codes, below which compression is invisible."""


LEFT_OUT = "its artefacts are left out (--quantiser 0 trusts the whole picture)"


def compression(step: float) -> str:
    """How hard pictures were compressed, in words, by their quantiser step in codes."""
    crf = round(6 * log2(max(step, 0.625) / 0.625) - 4)  # about the crf at which x264 uses that step
    return f"{'compressed' if crf < 27 else 'compressed hard'}, like x264 at crf {crf}"


_AMOUNTS = ((0.75, "none"), (2.0, "little"), (5.0, "some"), (float("inf"), "much"))
_BANDING = 0.02
"""The share of the picture below which banding is not mentioned."""


def condition(step: float | None, seen: Flaws) -> Iterator[str]:
    """What footage looks like, in words that users know.

    Args:
        step: of the quantiser, in codes; None if nobody knows.
    """
    if step is not None:
        yield compression(step) if step >= CLEAN else "hardly compressed"
    amount = next(word for most, word in _AMOUNTS if seen.noise < most)
    codes = f" (about {seen.noise:.1f} codes)" if amount != "none" else ""
    yield f"{'grain' if seen.coarse else 'noise'}: {amount}{codes}"
    if seen.period:
        yield f"blocks of {seen.period}x{seen.period} show"
    if seen.banding >= _BANDING:
        yield f"banding in {100 * seen.banding:.0f} % of the picture"


def footage(step: float | None, seen: Flaws) -> dict[str, Any]:
    """The same in figures and in words, as values for JSON."""
    return {"quantiser": step, **asdict(seen), "words": list(condition(step, seen))}


def table(job: Job, device: int | None) -> dict[str, Any]:
    """What `facts` describes, as values for JSON."""
    found = asdict(job.info) | {"output": str(job.output), "encoding": asdict(job.encoding)}
    del found["pts"]
    return found | {
        "plan": [asdict(stream) for stream in job.streams],
        "output_frames": len(job.times),
        "disk_bytes": disk(job, job.high - job.low),
        "host_bytes": host_memory(job),
        "device_bytes": device,
    }
