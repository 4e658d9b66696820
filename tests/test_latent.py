"""The x2 latent upscaler against an oracle that nobody here wrote: diffusers' own pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import enlarge, loaded
from torch.nn import functional

from vidup.config import Runtime, Settings
from vidup.engines import HOMES, Choice, Place, compiling
from vidup.engines.diffusion import LATENTS
from vidup.engines.solver import Step, solve, variance_exploding
from vidup.engines.x2 import LatentX2
from vidup.errors import EngineError
from vidup.picture import noise

CPU = Runtime(device="cpu")
STEPS, SEED = 4, 3


def picture(height: int, width: int, count: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return functional.interpolate(torch.rand(count, 3, 9, 9, generator=generator), (height, width), mode="bilinear")


def make(folder: Path, runtime: Runtime = CPU, **options: Any) -> Any:
    settings: dict[str, Any] = {"model": str(folder), "steps": STEPS, "seed": SEED, "sampler": "ddim", **options}
    upscaler = loaded(Settings(**settings), runtime)
    assert isinstance(upscaler.engine, LatentX2)
    return upscaler


@pytest.mark.parametrize(
    ("prompt", "negative", "scale"), [("", "", 0.0), ("a boat", "", 1.0), ("a boat", "", 6.0), ("a boat", "fog", 4.0)]
)
@pytest.mark.parametrize(("height", "width"), [(64, 128), (128, 64)])
def test_equals_the_stock_pipeline(
    tiny_x2: Path, monkeypatch: pytest.MonkeyPatch, prompt: str, negative: str, scale: float, height: int, width: int
) -> None:
    from diffusers import StableDiffusionLatentUpscalePipeline
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_latent_upscale as stock

    # Its draw from the encoder's posterior is the one thing that ours does otherwise.
    monkeypatch.setattr(stock, "retrieve_latents", lambda encoded, generator: encoded.latent_dist.mode())
    pipeline = StableDiffusionLatentUpscalePipeline.from_pretrained(tiny_x2)
    pipeline.set_progress_bar_config(disable=True)
    source = picture(height, width)
    expected = pipeline(
        prompt,
        image=source,
        negative_prompt=negative,
        num_inference_steps=STEPS,
        guidance_scale=scale,
        latents=noise.field(SEED, LATENTS, 4, height // 4, width // 4)[None],
        output_type="np",
    ).images[0]

    engine = make(tiny_x2, prompt=prompt, negative_prompt=negative, guidance_scale=scale, dtype="float32")
    assert engine.engine.guided is (scale > 1)
    result = enlarge(engine, source, Place(height=height, width=width))[0].permute(1, 2, 0).numpy()
    assert expected.std() > 0.02  # a flat picture would match for nothing
    assert np.abs(result - expected).max() < 1e-3


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_the_second_order_solver_is_diffusers(steps: int) -> None:
    """In variance-preserving terms, where diffusers has DPM-Solver++: z = x / sqrt(sigma^2 + 1)."""
    from diffusers import DPMSolverMultistepScheduler

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    generator = torch.Generator().manual_seed(0)
    weights, start = torch.randn(8, 8, generator=generator) * 0.3, torch.randn(4, 8, generator=generator)

    def network(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.tanh(x @ weights / (1 + sigma))

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        """Table 1 of Karras et al. 2022, with data of variance 1."""
        return x / (sigma**2 + 1) + sigma / (sigma**2 + 1) ** 0.5 * network(x / (sigma**2 + 1) ** 0.5, sigma)

    def model(x: torch.Tensor, step: Step) -> torch.Tensor:
        return network(x, step.sigma)

    prepared, first = variance_exploding({**betas, "prediction_type": "sample"}, "dpmpp_2m", steps)
    x = solve(model, first * start, prepared)

    oracle = DPMSolverMultistepScheduler(**betas, prediction_type="sample", use_lu_lambdas=True)
    oracle.set_timesteps(steps)
    z = first * start / (first**2 + 1) ** 0.5
    for index, time in enumerate(oracle.timesteps):
        sigma = float(oracle.sigmas[index])
        z = oracle.step(denoise(z * (sigma**2 + 1) ** 0.5, sigma), time, z, return_dict=False)[0]
    torch.testing.assert_close(x, z, atol=1e-4, rtol=1e-4)


def test_both_solvers_follow_one_flow(tiny_x2: Path) -> None:
    source, place = picture(64, 64), Place(height=64, width=64)
    euler = enlarge(make(tiny_x2, steps=40), source, place)
    second = enlarge(make(tiny_x2, steps=40, sampler="dpmpp_2m"), source, place)
    coarse = enlarge(make(tiny_x2, steps=3), source, place)
    assert (euler - second).square().mean() < (euler - coarse).square().mean() / 4


def test_tiles_keep_to_the_whole_frame(tiny_x2: Path) -> None:
    source, place = picture(192, 320), Place(height=192, width=320)
    whole, tiled = make(tiny_x2), make(tiny_x2, tile=192)
    plan = tiled.planner.cut(tiled.choose(192, 320), 192, 320)
    assert len(plan.origins) == 2 and max(plan.tile_height, plan.tile_width) <= 192
    one, other = enlarge(whole, source, place), enlarge(tiled, source, place)
    assert 10 * torch.log10(1 / (one - other).square().mean()) > 30
    # No seam: across the edges of tiles the steps from pixel to pixel are those of the whole frame.
    edges = sorted({2 * (left + side) for _, left in plan.origins for side in (0, plan.tile_width)} - {0, 640})
    at = torch.tensor([edge - 1 for edge in edges])
    across, usual = (p.diff(dim=-1).abs().mean((0, 1, 2)) for p in (other, one))
    assert (across[at] / usual[at] < 1.25).all()


def test_batches_and_company_change_nothing(tiny_x2: Path) -> None:
    clip, place = picture(64, 256, count=3), Place(height=64, width=256)
    one = enlarge(make(tiny_x2, tile=128), clip, place)
    for batch in (2, 4):
        many = enlarge(make(tiny_x2, Runtime(device="cpu", batch=batch), tile=128), clip, place)
        assert (one - many).abs().max() * 255 < 1


def test_noise_belongs_to_places(tiny_x2: Path) -> None:
    engine, source = make(tiny_x2), picture(64, 64)
    here = enlarge(engine, source, Place(height=64, width=64))
    there = enlarge(engine, source, Place(top=64, left=128, height=192, width=256))
    assert torch.equal(here, enlarge(engine, source, Place(height=64, width=64)))
    assert not torch.equal(here, there)
    assert not torch.equal(here, enlarge(make(tiny_x2, seed=4), source, Place(height=64, width=64)))


def test_guidance_holds_for_a_share_of_the_steps(tiny_x2: Path) -> None:
    source, place = picture(64, 64), Place(height=64, width=64)
    guided = {"prompt": "a boat", "guidance_scale": 7.0}
    plain = enlarge(make(tiny_x2, prompt="a boat", guidance_scale=1.0), source, place)
    never = enlarge(make(tiny_x2, **guided, guidance_start=1.0), source, place)
    some = enlarge(make(tiny_x2, **guided, guidance_end=0.5), source, place)
    always = enlarge(make(tiny_x2, **guided), source, place)
    torch.testing.assert_close(never, plain, atol=1e-5, rtol=0)
    assert not torch.equal(some, plain) and not torch.equal(some, always)


def test_the_preset_is_the_authors_way() -> None:
    settings = Settings.preset("x2")
    assert (settings.model, settings.steps, settings.sampler) == ("x2", 20, "ddim")
    assert settings.guidance_scale <= 1


def test_half_precision_stays_near(tiny_x2: Path) -> None:
    source, place = picture(64, 64), Place(height=64, width=64)
    full, half = (enlarge(make(tiny_x2, dtype=name), source, place) for name in ("float32", "bfloat16"))
    assert 0 < (full - half).abs().max() < 0.1


def test_offload_changes_nothing_but_the_memory(tiny_x2: Path) -> None:
    source, place = picture(64, 64), Place(height=64, width=64)
    here, moved = make(tiny_x2), make(tiny_x2, Runtime(device="cpu", offload=True))
    assert torch.equal(enlarge(here, source, place), enlarge(moved, source, place))
    assert moved.planner.memory(Choice(1, 0), 64, 64) < here.planner.memory(Choice(1, 0), 64, 64)


def test_a_large_frame_is_decoded_in_the_room_that_there_is(tiny_x2: Path) -> None:
    free = make(tiny_x2, temporal="off")
    need = free.planner.memory(Choice(1, 0), 2160, 3840)
    tight = make(tiny_x2, Runtime(device="cpu", max_memory=str(need * 4 // 5)), temporal="off")
    choice = tight.choose(2160, 3840)
    assert choice.tile == 0 and choice.keep < 8 and tight.planner.memory(choice, 2160, 3840) <= need * 4 // 5

    source = picture(128, 192)
    whole = enlarge(free, source)
    for keep in (1, 2, 4):
        free.choose(128, 192, Choice(1, 0, keep))
        assert (enlarge(free, source) - whole).abs().max() < 1e-4


class TestErrors:
    def test_settings_that_it_does_not_know(self, tiny_x2: Path) -> None:
        for options in ({"vae": "x"}, {"tokenizer": "x"}, {"tile": 80}, {"steps": 1000, "revision": "abc"}):
            with pytest.raises(EngineError, match=next(reversed(options))):
                make(tiny_x2, **options)

    def test_a_missing_part_is_named(self, tiny_x2: Path, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(tiny_x2, folder)
        shutil.rmtree(folder / "unet")
        with pytest.raises(EngineError, match=r"unet.*sd-x2-latent-upscaler"):
            make(folder)

    def test_another_unet_is_refused(self, tiny_x2: Path, tiny_x4: Path, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(tiny_x2, folder)
        shutil.rmtree(folder / "unet")
        shutil.copytree(tiny_x4 / "unet", folder / "unet")
        with pytest.raises(EngineError, match="is no x2 latent upscaler"):
            make(folder)

    def test_another_prediction_is_refused(self, tiny_x2: Path, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(tiny_x2, folder)
        path = folder / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "epsilon"}))
        with pytest.raises(EngineError, match="prediction_type"):
            make(folder)

    def test_more_steps_than_timesteps(self, tiny_x2: Path, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(tiny_x2, folder)
        path = folder / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_train_timesteps": 3}))
        with pytest.raises(EngineError, match="steps = 4"):
            make(folder)


def test_the_name_and_the_hub_id_stand_for_it(monkeypatch: pytest.MonkeyPatch, tiny_x2: Path) -> None:
    from vidup.engines import hub

    asked = []

    def snapshot(repository: str, **_: object) -> str:
        asked.append(repository)
        return str(tiny_x2)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: str(tiny_x2 / "model_index.json"))
    for name in ("x2", HOMES["x2"], "someone/mirror"):
        engine = loaded(Settings(model=name, steps=1), CPU).engine
        assert isinstance(engine, LatentX2) and engine.scale == 2
    assert asked == [HOMES["x2"], HOMES["x2"], "someone/mirror"]


def test_identity_is_that_of_the_weights(tiny_x2: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "elsewhere"
    shutil.copytree(tiny_x2, folder)
    identity = make(tiny_x2).engine.identity
    assert make(folder, seed=9, steps=1).engine.identity == identity
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.bias"][0] += 1
    save_file(weights, path, metadata={"format": "pt"})
    assert make(folder).engine.identity != identity


def test_compiled_it_gives_the_same_picture(tiny_x2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backend that only runs the graph: what is checked is that there is one a size, and how it is called."""
    graphs: list[Any] = []

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(inputs)
        return graph

    options = {"backend": counted, "fullgraph": True, "dynamic": False}
    monkeypatch.setattr(compiling, "compiler", lambda whole=True: options)
    monkeypatch.setattr("vidup.engines.vae.compiled_or_not", lambda function: function)
    torch._dynamo.reset()
    usual, engine = make(tiny_x2, steps=2), make(tiny_x2, Runtime(device="cpu", compile="on"), steps=2)
    assert engine.compiles
    for made, source in enumerate((picture(64, 64), picture(64, 128)), 1):
        for clip in (source, source.flip(-1)):
            torch.testing.assert_close(enlarge(engine, clip), enlarge(usual, clip), atol=1e-4, rtol=0)
            assert len(graphs) == made
    assert engine.engine.unet.run.active
