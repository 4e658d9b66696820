"""Re-encode audio and subtitles whose format the output container cannot store."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any, Literal

import av

from vidup.errors import MediaError
from vidup.frame import MediaInfo
from vidup.media import sound, texts
from vidup.media.containers import Container
from vidup.media.opening import Channels, channels, open_input
from vidup.media.packets import Trim, kept_packets

log = logging.getLogger(__name__)

_BITS_A_CHANNEL = 96_000  # a second, for converted sound: transparent for both encoders


@dataclass(frozen=True)
class StreamPlan:
    """What is done with a stream of the input."""

    index: int
    name: str
    """Kind, codec and language: ``audio aac (eng)``."""
    kind: str
    """``video``, ``audio``, ``subtitle``, ``data`` or ``attachment``."""
    action: Literal["upscale", "copy", "convert", "attach", "metadata", "drop"]
    """``metadata``: its content is kept as a tag or as chapters."""
    reason: str = ""
    """Why it is not copied."""
    encoder: str = ""
    """The encoder of a converted stream."""
    layout: str = ""
    """The channel layout of converted audio."""

    def dropped(self, reason: str) -> StreamPlan:
        """The plan to leave the stream out instead."""
        return StreamPlan(self.index, self.name, self.kind, "drop", reason)


def converters(stream: Any, container: Container) -> Iterator[tuple[str, str, str]]:
    """The possible conversions of a stream, the best first: encoder, channel layout, and what is lost, in words."""
    context = stream.codec_context
    if context is None:
        return
    codec = context.codec
    if stream.type == "audio" and context.sample_rate:
        encoder = container.lossless_sound if codec.lossless and not codec.lossy else container.sound
        given = channels(context)
        yield encoder, _plain_layout(given), ""
        if given.number > 2:  # the encoder may not know the layout
            yield encoder, "stereo", f"; {given.layout} becomes stereo"
    elif stream.type == "subtitle" and codec.text_sub:
        yield container.text, "", ""


def encoder(target: Any, stream: Any, plan: StreamPlan) -> Any:
    """Add the stream for a converted stream of the input to an output, and open its encoder."""
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
    """The nearest layout that encoders know: with rear instead of side speakers, and with a known order."""
    usual = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
    name = usual.get(given.number, given.layout) if "channels" in given.layout else given.layout
    return {"5.1(side)": "5.1", "5.0(side)": "5.0", "7.1(wide)": "7.1", "quad(side)": "quad"}.get(name, name)


def _text_encoder(target: Any, stream: Any, plan: StreamPlan) -> Any:
    added = target.add_stream(plan.encoder)
    context = added.codec_context
    context.time_base = added.time_base = texts.TICK
    stream.codec_context.open(strict=False)
    context.subtitle_header = stream.codec_context.subtitle_header
    context.open()
    return added


def converted(info: MediaInfo, plan: StreamPlan, stream: Any, trim: Trim | None) -> Generator[Any, None, None]:
    """The packets of a converted stream, ready to be muxed."""
    return (_converted_sound if plan.kind == "audio" else _converted_text)(info, plan, stream, trim)


def _converted_sound(info: MediaInfo, plan: StreamPlan, stream: Any, trim: Trim | None) -> Generator[Any, None, None]:
    context = stream.codec_context
    with open_input(info.path, whole=info.unlisted) as source:
        order = channels(source.streams[plan.index].codec_context).order
        with closing(sound.decoded(source, plan.index, plan.name, trim)) as frames:
            for frame in chain(sound.fitted(frames, context, order, cut=trim is not None), [None]):
                for packet in context.encode(frame):
                    packet.stream = stream
                    yield packet


def _converted_text(info: MediaInfo, plan: StreamPlan, stream: Any, trim: Trim | None) -> Generator[Any, None, None]:
    name = f"stream {plan.index} ({plan.name})"
    with open_input(info.path, whole=info.unlisted) as source:
        packets = kept_packets(source, info, [plan.index], trim, log.warning)
        shown = texts.ended(texts.decoded(packets, name))
        for text in texts.apart(shown) if plan.encoder == "mov_text" else shown:
            try:
                packet = texts.encoded(text, stream.codec_context)
            except av.error.FFmpegError as error:
                raise MediaError(
                    f"{info.path}: {name} cannot be converted to {plan.encoder}: {error};"
                    " take an output that ends in .mkv, or --no-subtitles"
                ) from None
            packet.stream = stream
            yield packet
