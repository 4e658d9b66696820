"""All streams but the picture: from every container into every other, copied where they fit, else converted or told."""

from __future__ import annotations

import json
import logging
import re
import shutil
import struct
import subprocess
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from material import FONT, MILLISECOND, TEXTS, Material, Sound, Text, heard, packets_of

import vidup
from vidup import ConfigError, Runtime, Settings
from vidup.job.describe import describe
from vidup.job.plan import plan
from vidup.media.conversion import StreamPlan
from vidup.media.probing import probe

OPTIONS = {"webm": {"cpu-used": "8", "deadline": "realtime"}}
CHAPTERS = ((0, 500, "First"), (500, 1520, "Zweites"))


def settings(target: str, **kwargs: Any) -> Settings:
    return Settings(model="nearest", scale=2, encoder_options=OPTIONS.get(target, {"preset": "ultrafast"}), **kwargs)


def deliver(source: Path, target: str, **kwargs: Any) -> tuple[Path, list[StreamPlan]]:
    """Upscale into a container, which verifies; and what was planned for the streams besides the picture."""
    output = source.with_name(f"output.{target}")
    chosen = settings(target, **kwargs)
    job = plan(source, output, chosen)
    vidup.upscale(source, output, chosen, runtime=Runtime(overwrite=True))
    return output, [stream for stream in job.streams if stream.action != "upscale"]


def lines(source: Path, target: str, **kwargs: Any) -> str:
    return "\n".join(describe(plan(source, source.with_name(f"output.{target}"), settings(target, **kwargs))))


def begins(path: Path) -> Fraction:
    info = probe(path)
    return info.pts[0] * info.time_base


def late_by(before: np.ndarray, after: np.ndarray) -> tuple[int, float]:
    """By how many samples one sound comes after another, and how alike they are there: 1 is equal."""
    size = 1 << (before.shape[-1] + after.shape[-1]).bit_length()
    one, two = np.fft.rfft(before[0], size), np.fft.rfft(after[0], size)
    likeness = np.fft.irfft(two * np.conj(one), size)
    lag = int(np.argmax(likeness))
    power = float(np.sqrt((before[0] ** 2).sum() * (after[0] ** 2).sum()))
    return (lag if lag < size // 2 else lag - size), float(likeness.max()) / power


heard_before = lru_cache(8)(heard)
"""What is heard in a file that stays as it is."""


def shifted(source: Path, output: Path) -> Fraction:
    """By how much later the picture begins."""
    return begins(output) - begins(source)


def assert_sounds_alike(source: Path, output: Path, number: int, shift: Fraction) -> None:
    """In step with the picture, which is shifted, within 2 ms, the same to hear, as long."""
    (before, wave), (after, kept) = heard_before(source, number), heard(output, number)
    assert wave.shape[0] == kept.shape[0]
    lag, likeness = late_by(wave, kept)
    assert abs(Fraction(lag, 48000) + after - before - shift) <= Fraction(2, 1000)
    assert likeness > 0.95
    assert abs(after - before - shift) <= Fraction(1, 10)
    assert abs(kept.shape[1] - wave.shape[1]) <= 4800


SOUNDS = {
    "mkv": ("aac", "libopus", "libmp3lame", "flac", "pcm_s16le", "pcm_s24le", "ac3", "vorbis"),
    "mp4": ("aac", "libopus", "libmp3lame", "flac", "alac", "ac3"),
    "mov": ("aac", "libmp3lame", "pcm_s16le", "pcm_s24le", "alac", "ac3"),
    "webm": ("libopus", "vorbis"),
    "ts": ("aac", "libmp3lame", "ac3"),
    "avi": ("libmp3lame", "pcm_s16le", "ac3"),
}
COPIED = {
    "mp4": {"aac", "libopus", "libmp3lame", "flac", "alac", "ac3", "vorbis"},
    "mov": {"aac", "libmp3lame", "pcm_s16le", "pcm_s24le", "alac", "ac3"},
    "mkv": {codec for codecs in SOUNDS.values() for codec in codecs},
    "webm": {"libopus", "vorbis"},
}
LOSSLESS = {"flac", "alac", "pcm_s16le", "pcm_s24le"}


@pytest.fixture(scope="module", params=SOUNDS)
def sounding(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each container with every sound that it is to hold."""
    sounds, codec = [Sound(codec) for codec in SOUNDS[request.param]], "libx264"
    if request.param == "webm":
        codec = "libvpx-vp9"
    path: Path = tmp_path_factory.mktemp("sounding") / f"source.{request.param}"
    return Material(sounds=sounds, codec=codec).write(path)


@pytest.mark.parametrize("target", ["mp4", "mov", "mkv", "webm"])
def test_sound(sounding: Path, target: str):
    source, ending = sounding, sounding.suffix[1:]
    codecs = SOUNDS[ending]
    output, planned = deliver(source, target)
    before, after = packets_of(source), packets_of(output)
    told, shift = lines(source, target), shifted(source, output)
    for number, codec in enumerate(codecs):
        stream = planned[number]
        if codec in COPIED[target]:
            assert stream.action == "copy" and f"stream {stream.index} " not in told
            data, kept = ([part for *_, part in found[number + 1]] for found in (before, after))
            if codec.startswith("pcm") or ending == "ts":  # mov stores samples; ADTS has headers that mp4 has not
                assert codec == "aac" or b"".join(data) == b"".join(kept)
            else:
                assert data == kept
        else:
            assert stream.action == "convert" and re.search("does not take|few players", stream.reason)
            assert f"stream {stream.index} ({stream.name}) is converted to {stream.encoder}: {stream.reason}" in told
        assert_sounds_alike(source, output, number, shift)
        if codec in LOSSLESS and target != "webm":
            assert late_by(heard_before(source, number)[1], heard(output, number)[1])[1] > 0.9999


@pytest.mark.parametrize("target", ["mp4", "mov", "mkv", "webm"])
def test_many_channels_and_tracks(tmp_path: Path, target: str):
    sounds = (
        Sound("aac", "eng", default=True),
        Sound("ac3", "fin", layout="5.1(side)"),
        Sound("libopus", "deu", layout="5.1"),
        Sound("flac", "swe", layout="quad"),
    )
    source = Material(sounds=sounds, video_tags={"title": "Camera"}).write(tmp_path / "source.mkv")
    output, planned = deliver(source, target)
    assert not [stream for stream in planned if stream.action == "drop"]
    with av.open(str(output)) as written:
        audio = written.streams.audio
        said = {"mov": ["eng", "fin", "ger", "sve"]}.get(target, ["eng", "fin", "deu", "swe"])
        assert [stream.metadata["language"] for stream in audio] == said
        marked = [bool(stream.disposition & av.stream.Disposition.default) for stream in audio]
        assert marked == [True, False, False, False]
        channels = [stream.codec_context.layout.nb_channels for stream in audio]
        assert channels[:3] == [2, 6, 6] and channels[3] in (2, 4)
        fewer = [stream for stream in planned if "becomes stereo" in stream.reason]
        assert bool(fewer) == (channels[3] == 2)
        tags = written.streams.video[0].metadata
        assert tags.get("title", tags.get("name")) == "Camera"
    shift = shifted(source, output)
    for number in range(3):
        assert_sounds_alike(source, output, number, shift)


def said(path: Path) -> list[list[tuple[float, float, str]]]:
    """Of each subtitle stream: begin and length in seconds, and words."""
    found = []
    with av.open(str(path)) as container:
        count = len(container.streams.subtitles)
    for number in range(count):
        with av.open(str(path)) as container:
            stream, texts = container.streams.subtitles[number], []
            for packet in container.demux(stream):
                for text in (stream.codec_context.decode2(packet) or ()) if packet.size else ():
                    words = re.sub(r"\{[^}]*\}", "", text.dialogue.decode())
                    if words:
                        unit = packet.time_base
                        texts.append((float(packet.pts * unit), float(packet.duration * unit), words))
            found.append(texts)
    return found


@pytest.mark.parametrize("target", ["mp4", "mov", "mkv", "webm"])
@pytest.mark.parametrize(
    ("ending", "codecs"),
    [("mkv", ("subrip", "ass", "webvtt")), ("mp4", ("mov_text",)), ("mov", ("mov_text",)), ("webm", ("webvtt",))],
)
def test_subtitles(tmp_path: Path, ending: str, codecs: tuple[str, ...], target: str):
    texts = [
        Text(codec, language, codec == "ass") for codec, language in zip(codecs, ("eng", "fin", "jpn"), strict=False)
    ]
    source = Material(texts=texts, codec="libvpx-vp9" if ending == "webm" else "libx264").write(
        tmp_path / f"source.{ending}"
    )
    output, planned = deliver(source, target)
    expected = [(begin / 1000, length / 1000, words) for begin, length, words in TEXTS]
    for found in said(output):
        assert [words for *_, words in found] == [words for *_, words in expected]
        assert np.allclose([times[:2] for times in found], [times[:2] for times in expected], atol=0.0011)
    subtitles = [stream for stream in planned if stream.kind == "subtitle"]
    assert len(said(output)) == len(subtitles) == len(codecs)
    kept = {"mp4": {"mov_text"}, "mov": {"mov_text"}, "mkv": {"srt", "subrip", "ass", "ssa", "webvtt"}}
    for stream in subtitles:
        fits = stream.name.split()[1] in kept.get(target, {"webvtt"})
        assert (stream.action == "copy") == fits and (stream.action == "convert") != fits
    with av.open(str(output)) as written:
        streams = written.streams.subtitles
        assert [stream.metadata["language"] for stream in streams] == [text.language for text in texts]
        forced = [bool(stream.disposition & av.stream.Disposition.forced) for stream in streams]
        assert forced == [text.forced for text in texts] or target == "mov"


def test_subtitles_of_a_part(tmp_path: Path):
    """What stands when the part begins is shown from 0 on, and the picture is not later for it."""
    source = Material(texts=(Text("subrip"),), sounds=(Sound("aac"),)).write(tmp_path / "source.mkv")
    for target in ("mp4", "mkv", "webm"):
        output, _ = deliver(source, target, start=0.4, duration=0.6)
        late = float(begins(output))
        assert 0 <= late <= 0.022
        expected = [(0.0, 0.1, "one"), (0.2, 0.2, "two"), (0.5, 0.1, "three")]
        (found,) = said(output)
        assert [words for *_, words in found] == ["one", "two", "three"]
        times = [(begin - late, length) for begin, length, _ in found]
        assert np.allclose(times, [both[:2] for both in expected], atol=0.0015)


OVERLAPS = ((200, 800, "one"), (400, 200, "two"), (400, 900, "three"), (1300, 100, "four"))


@pytest.mark.parametrize("target", ["mp4", "mov", "mkv", "webm"])
@pytest.mark.parametrize("codec", ["subrip", "ass", "webvtt"])
def test_subtitles_that_overlap(tmp_path: Path, codec: str, target: str):
    """What is shown at a time is one text in mp4 and mov, whose texts last until the next."""
    source = Material(texts=(Text(codec, texts=OVERLAPS),)).write(tmp_path / "source.mkv")
    output, _ = deliver(source, target)
    (found,) = said(output)
    expected = [(begin / 1000, length / 1000, words) for begin, length, words in OVERLAPS]
    if target in ("mp4", "mov"):
        expected = [(0.2, 0.2, "one"), (0.4, 0.2, "one\ntwo\nthree"), (0.6, 0.4, "one\nthree"), (1, 0.3, "three")]
        expected += [(1.3, 0.1, "four")]
    assert [words for *_, words in found] == [words for *_, words in expected]
    assert np.allclose([times[:2] for times in found], [times[:2] for times in expected], atol=0.0015)
    part, _ = deliver(source, target, start=0.48, duration=0.4)
    (found,) = said(part)
    late = float(begins(part))
    first = [words for begin, _, words in found if begin < 0.01 + late]
    assert "".join(first).replace("\n", "") == "onetwothree"


@pytest.mark.parametrize("target", ["mp4", "mov", "mkv", "webm"])
def test_subtitles_that_are_no_utf8(tmp_path: Path, caplog: pytest.LogCaptureFixture, target: str):
    plain = Material(texts=(Text("subrip", texts=((200, 300, "caf_"), (600, 200, "naïve"), (900, 100, "end"))),))
    source = plain.write(tmp_path / "source.mkv")
    source.write_bytes(source.read_bytes().replace(b"caf_", b"caf\xe9"))
    with caplog.at_level(logging.WARNING, "vidup"):
        output, (stream,) = deliver(source, target)
    if target == "mkv":
        assert packets_of(output)[1] == packets_of(source)[1]
        return
    assert stream.action == "convert" and "1 texts are no UTF-8: read as Windows-1252" in caplog.text
    assert [words for *_, words in said(output)[0]] == ["café", "naïve", "end"]


def picture_subtitles(path: Path, codec: str = "dvd_subtitle", times: tuple[int, ...] = (200, 600), lasts=100) -> Path:
    """A file with pictures as subtitles: its packets are a DVD's, two pixels of one colour."""
    control = struct.pack(">HH", 0, 14) + bytes.fromhex("00 03 3210 04 fff0 05 000001000001 06 0004 0005 01 ff")
    unit = bytes.fromhex("0000 0000") + b"\x40\x40" + control
    unit = struct.pack(">HH", len(unit), 6) + unit[4:]
    with av.open(str(Material().write(path.with_name("plain.mkv")))) as plain, av.open(str(path), "w") as target:
        video = target.add_stream_from_template(plain.streams.video[0], opaque=True)
        texts = target.add_mux_stream(codec)
        texts.metadata["language"] = "fin"
        for packet in plain.demux(video=0):
            if packet.size:
                packet.stream = video
                target.mux(packet)
        for number, begin in enumerate(times):
            blu_ray = b"\x16" + struct.pack(">HHHBHBxBB", 11, 32, 32, 16, number, 128, 0, 0) + b"\x80\0\0"
            packet = av.Packet(blu_ray if codec == "hdmv_pgs_subtitle" else unit)
            packet.stream, packet.time_base, packet.pts, packet.dts = texts, MILLISECOND, begin, begin
            packet.duration = lasts
            target.mux(packet)
    return path


@pytest.mark.parametrize(
    ("codec", "start", "expected"),
    [
        ("dvd_subtitle", 0.4, [0, 0.8]),
        ("hdmv_pgs_subtitle", 0.4, [0, 0.8]),  # the first of both has gone
        ("hdmv_pgs_subtitle", 0.32, [0, 0.88]),  # a picture may begin with the part
        ("dvb_subtitle", 1.24, [0]),
        ("subrip", 0.4, [0, 0.8]),
    ],
)
def test_a_subtitle_that_does_not_say_how_long_it_stands_is_there_when_a_part_begins(
    tmp_path: Path, codec: str, start: float, expected: list[float]
):
    source = picture_subtitles(tmp_path / "source.mkv", codec, (200, 320, 1200), lasts=0)
    output, _ = deliver(source, "mkv", start=start)
    found, before = packets_of(output)[1], packets_of(source)[1]
    assert np.allclose([float(begin) for begin, *_ in found], expected, atol=0.001)
    assert [data for *_, data in found] == [data for *_, data in before][-len(expected) :]


def test_subtitles_that_are_pictures(tmp_path: Path):
    source = picture_subtitles(tmp_path / "source.mkv")
    output, (stream,) = deliver(source, "mkv")
    assert stream.action == "copy" and packets_of(source)[1] == packets_of(output)[1] != []
    for target in ("mov", "webm"):
        _, (stream,) = deliver(source, target)
        assert stream.action == "drop" and f"is left out: {target} does not take" in lines(source, target)
    output, (stream,) = deliver(source, "mp4")
    assert stream.action == "copy" and [part[2] for part in packets_of(output)[1]] == [
        part[2] for part in packets_of(source)[1]
    ]


@pytest.mark.parametrize("target", ["mp4", "mov", "mkv", "webm"])
@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_cover_attachment_chapters_and_tags(tmp_path: Path, ending: str, target: str):
    tags = {"title": "A harbour", "artist": "Someone", "comment": "said", "PLACE": "here"}
    source = Material(
        sounds=(Sound("aac"),), chapters=CHAPTERS, tags=tags, attachment=ending == "mkv", cover="png"
    ).write(tmp_path / f"source.{ending}")
    output, planned = deliver(source, target)
    actions = {stream.kind: stream for stream in planned if stream.kind in ("video", "attachment", "data")}
    with av.open(str(source)) as opened, av.open(str(output)) as written:
        assert abs(written.chapters()[1]["start"] * written.chapters()[1]["time_base"] - Fraction(1, 2)) - (
            begins(output)
        ) <= Fraction(1, 1000)
        assert [chapter["metadata"]["title"] for chapter in written.chapters()] == ["First", "Zweites"]
        found = {key.lower(): value for key, value in written.metadata.items()}
        expected = {key.lower(): value for key, value in tags.items() if key != "PLACE" or ending == target == "mkv"}
        assert found.items() >= expected.items()
        covers = [s.index for s in written.streams.video if s.disposition & av.stream.Disposition.attached_pic]
        fonts = [bytes(s.data) for s in written.streams if s.type == "attachment"]
        mine = next(s.index for s in opened.streams.video if s.disposition & av.stream.Disposition.attached_pic)
    if target in ("mkv", "mp4"):
        assert packets_of(output)[covers[0]][0][2] == packets_of(source)[mine][0][2]
    else:
        assert not covers and f"is left out: {target} has no place for a cover" in lines(source, target)
    assert fonts == ([FONT] if ending == target == "mkv" else [])
    if ending == "mkv" and target != "mkv":
        assert f"is left out: {target} has no place for it" in lines(source, target)
    if ending == "mp4":
        assert actions["data"].action == "metadata" and "data" not in lines(source, target)


def test_timecode(tmp_path: Path):
    source = Material(video_tags={"timecode": "01:00:00:00"}).write(tmp_path / "source.mov")
    with av.open(str(source)) as opened:
        assert [stream.type for stream in opened.streams] == ["video", "data"]
    for target in ("mov", "mp4", "mkv"):
        output, (stream,) = deliver(source, target)
        assert stream.action == "metadata" and "left out" not in lines(source, target)
        with av.open(str(output)) as written:
            found = {key.lower(): value for key, value in written.streams.video[0].metadata.items()}
        assert found["timecode"] == "01:00:00:00"


def test_what_is_not_wanted_and_what_is_strict(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    material = Material(sounds=(Sound("flac"), Sound("vorbis")), texts=(Text("ass"),), attachment=True, cover="png")
    source = material.write(tmp_path / "source.mkv")
    output, planned = deliver(source, "mkv", no_audio=True, no_subtitles=True)
    assert [stream.action for stream in planned] == ["drop", "drop", "drop", "attach", "copy"]
    assert {stream.reason for stream in planned[:3]} == {"as requested"}
    with av.open(str(output)) as written:
        assert [stream.type for stream in written.streams] == ["video", "video", "attachment"]
    strict = Runtime(strict=True, overwrite=True)
    vidup.upscale(source, output, settings("mkv", no_audio=True), runtime=strict)
    with pytest.raises(ConfigError) as caught, caplog.at_level(logging.CRITICAL):
        vidup.upscale(source, tmp_path / "output.mov", settings("mov"), runtime=strict)
    # What is converted arrives; the cover and the font do not.
    assert re.findall(r"stream (\d) .*? would be left out", str(caught.value)) == ["4", "5"]
    assert not (tmp_path / "output.mov").exists() and not (tmp_path / "output.mov.vidup").exists()


@pytest.mark.parametrize("target", ["mp4", "mov", "mkv", "webm"])
@pytest.mark.parametrize(
    ("name", "material"),
    [
        ("late sound.mkv", Material(sounds=(Sound("aac", begin=Fraction(1, 2)),))),
        ("late picture.mp4", Material(sounds=(Sound("aac"),), begin=500)),
        ("below 0.ts", Material(sounds=(Sound("aac", begin=Fraction(-3, 10)),), begin=-200)),
        ("priming.mp4", Material(sounds=(Sound("aac"), Sound("libopus")), chapters=CHAPTERS)),
        ("gap.mkv", Material(sounds=(Sound("flac", begin=Fraction(-1, 10)), Sound("ac3")), chapters=CHAPTERS)),
    ],
)
def test_begins(tmp_path: Path, name: str, material: Material, target: str):
    """Sound and chapters stay in step with the picture wherever the file begins."""
    source = material.write(tmp_path / name)
    output, _ = deliver(source, target)
    shift = shifted(source, output)
    for number in range(len(material.sounds)):
        assert_sounds_alike(source, output, number, shift)
    with av.open(str(source)) as opened, av.open(str(output)) as written:
        for mine, theirs in zip(opened.chapters(), written.chapters(), strict=True):
            late = theirs["start"] * theirs["time_base"] - mine["start"] * mine["time_base"] - shift
            assert abs(late) <= MILLISECOND


def test_no_first_choice_in_mp4(tmp_path: Path):
    """Where no track of a kind is on, mov's muxer switches the first one on: no fault."""
    source = Material(texts=(Text("mov_text", "eng"), Text("mov_text", "fin"))).write(tmp_path / "source.mp4")
    data = bytearray(source.read_bytes())
    for match in list(re.finditer(b"tkhd", data))[1:]:
        data[match.end() + 3] &= 0xFE  # the flag "enabled"
    source.write_bytes(data)
    with av.open(str(source)) as opened:
        assert not any(stream.disposition & av.stream.Disposition.default for stream in opened.streams.subtitles)
    output, _ = deliver(source, "mp4")
    assert len(said(output)) == 2


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
@pytest.mark.parametrize("target", ["mp4", "mkv"])
def test_another_program_reads_the_same(tmp_path: Path, target: str):
    material = Material(
        sounds=(Sound("aac", "eng", default=True), Sound("ac3", "fin", layout="5.1(side)")),
        texts=(Text("subrip", "deu"),), chapters=CHAPTERS, tags={"title": "A harbour"}, cover="png",
    )  # fmt: skip
    output, _ = deliver(material.write(tmp_path / "source.mkv"), target)
    command = ["ffprobe", "-v", "error", "-count_packets", "-show_streams", "-show_chapters", "-show_format"]
    told = json.loads(subprocess.run([*command, "-of", "json", output], capture_output=True, check=True).stdout)
    streams = [stream for stream in told["streams"] if stream["codec_name"] != "bin_data"]
    streams = [stream for stream in streams if stream["codec_type"] != "data"]
    text = {"mp4": "mov_text", "mkv": "subrip"}[target]
    assert [stream["codec_name"] for stream in streams] == ["h264", "aac", "ac3", text, "png"]
    assert [stream["tags"].get("language") for stream in streams[1:4]] == ["eng", "fin", "deu"]
    assert streams[2]["channels"] == 6 and int(streams[0]["nb_read_packets"]) == 38
    assert [stream["disposition"]["attached_pic"] for stream in streams] == [0, 0, 0, 0, 1]
    assert [chapter["tags"]["title"] for chapter in told["chapters"]] == ["First", "Zweites"]
    assert told["format"]["tags"]["title"] == "A harbour"


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        ({"streams": "a:0"}, {1}),
        ({"streams": "a,s"}, {1, 2, 3}),
        ({"streams": "m:language:eng"}, {1, 3}),
        ({"streams": "2, t"}, {2, 4}),
        ({"streams": "v"}, set()),
        ({"drop_streams": "a:m:language:eng,t"}, {2, 3}),
        ({"drop_streams": "s:0"}, {1, 2, 4}),
        ({"streams": "a", "drop_streams": "a:1"}, {1}),
        ({"streams": "a", "no_audio": True}, set()),
    ],
)
def test_streams_are_chosen_by_specifiers(chosen: dict[str, Any], left: set[int], tmp_path: Path):
    sounds, texts = [Sound("aac", "eng"), Sound("flac", "fin")], [Text("subrip", "eng")]
    source = Material(sounds=sounds, texts=texts, attachment=True).write(tmp_path / "input.mkv")
    output, streams = deliver(source, "mkv", **chosen)
    assert {stream.index for stream in streams if stream.action == "copy"} == left
    assert {stream.reason for stream in streams if stream.action != "copy"} <= {"as requested"}
    assert len(probe(output).streams) == 1 + len(left)
    assert vidup.verify(source, output, settings("mkv", **chosen)).frames == 38
    if len(left) < 4 and chosen.get("streams") != "v":
        with pytest.raises(vidup.VerifyError, match=r"is missing|holds"):
            vidup.verify(source, output)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"streams": "audio"}, "streams = 'audio': 'audio' is no stream specifier"),
        ({"streams": "a:7"}, "'a:7' fits no stream; there are 0 video, 1 audio"),
        ({"drop_streams": "s"}, "drop_streams = 's': 's' fits no stream"),
        ({"drop_streams": "v:0"}, "is the video that is upscaled"),
    ],
)
def test_specifiers_that_fit_nothing_are_refused(chosen: dict[str, Any], message: str, tmp_path: Path):
    source = Material(sounds=[Sound("aac")]).write(tmp_path / "input.mkv")
    with pytest.raises(ConfigError, match=message):
        plan(source, tmp_path / "output.mkv", settings("mkv", **chosen))
