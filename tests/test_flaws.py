"""What footage is like, in figures: made material with the known answer, and how it is told."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vidup.cli import main
from vidup.job.describe import condition
from vidup.media.quantiser import jpeg_quantiser_step
from vidup.mini.degrade import compressed, reduced
from vidup.mini.measure import HELD_OUT
from vidup.mini.pictures import picture
from vidup.picture import flaws, footage
from vidup.picture.flaws import Flaws
from vidup.picture.metrics import psnr
from vidup.picture.resample import anchor, resize

Y, X = np.mgrid[:96, :160].astype(np.float64)


def light(shift: int = 0) -> np.ndarray:
    """A smooth picture that moves, a part of it with a fine texture, which moves along."""
    x = X - 2 * shift
    texture = 20 * np.sin(1.3 * x) * np.sin(1.1 * Y)
    return 115 + 45 * np.sin(x / 23) + 35 * np.cos(Y / 17) + texture * (x > 90)


def codes(planes: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(planes).round().clip(0, 255)).float()


@cache
def content(index: int) -> np.ndarray:
    """(96, 128, 3) of a picture that nothing learned from."""
    return reduced(np.ascontiguousarray(picture(HELD_OUT + 120 + index, 512)[:384]))


def brightness(index: int) -> np.ndarray:
    return np.asarray(content(index) @ np.array([0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0, 2.0, 4.0, 7.0, 10.0])
@pytest.mark.parametrize("frames", [1, 2])
def test_noise_is_found_within_half_a_code(sigma: float, frames: int) -> None:
    rng = np.random.default_rng(int(10 * sigma))
    made = [light(index) + sigma * rng.standard_normal(Y.shape) for index in range(frames)]
    found, correlation = flaws.noise(codes(made))
    assert found == pytest.approx(sigma, abs=0.5) and correlation < 0.15


@pytest.mark.parametrize("sigma", [0.0, 3.0])
def test_texture_that_moves_is_no_noise(sigma: float) -> None:
    """In a single picture nothing tells them apart."""
    rng = np.random.default_rng(1)
    texture = 120 + 9 * rng.standard_normal((120, 200))
    made = [texture[i : i + 96, 3 * i : 3 * i + 160] + sigma * rng.standard_normal(Y.shape) for i in range(2)]
    assert flaws.noise(codes(made))[0] == pytest.approx(sigma, abs=0.5)
    assert flaws.noise(codes(made[:1]))[0] > 8


def test_what_is_clipped_does_not_hide_noise() -> None:
    made = light() + 5 * np.random.default_rng(2).standard_normal(Y.shape)
    made[:30], made[-30:] = 0, 255
    assert flaws.noise(codes([made]))[0] == pytest.approx(5, abs=0.5)


def test_grain_is_wider_than_noise() -> None:
    rng = np.random.default_rng(3)
    white = rng.standard_normal((2, *Y.shape))
    wide = white + 0.6 * np.roll(white, 1, 1) + 0.6 * np.roll(white, 1, 2)
    for noise, coarse in ((white, False), (3 * wide / wide.std(), True)):
        frames = codes([light(0) + noise[0], light(1) + noise[1]])
        found = flaws.measure((frames / 255)[:, None].expand(-1, 3, -1, -1))
        assert found.coarse == coarse and found.noise == pytest.approx(noise.std(), abs=0.5)


@pytest.mark.parametrize("side", [4, 8, 12, 16])
def test_blocks_are_found_with_their_side(side: int) -> None:
    rng = np.random.default_rng(side)
    tiles = rng.standard_normal((96 // side, 128 // side + 1)).repeat(side, 0).repeat(side, 1)[:, :128]
    for height in (4.0, 8.0):
        period, strength = flaws.blocking(codes([brightness(0) + height * tiles]))
        assert period == side and 0.25 * height < strength < height


def test_what_has_no_blocks_has_none() -> None:
    bricks = 60.0 * ((X % 8 == 0) | (Y % 5 == 0)) + light()
    noise = light() + 5 * np.random.default_rng(4).standard_normal(Y.shape)
    small = Image.fromarray(light().round().astype(np.uint8)).resize((107, 64), Image.Resampling.BICUBIC)
    again = np.asarray(small.resize((160, 96), Image.Resampling.BICUBIC)).astype(np.float64)
    for made in (light(), noise, bricks, again, np.full_like(Y, 90), Y[:9, :9]):
        assert flaws.blocking(codes([made])) == (0, 0.0)
    for index in range(2):
        assert flaws.blocking(codes([brightness(index)])) == (0, 0.0)


def test_an_encoders_blocks_are_found() -> None:
    frames, _ = compressed([content(0)] * 3, "mpeg2video", 14)
    found = flaws.measure(torch.from_numpy(frames[0].copy()).permute(2, 0, 1)[None].float() / 255)
    assert found.period == 8 and found.blocking > 1


def test_bands_are_found_and_a_gradient_is_not() -> None:
    sky = 140 + 0.13 * X - 0.05 * Y
    for step in (2, 4, 6):
        assert flaws.banding(codes([sky // step * step])) > 0.9
    half = np.where(X < 80, sky // 4 * 4, light())
    assert flaws.banding(codes([half])) == pytest.approx(0.5, abs=0.1)
    dithered = (sky + np.random.default_rng(5).uniform(-2, 2, Y.shape)) // 4 * 4
    cartoon = np.where(X + Y / 3 > 90, 180.0, 60.0)
    for clean in (sky, np.floor(sky), dithered, light(), cartoon, Y[:5, :5]):
        assert flaws.banding(codes([clean])) < 0.02


def test_bands_are_smoothed_alike_where_only_some_pixels_are_and_where_all_are() -> None:
    sky = np.linspace(60, 90, 96)[None, :] + np.zeros((64, 1))
    rgb = torch.from_numpy(np.stack([sky // 2 * 2, sky // 3 * 3, sky])[None]).float().repeat(2, 1, 1, 1) / 255
    rgb[1] = rgb[1].flip(-1) + 0.1
    where = flaws.bands(flaws.luma(rgb) * 255)[:, None]
    assert 0.2 < where.float().mean() < 1
    smooth = flaws.unbanded(rgb)
    assert torch.equal(smooth, torch.where(where, flaws._everywhere(rgb), rgb)) and not torch.equal(smooth, rgb)


@pytest.mark.parametrize("step", [3, 4, 6])
def test_the_anchor_does_not_pull_bands_back(step: int) -> None:
    """Beside them a hard edge and a texture stay as they are."""
    truth = np.stack([(60 + 0.4 * X + 0.25 * Y) * gain for gain in (0.9, 1.0, 1.1)])
    texture = 90 + 25 * np.sin(1.3 * X) * np.sin(1.1 * Y) + 60 * (Y > 48)
    banded = (truth // step + 0.5) * step
    for planes in (truth, banded):
        planes[:, :, 110:] = texture[:, 110:]
    smooth, low_res = (torch.from_numpy(planes.round()).float()[None] / 255 for planes in (truth, banded))
    picture = resize(smooth, (384, 640))
    clean = resize(torch.from_numpy(truth).float()[None] / 255, (384, 640))
    followed, pulled = footage.held(picture, low_res, 5, []), anchor(picture, low_res, 5)
    inside, beside = (..., slice(40, -40), slice(40, 400)), (..., slice(32, -32), slice(480, -32))
    assert psnr(followed[inside], clean[inside]) > psnr(pulled[inside], clean[inside]) + 3
    assert psnr(followed[beside], clean[beside]) > psnr(pulled[beside], clean[beside]) - 0.2


@pytest.mark.parametrize("height, width", [(1, 1), (7, 40), (33, 8)])
def test_any_size_has_figures(height: int, width: int) -> None:
    assert flaws.measure(torch.full((2, 3, height, width), 0.5)) == Flaws()


def test_most_places_decide() -> None:
    one, other = Flaws(2.0, True, 8, 1.5, 0.1), Flaws(9.0, False, 0, 0.0, 0.4)
    assert flaws.together([one, other, one]) == Flaws(2.0, True, 8, 1.5, pytest.approx(0.2))


def test_it_is_told_in_condition() -> None:
    told = list(condition(35.0, Flaws(1.4, True, 8, 1.0, 0.08)))
    assert told == [
        "compressed hard, like x264 at crf 35",
        "grain: little (about 1.4 codes)",
        "blocks of 8x8 show",
        "banding in 8 % of the picture",
    ]
    assert list(condition(None, Flaws())) == ["noise: none"] and next(condition(2.0, Flaws())) == "hardly compressed"


def film(path: Path, noise: float, codec: str, **options: str) -> None:
    rng = np.random.default_rng(6)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 25, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for index in range(4):
            gray = (light(index) + noise * rng.standard_normal(Y.shape)).round().clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gray.repeat(3, 1).reshape(96, 160, 3), "rgb24")))
        container.mux(stream.encode())


def probed(path: Path, capsys: Any) -> tuple[str, dict[str, Any]]:
    assert main(["probe", str(path), "--model", "mini"]) == 0
    line = next(one for one in capsys.readouterr().out.splitlines() if one.startswith("  footage"))
    assert main(["probe", str(path), "--model", "mini", "--json"]) == 0
    return line, json.loads(capsys.readouterr().out)["footage"]


def test_probe_tells_it_of_a_film(tmp_path: Path, capsys: Any) -> None:
    film(tmp_path / "a.mkv", 4, "ffv1")
    line, table = probed(tmp_path / "a.mkv", capsys)
    assert table["noise"] == pytest.approx(4, abs=0.5) and table["quantiser"] is None
    assert line.split(maxsplit=1)[1] == f"noise: some (about {table['noise']:.1f} codes)"
    film(tmp_path / "b.mkv", 0, "mpeg2video", qmin="20", qmax="20")
    line, table = probed(tmp_path / "b.mkv", capsys)
    assert "compressed hard, like x264 at crf" in line and "noise: none" in line
    assert table["quantiser"] > 30


def test_probe_tells_it_of_a_picture(tmp_path: Path, capsys: Any) -> None:
    image = Image.fromarray(content(1))
    image.save(tmp_path / "a.jpg", quality=20)
    line, table = probed(tmp_path / "a.jpg", capsys)
    with Image.open(tmp_path / "a.jpg") as found:
        assert table["quantiser"] == jpeg_quantiser_step(found.quantization.values())
    assert "compressed hard" in line and table["period"] == 8 and "blocks of 8x8 show" in line
    image.save(tmp_path / "a.png")
    line, table = probed(tmp_path / "a.png", capsys)
    assert table["quantiser"] is None and "compressed" not in line
