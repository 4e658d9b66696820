"""The x4 upscaler as a single file, `x4-upscaler-ema.safetensors`, with the names of its authors' code.

The file has no configuration: `architecture` is used. diffusers translates the names of the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel

from vidup.engines import architecture
from vidup.engines.claims import DIFFUSION
from vidup.errors import EngineError

START, END = 49406, 49407
"""CLIP's token ids for the begin and the end of a text; padding is 0."""

_VAE, TEXT = "first_stage_model.", "cond_stage_model.model."


def load(path: Path, device: torch.device, unet_dtype: torch.dtype, vae_dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Load UNet, VAE and text encoder of the file, with no more of it in memory at a time than one of them.

    Raises:
        EngineError: it holds another model than the x4 upscaler.
        OSError, RuntimeError, SafetensorError: it is damaged.
    """
    with safe_open(path, framework="pt", device="cpu") as file:
        names = list(file.keys())

        def weights(prefix: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
            # Copied: tensors of the file are mapped to it, and a job must not depend on that.
            return {name: file.get_tensor(name).to(dtype, copy=True) for name in names if name.startswith(prefix)}

        def fill(empty: Any, found: dict[str, torch.Tensor], part: str) -> Any:
            wanted = empty.state_dict()
            wrong = [name for name in wanted if name not in found or found[name].shape != wanted[name].shape]
            wrong += [name for name in found if name not in wanted]
            if wrong:
                raise EngineError(
                    f"model {path}: is no x4 upscaler: {len(wrong)} weights of its {part} do not fit, such as"
                    f" {wrong[0]}"
                )
            empty.load_state_dict(found, assign=True)
            return empty.to(device).eval().requires_grad_(False)

        unet_config, vae_config = architecture.unet_config(), architecture.vae_config()
        with init_empty_weights(include_buffers=False):
            unet, vae = UNet2DConditionModel.from_config(unet_config), AutoencoderKL.from_config(vae_config)
            # Of the 24 layers in the file the model uses the result of the last but one.
            text = CLIPTextModel(CLIPTextConfig(**architecture.text_config()))
        unet = fill(unet, convert_ldm_unet_checkpoint(weights(DIFFUSION, unet_dtype), unet_config), "unet")
        vae = fill(vae, convert_ldm_vae_checkpoint(weights(_VAE, vae_dtype), vae_config), "vae")
        text = fill(text, _text_weights(text, weights(TEXT, unet_dtype)), "text encoder")
    return unet, vae, text


def _text_weights(model: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The text encoder's weights with translated names, without the last layer and the projection, which are unused."""
    found = convert_open_clip_checkpoint(model, weights, prefix=TEXT)
    wanted = model.state_dict()
    if not any(name.startswith("text_model.") for name in wanted):  # transformers 5.6 and later
        found = {name.removeprefix("text_model."): value for name, value in found.items()}
    return {name: value for name, value in found.items() if name in wanted}
