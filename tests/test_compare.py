"""Two videos, frame by frame, on aligned times."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vidup import MediaError
from vidup.cli import main
from vidup.comparison import compare

MILLISECOND = Fraction(1, 1000)


def write(path: Path, grays: list[np.ndarray], times: list[int]) -> Path:
    """A lossless clip of gray pictures at times in milliseconds."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = grays[0].shape[1], grays[0].shape[0], "gray"
        stream.codec_context.time_base = stream.time_base = MILLISECOND
        for gray, time in zip(grays, times, strict=True):
            frame = av.VideoFrame.from_ndarray(gray, format="gray")
            frame.pts, frame.time_base = time, MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def grays() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(40, 200, (48, 64), dtype=np.uint8) for _ in range(4)]


def test_a_video_equals_itself(tmp_path: Path, grays: list[np.ndarray]) -> None:
    path = write(tmp_path / "a.mkv", grays, [0, 40, 90, 130])
    result = compare(path, path)
    assert [round(frame.time * 1000) for frame in result.frames] == [0, 40, 90, 130]
    assert result.missing == 0 and result.change_between_equal is None
    mean = result.mean()
    assert (mean.psnr, mean.gmsd, mean.gradient_energy) == (float("inf"), 0, 1)
    assert mean.ssim == pytest.approx(1)


def test_a_known_difference(tmp_path: Path, grays: list[np.ndarray]) -> None:
    truth = write(tmp_path / "a.mkv", grays, [0, 40, 80, 120])
    other = write(tmp_path / "b.mkv", [gray + 5 for gray in grays], [0, 40, 80, 120])
    mean = compare(truth, other).mean()
    assert mean.psnr == pytest.approx(20 * np.log10(255 / 5), abs=1e-3)
    assert mean.gradient_energy == pytest.approx(1, abs=1e-4)


def test_frames_are_matched_by_their_times(tmp_path: Path, grays: list[np.ndarray]) -> None:
    truth = write(tmp_path / "a.mkv", grays, [0, 40, 80, 120])
    other = write(tmp_path / "b.mkv", [grays[0], grays[2], grays[3]], [1000, 1080, 1120])  # begins later, lacks one
    result = compare(truth, other)
    assert result.missing == 1
    assert [frame.psnr for frame in result.frames] == [float("inf")] * 3


def test_change_between_equal_frames(tmp_path: Path, grays: list[np.ndarray]) -> None:
    truth = write(tmp_path / "a.mkv", [grays[0], grays[0], grays[1]], [0, 40, 80])
    still = write(tmp_path / "b.mkv", [grays[2], grays[2], grays[3]], [0, 40, 80])
    flicker = write(tmp_path / "c.mkv", [grays[2], grays[2] + 3, grays[3]], [0, 40, 80])
    assert compare(truth, still).change_between_equal == 0
    assert compare(truth, flicker).change_between_equal == pytest.approx(3, abs=1e-3)


def smooth(height: int, width: int) -> np.ndarray:
    """A texture that an optical flow can follow, of codes from 40 to 215."""
    drawn = np.random.default_rng(5).standard_normal((height, width))
    pitch = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
    drawn = np.fft.ifft2(np.fft.fft2(drawn) * np.exp(-((pitch / 0.08) ** 2))).real
    return (127.5 + 35 * drawn / drawn.std()).clip(40, 215)


def codes(pictures: list[np.ndarray]) -> list[np.ndarray]:
    return [picture.round().astype(np.uint8) for picture in pictures]


def test_the_flicker_of_a_still_picture_is_its_deviation(tmp_path: Path) -> None:
    """Each of two frames differs from the truth by noise of 4 codes: they by twice the square."""
    still, generator = smooth(96, 128), np.random.default_rng(1)
    noisy = [still + 4 * generator.standard_normal(still.shape) for _ in range(4)]
    times = [0, 40, 80, 120]
    truth = write(tmp_path / "a.mkv", codes([still] * 4), times)
    result = compare(truth, write(tmp_path / "b.mkv", codes(noisy), times))
    first, *others = result.frames
    assert first.warp_error is first.flow_distance is first.still_deviation is None
    for frame in others:
        assert frame.warp_error == pytest.approx(32, rel=0.06)
        assert frame.still_deviation == pytest.approx(4, rel=0.03)
        assert frame.warp_error_bicubic == pytest.approx(0, abs=1e-6) == frame.warp_error_truth
        assert frame.flow_distance is not None and frame.flow_distance > 0
    assert result.mean().still_deviation == pytest.approx(4, rel=0.03)
    steady = compare(truth, truth).mean()
    assert (steady.warp_error, steady.flow_distance, steady.still_deviation) == pytest.approx((0, 0, 0), abs=1e-6)


def test_along_a_pan_only_what_does_not_move_with_it_flickers(tmp_path: Path) -> None:
    wide, times = smooth(96, 160), [0, 40, 80, 120]
    pan = [wide[:, 3 * index : 3 * index + 128] for index in range(4)]
    noise = 6 * np.random.default_rng(2).standard_normal(wide.shape)
    truth = write(tmp_path / "a.mkv", codes(pan), times)
    glass = [picture + noise[:, :128] for picture in pan]
    along = [picture + noise[:, 3 * index : 3 * index + 128] for index, picture in enumerate(pan)]
    mean, fixed, moved = (
        compare(truth, write(tmp_path / f"{name}.mkv", codes(pictures), times)).mean()
        for name, pictures in (("b", pan), ("c", glass), ("d", along))
    )
    assert mean.warp_error == mean.warp_error_truth and mean.flow_distance == 0
    assert mean.warp_error is not None and mean.warp_error < 1
    assert fixed.warp_error == pytest.approx(2 * 6**2, rel=0.2)
    assert moved.warp_error is not None and moved.warp_error < 0.1 * 2 * 6**2
    assert mean.warp_error_bicubic is not None and mean.warp_error < mean.warp_error_bicubic < 10
    assert mean.still_deviation is None


def test_at_a_cut_and_where_a_frame_lacks_nothing_is_told_over_time(tmp_path: Path) -> None:
    one, other = smooth(96, 128), smooth(96, 200)[::-1, 72:]
    truth = write(tmp_path / "a.mkv", codes([one, one, other, other]), [0, 40, 80, 120])
    told = [frame.warp_error for frame in compare(truth, truth).frames]
    assert told[0] is told[2] is None and told[1::2] == pytest.approx([0, 0], abs=1e-6)
    lacks = write(tmp_path / "b.mkv", codes([one, other, other]), [0, 80, 120])
    assert [frame.flow_distance for frame in compare(truth, lacks).frames] == [None, None, 0]


def test_sizes_must_agree(tmp_path: Path, make_clip: Callable[..., Path], grays: list[np.ndarray]) -> None:
    truth = write(tmp_path / "a.mkv", grays, [0, 40, 80, 120])
    with pytest.raises(MediaError, match="32x32"):
        compare(truth, make_clip("small.mp4", size=(32, 32), sound=False))


def test_the_command_prints_a_table_and_json(
    tmp_path: Path, grays: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(tmp_path / "a.mkv", grays, [0, 40, 80, 120]))
    assert main(["compare", path, path]) == 0
    printed = capsys.readouterr().out
    assert "E*warp  bicubic    truth      tOF    still" in printed
    assert "4 frames compared, 0 without a counterpart" in printed
    assert main(["compare", path, path, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["mean"]["psnr"] is None and len(table["frames"]) == 4
    assert table["frames"][0]["warp_error"] is None and "warp_error_truth" in table["mean"]
