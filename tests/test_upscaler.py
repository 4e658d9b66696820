"""The library as editing tools call it: one callable for pictures of every kind, many of them, and a file."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vidup
from vidup import Color, ConfigError, Frame, MediaError, Runtime, Settings, Stopped, Upscaler
from vidup.engines import Needs, windows
from vidup.engines.planner import Planner

CPU = Runtime(device="cpu")
RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 256, (9, 11, 3), np.uint8)
NEAREST = Settings(model="nearest", scale=2)


@pytest.fixture(scope="module")
def twice() -> Iterator[Upscaler]:
    """Nearest neighbour: every other sample of a result is one of what was given."""
    with Upscaler(NEAREST, CPU) as upscaler:
        yield upscaler


@pytest.fixture(scope="module")
def mini() -> Iterator[Upscaler]:
    with Upscaler("mini", CPU) as upscaler:
        yield upscaler


class TestKinds:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", np.float16, np.float32, np.float64])
    @pytest.mark.parametrize("channels", [None, 1, 2, 3, 4])
    def test_numpy(self, twice: Upscaler, dtype: Any, channels: int | None) -> None:
        codes = RNG.integers(0, 256, (9, 11, channels or 1))
        dtype = np.dtype(dtype)
        picture = (codes / 255).astype(dtype) if dtype.kind == "f" else (codes * (257 if dtype.itemsize == 2 else 1))
        picture = picture.astype(dtype)[..., slice(None) if channels else 0]
        large = twice(picture)
        assert (type(large), large.dtype, large.shape[2:]) == (np.ndarray, dtype, picture.shape[2:])
        assert large.flags.writeable and large.flags.c_contiguous and large.shape[:2] == twice.size(9, 11) == (18, 22)
        colors = slice(None) if channels in (None, 1, 3) else slice(-1)
        exact = large[::2, ::2, colors] if channels else large[::2, ::2]
        expected = picture[..., colors] if channels else picture
        np.testing.assert_allclose(exact.astype(float), expected.astype(float), rtol=1e-6)
        if channels in (2, 4):  # bicubic
            assert np.abs(large[4:-4:2, 4:-4:2, -1].astype(float) - picture[2:-2, 2:-2, -1]).mean() < (
                0.2 * (1 if dtype.kind == "f" else np.iinfo(dtype).max)
            )

    def test_opencv(self, twice: Upscaler) -> None:
        cv2 = pytest.importorskip("cv2")
        picture = cv2.imdecode(cv2.imencode(".png", CODES)[1], cv2.IMREAD_COLOR)
        large = twice(picture[..., ::-1])[..., ::-1]
        assert cv2.imencode(".png", large)[0] and np.array_equal(large[::2, ::2], picture)
        assert np.array_equal(twice(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)).shape, (18, 22))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float64])
    def test_torch(self, twice: Upscaler, dtype: torch.dtype) -> None:
        rgba = torch.rand(4, 9, 11, generator=torch.Generator().manual_seed(0))
        scale = {torch.uint8: 255, torch.uint16: 65535}.get(dtype, 1)
        picture = (rgba * scale).to(torch.int32 if scale > 1 else dtype).to(dtype)
        large = twice(picture)
        assert (large.shape, large.dtype, large.device) == ((4, 18, 22), dtype, picture.device)
        torch.testing.assert_close(large[:3, ::2, ::2].float(), picture[:3].float(), atol=0, rtol=1e-6)
        several = twice(torch.stack([picture] * 2))
        assert several.shape == (2, 4, 18, 22) and torch.equal(several[1].float(), large.float())
        large.fill_(0)  # an ordinary tensor

    def test_a_result_of_torch_may_be_learnt_from(self, mini: Upscaler) -> None:
        weight = torch.ones(1, requires_grad=True)
        (mini(torch.rand(3, 8, 8, requires_grad=True)) * weight).sum().backward()
        assert weight.grad is not None

    def test_pillow_keeps_its_profile(self, twice: Upscaler) -> None:
        image = Image.fromarray(CODES)
        image.info = {"icc_profile": b"a profile", "dpi": (72, 72)}
        assert twice(image).info == image.info

    @pytest.mark.parametrize("pix_fmt", ["gbrap", "yuva420p", "yuva444p10le", "gbrap12le"])
    def test_a_frames_transparency_stays(self, twice: Upscaler, pix_fmt: str) -> None:
        white = 255 if pix_fmt in ("gbrap", "yuva420p") else 1023 if "10" in pix_fmt else 4095
        dtype = np.uint8 if white == 255 else np.uint16
        chroma = (4, 5) if "420" in pix_fmt else (8, 10)
        shapes = ((8, 10), chroma, chroma, (8, 10))
        planes = tuple(np.full(shape, white // 2, dtype) for shape in shapes)
        planes[3][:, 5:] = white
        frame = Frame(planes, pix_fmt, Color(0 if "gbr" in pix_fmt else 1, full_range=True))
        large = twice(frame)
        assert (large.pix_fmt, len(large.planes), large.planes[3].dtype) == (pix_fmt, 4, dtype)
        assert large.planes[3].shape == (16, 20) and large.planes[3][0, -1] == white
        assert abs(int(large.planes[3][0, 0]) - white // 2) <= 1
        (opaque,) = twice.frames([frame], "yuv420p", Color(1))
        assert len(opaque.planes) == 3

    def test_many_of_any_kind(self, twice: Upscaler) -> None:
        pictures = [RNG.integers(0, 256, (9, 11, 3), np.uint8) for _ in range(3)]
        for kind in (np.asarray, Image.fromarray, lambda one: torch.from_numpy(one).permute(2, 0, 1)):
            given = [kind(one) for one in pictures]
            results = list(twice.frames(iter(given)))
            assert [type(one) for one in results] == [type(one) for one in given]
            assert all(
                np.array_equal(np.asarray(one), np.asarray(twice(two))) for one, two in zip(results, given, strict=True)
            )


class TestNoSilentWrongPicture:
    @pytest.mark.parametrize(
        ("picture", "message"),
        [
            (np.zeros((3, 20, 30), np.uint8), r"of shape \(3, 20, 30\) and dtype uint8: expected \(height, width\)"),
            (np.zeros((2, 4, 4, 3), np.uint8), r"of shape \(2, 4, 4, 3\) and dtype uint8: expected"),
            (np.zeros((0, 4, 3), np.uint8), r"of shape \(0, 4, 3\)"),
            (np.zeros((4, 4), np.int64), "dtype int64: expected uint8, uint16 or a float"),
            (np.zeros((4, 4), bool), "dtype bool: expected uint8, uint16 or a float"),
            (np.full((4, 4, 3), 200.0), r"float64: holds 200 to 200, and floats are expected in \[0, 1\]"),
            (np.full((4, 4, 3), 2.1), "float64: holds 2.1 to 2.1"),
            (np.full((4, 4, 3), -1.1, np.float32), "float32: holds -1.1 to -1.1"),
            (np.array([[0.5, np.nan], [0, 1]]), "1 of its values are NaN or infinite"),
            (np.array([[0.5, np.inf], [0, 1]], np.float16), "1 of its values are NaN or infinite"),
            (torch.zeros(20, 30, 3), r"a tensor of shape \(20, 30, 3\) and dtype float32: expected"),
            (torch.zeros(3, 4, 4, dtype=torch.int32), "dtype int32: expected uint8, uint16 or a float"),
            (torch.full((3, 4, 4), float("nan")), "48 of its values are NaN"),
            (Image.new("F", (4, 4)), "of mode F, whose white is not known"),
            ("picture.png", "of type str: expected an array of NumPy, a tensor, a Pillow image or a Frame"),
        ],
    )
    def test_a_picture_that_cannot_be_meant(self, twice: Upscaler, picture: Any, message: str) -> None:
        with pytest.raises(MediaError, match=message) as caught:
            twice(picture)
        assert "\n" not in str(caught.value)
        with pytest.raises(MediaError, match=message):
            list(twice.frames([picture]))

    def test_codes_above_their_format(self, twice: Upscaler) -> None:
        planes = tuple(np.full(shape, 512 << 6, np.uint16) for shape in ((8, 8), (4, 4), (4, 4)))  # as p010 has them
        with pytest.raises(MediaError, match=r"plane 0 of yuv420p10le, uint16 of shape \(8, 8\), holds 32768"):
            twice(Frame(planes, "yuv420p10le", Color(1)))

    def test_floats_in_a_frame(self) -> None:
        with pytest.raises(MediaError, match="plane 0 of gbrp is of uint8, not float32"):
            Frame(tuple(np.ones((4, 4), np.float32) for _ in range(3)), "gbrp", Color(0))  # type: ignore[arg-type]

    def test_a_matrix_that_says_nothing_of_the_result(self, twice: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
        frame = Frame(tuple(np.full((4, 4), 100, np.uint8) for _ in range(3)), "gbrp", Color(0, full_range=True))
        monkeypatch.setattr(Upscaler, "_enlarge", lambda *given: pytest.fail("the model works for nothing"))
        with pytest.raises(MediaError, match=r"colour matrix 0 \(RGB\) says nothing of planes of YUV"):
            list(twice.frames([frame], "yuv420p"))

    def test_planes_of_rgb_bear_no_matrix_of_yuv(self, twice: Upscaler) -> None:
        gray = Frame((np.full((4, 4), 126, np.uint8),) * 3, "yuv444p", Color(1, 1, 1))
        (large,) = twice.frames([gray], "gbrp")
        assert (large.pix_fmt, large.color) == ("gbrp", Color(0, 1, 1))

    def test_frames_of_two_sizes(self, twice: Upscaler) -> None:
        with pytest.raises(MediaError, match="frames: a picture of 8x4 after one of 6x4"):
            list(twice.frames([np.zeros((4, 6), np.uint8), np.zeros((4, 8), np.uint8)]))

    def test_what_is_beyond_white_is_clipped_by_a_model(self, mini: Upscaler) -> None:
        ramp = np.linspace(-0.3, 1.3, 64, dtype=np.float32).reshape(8, 8)
        bare = mini.replace(anchor=0)
        assert np.array_equal(bare(ramp), bare(ramp.clip(0, 1))) and bare(ramp).max() <= 1
        assert mini(ramp).max() > 1.2  # the anchor brings the light back

    def test_what_lies_in_range_stays_there(self, mini: Upscaler) -> None:
        """Whoever makes codes of it by a cast would see black where it is a little less."""
        edges = np.tile(np.float32([0, 1]), (12, 6)).repeat(2, 1)
        large = mini(edges)
        assert large.min() == 0 and large.max() == 1 and (large * 255).astype(np.uint8).max() == 255

    def test_codes_that_pass_for_floats_are_black_and_stay_so(self, mini: Upscaler) -> None:
        """The first frames of a fade of MoviePy: 0 to 255, and no more than 2 of it."""
        picture = RNG.random((16, 16, 3))
        for most in (0.0, 0.5, 2.0):
            assert np.abs(mini(most * picture)).max() <= most + 0.5


class TestSettings:
    def test_a_model_brings_its_preset(self) -> None:
        assert Settings(model="mini") == Settings.preset("mini") and Settings(model="mini").steps == 1
        assert Settings(model="mini", steps=5).steps == 5
        assert Upscaler("mini").settings == Settings.preset("mini") == Settings.presets()["mini"]
        with pytest.raises(ConfigError, match="preset 'best' is not known"):
            Upscaler("best")

    def test_a_preset_by_its_path(self, tmp_path: Path) -> None:
        (tmp_path / "own.toml").write_text('model = "bicubic"\nscale = 3')
        assert (
            Upscaler(tmp_path / "own.toml").size(10, 20)
            == Upscaler(str(tmp_path / "own.toml")).size(10, 20)
            == (30, 60)
        )

    def test_they_print_what_differs(self) -> None:
        settings, runtime = Settings(model="mini", seed=3), Runtime(device="cpu")
        assert repr(Settings()) == "Settings()" and repr(Settings(encoder_options={"a": "b"})).endswith("{'a': 'b'})")
        assert repr(settings) == "Settings(model='mini', guidance_scale=1.0, steps=1, seed=3, sampler='ddim')"
        assert repr(Upscaler(settings, runtime)) == f"Upscaler({settings!r}, Runtime(device='cpu'))"

    def test_they_hash(self) -> None:
        one, two = Settings(encoder_options={"preset": "slow"}), Settings(encoder_options={"preset": "slow"})
        assert len({one, two, Settings()}) == 2

    def test_numbers_and_paths_of_other_libraries(self) -> None:
        given = Settings(
            model=Path("a/model.pth"), steps=np.int64(7), seed=20.0, scale=np.float32(2), height=None, no_audio=np.True_
        )
        assert (given.model, given.steps, given.seed, given.scale, given.no_audio) == (
            str(Path("a/model.pth")), 7, 20, 2.0, True,
        )  # fmt: skip
        assert [type(one) for one in (given.steps, given.seed, given.scale, given.no_audio)] == [int, int, float, bool]
        for wrong in ({"steps": 2.5}, {"steps": True}, {"scale": "2"}, {"seed": float("nan")}):
            with pytest.raises(ConfigError, match="expected a"):
                Settings(**wrong)

    def test_another_prompt_or_seed_shares_what_is_loaded(self, tiny_x4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
        changes: list[dict[str, Any]] = [{"seed": 1, "noise_level": 90, "steps": 3}, {"prompt": "rain"}]
        settings = Settings(model=str(tiny_x4), steps=2, prompt="a harbour", guidance_scale=5.0)
        expected = [Upscaler(settings.replace(**change), CPU)(picture) for change in changes]
        with Upscaler(settings, CPU) as one:
            before = one(picture)
            monkeypatch.setattr("vidup.engines.x4.load_parts", lambda *given: pytest.fail("loaded anew"))
            others = [one.replace(**change) for change in changes]
            results = [other(picture) for other in others]
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(results, expected, strict=True))
            assert torch.equal(one(picture), before) and not torch.equal(results[1], before)
            assert all(other.engine.unet.module is one.engine.unet.module for other in others)
        with pytest.raises(ConfigError, match="unknown key 'sede'; did you mean 'seed'"):
            one.replace(sede=1)

    def test_another_model_is_loaded(self, mini: Upscaler) -> None:
        other = mini.replace(model="nearest", scale=3.0)
        assert other.engine is not mini.engine and other(CODES).shape == (27, 33, 3)
        twice = Upscaler(NEAREST, CPU)
        assert twice.replace(scale=3.0)(CODES).shape == (27, 33, 3) and twice(CODES).shape == (18, 22, 3)


class TestStopping:
    def test_before_every_call_of_the_model_and_it_goes_on(
        self, mini: Upscaler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected, asked = mini(CODES), 0

        def stop() -> bool:
            nonlocal asked
            asked += 1
            return asked == 6

        monkeypatch.setattr(mini, "stop", stop)
        with pytest.raises(Stopped):
            mini(CODES)
        assert asked == 6
        assert np.array_equal(mini(CODES), expected)
        assert asked > 15  # its layers and its bands, twice

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
    def test_whatever_is_raised_there_comes_out(
        self, mini: Upscaler, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
    ) -> None:
        def stop() -> bool:
            raise error("out")

        expected = mini(CODES)
        with monkeypatch.context() as patch, pytest.raises(error, match="out"):
            patch.setattr(mini, "stop", stop)
            mini(CODES)
        assert np.array_equal(mini(CODES), expected)

    @pytest.mark.parametrize("how", ["stop", "on_progress"])
    def test_a_file_within_a_picture(
        self, make_clip: Callable[..., Path], how: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A picture that takes long tells of its steps, and is given up between them."""
        monkeypatch.setattr("vidup.job.progress._BEAT", 0.0)
        source, events = make_clip(times=range(0, 3 * 512, 512), sound=False), list[vidup.Progress]()

        class Enough(Exception):
            pass

        def look(event: vidup.Progress) -> None:
            events.append(event)
            if event.step == 2 and how == "on_progress":
                raise Enough

        settings, stop = Settings(model="mini", steps=3), lambda: how == "stop" and events[-1].step == 2
        with Upscaler(settings, CPU, stop=stop) as upscaler:
            with pytest.raises(Stopped if how == "stop" else Enough):
                upscaler.upscale(source, on_progress=look)
            assert (events[-1].frame, events[-1].step, events[-1].steps) == (0, 2, 3)
            upscaler.stop = lambda: False
            receipt = upscaler.upscale(source)
        assert (receipt.frames, receipt.output.name, receipt.compared) == (3, "clip_x4.mp4", 3)
        assert Path(receipt) == receipt.output and receipt.least_likeness > 0.9


class TestThreads:
    def test_any_thread_may_call(self, mini: Upscaler) -> None:
        pictures = [RNG.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(4)]
        expected = [mini(one) for one in pictures]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(mini, pictures))
            videos = list(pool.map(lambda one: list(mini.frames([one, one])), pictures))
        assert all(np.array_equal(one, two) for one, two in zip(found, expected, strict=True))
        assert all(np.array_equal(two[1], expected[i]) for i, two in enumerate(videos))

    def test_asyncio(self, twice: Upscaler) -> None:
        async def serve() -> list[np.ndarray]:
            return await asyncio.gather(*(asyncio.to_thread(twice, CODES) for _ in range(3)))

        assert all(np.array_equal(one, twice(CODES)) for one in asyncio.run(serve()))

    def test_a_model_is_loaded_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded, load = [], vidup.engines.load

        def slow(*given: Any) -> Any:
            loaded.append(threading.get_ident())
            time.sleep(0.05)
            return load(*given)

        monkeypatch.setattr("vidup.engines.load", slow)
        with Upscaler(NEAREST, CPU) as upscaler, ThreadPoolExecutor(4) as pool:
            list(pool.map(upscaler, [CODES] * 4))
        assert len(loaded) == 1

    def test_graphs_have_a_thread_of_their_own(self, mini: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
        """On CUDA, where this cannot be run: whoever calls, the same thread works, and an interrupt waits for it."""
        threads = set()
        blend = windows.blend
        monkeypatch.setattr(Upscaler, "_in_its_thread", lambda self, work: self._thread.run(work))
        monkeypatch.setattr(
            "vidup.engines.windows.blend", lambda *given: threads.add(threading.get_ident()) or blend(*given)
        )
        expected = mini(CODES)
        with ThreadPoolExecutor(3) as pool:
            assert all(np.array_equal(one, expected) for one in pool.map(mini, [CODES] * 3))
        assert len(threads) == 1 and threading.get_ident() not in threads
        waited = []

        def interrupted(*given: Any) -> None:
            waited.append(given)
            if len(waited) == 1:
                raise KeyboardInterrupt

        monkeypatch.setattr("vidup.prefetch.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mini._thread.run(lambda: time.sleep(0.01))
        assert len(waited) == 2 and not mini._thread.abandoned


@pytest.mark.parametrize("batch", [1, 4])
def test_one_frame_costs_one(tiny_x4: Path, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the batch, and with the bits that it has among others."""
    frames = [RNG.random((16, 16, 3), np.float32) for _ in range(3)]
    settings = Settings(model=str(tiny_x4), steps=2, temporal="off")
    sizes: list[int] = []
    with Upscaler(settings, Runtime(device="cpu", batch=batch)) as upscaler:
        together = list(upscaler.frames(frames))
        ask = upscaler.engine.unet.run
        function = ask.function
        monkeypatch.setattr(
            ask, "function", lambda x, *given, **named: sizes.append(len(x)) or function(x, *given, **named)
        )
        (alone,) = upscaler.frames(frames[:1])
    assert sizes == [1, 1] and np.array_equal(alone, together[0])


@pytest.mark.parametrize(("compiled", "of_a_file", "calls"), [(False, False, 1), (True, False, 4), (False, True, 4)])
def test_on_a_card_one_frame_costs_one(
    tiny_x4: Path, compiled: bool, of_a_file: bool, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is pretended here: batches are of four, and filled up for a compiled model and for a file alone."""
    card = torch.device("cuda")
    assert not Planner(Needs(card, 1.0, compiled=True), Settings(), CPU).fills(True)  # no model: it changes nothing
    sizes: list[int] = []
    settings = Settings(model=str(tiny_x4), steps=1, temporal="off")
    with Upscaler(settings, Runtime(device="cpu", batch=4)) as upscaler:
        ask = upscaler.engine.unet.run
        function = ask.function
        monkeypatch.setattr(
            ask, "function", lambda x, *given, **named: sizes.append(len(x)) or function(x, *given, **named)
        )
        upscaler.choose(8, 8)
        planner = upscaler.planner
        assert planner.at_once(upscaler.choose(8, 8)) == 1 and not planner.fills(of_a_file)
        upscaler.__dict__["planner"] = replace(planner, needs=replace(planner.needs, device=card, compiled=compiled))
        if of_a_file:
            upscaler.reset()
        assert len(list(upscaler.frames([RNG.random((8, 8, 3), np.float32)]))) == 1
    assert sizes == [calls]
