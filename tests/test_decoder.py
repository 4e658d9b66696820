"""The decoder in bands against diffusers' own decode of the whole frame."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from vidup.engines import architecture
from vidup.engines.attention import _WIDEST, attend, is_windowed, windows
from vidup.engines.folding import fold
from vidup.engines.memory import LiveBytes
from vidup.engines.vae import Limits, Vae, limits

CPU = torch.device("cpu")
SIZES = [(1, 1, 1), (2, 9, 17), (3, 24, 8), (1, 33, 20)]


def autoencoder(**options: Any) -> AutoencoderKL:
    """A small one with random weights, also in its norms, where diffusers begins with ones and zeros."""
    torch.manual_seed(0)
    shape = {
        "block_out_channels": (16, 32, 48),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }
    vae = AutoencoderKL(**{**shape, **options}).eval().requires_grad_(False)
    shake(vae)
    return vae


def tiny(stages: int = 3) -> AutoencoderTiny:
    torch.manual_seed(0)
    widths = {f"{side}_block_out_channels": (8,) * stages for side in ("encoder", "decoder")}
    blocks = {"num_encoder_blocks": (1, 2, 2)[:stages], "num_decoder_blocks": (2, 2, 1)[:stages]}
    return AutoencoderTiny(**widths, **blocks).eval().requires_grad_(False)


def shake(module: nn.Module) -> None:
    for one in module.modules():
        if isinstance(one, nn.GroupNorm):
            nn.init.normal_(one.weight, 1, 0.3)
            nn.init.normal_(one.bias, 0, 0.3)


def latents(count: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(count, 4, height, width, generator=torch.Generator().manual_seed(1)) * 2


@torch.inference_mode()
def whole(vae: Any, z: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = vae.decode(z, return_dict=False)[0]
    assert result.std() > 0.01  # a flat picture would match for nothing
    return result


@pytest.mark.parametrize(("count", "height", "width"), SIZES)
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("band", [1, 20_000, 200_000, 2**30])
def test_bands_of_any_size_give_the_whole_frames_decode(
    count: int, height: int, width: int, attention: bool, band: int
) -> None:
    vae, z = autoencoder(mid_block_add_attention=attention), latents(count, height, width)
    result = Vae(vae)(z, CPU, Limits(band, band))
    assert result.shape == (count, 3, 4 * height, 4 * width) and result.dtype == torch.float32
    torch.testing.assert_close(result, whole(vae, z), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"use_post_quant_conv": False, "use_quant_conv": False},
        {"layers_per_block": 2, "block_out_channels": (32, 32, 32)},
        {"block_out_channels": (48, 32, 16)},
        {"block_out_channels": (16, 24), "down_block_types": ("DownEncoderBlock2D",) * 2,
         "up_block_types": ("UpDecoderBlock2D",) * 2},
    ],
)  # fmt: skip
@pytest.mark.parametrize("keep", [8, 2, 1])
@pytest.mark.parametrize("band", [30_000, 2**30])
def test_other_widths_and_depths_and_layers_that_are_not_kept(options: dict[str, Any], keep: int, band: int) -> None:
    vae, z = autoencoder(**options), latents(1, 13, 18)
    known = Vae(vae)
    assert known.unknown == ""
    torch.testing.assert_close(known(z, CPU, Limits(band, 10_000, keep)), whole(vae, z), atol=1e-4, rtol=0)


def test_the_latents_and_the_weights_are_left_as_they_were() -> None:
    vae, z = autoencoder(), latents(1, 8, 8)
    before = z.clone(), {name: value.clone() for name, value in vae.state_dict().items()}
    Vae(vae)(z, CPU, limits(CPU))
    assert torch.equal(z, before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in vae.state_dict().items())


def test_bfloat16_is_near_float32() -> None:
    vae, z = autoencoder(), latents(1, 24, 24)
    expected = whole(vae, z)
    result = Vae(vae.bfloat16())(z, CPU, Limits(20_000, 20_000))
    assert result.dtype == torch.float32
    assert (result - expected).square().mean() / expected.var() < 1e-3


def test_windows_cover_the_frame_and_are_exact_where_it_is_no_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = autoencoder()
    monkeypatch.setattr("vidup.engines.attention.WINDOW", 8)
    small, large = latents(1, 16, 11), latents(1, 21, 43)
    torch.testing.assert_close(
        Vae(vae, windows="windowed")(small, CPU, limits(CPU)), whole(vae, small), atol=1e-4, rtol=0
    )
    seen = torch.zeros(21, 43)
    for inner, outer in windows(21, 43):
        seen[inner] += 1
        covered = torch.zeros(21, 43)
        covered[outer] = 1
        assert covered[inner].all() and covered.sum() == 16 * 16
    assert (seen == 1).all()
    exact, windowed = whole(vae, large), Vae(vae, windows="windowed")(large, CPU, limits(CPU))
    assert 0 < (windowed - exact).square().mean() < 0.1 * exact.var()
    again = Vae(vae, windows="windowed")(large, CPU, Limits(20_000, 3_000))
    torch.testing.assert_close(windowed, again, atol=1e-4, rtol=0)


@pytest.mark.parametrize("band", [1, 30_000, 2**30])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (40, 9), (64, 13)])
def test_the_tiny_decoder_in_bands(band: int, height: int, width: int) -> None:
    vae, z = tiny(), latents(2, height, width)
    assert Vae(vae).unknown == ""
    torch.testing.assert_close(Vae(vae)(z, CPU, Limits(band, band)), whole(vae, z), atol=1e-5, rtol=0)


def _other_activation(vae: Any) -> None:
    vae.decoder.up_blocks[1].resnets[0].nonlinearity = nn.Mish()


def _other_convolution(vae: Any) -> None:
    vae.decoder.conv_in.padding_mode = "reflect"
    vae.decoder.conv_in._reversed_padding_repeated_twice = [1, 1, 1, 1]


def _other_scale(vae: Any) -> None:
    vae.decoder.mid_block.attentions[0].scale *= 2


def _other_norm(vae: Any) -> None:
    vae.decoder.conv_norm_out = nn.Identity()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_other_activation, "up_blocks.1.resnets.0"),
        (_other_convolution, "conv_in"),
        (_other_scale, "attentions.0"),
        (_other_norm, "conv_norm_out"),
    ],
)
def test_a_structure_that_is_not_known_is_decoded_whole_and_told(
    change: Any, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    vae, z = autoencoder(), latents(2, 9, 12)
    change(vae)
    with caplog.at_level(logging.WARNING, "vidup"):
        other = Vae(vae)
    assert part in other.unknown and part in caplog.text
    each = torch.cat([whole(vae, one[None]) for one in z])
    assert torch.equal(other(z, CPU, Limits(1, 1)), each)


def test_matrix_products_for_wide_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_WIDEST, "cpu", 0)
    vae, z = autoencoder(), latents(1, 15, 22)
    torch.testing.assert_close(Vae(vae)(z, CPU, Limits(30_000, 10_000)), whole(vae, z), atol=1e-4, rtol=0)


def test_little_is_alive_at_once() -> None:
    """Two tensors of the widest layer that is kept, the picture, and bands."""
    vae, z = autoencoder(block_out_channels=(16, 32, 32), layers_per_block=2), latents(1, 64, 64)
    with torch.inference_mode(), LiveBytes() as stock:
        vae.decode(z, return_dict=False)
    peaks = {}
    for keep in (4, 2, 1):
        with LiveBytes() as ours:
            Vae(vae)(z, CPU, Limits(2**17, 2**17, keep))
        peaks[keep] = ours.peak
    layers = (32 + 16) * 256 * 256 * 4
    assert layers <= peaks[4] < 1.25 * layers < 0.65 * stock.peak
    assert peaks[1] < 0.7 * peaks[2] < 0.4 * peaks[4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_are_not_copied_into_float32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_WIDEST, "cpu", 0)
    query, key, value = torch.randn(3, 96, 64, generator=torch.Generator().manual_seed(0)).to(dtype) * 3
    with torch.inference_mode(), LiveBytes() as live:
        found = attend(query, key, value, 1)
    scores = ((query * 64**-0.5) @ key.T).softmax(-1, dtype=torch.float32).to(dtype)
    assert torch.equal(found, scores @ value)
    assert live.peak <= 2 * 96 * 96 * 2 + 4 * 96 * 64 * 2  # before and after the softmax


def test_windows_are_taken_where_full_attention_would_cost_the_most() -> None:
    assert not any(is_windowed("full", *size) for size in ((64, 64), (272, 480), (1080, 1920)))
    found = {size: is_windowed("auto", *size) for size in ((64, 1024), (128, 128), (256, 256), (264, 256), (272, 480))}
    assert [size for size, taken in found.items() if taken] == [(264, 256), (272, 480)]
    assert is_windowed("windowed", 64, 1024) and not is_windowed("windowed", 128, 128)


def grown(vae: AutoencoderKL, factor: float) -> AutoencoderKL:
    """With the residual layers of a trained one, which grow from block to block: past the end of float16."""
    for resnet in (one for one in vae.decoder.modules() if isinstance(one, ResnetBlock2D)):
        resnet.conv2.weight.mul_(factor)
    return vae


class TestFolding:
    def test_in_float32_nothing_changes_by_a_bit(self) -> None:
        z = latents(1, 9, 13)
        for options in ({}, {"block_out_channels": (48, 32, 16)}, {"mid_block_add_attention": False}):
            plain, folded = (grown(autoencoder(**options), 30) for _ in range(2))
            assert fold(folded)
            assert torch.equal(whole(plain, z), whole(folded, z))
            assert torch.equal(Vae(plain)(z, CPU, limits(CPU)), Vae(folded)(z, CPU, limits(CPU)))
            with torch.inference_mode():
                picture = whole(plain, z)
                one, other = (vae.encode(picture).latent_dist.parameters for vae in (plain, folded))
            assert torch.equal(one, other)

    def test_float16_holds_it_and_beats_bfloat16(self) -> None:
        """The true decoder's depth, a quarter of its widths."""
        torch.manual_seed(0)
        vae = grown(architecture.random_vae(CPU, torch.float32, 4), 300_000)
        z = latents(1, 8, 8) * 3
        expected = whole(vae, z)
        found = {}
        for name, dtype, folded in (
            ("as it is", torch.float16, False), ("folded", torch.float16, True), ("bfloat16", torch.bfloat16, False)
        ):  # fmt: skip
            one = nn.Module.to(copy.deepcopy(vae), dtype)
            assert not folded or fold(one)
            picture = Vae(one)(z, CPU, limits(CPU))
            found[name] = float(10 * torch.log10(expected.var() / (picture - expected).square().mean()))
        assert math.isnan(found["as it is"])
        assert found["folded"] > found["bfloat16"] + 10

    def test_another_structure_is_left_as_it_is(self) -> None:
        vae = autoencoder()
        _other_activation(vae)
        before = {name: value.clone() for name, value in vae.state_dict().items()}
        assert not fold(vae) and not fold(tiny())
        assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
