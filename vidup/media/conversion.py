"""Convert sound and text that an output container does not take as they are."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av

from vidup.errors import MediaError
from vidup.frame import MediaInfo
from vidup.media.containers import Container, is_cover
from vidup.media.opening import clock, open_input, tolerant_demux

log = logging.getLogger(__name__)

_BITS_A_CHANNEL = 96_000  # a second, for converted sound: transparent for both encoders
_MARKUP = re.compile(r"\{[^}]*\}|<[^>]*>|\\[Nnh]|\W")


@dataclass(frozen=True)
class StreamPlan:
    """What happens to a stream of the input."""

    index: int
    name: str
    """What it is, in words: ``audio aac``."""
    kind: str
    """``video``, ``audio``, ``subtitle``, ``data`` or ``attachment``."""
    action: Literal["upscale", "copy", "convert", "attach", "tell", "drop"]
    """``tell``: what it says is kept in another form, as a tag or as chapters."""
    reason: str = ""
    """Why it is not copied as it is."""
    encoder: str = ""
    """What it is converted with."""
    layout: str = ""
    """Of the channels of converted sound."""


@dataclass(frozen=True)
class Trim:
    """The part of the input that is kept, in seconds of its own time; the output begins at 0."""

    begin: Fraction
    end: Fraction


def kept_packets(
    source: Any, indices: Sequence[int], trim: Trim | None, damaged: Callable[[str], None] | None = None
) -> Iterator[Any]:
    """The packets of some streams of an open input, those that overlap `trim`, moved to begin with it at 0.

    Args:
        damaged: is told what is wrong; where it returns, what cannot be read or put in any container is left out.

    Raises:
        MediaError: the input is damaged, and there is no `damaged`.
    """
    if not indices:
        return

    def refuse(what: str) -> None:
        raise MediaError(f"{source.name.removeprefix('file:')}: {what}; --tolerate-errors leaves out what is damaged")

    tell, last = damaged or refuse, dict[int, int]()
    transport = source.format.name == "mpegts"
    for packet in tolerant_demux(source, [source.streams[index] for index in indices], tell):
        if not packet.size:
            continue
        index, dts = packet.stream.index, packet.dts
        if dts is not None and packet.stream.type in ("audio", "video"):
            if dts < last.get(index, dts) or (packet.pts is not None and packet.pts < dts):
                tell(f"stream {index}: its packet at {clock(packet.pts, packet.time_base)} is out of order")
                continue
            last[index] = dts
        if transport and packet.stream.type == "audio" and not _adts_holds(packet):
            tell(f"stream {index}: its packet at {clock(packet.pts, packet.time_base)} is damaged")
            continue
        if trim is None or _shift(packet, trim):
            yield packet


def _adts_holds(packet: Any) -> bool:
    """Whether a packet of a transport stream has a header that can be taken off, where it is AAC (ISO/IEC 13818-7)."""
    if packet.stream.codec_context is None or packet.stream.codec_context.name != "aac":
        return True
    head = bytes(packet)[:7]
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
        return False
    return bool(int.from_bytes(head[3:6], "big") >> 5 & 0x1FFF <= packet.size)


def tolerance(info: MediaInfo, tell: Callable[..., None] = log.debug) -> Callable[[str], None] | None:
    """What `kept_packets` is given as `damaged`: None where an input was read without tolerance for errors."""
    return (lambda what: tell("%s: %s: left out", info.path, what)) if info.tolerant else None


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
    if packet.stream.type == "subtitle":
        # A text that stands already, or still, when the part begins, or ends, is shown as long as the part lasts.
        begin, end = max(begin, trim.begin), min(end, trim.end)
        packet.pts = packet.dts = round(begin / packet.time_base)
        packet.duration = round(end / packet.time_base) - packet.pts
    finer = common(packet.time_base, trim.begin)
    scale, offset = int(packet.time_base / finer), round(trim.begin / finer)
    if packet.pts is not None:
        packet.pts = packet.pts * scale - offset
    if packet.dts is not None:
        packet.dts = packet.dts * scale - offset
    packet.duration, packet.time_base = (packet.duration or 0) * scale, finer
    return True


def common(unit: Fraction, moment: Fraction) -> Fraction:
    """The longest unit of time that counts whole units and a moment, so that what is moved by it is not rounded; the
    given one where ffmpeg cannot count in that.
    """
    scale = unit.denominator * moment.denominator
    both = Fraction(math.gcd(unit.numerator * moment.denominator, moment.numerator * unit.denominator), scale)
    return both if max(both.numerator, both.denominator) < 2**31 and unit / both < 2**20 else unit


def converters(stream: Any, container: Container) -> Iterator[tuple[str, str]]:
    """The encoders, and layouts of channels, for a stream that does not fit as it is, the best first."""
    context = stream.codec_context
    if context is None:
        return
    codec = context.codec
    if stream.type == "audio" and context.sample_rate:
        encoder = container.lossless_sound if codec.lossless and not codec.lossy else container.sound
        yield encoder, _plain_layout(context.layout)
        if context.layout.nb_channels > 2:  # a layout that the encoder does not know
            yield encoder, "stereo"
    elif stream.type == "subtitle" and codec.text_sub:
        yield container.text, ""


def encoder(target: Any, stream: Any, plan: StreamPlan) -> Any:
    """Add a stream to an output that a stream of the input is converted to."""
    return (_sound_encoder if plan.kind == "audio" else _text_encoder)(target, stream, plan)


def _sound_encoder(target: Any, stream: Any, plan: StreamPlan) -> Any:
    rate, rates = stream.codec_context.sample_rate, av.Codec(plan.encoder, "w").audio_rates
    added = target.add_stream(plan.encoder, rate=rate if not rates or rate in rates else 48000)
    context = added.codec_context
    rate = context.sample_rate
    context.layout = plan.layout
    if plan.encoder in ("alac", "flac"):
        deep = stream.codec_context.format.bits > 16
        context.format = {"alac": "s32p" if deep else "s16p", "flac": "s32" if deep else "s16"}[plan.encoder]
    else:
        context.bit_rate = _BITS_A_CHANNEL * context.layout.nb_channels
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


def converted(info: MediaInfo, plan: StreamPlan, stream: Any, trim: Trim | None) -> Generator[Any, None, None]:
    """The packets of a converted stream, ready to be muxed."""
    return (_converted_sound if plan.kind == "audio" else _converted_text)(info, plan, stream, trim)


def _converted_sound(info: MediaInfo, plan: StreamPlan, stream: Any, trim: Trim | None) -> Generator[Any, None, None]:
    context = stream.codec_context

    def encoded(frame: Any) -> Iterator[Any]:
        for packet in context.encode(frame):
            packet.stream = stream
            yield packet

    with open_input(info.path) as source, closing(_sound(source, plan, trim)) as frames:
        graph: Any = None
        for frame in frames:
            graph = graph or _sound_graph(frame, context, cut=trim is not None)
            graph.push(frame)
            for ready in _pulled(graph):
                yield from encoded(ready)
        if graph is not None:
            graph.push(None)
            for ready in _pulled(graph):
                yield from encoded(ready)
            yield from encoded(None)


def _sound(source: Any, plan: StreamPlan, trim: Trim | None) -> Generator[Any, None, None]:
    stream = source.streams[plan.index]
    damaged = 0
    for packet in tolerant_demux(source, stream, log.debug):
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


def _sound_graph(frame: Any, context: Any, cut: bool) -> Any:
    """To the encoder's format, in frames of its size; what is missing in between becomes silence.

    Args:
        cut: leave out what lies before 0.
    """
    graph = av.filter.Graph()
    source = graph.add_abuffer(
        sample_rate=frame.sample_rate, format=frame.format.name, layout=frame.layout.name, time_base=frame.time_base
    )
    steps = [
        source,
        *([graph.add("atrim", "start=0")] if cut else []),
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


def _converted_text(info: MediaInfo, plan: StreamPlan, stream: Any, trim: Trim | None) -> Generator[Any, None, None]:
    with open_input(info.path) as source:
        decoder = source.streams[plan.index].codec_context
        for packet in kept_packets(source, [plan.index], trim, tolerance(info, log.warning)):
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


def words(packet: Any) -> str:
    """What a subtitle's packet says, without markup and spaces; empty where it is a picture, or says nothing."""
    context = packet.stream.codec_context
    if not context.codec.text_sub:
        return ""
    try:
        texts = context.decode2(packet)
    except av.error.FFmpegError:
        return ""
    return "".join(_MARKUP.sub("", text.dialogue.decode(errors="replace")) for text in texts or ())
