"""Reading and writing through whole jobs: times, sound, colour, size, what is kept, and what is told."""

import itertools
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import audio_packets, pattern, pictures, video_times

import vidup
from vidup import Settings
from vidup.errors import MediaError
from vidup.job.describe import describe
from vidup.job.plan import plan
from vidup.media import decoding, probing
from vidup.media.probing import probe
from vidup.media.segment import encode_segment, read_segment
from vidup.upscaler import Upscaler

MILLISECOND = Fraction(1, 1000)
FASTEST = {
    "libx264": {"preset": "ultrafast"},
    "libx265": {"preset": "ultrafast"},
    "libsvtav1": {"preset": "12"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "ffv1": {},
    "prores_ks": {},
}

# Each with what is hard about it: (times, time base).
UNEVEN = tuple(itertools.accumulate([0, 512, 300, 1100, 77, 512, 512, 2048, 640, 31, 512, 700]))
CLOCKS = {
    "constant": (tuple(range(0, 6144, 512)), Fraction(1, 12800)),
    "variable": (UNEVEN, Fraction(1, 12800)),
    "late": (tuple(45045 + time * 7 for time in UNEVEN), Fraction(1, 90000)),  # begins at 0.5005 s
    "ntsc": (tuple(range(0, 12 * 1001, 1001)), Fraction(1, 30000)),
    "late ntsc": (tuple(range(15015, 15015 + 12 * 1001, 1001)), Fraction(1, 30000)),
}
MATROSKA_CLOCK = (tuple(time // 10 for time in UNEVEN), MILLISECOND)


def enlarge(source: Path, name: str, **settings) -> Path:
    """Upscale by 2 with the baseline engine, as fast as the encoder can."""
    output = source.with_name(name)
    codec = settings.get("codec") or ("libvpx-vp9" if output.suffix == ".webm" else "libx264")
    defaults = {"model": "nearest", "scale": 2, "encoder_options": FASTEST[codec]}
    return vidup.upscale(source, output, Settings(**{**defaults, **settings})).output


def seconds(clock: tuple[tuple[int, ...], Fraction]) -> list[Fraction]:
    times, unit = clock
    return [time * unit for time in times]


def sounds(path: Path) -> list[tuple[Fraction, Fraction, bytes]]:
    """(time, length, data) of each packet of the first audio stream."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(container.streams.audio[0]) if packet.size]
        return [(p.pts * p.time_base, (p.duration or 0) * p.time_base, bytes(p)) for p in packets]


def assert_times(found: list[Fraction], expected: list[Fraction], container: str) -> None:
    assert len(found) == len(expected)
    if container in ("mp4", "mov"):
        assert found == expected
    else:
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= MILLISECOND / 2


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "webm"])
@pytest.mark.parametrize("clock", CLOCKS)
def test_every_frame_keeps_its_time(make_clip: Callable[..., Path], clock: str, container: str):
    times, unit = CLOCKS[clock]
    source = make_clip(times=times, time_base=unit, sound=False)
    assert video_times(source) == seconds(CLOCKS[clock])
    assert_times(video_times(enlarge(source, f"out.{container}")), seconds(CLOCKS[clock]), container)


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "webm"])
def test_times_of_a_matroska_source(make_clip: Callable[..., Path], container: str):
    times, unit = MATROSKA_CLOCK
    source = make_clip("clip.mkv", times=times, time_base=unit, sound=False)
    found = video_times(enlarge(source, f"out.{container}"))
    assert found == video_times(source) == seconds(MATROSKA_CLOCK)  # to the tick in all four


def test_variable_times_are_not_called_constant(make_clip: Callable[..., Path]):
    """Matroska can state one duration for all frames; players then play it so."""
    for clock, stated in (("variable", False), ("constant", True)):
        times, unit = CLOCKS[clock]
        output = enlarge(make_clip(times=times, time_base=unit, sound=False), f"{clock}.mkv")
        assert (b"\x23\xe3\x83" in output.read_bytes()[:4096]) == stated  # the element DefaultDuration


@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_every_frame_keeps_its_duration(make_clip: Callable[..., Path], container: str):
    times, unit = CLOCKS["variable"]
    source = make_clip(times=times, time_base=unit, sound=False, bframes=0)
    output = enlarge(source, f"out.{container}")
    lengths = [b - a for a, b in itertools.pairwise(times)]
    with av.open(str(output)) as written:
        packets = [packet for packet in written.demux(video=0) if packet.size]
        assert [packet.duration * packet.time_base / unit for packet in packets] == [*lengths, lengths[-1]]
    info = probing.probe(output)
    assert info.end * info.time_base == probing.probe(source).end * unit == (times[-1] + lengths[-1]) * unit


@pytest.mark.parametrize("clock", ["variable", "late"])
@pytest.mark.parametrize(
    ("source", "audio", "container"),
    [
        ("clip.mp4", "aac", "mp4"),
        ("clip.mp4", "aac", "mov"),
        ("clip.mp4", "aac", "mkv"),
        ("clip.mp4", "libopus", "mkv"),
        ("clip.mp4", "libopus", "webm"),
        ("clip.mkv", "aac", "mkv"),
        ("clip.mkv", "libopus", "mkv"),
        ("clip.mkv", "libopus", "webm"),
        ("clip.mov", "aac", "mp4"),
    ],
)
def test_sound_is_copied_and_in_sync(
    make_clip: Callable[..., Path], source: str, audio: str, container: str, clock: str
):
    times, unit = MATROSKA_CLOCK if source.endswith("mkv") else CLOCKS[clock]
    clip = make_clip(source, times=times, time_base=unit, audio_codec=audio)
    output = enlarge(clip, f"out.{container}")
    before, after = sounds(clip), sounds(output)
    assert [data for *_, data in before] == [data for *_, data in after] == audio_packets(output)
    moved = [b[0] - a[0] for a, b in zip(before, after, strict=True)]
    pictures_moved = [b - a for a, b in zip(video_times(clip), video_times(output), strict=True)]
    if container in ("mp4", "mov") and not source.endswith("mkv"):
        assert set(moved) == set(pictures_moved) == {0}
    else:
        # Matroska cannot begin below 0, where AAC's first packet lies: there all moves together.
        assert max(moved + pictures_moved) - min(moved + pictures_moved) <= 1.5 * MILLISECOND
        assert max(0, -min(before)[0]) + MILLISECOND >= max(pictures_moved) >= -MILLISECOND / 2


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        ("libx264", "mp4"),
        ("libx265", "mp4"),
        ("libx265", "mkv"),
        ("libsvtav1", "mp4"),
        ("libsvtav1", "webm"),
        ("libvpx-vp9", "mp4"),
        ("libvpx-vp9", "webm"),
        ("ffv1", "mkv"),
        ("prores_ks", "mov"),
    ],
)
def test_every_encoder_delivers_every_frame_at_its_time(make_clip: Callable[..., Path], codec: str, container: str):
    try:
        av.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"this build of ffmpeg has no {codec}")
    times, unit = CLOCKS["late"]
    source = make_clip(times=times, time_base=unit, sound=False)
    output = enlarge(source, f"out.{container}", codec=codec, encoder_options=FASTEST[codec])
    assert_times(video_times(output), seconds(CLOCKS["late"]), container)
    for index, (large, small) in enumerate(zip(pictures(output), pictures(source), strict=True)):
        assert large.shape == (96, 128, 3)
        error = np.abs(large.astype(int) - small.repeat(2, 0).repeat(2, 1)).mean()
        assert error < 12, f"frame {index} is another picture"


def test_another_program_counts_the_same_frames(make_clip: Callable[..., Path]):
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is not installed")
    times, unit = CLOCKS["late"]
    output = enlarge(make_clip(times=times, time_base=unit), "out.mp4")
    command = [
        "ffprobe",
        "-v",
        "error",
        "-select_streams",
        "v:0",
        "-show_entries",
        "frame=pts,width,height",
        "-of",
        "csv=p=0",
    ]
    lines = subprocess.run([*command, str(output)], capture_output=True, text=True, check=True).stdout.split()
    assert [tuple(int(number) for number in line.split(",")[:3]) for line in lines] == [
        (time, 128, 96) for time in times
    ]


@pytest.mark.parametrize(("name", "audio"), [("clip.mp4", "aac"), ("clip.mkv", "aac"), ("clip.mkv", "libopus")])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_part(make_clip: Callable[..., Path], name: str, audio: str, container: str):
    """From the middle of a group of pictures: times from 0, the right pictures, the sound that overlaps."""
    source = make_clip(name, times=tuple(range(0, 960, 40)), time_base=MILLISECOND, audio_codec=audio)
    output = enlarge(source, f"out.{container}", start=0.2, duration=0.4)
    begin, end = Fraction(1, 5), Fraction(3, 5)
    before, kept = sounds(source), sounds(output)
    expected = [packet for packet in before if packet[0] + packet[1] > begin and packet[0] < end]
    assert 0 < len(expected) < len(before)
    assert [data for *_, data in kept] == [data for *_, data in expected]
    times = video_times(output)
    assert len(times) == 10
    if container == "mp4":
        assert times == [index * Fraction(1, 25) for index in range(10)]
    shift = times[0]  # Matroska begins where the first sound packet begins, at 0
    assert 0 <= shift <= Fraction(3, 100)
    assert all(abs(time - shift - index * Fraction(1, 25)) <= MILLISECOND for index, time in enumerate(times))
    offsets = [b[0] - shift - (a[0] - begin) for a, b in zip(expected, kept, strict=True)]
    assert max(abs(offset) for offset in offsets) <= 1.5 * MILLISECOND
    originals = [picture.astype(int) for picture in pictures(source)]
    for index, picture in enumerate(pictures(output)):
        distances = [np.abs(original - picture[::2, ::2]).mean() for original in originals]
        assert int(np.argmin(distances)) == 5 + index


@pytest.mark.parametrize(("start", "duration", "frames"), [(0.0, 0.1, 3), (0.41, None, 1), (0.1, 99.0, 9)])
def test_the_edges_of_a_part(make_clip: Callable[..., Path], start: float, duration: float | None, frames: int):
    output = enlarge(make_clip(), "out.mp4", start=start, duration=duration)
    assert video_times(output) == [index * Fraction(1, 25) for index in range(frames)]


@pytest.mark.parametrize(
    ("start", "duration", "seconds"), [(0.0, 0.7, 0.7), (0.0, 9.0, 1.0), (0.2, None, 0.8), (0.2, 0.5, 0.5)]
)
def test_sound_goes_on_after_the_picture_as_long_as_it_is_asked_for(
    make_clip: Callable[..., Path], start: float, duration: float | None, seconds: float
):
    source = make_clip(sound_seconds=1.0)  # 12 pictures take 0.48 s
    kept = sounds(enlarge(source, "out.mp4", start=start, duration=duration))
    assert sum(float(length) for _, length, _ in kept) == pytest.approx(seconds, abs=0.05)


def test_a_length_of_one_tick_is_made_up(make_clip: Callable[..., Path], tmp_path: Path):
    """Some programs write it for every frame: the last one would be over at once."""
    source, told = make_clip("clip.mkv", times=tuple(range(0, 480, 40)), time_base=MILLISECOND), tmp_path / "ticks.mkv"
    with av.open(str(source)) as clip, av.open(str(told), "w") as target:
        copies = {stream.index: target.add_stream_from_template(stream) for stream in clip.streams}
        for packet in clip.demux():
            if packet.dts is not None:
                if packet.stream.type == "video":
                    packet.duration = 1
                packet.stream = copies[packet.stream.index]
                target.mux(packet)
    with av.open(str(told)) as clip:
        assert {packet.duration for packet in clip.demux(video=0) if packet.size} == {1}
    info = probe(told)
    assert info.end - info.pts[-1] == info.pts[-1] - info.pts[-2] == 40


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_two_runs_write_the_same_bytes(make_clip: Callable[..., Path], container: str):
    source = make_clip()
    one, two = (
        enlarge(source, f"{name}.{container}", encoder_options={"preset": "veryfast"}) for name in ("one", "two")
    )
    assert one.read_bytes() == two.read_bytes()


def test_a_transport_stream(make_clip: Callable[..., Path]):
    """Late, with its own clock, and AAC framed in another way than in mp4."""
    times, unit = CLOCKS["late"]
    source = make_clip("clip.ts", times=times, time_base=unit)
    for container in ("mp4", "mkv"):
        output = enlarge(source, f"out.{container}")
        assert_times(video_times(output), video_times(source), container)
        assert audio_packets(output) == [packet[7:] for packet in audio_packets(source)]  # without ADTS headers
        gaps = [a[0] - b[0] for a, b in zip(sounds(source), sounds(output), strict=True)]
        assert max(map(abs, gaps)) <= MILLISECOND


@pytest.mark.parametrize("bframes", [0, 2])
def test_a_container_without_presentation_times(make_clip: Callable[..., Path], bframes: int):
    """AVI: the frames, in the order in which they are shown, get the times in the order in which they are stored."""
    source = make_clip("clip.avi", times=range(12), time_base=Fraction(1, 25), bframes=bframes, sound=False)
    info = probing.probe(source)
    assert info.frames == 12 and len(info.pts) == 12 and info.timing in ("order", "packets")
    output = enlarge(source, "out.mp4")
    times, originals = video_times(output), [picture.astype(int) for picture in pictures(source)]
    assert times == [index * Fraction(1, 25) for index in range(12)]
    for index, picture in enumerate(pictures(output)):
        assert int(np.argmin([np.abs(original - picture[::2, ::2]).mean() for original in originals])) == index
    part = pictures(enlarge(source, "part.mp4", start=0.2, duration=0.2))
    assert len(part) == 5
    for index, picture in enumerate(part):
        assert int(np.argmin([np.abs(original - picture[::2, ::2]).mean() for original in originals])) == 5 + index


def test_a_stream_without_any_times(make_clip: Callable[..., Path], tmp_path: Path):
    """Raw H.264: a rate is made, and said."""
    with av.open(str(make_clip(sound=False))) as clip, (tmp_path / "raw.264").open("wb") as raw:
        head = clip.streams.video[0].codec_context.extradata
        names = av.bitstream.BitStreamFilterContext("h264_mp4toannexb", clip.streams.video[0])
        assert head
        for packet in clip.demux(clip.streams.video[0]):
            raw.write(b"".join(bytes(part) for part in names.filter(packet)))
    source = tmp_path / "raw.264"
    info = probing.probe(source)
    assert info.timing == "made" and info.frames == 12 and any("25.000 frames a second" in note for note in info.notes)
    assert video_times(enlarge(source, "raw.mp4")) == [index * Fraction(1, 25) for index in range(12)]


def test_streams_that_do_not_fit_are_announced(make_clip: Callable[..., Path]):
    source = make_clip("clip.mkv", time_base=MILLISECOND, times=(0, 40, 80), subtitles=("one", "two"))
    settings = Settings(model="nearest", scale=2, encoder_options=FASTEST["libx264"])
    lines = describe(plan(source, source.with_name("out.mp4"), settings))
    assert [line for line in lines if "converted to mov_text" in line and "subtitle" in line]
    kept = plan(source, source.with_name("out.mkv"), settings)
    assert not [line for line in describe(kept) if "left out" in line]
    assert [stream.action for stream in kept.streams] == ["upscale", "copy", "copy"]
    output = enlarge(source, "out.mkv")
    with av.open(str(output)) as written:
        texts = [bytes(packet) for packet in written.demux() if packet.size and packet.stream.type == "subtitle"]
    assert texts == [b"one", b"two"]


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_metadata_and_chapters_are_kept(make_clip: Callable[..., Path], tmp_path: Path, container: str):
    source = tmp_path / f"told.{container}"
    spans = [(0, 200, "one"), (200, 480, "two")]
    with av.open(str(make_clip())) as clip, av.open(str(source), "w") as told:
        copies = [told.add_stream_from_template(stream, opaque=True) for stream in clip.streams]
        told.metadata["title"] = "A harbour"
        copies[1].metadata["language"] = "fin"
        told.set_chapters([
            {"id": index, "start": start, "end": end, "time_base": MILLISECOND, "metadata": {"title": title}}
            for index, (start, end, title) in enumerate(spans)
        ])  # fmt: skip
        for packet in clip.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                told.mux(packet)

    def facts(path: Path):
        with av.open(str(path)) as opened:
            chapters = [
                (c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"]["title"])
                for c in opened.chapters()
            ]
            return opened.metadata["title"], opened.streams.audio[0].metadata["language"], chapters

    expected = [(start * MILLISECOND, end * MILLISECOND, title) for start, end, title in spans]
    assert facts(source) == facts(enlarge(source, f"out.{container}")) == ("A harbour", "fin", expected)
    begin = next(time for time in video_times(source) if time >= Fraction(3, 10))
    part = enlarge(source, f"part.{container}", start=0.3)
    late = video_times(part)[0]  # by the sound that overlaps the part's begin, in Matroska, which has no time below 0
    *_, parts = facts(part)
    assert [part[2] for part in parts] == ["two"] and parts[0][0] == late <= Fraction(3, 100)
    assert abs(parts[0][1] - late - (Fraction(48, 100) - begin)) <= MILLISECOND


@pytest.fixture
def segment(make_clip: Callable[..., Path]) -> Path:
    """A segment file with six small pictures."""
    source = make_clip(times=UNEVEN[:6], sound=False)
    settings = Settings(model="nearest", scale=2, encoder_options=FASTEST["libx264"])
    job = plan(source, source.with_name("out.mp4"), settings)
    path = source.with_name("0.seg")
    with Upscaler(settings) as upscaler:
        frames = upscaler.frames(decoding.decode(job.info), job.encoding.pix_fmt, job.encoding.color)
        encode_segment(frames, job.encoding, path)
    return path


def test_a_segment_holds_times_and_durations(segment: Path):
    packets = sorted(read_segment(segment))
    assert [packet.pts for packet in packets] == list(UNEVEN[:6])
    assert [packet.duration for packet in packets[:-1]] == [b - a for a, b in itertools.pairwise(UNEVEN[:6])]
    assert packets[0].key and all(packet.data for packet in packets)
    assert list(segment.parent.glob("*.part")) == []


def test_a_damaged_segment_is_refused(segment: Path):
    whole = segment.read_bytes()
    places = [*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1]
    for place in places:
        segment.write_bytes(whole[:place])  # cut short
        with pytest.raises(MediaError, match=r"0\.seg"):
            list(read_segment(segment))
        segment.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])  # one bit
        with pytest.raises(MediaError, match=r"0\.seg"):
            list(read_segment(segment))
    segment.write_bytes(whole + b"\0")
    with pytest.raises(MediaError, match=r"0\.seg"):
        list(read_segment(segment))


def test_decoding_a_range_gives_the_frames_of_the_whole(make_clip: Callable[..., Path]):
    times, unit = CLOCKS["late"]
    for name in ("clip.mp4", "clip.mkv", "clip.ts"):
        info = probing.probe(make_clip(name, times=times, time_base=unit, sound=False))
        whole = list(decoding.decode(info))
        assert [frame.pts for frame in whole] == list(info.pts) and len(whole) == info.frames == 12
        assert [frame.duration for frame in whole[:-1]] == [b - a for a, b in itertools.pairwise(info.pts)]
        for begin, end in ((0, 5), (1, 12), (5, 7), (11, 12)):
            part = list(decoding.decode(info, info.pts[begin], info.pts[end] if end < 12 else None))
            assert [frame.pts for frame in part] == list(info.pts[begin:end])
            for one, other in zip(part, whole[begin:end], strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(one.planes, other.planes, strict=True))


def test_frames_of_another_size_are_brought_to_the_first(make_clip: Callable[..., Path], tmp_path: Path, caplog):
    times = tuple(range(0, 12 * 3600, 3600)), tuple(range(12 * 3600, 24 * 3600, 3600))
    joined = tmp_path / "joined.ts"
    with av.open(str(joined), "w", format="mpegts") as target:
        stream = None
        for time, size in zip(times, ((64, 48), (96, 64)), strict=True):
            options = {"time_base": Fraction(1, 90000), "sound": False, "bframes": 0}
            clip = make_clip(f"{size[0]}.ts", times=time, size=size, **options)
            with av.open(str(clip)) as part:
                stream = stream or target.add_stream_from_template(part.streams.video[0], opaque=True)
                for packet in part.demux(part.streams.video[0]):
                    if packet.size:
                        packet.stream = stream
                        target.mux(packet)
    output = enlarge(joined, "out.mp4")
    assert {picture.shape for picture in pictures(output)} == {(96, 128, 3)} and len(pictures(output)) == 24
    assert any("the frame size changes from 64x48 to 96x64" in record.message for record in caplog.records)


def test_the_test_pictures_differ():
    assert np.abs(pattern(0, 64, 48).astype(int) - pattern(1, 64, 48)).mean() > 3
