"""Convert sound and text that an output container does not take as they are."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from typing import Any, Literal

import av

from vidup.errors import MediaError
from vidup.frame import MediaInfo
from vidup.media import sound
from vidup.media.containers import Container
from vidup.media.opening import Channels, channels, open_input
from vidup.media.packets import Trim, kept_packets, tolerance

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


def converters(stream: Any, container: Container) -> Iterator[tuple[str, str, str]]:
    """The encoders, layouts of channels, and what is lost with them in words, for a stream that does not fit as it is,
    the best first.
    """
    context = stream.codec_context
    if context is None:
        return
    codec = context.codec
    if stream.type == "audio" and context.sample_rate:
        encoder = container.lossless_sound if codec.lossless and not codec.lossy else container.sound
        given = channels(context)
        yield encoder, _plain_layout(given), ""
        if given.number > 2:  # a layout that the encoder does not know
            yield encoder, "stereo", f"; {given.layout} becomes stereo"
    elif stream.type == "subtitle" and codec.text_sub:
        yield container.text, "", ""


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
        form = stream.codec_context.format
        deep = form is None or form.bits > 16
        context.format = {"alac": "s32p" if deep else "s16p", "flac": "s32" if deep else "s16"}[plan.encoder]
    else:
        context.bit_rate = _BITS_A_CHANNEL * context.layout.nb_channels
    context.time_base = added.time_base = Fraction(1, rate)
    context.open()
    return added


def _plain_layout(given: Channels) -> str:
    """Encoders know the layouts with rear speakers only, and none without an order."""
    plain = {"5.1(side)": "5.1", "5.0(side)": "5.0", "7.1(wide)": "7.1", "quad(side)": "quad"}
    name = given.layout
    if "channels" in name:
        usual = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
        name = usual.get(given.number, name)
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
    if plan.kind == "audio":
        return _converted_sound(info, plan, stream, trim)
    texts = _converted_text(info, plan, stream, trim)
    return apart(texts) if plan.encoder == "mov_text" else texts


def _converted_sound(info: MediaInfo, plan: StreamPlan, stream: Any, trim: Trim | None) -> Generator[Any, None, None]:
    context = stream.codec_context
    with open_input(info.path) as source:
        order = channels(source.streams[plan.index].codec_context).order
        with closing(sound.decoded(source, plan.index, plan.name, trim)) as frames:
            for frame in chain(sound.fitted(frames, context, order, cut=trim is not None), [None]):
                for packet in context.encode(frame):
                    packet.stream = stream
                    yield packet


def _converted_text(info: MediaInfo, plan: StreamPlan, stream: Any, trim: Trim | None) -> Generator[Any, None, None]:
    with open_input(info.path) as source:
        decoder = source.streams[plan.index].codec_context
        for packet in kept_packets(source, [plan.index], trim, tolerance(info, log.warning)):
            try:
                texts = _decoded_text(decoder, packet)
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


def _decoded_text(decoder: Any, packet: Any) -> Any:
    """What PyAV decodes of a text, which is taken as Windows-1252 where it is no UTF-8."""
    data = bytes(packet)
    try:
        data.decode()
    except UnicodeDecodeError:
        mended = av.Packet(data.decode("cp1252", errors="replace").encode())
        mended.pts, mended.dts, mended.time_base = packet.pts, packet.dts, packet.time_base
        mended.duration = packet.duration or 0
        packet = mended
    return decoder.decode2(packet)


def apart(texts: Iterable[Any]) -> Generator[Any, None, None]:
    """Packets of mov_text, one at a time, as a track shows them: where some overlap, pieces of time show all."""
    packets = sorted(texts, key=lambda packet: packet.pts)
    moments = sorted({moment for one in packets for moment in (one.pts, one.pts + one.duration)})
    standing: list[Any] = []
    following = deque(packets)
    for begin, end in pairwise(moments):
        standing = [one for one in standing if one.pts + one.duration > begin]
        while following and following[0].pts <= begin:
            standing.append(following.popleft())
        if len(standing) == 1 and (standing[0].pts, standing[0].duration) == (begin, end - begin):
            yield standing[0]
        elif standing:
            said = b"\n".join(data[2 : 2 + int.from_bytes(data[:2], "big")] for data in map(bytes, standing))
            piece = av.Packet(len(said).to_bytes(2, "big") + said)  # without styles, which count letters
            piece.stream, piece.time_base = standing[0].stream, standing[0].time_base
            piece.pts = piece.dts = begin
            piece.duration = end - begin
            yield piece


def words(packet: Any) -> str:
    """What a subtitle's packet says, without markup and spaces; empty where it is a picture, or says nothing."""
    context = packet.stream.codec_context
    if not context.codec.text_sub:
        return ""
    try:
        texts = _decoded_text(context, packet)
    except av.error.FFmpegError:
        return ""
    return "".join(_MARKUP.sub("", text.dialogue.decode(errors="replace")) for text in texts or ())
