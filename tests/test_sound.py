"""Sound as it is found: packets of several frames, of equal times, without lengths; a file's own order of channels."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from material import Material, Sound, heard, noise, packets_of

import vidup
from vidup import ConfigError, Runtime, Settings
from vidup.job.describe import describe
from vidup.job.plan import plan
from vidup.media import sound
from vidup.media.opening import channels
from vidup.media.probing import probe

OPTIONS = {"webm": {"cpu-used": "8", "deadline": "realtime"}}
TARGETS = pytest.mark.parametrize("target", ["mp4", "mov", "mkv", "webm"])


def deliver(source: Path, target: str, **kwargs: Any) -> Path:
    output = source.with_name(f"output.{target}")
    options = OPTIONS.get(target, {"preset": "ultrafast"})
    settings = Settings(model="nearest", scale=2, encoder_options=options, **kwargs)
    vidup.upscale(source, output, settings, runtime=Runtime(overwrite=True))
    return output


def lines(source: Path, target: str) -> str:
    return "\n".join(describe(plan(source, source.with_name(f"output.{target}"), Settings(model="nearest", scale=2))))


def remuxed(source: Path, target: Path, change: Callable[[list[Any]], list[Any]], **options: str) -> Path:
    """A file with the packets of sound as `change` gives them."""
    kind = {"mkv": "matroska"}.get(target.suffix[1:], target.suffix[1:])
    with av.open(str(source)) as opened, av.open(str(target), "w", format=kind, container_options=options) as written:
        streams = {s.index: written.add_stream_from_template(s, opaque=True) for s in opened.streams}
        packets = [packet for packet in opened.demux() if packet.size]
        sounds = change([packet for packet in packets if packet.stream.type == "audio"])
        packets = [packet for packet in packets if packet.stream.type != "audio"] + sounds
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            packet.stream = streams[packet.stream.index]
            written.mux(packet)
    return target


def like(before: np.ndarray, after: np.ndarray) -> float:
    """How alike two sounds are that begin together, silence and loss included: 1 is equal."""
    size = min(before.shape[1], after.shape[1])
    one, two = before[:, :size], after[:, :size]
    return float((one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum()))


def grouped(packets: list[Any], count: int = 4) -> list[Any]:
    """The same blocks, several in a packet."""
    result = []
    for place in range(0, len(packets), count):
        group = packets[place : place + count]
        packet = av.Packet(b"".join(bytes(one) for one in group))
        packet.stream, packet.time_base = group[0].stream, group[0].time_base
        packet.pts, packet.dts, packet.is_keyframe = group[0].pts, group[0].dts, True
        packet.duration = sum(one.duration for one in group)
        result.append(packet)
    return result


@TARGETS
def test_packets_of_several_frames(tmp_path: Path, target: str):
    plain = Material(sounds=(Sound("adpcm_ms", layout="mono", rate=48000),)).write(tmp_path / "plain.asf")
    source = remuxed(plain, tmp_path / "source.asf", grouped)
    with av.open(str(source)) as opened:
        frames = [frame for frame in opened.decode(audio=0)]
        assert sum(frame.pts is None for frame in frames) > len(frames) / 2
        wave = np.concatenate([frame.to_ndarray() for frame in frames], 1).astype(np.float32)
    output = deliver(source, target)
    _, kept = heard(output, 0)
    assert like(wave, kept) > 0.98
    assert abs(kept.shape[1] - wave.shape[1]) < 2048


class Recording:
    """A file whose decoder tells the time of some frames only."""

    def __init__(self, packets: list[tuple[int | None, list[int | None]]]) -> None:
        self.streams = [self]
        self.format = av.ContainerFormat("matroska")
        self.codec_context = av.CodecContext.create("pcm_s16le", "r")
        self.codec_context.layout = "mono"
        self.packets = packets

    def demux(self, *streams: Any) -> Iterator[Any]:
        for time, _ in self.packets:
            packet = av.Packet(b"0" if time is not None else b"")
            packet.pts, packet.time_base = time, Fraction(1, 1000)
            yield packet

    def decode(self, packet: Any) -> list[Any]:
        frames = []
        for time in next(times for begin, times in self.packets if begin == packet.pts):
            frames.append(av.AudioFrame("s16", "mono", 480))
            frames[-1].sample_rate, frames[-1].pts, frames[-1].time_base = 48000, time, Fraction(1, 1000)
        return frames


@pytest.mark.parametrize(
    ("packets", "expected"),
    [
        # Counted back from the first time that is known, as with WMA, but not to before the first packet.
        ([(500, [None, None]), (530, [530, None]), (None, [None])], [510, 520, 530, 540, 550]),
        ([(500, [None, None, None]), (520, [520])], [500, 510, 520, 530]),
        # No time at all: from the first packet's on.
        ([(500, [None, None]), (None, [None])], [500, 510, 520]),
        # What differs by little is rounded; what differs by much is a gap, and what comes after it has no time.
        ([(0, [0, None]), (23, [23]), (700, [700, None])], [0, 10, 20, 700, 710]),
    ],
)
def test_every_frame_has_a_time(packets: list[tuple[int | None, list[int | None]]], expected: list[int]):
    found = list(sound.decoded(Recording(packets), 0, "audio", None))
    assert [frame.pts * 1000 * frame.time_base for frame in found] == expected


@pytest.mark.parametrize(
    ("codec", "rate", "ending", "target"),
    [("wavpack", 48000, "mkv", "mp4"), ("pcm_mulaw", 8000, "mov", "mp4"), ("adpcm_ima_wav", 8000, "avi", "mkv")],
)
def test_what_is_heard_is_compared_and_not_what_packets_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, codec: str, rate: int, ending: str, target: str
):
    """Packets of a second without a length, and encoders that begin 0.13 s early and say so."""
    source = Material(sounds=(Sound(codec, rate=rate, seconds=Fraction(2)),)).write(tmp_path / f"source.{ending}")
    with caplog.at_level(logging.WARNING, "vidup"):
        output = deliver(source, target)
    assert not caplog.records
    (before, wave), (after, kept) = heard(source, 0, rate), heard(output, 0, rate)
    assert abs(after - before) < Fraction(1, 50) and abs(kept.shape[1] - wave.shape[1]) <= 4096


def test_sound_that_differs_is_told_and_delivered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    source = Material(sounds=(Sound("libmp3lame"),)).write(tmp_path / "source.mkv")
    true = sound.fitted

    def late(frames: Any, *rest: Any, **more: Any) -> Iterator[Any]:
        kept = list(true(frames, *rest, **more))
        yield from kept[len(kept) // 2 :]

    monkeypatch.setattr(sound, "fitted", late)
    with caplog.at_level(logging.WARNING, "vidup"):
        output = source.with_name("output.webm")
        settings = Settings(model="nearest", scale=2, encoder_options=OPTIONS["webm"])
        vidup.upscale(source, output, settings)
    assert output.exists()
    (told,) = {record.getMessage() for record in caplog.records if "converted to libopus" in record.getMessage()}
    assert "begins 0.7" in told and " s late and is silent for 0.7" in told
    assert any("begins 0.7" in line for line in vidup.verify(source, output, settings).streams)

    def silent(frames: Any, *rest: Any, **more: Any) -> Iterator[Any]:
        for frame in true(frames, *rest, **more):
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            yield frame

    monkeypatch.setattr(sound, "fitted", silent)
    caplog.clear()
    with av.open(str(deliver(source, "webm"))) as written:
        assert not written.streams.audio
    assert "(audio mp3float) is left out: " in caplog.text and "is silent" in caplog.text


@TARGETS
def test_nothing_can_be_decoded(tmp_path: Path, target: str):
    plain = Material(sounds=(Sound("tta"),)).write(tmp_path / "plain.mkv")

    def spoilt(packets: list[Any]) -> list[Any]:
        return [short(packet) for packet in packets]

    def short(packet: Any) -> Any:
        result = av.Packet(bytes(packet)[:3])
        result.stream, result.time_base = packet.stream, packet.time_base
        result.pts, result.dts, result.duration, result.is_keyframe = packet.pts, packet.dts, packet.duration, True
        return result

    source = remuxed(plain, tmp_path / "source.mkv", spoilt)
    output = deliver(source, target)
    told = lines(source, target)
    with av.open(str(output)) as written:
        found = len(written.streams.audio)
    if target == "mkv":
        assert found == 1 and "left out" not in told
        return
    assert found == 0 and f"left out: {target} does not take tta, and nothing of it can be decoded" in told
    with pytest.raises(ConfigError, match="nothing of it can be decoded"):
        vidup.upscale(source, output, Settings(model="nearest"), runtime=Runtime(overwrite=True, strict=True))


@TARGETS
@pytest.mark.parametrize("length", [True, False])
def test_packets_of_one_time_follow_each_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, target: str, length: bool
):
    def bunched(packets: list[Any]) -> list[Any]:
        for place, packet in enumerate(packets):
            packet.pts = packet.dts = packets[place - place % 3].pts
            packet.duration = packet.duration if length else 0
        return packets

    plain = Material(sounds=(Sound("aac"),)).write(tmp_path / "plain.mkv")
    source = remuxed(plain, tmp_path / "source.mkv", bunched)
    times = [begin for begin, *_ in packets_of(source)[1]]
    assert len(set(times)) < len(times) / 2
    with caplog.at_level(logging.WARNING, "vidup"):
        output = deliver(source, target)
    assert target == "webm" or "follow each other by their lengths" in caplog.text
    times = [begin for begin, *_ in packets_of(output)[1]]
    assert len(set(times)) == len(times)
    assert like(heard(plain, 0)[1], heard(output, 0)[1]) > 0.95


@TARGETS
def test_sound_that_begins_late_keeps_its_last_packet(tmp_path: Path, target: str):
    """Matroska does not say how long the last packet lasts; mp4 hides what lies behind a stream's end."""
    source = Material(sounds=(Sound("aac", begin=Fraction(1, 2)),), frames=50).write(tmp_path / "source.mkv")
    output = deliver(source, target)
    if target != "webm":
        assert [data for *_, data in packets_of(source)[1]] == [data for *_, data in packets_of(output)[1]]


def film_order(path: Path) -> Path:
    """PCM in mov whose channels are in a film's order, a tone of its own in each."""
    with av.open(str(path), "w", format="mov") as target:
        video = Material().write(path.with_name("plain.mov"))
        with av.open(str(video)) as plain:
            pictures = target.add_stream_from_template(plain.streams.video[0], opaque=True)
            stream = target.add_stream("pcm_s16le", rate=48000)
            stream.codec_context.layout = "5.1"
            stream.codec_context.open()
            for packet in plain.demux(video=0):
                if packet.size:
                    packet.stream = pictures
                    target.mux(packet)
        time = np.arange(48000) / 48000
        tones = np.stack([0.3 * np.sin(2 * np.pi * pitch * time) for pitch in (200, 300, 400, 500, 600, 50)])
        frame = av.AudioFrame.from_ndarray((tones.T * 32767).astype(np.int16).reshape(1, -1), "s16", "5.1")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            target.mux(packet)
    data = bytearray(path.read_bytes())
    place = data.index(b"chan") + 8
    data[place : place + 4] = struct.pack(">HH", 123, 6)  # kAudioChannelLayoutTag_MPEG_5_1_C
    path.write_bytes(data)
    return path


@TARGETS
def test_an_order_of_channels_of_its_own(tmp_path: Path, target: str):
    """PyAV frees the list of channels with each object that tells of them: one reading too many ends the process."""
    source = film_order(tmp_path / "source.mov")
    assert probe(source).streams[1].detail == "48000 Hz 5.1(side)"
    output = deliver(source, target)
    with av.open(str(source)) as plain:
        stream = plain.streams.audio[0]
        given = channels(stream.codec_context)
        assert given == ("5.1(side)", 6, (0, 2, 1, 5, 3, 4))
        samples = np.concatenate([frame.to_ndarray().reshape(-1, 6).T for frame in plain.decode(stream)], 1)
    with av.open(str(output)) as written:
        stream = written.streams.audio[0]
        now = channels(stream.codec_context)
        kept = np.concatenate(
            [part.to_ndarray() for frame in written.decode(stream) for part in planar(now.layout, frame)], 1
        )
    before, after = samples[list(given.order or ())], kept[list(now.order)] if now.order else kept
    pitches = [float(np.argmax(np.abs(np.fft.rfft(wave[:24000]))) * 2) for wave in after]
    expected = [float(np.argmax(np.abs(np.fft.rfft(wave[:24000]))) * 2) for wave in before]
    assert expected == [200, 400, 300, 50, 500, 600]
    assert np.allclose(pitches, expected, atol=4)


def planar(layout: str, frame: Any) -> list[Any]:
    return list(av.AudioResampler("fltp", layout, frame.sample_rate).resample(frame))


@pytest.mark.parametrize("kind", ["mpegts", "vob"])
@pytest.mark.parametrize("target", ["mp4", "mkv"])
def test_streams_that_begin_late(tmp_path: Path, kind: str, target: str):
    """Their containers do not list them at the head: of a stream that begins later than is looked nothing is known."""
    source = tmp_path / f"source.{kind}"
    with av.open(str(source), "w", format=kind) as written:
        video = written.add_stream("mpeg2video", rate=25)
        video.codec_context.width = video.codec_context.height = 32
        video.codec_context.pix_fmt = "yuv420p"
        audio = written.add_stream("mp2", rate=48000)
        audio.codec_context.layout = "stereo"
        picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 90, np.uint8)).reformat(format="yuv420p")
        sounds = av.AudioFrame.from_ndarray(
            (noise(Fraction(1), 48000, 2).T * 32767).astype(np.int16).reshape(1, -1), "s16", "stereo"
        )
        packets = []
        for number in range(400):
            picture.pts, picture.time_base = number, Fraction(1, 25)
            packets += video.encode(picture)
        sounds.sample_rate, sounds.pts, sounds.time_base = 48000, 14 * 48000, Fraction(1, 48000)
        packets += [*video.encode(None), *audio.encode(sounds), *audio.encode(None)]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            written.mux(packet)
    with av.open(str(source)) as plain:
        assert not [stream for stream in plain.streams.audio if stream.codec_context.sample_rate]
    info = probe(source)
    assert info.unlisted and [stream.detail for stream in info.streams][1] == "48000 Hz stereo"
    output = deliver(source, target, start=13.5, duration=2)
    begin, wave = heard(output, 0)
    first = probe(output)
    assert abs(begin - first.pts[0] * first.time_base - Fraction(1, 2)) < Fraction(1, 20)
    assert wave.shape[1] >= 47000


def test_streams_that_come_up_in_the_middle(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Two transport streams, one after the other, as a receiver writes them whose channel was changed."""
    first = Material(sounds=(Sound("aac"),)).write(tmp_path / "first.ts")
    second = Material(sounds=(Sound("aac", begin=Fraction(2)),), begin=2000).write(tmp_path / "second.ts")
    one, two = first.read_bytes(), bytearray(second.read_bytes())
    for place in range(0, len(two), 188):  # streams with numbers of their own, a table of another version
        number = int.from_bytes(two[place + 1 : place + 3], "big") & 0x1FFF
        if number >= 0x100 and number < 0x1000:
            two[place + 2] += 0x10
        elif number == 0x1000:
            renumber(two, place)
    source = tmp_path / "source.ts"
    source.write_bytes(one + two)
    info = probe(source)
    assert [stream.kind for stream in info.streams] == ["video", "audio"] * 2 and info.unlisted
    output = deliver(source, "mkv")
    assert [len(packets) for packets in packets_of(output).values()][1:] == [
        len(packets) for packets in [*packets_of(first).values(), *packets_of(second).values()]
    ][1:]
    assert "stream 2 (video h264) is copied as it is: one video stream is upscaled" in lines(source, "mkv")


def renumber(data: bytearray, place: int) -> None:
    """Add 16 to the numbers of the streams in a packet with a program's table (ISO/IEC 13818-1, 2.4.4.8)."""
    table = place + 5
    length = int.from_bytes(data[table + 1 : table + 3], "big") & 0xFFF
    data[table + 5] += 2  # the version, above a bit
    data[table + 9] += 0x10
    entry = table + 12 + (int.from_bytes(data[table + 10 : table + 12], "big") & 0xFFF)
    while entry < table + 3 + length - 4:
        data[entry + 2] += 0x10
        entry += 5 + (int.from_bytes(data[entry + 3 : entry + 5], "big") & 0xFFF)
    value = 0xFFFFFFFF
    for byte in data[table : table + 3 + length - 4]:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    data[table + 3 + length - 4 : table + 3 + length] = value.to_bytes(4, "big")


@pytest.mark.parametrize("codec", ["wavpack", "tta", "flac"])
def test_a_part_begins_within_a_packet_that_does_not_say_its_length(codec: str, tmp_path: Path):
    source = Material(sounds=(Sound(codec, rate=44100, seconds=Fraction(3)),), frames=75).write(tmp_path / "source.mkv")
    before = packets_of(source)[1]
    start = Fraction(2, 5)
    reaching = [data for (begin, _, data), (end, *_) in zip(before, [*before[1:], (99,)], strict=True) if end > start]
    output = vidup.upscale(source, tmp_path / "out.mkv", Settings(model="nearest", scale=2, start=float(start))).output
    assert [data for _, _, data in packets_of(output)[1]] == reaching
