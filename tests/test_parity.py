"""Our loop against an oracle that nobody here wrote: diffusers' own pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import enlarge, loaded
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from vidup.config import Runtime, Settings
from vidup.engines import Choice, Place, identify, native_scale
from vidup.engines.diffusion import LATENTS, LOW_RES
from vidup.errors import EngineError
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
    low_res_noise = noise.field(SEED, LOW_RES, 3, height, width)[None]
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
        latents=noise.field(SEED, LATENTS, 4, height, width)[None],
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
    assert engine.vae.module.config.scaling_factor == stock.vae.config.scaling_factor == 0.08333


@pytest.fixture(scope="module")
def distilled(tiny_x4: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    shutil.copytree(tiny_x4, folder := tmp_path_factory.mktemp("distilled") / "model")
    for part in ("unet", "vae", "low_res_scheduler", "scheduler"):
        shutil.rmtree(folder / part)
    config = UNet2DConditionModel.load_config(tiny_x4, subfolder="unet")
    UNet2DConditionModel.from_config({**config, "num_class_embeds": None}).save_pretrained(folder / "unet")
    DDIMScheduler(
        beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear", prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="trailing",
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    index = json.loads((tiny_x4 / "model_index.json").read_text())
    index |= {"_class_name": "StreamDiffVSRPipeline", "vae": [None, "TemporalAutoencoderTiny"]}
    del index["low_res_scheduler"], index["max_noise_level"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    widths = {f"{side}_block_out_channels": (8, 8, 8) for side in ("encoder", "decoder")}
    tiny = AutoencoderTiny(**widths, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1))
    tiny.save_pretrained(folder := tmp_path_factory.mktemp("tiny"))
    return folder


class TestDistilled:
    """An x4 upscaler of four steps, as Stream-DiffVSR: no noise level, no guidance, and no noise on the input."""

    def test_it_runs_its_own_four_timesteps(
        self, distilled: Path, decoder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        upscaler = loaded(Settings(model=str(distilled), vae=str(decoder), seed=SEED))
        engine, picture = upscaler.engine, torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
        assert [step.time for step in engine.steps] == [999, 749, 499, 249]
        assert not engine.guided and not caplog.records
        unet = UNet2DConditionModel.from_pretrained(distilled, subfolder="unet").eval()
        vae = AutoencoderTiny.from_pretrained(decoder).eval()
        text = CLIPTextModel.from_pretrained(distilled, subfolder="text_encoder").eval()
        scheduler = DDIMScheduler.from_pretrained(distilled, subfolder="scheduler")
        scheduler.set_timesteps(4)
        tokens = CLIPTokenizer.from_pretrained(distilled, subfolder="tokenizer")
        ids = tokens("", padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.inference_mode():
            embedding, x = text(ids)[0], noise.field(SEED, LATENTS, 4, 32, 48)[None]
            for time in scheduler.timesteps:
                answer = unet(torch.cat([x, picture * 2 - 1], 1), time, embedding).sample
                x = scheduler.step(answer, time, x).prev_sample
            expected = (vae.decode(x).sample / 2 + 0.5).clamp(0, 1)
        assert expected.std() > 0.02
        torch.testing.assert_close(enlarge(upscaler, picture), expected, atol=1e-3, rtol=0)

    def test_what_it_does_not_know_is_told(
        self, distilled: Path, decoder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        upscaler = loaded(
            Settings(model=str(distilled), vae=str(decoder), steps=8, noise_level=100, guidance_scale=4.0)
        )
        assert len(upscaler.engine.steps) == 4
        told = [line.partition(" = ")[0] for line in caplog.messages if "has no effect with a distilled model" in line]
        assert told == ["steps", "noise_level", "guidance_scale"]

    def test_it_is_in_the_catalogue_and_a_tiny_decoder_takes_the_place_of_its_own(
        self, distilled: Path, decoder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def snapshot(repository: str, **_: object) -> str:
            asked.append(repository)
            return str(decoder if "taesd" in repository else distilled)

        monkeypatch.setattr("vidup.engines.hub.snapshot_download", snapshot)
        monkeypatch.setattr("vidup.engines.hub.hf_hub_download", lambda *_, **__: str(distilled / "model_index.json"))
        settings = Settings(model="Jamichsu/Stream-DiffVSR")
        assert native_scale(settings) == 4
        engine = loaded(settings).engine
        assert set(asked) == {"Jamichsu/Stream-DiffVSR", "madebyollin/taesd-x4-upscaler"}
        assert engine.identity == identify(settings, torch.device("cpu")) and "+" in engine.identity
        assert engine.needs.window > 0 and engine.flops(32, 48, Choice(1, 0))[0] > 0

    def test_another_unet_is_refused(self, distilled: Path, tiny_x4: Path, tmp_path: Path) -> None:
        shutil.copytree(distilled, folder := tmp_path / "model")
        shutil.rmtree(folder / "unet")
        shutil.copytree(tiny_x4 / "unet", folder / "unet")
        with pytest.raises(EngineError, match=r"is no distilled x4 upscaler: .* 1000 noise levels"):
            loaded(Settings(model=str(folder)))
        (folder / "scheduler" / "scheduler_config.json").unlink()
        with pytest.raises(EngineError, match=r"lacks scheduler/scheduler_config\.json; .* Jamichsu/Stream-DiffVSR"):
            loaded(Settings(model=str(folder)))
