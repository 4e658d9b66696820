"""Files with streams of every kind, made on the spot: small pictures, several sounds, subtitles, a cover, a font ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np

MILLISECOND = Fraction(1, 1000)
ASS_HEAD = (
    "[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\nFormat: Name, Fontname, Fontsize\nStyle: Default,Arial,16\n\n"
    "[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
)
FONT = bytes(range(256)) * 40
TEXTS = ((200, 300, "one"), (600, 200, "two"), (900, 400, "three"))  # begin and length in milliseconds


@dataclass(frozen=True)
class Sound:
    codec: str
    language: str = ""
    layout: str = "stereo"
    rate: int = 48000
    begin: Fraction = Fraction(0)
    seconds: Fraction = Fraction(3, 2)
    default: bool = False


@dataclass(frozen=True)
class Text:
    codec: str
    language: str = ""
    forced: bool = False
    texts: Sequence[tuple[int, int, str]] = TEXTS


@dataclass(frozen=True)
class Material:
    """What goes into a file; `write` makes it."""

    sounds: Sequence[Sound] = ()
    texts: Sequence[Text] = ()
    chapters: Sequence[tuple[int, int, str]] = ()
    tags: dict[str, str] = field(default_factory=dict)
    video_tags: dict[str, str] = field(default_factory=dict)
    attachment: bool = False
    cover: str = ""
    """The codec of a cover: ``mjpeg`` or ``png``."""
    begin: int = 0
    """When the pictures begin, in milliseconds."""
    frames: int = 38
    codec: str = "libx264"
    size: tuple[int, int] = (32, 32)

    def write(self, path: Path) -> Path:
        ending = path.suffix[1:]
        kind = {"mkv": "matroska", "ts": "mpegts"}.get(ending, ending)
        options = {"movie_timescale": "48000"} if kind in ("mp4", "mov") else {}
        if kind in ("mpegts", "nut"):
            options["avoid_negative_ts"] = "disabled"
        with av.open(str(path), "w", format=kind, container_options=options) as target:
            video = _video(target, self)
            audios = [_sound_stream(target, sound) for sound in self.sounds]
            texts = [_text_stream(target, text) for text in self.texts]
            cover = _cover(target, self.cover, kind) if self.cover else None
            if self.attachment:
                target.add_attachment("font.ttf", "application/x-truetype-font", FONT)
            target.metadata.update(self.tags)
            target.set_chapters([
                {"id": index, "start": begin, "end": end, "time_base": MILLISECOND, "metadata": {"title": title}}
                for index, (begin, end, title) in enumerate(self.chapters)
            ])  # fmt: skip
            packets = _pictures(video, self)
            for stream, sound in zip(audios, self.sounds, strict=True):
                packets += _sound_packets(stream, sound)
            for stream, text in zip(texts, self.texts, strict=True):
                packets += _text_packets(stream, text)
            if cover is not None:
                target.mux(cover)
            for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
                target.mux(packet)
        return path


@cache
def noise(seconds: Fraction, rate: int, channels: int) -> np.ndarray:
    """Sound that is like itself at no other delay: noise of 200 to 3000 Hz, (channels, samples) float32."""
    count = int(seconds * rate)
    spectrum = np.fft.rfft(np.random.default_rng(7).standard_normal((channels, count)))
    pitch = np.fft.rfftfreq(count, 1 / rate)
    spectrum[:, (pitch < 200) | (pitch > 3000)] = 0
    if channels == 6:
        spectrum[3, pitch > 400] = 0  # the low-frequency channel, of which encoders keep no more
    wave = np.fft.irfft(spectrum, count)
    return (0.2 * wave / wave.std()).clip(-0.99, 0.99).astype(np.float32)


def _video(target: Any, what: Material) -> Any:
    stream = target.add_stream(what.codec, rate=25)
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = *what.size, "yuv420p"
    context.time_base = stream.time_base = MILLISECOND
    context.colorspace, context.color_primaries, context.color_trc, context.color_range = 6, 6, 6, 1
    if what.codec == "libx264":
        context.options = {"preset": "ultrafast", "crf": "20", "g": "12"}
    else:
        context.options = {"cpu-used": "8", "deadline": "realtime", "crf": "20", "lag-in-frames": "0"}
    if what.codec == "libvpx-vp9":
        context.max_b_frames = 0
    stream.metadata.update(what.video_tags)
    return stream


def _pictures(stream: Any, what: Material) -> list[Any]:
    width, height = what.size
    y, x = np.mgrid[:height, :width]
    packets = []
    for index in range(what.frames):
        luma = 126 + 90 * np.sin(x / 5 + index / 2) * np.cos(y / 7 - index / 3)
        picture = np.stack([luma, 255 - luma, np.full_like(luma, 5 * index % 256)], -1).clip(0, 255).astype(np.uint8)
        frame = av.VideoFrame.from_ndarray(picture).reformat(format="yuv420p", dst_colorspace="ITU601")
        frame.pts, frame.duration, frame.time_base = what.begin + 40 * index, 40, MILLISECOND
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def _sound_stream(target: Any, sound: Sound) -> Any:
    stream = target.add_stream(sound.codec, rate=sound.rate)
    context = stream.codec_context
    context.layout = sound.layout
    formats = [form.name for form in context.codec.audio_formats]
    wanted = "s32" if sound.codec == "pcm_s24le" else "s16" if sound.codec in ("flac", "pcm_s16le") else formats[0]
    context.format = wanted
    context.time_base = stream.time_base = Fraction(1, sound.rate)
    if sound.codec == "vorbis":
        context.options = {"strict": "experimental"}
    if not sound.codec.startswith(("pcm", "flac")):
        context.bit_rate = 96_000 * context.layout.nb_channels
    context.open()
    if sound.language:
        stream.metadata["language"] = sound.language
    stream.disposition = av.stream.Disposition.default if sound.default else av.stream.Disposition(0)
    return stream


def _sound_packets(stream: Any, sound: Sound) -> list[Any]:
    context = stream.codec_context
    wave = noise(sound.seconds, sound.rate, context.layout.nb_channels)
    resampler = av.AudioResampler(context.format, context.layout, sound.rate, context.frame_size or 1024)
    packets, first = [], round(sound.begin * sound.rate)
    for start in range(0, wave.shape[1], 1024):
        part = np.ascontiguousarray(wave[:, start : start + 1024])
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=sound.layout)
        frame.sample_rate, frame.pts, frame.time_base = sound.rate, first + start, Fraction(1, sound.rate)
        for ready in resampler.resample(frame):
            packets += stream.encode(ready)
    for ready in resampler.resample(None):
        packets += stream.encode(ready)
    return packets + stream.encode(None)


def _text_stream(target: Any, text: Text) -> Any:
    stream = target.add_stream(text.codec)
    stream.time_base = stream.codec_context.time_base = MILLISECOND
    context = stream.codec_context
    if text.codec == "dvdsub":
        context.width, context.height = 32, 32
    else:
        context.subtitle_header = ASS_HEAD.encode()
        context.open()
    if text.language:
        stream.metadata["language"] = text.language
    stream.disposition = av.stream.Disposition.forced if text.forced else av.stream.Disposition(0)
    return stream


def _text_packets(stream: Any, text: Text) -> list[Any]:
    packets = []
    for index, (begin, length, words) in enumerate(text.texts):
        if text.codec in ("ass", "ssa"):
            data = f"{index},0,Default,,0,0,0,,{words}".encode()
        elif text.codec == "mov_text":
            data = len(words.encode()).to_bytes(2, "big") + words.encode()
        else:
            data = words.encode()
        packet = av.Packet(data)
        packet.stream, packet.time_base, packet.is_keyframe = stream, MILLISECOND, True
        packet.pts = packet.dts = begin
        packet.duration = length
        packets.append(packet)
    return packets


def _cover(target: Any, codec: str, kind: str) -> Any:
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.time_base = 16, 16, Fraction(1, 25)
    context.pix_fmt = "yuvj420p" if codec == "mjpeg" else "rgb24"
    red = np.full((16, 16, 3), (200, 30, 30), np.uint8)
    frame = av.VideoFrame.from_ndarray(red).reformat(format=context.pix_fmt)
    frame.pts = 0
    data = b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])
    if kind == "matroska":
        name, mime = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}[codec]
        target.add_attachment(name, mime, data)
        return None
    stream = target.add_stream(codec, rate=25)
    stream.codec_context.width = stream.codec_context.height = 16
    stream.codec_context.pix_fmt = context.pix_fmt
    stream.disposition = av.stream.Disposition.attached_pic
    packet = av.Packet(data)
    packet.stream, packet.time_base, packet.pts, packet.dts, packet.is_keyframe = stream, Fraction(1, 25), 0, 0, True
    return packet


def packets_of(path: Path) -> dict[int, list[tuple[Fraction, Fraction, bytes]]]:
    """Stream index -> (begin and length in seconds, data) of each packet."""
    with av.open(str(path)) as container:
        found: dict[int, list[tuple[Fraction, Fraction, bytes]]] = {s.index: [] for s in container.streams}
        for packet in container.demux():
            if packet.size:
                time = packet.pts if packet.pts is not None else packet.dts or 0
                base = packet.time_base
                found[packet.stream.index].append((time * base, (packet.duration or 0) * base, bytes(packet)))
        return found


def heard(path: Path, number: int, rate: int = 48000) -> tuple[Fraction, np.ndarray]:
    """When a file's sound of that number begins, in seconds, and all of it: (channels, samples), silence in gaps."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[number]
        pieces, begin = [], None
        for frame in container.decode(stream):
            time = frame.pts * frame.time_base
            begin = time if begin is None else begin
            channels = frame.layout.nb_channels
            whole = av.AudioResampler("fltp", frame.layout, frame.sample_rate).resample(frame)
            wave = np.concatenate([part.to_ndarray() for part in whole], 1)
            place = round((time - begin) * frame.sample_rate)
            end = pieces[-1][0] + pieces[-1][1].shape[1] if pieces else 0
            # Times in milliseconds are rounded: what nearly touches, touches.
            pieces.append((end if abs(place - end) <= frame.sample_rate // 500 else place, wave))
            assert frame.sample_rate == rate
    assert begin is not None, "no sound"
    result = np.zeros((channels, max(place + wave.shape[1] for place, wave in pieces)), np.float32)
    for place, wave in pieces:
        result[:, place : place + wave.shape[1]] = wave
    return begin, result
