"""Animations: GIF, APNG and WebP with their own times, loops and transparency."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import pattern, pictures, video_times
from PIL import Image, ImageSequence, features

import vidup
from vidup.cli import main

NEAREST = ["--model", "nearest", "--scale", "2"]
DURATIONS = [50, 120, 300, 80]
Clips = Callable[..., Path]
Output = pytest.CaptureFixture[str]


def drawn(index: int) -> Image.Image:
    """A red square that moves over nothing."""
    codes = np.zeros((16, 24, 4), np.uint8)
    codes[4:12, 2 + 4 * index : 10 + 4 * index] = (220, 40 + 30 * index, 60, 255)
    return Image.fromarray(codes)


def make(path: Path, loop: int | None, transparent: bool = True) -> Path:
    frames = [drawn(index) if transparent else drawn(index).convert("RGB") for index in range(4)]
    more = {} if loop is None else {"loop": loop}
    more |= {"disposal": 2} if path.suffix == ".gif" else {"lossless": True} if path.suffix == ".webp" else {}
    kind = {".gif": "GIF", ".webp": "WEBP"}.get(path.suffix, "PNG")
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], duration=DURATIONS, **more)
    return path


def shown(path: Path) -> tuple[list[np.ndarray], list[int], int | None]:
    with Image.open(path) as image:
        loop = image.info.get("loop")
        frames = [(np.array(one.convert("RGBA")), one.info.get("duration", 0)) for one in ImageSequence.Iterator(image)]
    return [codes for codes, _ in frames], [round(duration) for _, duration in frames], loop


@pytest.mark.parametrize(
    ("source", "loop", "output", "expected"),
    [
        ("a.gif", 0, "b.gif", 0),
        ("a.gif", None, "b.gif", None),
        ("a.gif", 2, "b.png", 3),
        ("a.gif", None, "b.webp", 1),
        ("a.png", 3, "b.gif", 2),
        ("a.apng", 5, "b.apng", 5),
        ("a.webp", 4, "b.webp", 4),
        ("a.webp", 1, "b.gif", None),
    ],
)
def test_an_animation_stays_one(tmp_path: Path, source: str, loop: int | None, output: str, expected: int | None):
    made = make(tmp_path / source, loop)
    assert main(["upscale", str(made), "-o", str(tmp_path / output), *NEAREST]) == 0
    before = [np.array(drawn(index)) for index in range(4)]
    after, durations, found = shown(tmp_path / output)
    assert durations == DURATIONS and found == expected
    tolerance = 12 if output.endswith(".webp") else 6
    for small, large in zip(before, after, strict=True):
        assert large.shape == (32, 48, 4)
        middle = large[::2, ::2]
        assert np.array_equal(middle[:2, ..., 3], small[:2, ..., 3]) and (middle[..., 3] > 128).sum() > 40
        solid = (small[..., 3] == 255) & (middle[..., 3] == 255)
        assert np.abs(middle[solid][:, :3].astype(int) - small[solid][:, :3]).mean() < tolerance
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source, output])


def test_without_transparency_there_is_none(tmp_path: Path, capsys: Output):
    made = make(tmp_path / "a.gif", 0, transparent=False)
    assert main(["upscale", str(made), *NEAREST]) == 0
    after, durations, _ = shown(tmp_path / "a_x2.gif")
    assert durations == DURATIONS and all((codes[..., 3] == 255).all() for codes in after)
    told = capsys.readouterr().err
    assert "24x16 bgra, 4 frames -> 48x32 rgba, png, GIF" in told and "note: GIF has 256 colours" in told


def test_an_animation_becomes_a_video(tmp_path: Path):
    for name in ("a.gif", "a.webp", "a.png"):
        made = make(tmp_path / name, 0, transparent=False)
        assert (
            main(["upscale", str(made), "-o", str(tmp_path / "a.mkv"), *NEAREST, "-e", "preset=ultrafast", "-y"]) == 0
        )
        assert [float(time) for time in video_times(tmp_path / "a.mkv")] == [0, 0.05, 0.17, 0.47]


def test_transparency_of_what_ffmpeg_does_not_read_arrives(tmp_path: Path):
    sources = [make(tmp_path / "a.webp", 0)]
    if features.check("avif"):
        sources.append(tmp_path / "a.avif")
        frames = [drawn(index) for index in range(4)]
        frames[0].save(sources[-1], save_all=True, append_images=frames[1:], duration=DURATIONS)
    for source in sources:
        output = tmp_path / f"{source.suffix[1:]}.mkv"
        assert main(["upscale", str(source), "-o", str(output), *NEAREST, "-c", "ffv1"]) == 0
        with av.open(str(output)) as container:
            found = [frame.to_ndarray(format="rgba") for frame in container.decode(video=0)]
            assert container.duration == 550_000
        before = [np.array(drawn(index)) for index in range(4)]
        for small, large in zip(before, found, strict=True):
            assert np.abs(large[::2, ::2][:2, ..., 3].astype(int) - small[:2, ..., 3]).max() < 4
            solid = (small[..., 3] > 250) & (large[::2, ::2][..., 3] > 250)
            assert (
                solid.sum() > 40 and np.abs(large[::2, ::2][solid][:, :3].astype(int) - small[solid][:, :3]).mean() < 12
            )


@pytest.mark.parametrize(
    ("output", "durations", "told"),
    [
        ("b.gif", [30, 40, 30, 30, 40, 30], "hundredths of a second: times are rounded by up to 5 ms"),
        ("b.apng", [33, 34, 33, 33, 34, 33], "APNG counts in milliseconds: times are rounded by up to 0.5 ms"),
        ("b.webp", [33, 34, 33, 33, 34, 33], "quality 90"),
    ],
)
def test_a_video_becomes_an_animation(make_clip: Clips, tmp_path: Path, capsys: Output, output, durations, told):
    """Thirty frames a second: what is rounded is when each begins, so that nothing drifts."""
    source = make_clip(times=range(0, 6), time_base=Fraction(1, 30))
    assert main(["upscale", str(source), "-o", str(tmp_path / output), *NEAREST]) == 0
    said = capsys.readouterr().err
    assert told in said and "pictures hold nothing else" in said and "6 frames" in said
    after, found, loop = shown(tmp_path / output)
    assert (found, loop) == (durations, 0)
    bound = 4 if output == "b.apng" else 7
    for small, large in zip(pictures(source), after, strict=True):
        assert large.shape == (96, 128, 4) and (large[..., 3] == 255).all()
        assert np.abs(large[::2, ::2, :3].astype(int) - small).mean() < bound
    assert main(["verify", str(source), str(tmp_path / output)]) == 0
    said = capsys.readouterr().out
    assert "frames    6, each at its time, 128x96" in said and "pictures  6 compared; the least like" in said
    assert main(["upscale", str(source), "-o", str(tmp_path / output), *NEAREST, "--skip-done"]) == 0
    assert "is complete already" in capsys.readouterr().err


def test_a_stopped_animation_goes_on(make_clip: Clips, tmp_path: Path, capsys: Output):
    source, output = make_clip(times=range(0, 6 * 512, 512)), tmp_path / "b.gif"
    words = ["upscale", str(source), "-o", str(output), *NEAREST, "--segment-frames", "2"]

    class Interrupted(Exception):  # what is upscaled is stored first, which Ctrl-C's own exception does not wait for
        pass

    def look(event: vidup.Progress) -> None:
        if event.frame == 5:
            raise Interrupted

    settings = vidup.Settings(model="nearest", scale=2, segment_frames=2)
    with pytest.raises(Interrupted):
        vidup.upscale(source, output, settings, on_progress=look)
    assert not output.exists()
    assert main(words) == 0
    assert "2 of 3 segments are done already" in capsys.readouterr().err and shown(output)[1] == [40] * 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.gif", "clip.mp4"]


def test_equal_pictures_may_be_one_that_is_shown_for_longer(make_clip: Clips, tmp_path: Path):
    still = make_clip(
        times=range(0, 4 * 512, 512), draw=lambda index, width, height: pattern(index // 2, width, height)
    )
    for output in ("b.gif", "b.webp"):
        assert main(["upscale", str(still), "-o", str(tmp_path / output), *NEAREST, "-c", "png"]) == 0
        assert sum(shown(tmp_path / output)[1]) == 160


@pytest.mark.parametrize("output", ["b.gif", "b.webp"])
def test_what_is_not_as_made_fails_its_proof(make_clip: Clips, tmp_path: Path, capsys: Output, monkeypatch, output):
    source = make_clip(times=range(0, 4 * 512, 512))
    save = Image.Image.save
    words = ["upscale", str(source), "-o", str(tmp_path / output), *NEAREST]

    def later(self: Image.Image, *given: object, **options) -> None:
        options["duration"] = [20, *options["duration"][1:]]
        save(self, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", later)
        assert main(words) == 1
    assert (
        "shows 4 pictures in 140 ms, expected 4 in 160 ms; the first that differs is at 20 ms"
        in capsys.readouterr().err
    )

    def otherwise(self: Image.Image, *given: object, **options) -> None:
        options["append_images"] = options["append_images"][::-1]
        save(self, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", otherwise)
        assert main([*words, "-y"]) == 1
    assert "its picture 1 is not what was made" in capsys.readouterr().err


def test_pictures_that_are_all_equal_are_one(make_clip: Clips, tmp_path: Path):
    still = make_clip(times=range(0, 4 * 512, 512), draw=lambda _, width, height: pattern(0, width, height))
    for output in ("b.gif", "b.webp", "b.apng"):
        settings = vidup.Settings(model="nearest", scale=2, start=0.04)
        assert vidup.upscale(still, tmp_path / output, settings).frames == 3
        assert len(shown(tmp_path / output)[0]) == 1


def test_a_webp_whose_pictures_cannot_be_is_damaged(tmp_path: Path, capsys: Output):
    made = make(tmp_path / "a.webp", 0)
    data = bytearray(made.read_bytes())
    data[24:27] = (70_000).to_bytes(3, "little")  # pixels in a row
    made.write_bytes(data)
    assert main(["upscale", str(made), "-o", str(tmp_path / "b.mkv"), *NEAREST]) == 1
    assert "a.webp: " in capsys.readouterr().err.splitlines()[-1]


def test_what_an_animation_cannot_hold_is_refused(make_clip: Clips, tmp_path: Path, capsys: Output):
    source = make_clip(times=(0, 1, 1000), time_base=Fraction(1, 1000))
    for words, told in (
        (["b.gif"], "GIF counts in units of 0.01 s, and two frames"),
        (["b.png"], "b.png: holds one picture, and"),
        (["b.tif"], "b_%05d.tif for a file of each"),
        (["b.jpg"], "b_%05d.png for a file of each"),
        (["b.gif", "-c", "libx264"], "GIF does not hold it"),
        (["b.webp", "--start", "0.001", "--width", "17000"], "WebP holds 16383 pixels a side"),
    ):
        assert main(["upscale", str(source), "-o", str(tmp_path / words[0]), "--model", "nearest", *words[1:]]) == 2
        assert told in capsys.readouterr().err


def test_probe_says_what_moves(tmp_path: Path, capsys: Output):
    made = make(tmp_path / "a.webp", 4)
    assert main(["probe", str(made), *NEAREST]) == 0
    text = capsys.readouterr().out
    assert "a.webp: webp, 4 frames" in text and "plays     4 times" in text and "a_x2.webp: 48x32 rgba" in text


def test_what_cannot_move_is_refused(tmp_path: Path, capsys: Output):
    made = make(tmp_path / "a.png", 0)
    assert main(["upscale", str(made), "-o", str(tmp_path / "b.jpg"), *NEAREST]) == 2
    assert "holds one picture, and" in capsys.readouterr().err
    Image.new("RGB", (8, 6)).save(tmp_path / "still.png")
    assert main(["upscale", str(tmp_path / "still.png"), "-o", str(tmp_path / "b.gif"), *NEAREST]) == 2
    assert "b.gif" in capsys.readouterr().err
    data = made.read_bytes()
    made.write_bytes(data[: len(data) * 2 // 3])
    assert main(["upscale", str(made), "-o", str(tmp_path / "c.png"), *NEAREST]) == 1
    assert "a.png: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read(tmp_path: Path):
    frames = [drawn(index).resize((48, 32)) for index in range(3)]
    frames[0].save(tmp_path / "a.avif", save_all=True, append_images=frames[1:], duration=100)
    assert main(["upscale", str(tmp_path / "a.avif"), "-o", str(tmp_path / "b.webp"), *NEAREST]) == 0
    assert shown(tmp_path / "b.webp")[1] == [100, 100, 100]


def test_an_animation_that_is_smaller_than_its_source_is_refused(tmp_path: Path):
    source = make(tmp_path / "a.gif", 0)
    frames = [drawn(index).resize((12, 8)) for index in range(4)]
    options = {"save_all": True, "append_images": frames[1:], "duration": DURATIONS, "loop": 0, "disposal": 2}
    frames[0].save(tmp_path / "b.gif", **options)
    with pytest.raises(vidup.VerifyError, match="is 12x8, which is no enlargement of 24x16"):
        vidup.verify(source, tmp_path / "b.gif")
