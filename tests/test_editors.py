"""The library inside other programs' own machinery; each is left out where it is not installed."""

from __future__ import annotations

import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vidup import ConfigError, MediaError, Runtime, Settings, Upscaler

SAMPLES = Path(__file__).parent.parent / "samples"
CPU = Runtime(device="cpu")
NEAREST = Settings(model="nearest", scale=2)


class TestMoviePy:
    def test_a_clip_is_transformed_and_fades_afterwards(self) -> None:
        moviepy = pytest.importorskip("moviepy")
        clip = moviepy.VideoClip(lambda t: np.full((6, 8, 3), 100 + 10 * round(10 * t), np.uint8), duration=1)
        mask = moviepy.VideoClip(lambda t: np.full((6, 8), float(t)), is_mask=True, duration=1)
        with Upscaler(NEAREST, CPU) as upscaler:
            large = clip.with_mask(mask).image_transform(upscaler, apply_to="mask")
            assert large.size == (16, 12) and np.array_equal(large.get_frame(0.5), np.full((12, 16, 3), 150, np.uint8))
            assert np.allclose(large.mask.get_frame(0.25), 0.25) and large.mask.get_frame(0.25).shape == (12, 16)
            faded = large.with_effects([moviepy.vfx.FadeIn(1)]).get_frame(0.5)
            assert np.allclose(faded, 75)

    def test_a_clip_that_fades_before(self) -> None:
        """Whose frames are floats of 0 to 255: what MoviePy's own effects do with them, its users do."""
        moviepy = pytest.importorskip("moviepy")
        clip = moviepy.VideoClip(lambda t: np.full((6, 8, 3), 100, np.uint8), duration=1)
        faded = clip.with_effects([moviepy.vfx.FadeIn(1)])
        with Upscaler(NEAREST, CPU) as upscaler:
            with pytest.raises(MediaError, match="float64: holds 50 to 50, and floats are expected in"):
                faded.image_transform(upscaler).get_frame(0.5)
            large = faded.image_transform(lambda frame: upscaler(frame / 255) * 255)
            assert np.allclose(large.get_frame(0.5), 50) and large.get_frame(0.5).dtype == np.float64
            large = faded.image_transform(lambda frame: upscaler(frame.astype("uint8")))
            assert np.array_equal(large.get_frame(0.5), np.full((12, 16, 3), 50, np.uint8))


class TestVapourSynth:
    """Frames whose red is their number."""

    def test_a_clip_keeps_its_format_and_its_properties(self) -> None:
        vs = pytest.importorskip("vapoursynth")
        from vidup.vapoursynth import upscale

        for form, dtype in ((vs.RGBS, np.float32), (vs.RGBH, np.float16)):
            clip = vs.core.std.BlankClip(width=8, height=6, format=form, length=3, color=[0.25, 0.5, 0.75])
            clip = clip.std.SetFrameProps(_Primaries=9, note="kept")
            large = upscale(clip, NEAREST, CPU)
            frame = large.get_frame(1)
            assert (large.width, large.height, large.format.id, len(large)) == (16, 12, form, 3)
            planes = [np.asarray(frame[place]) for place in range(3)]
            assert planes[0].dtype == dtype and [float(plane[0, 0]) for plane in planes] == [0.25, 0.5, 0.75]
            assert dict(frame.props) == dict(clip.get_frame(1).props) and frame.props["_Primaries"] == 9

    def test_in_order_as_many_after_a_seek_with_a_lead_in(self) -> None:
        vs = pytest.importorskip("vapoursynth")
        from vidup import vapoursynth

        def draw(n: int, f: list) -> object:
            frame = f.copy()
            for place in range(3):
                noise = np.random.default_rng(1).random((16, 40), np.float32)
                np.copyto(np.asarray(frame[place]), noise[:, n : n + 24])
            return frame

        blank = vs.core.std.BlankClip(width=24, height=16, format=vs.RGBS, length=16)
        clip = blank.std.ModifyFrame(blank, draw)
        source = [np.stack([np.asarray(frame[place]) for place in range(3)]) for frame in clip.frames()]
        settings = Settings.preset("mini", steps=1)
        with Upscaler(settings, CPU) as upscaler:
            expected = [one.numpy() for one in upscaler.frames(torch.from_numpy(one) for one in source)]
            sought = [one.numpy() for one in upscaler.frames(torch.from_numpy(one) for one in source[2:15])][-1]
        large = vapoursynth.upscale(clip, settings, CPU)

        def planes(frame: object) -> np.ndarray:
            return np.stack([np.asarray(frame[place]) for place in range(3)])  # type: ignore[index]

        found = [planes(frame) for frame in large.frames()]  # several are asked for at once
        assert all(np.array_equal(one, two) for one, two in zip(found, expected, strict=True))
        fresh = vapoursynth.upscale(clip, settings, CPU)
        assert np.array_equal(planes(fresh.get_frame(14)), sought)

    def test_another_format_is_refused(self) -> None:
        vs = pytest.importorskip("vapoursynth")
        from vidup.vapoursynth import upscale

        with pytest.raises(ConfigError, match="a clip of format YUV420P8: expected RGBS or RGBH"):
            upscale(vs.core.std.BlankClip(format=vs.YUV420P8, width=8, height=8), NEAREST)

    def test_its_module_is_short(self) -> None:
        assert len((Path(__file__).parent.parent / "vidup" / "vapoursynth.py").read_text().splitlines()) < 100


NOTEBOOK = """
import numpy as np
from PIL import Image
import vidup
settings = vidup.Settings(model="nearest", scale=2, codec="ffv1")
receipt = vidup.upscale("clip.mp4", "out.mkv", settings, on_progress=vidup.Progress.bar())
---
receipt
---
video = vidup.open(receipt)
Image.fromarray(video[3].rgb())
---
with vidup.Upscaler(settings) as up:
    large = up(video[3].rgb())
large.shape
---
vidup.upscale("clip.mp4", "out.mkv", settings)
"""


def test_a_notebook(make_clip: Callable[..., Path]) -> None:
    """In a kernel of its own, as Jupyter and nbconvert run it: a bar, a receipt, a picture, an error of one line."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    source = make_clip(times=range(0, 6 * 512, 512))
    cells = [nbformat.v4.new_code_cell(code.strip()) for code in NOTEBOOK.split("---")]
    book = nbformat.v4.new_notebook(cells=cells)
    with warnings.catch_warnings(action="ignore"):  # Jupyter's own
        client = nbclient.NotebookClient(book, timeout=120, kernel_name="python3", allow_errors=True)
        client.execute(cwd=str(source.parent))
    outputs = [[dict(one) for one in cell.outputs] for cell in book.cells]
    drawn = [one for one in outputs[0] if "application/vnd.jupyter.widget-view+json" in one.get("data", {})]
    texts = "".join(one.get("text", "") for one in outputs[0])
    assert drawn or "100%" in texts, outputs[0]  # a widget, where ipywidgets is installed
    assert outputs[1][0]["data"]["text/plain"].startswith("Receipt(")
    assert "image/png" in outputs[2][0]["data"] and outputs[3][0]["data"]["text/plain"] == "(192, 256, 3)"
    assert outputs[4][0]["ename"] == "ConfigError" and "out.mkv: exists" in outputs[4][0]["evalue"]


def test_the_samples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "in.png"), np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8))
    monkeypatch.setattr(sys, "argv", ["with_opencv.py", str(tmp_path / "in.png"), str(tmp_path / "out.png")])
    runpy.run_path(str(SAMPLES / "with_opencv.py"))
    assert cv2.imread(str(tmp_path / "out.png")).shape == (32, 40, 3)
    for path in (SAMPLES / "with_moviepy.py", SAMPLES / "with_vapoursynth.vpy"):
        compile(path.read_text(encoding="utf-8"), path, "exec")
