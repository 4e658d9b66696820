"""The parts of the checkpoint, and how they are written to disk in the x4 upscaler's layout."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel

from vidup.engines.detail import DetailAutoencoder

TIMESTEPS = 1000
TEXT_WIDTH = 32
MAX_NOISE_LEVEL = 350
BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}


def make_unet(channels: tuple[int, ...] = (64, 96)) -> UNet2DConditionModel:
    """A UNet without attention: 48 latent and 3 low-resolution channels in, 48 out, the noise level as its class.

    Without attention the prompt has no influence, tiles see what the whole frame sees, and the cost is linear.
    """
    levels = len(channels)
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=51,
        out_channels=48,
        down_block_types=("DownBlock2D",) * levels,
        mid_block_type="UNetMidBlock2D",
        up_block_types=("UpBlock2D",) * levels,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        num_class_embeds=TIMESTEPS,
        resnet_time_scale_shift="scale_shift",  # noise passes or is held back by a factor that depends on the time
    )
    # The embedding of noise levels is a fixed smooth curve. A learned table would hold random values at the levels
    # that training seldom meets.
    table = unet.class_embedding.weight
    frequencies = torch.logspace(-1, 0.7, table.shape[1] // 2)
    angles = torch.log1p(torch.arange(TIMESTEPS).float())[:, None] * frequencies
    with torch.no_grad():
        table.copy_(torch.cat([angles.sin(), angles.cos()], 1))
    table.requires_grad_(False)
    _sharpen_sight(unet.conv_in)
    return unet


@torch.no_grad()
def _sharpen_sight(conv_in: torch.nn.Conv2d) -> None:
    """Let three of eight channels of the first layer see the low-resolution picture alone, by strong edge filters.

    Contrast in the picture is about 0.05 between neighbours while the 48 noisy latents have unit variance: with even
    weights the picture drowns in the noise, and training hardly learns to look at it.
    """
    weight = conv_in.weight
    latents = weight.shape[1] - 3
    for channel in range(weight.shape[0]):
        if channel % 8 < 5:
            weight[channel, latents:] = 0
            continue
        pattern = torch.randn(1, *weight.shape[2:])
        pattern = pattern - 0.9 * pattern.mean()
        edges = pattern * (1 + 0.4 * torch.randn(3, 1, 1))
        weight[channel, :latents] = 0
        weight[channel, latents:] = 8 * edges / edges.norm()


def make_scheduler() -> DDIMScheduler:
    """As on the hub, but for two settings that make few steps good.

    `sample`: the UNet answers with the clean latents. With v the answer has to contain the noise exactly, or else what
    it misses stays in the picture as grain; a small network learns that slowly. `trailing`: sampling begins at pure
    noise (Lin et al., "Common diffusion noise schedules and sample steps are flawed", 2023).
    """
    return DDIMScheduler(
        **BETAS,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="sample",
        timestep_spacing="trailing",
    )


def make_low_res_scheduler() -> DDPMScheduler:
    """The noise that goes onto the low-resolution picture."""
    return DDPMScheduler(**BETAS)


def save_checkpoint(folder: Path, unet: UNet2DConditionModel, vae: DetailAutoencoder) -> None:
    """Write every part into a folder; files that exist are replaced one by one, each whole.

    Args:
        folder: made when missing.
        unet: stored as float16.
        vae: stored as float32, since it is exact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="new-", dir=folder.parent) as temporary:
        new = Path(temporary)
        half = UNet2DConditionModel.from_config(unet.config)
        half.load_state_dict(unet.state_dict())
        half.half().save_pretrained(new / "unet")
        vae.save_pretrained(new / "vae")
        make_scheduler().save_pretrained(new / "scheduler")
        make_low_res_scheduler().save_pretrained(new / "low_res_scheduler")
        _save_text_parts(new)
        index = {
            "_class_name": "StableDiffusionUpscalePipeline",
            "_diffusers_version": "0.35.0",
            "low_res_scheduler": ["diffusers", "DDPMScheduler"],
            "max_noise_level": MAX_NOISE_LEVEL,
            "noise_level": 0,
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["vidup.engines.detail", "DetailAutoencoder"],
        }
        _write_json(new / "model_index.json", index)
        for source in sorted(new.rglob("*")):
            if source.is_file():
                if source.name == "config.json":
                    _forget_paths(source)
                target = folder / source.relative_to(new)
                target.parent.mkdir(parents=True, exist_ok=True)
                source.chmod(0o644)
                source.replace(target)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()  # for TemporaryDirectory to remove


def load_checkpoint(folder: Path) -> tuple[UNet2DConditionModel, DetailAutoencoder]:
    """UNet and autoencoder in float32, ready for inference."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    vae = DetailAutoencoder.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    return unet.eval(), vae.eval()


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _forget_paths(path: Path) -> None:
    """Drop what diffusers notes of the place that a part was loaded from."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    _write_json(path, config)


def _save_text_parts(folder: Path) -> None:
    """A text encoder of random weights and a tokenizer without merges: the UNet ignores what they say."""
    from transformers import CLIPTextConfig, CLIPTextModel

    symbols = _byte_symbols()
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    _write_json(tokenizer / "vocab.json", {word: index for index, word in enumerate(words)})
    (tokenizer / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    _write_json(tokenizer / "special_tokens_map.json", special)
    setup = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "errors": "replace",
    }
    _write_json(tokenizer / "tokenizer_config.json", {**special, **setup, "add_prefix_space": False})

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words), hidden_size=TEXT_WIDTH, intermediate_size=64, num_hidden_layers=1,
                num_attention_heads=2, max_position_embeddings=77, projection_dim=TEXT_WIDTH,
                bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
            )
        )  # fmt: skip
    encoder.half().save_pretrained(folder / "text_encoder")


def _byte_symbols() -> list[str]:
    """One printable character for each of the 256 bytes, in the order of byte-level BPE (Radford et al. 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
