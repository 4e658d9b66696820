"""The mini checkpoint: its autoencoder, its pictures, its training, and what is shipped."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vidup import Settings, Upscaler
from vidup.comparison import psnr
from vidup.engines.detail import DetailAutoencoder, down, up
from vidup.mini import CHECKPOINT
from vidup.mini.crops import Crops, make_pictures
from vidup.mini.degrade import degraded, reduced
from vidup.mini.measure import ANCHOR, Figures, detail_gain, enlarged, figures, table
from vidup.mini.model import load_checkpoint, make_unet, save_checkpoint
from vidup.mini.muon import orthogonalised
from vidup.mini.pictures import MIX, picture
from vidup.mini.scenes import SCENES
from vidup.mini.train import FIGURES_BEGIN, FIGURES_END, Recipe, _energy_error, learning_rate, train, write_card
from vidup.picture.resample import anchor

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers and transformers warn of their own affairs


@pytest.fixture(scope="module")
def autoencoder() -> DetailAutoencoder:
    made = np.stack([picture(seed, 64) for seed in range(4)])
    vae = DetailAutoencoder()
    vae.fit(torch.from_numpy(made).permute(0, 3, 1, 2).float() / 127.5 - 1)
    return vae


def test_autoencoder_gives_back_the_detail(autoencoder):
    x = torch.rand(2, 3, 40, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = autoencoder.encode(x - up(down(x)))
    assert z.shape == (2, 48, 10, 6)
    (detail,) = autoencoder.decode(z, return_dict=False)
    torch.testing.assert_close(detail, x - up(down(x)), atol=2e-5, rtol=0)


def test_autoencoder_whitens(autoencoder):
    made = torch.from_numpy(np.stack([picture(seed, 64) for seed in range(4)])).permute(0, 3, 1, 2).float() / 127.5 - 1
    values = autoencoder.encode(made - up(down(made))).transpose(0, 1).flatten(1)
    floored = autoencoder.std <= 0.01001
    assert torch.allclose(values.mean(1), torch.zeros(48), atol=1e-3)
    torch.testing.assert_close(values.std(1)[~floored], torch.ones(int((~floored).sum())), atol=1e-2, rtol=0)


def test_autoencoder_survives_the_disk(autoencoder, tmp_path):
    autoencoder.save_pretrained(tmp_path)
    back = DetailAutoencoder.from_pretrained(tmp_path)
    assert back.config.residual and back.config.latent_channels == 48 and back.config.scaling_factor == 1.0
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in autoencoder.state_dict().items())


def test_pictures_are_made_from_their_seed_alone():
    first, again, other = picture(5, 64), picture(5, 64), picture(6, 64)
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_pictures_are_varied_and_mostly_smooth():
    made = np.stack([picture(seed, 96) for seed in range(24)]).astype(float)
    brightness, contrast = made.mean((1, 2, 3)), made.std((1, 2, 3))
    assert brightness.std() > 20
    assert contrast.max() > 3 * contrast.min()
    steps = np.abs(np.diff(made, axis=2)).mean(-1)
    assert np.median(steps) < 4
    assert np.quantile(steps, 0.995) > 25  # and yet there are edges


def test_every_kind_of_scene_is_in_the_mix():
    assert set(MIX) == {*SCENES, "solids"}
    assert sum(MIX.values()) == pytest.approx(1)


@pytest.mark.parametrize("kernel", ["bicubic", "area", "lanczos"])
def test_reduction_keeps_what_is_flat(kernel):
    flat = np.full((16, 24, 3), 77, np.uint8)
    assert np.array_equal(reduced(flat, kernel), np.full((4, 6, 3), 77, np.uint8))


def test_degradation_is_repeatable():
    source = picture(1, 64)
    (one, far), (two, _) = (degraded(np.random.default_rng(3), source) for _ in range(2))
    assert one.shape == (16, 16, 3) and np.array_equal(one, two) and far >= 0


def test_anchor_makes_the_result_reduced_the_input():
    low = torch.from_numpy(reduced(picture(2, 128))).permute(2, 0, 1)[None].float() / 255
    shifted = up(low) + 0.1
    assert psnr(low, down(shifted)) == pytest.approx(20, abs=0.5)
    assert psnr(low, down(anchor(shifted, low, ANCHOR))) > 45


def test_orthogonalised_has_even_singular_values():
    matrix = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
    for m in (matrix, matrix.T):
        values = torch.linalg.svdvals(orthogonalised(m))
        assert values.min() > 0.5 and values.max() < 1.3


def test_unet_takes_a_prompt_and_ignores_it():
    unet = make_unet((16, 16)).eval()
    x = torch.randn(1, 51, 10, 14, generator=torch.Generator().manual_seed(0))
    level = torch.zeros(1, dtype=torch.long)
    with torch.inference_mode():
        one = unet(x, 999, torch.zeros(1, 77, 32), class_labels=level).sample
        two = unet(x, 999, torch.ones(1, 77, 32), class_labels=level).sample
        other_level = unet(x, 999, torch.ones(1, 77, 32), class_labels=level + 100).sample
    assert one.shape == (1, 48, 10, 14)
    assert torch.equal(one, two)
    assert not torch.equal(one, other_level)


def test_learning_rate_rises_stays_and_falls():
    recipe = Recipe(10000, 1, 8, 1.0, 0.3, 0)
    assert learning_rate(recipe, 0) <= 0.01
    assert learning_rate(recipe, 300) == learning_rate(recipe, 6999) == 1.0
    assert learning_rate(recipe, 8500) == pytest.approx(0.5)
    assert learning_rate(recipe, 9999) == pytest.approx(0.01)


def test_a_continued_training_equals_an_unbroken_one(tmp_path, monkeypatch):
    monkeypatch.setattr("vidup.mini.train.make_unet", lambda: make_unet((16, 16)))
    ends = []
    for name, stops in (("unbroken", (3,)), ("continued", (2, 3))):
        work = tmp_path / name
        (work / "pictures").mkdir(parents=True)
        for seed in range(3):
            _small_picture(work / "pictures", seed)
        make_pictures(work / "pictures", 3, [], 1)  # all are there: none is made
        for stop in stops:
            # The schedule of three iterations in both, as when a run is killed.
            recipe = Recipe(3, 2, 8, 1e-3, 0.0, 0)
            monkeypatch.setattr("vidup.mini.train.learning_rate", lambda recipe, iteration: 1e-3)
            recipe.iterations = stop
            training = train(recipe, work, torch.device("cpu"), save_every=1, validate=False)
        ends.append(training)
    assert ends[0].iteration == ends[1].iteration == 3
    for kind in ("unet", "average"):
        one, two = (getattr(end, kind).state_dict() for end in ends)
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_crops_of_photographs_and_their_footage_show_the_same_place(tmp_path, monkeypatch):
    monkeypatch.setattr("vidup.mini.crops.VERSIONS", 2)
    monkeypatch.setattr("vidup.mini.crops.FOOTAGE", 1.0)
    Image.fromarray(picture(5, 264)).save(tmp_path / "lawn.png")
    make_pictures(tmp_path / "pictures", 0, [tmp_path / "lawn.png"], 1)
    assert [path.name for path in sorted((tmp_path / "pictures").iterdir())] == [
        "photo-lawn-100.npy",
        "photo-lawn-100.npz",
    ]
    batch = Crops(tmp_path / "pictures", 0, 4, 16).batch(0)
    assert batch.truth.shape == (4, 3, 64, 64) and batch.low.shape == (4, 3, 16, 16)
    for truth, low, distance in zip(batch.truth, batch.low, batch.distances, strict=True):
        off = 127.5 * (down(truth[None]) - low).square().mean().sqrt()
        assert off < 1.8 * distance + 4  # another place would be much further away


def test_the_error_in_energy_is_of_each_picture():
    truth = torch.rand(2, 3, 16, 16)
    errors = _energy_error(truth, torch.full_like(truth, 0.5))
    assert errors.shape == (2,) and (errors > 0).all() and _energy_error(truth, truth).max() == 0


def _small_picture(folder, seed):
    np.save(folder / f"{seed:06d}.npy", picture(seed, 64))


def test_detail_gain_amplifies_what_is_too_faint(autoencoder, monkeypatch):
    truth = torch.from_numpy(picture(3, 64)).permute(2, 0, 1)
    for share, expected in ((1 / 1.2, 1.2), (1.0, 1.0)):

        def faint(unet, vae, low, way, share=share):
            return up(low) + share * (truth[None].float() / 255 - up(low))

        monkeypatch.setattr("vidup.mini.measure.enlarged", faint)
        assert detail_gain(make_unet((16, 16)), autoencoder, [truth], ("ddim", 2)) == expected


def test_card_takes_the_figures_between_its_marks(tmp_path):
    card = tmp_path / "README.md"
    card.write_text(f"top\n{FIGURES_BEGIN}\nold\n{FIGURES_END}\nbottom\n")
    rows = {"clip": {"bicubic": Figures(30.0, 0.9, 0.1, 0.7, 46.0)}}
    for _ in range(2):
        write_card(card, list(table(rows)))
    text = card.read_text()
    assert text.startswith("top\n") and text.endswith("\nbottom\n")
    assert text.count("| clip | bicubic | 30.00 | 0.9000 | 0.1000 | 0.70 | 46.0 |") == 1
    assert "old" not in text


def test_saved_checkpoint_has_the_upscalers_layout(autoencoder, tmp_path):
    save_checkpoint(tmp_path / "checkpoint", make_unet((16, 16)), autoencoder)
    check_layout(tmp_path / "checkpoint")


def test_shipped_checkpoint():
    check_layout(CHECKPOINT)
    files = [path for path in CHECKPOINT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    assert not [path for path in files if path.suffix not in {".json", ".txt", ".safetensors"}]


def check_layout(folder):
    import diffusers
    import transformers

    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionUpscalePipeline"
    assert index["max_noise_level"] == 350
    assert index["vae"] == ["vidup.engines.detail", "DetailAutoencoder"]
    for part in ("unet", "scheduler", "low_res_scheduler"):
        assert getattr(diffusers, index[part][1]).from_pretrained(folder / part) is not None
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")
    tokens = tokenizer("A café, at night", padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    assert tokens.input_ids.shape == (1, 77)
    assert encoder(tokens.input_ids.clone()).last_hidden_state.shape == (1, 77, 32)
    assert DetailAutoencoder.from_pretrained(folder / "vae").config.residual


def test_shipped_checkpoint_beats_bicubic_and_repeats_itself():
    unet, vae = load_checkpoint(CHECKPOINT)
    truth = torch.from_numpy(picture(10_000_003, 192)).permute(2, 0, 1)
    low = torch.from_numpy(reduced(truth.permute(1, 2, 0).numpy())).permute(2, 0, 1)[None].float() / 255
    exact = truth[None].float() / 255
    result, again = (anchor(enlarged(unet, vae, low, ("ddim", 2)), low, ANCHOR) for _ in range(2))
    assert torch.equal(result, again)
    assert result.shape == exact.shape
    mini, bicubic = figures(exact, result, low), figures(exact, up(low), low)
    assert mini.psnr > bicubic.psnr
    assert mini.gmsd < bicubic.gmsd
    assert mini.fidelity > 45


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="this CPU has no units for bfloat16")
def test_bfloat16_is_within_a_code_of_float32():
    low = torch.from_numpy(reduced(picture(8, 128))).permute(2, 0, 1)[None].float() / 255
    fast, exact = (Upscaler(Settings(model="mini", temporal="off", dtype=dtype)) for dtype in ("auto", "float32"))
    assert fast.engine.dtype == torch.bfloat16
    assert (fast(low) - exact(low)).abs().max() < 2 / 255
