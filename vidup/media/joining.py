"""Join segments, and the streams that are copied or converted, into the output file."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from vidup.errors import MediaError
from vidup.media import animation_output, conversion_cache, streams
from vidup.media.containers import Container, video_format
from vidup.media.delivery import Delivery
from vidup.media.encoder import Encoding, open_context
from vidup.media.opening import open_input, reason
from vidup.media.packets import Trim
from vidup.media.segment import av_packets, read_segment


def join(output: Path, delivery: Delivery, encoding: Encoding, segments: Sequence[Path], folder: Path) -> list[int]:
    """Join segments with the streams that are copied from the input, and with the converted streams.

    Args:
        folder: the folder with the converted streams, see `conversion_cache.convert`.

    Returns:
        When each picture is shown, rising, in `encoding.time_base`.

    Raises:
        ConfigError: the encoder refuses.
        MediaError: a segment is damaged, the input cannot be read or the output cannot be written.
    """
    info, container, plans = delivery.info, delivery.container, delivery.streams
    if container.is_animated:
        return animation_output.join(output, delivery, encoding, segments)
    order = [packet.pts for segment in segments for packet in read_segment(segment)]
    if len(order) != len(set(order)):
        raise MediaError(f"{output}: two pictures have the same time")
    with ExitStack() as stack:
        source = stack.enter_context(open_input(info.path, whole=info.unlisted))
        converted = {
            plan.index: stack.enter_context(open_input(conversion_cache.path_of(folder, plan)))
            for plan in plans
            if plan.action == "convert"
        }
        target = None
        try:
            begins = [*source.streams, *(opened.streams[0] for opened in converted.values())]
            times = streams.start_options(container, begins, encoding.time_base)
            options = times | container.tag_options(source.metadata)
            kind: dict[str, Any] = {"format": container.name, "metadata_errors": "surrogateescape"}
            target = av.open(f"file:{output}", "w", container_options=options, **kind)
            video = _add_video(target, source.streams[info.video_index], encoding, container, info.variable_rate)
            others = streams.add_streams(target, source, container, plans, converted)
            copies = [index for index in others if index not in converted]
            packets = [streams.copied_packets(info, others, copies, delivery.trim)]
            packets += [conversion_cache.packets(opened, others[index]) for index, opened in converted.items()]
            shift = Fraction(0)
            if container.below_zero == "shifted":
                shift = streams.lateness(info, plans, delivery.trim, min(order) * encoding.time_base, packets)
            _add_facts(target, source, delivery, shift)
            if info.stereo_mode and container.family == "matroska":
                video.metadata["stereo_mode"] = info.stereo_mode
            if delivery.display_matrix is not None:
                video.set_display_matrix(delivery.display_matrix)
            target.start_encoding()
            merged = heapq.merge(_video_packets(segments, encoding, video, order), *packets, key=_decode_time)
            streams.mux(target, merged, shift)
            target.close()
        except av.error.FFmpegError as error:
            raise MediaError(f"{output}: cannot be written: {reason(error)}") from error
        finally:
            if target is not None:
                with suppress(av.error.FFmpegError):
                    target.close()
    return sorted(order)


def _add_video(target: Any, source: Any, encoding: Encoding, container: Container, variable_rate: bool) -> Any:
    stream = target.add_stream(encoding.codec, rate=encoding.rate)
    context = stream.codec_context  # encodes nothing: the muxer reads size, colour and extradata from it
    if variable_rate and container.family == "matroska":
        # With a rate, mkv would state a constant frame duration; the extradata are those of the true rate.
        open_context(context, replace(encoding, rate=Fraction(0), time_base=Fraction(1, 25)))
        context.extradata = open_context(av.CodecContext.create(encoding.codec, "w"), encoding).extradata
    else:
        open_context(context, encoding)
    stream.time_base = encoding.time_base
    if video_format(encoding.codec) == "hevc" and container.family == "mov":
        context.codec_tag = "hvc1"  # Apple's players require it
    stream.metadata.update(streams.tags(source, container, encoded=True))
    if encoding.alpha_apart:
        stream.metadata["alpha_mode"] = "1"
    stream.disposition = source.disposition
    return stream


def _add_facts(target: Any, source: Any, delivery: Delivery, shift: Fraction) -> None:
    written_by_muxer = {"major_brand", "minor_version", "compatible_brands", "encoder"}
    target.metadata.update(
        {key: value for key, value in source.metadata.items() if key.lower() not in written_by_muxer}
    )
    found = chapters(source, delivery.trim)
    for chapter in found:
        chapter |= {side: chapter[side] + round(shift / chapter["time_base"]) for side in ("start", "end")}
    if delivery.container.family == "mov" and found and found[0]["start"] > 0:
        # Its chapters are a track of texts without gaps from 0 on: an empty one fills the time before the first.
        before = {"start": 0, "end": found[0]["start"], "time_base": found[0]["time_base"], "metadata": {"title": ""}}
        found.insert(0, before)
    target.set_chapters([chapter | {"id": number} for number, chapter in enumerate(found)])


def chapters(source: Any, trim: Trim | None) -> list[Any]:
    """The chapters of an open input as PyAV's records, without duplicates: an mp4 may have a track and a list of them.

    Of a part, those that overlap it, with their times counted from its begin.
    """
    found = []
    seen = set()
    for chapter in source.chapters():
        unit = chapter["time_base"]
        shown = chapter["start"] * unit, chapter["end"] * unit, chapter["metadata"].get("title")
        if shown in seen:
            continue
        seen.add(shown)
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
        for packet in av_packets(segment, encoding):
            packet.stream, packet.dts = stream, next(decode_times)
            yield packet


def _decode_times(order: list[int]) -> list[int]:
    """Decode times for packets whose presentation times are given in the order of decoding.

    They are the presentation times in rising order, shifted back as far as reordering needs. An encoder's own decode
    times are valid within one segment; across segments they would overlap.
    """
    shown = sorted(order)
    rank = {pts: index for index, pts in enumerate(shown)}
    delay = max(0, max((index - rank[pts] for index, pts in enumerate(order)), default=0))
    apart = shown[1] - shown[0] if len(shown) > 1 else 1
    ahead = [shown[0] - (delay - index) * apart for index in range(min(delay, len(shown)))]
    return ahead + shown[: len(shown) - len(ahead)]


def _decode_time(packet: Any) -> float:
    """A packet's decode time in seconds, precise enough to order the packets of a file."""
    time, unit = packet.dts if packet.dts is not None else packet.pts, packet.time_base
    return time * unit.numerator / unit.denominator if time is not None else 0.0
