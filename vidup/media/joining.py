"""Join segments and the streams that are copied or converted into a container."""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from vidup.errors import MediaError
from vidup.frame import MediaInfo
from vidup.media import streams
from vidup.media.containers import Container, video_format
from vidup.media.conversion import StreamPlan, Trim
from vidup.media.encoder import Encoding, open_context
from vidup.media.opening import open_input
from vidup.media.segment import read_segment

log = logging.getLogger(__name__)


_TIME_SCALE_LIMIT = 2**31 - 1


def join(
    output: Path,
    container: Container,
    encoding: Encoding,
    segments: Sequence[Path],
    info: MediaInfo,
    plans: Sequence[StreamPlan],
    trim: Trim | None = None,
    display_matrix: tuple[int, ...] | None = None,
) -> list[int]:
    """Join segments with the streams that are copied or converted from the input.

    Returns:
        When each picture is shown, rising, in `encoding.time_base`.

    Raises:
        ConfigError: the container does not take the encoded video.
        MediaError: a segment is damaged, the input cannot be read or the output cannot be written.
    """
    order = [packet.pts for segment in segments for packet in read_segment(segment)]
    if len(order) != len(set(order)):
        raise MediaError(f"{output}: two pictures have the same time")
    with open_input(info.path) as source:
        target = None
        try:
            options = _muxer_options(source, encoding, container)
            target = av.open(
                f"file:{output}",
                "w",
                format=container.name,
                container_options=options,
                metadata_errors="surrogateescape",
            )
            video = _add_video(target, source.streams[info.video_index], encoding, container, info.variable_rate)
            others = streams.add_streams(target, source, container, plans)
            copied = streams.other_packets(info, plans, others, trim)
            shift = Fraction(0)
            if container.below_zero == "shifted":
                shift = streams.lateness(info, plans, trim, min(order) * encoding.time_base, copied)
            _add_facts(target, source, trim, shift)
            if display_matrix is not None:
                video.set_display_matrix(display_matrix)
            target.start_encoding()
            own = _video_packets(segments, encoding, video, order)
            merged = heapq.merge(own, *copied, key=_decode_time)
            rising = not target.format.flags & av.format.Flags.ts_nonstrict.value
            for packet in streams.placed(merged, shift, rising):
                target.mux(packet)
            target.close()
        except av.error.FFmpegError as error:
            raise MediaError(f"{output}: cannot be written: {error.strerror or error}") from error
        finally:
            if target is not None:
                with suppress(av.error.FFmpegError):
                    target.close()
    return sorted(order)


def _muxer_options(source: Any, encoding: Encoding, container: Container) -> dict[str, str]:
    options, said = dict[str, str](), dict(container.options)
    if container.below_zero == "shifted":
        options["avoid_negative_ts"] = "disabled"  # what lies below 0 is moved here, and chapters with it
    if container.family == "mov":
        # Start times are kept in movie ticks, 1000 a second by default, which loses what is finer.
        scale = encoding.time_base.denominator
        for stream in source.streams:
            if stream.type in ("video", "audio") and stream.time_base:
                both = math.lcm(scale, stream.time_base.denominator)
                scale = both if both <= _TIME_SCALE_LIMIT else scale
        options["movie_timescale"] = str(scale)
        if any(key.startswith("com.") for key in source.metadata):
            # Apple's cameras: keys that the usual table of tags has not.
            said["movflags"] = said.get("movflags", "") + "+use_metadata_tags"
    return options | said


def _add_video(target: Any, source: Any, encoding: Encoding, container: Container, variable_rate: bool) -> Any:
    stream = target.add_stream(encoding.codec, rate=encoding.rate)
    context = stream.codec_context  # never fed: it tells the muxer size, colour and extradata
    if variable_rate and container.family == "matroska":
        # Without a rate, else mkv states a constant frame duration; the extradata are those of the true rate.
        open_context(context, replace(encoding, rate=Fraction(0), time_base=Fraction(1, 25)))
        context.extradata = open_context(av.CodecContext.create(encoding.codec, "w"), encoding).extradata
    else:
        open_context(context, encoding)
    stream.time_base = encoding.time_base
    if video_format(encoding.codec) == "hevc" and container.family == "mov":
        context.codec_tag = "hvc1"  # what Apple's players want
    stream.metadata.update(streams.tags(source, container, encoded=True))
    stream.disposition = source.disposition
    return stream


def _add_facts(target: Any, source: Any, trim: Trim | None, shift: Fraction) -> None:
    written_by_muxer = {"major_brand", "minor_version", "compatible_brands", "encoder"}
    target.metadata.update(
        {key: value for key, value in source.metadata.items() if key.lower() not in written_by_muxer}
    )
    found = chapters(source, trim)
    for chapter in found:
        chapter |= {side: chapter[side] + round(shift / chapter["time_base"]) for side in ("start", "end")}
    target.set_chapters(found)


def chapters(source: Any, trim: Trim | None) -> list[Any]:
    """The chapters of an open input, as PyAV has them; of a part those that overlap it, moved to begin with it at 0."""
    found = []
    for chapter in source.chapters():
        unit = chapter["time_base"]
        if trim is not None:
            begin, end = max(chapter["start"] * unit, trim.begin), min(chapter["end"] * unit, trim.end)
            if begin >= end:
                continue
            chapter |= {"start": round((begin - trim.begin) / unit), "end": round((end - trim.begin) / unit)}
        found.append(chapter)
    return found


def _video_packets(segments: Sequence[Path], encoding: Encoding, stream: Any, order: list[int]) -> Iterator[Any]:
    decode_times = iter(_decode_times(order))
    for segment in segments:
        for packet in read_segment(segment):
            result = av.Packet(packet.data)
            result.stream, result.time_base = stream, encoding.time_base
            result.pts, result.dts, result.duration = packet.pts, next(decode_times), packet.duration
            result.is_keyframe = packet.key
            yield result


def _decode_times(order: list[int]) -> list[int]:
    """Times at which packets are decoded, for the times in the order of decoding: the same times in rising order, late
    enough for all of them.

    An encoder's own decode times belong to one segment; across segments they would overlap.
    """
    shown = sorted(order)
    rank = {pts: index for index, pts in enumerate(shown)}
    delay = max(0, max((index - rank[pts] for index, pts in enumerate(order)), default=0))
    step = shown[1] - shown[0] if len(shown) > 1 else 1
    ahead = [shown[0] - (delay - index) * step for index in range(min(delay, len(shown)))]
    return ahead + shown[: len(shown) - len(ahead)]


def _decode_time(packet: Any) -> Fraction:
    time = packet.dts if packet.dts is not None else packet.pts
    return time * packet.time_base if time is not None else Fraction(0)
