"""The x4 upscaler's architecture, for files without a configuration; and with random weights, for measurements.

From the configuration files of `stabilityai/stable-diffusion-x4-upscaler`. Every width is divided by `narrower`.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

TOKENS = 77
_BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SCHEDULER: dict[str, Any] = {
    **_BETAS, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
LOW_RES_SCHEDULER: dict[str, Any] = {**_BETAS, "_class_name": "DDPMScheduler"}
NOISE_LEVEL, MAX_NOISE_LEVEL = 20, 350
SCALING_FACTOR = 0.08333
"""The scaling factor of the VAE's latents, whatever its file states, as in diffusers' pipeline."""
TEXT_PARAMETERS = 340_387_840
"""The number of parameters of `text_config` at full width."""


def unet_config(narrower: int = 1) -> dict[str, Any]:
    """The configuration of the `UNet2DConditionModel`; at full width it has 473,398,020 parameters."""
    return {
        "sample_size": 128,
        "in_channels": 7,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
        "up_block_types": (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
        "block_out_channels": tuple(width // narrower for width in (256, 512, 512, 1024)),
        "layers_per_block": 2,
        "norm_num_groups": 32 // narrower,
        "attention_head_dim": 8,
        "cross_attention_dim": 1024 // narrower,
        "only_cross_attention": (True, True, True, False),
        "use_linear_projection": True,
        "num_class_embeds": 1000,
    }


def vae_config(narrower: int = 1) -> dict[str, Any]:
    """The configuration of the `AutoencoderKL`; at full width it has 55,325,927 parameters."""
    return {
        "block_out_channels": tuple(width // narrower for width in (128, 256, 512)),
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "latent_channels": 4,
        "norm_num_groups": 32 // narrower,
        "sample_size": 512,
        "scaling_factor": SCALING_FACTOR,
    }


def text_config(narrower: int = 1) -> dict[str, Any]:
    """The configuration of the `CLIPTextModel`; at full width it has `TEXT_PARAMETERS` parameters."""
    return {
        "vocab_size": 49408,
        "hidden_size": 1024 // narrower,
        "intermediate_size": 4096 // narrower,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "max_position_embeddings": TOKENS,
        "hidden_act": "gelu",
    }


def random_unet(device: torch.device, dtype: torch.dtype, narrower: int = 1) -> Any:
    """The UNet with random weights, created on the device; on the meta device it takes no memory."""
    return _random(UNet2DConditionModel, unet_config(narrower), device, dtype)


def random_vae(device: torch.device, dtype: torch.dtype, narrower: int = 1) -> Any:
    """The VAE with random weights."""
    return _random(AutoencoderKL, vae_config(narrower), device, dtype)


def random_text(narrower: int = 1) -> torch.Tensor:
    """Random embeddings of a negative prompt and a prompt: float32 (2, 77, width) on the CPU."""
    return torch.randn(2, TOKENS, 1024 // narrower, generator=torch.Generator().manual_seed(0))


def _random(kind: Any, config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        module = kind(**config)
    # diffusers' own `to` warns of modules to keep in float32, of which these have none.
    return nn.Module.to(module, dtype).eval().requires_grad_(False)
