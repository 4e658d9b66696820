"""Numbered pictures, in and out: as deep as they are, none missing, and going on where they were."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import pictures, video_times

import vidup
from vidup.cli import main
from vidup.job import numbered
from vidup.media import sequences

NEAREST = ["--model", "nearest", "--scale", "2"]
Output = pytest.CaptureFixture[str]
RANDOM = np.random.default_rng(3)
COUNT, HEIGHT, WIDTH = 5, 24, 32
FORMATS = {".png": ("png", "rgb48be"), ".tif": ("tiff", "rgb48le"), ".dpx": ("dpx", "rgb48le")}


def smooth(index: int) -> list[np.ndarray]:
    """Green, blue and red of 16 bits, with all of them in use."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [32768 + 30000 * np.sin(x / 7 + index / 3 + phase) * np.cos(y / 5 - phase) for phase in (0, 1, 2)]
    return [(wave + RANDOM.integers(0, 200, wave.shape)).astype(np.uint16) for wave in waves]


def write(path: Path, planes: list[np.ndarray], codec: str, pix_fmt: str) -> None:
    """One picture, by PyAV."""
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt, context.time_base = WIDTH, HEIGHT, pix_fmt, Fraction(1, 25)
    frame = av.VideoFrame(WIDTH, HEIGHT, "gbrpf32le" if codec == "exr" else "gbrp16le")
    for plane, codes in zip(frame.planes, planes, strict=True):
        data = np.ascontiguousarray(codes).view(np.uint8)
        np.frombuffer(plane, np.uint8).reshape(HEIGHT, -1)[:, : data.shape[1]] = data
    frame.pts = 0
    frame = frame if frame.format.name == pix_fmt else frame.reformat(format=pix_fmt)
    path.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]))


def read(path: Path, codec: str) -> tuple[str, np.ndarray]:
    """The format of a picture, and its green, blue and red."""
    context = av.CodecContext.create(codec, "r")
    frame = [*context.decode(av.Packet(path.read_bytes())), *context.decode(None)][0]
    flat = frame if frame.format.name.startswith("gbrp") else frame.reformat(format="gbrp16le")
    return frame.format.name, np.stack([np.from_dlpack(plane) for plane in flat.planes])


def make(folder: Path, ending: str = ".png", first: int = 7, codec: str = "png", pix_fmt: str = "rgb48be") -> list:
    folder.mkdir()
    made = [smooth(index) for index in range(COUNT)]
    for index, planes in enumerate(made):
        write(folder / f"shot 100% {first + index:04}{ending}", planes, codec, pix_fmt)
    return made


@pytest.mark.parametrize("ending", list(FORMATS))
def test_sixteen_bits_stay_sixteen(tmp_path: Path, ending: str, capsys: Output):
    codec, pix_fmt = FORMATS[ending]
    made = make(tmp_path / "in", ending, 7, codec, pix_fmt)
    output = tmp_path / "out" / f"big_%05d{ending}"
    assert main(["upscale", str(tmp_path / "in" / f"shot 100% %04d{ending}"), "-o", str(output), *NEAREST]) == 0
    found = sorted(path.name for path in output.parent.iterdir())
    assert found == [f"big_{number:05}{ending}" for number in range(7, 7 + COUNT)]  # by the numbers of the input
    for name, planes in zip(found, made, strict=True):
        kind, codes = read(output.parent / name, codec)
        assert kind == pix_fmt and codes.shape == (3, 2 * HEIGHT, 2 * WIDTH)
        assert np.abs(codes[:, ::2, ::2].astype(int) - np.stack(planes).astype(int)).max() <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert "delivered and verified, 5 frames" in capsys.readouterr().err


def test_light_of_openexr_is_linear_again(tmp_path: Path):
    (tmp_path / "in").mkdir()
    made = []
    for index in range(COUNT):
        planes = [(plane / 65535).astype(np.float32) for plane in smooth(index)]
        write(tmp_path / "in" / f"{index}.exr", planes, "exr", "gbrpf32le")
        made.append(np.stack(planes))
    output = tmp_path / "out" / "%d.exr"
    assert main(["upscale", str(tmp_path / "in" / "%d.exr"), "-o", str(output), *NEAREST]) == 0
    for index, planes in enumerate(made):
        kind, light = read(sequences.name(output, index), "exr")
        assert kind == "gbrpf16le"
        error = np.abs(light.view(np.float16).astype(np.float32)[:, ::2, ::2] - planes)
        assert (error <= 2e-3 * planes + 5e-5).all()


@pytest.mark.parametrize("how", ["folder", "glob"])
def test_a_folder_and_a_glob_are_a_sequence(tmp_path: Path, how: str, capsys: Output):
    make(tmp_path / "in")
    source = str(tmp_path / "in") if how == "folder" else str(tmp_path / "in" / "*.png")
    assert main(["upscale", source, "-o", str(tmp_path / "film.mkv"), *NEAREST, "--fps", "24"]) == 0
    assert video_times(tmp_path / "film.mkv") == [Fraction(round(1000 * index / 24), 1000) for index in range(COUNT)]
    assert "5 numbered pictures, taken as one sequence" in capsys.readouterr().err
    assert main(["upscale", source, "-o", str(tmp_path / "big"), *NEAREST]) == 0
    assert len(list((tmp_path / "big").glob("shot 100% 00??.png"))) == COUNT
    assert main(["upscale", source, *NEAREST]) == 0
    assert len(list((tmp_path / "in_x2").glob("shot 100% 00??.png"))) == COUNT


def test_a_video_becomes_pictures(make_clip: Callable[..., Path], tmp_path: Path, capsys: Output):
    source = make_clip(pix_fmt="yuv420p10le", rotate=90)
    assert main(["upscale", str(source), "-o", str(tmp_path / "f" / "%03d.png"), *NEAREST, "--start", "0.2"]) == 0
    paths = sorted((tmp_path / "f").iterdir())
    assert [path.name for path in paths] == [f"{number:03}.png" for number in range(1, 8)]
    assert read(paths[0], "png")[0] == "rgb48be" and read(paths[0], "png")[1].shape == (3, 128, 96)  # upright
    told = capsys.readouterr().err
    assert "is left out: pictures hold nothing else" in told and "pictures have no times" in told
    assert main(["verify", str(source), str(tmp_path / "f" / "%03d.png"), "--start", "0.2"]) == 0
    assert "7, each at its time" in capsys.readouterr().out


def test_what_was_begun_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output):
    make(tmp_path / "in")
    words = ["upscale", str(tmp_path / "in"), "-o", str(tmp_path / "out" / "%d.png"), *NEAREST, "--segment-frames", "2"]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(numbered, "deliver", interrupt)
        assert main(words) == 130
    with monkeypatch.context() as patch:  # after the first picture is in its place
        placed: list[Path] = []
        put = numbered.put_in_place

        def put_once(part: Path, target: Path, overwrite: bool) -> None:
            if placed:
                raise KeyboardInterrupt
            placed.append(target)
            put(part, target, overwrite)

        patch.setattr(numbered, "put_in_place", put_once)
        assert main(words) == 130
    capsys.readouterr()
    assert main(words) == 0
    assert "3 of 3 segments are done already" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert len(list((tmp_path / "out").iterdir())) == COUNT
    assert main(words) == 2 and "7.png: exists; add -y" in capsys.readouterr().err
    assert main([*words, "--skip-done"]) == 0 and "is complete already" in capsys.readouterr().err
    (tmp_path / "out" / "9.png").write_bytes((tmp_path / "out" / "8.png").read_bytes())
    assert main([*words, "--skip-done"]) == 2 and "is no complete upscaled version" in capsys.readouterr().err


def test_skip_done_knows_stills(tmp_path: Path, capsys: Output):
    write(tmp_path / "a.png", smooth(0), "png", "rgb24")
    words = ["upscale", str(tmp_path / "a.png"), *NEAREST, "--skip-done"]
    assert main(words) == 0 and "is complete already" not in capsys.readouterr().err
    assert main(words) == 0 and "is complete already" in capsys.readouterr().err
    (tmp_path / "a_x2.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert main(words) == 2
    assert "is 32x24, expected 64x48" in capsys.readouterr().err
    assert main([*words, "-y"]) == 0


def test_what_is_amiss_is_one_line(tmp_path: Path, capsys: Output):
    make(tmp_path / "in")
    (tmp_path / "in" / "shot 100% 0009.png").unlink()
    source = str(tmp_path / "in" / "shot 100% %04d.png")
    for words, named in (
        ([source, "-o", str(tmp_path / "a.mkv")], "shot 100% 0009.png: missing between its pictures"),
        ([str(tmp_path / "in" / "%d.png"), "-o", str(tmp_path / "a.mkv")], "there are no such pictures (1.png"),
        ([str(tmp_path / "none*.png"), "-o", str(tmp_path / "a.mkv")], "no file has such a name"),
    ):
        assert main(["upscale", *words, *NEAREST]) == 1
        assert named in capsys.readouterr().err
    make(tmp_path / "whole")
    source = str(tmp_path / "whole" / "shot 100% %04d.png")
    for words, named in (
        ([source, "-o", source], "is the input"),
        ([source, "-o", str(tmp_path / "o" / "%d.jpg")], "cannot write such pictures; take .png"),
        ([source, "-o", str(tmp_path / "no" / "o" / "%d.png")], "no: there is no such folder"),
        ([source, "-o", str(tmp_path / "o" / "%d.png"), "--crf", "3"], "crf = 3: png has no constant quality"),
        ([source, "-o", str(tmp_path / "o" / "%d.png"), "-c", "libx264"], "codec = 'libx264'"),
    ):
        assert main(["upscale", *words, *NEAREST]) == 2
        assert named in capsys.readouterr().err


def test_a_picture_of_another_size_is_refused(tmp_path: Path, capsys: Output):
    make(tmp_path / "in")
    big = av.VideoFrame.from_ndarray(np.zeros((HEIGHT * 2, WIDTH, 3), np.uint8))
    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt, context.time_base = WIDTH, HEIGHT * 2, "rgb24", Fraction(1, 25)
    (tmp_path / "in" / "shot 100% 0009.png").write_bytes(b"".join(bytes(p) for p in context.encode(big)))
    assert main(["upscale", str(tmp_path / "in"), "-o", str(tmp_path / "a.mkv"), *NEAREST]) in (0, 1)
    assert "32x48" in capsys.readouterr().err


def test_rates(tmp_path: Path, make_clip: Callable[..., Path], capsys: Output):
    make(tmp_path / "in")
    source = tmp_path / "in" / "shot 100% %04d.png"
    assert vidup.plan(source, settings="mini").info.rate == 25
    assert main(["upscale", str(source), "-o", str(tmp_path / "a.mp4"), *NEAREST, "--fps", "23.976"]) == 0
    assert video_times(tmp_path / "a.mp4")[1] == Fraction(1001, 24000) and len(pictures(tmp_path / "a.mp4")) == COUNT
    assert main(["upscale", str(make_clip()), *NEAREST, "--fps", "24"]) == 2
    assert "fps = 24: " in capsys.readouterr().err


def test_patterns_of_names(tmp_path: Path):
    def pattern(*names: str) -> str | None:
        for name in names:
            (tmp_path / name).touch()
        found = sequences.pattern_of([tmp_path / name for name in names])
        for name in names:
            (tmp_path / name).unlink()
        return None if found is None else found.name

    assert pattern("a1.png", "a2.png") == "a%01d.png"
    assert pattern("a08.png", "a09.png", "a10.png") == "a%02d.png"
    assert pattern("9.png", "10.png") == "%d.png"
    assert pattern("v2_001.exr", "v2_002.exr") == "v2_%03d.exr"
    assert pattern("a1.png", "a3.png") is None and pattern("a1.png", "b2.png") is None
    assert pattern("a1.png", "a2.jpg") is None and pattern("a1.png") is None and pattern("a1.mp4", "a2.mp4") is None
    assert not sequences.is_sequence("100%.png") and sequences.is_sequence("%d.png")
    (tmp_path / "%d.png").touch()
    assert not sequences.is_sequence(tmp_path / "%d.png")
