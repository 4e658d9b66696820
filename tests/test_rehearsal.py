"""The join is rehearsed before the first picture: what cannot be said is told, worked round, or refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from conftest import audio_packets
from material import MILLISECOND, Material, Sound, Text, packets_of

import vidup
from vidup import ConfigError, Progress, Runtime, Settings, Stopped, VerifyError, cli
from vidup.job import rehearse
from vidup.media import conversion_cache
from vidup.media.probing import probe

FAST = Settings(model="nearest", scale=2, encoder_options={"preset": "ultrafast"}, segment_frames=12)


class Upscaled:
    """Whether any picture was."""

    def __init__(self) -> None:
        self.frames = 0

    def __call__(self, event: Progress) -> None:
        self.frames = max(self.frames, event.frame)


def refused(source: Path, target: str) -> str:
    """The line with which a file is refused before the first picture, and after which nothing is left."""
    output, upscaled = source.with_name(f"output.{target}"), Upscaled()
    with pytest.raises(ConfigError) as caught:
        vidup.upscale(source, output, FAST, on_progress=upscaled)
    assert upscaled.frames == 0 and not output.exists() and not output.with_name(output.name + ".vidup").exists()
    return str(caught.value).removeprefix(f"{output}: ")


def test_more_frames_a_second_than_matroska_can_say(make_clip: Callable[..., Path]):
    source = make_clip(times=range(8), time_base=Fraction(1, 2400), sound=False)
    said = refused(source, "mkv")
    assert said == (
        "matroska counts in units of 0.001 s, and two frames, at 0.000000 and 0.000417 s, would have one time;"
        " choose an output that ends in .mp4 or .mov"
    )
    assert probe(vidup.upscale(source, source.with_name("output.mp4"), FAST).output).frames == 8


def test_longer_than_mp4_can_say(make_clip: Callable[..., Path]):
    source = make_clip("clip.mkv", times=(0, 40, 5_000_000_000), time_base=MILLISECOND, sound=False)
    assert refused(source, "mp4").startswith("mp4 cannot hold these pictures as they are: ")


def test_a_display_matrix_that_is_a_little_off(make_clip: Callable[..., Path]):
    film = make_clip(times=(0, 512, 1024), sound=False)
    source = film.with_name("turned.mp4")
    with av.open(str(film)) as before, av.open(str(source), "w") as target:
        stream = target.add_stream_from_template(before.streams.video[0], opaque=True)
        stream.set_display_matrix((0, 65537, 0, -65535, 1, 0, 0, 0, 1 << 30))
        for packet in before.demux():
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    for target_ending in ("mp4", "mkv"):
        output = vidup.upscale(source, film.with_name(f"output.{target_ending}"), FAST).output
        assert probe(output).rotation == probe(source).rotation != 0


@pytest.mark.parametrize(
    ("aspect", "target", "told"),
    [
        (Fraction(65535), "mp4", 0),
        (Fraction(1, 65535), "mov", 0),
        (Fraction(65535), "mkv", 0),
        (Fraction(65535, 65534), "mkv", 1),  # which counts in whole pixels
    ],
)
def test_pixels_of_a_strange_shape(
    make_clip: Callable[..., Path], aspect: Fraction, target: str, told: int, caplog: pytest.LogCaptureFixture
):
    source = make_clip(times=(0, 512, 1024), sound=False, aspect=aspect)
    with caplog.at_level(logging.WARNING):
        output = vidup.upscale(source, source.with_name(f"output.{target}"), FAST).output
        assert vidup.verify(source, output).frames == 3
    words = [record.message for record in caplog.records]
    assert len(words) == 2 * told and len(set(words)) == told
    assert not told or words[0].endswith("its pixel aspect is 1, expected 65535/65534")


def test_a_copy_that_would_come_early_is_converted_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """In mp4 a packet of Vorbis that begins before 0 comes back at another time."""
    source = Material(sounds=(Sound("vorbis"),)).write(tmp_path / "source.mkv")
    settings = Settings(model="nearest", scale=2, encoder_options={"preset": "ultrafast"}, start=0.41, duration=0.5)
    with caplog.at_level(logging.WARNING):
        output = vidup.upscale(source, tmp_path / "output.mp4", settings).output
    (told,) = [record.message for record in caplog.records if "converted" in record.message]
    assert told.startswith(f"{output}: stream 1 (audio vorbis) is converted to aac: packet 0 is -0.0")
    assert probe(output).streams[1].codec == "aac"
    assert "audio vorbis: converted" in vidup.verify(source, output, settings).streams


def test_verify_says_what_the_job_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """What the rehearsal of a job accepts, because its container cannot say it, is no fault of the file."""
    chapters = ((0, 100, "First"), (2**31, 2**31 + 100, "After 24 days"), (2**31 + 100, 2**31 + 200, "x" * 70_000))
    source = Material(sounds=(Sound("aac"), Sound("vorbis")), chapters=chapters).write(tmp_path / "source.mkv")
    settings = Settings(model="nearest", scale=2, encoder_options={"preset": "ultrafast"}, drop_streams="1")
    with caplog.at_level(logging.WARNING):
        output = vidup.upscale(source, tmp_path / "output.mp4", settings).output
        told = [record.message for record in caplog.records]
        caplog.clear()
        assert vidup.verify(source, output, settings).streams == (
            "audio aac: left out: as requested",
            f"audio vorbis: {len(audio_packets(source, 1))} packets equal",
        )
    assert [record.message for record in caplog.records] == told
    (line,) = told
    assert line.startswith(f"{output}: mp4 cannot store it: chapter 1 is ") and len(line) < 400
    assert cli.main(["verify", "--json", "--fast", "--drop-streams", "1", str(source), str(output)]) == 0
    with pytest.raises(VerifyError, match=r"stream 1 \(audio aac.* is missing"):
        vidup.verify(source, output)
    # It is a rehearsal of what the container can say, not of what somebody made of it.
    other = tmp_path / "other.mp4"
    with av.open(str(output)) as before, av.open(str(other), "w") as target:
        video, sound = before.streams.video[0], target.add_stream("aac", rate=48000)
        copied = target.add_stream_from_template(video, opaque=True)
        for frame in before.decode(audio=0):
            target.mux(sound.encode(frame))
        target.mux(sound.encode(None))
        before.seek(0)
        for packet in before.demux(video):
            if packet.size:
                packet.stream = copied
                target.mux(packet)
    with pytest.raises(VerifyError, match=r"stream 2 \(audio vorbis.*: is aac, expected the input's own packets"):
        vidup.verify(source, other, settings)


def without(source: Path, marks: dict[int, str]) -> Path:
    """A copy of a file in which streams have lost the named mark."""
    copy = source.with_name(f"less{source.suffix}")
    with av.open(str(source)) as before, av.open(str(copy), "w") as target:
        streams = [target.add_stream_from_template(stream, opaque=True) for stream in before.streams]
        for stream, copied in zip(before.streams, streams, strict=True):
            copied.metadata.update(stream.metadata)
            lost = av.stream.Disposition[marks[stream.index]] if stream.index in marks else av.stream.Disposition(0)
            copied.disposition = stream.disposition & ~lost
        for packet in before.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    return copy


def test_marks_that_a_container_cannot_say_are_no_fault_and_others_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """mov has no mark of forced subtitles, which mp4 has; but it has that of a first choice."""
    texts, sounds = [Text("mov_text", "eng", forced=True)], [Sound("aac", "eng"), Sound("aac", "fin", default=True)]
    source = Material(texts=texts, sounds=sounds).write(tmp_path / "source.mp4")
    with caplog.at_level(logging.WARNING):
        output = vidup.upscale(source, tmp_path / "output.mov", FAST).output
        (told,) = [record.message for record in caplog.records]
        assert told == f"{output}: mov cannot store it: stream 3 is no longer marked as forced"
        caplog.clear()
        assert vidup.verify(source, output).frames == 38
        assert [record.message for record in caplog.records] == [told]
    with pytest.raises(VerifyError, match="stream 2 is no longer marked as default"):
        vidup.verify(source, without(output, {2: "default"}))
    same = vidup.upscale(source, tmp_path / "output.mp4", FAST).output
    assert vidup.verify(source, same).frames == 38
    with pytest.raises(VerifyError, match="stream 3 is no longer marked as forced"):
        vidup.verify(source, without(same, {3: "forced"}))


def test_what_was_converted_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A job that goes on does not pay for it again, and joins the same."""
    material = Material(sounds=(Sound("flac"), Sound("libopus")), texts=(Text("subrip"),))
    source = material.write(tmp_path / "source.mkv")
    output, folder = tmp_path / "output.mov", tmp_path / "output.mov.vidup"
    whole = vidup.upscale(source, tmp_path / "whole.mov", FAST).output
    upscaled = Upscaled()
    with pytest.raises(Stopped):
        vidup.upscale(source, output, FAST, on_progress=upscaled, stop=lambda: upscaled.frames > 20)
    names = sorted(path.name for path in folder.glob("*.kept"))
    assert names == ["stream1-alac-stereo.kept", "stream2-aac-stereo.kept", "stream3-mov_text.kept"]

    def again(*_: Any) -> bool:
        raise AssertionError("converted twice")

    monkeypatch.setattr(conversion_cache, "_convert", again)
    vidup.upscale(source, output, FAST)
    assert output.read_bytes() == whole.read_bytes() and not folder.exists()


@pytest.mark.parametrize("target", ["mkv", "webm"])
def test_converted_sound_that_begins_below_zero(tmp_path: Path, target: str, caplog: pytest.LogCaptureFixture):
    """It is kept in a file of its own, which has no time below 0 either, and is in step where it is joined."""
    source = Material(sounds=(Sound("aac", begin=Fraction(-3, 10)),), begin=-200, codec="libx264").write(
        tmp_path / "s.ts"
    )
    webm = Settings(model="nearest", scale=2, encoder_options={"deadline": "realtime", "cpu-used": "8"})
    with caplog.at_level(logging.INFO):
        output = vidup.upscale(source, tmp_path / f"output.{target}", FAST if target == "mkv" else webm).output
    before, after = packets_of(source), packets_of(output)
    late = after[0][0][0] - min(time for time, *_ in before[0])
    assert abs(after[1][0][0] - before[1][0][0] - late) <= Fraction(1, 50)
    assert f"note: all streams begin {float(late):.3f} s later: " in caplog.text


@pytest.mark.parametrize("start", [0.0, 0.4])
def test_strict_counts_what_is_found_by_the_rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: float):
    source = Material(sounds=(Sound("aac"),)).write(tmp_path / "source.mkv")
    monkeypatch.setattr("vidup.media.conversion_cache._convert", lambda *_: False)
    upscaled = Upscaled()
    output = tmp_path / "output.webm"
    options = {"deadline": "realtime", "cpu-used": "8"}
    settings = Settings(model="nearest", scale=2, encoder_options=options, start=start)
    with pytest.raises(ConfigError, match=r"strict: stream 1 .* would be left out: nothing of it can be decoded"):
        vidup.upscale(source, output, settings, runtime=Runtime(strict=True), on_progress=upscaled)
    assert upscaled.frames == 0
    assert [stream.kind for stream in probe(vidup.upscale(source, output, settings).output).streams] == ["video"]


def test_probe_tells_what_the_rehearsal_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    source = Material(sounds=(Sound("vorbis"),)).write(tmp_path / "source.mkv")
    options = ["--model", "nearest", "--scale", "2", "--start", "0.41", "--duration", "0.5"]
    assert cli.main(["probe", str(source), "-o", str(tmp_path / "output.mp4"), *options]) == 0
    assert "note: stream 1 (audio vorbis) is converted to aac: packet 0 is -0.0" in capsys.readouterr().out
    monkeypatch.setattr(rehearse, "_CHEAP", 1)
    assert cli.main(["probe", str(source), "-o", str(tmp_path / "output.mp4"), *options]) == 0
    assert "note: the join is rehearsed when the job begins" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["source.mkv"]


def test_a_part_without_sound_is_no_loss(tmp_path: Path):
    sound = Sound("flac", begin=Fraction(1), seconds=Fraction(1, 2))
    source = Material(sounds=(sound,)).write(tmp_path / "source.mkv")
    settings = Settings(model="nearest", scale=2, encoder_options={"preset": "ultrafast"}, start=0.1, duration=0.4)
    output = vidup.upscale(source, tmp_path / "output.mov", settings, runtime=Runtime(strict=True)).output
    assert [stream.kind for stream in probe(output).streams] == ["video"]
