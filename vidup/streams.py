"""Everything but the picture: what a container takes of the other streams, and their packets, copied or converted."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av

from vidup.config import Settings
from vidup.errors import MediaError
from vidup.frame import MediaInfo
from vidup.reader import open_input

log = logging.getLogger(__name__)

# What sound and text are converted to where a container does not take them as they are.
_SOUND = {"mp4": "aac", "mov": "aac", "webm": "libopus", "matroska": "flac"}
_LOSSLESS_SOUND = {"mp4": "alac", "mov": "alac", "webm": "libopus", "matroska": "flac"}
_TEXT = {"mp4": "mov_text", "mov": "mov_text", "webm": "webvtt", "matroska": "subrip"}

_BITS_A_CHANNEL = 96_000  # a second, for converted sound: transparent for both encoders
_COVERS = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png"), "bmp": ("cover.bmp", "image/bmp")}
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)


@dataclass(frozen=True)
class StreamPlan:
    """What happens to a stream of the input."""

    index: int
    name: str
    """What it is, in words: ``audio aac``."""
    kind: str
    """``video``, ``audio``, ``subtitle``, ``data`` or ``attachment``."""
    action: Literal["upscale", "copy", "convert", "attach", "drop"]
    reason: str = ""
    """Why it is converted or dropped."""
    encoder: str = ""
    """What it is converted with."""


@dataclass(frozen=True)
class Trim:
    """The part of the input that is kept, in seconds of its own time; the output begins at 0."""

    begin: Fraction
    end: Fraction


def plan_streams(info: MediaInfo, container: str, settings: Settings) -> list[StreamPlan]:
    """What the output container takes of the input, found by a dry run for each stream.

    Args:
        container: ``mp4``, ``mov``, ``matroska`` or ``webm``.
    """
    trimmed = settings.start > 0 or settings.duration is not None
    with open_input(info.path) as source:
        return [_plan(stream, info, container, settings, trimmed) for stream in source.streams]


def _plan(stream: Any, info: MediaInfo, container: str, settings: Settings, trimmed: bool) -> StreamPlan:
    known = info.streams[stream.index]
    name = f"{known.kind} {known.codec}" + (f" ({known.language})" if known.language else "")

    def plan(action: Any, reason: str = "", encoder: str = "") -> StreamPlan:
        return StreamPlan(stream.index, name, known.kind, action, reason, encoder)

    if stream.index == info.video_index:
        return plan("upscale")
    if (known.kind == "audio" and settings.no_audio) or (known.kind == "subtitle" and settings.no_subtitles):
        return plan("drop", "as asked for")
    if stream.type == "data" and stream.metadata.get("timecode"):
        return plan("drop", f"its timecode, {stream.metadata['timecode']}, is kept as a tag of the video")
    if trimmed and stream.type == "video" and not is_cover(stream):
        return plan("drop", "copied video cannot begin in its middle")
    refusal = _refusal(stream, container)
    if refusal is None:
        return plan("copy")
    if container == "matroska" and is_cover(stream):
        return plan("attach")
    encoder = _converter(stream, container)
    return plan("convert", refusal, encoder) if encoder else plan("drop", refusal)


def _refusal(stream: Any, container: str) -> str | None:
    """Why a container does not take a stream as it is; None where it does."""
    if is_cover(stream) and container in ("matroska", "webm"):
        return "a cover is no video track" if container == "matroska" else "webm has no place for a cover"
    if container in ("mp4", "mov") and stream.type in ("data", "attachment"):
        return f"{container} has no place for it"
    codec = stream.codec_context.name if stream.codec_context is not None else None
    if codec is None and stream.type != "attachment":
        return "its codec is not known"
    if container == "mp4" and codec is not None and codec.startswith("pcm_"):
        return "few players read PCM in mp4"
    with suppress(OSError), io.BytesIO() as nowhere:  # closing a container without packets may fail: it is thrown away
        target = av.open(nowhere, "w", format=container)
        try:
            target.add_stream_from_template(stream, opaque=True)
            target.start_encoding()
        except (av.error.FFmpegError, ValueError) as error:
            log.debug("stream %d: %s", stream.index, error)
            return f"{container} does not take {codec or 'it'}"
        target.close()
    return None


def _converter(stream: Any, container: str) -> str:
    """The encoder for a stream that does not fit as it is; empty where there is none."""
    if stream.codec_context is None:
        return ""
    codec = stream.codec_context.codec
    if stream.type == "audio" and stream.codec_context.sample_rate:
        return (_LOSSLESS_SOUND if codec.lossless and not codec.lossy else _SOUND)[container]
    return _TEXT[container] if stream.type == "subtitle" and codec.text_sub else ""


def is_cover(stream: Any) -> bool:
    """Whether a video stream is a still picture that stands for the file."""
    return bool(stream.type == "video" and stream.disposition & av.stream.Disposition.attached_pic)


def add_streams(target: Any, source: Any, plans: Sequence[StreamPlan]) -> dict[int, Any]:
    """Add all but the upscaled stream to an output; returns index in the source -> stream of the output."""
    streams = {}
    for plan in plans:
        stream = source.streams[plan.index]
        if plan.action == "copy":
            added = target.add_stream_from_template(stream, opaque=True)
        elif plan.action == "convert":
            add = _sound_encoder if plan.kind == "audio" else _text_encoder
            added = add(target, stream, plan)
        else:
            if plan.action == "attach":
                _attach(target, source, stream)
            continue
        added.metadata.update(stream.metadata)
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


def _sound_encoder(target: Any, stream: Any, plan: StreamPlan) -> Any:
    rate = stream.codec_context.sample_rate
    if plan.encoder == "libopus" and rate not in _OPUS_RATES:
        rate = 48000
    added = target.add_stream(plan.encoder, rate=rate)
    context = added.codec_context
    context.layout = _plain_layout(stream.codec_context.layout)
    if plan.encoder in ("alac", "flac"):
        deep = stream.codec_context.format.bits > 16
        context.format = {"alac": "s32p" if deep else "s16p", "flac": "s32" if deep else "s16"}[plan.encoder]
    else:
        context.bit_rate = _BITS_A_CHANNEL * stream.codec_context.layout.nb_channels
    context.time_base = added.time_base = Fraction(1, rate)
    context.open()
    return added


def _plain_layout(layout: Any) -> str:
    """Encoders know the layouts with rear speakers only, and none without an order."""
    plain = {"5.1(side)": "5.1", "5.0(side)": "5.0", "7.1(wide)": "7.1", "quad(side)": "quad"}
    name = str(layout.name)
    if "channels" in name:
        name = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 8: "7.1"}.get(layout.nb_channels, name)
    return plain.get(name, name)


def _text_encoder(target: Any, stream: Any, plan: StreamPlan) -> Any:
    added = target.add_stream(plan.encoder)
    added.time_base = Fraction(1, 1000)
    context = added.codec_context
    context.time_base = Fraction(1, 1000)
    stream.codec_context.open(strict=False)
    context.subtitle_header = stream.codec_context.subtitle_header
    context.open()
    return added


def other_packets(
    info: MediaInfo, plans: Sequence[StreamPlan], streams: dict[int, Any], trim: Trim | None
) -> list[Iterator[Any]]:
    """The packets of all streams but the upscaled one, ready to be muxed: iterators that each rise in time."""
    copies = [plan.index for plan in plans if plan.action == "copy" and plan.index in streams]
    iterators = [_copied(info, copies, streams, trim)] if copies else []
    for plan in plans:
        if plan.action == "convert":
            convert = _converted_sound if plan.kind == "audio" else _converted_text
            iterators.append(convert(info, plan, streams[plan.index], trim))
    return iterators


def _copied(info: MediaInfo, indices: Sequence[int], streams: dict[int, Any], trim: Trim | None) -> Iterator[Any]:
    with open_input(info.path) as source:
        for packet in kept_packets(source, indices, trim):
            packet.stream = streams[packet.stream.index]
            yield packet


def kept_packets(source: Any, indices: Sequence[int], trim: Trim | None) -> Iterator[Any]:
    """The packets of some streams of an open input, those that overlap `trim`, moved to begin with it at 0."""
    if not indices:
        return
    for packet in source.demux([source.streams[index] for index in indices]):
        if packet.size and (trim is None or _shift(packet, trim)):
            yield packet


def _shift(packet: Any, trim: Trim) -> bool:
    """Move a packet so that the kept part begins at 0; False where it lies outside."""
    if is_cover(packet.stream):
        return True
    time = packet.pts if packet.pts is not None else packet.dts
    if time is None:
        return False
    begin = time * packet.time_base
    end = begin + (packet.duration or 0) * packet.time_base
    if end <= trim.begin or begin >= trim.end:
        return False
    offset = round(trim.begin / packet.time_base)
    if packet.pts is not None:
        packet.pts -= offset
    if packet.dts is not None:
        packet.dts -= offset
    return True


def _converted_sound(info: MediaInfo, plan: StreamPlan, stream: Any, trim: Trim | None) -> Iterator[Any]:
    context = stream.codec_context

    def encoded(frame: Any) -> Iterator[Any]:
        for packet in context.encode(frame):
            packet.stream = stream
            yield packet

    with open_input(info.path) as source, closing(_sound(source, plan, trim)) as frames:
        graph: Any = None
        for frame in frames:
            graph = graph or _sound_graph(frame, context)
            graph.push(frame)
            for ready in _pulled(graph):
                yield from encoded(ready)
        if graph is not None:
            graph.push(None)
            for ready in _pulled(graph):
                yield from encoded(ready)
            yield from encoded(None)


def _sound(source: Any, plan: StreamPlan, trim: Trim | None) -> Iterator[Any]:
    stream = source.streams[plan.index]
    damaged = 0
    for packet in source.demux(stream):
        try:
            frames = stream.decode(packet)
        except av.error.FFmpegError as error:
            damaged += 1
            log.debug("%s", error)
            continue
        for frame in frames:
            if frame.pts is None:
                continue
            if trim is not None:
                begin = frame.pts * frame.time_base
                if begin + Fraction(frame.samples, frame.sample_rate) <= trim.begin or begin >= trim.end:
                    continue
                frame.pts -= round(trim.begin / frame.time_base)
            yield frame
    if damaged:
        log.warning("stream %d (%s): %d damaged packets became silence", plan.index, plan.name, damaged)


def _sound_graph(frame: Any, context: Any) -> Any:
    """To the encoder's format, in frames of its size; what is missing in between becomes silence."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(
        sample_rate=frame.sample_rate, format=frame.format.name, layout=frame.layout.name, time_base=frame.time_base
    )
    steps = [
        source,
        graph.add("aresample", "async=1"),
        graph.add(
            "aformat",
            f"sample_fmts={context.format.name}:sample_rates={context.sample_rate}"
            f":channel_layouts={context.layout.name}",
        ),
        *([graph.add("asetnsamples", f"n={context.frame_size}:p=0")] if context.frame_size else []),
        graph.add("abuffersink"),
    ]
    graph.link_nodes(*steps).configure()
    return graph


def _pulled(graph: Any) -> Iterator[Any]:
    with suppress(av.error.BlockingIOError, av.error.EOFError):
        while True:
            yield graph.pull()


def _converted_text(info: MediaInfo, plan: StreamPlan, stream: Any, trim: Trim | None) -> Iterator[Any]:
    with open_input(info.path) as source:
        decoder = source.streams[plan.index].codec_context
        for packet in kept_packets(source, [plan.index], trim):
            try:
                texts = decoder.decode2(packet)
                if texts is None or len(texts) == 0:
                    continue
                texts.pts = 0
                result = stream.codec_context.encode_subtitle(texts)
            except av.error.FFmpegError as error:
                raise MediaError(
                    f"{info.path}: stream {plan.index} ({plan.name}) cannot be converted to {plan.encoder}: {error};"
                    " take an output that ends in .mkv, or --no-subtitles"
                ) from None
            tick = Fraction(1, 1000)
            begin = packet.pts * packet.time_base
            length = (packet.duration or 0) * packet.time_base or texts.end_display_time * tick
            result.stream, result.time_base = stream, tick
            result.pts = result.dts = round(begin / tick)
            result.duration = round(length / tick)
            yield result


def kept_tags(stream: Any) -> dict[str, str]:
    """The tags of the upscaled stream without those that tell of the old encoding."""
    stale = ("bps", "duration", "number_of_", "_statistics_", "encoder", "vendor_id", "source_id")
    return {key: value for key, value in stream.metadata.items() if not key.lower().startswith(stale)}
