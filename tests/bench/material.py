"""What the benches work on: clips, and the x4 upscaler's architecture with random weights."""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np


def clip(path: Path, frames: int, width: int, height: int, rate: int = 25) -> Path:
    """Write a clip of smooth light, an edge that moves and a texture, without sound."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            light = 128 + 90 * np.sin(x / 9 + index / 5)
            waves = 128 + 90 * np.cos(y / 7 - index / 6)
            edge = np.where(x + 2 * (index % 60) > width / 2, 200, 40) + 15 * np.sin(x * 1.3) * np.sin(y * 1.1)
            picture = np.stack([light, waves, edge], -1).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))
    return path


def model(folder: Path, narrower: int) -> Path:
    """Save the x4 upscaler's architecture in the hub's layout, with random weights.

    Args:
        narrower: what all widths are divided by; 1 is the true size, 473,398,020 parameters in the UNet.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from conftest import save_layout

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=128, in_channels=7, out_channels=4,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
        up_block_types=(*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
        block_out_channels=tuple(width // narrower for width in (256, 512, 512, 1024)),
        layers_per_block=2, norm_num_groups=32 // narrower, attention_head_dim=8, cross_attention_dim=1024 // narrower,
        only_cross_attention=(True, True, True, False), use_linear_projection=True, num_class_embeds=1000,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=tuple(width // narrower for width in (128, 256, 512)), layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4, norm_num_groups=32 // narrower, sample_size=512, scaling_factor=0.08333,
    )  # fmt: skip
    save_layout(folder, unet, vae, width=1024 // narrower, layers=23, heads=16)
    return folder
