"""Everything but the picture: what a container takes of the other streams, and their packets, copied or converted."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from vidup.media.packets import Trim, kept_packets, tolerance

log = logging.getLogger(__name__)

_COVERS = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png"), "bmp": ("cover.bmp", "image/bmp")}
_TIME_SCALE_LIMIT = 2**31 - 1
_OF_THE_OLD_ENCODING = (
    *("bps", "duration", "number_of_", "_statistics_", "encoder", "vendor_id", "source_id", "alpha_mode"),
)
_AHEAD = 10  # seconds by which muxers let streams run apart


def plan_streams(info: MediaInfo, container: Container, settings: Settings) -> list[StreamPlan]:
    """What the output container takes of the input, found by a dry run for each stream."""
    trimmed = settings.start > 0 or settings.until is not None
    with open_input(info.path, whole=info.unlisted) as source:
        left_out = selection.left_out(source, info.video_index, settings)
        return [
            _plan(stream, info, container, trimmed, asked=stream.index not in left_out) for stream in source.streams
        ]


def _plan(stream: Any, info: MediaInfo, container: Container, trimmed: bool, asked: bool) -> StreamPlan:
    known = info.streams[stream.index]
    name = f"{known.kind} {known.codec}" + (f" ({known.language})" if known.language else "")

    def plan(action: Any, reason: str = "", encoder: str = "") -> StreamPlan:
        return StreamPlan(stream.index, name, known.kind, action, reason, encoder)

    if stream.index == info.video_index:
        return plan("upscale")
    if not asked:
        return plan("drop", "as asked for")
    if stream.type == "data" and stream.metadata.get("timecode"):
        return plan("tell", f"its timecode, {stream.metadata['timecode']}, is kept as a tag of the video")
    if stream.type == "data" and "mov" in info.container and 0 < stream.frames == info.chapters:
        return plan("tell", "its chapters are kept as chapters")
    if trimmed and stream.type == "video" and not is_cover(stream):
        return plan("drop", "copied video cannot begin in its middle")
    refusal = container.refusal(stream)
    if (
        refusal is None
        and container.family != "mov"
        and stream.type == "audio"
        and channels(stream.codec_context).order
    ):
        refusal = f"{container} cannot say the order of its channels"
    if refusal is None:
        beside = stream.type == "video" and not is_cover(stream)
        return plan("copy", "one video stream is upscaled, and it is another" if beside else "")
    if container.family == "pictures":
        return plan("drop", refusal)
    if container.cover == "attachment" and is_cover(stream):
        return plan("attach")
    return next(_conversions(stream, info, container, plan("convert", refusal)), plan("drop", refusal))


def _conversions(stream: Any, info: MediaInfo, container: Container, plan: StreamPlan) -> Iterator[StreamPlan]:
    """The ways to convert a stream that work, the best first; that it is left out where it cannot be decoded.

    Args:
        plan: says why it is converted.
    """
    for encoder, layout, lost in conversion.converters(stream, container):
        converted = replace(plan, action="convert", reason=plan.reason + lost, encoder=encoder, layout=layout)
        works = _rehearse(info, stream, converted, container)
        if works is None:
            why = f"{plan.reason}, and nothing of it can be decoded"
            yield replace(plan, action="drop", reason=why, encoder="", layout="")
            return
        if works:
            yield converted


def instead(info: MediaInfo, container: Container, plan: StreamPlan, fault: str) -> StreamPlan:
    """What is done with a stream for which a plan does not work: it is converted, in another way, or left out.

    Args:
        fault: what is wrong, in words.
    """
    with open_input(info.path, whole=info.unlisted) as source:
        ways = _conversions(source.streams[plan.index], info, container, replace(plan, reason=fault))
        if plan.action == "convert":
            ways = dropwhile(lambda way: (way.encoder, way.layout) != (plan.encoder, plan.layout), ways)
            next(ways, None)
        left_out = replace(plan, action="drop", reason=fault, encoder="", layout="")
        return left_out if plan.kind == "attachment" else next(ways, left_out)


def _rehearse(info: MediaInfo, stream: Any, plan: StreamPlan, container: Container) -> bool | None:
    """Whether a conversion works, as far as its first packet shows; None where no sound comes of it."""
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
    """Options of a muxer that keep the moments at which streams begin.

    Args:
        sources: the streams of the input.
        unit: of the times of the upscaled pictures.
    """
    if container.below_zero == "shifted":
        return {"avoid_negative_ts": "disabled"}  # what lies below 0 is moved by the join, and chapters with it
    # Start times are kept in movie ticks, 1000 a second by default, which loses what is finer.
    scale = unit.denominator
    for stream in sources:
        if stream.type in ("video", "audio") and stream.time_base:
            both = math.lcm(scale, stream.time_base.denominator)
            scale = both if both <= _TIME_SCALE_LIMIT else scale
    return {"movie_timescale": str(max(scale, 1000))}


def add_streams(
    target: Any, source: Any, container: Container, plans: Sequence[StreamPlan], converted: Mapping[int, Any]
) -> dict[int, Any]:
    """Add all but the upscaled stream to an output.

    Args:
        converted: index in the source -> the open file of what that stream was converted to.

    Returns:
        Index in the source -> stream of the output.
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
    info: MediaInfo, plans: Sequence[StreamPlan], streams: dict[int, Any], trim: Trim | None
) -> list[Iterator[Any]]:
    """The packets of the streams that are copied, ready to be muxed: iterators that each rise in time."""
    copies = [plan.index for plan in plans if plan.action == "copy" and plan.index in streams]
    return [_copied(info, copies, streams, trim)] if copies else []


def lateness(
    info: MediaInfo, plans: Sequence[StreamPlan], trim: Trim | None, begin: Fraction, others: list[Iterator[Any]]
) -> Fraction:
    """By how much all streams must be later so that none begins below 0, as Matroska cannot, in whole milliseconds.

    Args:
        begin: when the upscaled pictures begin, in seconds.
        others: their packets, as iterators; what is read of them is put back.
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
        for packet in kept_packets(source, sorted(indices), trim, tolerance(info)):
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
    """Seconds at the head of Opus that only warm up its decoder: Matroska states them, and it may lie below 0."""
    if stream.type != "audio" or stream.codec_context.codec.canonical_name != "opus":
        return Fraction(0)
    head = bytes(stream.codec_context.extradata or b"")
    samples = int.from_bytes(head[10:12], "little") if head.startswith(b"OpusHead") else 0
    return Fraction(samples, 48000)


def placed(packets: Iterable[Any], shift: Fraction, rising: bool) -> Iterator[Any]:
    """Packets, later by `shift` seconds, their times in units of the stream of the output that each belongs to.

    Args:
        rising: the muxer refuses two packets of a stream that are decoded at one time, as some live streams have them:
            the second is a unit later.
    """
    last: dict[int, int] = {}
    ways: dict[int, tuple[Fraction, int, int, int]] = {}
    for packet in packets:
        index = packet.stream.index
        if index not in ways:
            unit = packet.stream.time_base
            # Rounded once, and to what the output counts in: units of the source may be as long as a frame. A film has
            # packets by the hundred thousand: whole numbers are counted in many times faster than fractions.
            scale, late = packet.time_base / unit, shift / unit
            by = 2 * scale.denominator * late.denominator
            ways[index] = (
                unit,
                2 * scale.numerator * late.denominator,
                2 * late.numerator * scale.denominator,
                by,
            )
        unit, times, plus, by = ways[index]
        half = by // 2
        begins = None if packet.pts is None else (packet.pts * times + plus + half) // by
        decoded = None if packet.dts is None else (packet.dts * times + plus + half) // by
        packet.duration = ((packet.duration or 0) * times + half) // by
        if rising and decoded is not None and index in last and decoded <= last[index]:
            decoded = last[index] + 1
            begins = None if begins is None else max(begins, decoded)
        if decoded is not None:
            last[index] = decoded
        packet.pts, packet.dts, packet.time_base = begins, decoded, unit
        yield packet


def _copied(info: MediaInfo, indices: Sequence[int], streams: dict[int, Any], trim: Trim | None) -> Iterator[Any]:
    with open_input(info.path, whole=info.unlisted) as source:
        for packet in kept_packets(source, indices, trim, tolerance(info, log.warning), log.warning):
            packet.stream = streams[packet.stream.index]
            yield packet


def tags(stream: Any, container: Container, encoded: bool = False) -> dict[str, str]:
    """A stream's tags as an output's muxer wants them.

    Args:
        encoded: the stream is encoded anew; tags of the old encoding are left out.
    """
    stale = (
        ("bps", "duration", "number_of_", "_statistics_", "encoder", "vendor_id", "source_id", "alpha_mode")
        if encoded
        else ()
    )
    kept = {key: value for key, value in stream.metadata.items() if not key.lower().startswith(stale)}
    if "name" in kept:  # so mov's demuxer calls what its muxer takes as the title
        kept.setdefault("title", kept.pop("name"))
    if "language" in kept:
        kept["language"] = container.languages.get(kept["language"], kept["language"])
    return kept
