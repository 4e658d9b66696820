"""The picture through whole jobs: size, colour and its tags, rotation, the shape of pixels."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import pictures
from test_media import FASTEST, MILLISECOND, enlarge

import vidup
from vidup import Settings
from vidup.errors import ConfigError
from vidup.job.describe import describe
from vidup.job.plan import plan
from vidup.media import decoding, probing
from vidup.picture.geometry import Turn


def first_frame(path: Path):
    with av.open(str(path)) as container:
        return next(container.decode(container.streams.video[0]))


def planes_of(path: Path) -> list[np.ndarray]:
    """The first picture's planes, by vidup's own reader."""
    return [plane.copy() for plane in next(decoding.decode(probing.probe(path))).planes]


def test_odd_sizes_come_out_exactly_four_times_larger(make_clip: Callable[..., Path]):
    source = make_clip("clip.mkv", codec="ffv1", size=(101, 67), times=(0, 40, 80), time_base=MILLISECOND, sound=False)
    output = enlarge(source, "out.mp4", scale=None, model="bilinear")
    assert [picture.shape for picture in pictures(output)] == [(268, 404, 3)] * 3


@pytest.mark.parametrize(
    ("tags", "pix_fmt", "codec"),
    [
        ((1, 1, 1, 1), "yuv420p", "libx264"),
        ((6, 6, 6, 1), "yuv420p", "libx264"),
        ((9, 9, 16, 1), "yuv420p10le", "libx265"),
        ((9, 9, 16, 1), "yuv420p10le", "libsvtav1"),
        ((1, 1, 1, 2), "yuv420p", "libx264"),
        ((1, 1, 1, 2), "yuv420p", "libvpx-vp9"),
    ],
)
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_colour_tags_are_kept(make_clip: Callable[..., Path], tags, pix_fmt: str, codec: str, container: str):
    source = make_clip(tags=tags, pix_fmt=pix_fmt, times=(0, 512, 1024), sound=False)
    output = enlarge(source, f"out.{container}", codec=codec, encoder_options=FASTEST[codec])
    frame = first_frame(output)
    found = (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range)
    assert tuple(int(code) for code in found) == tags
    assert frame.format.name.replace("yuvj", "yuv") == pix_fmt


def test_an_untagged_matrix_is_announced_and_written(make_clip: Callable[..., Path]):
    source = make_clip(tags=(2, 2, 2, 0), times=(0, 512), sound=False)
    job = plan(source, source.with_name("out.mp4"), Settings(model="nearest", scale=2))
    assert any("BT.601 is assumed" in line for line in describe(job))
    assert int(first_frame(enlarge(source, "out.mp4")).colorspace) == 6


def flat_color(index: int, width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), (200, 30, 60), np.uint8)


def test_codes_pass_through_a_lossless_chain(make_clip: Callable[..., Path]):
    """Y'CbCr of a flat clip, through RGB and back, in every step of the chain but the engine."""
    source = make_clip("clip.mkv", codec="ffv1", pix_fmt="yuv444p", times=(0, 40), time_base=MILLISECOND,
                       sound=False, draw=flat_color)  # fmt: skip
    output = enlarge(source, "out.mkv", codec="ffv1")
    for before, after in zip(planes_of(source), planes_of(output), strict=True):
        assert before.min() == before.max()
        assert np.abs(after.astype(int) - int(before[0, 0])).max() <= 1


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_rgb_in_gives_the_same_colour_out(make_clip: Callable[..., Path], container: str):
    """From lossless RGB to H.264; the result is read with the formula of the matrix that it is tagged with."""
    source = make_clip("clip.mkv", codec="ffv1", pix_fmt="bgr0", times=(0, 40), time_base=MILLISECOND, sound=False,
                       tags=(2, 2, 2, 0), draw=flat_color)  # fmt: skip
    output = enlarge(source, f"out.{container}", crf=0)
    kr, kb = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114)}[int(first_frame(output).colorspace)]
    luma, cb, cr = (float(plane.mean()) for plane in planes_of(output))
    luma, cb, cr = (luma - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    assert np.abs(np.array([red, green, blue]) * 255 - (200, 30, 60)).max() < 2


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("degrees", [90, 180])
def test_rotation_is_kept(make_clip: Callable[..., Path], container: str, degrees: int):
    source = make_clip(rotate=degrees, times=(0, 512, 1024), sound=False)
    output = enlarge(source, f"out.{container}")
    before, after = probing.probe(source), probing.probe(output)
    assert before.display_matrix is not None and before.rotation % 360 in (degrees, 360 - degrees)
    assert after.display_matrix == before.display_matrix
    assert (after.width, after.height) == (128, 96)  # turned by the player, not by us


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_baked_in_if_asked_for(make_clip: Callable[..., Path], container: str, degrees: int):
    source = make_clip(rotate=degrees, times=(0, 512, 1024), sound=False, aspect=Fraction(16, 11))
    turns = probing.probe(source).rotation // 90  # counter-clockwise, as numpy turns
    output = enlarge(source, f"out.{container}", bake_rotation=True, crf=0)
    info = probing.probe(output)
    assert info.display_matrix is None and info.rotation == 0
    assert info.sample_aspect_ratio == (Fraction(11, 16) if degrees % 180 else Fraction(16, 11))
    for turned, small in zip(pictures(output), pictures(source), strict=True):
        expected = np.rot90(small, turns)
        assert turned.shape == (2 * expected.shape[0], 2 * expected.shape[1], 3)
        assert np.abs(turned[::2, ::2].astype(int) - expected).mean() < 8
    vidup.verify(source, output, Settings(bake_rotation=True))
    with pytest.raises(vidup.VerifyError):
        vidup.verify(source, output)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30), lambda p: p[:, ::-1]),  # mirrored left to right
        ((65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30), lambda p: p[::-1]),  # upside down
        ((0, 65536, 0, 65536, 0, 0, 0, 0, 1 << 30), lambda p: p.transpose(1, 0, 2)),  # along the diagonal
    ],
)
def test_turns_with_a_mirror(matrix: tuple[int, ...], expected: Callable):
    picture = np.random.default_rng(0).random((4, 6, 3)).astype(np.float32)
    turned = Turn.of(matrix)(torch.from_numpy(picture).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(turned, expected(picture))
    with pytest.raises(ConfigError, match="less than a quarter"):
        Turn.of((46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30))


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_pixel_aspect_is_kept(make_clip: Callable[..., Path], container: str):
    source = make_clip(aspect=Fraction(16, 11), times=(0, 512, 1024), sound=False)
    assert probing.probe(source).sample_aspect_ratio == Fraction(16, 11)
    assert probing.probe(enlarge(source, f"out.{container}")).sample_aspect_ratio == Fraction(16, 11)
