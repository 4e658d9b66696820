"""What the library shows beside the upscaler: a file as frames, frames as arrays and as PyAV's, plans, names."""

from __future__ import annotations

import ast
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import pattern

import vidup
from vidup import Color, Frame, MediaError, Runtime, Settings, Video
from vidup.media import decoding
from vidup.media.probing import probe

NEAREST = Settings(model="nearest", scale=2)


@pytest.fixture
def clip(make_clip: Callable[..., Path]) -> Path:
    return make_clip(times=[0, 512, 1024, 2048, 2560, 3072])


class TestVideo:
    def test_a_sequence_of_frames(self, clip: Path) -> None:
        expected = list(decoding.decode(probe(clip)))
        with vidup.open(clip) as video:
            assert isinstance(video, Video) and len(video) == video.info.frames == 6
            assert list(video) == expected and [video[index] for index in (4, 0, -1, 2)] == [
                expected[index] for index in (4, 0, -1, 2)
            ]
            assert list(video[1:4]) == expected[1:4] and list(video[::-2]) == expected[::-2]
            assert video[2:][1:3][-1] == expected[4] and len(video[9:]) == 0 and list(video[9:]) == []
            with pytest.raises(IndexError):
                _ = video[6]
            assert repr(video) == f"Video({video.info!r}, 6 frames)"
        assert video[0] == expected[0]  # opened again
        video.close()

    @pytest.mark.parametrize("begin", [0, 6400])
    def test_at_a_time(self, make_clip: Callable[..., Path], begin: int) -> None:
        source = make_clip("late.mkv", times=[begin + time for time in (0, 512, 1024, 2048)], sound=False)
        with vidup.open(source) as video:
            shown = [float(video.info.begin)]
            found = [video.at(seconds).pts for seconds in (0, 0.039, Fraction(1, 25), 0.1, 0.12, 0.16)]
            assert found == [video.info.pts[place] for place in (0, 0, 1, 2, 2, 3)]
            assert shown == [begin / 12800]
            for seconds in (-0.1, 0.4):
                with pytest.raises(MediaError, match=r"has nothing to show at -?0\.\d s: it lasts for 0\.\d+ s"):
                    video.at(seconds)

    def test_a_picture_a_field(self, make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
        from dataclasses import replace

        info = replace(probe(make_clip(sound=False)), field_order="tt")
        monkeypatch.setattr("vidup.media.probing.probe", lambda *given: info)
        with vidup.open(info.path, Settings(deinterlace="field")) as video:
            expected = list(decoding.decode(info, settings=Settings(deinterlace="field")))
            assert len(video) == 24 and [frame.pts for frame in video] == [frame.pts for frame in expected]
            assert video.at(0.065).pts == expected[3].pts

    def test_any_thread_may_read(self, clip: Path) -> None:
        with vidup.open(clip) as video, ThreadPoolExecutor(3) as pool:
            expected = list(video)
            assert list(pool.map(video.__getitem__, range(6))) == expected

    def test_upscaled_as_in_the_file(self, clip: Path, tmp_path: Path) -> None:
        """What a preview shows is what the file will hold."""
        settings = NEAREST.replace(codec="ffv1")
        receipt = vidup.upscale(clip, tmp_path / "out.mkv", settings)
        with vidup.Upscaler(settings, Runtime(device="cpu")) as upscaler, vidup.open(clip) as video:
            large = list(upscaler.frames(video))
        with vidup.open(receipt) as result:
            assert all(one.shows(two) for one, two in zip(large, result, strict=True))

    def test_what_is_no_video(self, tmp_path: Path) -> None:
        with pytest.raises(MediaError, match=r"none\.mp4: there is no such file"):
            vidup.open(tmp_path / "none.mp4")


class TestFrame:
    @pytest.mark.parametrize("pix_fmt", ["gbrp", "yuv444p16le", "gbrap", "gbrp10le"])
    def test_to_an_array_and_back(self, pix_fmt: str) -> None:
        array = pattern(0, 12, 8)
        color = Color(1, full_range=True) if "yuv" in pix_fmt else None
        frame = Frame.from_rgb(array, pix_fmt, color, pts=5, time_base=Fraction(1, 25))
        assert (frame.pts, frame.time_base, frame.pix_fmt) == (5, Fraction(1, 25), pix_fmt)
        found = frame.rgb()
        assert (found.shape, found.dtype) == ((8, 12, 3), np.uint8 if pix_fmt in ("gbrp", "gbrap") else np.uint16)
        codes = np.round(found / (1 if found.dtype == np.uint8 else 257))
        assert np.abs(codes - array).max() <= (1 if "10" in pix_fmt else 0)

    def test_the_format_that_fits(self) -> None:
        rgba = np.dstack([pattern(0, 6, 4), np.full((4, 6), 99, np.uint8)])
        assert Frame.from_rgb(rgba).pix_fmt == "gbrap" and Frame.from_rgb(rgba).planes[3][0, 0] == 99
        assert Frame.from_rgb(rgba[..., 0]).pix_fmt == "gray"
        assert Frame.from_rgb(rgba[..., :3] / 255).pix_fmt == "gbrp16le"
        with pytest.raises(MediaError, match=r"\(4, 6, 4\), with transparency, for which yuv420p has no plane"):
            Frame.from_rgb(rgba, "yuv420p", Color(1))
        with pytest.raises(MediaError, match="colour matrix 0"):
            Frame.from_rgb(rgba[..., :3], "yuv420p")

    @pytest.mark.parametrize("pix_fmt", ["yuv420p", "nv12", "rgb24", "yuva420p", "p010le", "gray"])
    def test_to_pyav_and_back(self, pix_fmt: str) -> None:
        picture = av.VideoFrame.from_ndarray(pattern(0, 32, 16)).reformat(format=pix_fmt, dst_colorspace=1)
        picture.pts, picture.time_base = 7, Fraction(1, 30)
        picture.colorspace = 0 if pix_fmt == "rgb24" else 1
        frame = Frame.from_av(picture)
        again = frame.to_av()
        assert (frame.pts, again.pts, again.time_base, again.format.name) == (7, 7, Fraction(1, 30), frame.pix_fmt)
        assert Frame.from_av(again) == frame and frame.planes[0].flags.writeable
        expected = picture.to_ndarray(format="rgb48le" if pix_fmt == "p010le" else "rgb24").astype(float)
        assert np.abs(frame.rgb() - expected).mean() < (1200 if pix_fmt == "p010le" else 5)

    def test_it_and_what_is_in_a_file_print_shortly(self, clip: Path) -> None:
        info = probe(clip)
        assert (
            repr(info)
            == f"MediaInfo({str(clip)!r}, 64x48 yuv420p h264, 6 frames, {float(info.rate):.5g} a second, 2 streams)"
        )
        assert len(repr(next(decoding.decode(info)))) < 200


class TestPlan:
    def test_of_a_video(self, clip: Path) -> None:
        found = vidup.plan(clip, clip.with_name("out.webm"), NEAREST, Runtime(device="cpu"))
        assert (found.output.name, found.size, found.frames, found.seconds) == ("out.webm", (96, 128), 6, None)
        assert found.info == probe(clip) and found.disk > 0 and found.memory > 0 and found.device_memory
        assert [line.split()[:2] for line in found.streams] == [["0", "upscale"], ["1", "convert"]]
        assert found.streams[1].endswith("webm does not take aac")
        assert str(found).startswith(f"{clip}: mov") and len(repr(found)) < 3000
        assert not list(clip.parent.glob("out*"))

    def test_of_a_video_that_is_open(self, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plain, film = vidup.plan(clip, None, NEAREST), vidup.open(clip)
        monkeypatch.setattr("vidup.media.probing.probe", None)  # is not read anew
        assert vidup.plan(film, None, NEAREST) == plain
        quick = vidup.plan(film, None, NEAREST, pictures=False)
        assert [fact for fact in plain.facts if fact not in quick.facts] == [("footage", dict(plain.facts)["footage"])]

    def test_of_a_still_image(self, tmp_path: Path) -> None:
        from PIL import Image

        Image.new("RGB", (8, 6)).save(tmp_path / "in.png")
        found = vidup.plan(tmp_path / "in.png", None, NEAREST)
        assert (found.output.name, found.size, found.frames, found.info) == ("in_x2.png", (12, 16), 1, None)

    def test_the_time_is_measured_where_asked(self, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vidup.job.pace._LEAST", 0)
        assert vidup.plan(clip, None, NEAREST, Runtime(device="cpu"), measure=True).seconds > 0


def test_a_checker_sees_what_is_not_there() -> None:
    """A module with ``__getattr__`` has every name to a checker: it stands where checkers do not look."""
    tree = ast.parse(Path(vidup.__file__).read_text(encoding="utf-8"))
    (shown, hidden) = (node for node in tree.body if isinstance(node, ast.If))
    assert (ast.unparse(shown.test), ast.unparse(hidden.test)) == ("TYPE_CHECKING", "not TYPE_CHECKING")
    assert {alias.name for one in shown.body for alias in one.names} == set(vidup.__all__)
    assert [one.name for one in hidden.body] == ["__getattr__"]


def test_no_public_name_is_that_of_a_module() -> None:
    """Which, once anything imports it, would stand in the place of the function."""
    package = Path(vidup.__file__).parent
    modules = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    assert not modules & set(vidup.__all__)
