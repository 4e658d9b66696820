"""Encoders: which there are, what they are given, what they refuse, and what of the picture's format they keep."""

import contextlib
import json
import os
import shutil
import subprocess
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

import vidup
from vidup.config import Settings
from vidup.errors import ConfigError
from vidup.frame import Color, Frame, HdrMetadata, MediaInfo
from vidup.media import encoder
from vidup.media.codecs import DEFAULTS, PICTURES
from vidup.media.containers import MATROSKA, MOV, MP4, WEBM, Container
from vidup.media.encoder import Encoding, choose_encoding, open_context, to_av
from vidup.media.hdr import dynamic_hdr, read_hdr
from vidup.media.losses import limits, loses
from vidup.media.options import encoder_options
from vidup.media.segment import decode_segment, encode_segment, read_segment
from vidup.media.trial import objections

FAST = {
    "libx264": {"preset": "ultrafast"},
    "libx265": {"preset": "ultrafast"},
    "libsvtav1": {"preset": "12"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}
P3_D65 = (
    *(Fraction(code, 50_000) for code in (34_000, 16_000, 13_250, 34_500, 7_500, 3_000, 15_635, 16_450)),
    Fraction(1, 200),
    Fraction(1000),
)
HDR10 = HdrMetadata(P3_D65, (987, 341))
PQ = Color(9, 9, 16)


def info_of(**given: Any) -> MediaInfo:
    """What `probe` would say of a plain file, with some of it replaced."""
    plain = {
        "path": "in.mkv",
        "width": 64,
        "height": 48,
        "pix_fmt": "yuv420p",
        "color": Color(1, 1, 1),
        "sample_aspect_ratio": Fraction(1),
        "time_base": Fraction(1, 1000),
        "pts": (0, 40, 80),
        "rate": Fraction(25),
        "dynamic_hdr": (),
        "side_data": (),
        "stereo_mode": "",
    }
    return MediaInfo(**{spec.name: {**plain, **given}.get(spec.name) for spec in fields(MediaInfo)})


def chosen(codec: str, size: tuple[int, int] = (128, 96), info: MediaInfo | None = None, **settings: Any) -> Encoding:
    options = FAST.get(codec, {}) | settings.pop("encoder_options", {})
    return choose_encoding(
        Settings(codec=codec, encoder_options=options, **settings), info or info_of(), *size, container=MATROSKA
    )


def encoded(encoding: Encoding, path: Path, count: int = 4) -> Path:
    """A file of a few frames of noise that moves."""
    form = encoder.planar(encoding.pix_fmt)
    blank = av.VideoFrame(encoding.width, encoding.height, form)
    rng = np.random.default_rng(0)
    deep = "p1" in form
    planes = tuple(
        rng.integers(64, 900 if deep else 200, (plane.height, plane.width)).astype(np.uint16 if deep else np.uint8)
        for plane in blank.planes
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoding.codec, rate=25)
        open_context(stream.codec_context, encoding)
        for index in range(count):
            moved = tuple(np.roll(plane, index, 1) for plane in planes)
            frame = Frame(moved, form, encoding.color, 40 * index, 40, Fraction(1, 1000))
            container.mux(stream.encode(to_av(frame, encoding)))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("unit", [Fraction(1, 1000), Fraction(1, 10**9), Fraction(1, 2**31 - 1)])
@pytest.mark.parametrize("codec", [name for name in DEFAULTS if not name.endswith("_nvenc") and name not in PICTURES])
def test_times_of_any_unit_come_back_exactly(codec: str, unit: Fraction, tmp_path: Path):
    steps = [Fraction(1, 30) + Fraction(index * index, 1009) for index in range(5)] + [3 * unit, 3 * unit]
    times = [int(sum(steps[:count]) / unit) for count in range(len(steps) + 1)]
    encoding = chosen(codec, info=info_of(time_base=unit, pts=tuple(times)))
    form = encoder.planar(encoding.pix_fmt)
    planes = tuple(
        np.full((plane.height, plane.width), 64, np.uint8 if "p1" not in form else np.uint16)
        for plane in av.VideoFrame(encoding.width, encoding.height, form).planes
    )
    frames = [Frame(planes, form, encoding.color, time, index + 1, unit) for index, time in enumerate(times)]
    path = tmp_path / "00000.seg"
    encode_segment(frames, encoding, path)
    scale = unit / encoding.time_base
    written = sorted((packet.pts, packet.duration) for packet in read_segment(path))
    assert written == [(time * scale, (index + 1) * scale) for index, time in enumerate(times)]
    decoded = [picture.pts for picture in decode_segment(path, encoding)]
    assert decoded == [time * scale for time in times]


def first_frame(path: Path) -> Any:
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="threads have no such priority here")
@pytest.mark.parametrize("codec", list(FAST))
def test_an_encoder_takes_no_priority(codec: str, tmp_path: Path):
    """As root SVT-AV1 would, for itself and for the thread that opens it: all others get what they leave."""

    def policies() -> set[int]:
        found = set()
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                found.add(os.sched_getscheduler(int(task.name)))
        return found

    before, seen = policies(), []
    encoding = chosen(codec)
    context = open_context(av.CodecContext.create(codec, "w"), encoding)
    seen.append(policies())
    picture = av.VideoFrame(encoding.width, encoding.height, encoding.pix_fmt)
    for index in range(4):
        picture.pts = 40 * index
        context.encode(picture)
        seen.append(policies())
    assert seen == [before] * 5


def test_priority_that_must_not_be_asked_for_is_left(monkeypatch: pytest.MonkeyPatch):
    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_getscheduler", forbidden, raising=False)
    monkeypatch.setattr(os, "sched_setscheduler", forbidden, raising=False)
    assert chosen("libx264").codec == "libx264"


def test_available_encoders_open_and_tell_their_defaults():
    found = encoder.available()
    assert {"libx264", "libx265", "libsvtav1", "libvpx-vp9", "ffv1", "prores_ks"} <= set(found) <= set(DEFAULTS)
    assert "crf=18" in found["libx264"] and "profile=auto" in found["prores_ks"]
    for codec in found:
        assert chosen(codec, (256, 256)).codec == codec


@pytest.mark.parametrize("codec", [name for name in DEFAULTS if name.endswith("_nvenc")])
def test_hardware_that_is_not_there_is_one_clear_error(codec: str, monkeypatch: pytest.MonkeyPatch):
    if codec in encoder.available():
        assert chosen(codec, (256, 256), crf=23).options["cq"] == "23"
        return
    with pytest.raises(ConfigError, match=rf"{codec}.*cannot be opened on this machine.*NVIDIA.*libx264"):
        chosen(codec)
    # What it would be given where there is one.
    options = encoder_options(codec, Settings(codec=codec, crf=23, encoder_options={"preset": "p7"}), HDR10)
    assert options == {**DEFAULTS[codec].options, "cq": "23", "preset": "p7"}


@pytest.mark.parametrize("codec", ["libx266", "aac", "gibberish"])
def test_codecs_that_encode_no_video_are_refused(codec: str):
    with pytest.raises(ConfigError, match=rf"codec = '{codec}'.*libx264"):
        chosen(codec)


@pytest.mark.parametrize(("name", "codec"), [("hevc", "libx265"), ("h264", "libx264")])
def test_a_format_stands_for_its_encoder(name: str, codec: str):
    encoding = chosen(name)
    assert encoding.codec == codec and encoding.options["preset"] == "medium"


@pytest.mark.parametrize(
    ("codec", "option", "value", "message"),
    [
        ("libx264", "presett", "slow", "presett: libx264 does not know it"),
        ("libx264", "preset", "slowish", "libx264 refuses 128x96"),
        ("ffv1", "crf", "3", "crf: ffv1 does not know it"),
        ("libx264", "x264-params", "subm=7", "Error parsing option 'subm = 7'"),
        ("libx264", "x264-params", "deblock=1,1:no-mbtre=1", "Error parsing option 'no-mbtre = 1'"),
        ("libx264", "x264-params", "cqm4=16,16,16", "Error parsing option 'cqm4 = 16,16,16'"),
        ("libx264", "x264-params", "cll=1", "Error parsing option 'cll = 1'"),
        ("libx264", "x264opts", "rc_lookahea=7", "bad option 'rc_lookahea'"),
        ("libx264", "x264-params", "subme", "Error setting option x264-params"),
        ("libx264", "x264-params", "subme=high", "Error parsing option 'subme = high'"),
        ("libx264", "maxrate", "100000", "VBV maxrate specified, but no bufsize, ignored"),
        ("libx264", "global_quality", "3", "global_quality: libx264 ignores it"),
        ("libx264", "x264-params", "mastering-display=G(1)", r"expected G\(x,y\)B"),
        ("libx265", "x265-params", "aqmode=2", "Unknown option: aqmode"),
        ("libx265", "x265-params", "max-cll=1000", "Invalid value for max-cll: 1000"),
        ("libx265", "x265-params", "subme=99", "libx265 refuses 128x96.*subme must be less than"),
        ("libx265", "x265-params", "master-display=1", r"expected G\(x,y\)B"),
        ("libx265", "maxrate", "100000", "VBV maxrate specified, but no bufsize, ignored"),
        ("libx265", "x265-params", "zzzz=1", "Unknown option: zzzz"),
        ("libsvtav1", "svtav1-params", "film-grains=8", "Error parsing option film-grains: 8"),
        ("libsvtav1", "svtav1-params", "film-grain=lots", "Error parsing option film-grain: lots"),
        ("libsvtav1", "svtav1-params", "content-light=1", "Error parsing option content-light: 1"),
        ("ffv1", "b", "1000000", "b: ffv1 ignores it"),
        ("prores_ks", "b", "1000000", "b: prores_ks ignores it"),
        ("libx264", "flags", "0", "change what is decided elsewhere"),
        ("libx264", "color_range", "pc", "change what is decided elsewhere"),
        ("libx264", "time_base", "1/7", "change what is decided elsewhere"),
        ("libx264", "aspect", "16/9", "change what is decided elsewhere"),
        ("libsvtav1", "svtav1-params", "mastering-display=1", r"expected G\(x,y\)B"),
    ],
)
def test_encoder_options_that_would_be_ignored_are_refused(codec: str, option: str, value: str, message: str):
    with pytest.raises(ConfigError, match=message):
        chosen(codec, encoder_options={option: value})


@pytest.mark.parametrize(
    ("codec", "option", "value"),
    [
        (
            "libx264",
            "x264-params",
            "no-deblock=1:me=umh:rc_lookahead=10:psy-rd=1.0,0.2:non-deterministic=0:keyint=infinite",
        ),
        (
            "libx264",
            "x264-params",
            r"deblock=-1\:-1:nocabac=1:level=5.1:cqm=flat:colorprim=bt2020",
        ),
        ("libx265", "x265-params", "no-sao=1:psy-rd=2.0:rd=3:hme-search=hex,umh,star:transfer=bt709:pools=+"),
        ("libsvtav1", "svtav1-params", "film-grain=8:tune=0:enable-overlays=1"),
    ],
)
def test_encoder_options_that_are_known_pass(codec: str, option: str, value: str):
    assert chosen(codec, encoder_options={option: value}).options[option].endswith(value)


@pytest.mark.parametrize(
    ("codec", "crf", "taken"),
    [("libx264", 52, "0 to 51"), ("libx265", 51.5, "0 to 51"), ("libsvtav1", 0, "1 to 63")],
)
def test_a_quality_that_an_encoder_would_change_in_silence_is_refused(codec: str, crf: float, taken: str):
    with pytest.raises(ConfigError, match=f"crf = {crf:g}: {codec} takes {taken}"):
        chosen(codec, crf=crf)


@pytest.mark.parametrize("codec", ["ffv1", "prores_ks"])
def test_encoders_without_constant_quality_say_so(codec: str):
    with pytest.raises(ConfigError, match=f"crf = 3: {codec} has no constant quality"):
        chosen(codec, crf=3)


@pytest.mark.parametrize("codec", list(DEFAULTS))
def test_encoders_go_by_all_that_they_are_given_by_default(codec: str):
    if codec in encoder.available():
        options = encoder_options(codec, Settings(codec=codec), HDR10)
        assert objections(codec, tuple(options.items()), 256, 256, chosen(codec, (256, 256)).pix_fmt) == []


def test_an_encoder_that_hangs_or_dies_takes_nothing_along(monkeypatch: pytest.MonkeyPatch):
    def hangs(*_: Any, timeout: float, **__: Any) -> None:
        raise subprocess.TimeoutExpired("", timeout)

    def dies(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(returncode=-11, stderr="it was here", stdout="")

    for way, said in ((hangs, "does not open within"), (dies, r"exit code -11\) it was here")):
        monkeypatch.setattr(subprocess, "run", way)
        with pytest.raises(ConfigError, match=rf"libx264 refuses 128x96 .*g={len(said)}.*{said}"):
            chosen("libx264", encoder_options={"g": str(len(said))})


RATES = [
    ("libx264", {"b": "90000"}),
    ("libx264", {"qp": "40"}),
    ("libx264", {"x264-params": "qp=40"}),
    ("libx265", {"b": "90000"}),
    ("libx265", {"qp": "40"}),
    ("libsvtav1", {"b": "90000"}),
    ("libsvtav1", {"qp": "50"}),
    ("libvpx-vp9", {"b": "90000"}),
    ("libvpx-vp9", {"lossless": "1"}),
]


@pytest.mark.parametrize(("codec", "options"), RATES)
def test_a_rate_control_of_the_user_is_gone_by(codec: str, options: dict[str, str], tmp_path: Path):
    """Beside our constant quality an encoder would not go by it, and say nothing."""
    plain, asked = (
        encoded(chosen(codec, encoder_options=given), tmp_path / f"{len(given)}.mkv", 16).stat().st_size
        for given in ({}, options)
    )
    assert asked != plain  # it may be larger: the rate of a few frames of noise is not met


@pytest.mark.parametrize(("codec", "options"), RATES)
@pytest.mark.parametrize("setting", [{"crf": 20}, {"bitrate": "1M"}])
def test_two_rate_controls_contradict_each_other(codec: str, options: dict[str, str], setting: dict[str, Any]):
    with pytest.raises(ConfigError, match=rf"{next(iter(setting))} = .* and encoder option .*: give one of the two"):
        chosen(codec, encoder_options=options, **setting)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "libvpx-vp9"])
def test_a_bitrate_decides_the_size(codec: str, tmp_path: Path):
    sizes = [
        encoded(chosen(codec, bitrate=rate), tmp_path / f"{rate}.mkv", 16).stat().st_size for rate in ("60k", "3M")
    ]
    assert sizes[1] > 1.05 * sizes[0]
    options = chosen(codec, bitrate="3M").options
    assert options["b"] == "3000000" and "crf" not in options


@pytest.mark.parametrize(
    ("codec", "cap"),
    [
        ("libx264", {"maxrate": "1500000", "bufsize": "3000000"}),
        ("libx265", {"maxrate": "1500000", "bufsize": "3000000"}),
        ("libsvtav1", {"maxrate": "1500000"}),
        ("libvpx-vp9", {"b": "1500000"}),
    ],
)
def test_a_bitrate_with_a_quality_is_the_most(codec: str, cap: dict[str, str], tmp_path: Path):
    options = chosen(codec, crf=20, bitrate="1.5M").options
    assert options["crf"] == "20" and cap.items() <= options.items()
    high, low = (
        encoded(chosen(codec, crf=5, bitrate=rate), tmp_path / f"{rate}.mkv", 16).stat().st_size
        for rate in ("90M", "50k")
    )
    assert low < 0.9 * high


@pytest.mark.parametrize("codec", ["ffv1", "prores_ks"])
def test_encoders_without_a_bitrate_say_so(codec: str):
    with pytest.raises(ConfigError, match=f"{codec} has no target bitrate"):
        chosen(codec, bitrate="20M")


@pytest.mark.parametrize("value", ["fast", "0", "5", "20Mbit", "9e9", "-3M", "1" * 400, "99999G"])
def test_a_bitrate_that_cannot_be_is_refused(value: str):
    with pytest.raises(ConfigError, match=r"bitrate = .*expected bits a second such as 20M"):
        Settings(bitrate=value)


@pytest.mark.parametrize(
    ("source", "options", "pix_fmt", "tag"),
    [
        ("yuv444p12le", {}, "yuv444p10le", "ap4h"),
        ("yuv422p10le", {}, "yuv422p10le", "apch"),
        ("yuv444p12le", {"profile": "lt"}, "yuv422p10le", "apcs"),
        ("yuv422p10le", {"profile": "4444"}, "yuv444p10le", "ap4h"),
        ("yuv422p10le", {"profile": "5"}, "yuv444p10le", "ap4x"),
    ],
)
def test_prores_is_of_the_profile_that_holds_its_pixels(
    source: str, options: dict[str, str], pix_fmt: str, tag: str, tmp_path: Path
):
    encoding = chosen("prores_ks", info=info_of(pix_fmt=source), encoder_options=options)
    assert encoding.pix_fmt == pix_fmt
    with av.open(str(encoded(encoding, tmp_path / "prores.mov"))) as container:
        assert container.streams.video[0].codec_context.codec_tag == tag


def test_a_profile_and_a_pixel_format_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match=r"pix_fmt = 'yuv444p10le': the profile hq of prores_ks is for yuv422p10le"):
        chosen("prores_ks", pix_fmt="yuv444p10le", encoder_options={"profile": "hq"})


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1"])
def test_hdr10_metadata_comes_back(codec: str, tmp_path: Path):
    info = info_of(pix_fmt="yuv420p10le", color=PQ, hdr=HDR10)
    encoding = chosen(codec, info=info)
    assert not [line for line in loses(info, encoding) if "HDR" in line]
    path = encoded(encoding, tmp_path / "hdr.mkv")
    frame = first_frame(path)
    assert (frame.colorspace, frame.color_primaries, frame.color_trc) == (9, 9, 16)
    found = read_hdr(frame)
    assert found is not None and found.mastering is not None
    assert found.content_light == HDR10.content_light
    # AV1 counts in 1/65536, 1/256 and 1/16384; the others hold these numbers exactly.
    steps = [Fraction(1, 65536)] * 8 + [Fraction(1, 16384), Fraction(1, 256)]
    for value, wanted, step in zip(found.mastering, P3_D65, steps, strict=True):
        assert abs(value - wanted) <= (step if codec == "libsvtav1" else 0)
    if codec != "libx264":  # ffprobe reads it of H.264 only since FFmpeg 7
        _ffprobe_agrees(path, found)


def _ffprobe_agrees(path: Path, hdr: HdrMetadata) -> None:
    if shutil.which("ffprobe") is None:
        return
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_frames", "-read_intervals", "%+#1", str(path)]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    facts: dict[str, Any] = {}
    for item in told["frames"][0]["side_data_list"]:
        facts |= item
    names = [f"{color}_{axis}" for color in ("red", "green", "blue", "white_point") for axis in "xy"]
    assert hdr.mastering is not None
    assert [Fraction(facts[name]) for name in [*names, "min_luminance", "max_luminance"]] == list(hdr.mastering)
    assert (facts["max_content"], facts["max_average"]) == hdr.content_light


@pytest.mark.parametrize("hdr", [HdrMetadata(P3_D65, None), HdrMetadata(None, (600, 100))])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1"])
def test_half_of_the_hdr10_metadata_stays_half(codec: str, hdr: HdrMetadata, tmp_path: Path):
    encoding = chosen(codec, info=info_of(pix_fmt="yuv420p10le", color=PQ, hdr=hdr))
    found = read_hdr(first_frame(encoded(encoding, tmp_path / "half.mkv")))
    assert found is not None
    assert (found.mastering is None) == (hdr.mastering is None)
    assert found.content_light == hdr.content_light


def test_hdr10_file_to_file(tmp_path: Path):
    info = info_of(pix_fmt="yuv420p10le", color=PQ, hdr=HDR10)
    source = encoded(chosen("libx265", info=info), tmp_path / "in.mkv")
    settings = Settings(model="nearest", scale=2, codec="libx265", encoder_options=FAST["libx265"])
    frame = first_frame(vidup.upscale(source, tmp_path / "out.mp4", settings).output)
    assert read_hdr(frame) == HDR10
    assert (frame.width, frame.colorspace, frame.color_primaries, frame.color_trc) == (256, 9, 9, 16)


def test_what_the_user_says_of_hdr_comes_last():
    info = info_of(pix_fmt="yuv420p10le", color=PQ, hdr=HDR10)
    encoding = chosen("libx265", info=info, encoder_options={"x265-params": "max-cll=5,4"})
    assert encoding.options["x265-params"].endswith("max-cll=987,341:max-cll=5,4")


@pytest.mark.parametrize("codec", ["libvpx-vp9", "ffv1", "prores_ks"])
def test_hdr_that_cannot_be_kept_is_told(codec: str):
    info = info_of(pix_fmt="yuv422p10le", color=PQ, hdr=HDR10)
    lines = loses(info, chosen(codec, info=info))
    assert any(f"HDR10 mastering data is not kept by {codec}" in line for line in lines)


def test_plain_video_has_no_hdr(tmp_path: Path):
    frame = first_frame(encoded(chosen("libx264"), tmp_path / "plain.mkv"))
    assert read_hdr(frame) is None


def test_dynamic_hdr_is_seen_by_side_data_and_by_tag():
    def frame(*kinds: str) -> Any:
        return SimpleNamespace(side_data=[_Data(kind) for kind in kinds])

    def stream(tag: str) -> Any:
        return SimpleNamespace(codec_context=SimpleNamespace(codec_tag=tag))

    assert dynamic_hdr(frame(), stream("hvc1")) == []
    assert dynamic_hdr(frame("DOVI_RPU_BUFFER", "DOVI_METADATA", "DYNAMIC_HDR_PLUS"), stream("hvc1")) == [
        "Dolby Vision",
        "HDR10+",
    ]
    assert dynamic_hdr(frame("DISPLAYMATRIX"), stream("dvh1")) == ["Dolby Vision"]


class _Data(bytes):
    """Side data of a kind that no encoder here writes."""

    def __new__(cls, kind: str) -> "_Data":
        data = super().__new__(cls, b"")
        data.type = SimpleNamespace(name=kind)  # type: ignore[attr-defined]
        return data


@pytest.mark.parametrize(
    ("codec", "size", "rate", "beyond"),
    [
        ("libx264", (8192, 4352), 25, None),
        ("libx264", (8192, 4368), 25, "H.264's largest level"),
        ("libx264", (11520, 6480), 25, "H.264's largest level"),
        ("libx264", (7680, 4320), 240, "240 frames a second is beyond H.264"),
        ("libx265", (8192, 4320), 60, None),
        ("libx265", (8192, 4400), 25, "H.265's level 6.2"),
        ("libsvtav1", (8192, 4320), 60, None),
        ("libsvtav1", (15360, 8640), 25, "AV1's largest level"),
        ("libvpx-vp9", (8192, 4320), 60, None),
        ("libvpx-vp9", (16448, 64), 25, "VP9's largest level"),
        ("ffv1", (32768, 32768), 25, None),
    ],
)
def test_limits(codec: str, size: tuple[int, int], rate: int, beyond: str | None):
    encoding = replace(chosen(codec), width=size[0], height=size[1], rate=Fraction(rate))
    found = limits(encoding)
    assert len(found) == (beyond is not None)
    if beyond is not None:
        assert beyond in found[0] and f"{size[0]}x{size[1]}" in found[0]


@pytest.mark.parametrize(
    ("codec", "size"), [("libx264", (16386, 64)), ("libsvtav1", (65600, 64)), ("libsvtav1", (64, 8706))]
)
def test_sizes_that_an_encoder_cannot_hold_are_refused(codec: str, size: tuple[int, int]):
    with pytest.raises(ConfigError, match=rf"{codec} holds at most .*{size[0]}x{size[1]}"):
        chosen(codec, size)


def test_what_x265_spoils_memory_with_is_refused():
    info = info_of()
    assert choose_encoding(Settings(codec="libx265"), info, 64, 40, MATROSKA).width == 64
    with pytest.raises(ConfigError, match="libx265 takes pictures of 64 pixels in width and more, not 48x64"):
        choose_encoding(Settings(codec="libx265"), info, 48, 64, MATROSKA)


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_the_largest_size_opens(codec: str):
    width, _ = DEFAULTS[codec].largest
    assert chosen(codec, (width, 64)).width == width


@pytest.mark.parametrize(
    ("codec", "matrix", "written", "told"),
    [
        ("libvpx-vp9", 7, 7, False),
        ("libvpx-vp9", 4, 1, True),
        ("libvpx-vp9", 8, 1, True),
        ("prores_ks", 5, 6, False),
        ("prores_ks", 7, 1, True),
        ("libx264", 8, 8, False),
        ("libx265", 4, 4, False),
        ("ffv1", 8, 8, False),
    ],
)
def test_a_matrix_that_the_stream_cannot_name_is_changed_and_told(codec: str, matrix: int, written: int, told: bool):
    info = info_of(color=Color(matrix, 1, 1))
    encoding = chosen(codec, info=info)
    assert encoding.color.matrix == written
    assert any("colour matrix" in line for line in loses(info, encoding)) == told


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "libvpx-vp9", "ffv1", "prores_ks"])
@pytest.mark.parametrize("matrix", [1, 4, 6, 7, 8, 9])
@pytest.mark.parametrize("full", [False, True])
def test_colour_tags_come_back(codec: str, matrix: int, full: bool, tmp_path: Path):
    info = info_of(color=Color(matrix, 9, 16, full))
    encoding = chosen(codec, info=info)
    frame = first_frame(encoded(encoding, tmp_path / ("tags.mov" if codec == "prores_ks" else "tags.mkv")))
    assert frame.colorspace == encoding.color.matrix
    assert (frame.color_primaries, frame.color_trc) == (9, 16)
    if codec != "prores_ks":  # is always of limited range
        assert (frame.color_range == 2) == full


@pytest.mark.parametrize(
    ("codec", "source", "chosen_format"),
    [
        *[("ffv1", name, name) for name in ("yuv420p", "yuv422p", "yuv444p", "yuv440p", "yuv411p", "yuv410p", "gray")],
        *[("ffv1", name, name) for name in ("yuv422p10le", "yuv444p12le", "yuv420p16le", "gray16le", "gbrp10le")],
        ("ffv1", "uyvy422", "yuv422p"),
        ("ffv1", "yuva444p10le", "yuva444p10le"),
        ("ffv1", "ya8", "bgra"),
        ("libvpx-vp9", "yuva420p", "yuva420p"),
        ("prores_ks", "yuv420p", "yuv422p10le"),
        ("prores_ks", "yuva444p10le", "yuva444p10le"),
        ("libx265", "yuv422p12le", "yuv422p12le"),
        ("libx264", "rgb24", "yuv420p"),
        ("libsvtav1", "yuv444p16le", "yuv420p10le"),
    ],
)
def test_the_nearest_pixel_format_is_chosen(codec: str, source: str, chosen_format: str):
    assert chosen(codec, info=info_of(pix_fmt=source)).pix_fmt == chosen_format


@pytest.mark.parametrize(
    ("codec", "pix_fmt"), [("ffv1", "yuva422p"), ("ffv1", "gbrap10le"), ("prores_ks", "yuva444p10le")]
)
def test_transparency_that_is_asked_for_is_opaque(codec: str, pix_fmt: str, tmp_path: Path):
    encoding = chosen(codec, pix_fmt=pix_fmt)
    planes = tuple(np.full((96, 128), 300 if "10" in pix_fmt else 75, "u2" if "10" in pix_fmt else "u1") for _ in "123")
    if "422" in pix_fmt:
        planes = (planes[0], planes[1][:, :64], planes[2][:, :64])
    picture = to_av(Frame(planes, pix_fmt, encoding.color, 0, 40, Fraction(1, 1000)), encoding)
    alpha = np.frombuffer(picture.planes[3], planes[0].dtype)
    assert alpha.min() == alpha.max() == (1023 if "10" in pix_fmt else 255)
    assert open_context(av.CodecContext.create(codec, "w"), encoding).encode(picture) is not None


def test_gray_has_no_colour_to_lose():
    info = info_of(pix_fmt="gray")
    assert loses(info, chosen("libx264", info=info)) == []


def test_overrides_of_matrix_and_range_decide_the_tags():
    encoding = chosen("libx264", info=info_of(color=Color(2)), matrix="bt2020", range="full")
    assert (encoding.color.matrix, encoding.color.full_range) == (9, True)


@pytest.mark.parametrize("pix_fmt", ["nv12", "nv16", "p010le", "p210le", "bgr0", "x2rgb10le"])
def test_packed_formats_hold_the_same_codes(pix_fmt: str):
    """What an encoder wants in another order is only reordered: the way back gives every code."""
    planes, picture = _packed(pix_fmt)
    for plane, before in zip(picture.reformat(format=encoder.planar(pix_fmt)).planes, planes, strict=True):
        np.testing.assert_array_equal(_rows(plane, before.dtype), before)


@pytest.mark.parametrize("pix_fmt", ["yuv444p10msble", "gbrp10msble"])
def test_samples_in_the_high_bits_hold_the_same_codes(pix_fmt: str):
    planes, picture = _packed(pix_fmt)
    for plane, before in zip(picture.planes, planes, strict=True):
        np.testing.assert_array_equal(_rows(plane, before.dtype), before << 6)


def _packed(pix_fmt: str) -> tuple[tuple[np.ndarray, ...], Any]:
    form = encoder.planar(pix_fmt)
    rng = np.random.default_rng(1)
    blank = av.VideoFrame(64, 48, form)
    bits = blank.format.components[0].bits
    planes = tuple(
        rng.integers(0, 2**bits, (plane.height, plane.width)).astype("u1" if bits == 8 else "u2")
        for plane in blank.planes
    )
    encoding = replace(chosen("libx264"), pix_fmt=pix_fmt, width=64, height=48)
    picture = to_av(Frame(planes, form, encoding.color, 0, 40, Fraction(1, 1000)), encoding)
    assert picture.format.name == pix_fmt
    return planes, picture


def _rows(plane: Any, kind: Any) -> np.ndarray:
    return np.frombuffer(plane, kind).reshape(plane.height, -1)[:, : plane.width]


@pytest.mark.parametrize(
    ("container", "source", "settings", "codec"),
    [
        *[(container, "yuv420p", {}, "libx264") for container in (MP4, MOV, MATROSKA)],
        *[(container, "yuv420p10le", {}, "libx265") for container in (MP4, MOV)],
        (MP4, "yuv422p12le", {}, "libx265"),
        (MP4, "rgb48le", {}, "libx265"),
        (MATROSKA, "yuv420p10le", {}, "libx264"),
        (WEBM, "yuv420p10le", {}, "libvpx-vp9"),
        (MP4, "yuv420p10le", {"pix_fmt": "yuv420p"}, "libx264"),
        (MP4, "yuv420p", {"pix_fmt": "yuv420p10le"}, "libx265"),
        (MP4, "yuv420p10le", {"codec": "libx264"}, "libx264"),
    ],
)
def test_the_codec_where_none_is_asked_for(container: Container, source: str, settings: dict[str, Any], codec: str):
    assert choose_encoding(Settings(**settings), info_of(pix_fmt=source), 128, 96, container).codec == codec


@pytest.mark.parametrize("ending", ["mp4", "mov"])
def test_ten_bits_play_on_apples_players(ending: str, tmp_path: Path):
    source = encoded(chosen("ffv1", info=info_of(pix_fmt="yuv420p10le")), tmp_path / "in.mkv")
    output = vidup.upscale(source, tmp_path / f"out.{ending}", Settings(model="nearest", scale=2)).output
    with av.open(str(output)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.codec_tag, context.pix_fmt) == ("hevc", "hvc1", "yuv420p10le")
