"""What overflows is computed in a precision of more range, and what is no number at all is an error: never black."""

from __future__ import annotations

import copy
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import loaded
from safetensors.torch import load_file, save_file

from vidup import Frame, Runtime, Settings, Upscaler
from vidup.engines import architecture
from vidup.engines.finite import clamped, is_finite
from vidup.engines.vae import Vae
from vidup.errors import EngineError
from vidup.frame import Color

VAE = "vae/diffusion_pytorch_model.safetensors"


def changed(folder: Path, source: Path, file: str, name: str, factor: float) -> Path:
    """A copy of a model with one of its weights multiplied: behind it a group norm makes up for that."""
    shutil.copytree(source, folder)
    weights = load_file(folder / file)
    weights[name] = weights[name] * factor
    save_file(weights, folder / file, metadata={"format": "pt"})
    return folder


@pytest.fixture
def overflowing(tiny_x4: Path, tmp_path: Path) -> Path:
    return changed(tmp_path / "model", tiny_x4, VAE, "decoder.conv_in.weight", 1e9)


def frames(count: int) -> list[Frame]:
    """Noise of large pixels that moves by one of them."""
    made = np.random.default_rng(0).integers(40, 200, (6, 16), np.uint8).repeat(4, 0).repeat(4, 1)
    found = []
    for index in range(count):
        luma = np.ascontiguousarray(made[:, 4 * index : 4 * index + 32])
        planes = (luma, *(np.full((12, 16), 128, np.uint8),) * 2)
        found.append(Frame(planes, "yuv420p", Color(1, 1, 1, False), index, 1, Fraction(1, 25)))
    return found


def test_a_clip_that_overflows_is_made_with_more_range_and_that_is_told_once(
    overflowing: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def made(dtype: Any) -> list[np.ndarray]:
        settings = Settings(model=str(overflowing), steps=1, dtype=dtype, noise_level=20)
        upscaler = Upscaler(settings, Runtime(device="cpu"))
        assert upscaler.settings.temporal == "relay"
        return [one.planes[0] for one in upscaler.frames(frames(3))]

    expected = made("float32")
    assert not caplog.records and all(one.std() > 1 for one in expected)
    for one, other in zip(made("float16"), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    (told,) = caplog.messages
    assert told == "float16 overflows in the model for some pictures: those are recomputed in float32"


def test_what_carries_goes_back_to_before_the_clip_that_failed(
    tiny_x4: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The second clip alone: what the first one left is carried on."""
    settings = Settings(model=str(tiny_x4), steps=1, dtype="float16")
    upscaler = loaded(settings)
    wide = upscaler.engine.wider
    assert wide is not None and wide.dtype == torch.float32 and wide.wider is None
    decode, calls = Vae.__call__, list[int]()

    def failing(self: Vae, *arguments: Any) -> torch.Tensor:
        picture = decode(self, *arguments)
        if self is wide.vae:
            return picture
        calls.append(1)
        return picture.fill_(float("inf")) if len(calls) == 2 else picture

    monkeypatch.setattr(Vae, "__call__", failing)
    found = [one.planes[0] for one in upscaler.frames(frames(3))]
    assert upscaler.computed[1] == 3 * 24 * 32 and len(calls) == 3
    assert [len(np.unique(one)) > 1 for one in found]
    assert len(caplog.records) == 1


def test_what_is_no_number_anywhere_is_an_error_in_one_line(tiny_x4: Path, tmp_path: Path) -> None:
    folder = changed(tmp_path / "model", tiny_x4, VAE, "decoder.conv_out.weight", float("nan"))
    for dtype in ("float32", "float16"):
        upscaler = loaded(Settings(model=str(folder), steps=1, dtype=dtype))
        with pytest.raises(EngineError, match=r"gives no numbers for a picture, in float32: .*fetch them again$"):
            list(upscaler.frames(frames(1)))
    with pytest.raises(EngineError, match="gives no numbers"):
        upscaler(torch.rand(1, 3, 16, 16))


def test_the_x2_model_and_a_checkpoint_do_the_same(tiny_x2: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    x2 = changed(tmp_path / "x2", tiny_x2, VAE, "decoder.conv_in.weight", 1e9)
    weights = load_file(checkpoints["compact"])
    last = sorted((name for name in weights if name.endswith("weight")), key=lambda name: int(name.split(".")[1]))[-1]
    save_file({**weights, last: weights[last] * 1e6}, compact := tmp_path / "c.safetensors")
    for model, size in ((x2, 64), (compact, 16)):
        picture = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        half, full = (loaded(Settings(model=str(model), steps=1, dtype=name)) for name in ("float16", "float32"))
        assert torch.equal(half(picture), full(picture))
        assert half.engine.wider is not None and half.engine.wider.dtype == torch.float32


def test_infinity_is_no_white() -> None:
    beyond = torch.tensor([-1.0, 0.5, 2.0, float("inf"), float("nan")])
    found = clamped(beyond.clone(), torch.float16)
    assert found[:3].tolist() == [0, 0.5, 1] and found[3:].isnan().all()
    assert is_finite([found[:3]]) and not is_finite([found[:3], found]) and not is_finite([found[3:4]])


@torch.inference_mode()
def test_float16_has_room_for_the_unet() -> None:
    """The true depth, an eighth of the widths, and weights that keep the variance of what goes through a layer, which
    is 2.4 times those that a network begins with."""
    unet = architecture.random_unet(torch.device("cpu"), torch.float32, 8)
    largest: list[float] = []
    for module in unet.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.weight.mul_(6**0.5)
            module.register_forward_hook(lambda _, __, answer: largest.append(answer.abs().max().item()))
    text = architecture.random_text(8)[1:]
    batch = torch.randn(1, 7, 16, 16, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([20])
    for time in (1, 999):
        given = (torch.tensor(time), text)
        expected = unet(batch, *given, class_labels=level).sample
        half = copy.deepcopy(unet)
        torch.nn.Module.to(half, torch.float16)
        found = half(batch.half(), given[0], text.half(), class_labels=level).sample.float()
        assert 10 * torch.log10(expected.var() / (found - expected).square().mean()) > 45
    assert 10 < max(largest) < 65504 / 32
