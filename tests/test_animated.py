"""Animations: GIF, APNG and WebP with their own times, loops and transparency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import video_times
from PIL import Image, ImageSequence, features

from vidup.cli import main

NEAREST = ["--model", "nearest", "--scale", "2"]
DURATIONS = [50, 120, 300, 80]
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
        frames = [(np.array(one.convert("RGBA")), one.info["duration"]) for one in ImageSequence.Iterator(image)]
    return [codes for codes, _ in frames], [round(duration) for _, duration in frames], loop


@pytest.mark.parametrize(
    ("source", "loop", "output", "expected"),
    [
        ("a.gif", 0, "b.gif", 0),
        ("a.gif", None, "b.gif", None),
        ("a.gif", 2, "b.png", 3),
        ("a.gif", None, "b.webp", 1),
        ("a.png", 0, "b.png", 0),
        ("a.png", 3, "b.gif", 2),
        ("a.apng", 5, "b.apng", 5),
        ("a.webp", 4, "b.webp", 4),
        ("a.webp", 1, "b.gif", None),
    ],
)
def test_an_animation_stays_one(tmp_path: Path, source: str, loop: int | None, output: str, expected: int | None):
    made = make(tmp_path / source, loop)
    assert main(["upscale", str(made), "-o", str(tmp_path / output), *NEAREST]) == 0
    before, _, _ = shown(made)
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
    assert "24x16, 4 pictures -> 48x32, GIF" in told and "what is stopped begins anew" in told


def test_an_animation_becomes_a_video(tmp_path: Path):
    made = make(tmp_path / "a.gif", 0, transparent=False)
    assert main(["upscale", str(made), "-o", str(tmp_path / "a.mkv"), *NEAREST, "-e", "preset=ultrafast"]) == 0
    assert [float(time) for time in video_times(tmp_path / "a.mkv")] == [0, 0.05, 0.17, 0.47]


def test_probe_says_what_moves(tmp_path: Path, capsys: Output):
    made = make(tmp_path / "a.webp", 4)
    assert main(["probe", str(made), *NEAREST]) == 0
    text = capsys.readouterr().out
    assert "an animation of 24x16, 4 pictures, 0.550 s, shown 4 times" in text and "a_x2.webp: 48x32" in text


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
