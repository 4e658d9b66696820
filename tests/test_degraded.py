"""Compressed and noisy input: how far it is from clean, what is asked of the model then, and what the anchor holds."""

import io
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import loaded
from PIL import Image

import vidup
from vidup import ConfigError, Settings, Upscaler
from vidup.engines.windows import spread
from vidup.job import stills
from vidup.job.describe import CLEAN, describe
from vidup.job.piping import upscale_piped
from vidup.job.plan import plan
from vidup.job.progress import Tracker
from vidup.media import quantiser
from vidup.media.compression import quantiser_step
from vidup.media.decoding import decode
from vidup.media.probing import probe
from vidup.media.quantiser import jpeg_quantiser_step
from vidup.media.reading import decode_stream
from vidup.mini.degrade import CODECS, MARGIN, as_footage, compressed, distance, reduced
from vidup.mini.measure import HELD_OUT
from vidup.mini.pictures import picture
from vidup.mini.train import LEVELS
from vidup.picture import footage
from vidup.picture.metrics import luma, psnr
from vidup.picture.noise import levels_for
from vidup.picture.resample import anchor, resize
from vidup.picture.tiling import cover as cover_tiles

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers and transformers warn of their own affairs


GOOD = {
    "libx264": {"crf": "14"},
    "libx265": {"crf": "14"},
    "libvpx-vp9": {"crf": "12", "b": "0"},
    "mpeg4": {"qmin": "2", "qmax": "2"},
    "mpeg2video": {"qmin": "2", "qmax": "2"},
    "mjpeg": {"qmin": "2", "qmax": "2"},
}
BAD = {
    "libx264": {"crf": "38"},
    "libx265": {"crf": "38"},
    "libvpx-vp9": {"crf": "60", "b": "0"},
    "mpeg4": {"qmin": "24", "qmax": "24"},
    "mpeg2video": {"qmin": "24", "qmax": "24"},
    "mjpeg": {"qmin": "24", "qmax": "24"},
}


def write(path: Path, codec: str, options: dict[str, str], size: tuple[int, int] = (128, 160), count: int = 6) -> None:
    """Frames of a picture that drifts."""
    height, width = size
    pixels = picture(HELD_OUT + 90, 192)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for shift in range(count):
            window = np.ascontiguousarray(pixels[shift : shift + height, 2 * shift : 2 * shift + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        container.mux(stream.encode())


@cache
def small(index: int) -> np.ndarray:
    """(48, 64, 3), of a picture that nothing learned from."""
    return reduced(np.ascontiguousarray(picture(HELD_OUT + 100 + index, 256)[:192]))


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("sigma", [0.0, 1.0, 2.0, 4.0, 7.0, 10.0])
def test_the_estimate_of_noise_is_within_a_code(sigma: float) -> None:
    rng = np.random.default_rng(int(sigma))
    found = []
    for index in range(4):
        gray = rng.standard_normal((48, 64, 1)) * sigma
        noisy = np.clip(np.round(64 + 0.5 * small(index) + gray), 0, 255).astype(np.uint8)
        found.append(float(footage.distance(tensor(noisy), [0.0])))
    assert np.mean(found) == pytest.approx(sigma, abs=1.0)


def test_the_estimate_of_compression_follows_the_truth() -> None:
    clip = [small(1), np.roll(small(1), 1, 0), np.roll(small(1), 2, 0)]
    true, found = [], []
    for crf in (17, 27, 37):
        frames, step = compressed(clip, "libx264", crf)
        true.append(distance(frames[2], clip[2]))
        found.append(float(footage.distance(tensor(frames[2]), [step])))
    assert found == sorted(found) and found[0] < 0.6 * found[2]
    assert np.mean(found) == pytest.approx(np.mean(true), rel=0.5)


@pytest.mark.parametrize("codec", ["libx264", "mjpeg"])
def test_compression_keeps_the_mean_of_colours(codec: str) -> None:
    """Whatever else it does; a model would learn to shift it back."""
    frames, _ = compressed([small(1)] * 2, codec, 2 if codec == "mjpeg" else 10)
    assert np.abs((frames[1] - small(1).astype(float)).mean((0, 1))).max() < 0.5


def test_the_estimate_is_of_each_place() -> None:
    frame = np.full((64, 96, 3), 120.0)
    frame[:, 48:] += 8 * np.random.default_rng(0).standard_normal((64, 48, 1))
    codes = footage.error(tensor(np.round(frame).astype(np.uint8)), [0.0])[0, 0]
    assert codes.shape == (64, 96)
    assert codes[:, :36].mean() < 1 and codes[:, 60:].mean() == pytest.approx(8, abs=1.5)


@pytest.mark.parametrize("height, width", [(1, 1), (7, 5), (2, 33)])
def test_any_size_has_an_estimate(height: int, width: int) -> None:
    assert footage.error(torch.rand(2, 3, height, width), [8.0, 0.0]).shape == (2, 1, height, width)


def test_what_is_flat_and_clean_is_said_to_be() -> None:
    assert float(footage.distance(torch.full((1, 3, 40, 40), 0.3), [])) < 0.7


def test_the_anchor_leaves_noise_out_and_takes_colours_in() -> None:
    clean = tensor(small(2))
    noise = 7 / 255 * torch.randn(1, 1, *clean.shape[-2:], generator=torch.Generator().manual_seed(0))
    noisy = (clean + noise).clamp(0, 1)
    truth = resize(clean, (192, 256))
    shifted = truth + torch.tensor([0.1, -0.05, 0.0]).view(1, 3, 1, 1)  # right but for its colours
    followed, pulled = footage.held(shifted, noisy, 5, []), anchor(shifted, noisy, 5)
    inside = (..., slice(32, -32), slice(32, -32))
    assert (followed - truth)[inside].mean((0, 2, 3)).abs().max() < 0.01
    assert psnr(luma(followed)[inside], luma(truth)[inside]) > psnr(luma(pulled)[inside], luma(truth)[inside]) + 3


def test_the_anchor_leaves_no_colours_in_gray() -> None:
    """However hard it was compressed."""
    gray = torch.from_numpy(
        compressed([small(2).mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)], "libx264", 33)[0][0]
    )
    low = gray.permute(2, 0, 1)[None] / 255
    tint = 4 / 255 * torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    large = resize(low + tint, (192, 256))
    before, after = ((one - luma(one)[:, None]).square().mean() for one in (large, footage.held(large, low, 5, [40.0])))
    assert after < before / 20


def test_the_anchor_holds_to_a_clean_input() -> None:
    clean = tensor(small(2))
    blurred = resize(resize(clean, (24, 32)), (192, 256))
    back = [
        psnr(resize(hold(blurred, clean, 5), (48, 64)), clean) for hold in (partial(footage.held, steps=[]), anchor)
    ]
    assert back[0] > 50
    assert torch.equal(footage.held(blurred, clean, 0, [9.0]), blurred)


def test_levels_rise_with_the_distance() -> None:
    cumulative = torch.linspace(1, 0.9, 40)
    levels = levels_for(torch.tensor([0.0, 2.0, 8.0, 40.0, 1e6]), cumulative).tolist()
    assert levels[0] == 0 and levels == sorted(levels) and levels[-1] == 39
    noise = 127.5 * (1 - cumulative).sqrt()
    assert noise[levels[2]] >= 2 > noise[levels[2] - 1]


class TestNoiseLevel:
    def mini(self, **options: Any) -> Upscaler:
        return loaded(Settings(model="mini", temporal="off", anchor=0, **options))

    def test_each_picture_has_what_it_asks_for_in_any_company(self) -> None:
        flat = torch.full((1, 3, 16, 24), 0.5)
        noisy = flat + 0.06 * torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(1))
        level = int(levels_for(footage.distance(noisy, []), LEVELS))
        assert level > 2
        with self.mini() as follows, self.mini(noise_level=0) as own, self.mini(noise_level=level) as fixed:
            both = follows(torch.cat([flat, noisy]))
            torch.testing.assert_close(both[:1], own(flat), atol=1e-5, rtol=0)
            torch.testing.assert_close(both[1:], fixed(noisy), atol=1e-5, rtol=0)
            assert (both[1:] - own(noisy)).abs().max() > 1e-3

    def test_windows_of_a_frame_have_its_level(self) -> None:
        assert [one.tolist() for one in spread(torch.tensor([3, 7]), cover_tiles(64, 96, 64, 32, 8), 3)] == [
            [3, 3, 7],
            [7, 7, 7],
        ]


class TestFootage:
    @pytest.mark.parametrize("name", list(CODECS))
    def test_every_encoder_gives_frames_back_and_worse_ones_where_asked(self, name: str) -> None:
        clip = [small(0), np.roll(small(0), 1, 1)]
        (good, fine), (bad, coarse) = (compressed(clip, name, quality) for quality in CODECS[name][1])
        assert 0 < fine < coarse / 2
        assert [one.shape for one in good] == [(48, 64, 3)] * 2
        assert distance(bad[1], clip[1]) > 1.3 * distance(good[1], clip[1])

    def test_a_frame_lies_where_it_says(self) -> None:
        pixels = picture(HELD_OUT + 7, 192)
        made = as_footage(np.random.default_rng(3), pixels)
        (y, x), (height, width) = made.place, made.frame.shape[:2]
        assert 0 <= y <= MARGIN and 0 <= x <= MARGIN and made.frame.shape == made.clean.shape
        window = np.ascontiguousarray(pixels[y : y + 4 * height, x : x + 4 * width])
        assert min(distance(reduced(window, kernel), made.clean) for kernel in ("bicubic", "area", "lanczos")) == 0


class TestQuantiser:
    @pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "mpeg4", "mpeg2video", "mjpeg"])
    def test_a_files_step_follows_its_encoder(self, codec: str, tmp_path: Path) -> None:
        """Where the decoder says it, and where packets do."""
        found = []
        for name, options in (("good", GOOD), ("bad", BAD)):
            path = tmp_path / f"{name}.mkv"
            write(path, codec, options.get(codec, {}))
            found.append(quantiser_step(probe(path)))
        assert 1 < found[0] < 14 and 25 < found[1] < 150

    def test_it_is_estimated_where_nobody_says_it(self, tmp_path: Path) -> None:
        found = []
        for crf in (16, 34):
            write(tmp_path / "a.mkv", "libx265", {"x265-params": f"crf={crf}:log-level=none"})
            found.append(quantiser_step(probe(tmp_path / "a.mkv")))
        assert 1 < found[0] < 12 and 20 < found[1] < 60

    def test_of_what_is_lossless_blocks_tell_it(self, tmp_path: Path) -> None:
        write(tmp_path / "a.mkv", "ffv1", {})
        assert quantiser_step(probe(tmp_path / "a.mkv")) is None
        write(tmp_path / "b.mkv", "mpeg2video", BAD["mpeg2video"])
        with av.open(str(tmp_path / "b.mkv")) as source, av.open(str(tmp_path / "c.mkv"), "w") as target:
            stream = target.add_stream("ffv1", 25)
            stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
            for frame in source.decode(video=0):
                target.mux(stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(), format="yuv420p")))
            target.mux(stream.encode())
        step = quantiser_step(probe(tmp_path / "c.mkv"))
        assert step is not None and 15 < step < 80
        assert vidup.open(tmp_path / "c.mkv")[1].quantiser == step
        for model, wanted in (("mini", step), ("bicubic", "auto")):
            assert plan(tmp_path / "c.mkv", tmp_path / "d.mkv", Settings(model=model)).settings.quantiser == wanted

    def test_of_a_picture_that_was_a_jpeg_blocks_tell_it(self, tmp_path: Path) -> None:
        image = Image.fromarray(picture(HELD_OUT + 90, 192))
        image.save(tmp_path / "a.png")
        assert stills.read(tmp_path / "a.png").quantiser is None
        image.save(tmp_path / "a.jpg", quality=20)
        told = stills.read(tmp_path / "a.jpg").quantiser
        with Image.open(tmp_path / "a.jpg") as compressed_before:
            compressed_before.save(tmp_path / "b.png")
        assert stills.read(tmp_path / "b.png").quantiser == pytest.approx(told, rel=0.5)

    def test_tables_of_jpeg_tell_it(self) -> None:
        found = {}
        for quality in (30, 75, 95):
            stream = io.BytesIO()
            Image.fromarray(small(0)).save(stream, "JPEG", quality=quality)
            found[quality] = quantiser._of_jpeg(stream.getvalue())
            tables = Image.open(stream).quantization  # type: ignore[attr-defined]
            assert found[quality] == pytest.approx(jpeg_quantiser_step(tables.values()))
        assert 20 < found[30] < 35 and 8 < found[75] < 15 and 2 < found[95] < 6
        assert quantiser._of_jpeg(b"") is None and quantiser._of_jpeg(stream.getvalue()[:40]) is None

    def test_a_jpeg_is_made_for_it(self, tmp_path: Path) -> None:
        source, target = tmp_path / "a.jpg", tmp_path / "b.png"
        Image.fromarray(small(0)).save(source, quality=15)
        settings = Settings(model="mini", temporal="off")
        with Image.open(source) as image:
            step = jpeg_quantiser_step(image.quantization.values())  # type: ignore[attr-defined]
            image.load()
        with loaded(settings) as upscaler:
            upscaler.upscale(source, target)
            wanted, other = (np.asarray(upscaler.replace(quantiser=one)(image)) for one in (step, 0))
        with Image.open(target) as made:
            assert np.array_equal(np.asarray(made), wanted) and not np.array_equal(wanted, other)

    @pytest.mark.parametrize("temporal", ["off", "relay"])
    def test_frames_of_a_video_are_made_for_it(self, temporal: str, tmp_path: Path) -> None:
        write(tmp_path / "a.mkv", "libx264", BAD["libx264"], (48, 64), 3)
        video = vidup.open(tmp_path / "a.mkv")
        untold = [replace(frame, quantiser=None) for frame in video]
        with loaded(Settings(model="mini", temporal=temporal)) as upscaler:
            told = upscaler.replace(quantiser=video[0].quantiser)
            made = [list(own.frames(of)) for own, of in (
                (upscaler, video), (upscaler, video[:]), (told, untold), (upscaler, untold))]  # fmt: skip
            assert upscaler.computed[1] == (3 * 48 * 64 if temporal == "relay" else 0)
        assert all(frame.quantiser is None for frame in made[0])  # the results are not what was encoded
        bright = [[one.planes[0] for one in frames] for frames in made]
        assert np.array_equal(bright[0], bright[2]) and np.array_equal(bright[1], bright[2])
        assert not np.array_equal(bright[2], bright[3])

    def test_each_part_of_a_film_is_made_for_its_own(self, tmp_path: Path) -> None:
        """Of one whose second half was compressed hard, and wherever decoding begins."""
        alone = list[float | None]()
        for name, crf in (("good", 8), ("bad", 40)):
            write(tmp_path / f"{name}.ts", "libx264", {"crf": str(crf)}, (48, 64), 4)
            alone += [frame.quantiser for frame in vidup.open(tmp_path / f"{name}.ts")]
        (tmp_path / "a.ts").write_bytes(b"".join((tmp_path / f"{name}.ts").read_bytes() for name in ("good", "bad")))
        video = vidup.open(tmp_path / "a.ts")
        steps = [frame.quantiser for frame in video]
        assert steps == alone and max(steps[:4]) < CLEAN and min(steps[4:]) > 30
        assert [vidup.open(tmp_path / "a.ts")[place].quantiser for place in (2, 5, 7)] == [steps[2], steps[5], steps[7]]
        for temporal in ("off", "steady"):
            with loaded(Settings(model="mini", temporal=temporal)) as upscaler:
                made, good, bad = (
                    [frame.planes[0] for frame in upscaler.replace(quantiser=step).frames(video)]
                    for step in ("auto", steps[0], steps[4])
                )
            assert all(map(np.array_equal, made[:4], good[:4])) and not any(map(np.array_equal, made[4:], good[4:]))
            assert temporal == "steady" or all(map(np.array_equal, made[4:], bad[4:]))

    @pytest.mark.parametrize("codec", [*BAD])
    def test_frames_have_the_same_wherever_decoding_begins(self, codec: str, tmp_path: Path) -> None:
        path = tmp_path / "a.mkv"
        write(path, codec, BAD[codec] | {"g": "3"}, count=7)
        steps = [frame.quantiser for frame in vidup.open(path)]
        assert None not in steps and min(steps) > 1
        assert [vidup.open(path)[place].quantiser for place in (1, 4, 6)] == [steps[1], steps[4], steps[6]]

    @pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
    def test_no_thread_reads_what_another_writes(self, codec: str, tmp_path: Path) -> None:
        """Whose numbers would be others each time."""
        with av.open(str(tmp_path / "a.mkv"), "w") as container:
            stream = container.add_stream(codec, 25)
            stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((540, 640), np.uint8), "yuv420p")))
            container.mux(stream.encode())
        for tells, kind in ((True, "SLICE"), (False, "AUTO")):
            with av.open(str(tmp_path / "a.mkv")) as container:
                stream = container.streams.video[0]
                assert len(list(decode_stream(container, stream, pytest.fail, tells=tells))) == 1
                assert stream.codec_context.thread_type.name == kind

    def test_after_a_fade_from_black_it_follows_the_frames(self, tmp_path: Path) -> None:
        with av.open(str(tmp_path / "a.mkv"), "w") as container:
            stream = container.add_stream("libx264", 25, options={"crf": "30", "sc_threshold": "0", "bf": "0"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for index in range(20):
                pixels = np.roll(small(3), 2 * index, 1) * (index > 4)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")))
            container.mux(stream.encode())
        steps = [frame.quantiser for frame in vidup.open(tmp_path / "a.mkv")]
        assert steps[-1] > 2 * steps[0]

    def test_equal_frames_have_equal_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever the decoder says of one that only repeats what was."""
        told = iter([10.0] + 20 * [90.0])
        monkeypatch.setattr(quantiser, "frame_quantiser_step", lambda *_: next(told))
        follow = quantiser.Quantisers(av.CodecContext.create("h264", "r"))
        frames = [av.VideoFrame.from_ndarray(np.full((48, 64), gray, np.uint8), "gray") for gray in [9] * 12 + [7, 8]]
        frames[0].key_frame = True
        steps = [follow(frame) for frame in frames]
        assert steps[:12] == [10.0] * 12 and steps[12] > 20

    def test_it_outlasts_deinterlacing_and_conversion(self, tmp_path: Path) -> None:
        write(tmp_path / "a.mkv", "mpeg2video", BAD["mpeg2video"] | {"flags": "+ilme+ildct"}, count=3)
        info = replace(probe(tmp_path / "a.mkv"), field_order="tt")
        for other in (info, replace(info, width=80)):  # frames are resized to the file's size
            assert [frame.quantiser for frame in decode(other, settings=Settings(deinterlace="field"))] == [72] * 6

    def test_a_file_into_a_pipe_is_made_for_it(self, tmp_path: Path) -> None:
        write(tmp_path / "a.mkv", "libx264", BAD["libx264"], (48, 64), 2)
        step = vidup.open(tmp_path / "a.mkv")[0].quantiser
        made = []
        with loaded(Settings(model="mini", temporal="off")) as upscaler:
            for own in (upscaler, upscaler.replace(quantiser=step), upscaler.replace(quantiser=0)):
                target = io.BytesIO()
                upscale_piped(own, tmp_path / "a.mkv", target, Tracker(None), lambda: False)
                made.append(target.getvalue())
        assert made[0] == made[1] != made[2]

    @pytest.mark.parametrize("codec", ["libx264", "libx265"])
    def test_what_is_out_of_all_bounds_is_kept_within_them(
        self, codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A damaged quantiser, or a lively frame of next to no bits."""
        options = {"x265-params": "info=0:log-level=none"} if codec == "libx265" else {}
        write(tmp_path / "a.mkv", codec, options, (64, 64), 2)
        monkeypatch.setattr("vidup.media.quantiser._from_bits", lambda *_: 1e9)
        monkeypatch.setattr(
            "vidup.media.quantiser._HEAD", SimpleNamespace(size=32, unpack_from=lambda _: (0, 0, 0, 1, 10**9))
        )
        assert [frame.quantiser for frame in vidup.open(tmp_path / "a.mkv")] == [200, 200]

    def test_a_job_is_planned_for_it_and_says_so(self, tmp_path: Path) -> None:
        write(tmp_path / "a.mkv", "libx264", BAD["libx264"])
        job = plan(tmp_path / "a.mkv", tmp_path / "b.mkv", Settings(model="mini"))
        assert job.settings.quantiser == "auto"  # each frame has its own
        assert any("compressed hard, like x264 at crf" in line for line in describe(job))
        trusted = plan(tmp_path / "a.mkv", tmp_path / "b.mkv", Settings(model="mini", quantiser=0.0))
        assert trusted.settings.quantiser == 0 and not any("compressed" in line for line in describe(trusted))

    def test_a_files_pictures_are_made_for_it(self, tmp_path: Path) -> None:
        """Of two files in one queue, one hard compressed and one not, each with its own step."""
        films = {}
        for name, codec, options in (("bad", "libx264", BAD["libx264"]), ("good", "ffv1", {})):
            films[name] = tmp_path / f"{name}.mkv"
            write(films[name], codec, options, (48, 64), 3)
        settings = Settings(model="mini", temporal="off", codec="ffv1")
        step = vidup.open(films["bad"])[0].quantiser
        assert step is not None and step > CLEAN
        found = {}
        for how, given in (
            ("auto", settings),
            ("said", settings.replace(quantiser=step)),
            ("none", settings.replace(quantiser=0)),
        ):
            pairs = [(film, tmp_path / f"{name}-{how}.mkv") for name, film in films.items()]
            made = [outcome.output for outcome in vidup.upscale_files(pairs, given)]
            found[how] = [[frame.planes[0] for frame in vidup.open(path)] for path in made]
        bad, good = (lambda how: found[how][0]), (lambda how: found[how][1])
        assert np.array_equal(bad("auto"), bad("said")) and not np.array_equal(bad("auto"), bad("none"))
        assert np.array_equal(good("auto"), good("none")) and not np.array_equal(good("auto"), good("said"))


class TestSettings:
    def test_auto_is_the_default_and_numbers_stay(self) -> None:
        assert (Settings().anchor, Settings().noise_level) == ("auto", "auto")
        assert Settings(anchor=3, noise_level=0).anchor == 3

    @pytest.mark.parametrize("value", ["off", 2.5, -1, True])
    def test_else_one_line(self, value: object) -> None:
        with pytest.raises(ConfigError, match=r"^anchor = .*expected (auto or a whole number|0 to 100)"):
            Settings(anchor=value)  # type: ignore[arg-type]

    def test_the_preset_of_mini_follows_the_footage(self) -> None:
        settings = Settings.preset("mini")
        assert (settings.noise_level, settings.anchor) == ("auto", "auto")
