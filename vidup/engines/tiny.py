"""`AutoencoderTiny`: a distilled decoder that costs a twentieth, for previews (TAESD, Ollin Boer Bohan)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import nn

from vidup.engines import claims, hub, libraries, stops
from vidup.engines.layout import files_of, fingerprint
from vidup.errors import EngineError

_FILES = ["config.json", "diffusion_pytorch_model.safetensors"]


def load_tiny(
    name: str, channels: int, scale: int, device: torch.device, dtype: torch.dtype
) -> tuple[AutoencoderTiny, str]:
    """Load a tiny autoencoder and its fingerprint.

    Its latents are those of the x4 upscaler divided by its own `scaling_factor`, which is 1; its pictures are in
    [-1, 1].

    Args:
        name: a folder, or a hub id, which is searched in the hub's cache first.
        channels: the number of channels of the latents.
        scale: the required factor of enlargement.

    Raises:
        EngineError: it is missing, is no AutoencoderTiny, or does not fit the model.
    """
    folder = _locate(name)
    with libraries.told(f"vae = {name!r}: cannot be loaded: "):
        kind = claims.check_config(folder / "config.json", [folder / _FILES[1]]).get("_class_name")
        if kind != "AutoencoderTiny":
            raise EngineError(f"vae = {name!r}: is a {kind}, no AutoencoderTiny")
        with _silent():
            vae, loading = AutoencoderTiny.from_pretrained(
                str(folder), torch_dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        if loading["missing_keys"]:  # which would have random values
            raise EngineError(f"vae = {name!r}: its weights lack {loading['missing_keys'][0]}")
    config = vae.config
    enlarges = config.upsampling_scaling_factor ** (len(config.num_decoder_blocks) - 1)
    if (config.latent_channels, enlarges, config.out_channels) != (channels, scale, 3):
        raise EngineError(
            f"vae = {name!r}: enlarges {config.latent_channels} channels by {enlarges}; this model needs one that"
            f" enlarges {channels} channels by {scale}, such as madebyollin/taesd-x4-upscaler"
        )
    return vae.to(device).eval().requires_grad_(False), identity(name)


def identity(name: str) -> str:
    """Fingerprint of a tiny autoencoder, without loading it.

    Raises:
        EngineError: it is missing.
    """
    folder = _locate(name)
    return fingerprint([folder / file for file in _FILES])


def decode_in_bands(vae: Any, latent: torch.Tensor, band: int) -> torch.Tensor:
    """Decode by an `AutoencoderTiny` in bands of latent rows, each with all rows that it sees, which are cut off."""
    halo, factor = _reach(vae.decoder.layers)
    height = latent.shape[-2]
    widest = max(layer.out_channels for layer in vae.decoder.layers if isinstance(layer, nn.Conv2d))
    rows = max(halo, band // (4 * widest * factor**2 * latent.shape[-1]))
    pieces = []
    for top in range(0, height, rows):
        stops.check()
        first, last = max(0, top - halo), min(height, top + rows + halo)
        piece = vae.decode(latent[..., first:last, :], return_dict=False)[0]
        begin = (top - first) * factor
        pieces.append(piece[..., begin : begin + factor * min(rows, height - top), :].float())
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -2)


def _reach(layers: Any) -> tuple[int, int]:
    """How far a tiny VAE sees, in latent pixels, and its factor of enlargement."""
    reach, factor = 0, 1
    for layer in reversed(layers):
        if isinstance(layer, nn.Upsample):
            times: Any = layer.scale_factor
            reach, factor = math.ceil(reach / times), factor * int(times)
        elif isinstance(layer, AutoencoderTinyBlock):
            reach += 3
        elif isinstance(layer, nn.Conv2d):
            reach += 1
    return reach, factor


@contextmanager
def _silent() -> Iterator[None]:
    """Silence diffusers, which warns of a key that it writes itself when it saves such a model."""
    before = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers.utils.logging.set_verbosity(before)


def _locate(name: str) -> Path:
    folder = Path(name)
    if folder.is_dir():
        if lacking := _lacking(files_of(folder)):
            raise EngineError(f"vae = {name!r}: the folder lacks {', '.join(lacking)}")
        return folder
    words = (
        f"vae = {name!r}: is no folder, and cannot be had from the hub (",
        "); connect this machine once, give a folder that holds it, or leave the setting out to decode with the"
        " model's own",
    )
    with libraries.told(*words):
        return hub.fetched(name, None, _lacking, lambda _: _FILES, f"vae = {name!r}")


def _lacking(files: list[str]) -> list[str]:
    return [name for name in _FILES if name not in files]
