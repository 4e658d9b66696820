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

    from vidup.engines import architecture

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from conftest import save_layout

    cpu = torch.device("cpu")
    unet, vae = (make(cpu, torch.float32, narrower) for make in (architecture.random_unet, architecture.random_vae))
    text = architecture.text_config(narrower)
    save_layout(folder, unet, vae, text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"])
    return folder


def size(text: str) -> tuple[int, int]:
    """Width and height from ``480x270``, for argparse."""
    width, height = text.split("x")
    return int(width), int(height)
