"""What the planner chooses on a CUDA device, and the memory it plans for: the true architecture, nothing is computed.

    python tests/bench/planned.py [--sizes WxH ...]

Each cell is planned GB and how: frames at a time, or tiles. UNet and decoder are in float16. No GPU is
needed, none is asked. How near the plan comes to what tensors take is `memory_by_size.py`'s to tell.
"""

from __future__ import annotations

import argparse
from typing import Any

import material
import report
import torch

from vidup import Runtime, Settings
from vidup.engines import architecture, with_carried, x4
from vidup.engines.planner import Planner
from vidup.engines.vae import Vae

CUDA, META = torch.device("cuda"), torch.device("meta")
COLUMNS: dict[str, tuple[str, dict[str, Any]]] = {
    "one at a time": ("off", {"batch": 1}),
    "by itself": ("off", {}),
    "by itself, compiled": ("on", {}),
    "8G, compiled": ("on", {"max_memory": "8G"}),
    "4G, offloaded": ("off", {"max_memory": "4G", "offload": True}),
}


def planned(width: int, height: int, prompt: str, compiled: str, options: dict[str, Any]) -> str:
    """Bytes and choice for frames of a size, in words."""
    runtime = Runtime(**{"max_memory": "140G", "compile": compiled, **options})
    unet, vae = architecture.random_unet(META, torch.float16), architecture.random_vae(META, torch.float16)
    texts = architecture.TOKENS, 2 * architecture.TEXT_PARAMETERS
    needs = x4.needs(CUDA, unet, Vae(vae), texts, bool(prompt), compiled == "on")
    planner = Planner(with_carried(needs, Settings(), 4), Settings(), runtime)
    choice = planner.choose(height, width)
    shape = f"tiles of {choice.tile}" if choice.tile else f"{choice.batch} at a time"
    return f"{planner.memory(choice, height, width) / 1e9:.1f} GB, {shape}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", nargs="+", type=material.size, default=[(480, 270), (854, 480), (1280, 720)], metavar="WxH"
    )
    arguments = parser.parse_args()
    rows = [
        (f"{width}x{height}{', prompt' if prompt else ''}",
         *(planned(width, height, prompt, *how) for how in COLUMNS.values()))
        for width, height in arguments.sizes for prompt in ("", "a harbour")
    ]  # fmt: skip
    report.show("planned on CUDA", ("frame", *COLUMNS), rows, report.facts("cpu"))


if __name__ == "__main__":
    main()
