"""The streams beside the upscaled video: decide which are copied or converted, and add them to an output."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from fractions import Fraction
from itertools import chain, dropwhile
from typing import Any

import av

from vidup.config import Settings
from vidup.errors import MediaError
from vidup.frame import MediaInfo
from vidup.media import conversion, selection
from vidup.media.containers import Container, is_cover
from vidup.media.conversion import StreamPlan
from vidup.media.opening import channels, open_input
from vidup.media.packets import Trim, kept_packets

log = logging.getLogger(__name__)

_COVERS = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png"), "bmp": ("cover.bmp", "image/bmp")}
_TIME_SCALE_LIMIT = 2**31 - 1
_OF_THE_ENCODING = ("bps", "duration", "number_of_", "_statistics_", "encoder", "vendor_id", "source_id", "alpha_mode")
"""Beginnings of the names of tags that describe how a stream was encoded."""
_AHEAD = 10  # seconds by which muxers let streams run apart
REQUESTED = "as requested"
"""The reason of a stream that the settings leave out."""


def plan_streams(info: MediaInfo, container: Container, settings: Settings) -> list[StreamPlan]:
    """Decide what is done with each stream of the input, by a dry run of the output's muxer."""
    trimmed = settings.start > 0 or settings.until is not None
    with open_input(info.path, whole=info.unlisted) as source:
        left_out = selection.left_out(source, info.video_index, settings)
        return [
            _plan(stream, info, container, trimmed, wanted=stream.index not in left_out) for stream in source.streams
        ]


def _plan(stream: Any, info: MediaInfo, container: Container, trimmed: bool, wanted: bool) -> StreamPlan:
    known = info.streams[stream.index]
    name = f"{known.kind} {known.codec}" + (f" ({known.language})" if known.language else "")

    def plan(action: Any, reason: str = "") -> StreamPlan:
        return StreamPlan(stream.index, name, known.kind, action, reason)

    if stream.index == info.video_index:
        return plan("upscale")
    if not wanted:
        return plan("drop", REQUESTED)
    if stream.type == "data" and stream.metadata.get("timecode"):
        return plan("metadata", f"its timecode, {stream.metadata['timecode']}, is kept as a tag of the video")
    if stream.type == "data" and "mov" in info.container and 0 < stream.frames == info.chapters:
        return plan("metadata", "its chapters are kept as chapters")
    if trimmed and stream.type == "video" and not is_cover(stream):
        return plan("drop", "copied video cannot begin in its middle")
    refusal = container.refusal(stream)
    keeps_order = container.family == "mov" or stream.type != "audio"
    if refusal is None and not keeps_order and channels(stream.codec_context).order:
        refusal = f"{container} cannot store the order of its channels"
    if refusal is None:
        is_other = stream.type == "video" and not is_cover(stream)
        return plan("copy", "one video stream is upscaled, and it is another" if is_other else "")
    if container.family == "pictures":
        return plan("drop", refusal)
    if container.cover == "attachment" and is_cover(stream):
        return plan("attach")
    return next(_conversions(stream, info, container, plan("convert", refusal)), plan("drop", refusal))


def _conversions(stream: Any, info: MediaInfo, container: Container, plan: StreamPlan) -> Iterator[StreamPlan]:
    """The conversions of a stream that work, the best first; a plan to drop it where it cannot be decoded."""
    for encoder, layout, lost in conversion.converters(stream, container):
        converted = replace(plan, action="convert", reason=plan.reason + lost, encoder=encoder, layout=layout)
        works = _rehearse(info, stream, converted, container)
        if works is None:
            yield plan.dropped(f"{plan.reason}, and nothing of it can be decoded")
            return
        if works:
            yield converted


def instead(info: MediaInfo, container: Container, plan: StreamPlan, fault: str) -> StreamPlan:
    """What is done with a stream whose plan has a fault, in words: the next conversion is tried, or it is left out."""
    with open_input(info.path, whole=info.unlisted) as source:
        others = _conversions(source.streams[plan.index], info, container, replace(plan, reason=fault))
        if plan.action == "convert":
            others = dropwhile(lambda other: (other.encoder, other.layout) != (plan.encoder, plan.layout), others)
            next(others, None)
        return plan.dropped(fault) if plan.kind == "attachment" else next(others, plan.dropped(fault))


def _rehearse(info: MediaInfo, stream: Any, plan: StreamPlan, container: Container) -> bool | None:
    """Whether a conversion works up to its first packet; None where no audio can be decoded."""
    with suppress(OSError), io.BytesIO() as nowhere:
        target = av.open(nowhere, "w", format=container.name)
        try:
            added = conversion.encoder(target, stream, plan)
            target.start_encoding()
            with closing(conversion.converted(info, plan, added, None)) as packets:
                if next(packets, None) is None and plan.kind == "audio":
                    return None
        except (av.error.FFmpegError, ValueError, MediaError) as error:
            log.debug("stream %d to %s %s: %s", plan.index, plan.encoder, plan.layout, error)
            return False
        target.close()
    return True


def start_options(container: Container, sources: Iterable[Any], unit: Fraction = Fraction(1)) -> dict[str, str]:
    """Options of a muxer with which the start times of the input's streams, and of video with this unit, are exact."""
    if container.below_zero == "shifted":
        return {"avoid_negative_ts": "disabled"}  # times below 0 are shifted by the join, with the chapters
    # Start times are stored in units of the movie's time scale, 1000 a second by default.
    scale = unit.denominator
    for stream in sources:
        if stream.type in ("video", "audio") and stream.time_base:
            both = math.lcm(scale, stream.time_base.denominator)
            scale = both if both <= _TIME_SCALE_LIMIT else scale
    return {"movie_timescale": str(max(scale, 1000))}


def add_streams(
    target: Any, source: Any, container: Container, plans: Sequence[StreamPlan], converted: Mapping[int, Any]
) -> dict[int, Any]:
    """Add all but the upscaled stream to an output; returns index in the source -> stream of the output.

    Args:
        converted: index in the source -> the open file with the converted stream.
    """
    streams = {}
    for plan in plans:
        stream = source.streams[plan.index]
        if plan.action == "copy":
            added = target.add_stream_from_template(stream, opaque=True)
        elif plan.action == "convert":
            added = target.add_stream_from_template(converted[plan.index].streams[0], opaque=True)
        else:
            if plan.action == "attach":
                _attach(target, source, stream)
            continue
        added.metadata.update(tags(stream, container))
        if stream.type != "attachment":
            added.disposition = stream.disposition
            streams[plan.index] = added
    return streams


def _attach(target: Any, source: Any, stream: Any) -> None:
    packet = next(packet for packet in source.demux(stream) if packet.size)
    source.seek(0)
    codec = stream.codec_context.name
    name, kind = _COVERS.get(codec, (f"cover.{codec}", f"image/{codec}"))
    target.add_attachment(stream.metadata.get("filename", name), stream.metadata.get("mimetype", kind), bytes(packet))


def copied_packets(
    info: MediaInfo, streams: dict[int, Any], indices: Sequence[int], trim: Trim | None
) -> Iterator[Any]:
    """The packets of some streams of the input, in file order, each assigned to its stream of the output."""
    with open_input(info.path, whole=info.unlisted) as source:
        for packet in kept_packets(source, info, indices, trim, log.warning):
            packet.stream = streams[packet.stream.index]
            yield packet


def lateness(
    info: MediaInfo, plans: Sequence[StreamPlan], trim: Trim | None, begin: Fraction, others: list[Iterator[Any]]
) -> Fraction:
    """The shift of all streams with which none begins below 0, as Matroska requires, in seconds, whole milliseconds.

    Args:
        begin: when the upscaled video begins, in seconds.
        others: the packets of the other streams, as iterators; the packets that are read are put back.
    """
    below = below_zero(info, [plan for plan in plans if plan.action == "copy"], trim)
    below = max(below, -begin)
    for place, packets in enumerate(others):
        first = next(packets, None)
        if first is not None:
            others[place] = chain([first], packets)
            if first.pts is not None:
                below = max(below, -first.pts * first.time_base - _padding(first.stream))
    return Fraction(round(below * 1000), 1000)


def below_zero(info: MediaInfo, plans: Sequence[StreamPlan], trim: Trim | None) -> Fraction:
    """How far before 0 the first packet of some streams of the input begins, in seconds."""
    indices = {plan.index for plan in plans}
    below = Fraction(0)
    with open_input(info.path, whole=info.unlisted) as source:
        seen = set()
        for packet in kept_packets(source, info, sorted(indices), trim):
            if packet.pts is not None:
                time = packet.pts * packet.time_base
                below = max(below, -time - _padding(packet.stream))
                if time > _AHEAD - below:
                    break
            seen.add(packet.stream.index)
            if seen == indices:
                break
    return below


def _padding(stream: Any) -> Fraction:
    """The seconds of Opus before its first sample that is played: Matroska stores them, and they may lie below 0."""
    if stream.type != "audio" or stream.codec_context.codec.canonical_name != "opus":
        return Fraction(0)
    head = bytes(stream.codec_context.extradata or b"")
    samples = int.from_bytes(head[10:12], "little") if head.startswith(b"OpusHead") else 0
    return Fraction(samples, 48000)


def mux(target: Any, packets: Iterable[Any], shift: Fraction) -> None:
    """Write packets, later by `shift` seconds, in the time base of their stream of the output."""
    # Most muxers refuse two packets of a stream with one decode time, as in some live streams: the second is moved.
    is_strict = not target.format.flags & av.format.Flags.ts_nonstrict.value
    last: dict[int, int] = {}
    known: dict[int, tuple[Fraction, Callable[[int], int], Callable[[int], int]]] = {}
    for packet in packets:
        index = packet.stream.index
        if index not in known:
            unit = packet.stream.time_base
            # Rounded once, in the output's units, as a unit of the source may be as long as a frame.
            scale = packet.time_base / unit
            known[index] = unit, _rounded(scale, shift / unit), _rounded(scale, Fraction(0))
        unit, shifted, scaled = known[index]
        begins = None if packet.pts is None else shifted(packet.pts)
        decoded = None if packet.dts is None else shifted(packet.dts)
        packet.duration = scaled(packet.duration or 0)
        if decoded is not None:
            if is_strict and decoded <= last.get(index, decoded - 1):
                decoded = last[index] + 1
                begins = None if begins is None else max(begins, decoded)
            last[index] = decoded
        packet.pts, packet.dts, packet.time_base = begins, decoded, unit
        target.mux(packet)


def _rounded(scale: Fraction, offset: Fraction) -> Callable[[int], int]:
    """The function ``value * scale + offset``, rounded half up; integers are many times faster than fractions."""
    by = 2 * scale.denominator * offset.denominator
    times = 2 * scale.numerator * offset.denominator
    plus = 2 * offset.numerator * scale.denominator + by // 2
    return lambda value: (value * times + plus) // by


def tags(stream: Any, container: Container, encoded: bool = False) -> dict[str, str]:
    """A stream's tags, named as the output's muxer expects; if `encoded`, without those on the input's encoding."""
    stale = _OF_THE_ENCODING if encoded else ()
    kept = {key: value for key, value in stream.metadata.items() if not key.lower().startswith(stale)}
    if "name" in kept:  # mov's demuxer calls name what its muxer calls title
        kept.setdefault("title", kept.pop("name"))
    if "language" in kept:
        kept["language"] = container.languages.get(kept["language"], kept["language"])
    return kept
