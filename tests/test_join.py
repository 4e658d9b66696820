"""The joined file: times in the units of its container, streams and facts that containers hold in their own way."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from conftest import video_times
from material import Material, Sound, Text, packets_of

import vidup
from vidup import Settings
from vidup.job.describe import describe
from vidup.job.plan import plan
from vidup.media.probing import probe

FAST = Settings(model="nearest", scale=2, encoder_options={"preset": "ultrafast"})


def part(**kwargs: Any) -> Settings:
    return Settings(model="nearest", scale=2, encoder_options={"preset": "ultrafast"}, **kwargs)


def copied(source: Path, path: Path, change: Callable[[Any], None] = lambda packet: None, **options: str) -> Path:
    """A copy of a file, by a muxer with options, each packet changed."""
    kind = {"mkv": "matroska"}.get(path.suffix[1:], path.suffix[1:])
    with av.open(str(source)) as before, av.open(str(path), "w", format=kind, container_options=options) as target:
        streams = [target.add_stream_from_template(stream, opaque=True) for stream in before.streams]
        for packet in before.demux():
            if packet.size:
                change(packet)
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    return path


def begins(path: Path) -> list[Fraction]:
    return [packets[0][0] for packets in packets_of(path).values()]


def test_times_in_units_as_long_as_a_frame(make_clip: Callable[..., Path]):
    """All streams are moved by the sound's priming, which is less than a unit of the pictures."""
    source = copied(make_clip(bframes=0), make_clip("x.mp4").with_name("film.mp4"), video_track_timescale="25")
    assert probe(source).time_base == Fraction(1, 25)
    output = vidup.upscale(source, source.with_name("output.mkv"), FAST).output
    late = video_times(output)[0]
    assert 0 < late < Fraction(1, 25)
    assert [
        abs(time - index * Fraction(1, 25) - late) <= Fraction(1, 2000)
        for index, time in enumerate(video_times(output))
    ]
    assert abs(begins(output)[1] + Fraction(1024, 44100) - late) <= Fraction(1, 1000)


@pytest.mark.parametrize("target", ["mp4", "mkv"])
def test_a_part_of_sound_in_long_units(tmp_path: Path, target: str):
    """In AVI a unit of the sound's times is a packet of it, and a part begins within one."""
    source = Material(sounds=(Sound("libmp3lame"),)).write(tmp_path / "source.avi")
    assert probe(source).streams[1].codec == "mp3float"
    output = vidup.upscale(source, tmp_path / f"output.{target}", part(start=0.2, duration=0.6)).output
    moments = [time for time, *_ in packets_of(source)[1]]
    expected = [time - Fraction(1, 5) for time in moments if time > Fraction(1, 5) - Fraction(24, 1000)]
    late = video_times(output)[0]
    found = [time - late for time, *_ in packets_of(output)[1]]
    assert all(abs(one - two) <= Fraction(1, 1000) for one, two in zip(found, expected, strict=False))


def test_sound_packets_at_one_time(tmp_path: Path):
    """As live streams have them; the muxers of mp4 and mov refuse them."""
    film = Material(sounds=(Sound("aac"),)).write(tmp_path / "film.mkv")

    def same(packet: Any) -> None:
        if packet.stream.type == "audio" and packet.pts is not None:
            packet.pts = packet.dts = packet.pts - packet.pts % 43

    source = copied(film, tmp_path / "source.mkv", same)
    times = [time for time, *_ in packets_of(source)[1]]
    assert len(set(times)) < len(times) - 20
    output = vidup.upscale(source, tmp_path / "output.mp4", FAST).output
    assert [data for *_, data in packets_of(output)[1]] == [data for *_, data in packets_of(source)[1]]


OVERLAPPING = ((100, 600, "one"), (300, 600, "two"), (1000, 200, "three"))


@pytest.mark.parametrize("target", ["mp4", "mov"])
def test_texts_that_overlap(tmp_path: Path, target: str):
    """A track of mov shows one text at a time: where two stand, it shows both as one."""
    source = Material(texts=(Text("subrip", texts=OVERLAPPING),)).write(tmp_path / "source.mkv")
    output = vidup.upscale(source, tmp_path / f"output.{target}", FAST).output
    with av.open(str(output)) as written:
        shown = [
            (packet.pts * packet.time_base, bytes(packet)[2:])
            for packet in written.demux(subtitles=0)
            if packet.size > 2
        ]
    pieces = [(100, b"one"), (300, b"one\ntwo"), (700, b"two"), (1000, b"three")]
    assert shown == [(Fraction(begin, 1000), words) for begin, words in pieces]
    vidup.verify(source, output)


def test_a_text_that_is_no_utf_8(tmp_path: Path):
    source = Material(texts=(Text("subrip", texts=((100, 300, "cafZ"), (600, 300, "last"))),)).write(
        tmp_path / "source.mkv"
    )
    source.write_bytes(source.read_bytes().replace(b"cafZ", "café".encode("cp1252")))
    output = vidup.upscale(source, tmp_path / "output.mp4", FAST).output
    assert [data for *_, data in packets_of(output)[1] if len(data) > 2] == [b"\0\5caf\xc3\xa9", b"\0\4last"]


@pytest.mark.parametrize("target", ["mp4", "mov", "mkv"])
def test_chapters_that_begin_late_and_have_no_titles(tmp_path: Path, target: str):
    source = Material(chapters=((400, 800, "First"), (800, 1200, ""), (1200, 1520, "Last"))).write(
        tmp_path / "source.mkv"
    )
    output = vidup.upscale(source, tmp_path / f"output.{target}", FAST).output
    vidup.verify(source, output)
    with av.open(str(output)) as written:
        found = [
            (chapter["start"] * chapter["time_base"], chapter["metadata"].get("title", ""))
            for chapter in written.chapters()
        ]
    wanted = [(Fraction(2, 5), "First"), (Fraction(4, 5), ""), (Fraction(6, 5), "Last")]
    assert found == ([] if target == "mkv" else [(0, "")]) + wanted


def test_a_chapter_that_stands_there_twice(tmp_path: Path):
    twice = ((0, 800, "First"), (800, 1520, "Last"), (800, 1520, "Last"))
    source = Material(chapters=twice).write(tmp_path / "source.mp4")
    output = vidup.upscale(source, tmp_path / "output.mkv", FAST).output
    with av.open(str(output)) as written:
        assert [chapter["metadata"]["title"] for chapter in written.chapters()] == ["First", "Last"]


@pytest.mark.parametrize("target", ["mp4", "mov"])
def test_tags_that_a_container_has_no_place_for(tmp_path: Path, target: str):
    tags = {"title": "A harbour", "album_artist": "Someone", "composer": "Another", "description": "of a film"}
    source = Material(tags=tags).write(tmp_path / "source.mp4")
    output = vidup.upscale(source, tmp_path / f"output.{target}", FAST).output
    vidup.verify(source, output)
    with av.open(str(output)) as written:
        kept = {key: value for key, value in written.metadata.items() if key in tags}
    assert kept == (tags if target == "mp4" else {"title": "A harbour"})
    told = "\n".join(describe(plan(source, output, FAST)))
    lost = "note: tags of the file are lost (album_artist, composer, description): mov has no place for them"
    assert (lost in told) == (target == "mov") and ("are lost" in told) == (target == "mov")


@pytest.mark.parametrize("target", ["mp4", "mkv"])
def test_a_second_program_of_a_transport_stream(tmp_path: Path, target: str):
    """Its pictures are told apart by start codes there, by lengths in the output."""
    one = Material(sounds=(Sound("aac"),)).write(tmp_path / "one.mp4")
    both = [av.open(str(one)) for _ in range(2)]
    with av.open(str(tmp_path / "source.ts"), "w", format="mpegts") as programs:
        streams = [programs.add_stream_from_template(opened.streams.video[0], opaque=True) for opened in both]
        for pair in zip(*(opened.demux(video=0) for opened in both), strict=True):
            for packet, stream in zip(pair, streams, strict=True):
                if packet.size:
                    packet.stream = stream
                    programs.mux(packet)
    for opened in both:
        opened.close()
    output = vidup.upscale(tmp_path / "source.ts", tmp_path / f"output.{target}", FAST).output
    assert [len(found) for found in packets_of(output).values()] == [38, 38]
