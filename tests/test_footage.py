"""Footage that players play, though its container or its stream is not as the book says: its frames, and when."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import pattern
from PIL import Image, features

import vidup
from vidup import Settings
from vidup.errors import MediaError
from vidup.frame import MediaInfo
from vidup.media import decoding, probing, reading
from vidup.media.probing import probe
from vidup.media.timing import fill

WHOLE = Settings(deinterlace="off")
NEAREST = Settings(model="nearest", scale=2, codec="libx264", segment_frames=5)


def frames(info: MediaInfo, begin: int | None = None, end: int | None = None) -> list[tuple[int, bytes]]:
    found = decoding.decode(info, begin, end, WHOLE)
    return [(one.pts, b"".join(np.ascontiguousarray(plane).tobytes() for plane in one.planes)) for one in found]


def in_parts(info: MediaInfo, length: int = 5) -> list[tuple[int, bytes]]:
    begins = [*info.pts[::length], None]
    return [one for part in zip(begins, begins[1:], strict=False) for one in frames(info, *part)]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The times of all frames that decoders give from now on."""
    given: list[int | None] = []
    whole = reading.decode_packets

    def counted(*args: Any) -> Iterator[Any]:
        for frame in whole(*args):
            given.append(frame.pts)
            yield frame

    monkeypatch.setattr(reading, "decode_packets", counted)
    return given


def elementary(path: Path, codec: str, count: int = 40, **options: str) -> Path:
    """An elementary or program stream of one video."""
    kinds = {".m2v": "mpeg2video", ".m1v": "mpeg1video", ".264": "h264", ".mkv": "matroska", ".ts": "mpegts"}
    kind = kinds.get(path.suffix, path.suffix[1:])
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.max_b_frames, stream.codec_context.gop_size = 2, 12
        stream.codec_context.options = options
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(pattern(index, 64, 48)).reformat(format="yuv420p")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def telecined(path: Path) -> Path:
    """Every other picture of an MPEG-2 stream is told to be shown for three fields."""
    data, place, count = bytearray(path.read_bytes()), -1, 0
    while (place := data.find(b"\0\0\1\xb5", place + 1)) >= 0:
        if data[place + 4] >> 4 == 1:  # the extension of the sequence: not progressive
            data[place + 5] &= ~8
        elif data[place + 4] >> 4 == 8:  # that of a picture
            data[place + 7] |= 0x82 if count % 2 else 0x80
            data[place + 8] |= 0x80
            count += 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("times", "durations", "expected"),
    [
        ([600, 633, 633, 700], [33] * 4, [600, 633, 666, 700]),
        ([None, 3, None, 8, None], [3, 2, 3, 2, 3], [0, 3, 5, 8, 10]),
        ([0, 33, 99_999, 100, 133], [0] * 5, [0, 33, 40, 100, 133]),
        ([10, None, None, 13], [9] * 4, [10, 11, 12, 13]),
        ([10, None, None, 11, 40], [0] * 5, [10, 17, 24, 31, 40]),
        ([None, None], [0, 0], [0, 7]),
        ([], [], []),
    ],
)
def test_times_are_filled_in(times: Sequence[int | None], durations: Sequence[int], expected: list[int]):
    assert fill(times, durations, 7) == expected


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("clip.m2v", "mpeg2video"),
        ("clip.m1v", "mpeg1video"),
        ("clip.m4v", "mpeg4"),
        ("clip.264", "libx264"),
        ("clip.vob", "mpeg2video"),
        ("clip.mpeg", "mpeg1video"),
    ],
)
def test_streams_whose_frames_bear_no_times(tmp_path: Path, name: str, codec: str):
    info = probing.probe(elementary(tmp_path / name, codec))
    whole = frames(info)
    assert len(whole) == 40 and in_parts(info) == whole
    steps = {b - a for (a, _), (b, _) in zip(whole, whole[1:], strict=False)}
    assert max(steps) - min(steps) <= 1


def test_soft_telecined_film_keeps_its_three_fields(tmp_path: Path):
    info = probing.probe(telecined(elementary(tmp_path / "clip.m2v", "mpeg2video")))
    whole = frames(info)
    assert len(whole) == 40 and in_parts(info) == whole
    steps = [float((b - a) * info.time_base * 48) for (a, _), (b, _) in zip(whole, whole[1:], strict=False)]
    assert set(steps) == {2.0, 3.0} and steps.count(3.0) >= 15
    output = vidup.upscale(info.path, tmp_path / "out.mp4", NEAREST).output
    assert len(probe(output).pts) == 40


def test_two_frames_at_one_time(tmp_path: Path):
    path = tmp_path / "clip.mkv"
    times = [0, 40, 80, 80, 160, 200, 240]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(len(times)):
            frame = av.VideoFrame.from_ndarray(pattern(index, 64, 48)).reformat(format="yuv420p")
            frame.pts, frame.time_base = 40 * index, Fraction(1, 1000)
            for packet in stream.encode(frame):
                packet.pts = packet.dts = times[index]
                container.mux(packet)
    info = probing.probe(path)
    assert list(info.pts) == [0, 40, 80, 120, 160, 200, 240]
    assert any("1 of its 7 frames" in note for note in info.notes)
    assert in_parts(info, 2) == frames(info) and len(set(frames(info))) == 7
    assert len(probe(vidup.upscale(path, tmp_path / "out.mkv", NEAREST).output).pts) == 7


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_an_index_that_lies_is_not_followed(tmp_path: Path, codec: str):
    """Where the file says that decoding can begin, and it cannot."""
    path = elementary(tmp_path / "clip.mp4", codec)
    truth = frames(probing.probe(path))
    data = bytearray(path.read_bytes())
    place = data.find(b"stss")
    count = struct.unpack_from(">I", data, place + 8)[0]
    for entry in range(1, count):  # all but the first
        number = struct.unpack_from(">I", data, place + 12 + 4 * entry)[0]
        struct.pack_into(">I", data, place + 12 + 4 * entry, number + 1)
    path.write_bytes(data)
    info = probing.probe(path)
    assert count > 2 and frames(info) == truth
    assert in_parts(info, 4) == truth


def test_seeking_that_ends_at_another_frame_is_noticed(make_clip: Callable[..., Path], monkeypatch, caplog):
    """Some demuxers give another packet at the time of the one that was asked for."""
    info = probing.probe(make_clip("clip.mp4", range(0, 30 * 512, 512), sound=False))
    truth = frames(info)
    lying = [(time, checksum ^ (time > 0)) for time, checksum in info.entries]
    moved = MediaInfo(**{**vars(info), "entries": tuple(lying)})
    assert len(lying) > 3 and in_parts(moved, 4) == truth
    assert "from its middle" in caplog.text


def test_pictures_drawn_on_those_before(tmp_path: Path):
    """An APNG may call any frame whole that is drawn over the one before."""
    path, pictures = tmp_path / "clip.apng", []
    for index in range(24):
        picture = np.zeros((32, 48, 4), np.uint8)
        picture[index : index + 4, 2 * index % 40 : 2 * index % 40 + 6] = (10 * index, 200, 255 - 9 * index, 255)
        pictures.append(Image.fromarray(picture))
    pictures[0] = Image.new("RGBA", (48, 32), (90, 30, 60, 255))
    pictures[0].save(path, "PNG", save_all=True, append_images=pictures[1:], duration=40, blend=1, disposal=0)
    info = probing.probe(path)
    assert len(info.pts) == 24 and in_parts(info) == frames(info)


def test_a_clock_that_begins_anew_goes_on(make_clip: Callable[..., Path], tmp_path: Path):
    one = make_clip("one.ts", range(0, 30 * 3600, 3600), time_base=Fraction(1, 90_000))
    single = probing.probe(one)
    path = tmp_path / "two.ts"
    path.write_bytes(one.read_bytes() * 2)
    info = probing.probe(path)
    assert len(info.pts) == 60 and any("clock restarts" in note for note in info.notes)
    assert 3600 <= info.pts[30] - info.pts[29] < 3 * 3600
    whole = frames(info)
    assert in_parts(info, 16) == whole
    assert [data for _, data in whole] == 2 * [data for _, data in frames(single)]
    output = vidup.upscale(path, tmp_path / "out.mp4", NEAREST).output
    made = probe(output)
    assert len(made.pts) == 60
    with av.open(str(output)) as container:
        sound = [packet.pts for packet in container.demux(audio=0) if packet.size]
    with av.open(str(one)) as container:
        once = sum(1 for packet in container.demux(audio=0) if packet.size)
    assert len(sound) == 2 * once and all(b > a for a, b in zip(sound, sound[1:], strict=False))


@pytest.mark.parametrize("ending", ["mkv", "mp4", "webm"])
def test_a_last_frame_that_is_shown_for_long(tmp_path: Path, ending: str):
    path = tmp_path / "clip.gif"
    pictures = [Image.fromarray(pattern(index, 64, 48)) for index in range(4)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 100, 100, 3000])
    settings = Settings(model="nearest", scale=2)
    made = probe(vidup.upscale(path, tmp_path / f"out.{ending}", settings).output)
    assert len(made.pts) == 4


def test_colours_that_are_looked_up(tmp_path: Path):
    path = tmp_path / "clip.mov"
    palette = np.zeros((256, 4), np.uint8)
    palette[:, 0], palette[:3, 1:] = 255, [(255, 0, 0), (0, 255, 0), (20, 40, 250)]
    indexes = np.repeat(np.arange(48, dtype=np.uint8)[:, None] // 16, 64, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "pal8"
        for index in range(3):
            frame = av.VideoFrame.from_ndarray((indexes, palette), format="pal8")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info = probing.probe(path)
    assert info.pix_fmt == "pal8"
    green, blue, red = next(decoding.decode(info)).planes
    assert [int(plane[8, 5]) for plane in (red, green, blue)] == [255, 0, 0]
    assert [int(plane[40, 5]) for plane in (red, green, blue)] == [20, 40, 250]


def test_gray_without_a_range_is_full(tmp_path: Path):
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"
        frame = av.VideoFrame.from_ndarray(np.full((48, 64), 200, np.uint8), format="gray")
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info = probing.probe(path)
    assert info.pix_fmt == "gray" and info.color.full_range
    output = vidup.upscale(path, tmp_path / "out.mkv", Settings(model="nearest", scale=2)).output
    with av.open(str(output)) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="gray")
    assert abs(int(picture[40, 60]) - 200) <= 3


@pytest.mark.parametrize(
    ("start", "duration", "times"),
    [(10.0, None, [0, 20, 48]), (10.0, 3.0, [0]), (40.0, 5.0, [0]), (1.0, 2.0, [0, 1]), (30.0, None, [0, 28])],
)
def test_a_part_that_begins_within_a_still(
    make_clip: Callable[..., Path], start: float, duration: float | None, times: list[int]
):
    path = make_clip("clip.mp4", (0, 2000, 30_000, 58_000), time_base=Fraction(1, 1000), sound=False)
    settings = Settings(model="nearest", scale=2, codec="ffv1", start=start, duration=duration)
    output = vidup.upscale(path, path.with_name("out.mkv"), settings).output
    made = probe(output)
    assert [float(time * made.time_base) for time in made.pts] == times
    shown = {10.0: 1, 40.0: 2, 1.0: 0, 30.0: 2}[start]
    whole = [data for _, data in frames(probing.probe(path))]
    assert abs(_mean(output) - np.frombuffer(whole[shown], np.uint8)[: 64 * 48].mean()) < 1.5


def _mean(path: Path) -> float:
    with av.open(str(path)) as container:
        plane = next(container.decode(video=0)).planes[0]
        return float(np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, : plane.width].mean())


def test_colours_of_dolby_vision_alone_are_refused(make_clip: Callable[..., Path], monkeypatch):
    path = make_clip(sound=False, tags=(2, 2, 2, 1))
    monkeypatch.setattr("vidup.media.hdr.dynamic_hdr", lambda frame, stream: ["Dolby Vision"])
    with pytest.raises(MediaError, match=r"profile 5.*--matrix"):
        vidup.upscale(path, path.with_name("out.mp4"), NEAREST)
    vidup.upscale(path, path.with_name("out.mp4"), Settings(**{**vars(NEAREST), "matrix": "bt709"}))


def test_a_stream_without_frames_is_passed_over(make_clip: Callable[..., Path], tmp_path: Path):
    path = tmp_path / "clip.mkv"
    with av.open(str(make_clip(sound=False))) as source, av.open(str(path), "w") as target:
        given = source.streams.video[0]
        empty = target.add_stream_from_template(given, opaque=True)
        stream = target.add_stream_from_template(given, opaque=True)
        empty.disposition, stream.disposition = av.stream.Disposition.default, av.stream.Disposition(0)
        for packet in source.demux(given):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    info = probing.probe(path)
    assert info.video_index == 1 and len(info.pts) == 12


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_an_avif_sequence_moves(tmp_path: Path):
    """It holds a still of its first picture beside the moving ones."""
    path = tmp_path / "clip.avif"
    pictures = [Image.fromarray(pattern(index, 64, 48)) for index in range(6)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    info = probing.probe(path)
    assert len(info.pts) == 6 and in_parts(info, 2) == frames(info)
    output = vidup.upscale(path, tmp_path / "out.mkv", Settings(model="nearest", scale=2)).output
    assert len(probe(output).pts) == 6


@pytest.mark.parametrize("name", ["a.264", "a.m2v", "a.mkv", "a.avi", "a.ts"])
def test_a_decoder_stays_open_from_part_to_part(name: str, tmp_path: Path, decoded: list[int | None]):
    path = tmp_path / name
    elementary(path, "mpeg2video" if path.suffix == ".m2v" else "libx264")
    info = probing.probe(path)
    whole = frames(info)
    readers = reading.Readers(info)
    begun = len(decoded)
    for low in range(0, len(info.pts), 5):
        first, last = max(0, low - 4), min(len(info.pts) - 1, low + 9)  # parts that overlap
        read = list(decoding.decode(info, info.pts[first], info.pts[last], WHOLE, readers))
        expected = [one for one in whole if info.pts[first] <= one[0] < info.pts[last]]
        assert [(one.pts, b"".join(map(np.ndarray.tobytes, one.planes))) for one in read] == expected
    assert len(decoded) - begun <= len(whole) + 3  # some were decoded to find an entry
    readers.close()


def test_what_is_behind_an_open_decoder_is_read_anew(tmp_path: Path):
    info = probing.probe(elementary(tmp_path / "a.264", "libx264"))
    whole, readers = frames(info), reading.Readers(info)
    for low, high in ((20, 25), (2, 6), (30, 38), (0, 40), (7, 9)):
        end = info.pts[high] if high < len(info.pts) else None
        read = list(decoding.decode(info, info.pts[low], end, WHOLE, readers))
        assert [(one.pts, b"".join(map(np.ndarray.tobytes, one.planes))) for one in read] == whole[low:high]
    readers.close()


def test_a_job_decodes_a_file_once_for_its_pictures_and_once_for_their_proof(tmp_path: Path, decoded: list[int | None]):
    source = elementary(tmp_path / "a.264", "libx264")
    probing.probe(source)
    probed = len(decoded)
    settings = Settings(model="nearest", scale=2, segment_frames=4, encoder_options={"preset": "ultrafast"})
    vidup.upscale(source, tmp_path / "out.mkv", settings)
    assert len(decoded) - probed <= probed + 2 * 40 + 2 * 10  # probed once more; the output's own first frames


@pytest.mark.parametrize("cut", [1, 2000, 4612])
def test_y4m_that_is_cut_within_its_last_frame_is_told(cut: int, tmp_path: Path):
    """Its demuxer drops such a frame without a word."""
    path, frame = tmp_path / "a.y4m", b"FRAME\n" + bytes(64 * 48 * 3 // 2)
    path.write_bytes(b"YUV4MPEG2 W64 H48 F25:1 Ip A1:1 C420jpeg\n" + 5 * frame)
    assert probing.probe(path).frames == 5
    path.write_bytes(path.read_bytes()[:-cut])
    rest = len(frame) - cut
    with pytest.raises(MediaError, match=rf"is cut short: its last {rest} bytes are no whole frame"):
        probing.probe(path)
    assert probing.probe(path, tolerate_errors=True).frames == 4


def fastest_clock(clip: Path) -> Path:
    """Its track counts in the finest unit that there is a place for."""
    data = bytearray(clip.read_bytes())
    place = data.index(b"mdhd") + 16
    old, length = struct.unpack(">II", data[place : place + 8])
    scale = (2**31 - 1) // old
    data[place : place + 8] = struct.pack(">II", 2**31 - 1, length * scale)
    place = data.index(b"stts") + 8
    (entries,) = struct.unpack(">I", data[place : place + 4])
    for entry in range(place + 8, place + 8 + 8 * entries, 8):
        (lasts,) = struct.unpack(">I", data[entry : entry + 4])
        data[entry : entry + 4] = struct.pack(">I", lasts * scale)
    path = clip.with_name("clock.mp4")
    path.write_bytes(data)
    return path


def in_fragments(clip: Path) -> Path:
    path = clip.with_name("fragments.mp4")
    options = {"movflags": "frag_keyframe+empty_moov"}
    with av.open(str(clip)) as before, av.open(str(path), "w", container_options=options) as target:
        copies = {stream.index: target.add_stream_from_template(stream, opaque=True) for stream in before.streams}
        for packet in before.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                target.mux(packet)
    return path


def odd_y4m(clip: Path) -> Path:
    path, frame = clip.with_name("odd.y4m"), b"FRAME\n" + bytes(63 * 47 + 2 * 32 * 24)
    path.write_bytes(b"YUV4MPEG2 W63 H47 F25:1 Ip A1:1 C420jpeg\n" + 12 * frame)
    return path


STEPS = (0, 1, 1, 5000, 1, 40, 1_000_000, 1, 1, 3, 20_000_000, 1)


@pytest.mark.parametrize(
    ("make", "target"),
    [(fastest_clock, "mp4"), (in_fragments, "mp4"), (odd_y4m, "mov"), (lambda clip: clip, "mov")],
    ids=["fastest clock", "fragments", "odd y4m", "wild durations"],
)
def test_what_players_play_goes_through(make_clip: Callable[..., Path], make: Any, target: str, request: Any):
    wild = "wild" in request.node.callspec.id
    times = tuple(sum(STEPS[: place + 1]) for place in range(12))
    clip = make_clip("c.mkv", times, time_base=Fraction(1, 1000), sound=False) if wild else make_clip(bframes=0)
    path = make(clip)
    settings = Settings(model="nearest", scale=2, encoder_options={"preset": "ultrafast"}, segment_frames=5)
    receipt = vidup.upscale(path, path.with_name(f"out.{target}"), settings)
    assert receipt.frames == receipt.compared == 12
    info, made = probing.probe(path), probing.probe(receipt.output)
    assert [time * made.time_base for time in made.pts] == [time * info.time_base for time in info.pts]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.264", "libx264", {"preset": "veryfast", "x264-params": "interlaced=1:bframes=3"}),
        ("a.hevc", "libx265", {"preset": "ultrafast", "x265-params": "log-level=error:keyint=20:bframes=4"}),
    ],
)
def test_every_picture_of_an_elementary_stream_comes(tmp_path: Path, name: str, codec: str, options: dict[str, str]):
    source = elementary(tmp_path / name, codec, 54, **options)
    settings = Settings(model="nearest", scale=2, encoder_options={"preset": "ultrafast"}, segment_frames=20)
    assert vidup.upscale(source, tmp_path / "out.mp4", settings).compared == 54
