"""Our loop against an oracle that nobody here wrote: diffusers' own pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import enlarge, loaded

from vidup.config import Runtime, Settings
from vidup.engines import Place
from vidup.engines.x4 import _LATENTS, _LOW_RES
from vidup.picture import noise

STEPS, LEVEL, SEED = 5, 20, 3


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (64, 40)])
def test_equals_the_stock_pipeline(
    tiny_x4: Path, monkeypatch: pytest.MonkeyPatch, guided: bool, height: int, width: int
) -> None:
    from diffusers import StableDiffusionUpscalePipeline
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_upscale as stock

    prompt, scale = ("a boat at sea", 6.0) if guided else ("", 1.0)
    low_res_noise = noise.field(SEED, _LOW_RES, 3, height, width)[None]
    monkeypatch.setattr(stock, "randn_tensor", lambda *_, **__: low_res_noise)
    picture = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    pipeline = StableDiffusionUpscalePipeline.from_pretrained(tiny_x4)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        prompt,
        image=picture,
        num_inference_steps=STEPS,
        guidance_scale=scale,
        noise_level=LEVEL,
        latents=noise.field(SEED, _LATENTS, 4, height, width)[None],
        output_type="np",
    ).images[0]

    settings = Settings(
        model=str(tiny_x4),
        sampler="ddim",
        steps=STEPS,
        noise_level=LEVEL,
        seed=SEED,
        prompt=prompt,
        guidance_scale=scale,
        dtype="float32",
        anchor=0,
    )
    engine = loaded(settings, Runtime(device="cpu"))
    assert engine.engine.guided is guided
    result = enlarge(engine, picture, Place(height=height, width=width))[0].permute(1, 2, 0).numpy()
    assert expected.std() > 0.05  # a flat picture would match for nothing
    assert np.abs(result - expected).max() < 1e-3


def test_equal_prompts_need_no_guidance(tiny_x4: Path) -> None:
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    place = Place(height=16, width=16)
    common = {"model": str(tiny_x4), "steps": 3, "prompt": "sea", "negative_prompt": "sea"}
    skipped = loaded(Settings(**common, guidance_scale=9.0), Runtime(device="cpu"))
    plain = loaded(Settings(**common, guidance_scale=1.0), Runtime(device="cpu"))
    assert not skipped.engine.guided
    assert torch.equal(enlarge(skipped, picture, place), enlarge(plain, picture, place))


@pytest.mark.parametrize("said", [None, 0.18215])
def test_the_vaes_scaling_factor_is_the_stock_pipelines_whatever_its_file_says(
    tiny_x4: Path, tmp_path: Path, said: float | None
) -> None:
    from diffusers import StableDiffusionUpscalePipeline

    shutil.copytree(tiny_x4, folder := tmp_path / "model")
    path = folder / "vae" / "config.json"
    config = json.loads(path.read_text())
    del config["scaling_factor"]
    path.write_text(json.dumps(config if said is None else {**config, "scaling_factor": said}))
    with pytest.warns(FutureWarning, match="scaling_factor"):
        stock = StableDiffusionUpscalePipeline.from_pretrained(folder)
    engine = loaded(Settings(model=str(folder), steps=1), Runtime(device="cpu")).engine
    assert engine.vae.config.scaling_factor == stock.vae.config.scaling_factor == 0.08333
