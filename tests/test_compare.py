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
from vidup.compare import compare

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
    assert mean.psnr == pytest.approx(20 * np.log10(219 / 5), abs=1e-3)  # limited range: 219 codes from black to white
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
    assert compare(truth, flicker).change_between_equal == pytest.approx(3 * 255 / 219, abs=1e-3)


def test_sizes_must_agree(tmp_path: Path, make_clip: Callable[..., Path], grays: list[np.ndarray]) -> None:
    truth = write(tmp_path / "a.mkv", grays, [0, 40, 80, 120])
    with pytest.raises(MediaError, match="32x32"):
        compare(truth, make_clip("small.mp4", size=(32, 32), sound=False))


def test_the_command_prints_a_table_and_json(
    tmp_path: Path, grays: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(tmp_path / "a.mkv", grays, [0, 40, 80, 120]))
    assert main(["compare", path, path]) == 0
    assert "4 frames compared, 0 without a counterpart" in capsys.readouterr().out
    assert main(["compare", path, path, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["mean"]["psnr"] is None and len(table["frames"]) == 4
