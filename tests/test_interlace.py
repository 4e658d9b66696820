"""Interlaced video: what is taken for it, and what becomes of it. The truth is a scene whose every moment is known."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import vidup
from vidup.config import Settings
from vidup.errors import MediaError
from vidup.media import interlace, probing
from vidup.media.interlace import deinterlaced, detect

UNIT = Fraction(1, 90000)
WIDTH, HEIGHT = 192, 144


def moment(time: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A bar and a ball that move over a smooth ground: (height, width) uint8."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    light = 110 + 50 * np.sin(x / 23 + y / 17)
    bar = 1 / (1 + np.exp(np.clip(np.abs((x - 4 * time) % width - 40) - 12, -30, 30)))
    ball = 1 / (1 + np.exp(np.clip(np.hypot(x - 60, y - height / 2 - 10 * np.sin(time / 5)) - 20, -30, 30)))
    light = light + (210 - light) * bar
    return np.asarray(light + (40 - light) * ball).clip(16, 235).astype(np.uint8)


def woven(index: int, top_first: bool, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Frame `index` of an interlaced film: a line is of moment ``2 * index`` or of the one after."""
    picture, later = moment(2 * index, width, height), moment(2 * index + 1, width, height)
    first = 1 if top_first else 0
    picture[first::2] = later[first::2]
    return picture


def as_frame(luma: np.ndarray, pts: int = 0, pix_fmt: str = "yuv420p") -> Any:
    frame = av.VideoFrame(luma.shape[1], luma.shape[0], pix_fmt)
    bits = frame.format.components[0].bits
    kind = np.uint8 if bits == 8 else np.uint16
    for number, plane in enumerate(frame.planes):
        rows = np.frombuffer(plane, kind).reshape(plane.height, -1)
        rows[:] = 128 << (bits - 8)
        if number == 0 or frame.format.is_rgb:
            rows[:, : luma.shape[1]] = luma.astype(kind) << (bits - 8)
    frame.pts, frame.time_base = pts, UNIT
    frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range = 7, 9, 16, 2
    return frame


def luma_of(frame: Any) -> np.ndarray:
    kind = np.uint8 if frame.format.components[0].bits == 8 else np.uint16
    return np.frombuffer(frame.planes[0], kind).reshape(frame.height, -1)[:, : frame.width].astype(float)


def film(top_first: bool, times: Sequence[int], pix_fmt: str = "yuv420p") -> list[Any]:
    return [as_frame(woven(index, top_first), pts, pix_fmt) for index, pts in enumerate(times)]


def psnr(found: np.ndarray, truth: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((found - truth.astype(float)) ** 2)))


def combing(picture: np.ndarray) -> float:
    """How much lines differ from both neighbours in the same way."""
    above, below = picture[1:-1] - picture[:-2], picture[1:-1] - picture[2:]
    return float(np.clip(above * below, 0, None).mean())


@pytest.mark.parametrize("top_first", [True, False])
def test_fields_become_the_moments_that_they_were(top_first: bool):
    times = range(0, 10 * 3600, 3600)
    order = "tt" if top_first else "bb"
    pictures = list(deinterlaced(film(top_first, times), "field", order))
    assert len(pictures) == 20
    for number, picture in enumerate(pictures):
        mixed, truth = woven(number // 2, top_first), moment(number)
        quality = psnr(luma_of(picture), truth)
        assert quality > 33 and quality > psnr(mixed.astype(float), truth) + 8
        assert combing(luma_of(picture)) < 0.1 * combing(mixed.astype(float))
    other = "bb" if top_first else "tt"
    wrong = list(deinterlaced(film(top_first, times), "field", other))
    assert psnr(luma_of(wrong[8]), moment(8)) < psnr(luma_of(pictures[8]), moment(8)) - 8


@pytest.mark.parametrize("order", ["tt", "bb"])
def test_frames_keep_their_times(order: str):
    times = [7, 1007, 5008, 5009, 9000, 9500, 20_000]
    top_first = order == "tt"
    pictures = list(deinterlaced(film(top_first, times), "frame", order, end=20_700))
    assert [picture.pts for picture in pictures] == times
    assert {picture.time_base for picture in pictures} == {UNIT}
    assert [picture.duration for picture in pictures] == [1000, 4001, 1, 3991, 500, 10_500, 700]
    for index, picture in enumerate(pictures):
        assert psnr(luma_of(picture), moment(2 * index)) > 33


@pytest.mark.parametrize("end", [None, 12_345])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_fields_come_halfway(count: int, end: int | None):
    times = [7, 1007, 5008, 5009, 9000, 9500, 11_000][:count]
    frames = film(True, times)
    frames[0].duration = 40
    pictures = list(deinterlaced(frames, "field", "tt", end))
    last = end or (times[-1] + (times[-1] - times[-2] if count > 1 else 40))
    begins = [*times, last]
    wanted = [Fraction(time) for a, b in zip(begins, begins[1:], strict=False) for time in (a, Fraction(a + b, 2))]
    assert [picture.pts * picture.time_base for picture in pictures] == [time * UNIT for time in wanted]
    ends = [picture.pts + picture.duration for picture in pictures]
    assert ends == [*(picture.pts for picture in pictures[1:]), 2 * last]


def test_the_finest_times_are_exact_or_refused():
    unit = Fraction(1, 10**9)
    frames = film(True, [3, 1_000_000_004, 2_000_000_001])
    for frame in frames:
        frame.time_base = unit
    pictures = list(deinterlaced(frames, "field", "tt", end=3_000_000_000))
    assert [picture.pts for picture in pictures] == [
        6, 1_000_000_007, 2_000_000_008, 3_000_000_005, 4_000_000_002, 5_000_000_001,
    ]  # fmt: skip
    assert pictures[0].time_base == unit / 2
    for frame in frames:
        frame.time_base = Fraction(1, 2**31 - 1)
    with pytest.raises(MediaError, match="too fine to be halved"):
        list(deinterlaced(frames, "field", "tt"))
    assert len(list(deinterlaced(frames, "frame", "tt"))) == 3


@pytest.mark.parametrize("mode", ["frame", "field"])
@pytest.mark.parametrize(
    "pix_fmt",
    [
        "yuv420p",
        "yuvj420p",
        "yuv422p10le",
        "yuv411p",
        "yuv410p",
        "yuv440p",
        "yuv444p12le",
        "yuv420p16le",
        "gray",
        "gbrp",
    ],
)
def test_format_and_colours_survive(pix_fmt: str, mode: Any):
    source = film(True, [0, 3600, 7200], pix_fmt)
    pictures = list(deinterlaced(source, mode, "tt"))
    assert len(pictures) == (3 if mode == "frame" else 6)
    for picture in pictures:
        assert (picture.format.name, picture.width, picture.height) == (pix_fmt, WIDTH, HEIGHT)
        assert (picture.colorspace, picture.color_primaries, picture.color_trc, picture.color_range) == (7, 9, 16, 2)
        assert not picture.interlaced_frame
    # The lines of the field that is shown first are those of the source, to the code.
    np.testing.assert_array_equal(luma_of(pictures[0])[0::2], luma_of(source[0])[0::2])


@pytest.mark.parametrize("mode", ["frame", "field"])
def test_a_part_of_the_film_gives_the_same_pictures(mode: Any):
    """One frame before and one behind are enough: what segments rely on."""
    times = range(0, 12 * 3600, 3600)
    whole = {picture.pts: luma_of(picture) for picture in deinterlaced(film(True, times), mode, "tt")}
    part = {picture.pts: luma_of(picture) for picture in deinterlaced(film(True, times)[3:9], mode, "tt")}
    inner = [pts for pts in part if 4 * 3600 <= pts // (1 if mode == "frame" else 2) < 8 * 3600]
    assert len(inner) == (4 if mode == "frame" else 8)
    for pts in inner:
        np.testing.assert_array_equal(part[pts], whole[pts])


@pytest.mark.parametrize("pix_fmt", sorted(interlace._FILTERED))
def test_nothing_is_converted_on_the_way(pix_fmt: str):
    """ffmpeg would put a conversion before bwdif for formats that it does not take."""
    (picture,) = deinterlaced([as_frame(moment(0, 64, 48), 0, pix_fmt)], "frame", "tt")
    assert picture.format.name == pix_fmt


def test_source_frames_are_not_written_to():
    source = film(True, [0, 3600, 7200])
    before = [luma_of(frame).copy() for frame in source]
    list(deinterlaced(source, "field", "tt"))
    for frame, luma in zip(source, before, strict=True):
        np.testing.assert_array_equal(luma_of(frame), luma)


def test_pictures_come_before_the_film_has_ended():
    taken = 0

    def endless():
        nonlocal taken
        while True:
            yield as_frame(woven(taken, True), 3600 * taken)
            taken += 1

    pictures = deinterlaced(endless(), "frame", "tt")
    for index in range(20):
        assert next(pictures).pts == 3600 * index
        assert taken <= index + 2


def test_no_frames_give_no_pictures():
    assert list(deinterlaced([], "field", "tt")) == []


@pytest.mark.parametrize(
    ("size", "pix_fmt", "message"),
    [((64, 48), "gray10le", "interlaced gray10le cannot"), ((64, 2), "yuv420p", "64x2 yuv420p cannot be deinterlaced")],
)
def test_what_bwdif_does_not_take_is_refused(size: tuple[int, int], pix_fmt: str, message: str):
    frame = as_frame(moment(0, *size), 0, pix_fmt)
    with pytest.raises(MediaError, match=message):
        list(deinterlaced([frame], "frame", "tt"))


@pytest.fixture
def make_film(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a clip of 352x288 (or another height)."""

    def make(
        codec: str,
        name: str,
        draw: Callable[[int, int, int], np.ndarray],
        options: dict[str, str] | None = None,
        flags: int = 0,
        height: int = 288,
        pix_fmt: str = "yuv420p",
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25)
            context = stream.codec_context
            context.width, context.height, context.pix_fmt = 352, height, pix_fmt
            context.options, context.flags = options or {}, context.flags | flags
            for index in range(24):
                frame = as_frame(draw(index, 352, height), index, pix_fmt)
                frame.time_base, frame.color_range = Fraction(1, 25), 0
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make


def top(index: int, width: int, height: int) -> np.ndarray:
    return woven(index, True, width, height)


def bottom(index: int, width: int, height: int) -> np.ndarray:
    return woven(index, False, width, height)


def progressive(index: int, width: int, height: int) -> np.ndarray:
    return moment(2 * index, width, height)


def stripes(index: int, width: int, height: int) -> np.ndarray:
    """A progressive picture with lines of every other row, which stand still, under a moving bar."""
    picture = moment(index, width, height)
    picture[: height // 2 : 2] = 30
    return picture


def noise(index: int, width: int, height: int) -> np.ndarray:
    return np.random.default_rng(index).integers(16, 235, (height, width)).astype(np.uint8)


def detected(path: Path) -> tuple[str, int]:
    """What is detected, and how many frames that took."""
    taken = 0

    def counted(frames: Any) -> Any:
        nonlocal taken
        for frame in frames:
            taken += 1
            yield frame

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return detect(stream, counted(container.decode(stream))), taken


INTERLACED = int(av.codec.context.Flags.interlaced_dct | av.codec.context.Flags.interlaced_me)


@pytest.mark.parametrize(
    ("codec", "name", "draw", "options", "flags", "order"),
    [
        ("libx264", "a.mp4", top, {"x264-params": "tff=1"}, 0, "tt"),
        ("libx264", "a.mkv", bottom, {"x264-params": "bff=1"}, 0, "bb"),
        ("mpeg2video", "a.ts", bottom, {"b": "8M"}, INTERLACED, "bb"),
        ("mpeg2video", "wrong_tag.ts", top, {"b": "8M"}, INTERLACED, "tt"),  # ffmpeg tags it as bottom field first
        ("ffv1", "a.mkv", top, {}, 0, "tt"),
        ("rawvideo", "a.avi", bottom, {}, 0, "bb"),
        ("utvideo", "a.avi", top, {}, 0, "tt"),
        ("libx264", "tagged_still.mp4", lambda index, *size: moment(0, *size), {"x264-params": "bff=1"}, 0, "bb"),
    ],
)
def test_interlaced_is_detected(make_film: Callable[..., Path], codec, name, draw, options, flags, order):
    assert detected(make_film(codec, name, draw, options, flags))[0] == order


def test_progressive_film_that_is_flagged_as_interlaced(make_film: Callable[..., Path]):
    path = make_film("mpeg2video", "a.ts", progressive, {"b": "8M"}, INTERLACED)
    assert probing.probe(path).field_order == "progressive"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        head = list(container.decode(stream))
        assert head[0].interlaced_frame
        later = [[as_frame(bottom(index, 352, 288), index) for index in range(24)]]
        assert interlace.detect(stream, head, lambda: later) == "bb"  # after a title, say


@pytest.mark.parametrize("draw", [progressive, stripes, noise, lambda index, *size: moment(0, *size)])
@pytest.mark.parametrize(
    ("codec", "name", "most"),
    [("libx264", "a.mp4", 1), ("mpeg2video", "a.ts", 1), ("ffv1", "a.mkv", 60), ("rawvideo", "a.avi", 60)],
)
def test_progressive_is_not_misdetected(make_film: Callable[..., Path], codec: str, name: str, most: int, draw):
    order, taken = detected(make_film(codec, name, draw))
    assert order == "progressive"
    assert taken <= most


def test_small_pictures_are_not_looked_at(make_film: Callable[..., Path]):
    assert detected(make_film("ffv1", "a.mkv", top, height=144)) == ("progressive", 8)


def test_damage_ends_the_looking(make_film: Callable[..., Path]):
    path = make_film("ffv1", "a.mkv", top)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]

        def broken():
            for index, frame in enumerate(container.decode(stream)):
                if index == 20:
                    raise av.error.InvalidDataError(1, "damaged")
                yield frame

        assert detect(stream, broken()) == "tt"
        assert detect(stream, []) == "progressive"


@pytest.mark.parametrize(("mode", "count"), [("frame", 24), ("field", 48), ("off", 24)])
def test_file_to_file(make_film: Callable[..., Path], tmp_path: Path, mode: Any, count: int):
    source = make_film("ffv1", "in.mkv", top)
    settings = Settings(model="nearest", scale=1, codec="ffv1", deinterlace=mode, segment_frames=10)
    output = vidup.upscale(source, tmp_path / "out.mkv", settings).output
    with av.open(str(output)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == count
    times = [frame.pts * frame.time_base for frame in frames]
    assert times == [Fraction(40 * index * 24 // count, 1000) for index in range(count)]
    for index, frame in enumerate(frames):
        if mode == "off":
            np.testing.assert_array_equal(luma_of(frame), woven(index, True, 352, 288))
        else:
            assert psnr(luma_of(frame), moment(index * 48 // count, 352, 288)) > 30


@pytest.fixture
def still_film(tmp_path: Path) -> Path:
    """Woven frames, 25 a second, whose fourth is shown for two seconds."""
    path = tmp_path / "still.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.options = {"x264-params": "tff=1:bframes=0", "crf": "4", "preset": "ultrafast"}
        for index, time in enumerate([0, 1, 2, 3, 53, 54, 55, 56]):
            frame = as_frame(woven(4 * index, True, 96, 64), time)
            frame.time_base, frame.color_range = Fraction(1, 25), 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("leads_in", [False, True])
@pytest.mark.parametrize("asked", [{"start": 1.0}, {"start": 1.7}, {"start": 1.0, "duration": 0.5}])
def test_a_part_that_begins_in_a_still_of_fields_shows_it(
    still_film: Path, tmp_path: Path, asked: dict[str, float], leads_in: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vidup.engines.carries", lambda settings: leads_in)
    settings = Settings(model="nearest", scale=1, codec="ffv1", deinterlace="field", **asked)
    output = vidup.upscale(still_film, tmp_path / "out.mkv", settings).output
    assert vidup.verify(still_film, output, settings).frames == (2 if "duration" in asked else 10)
    with av.open(str(output)) as container:
        found = list(container.decode(video=0))
    until = min(2.12 - asked["start"], asked.get("duration", 9.0))
    times = [0.0, until / 2]
    if "duration" not in asked:
        times += [until + index / 50 for index in range(8)]
    assert [float(frame.pts * frame.time_base) for frame in found] == pytest.approx(times, abs=0.0011)
    for index, frame in enumerate(found):
        number = 6 + index  # of the fields
        assert psnr(luma_of(frame), moment(8 * (number // 2) + number % 2, 96, 64)) > 26
