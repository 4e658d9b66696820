"""One contract for every engine, and what only the diffusion engine promises."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import enlarge, loaded
from torch.nn import functional

from vidup import Upscaler
from vidup.config import Runtime, Settings
from vidup.engines import FAMILIES, HOMES, Choice, Place, architecture, family, identify, load, native_scale
from vidup.engines.hub import MINI
from vidup.errors import EngineError
from vidup.media.decoding import decode
from vidup.media.probing import probe
from vidup.picture import color, flaws, noise, tiling
from vidup.picture.resample import anchor, resize

CPU = Runtime(device="cpu")
SAMPLES = Path(__file__).parent.parent / "samples"
INTERPOLATIONS = tuple(FAMILIES[-1].names)
SPANDREL = ("compact", "esrgan", "swin")
MODELS = [*INTERPOLATIONS, "mini", "tiny", "tiny_x2", *SPANDREL]


def picture(height: int, width: int, count: int = 1, seed: int = 0) -> torch.Tensor:
    """Smooth colours with an edge, (count, 3, height, width) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    smooth = functional.interpolate(torch.rand(count, 3, 5, 5, generator=generator), (height, width), mode="bilinear")
    smooth[..., width // 2 :] *= 0.5
    return smooth


@pytest.fixture
def engine(request: pytest.FixtureRequest, make_engine: Callable[..., Upscaler]) -> Upscaler:
    return make_engine(request.param)


@pytest.fixture
def make_engine(request: pytest.FixtureRequest, tiny_x4: Path, tiny_x2: Path) -> Callable[..., Upscaler]:
    def make(model: str, runtime: Runtime = CPU, **options: object) -> Upscaler:
        if model == "mini":
            return loaded(Settings.preset("mini", **options), runtime)
        if model in ("tiny", "tiny_x2"):
            folder = tiny_x4 if model == "tiny" else tiny_x2
            return loaded(Settings(**{"model": str(folder), "steps": 2, **options}), runtime)  # type: ignore[arg-type]
        if model in SPANDREL:
            model = str(request.getfixturevalue("checkpoints")[model])
        return loaded(Settings(model=model, **options), runtime)  # type: ignore[arg-type]

    return make


def smaller_and_smaller(engine: Upscaler, first: Choice, height: int, width: int) -> list[Choice]:
    seen = [first]
    while (less := engine.planner.smaller(seen[-1], height, width)) is not None:
        seen.append(less)
        assert len(seen) < 50
    return seen


@pytest.mark.parametrize("engine", MODELS, indirect=True)
class TestContract:
    @pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 9), (101, 67)])
    def test_output_is_exactly_scale_times_the_input(self, engine: Upscaler, height: int, width: int) -> None:
        source = picture(height, width)
        before = source.clone()
        result = enlarge(engine, source, Place(height=height, width=width))
        assert result.shape == (1, 3, height * engine.engine.scale, width * engine.engine.scale)
        assert result.dtype == torch.float32 and result.device == engine.engine.device
        assert torch.isfinite(result).all()
        assert torch.equal(source, before), "the input is not to be written to"

    def test_models_stay_in_range_and_the_baseline_keeps_what_is_beyond(self, engine: Upscaler) -> None:
        bright = torch.full((1, 3, 16, 16), 1.05)
        result = enlarge(engine, bright, Place(height=16, width=16))
        if engine.engine.invents:
            assert result.min() >= 0 and result.max() <= 1
        else:
            torch.testing.assert_close(result, torch.full_like(result, 1.05))

    def test_what_is_beyond_the_range_is_as_good_as_its_end(self, engine: Upscaler) -> None:
        source, place = picture(16, 16) * 3 - 1, Place(height=16, width=16)
        if engine.engine.invents:
            assert torch.equal(enlarge(engine, source, place), enlarge(engine, source.clamp(0, 1), place))

    def test_equal_pictures_give_equal_results_at_any_time(self, engine: Upscaler) -> None:
        clip = picture(16, 24).expand(3, -1, -1, -1)
        one, two, three = enlarge(engine, clip)
        assert torch.equal(one, two) and torch.equal(two, three)
        assert torch.equal(one, enlarge(engine, clip)[0])

    def test_a_picture_does_not_depend_on_its_company(self, engine: Upscaler) -> None:
        clip = picture(16, 24, count=3)
        together = enlarge(engine, clip, Place(height=16, width=24))
        alone = torch.cat([enlarge(engine, row[None], Place(height=16, width=24)) for row in clip])
        assert (together - alone).abs().max() * 255 < 1

    def test_a_choice_is_made_kept_and_made_smaller_to_an_end(self, engine: Upscaler) -> None:
        height, width = 1080, 1920
        planner, choice = engine.planner, engine.choose(height, width)
        assert choice == planner.choose(height, width) and choice.batch >= 1 and choice.tile >= 0
        assert planner.memory(choice, height, width) > planner.memory(choice, height // 4, width // 4) > 0
        seen = smaller_and_smaller(engine, Choice(8, 0), height, width)
        taken = [planner.memory(one, height, width) for one in seen]
        assert all(after < before for before, after in zip(taken, taken[1:], strict=False))
        assert seen[-1].batch == 1 and all(planner.allows(one, height, width) for one in (choice, *seen))
        tile = 256 if engine.engine.invents else 0  # the baseline has no tiles
        if tile and not seen[-1].tile:  # so the whole frame takes no more, as where decoding takes the most
            assert planner.memory(Choice(1, tile), height, width) >= taken[-1]
        assert engine.choose(height, width, Choice(2, tile)) == engine.choose(height, width) == Choice(2, tile)

    @pytest.mark.parametrize(
        "choice", [Choice(0, 0), Choice(9, 0), Choice(True, 0), Choice(1, -1), Choice(1, 3), Choice(1, 0, 3)]
    )
    def test_what_no_planner_chooses_is_not_allowed(self, engine: Upscaler, choice: Choice) -> None:
        assert not engine.planner.allows(choice, 1080, 1920)

    def test_a_window_of_a_frame_gets_what_the_frame_has_there(self, engine: Upscaler) -> None:
        frame, side = picture(128, 176), engine.engine.multiple
        top, left = 64, 64
        window = frame[..., top:, left : left + 80]
        scale = round(engine.engine.scale)
        within = (..., slice(top * scale, None), slice(left * scale, (left + 80) * scale))
        expected = enlarge(engine, frame)[within]
        here, there = (enlarge(engine, window, Place(*origin, 128, 176)) for origin in ((top, left), (0, 0)))
        inner = (..., slice(16 * scale, -16 * scale), slice(16 * scale, -16 * scale))
        near, far = ((one - expected)[inner].square().mean() for one in (here, there))
        # Models of random weights reach far, and norms are those of the window.
        assert near < far / 2 if getattr(engine.engine, "guides", None) else near == far < 1e-9
        for place in (Place(1, 0, 128, 176), Place(0, 0, 72, 72), Place(-side, 0, 128, 176)):
            if side > 1 or place.top != 1:
                with pytest.raises(EngineError, match=f"must lie inside, at multiples of {side}"):
                    enlarge(engine, window, place)

    def test_it_says_which_weights_it_has(
        self, engine: Upscaler, request: pytest.FixtureRequest, make_engine: Callable[..., Upscaler]
    ) -> None:
        model = request.node.callspec.params["engine"]
        identity = engine.engine.identity
        assert identity and identity == make_engine(model, seed=5).engine.identity
        assert identity == identify(engine.settings, torch.device("cpu"))
        assert identity != make_engine("nearest" if model != "nearest" else "bicubic").engine.identity


@pytest.mark.parametrize("model", MODELS)
def test_a_given_batch_is_kept(make_engine: Callable[..., Upscaler], model: str) -> None:
    engine = make_engine(model, Runtime(device="cpu", batch=3))
    assert engine.choose(32, 32).batch == 3


@pytest.mark.parametrize("model", ["mini", "tiny", "tiny_x2", *SPANDREL])
class TestModels:
    """What holds for every engine that has a model."""

    def test_tiles_stay_near_the_whole_frame(self, make_engine: Callable[..., Upscaler], model: str) -> None:
        tile, width = (192, 256) if model == "tiny_x2" else (80, 112)
        source, place = picture(24, width), Place(height=24, width=width)
        whole, tiled = make_engine(model), make_engine(model, tile=tile)
        assert tiled.choose(24, width).tile == tile
        error = (enlarge(whole, source, place) - enlarge(tiled, source, place)).square().mean()
        assert 10 * torch.log10(1 / error) > 25  # random weights reach far

    def test_a_choice_of_tiles_is_what_a_given_tile_is(self, make_engine: Callable[..., Upscaler], model: str) -> None:
        source, chosen = picture(16, 144), make_engine(model)
        chosen.choose(16, 144, Choice(1, 128))
        assert torch.equal(enlarge(chosen, source), enlarge(make_engine(model, tile=128), source))

    def test_the_memory_that_it_may_take_is_kept(self, make_engine: Callable[..., Upscaler], model: str) -> None:
        free = make_engine(model, Runtime(device="cpu", max_memory="999G", batch=1))
        first = free.choose(1080, 1920)
        assert (first.batch, first.tile) == (1, 0)
        steps = smaller_and_smaller(free, first, 1080, 1920)
        least, whole = (free.planner.memory(step, 1080, 1920) for step in (steps[-1], steps[0]))
        limit = (least + whole) // 2
        tight = make_engine(model, Runtime(device="cpu", max_memory=str(limit)))
        assert tight.planner.memory(tight.choose(1080, 1920), 1080, 1920) <= limit

    def test_the_device_must_be_there(self, make_engine: Callable[..., Upscaler], model: str) -> None:
        with pytest.raises(EngineError, match="cuda:77"):
            make_engine(model, Runtime(device="cuda:77"))


@pytest.mark.parametrize("method", INTERPOLATIONS)
@pytest.mark.parametrize("scale", [1.0, 1.5, 2.0, 3.0])
def test_the_baseline_takes_any_scale(method: str, scale: float) -> None:
    result = enlarge(loaded(Settings(model=method, scale=scale), CPU), picture(20, 31))
    assert result.shape[-2:] == (round(20 * scale), round(31 * scale))


def test_bicubic_is_pillows(make_engine: Callable[..., Upscaler]) -> None:
    from PIL import Image

    source = picture(20, 31)
    expected = Image.fromarray(source[0, 0].numpy()).resize((124, 80), Image.Resampling.BICUBIC)
    result = enlarge(make_engine("bicubic"), source, Place(height=20, width=31))
    np.testing.assert_allclose(result[0, 0].numpy(), np.asarray(expected), atol=1e-5)


@pytest.mark.parametrize("tile", [0, 72])
@pytest.mark.parametrize("model", ["mini", "tiny"])
def test_batches_agree(make_engine: Callable[..., Upscaler], model: str, tile: int) -> None:
    """Three frames, whole or in tiles: every batch has one shape, the last one filled up."""
    clip, place = picture(16, 104, count=3), Place(height=16, width=104)
    one = enlarge(make_engine(model, tile=tile), clip, place)
    for batch in (2, 4):
        many = enlarge(make_engine(model, Runtime(device="cpu", batch=batch), tile=tile), clip, place)
        assert (one - many).abs().max() * 255 < 1


def test_480x270_becomes_1920x1080(make_engine: Callable[..., Upscaler]) -> None:
    result = enlarge(make_engine("mini", steps=1), picture(270, 480), Place(height=270, width=480))
    assert result.shape == (1, 3, 1080, 1920)


@pytest.mark.parametrize("clip", ["film.mp4", "game.mkv"])
def test_tiles_equal_the_whole_frame(make_engine: Callable[..., Upscaler], clip: str) -> None:
    source = color.to_rgb(next(decode(probe(SAMPLES / clip))))[None]
    place = Place(height=90, width=160)
    whole = anchor(enlarge(make_engine("mini"), source, place), source, 5)
    tiled = anchor(enlarge(make_engine("mini", tile=80), source, place), source, 5)
    error = (whole - tiled).square().mean()
    assert 10 * torch.log10(1 / error) >= 35

    # No seams: across the borders of tiles the gradient is no steeper than elsewhere, each against the whole frame's.
    plan = tiling.cover(96, 160, 80, 32, 8)
    assert len({top for top, _ in plan.origins}) > 1 and len({left for _, left in plan.origins}) > 1
    for axis, length, side in ((-1, 160, plan.tile_width), (-2, 96, plan.tile_height)):
        starts = {origin[axis] for origin in plan.origins}
        borders = {4 * edge - 1 for start in starts for edge in (start, start + side) if 0 < edge < length}
        assert steeper(whole, tiled, axis, borders) < 1.02
        stepped = tiled.clone()
        first, second = sorted(borders)[:2]
        stepped.narrow(axis, first + 1, second - first).add_(4 / 255)  # as it would be with a seam of four codes
        assert steeper(whole, stepped, axis, borders) > 1.02


def steeper(whole: torch.Tensor, tiled: torch.Tensor, axis: int, borders: set[int]) -> float:
    """The gradient of a tiled picture across borders, against the whole one's, as a share of what that is elsewhere."""
    one, other = (p.diff(dim=axis).abs().transpose(axis, -1).flatten(0, -2).mean(0) for p in (whole, tiled))
    at_border = torch.tensor([index in borders for index in range(len(one))])
    across = other[at_border].mean() / one[at_border].mean()
    elsewhere = other[~at_border].mean() / one[~at_border].mean()
    return float(across / elsewhere)


def test_noise_belongs_to_places() -> None:
    whole = noise.field(7, 0, 3, 150, 200)
    assert torch.equal(whole[:, 60:131, 100:190], noise.field(7, 0, 3, 71, 90, 60, 100))
    assert abs(whole.mean()) < 0.02 and abs(whole.std() - 1) < 0.02
    assert not torch.equal(whole, noise.field(8, 0, 3, 150, 200))
    assert not torch.equal(whole, noise.field(7, 1, 3, 150, 200))


@pytest.mark.parametrize(("length", "tile", "overlap"), [(480, 128, 32), (272, 200, 33), (136, 72, 32), (1000, 96, 40)])
def test_plans_cover_the_frame_with_the_overlap_asked_for(length: int, tile: int, overlap: int) -> None:
    plan = tiling.cover(64, length, tile, overlap, 8)
    lefts = sorted(left for _, left in plan.origins)
    assert lefts[0] == 0 and lefts[-1] + plan.tile_width == length
    assert plan.tile_width <= tile and plan.tile_width % 8 == 0 and all(left % 8 == 0 for left in lefts)
    assert all(a + plan.tile_width - b >= overlap for a, b in zip(lefts, lefts[1:], strict=False))
    total = torch.zeros(1, plan.height, plan.width)
    for index, weight in enumerate(tiling.weights(plan, overlap)):
        tiling.crop(total, plan, index).add_(weight)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_the_anchor_brings_the_input_back() -> None:
    low_res = picture(24, 32)
    shifted = resize(low_res, (96, 128)) * 0.8 + 0.1
    back = resize(anchor(shifted, low_res, 5), (24, 32))
    assert 10 * torch.log10(1 / (back - low_res).square().mean()) > 40
    assert torch.equal(anchor(shifted, low_res, 0), shifted)


@pytest.mark.parametrize(
    ("size", "enlarged"),
    [((48, 64), (192, 256)), ((13, 12), (26, 24)), ((17, 33), (51, 99)), ((5, 9), (20, 36)), ((20, 30), (47, 65))],
)
def test_the_anchor_is_back_projection_round_by_round(size: tuple[int, int], enlarged: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    low_res, picture = (torch.rand(2, 3, *sides, generator=generator) for sides in (size, enlarged))
    expected = picture
    for rounds in range(4):
        torch.testing.assert_close(anchor(picture, low_res, rounds), expected, atol=5e-6, rtol=0)
        expected = expected + resize(low_res - resize(expected, size), enlarged)


def test_a_prompt_changes_the_picture_and_the_seed_too(make_engine: Callable[..., Upscaler]) -> None:
    source, place = picture(16, 16), Place(height=16, width=16)
    plain = enlarge(make_engine("tiny"), source, place)
    assert not torch.equal(plain, enlarge(make_engine("tiny", prompt="a harbour"), source, place))
    assert not torch.equal(plain, enlarge(make_engine("tiny", seed=1), source, place))
    assert not torch.equal(plain, enlarge(make_engine("tiny", noise_level=100), source, place))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc"])
def test_samplers_equal_diffusers_own(name: str, steps: int) -> None:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    from vidup.engines.solver import Step, solve, variance_preserving

    config = json.loads((MINI / "scheduler" / "scheduler_config.json").read_text())
    weights = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)) * 0.3
    start = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))

    def network(x: torch.Tensor, time: float) -> torch.Tensor:
        return torch.tanh(x @ weights) * (1 + time / 1000)

    def model(x: torch.Tensor, step: Step) -> torch.Tensor:
        return network(x, step.time)

    betas = {key: config[key] for key in ("beta_start", "beta_end", "beta_schedule", "prediction_type")}
    oracle: Any = {
        "ddim": lambda: DDIMScheduler.from_config(config),
        "dpmpp_2m": lambda: DPMSolverMultistepScheduler.from_config(betas, use_lu_lambdas=True),
        "unipc": lambda: UniPCMultistepScheduler.from_config(
            betas, use_exponential_sigmas=True, final_sigmas_type="zero"
        ),
    }[name]()
    oracle.set_timesteps(steps)
    x, found = start, variance_preserving(config, name, steps)
    for time, step in zip(oracle.timesteps, found, strict=True):
        assert abs(step.time - time) <= 1  # diffusers rounds a noise level to its timestep in two ways
        x = oracle.step(network(x, step.time), time, x, return_dict=False)[0]
    torch.testing.assert_close(solve(model, start, found), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc"])
def test_one_flow_in_two_scalings(sampler: str) -> None:
    """What keeps the variance and what lets it grow are one solver: v-prediction is that of Karras but for its sign."""
    from vidup.engines.solver import Step, solve, variance_exploding, variance_preserving

    betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
    weights = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.3
    start = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def network(x: torch.Tensor, step: Step) -> torch.Tensor:
        return torch.tanh(x @ weights / (1 + step.sigma))

    kept = variance_preserving({**betas, "prediction_type": "v_prediction"}, sampler, 12)
    grown, first = variance_exploding({**betas, "prediction_type": "sample"}, sampler, 12)
    one = solve(lambda x, step: -network(x, step), start, kept)
    other = solve(network, start * (first**2 + 1) ** 0.5, grown)
    assert (start - one).abs().max() > 0.1
    torch.testing.assert_close(one, other, atol=2e-6, rtol=0)


def test_the_baseline_takes_fewer_pictures_where_memory_is_short() -> None:
    engine = loaded(Settings(model="bicubic"), Runtime(device="cpu", max_memory="500M"))
    assert engine.choose(48, 64).batch == 4
    choice = engine.choose(540, 960)
    assert choice.batch < 4 and engine.planner.memory(choice, 540, 960) <= 500 * 2**20


@pytest.mark.parametrize("model", MODELS)
def test_the_scale_is_known_before_the_model_is_loaded(
    request: pytest.FixtureRequest, make_engine: Callable[..., Upscaler], model: str
) -> None:
    folders = {"tiny": "tiny_x4", "tiny_x2": "tiny_x2"}
    if model in folders:
        name = str(request.getfixturevalue(folders[model]))
    else:
        name = str(request.getfixturevalue("checkpoints")[model]) if model in SPANDREL else model
    assert native_scale(Settings(model=name)) == make_engine(model).engine.scale
    assert native_scale(Settings(model="bicubic", scale=1.5)) == 1.5


class TestCatalogue:
    def test_every_name_is_in_one_family(self) -> None:
        names = [name for one in FAMILIES for name in one.names]
        assert len(names) == len(set(names)) and {"x4", "x2", "mini", "nearest"} <= set(names)
        assert all(family(Settings(model=name)).names[name] for name in names)

    def test_a_model_is_recognised_by_what_it_is(self, tiny_x4: Path, tiny_x2: Path, tmp_path: Path) -> None:
        found = [family(Settings(model=str(path))).file for path in (tiny_x4, tiny_x2, tmp_path / "esrgan.pth")]
        assert found == ["x4", "x2", "checkpoint"]

    def test_another_pipeline_is_named(self, tiny_x4: Path, tmp_path: Path) -> None:
        (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
        for loads in (lambda settings: load(settings, CPU), native_scale):
            with pytest.raises(EngineError, match=r"is a FluxPipeline; vidup runs StableDiffusionUpscalePipeline, "):
                loads(Settings(model=str(tmp_path)))

    def test_a_hub_that_does_not_answer_is_no_guess(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from vidup.engines import hub

        def offline(*_: object, **__: object) -> None:
            raise OSError("no route to host")

        def not_cached(*_: object, **__: object) -> None:
            raise hub.LocalEntryNotFoundError("nothing")

        monkeypatch.setattr(hub.HfApi, "model_info", offline)
        monkeypatch.setattr(hub, "hf_hub_download", not_cached)
        with pytest.raises(EngineError, match=r"^model = 'someone/mirror': .* the hub \(no route to host\)"):
            native_scale(Settings(model="someone/mirror"))

    def test_the_identity_is_read_without_loading(self, tiny_x4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from vidup.engines import hub

        cpu = torch.device("cpu")
        monkeypatch.setattr(hub, "load_module", lambda *_: pytest.fail("a module was loaded"))
        assert identify(Settings(model="mini", dtype="float16"), cpu) != identify(
            Settings(model=str(tiny_x4), dtype="float16"), cpu
        )


class TestLoading:
    def test_a_file_of_another_kind(self, tmp_path: Path) -> None:
        (tmp_path / "model.bin").write_bytes(b"x")
        with pytest.raises(EngineError, match=r"another kind than \.safetensors"):
            load(Settings(model=str(tmp_path / "model.bin")), CPU)

    @pytest.mark.parametrize("model", ["bicubic", "tiny_x2"])
    def test_settings_that_a_model_does_not_read_are_told(
        self, model: str, make_engine: Callable[..., Upscaler], caplog: pytest.LogCaptureFixture
    ) -> None:
        make_engine(model)
        assert not caplog.records
        if model == "tiny_x2":
            with pytest.raises(EngineError, match=r"vae = 'x': .* has no use for it; leave it out"):
                make_engine(model, vae="x")
            make_engine(model, noise_level=0)
            assert not caplog.records
            make_engine(model, noise_level=200)
        else:
            make_engine(model, Runtime(device="cpu", offload=True), prompt="a boat")
        told = [record.message for record in caplog.records]
        assert (
            told
            == {
                "bicubic": ["prompt = 'a boat': has no effect with bicubic", "offload: has no effect with bicubic"],
                "tiny_x2": ["noise_level = 200: has no effect with the x2 upscaler"],
            }[model]
        )

    @pytest.mark.parametrize("name", ["model.pth", "model-ema.safetensors"])
    def test_a_mistyped_file_is_not_there(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / name
        for loads in (lambda settings: load(settings, CPU), native_scale):
            with pytest.raises(EngineError, match=rf"^model = '{path}': there is no such file"):
                loads(Settings(model=str(path)))

    def test_an_id_is_asked_for_before_it_is_fetched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A download tries for half a minute where there is no network, and prints each try."""
        from vidup.engines import hub

        def offline(*_: object, **__: object) -> None:
            raise OSError("no route to host")

        def fetched(*_: object, local_files_only: bool = False, **__: object) -> None:
            assert local_files_only
            raise hub.LocalEntryNotFoundError("nothing")

        monkeypatch.setattr(hub.HfApi, "model_info", offline)
        for download in ("snapshot_download", "hf_hub_download"):
            monkeypatch.setattr(hub, download, fetched)
        with pytest.raises(EngineError, match=r"someone/upscaler cannot be had from the hub \(no route to host\)"):
            load(Settings(model="someone/upscaler"), CPU)

    def test_what_is_loaded_in_inference_mode_can_be_compiled(self, tiny_x4: Path, tiny_x2: Path) -> None:
        for folder in (tiny_x4, tiny_x2):
            with torch.inference_mode():
                engine = load(Settings(model=str(folder), steps=2), CPU)
            assert not any(parameter.is_inference() for parameter in engine.unet.module.parameters())  # type: ignore[attr-defined]

    def test_a_folder_has_its_own_tokenizer(self, tiny_x4: Path) -> None:
        with pytest.raises(EngineError, match="tokenizer"):
            load(Settings(model=str(tiny_x4), tokenizer="elsewhere"), CPU)

    def test_the_half_variant_alone_is_enough(self, tiny_x4: Path, tmp_path: Path) -> None:
        from diffusers import UNet2DConditionModel

        folder = tmp_path / "half"
        shutil.copytree(tiny_x4, folder)
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float16)
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        unet.save_pretrained(folder / "unet", variant="fp16")
        place, source = Place(height=16, width=16), picture(16, 16)
        half = enlarge(loaded(Settings(model=str(folder), steps=2), CPU), source, place)
        full = enlarge(loaded(Settings(model=str(tiny_x4), steps=2), CPU), source, place)
        assert 0 < (half - full).abs().max() < 0.05

    @pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler", "model_index.json"])
    def test_a_missing_part_is_named(self, tiny_x4: Path, tmp_path: Path, part: str) -> None:
        folder = tmp_path / "model"
        shutil.copytree(tiny_x4, folder)
        path = folder / part
        path.unlink() if path.is_file() else shutil.rmtree(path)
        with pytest.raises(EngineError, match=part):
            load(Settings(model=str(folder)), CPU)

    def test_damaged_weights_are_named(self, tiny_x4: Path, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(tiny_x4, folder)
        (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
        with pytest.raises(EngineError, match="cannot be loaded"):
            load(Settings(model=str(folder)), CPU)

    def test_code_of_a_repository_is_not_run(self, tiny_x4: Path, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(tiny_x4, folder)
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"vae": ["os", "system"]}))
        with pytest.raises(EngineError, match="AutoencoderKL"):
            load(Settings(model=str(folder)), CPU)

    def test_a_hub_id_without_network_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        from vidup.engines import hub

        def offline(*_: object, **__: object) -> None:
            raise OSError("no route to host")

        def not_cached(*_: object, **__: object) -> None:
            raise hub.LocalEntryNotFoundError("nothing")

        monkeypatch.setattr(hub.HfApi, "model_info", offline)
        monkeypatch.setattr(hub, "snapshot_download", not_cached)
        with pytest.raises(EngineError, match=r"--preset mini"):
            load(Settings(), CPU)

    def test_the_hub_is_asked_for_no_more_than_is_needed(self, monkeypatch: pytest.MonkeyPatch, tiny_x4: Path) -> None:
        from vidup.engines import hub
        from vidup.engines.layout import files_of

        half = ["unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"]
        files = [*files_of(tiny_x4), *half, "x4-upscaler-ema.ckpt", "unet/diffusion_pytorch_model.bin", "README.md"]
        asked: dict[str, object] = {}

        def snapshot(repository: str, **options: object) -> str:
            if options.get("local_files_only"):
                raise hub.LocalEntryNotFoundError("not in the cache")
            asked.update(options, repository=repository)
            return str(tiny_x4)

        siblings = [SimpleNamespace(rfilename=name) for name in files]
        monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=siblings))
        monkeypatch.setattr(hub, "snapshot_download", snapshot)
        assert hub.locate("x4", "abc123", half=True) == tiny_x4
        wanted = asked["allow_patterns"]
        assert isinstance(wanted, list)
        assert asked["repository"] == HOMES["x4"] and asked["revision"] == "abc123"
        assert set(half) <= set(wanted) and "text_encoder/model.safetensors" in wanted
        assert not any(name.endswith((".ckpt", ".bin", ".md")) for name in wanted)
        assert "unet/diffusion_pytorch_model.safetensors" not in wanted


def test_a_complete_cache_is_taken_without_asking(monkeypatch: pytest.MonkeyPatch, tiny_x4: Path) -> None:
    from vidup.engines import hub

    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(tiny_x4))
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: pytest.fail("the hub was asked"))
    assert hub.locate("x4", None, half=False) == tiny_x4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_cpus_picture(tiny_x4: Path) -> None:
    source, place = picture(40, 56), Place(height=40, width=56)
    settings = {"model": str(tiny_x4), "steps": 4, "prompt": "a harbour"}
    expected = enlarge(loaded(Settings(**settings), CPU), source, place)
    for dtype, bound in (("float32", 1e-2), ("auto", 0.1)):
        engine = loaded(Settings(**settings, dtype=dtype), Runtime(device="cuda"))
        assert (enlarge(engine, source.cuda(), place).cpu() - expected).abs().max() < bound


@pytest.mark.network
@pytest.mark.skipif("VIDUP_TEST_NETWORK" not in os.environ, reason="set VIDUP_TEST_NETWORK=1 to fetch 1.7 GB")
def test_the_hub_has_the_full_model() -> None:
    engine = load(Settings(steps=1, dtype="float16"), CPU)
    assert engine.scale == 4


@pytest.mark.slow
def test_the_true_architecture_loads_and_runs(tmp_path: Path) -> None:
    """473,398,020 parameters with random weights, saved in the hub's layout: one tile of 64x64 on the CPU."""
    from conftest import save_layout

    cpu = torch.device("cpu")
    unet, vae = (make(cpu, torch.float32) for make in (architecture.random_unet, architecture.random_vae))
    assert sum(parameter.numel() for parameter in unet.parameters()) == 473_398_020
    assert sum(parameter.numel() for parameter in vae.parameters()) == 55_325_927
    save_layout(tmp_path, unet, vae, width=1024, layers=2, heads=16)
    del unet, vae
    engine = loaded(Settings(model=str(tmp_path), steps=1), CPU)
    result = enlarge(engine, picture(64, 64), Place(height=64, width=64))
    assert result.shape == (1, 3, 256, 256) and torch.isfinite(result).all()


def test_models_are_built_one_after_another(monkeypatch: pytest.MonkeyPatch):
    """The libraries make a model's dtype the process's default meanwhile: with two at once it would stay so."""
    from vidup.engines import hub

    overlapping, building = [], threading.Event()

    class Module(torch.nn.Module):
        config = SimpleNamespace()

        @classmethod
        def from_pretrained(cls, *_: Any, **__: Any) -> tuple[Any, dict[str, Any]]:
            overlapping.append(building.is_set())
            building.set()
            sleep(0.05)
            building.clear()
            return cls(), {"missing_keys": []}

    monkeypatch.setattr(hub.claims, "check_config", lambda *_: None)
    load_one = partial(hub.load_module, Module, MINI, "unet", torch.bfloat16, torch.device("cpu"))
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(load_one) for _ in range(2)]:
            future.result()
    assert overlapping == [False, False]


def test_a_default_dtype_of_the_process_changes_no_picture():
    """Another thread may be building a model of half precision; Law 1."""
    clip = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    before = torch.get_default_dtype()
    sides = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            sides.append((flaws.measure(clip), tiling.weights(tiling.cover(96, 160, 80, 32, 8), 32)))
        finally:
            torch.set_default_dtype(before)
    assert sides[0][0] == sides[1][0] and torch.equal(sides[0][1], sides[1][1])
