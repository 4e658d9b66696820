"""The planner's memory against what a frame really takes, by size of frame.

    python tests/bench/memory_by_size.py                            narrow model, float32, meta device and CPU
    python tests/bench/memory_by_size.py --width full               true widths, float16, meta device
    python tests/bench/memory_by_size.py --width full --device cuda the same on a GPU

Each size runs in a process of its own. On the meta device the whole of the engine's call is run without a number being
worked out, while the bytes of all tensors alive together are counted: the peak of a real run, less what kernels take
for themselves, which only CUDA's own count shows. On the CPU the same is counted during a real run, and on a GPU
`max_memory_allocated` is read. Random weights: memory does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace

import report

SIZES = ["64x64", "128x128", "256x256", "480x270", "512x512", "854x480", "1024x1024", "1280x720"]
CPU_PIXELS = 160 * 160  # larger frames are not computed on a CPU


def one(arguments: argparse.Namespace) -> dict[str, float]:
    """Bytes as planned and as counted, for one size."""
    import torch

    from vidup import Runtime, Settings
    from vidup.engines import Choice, Place, architecture, enlarge
    from vidup.engines.memory import LiveBytes
    from vidup.engines.planner import Planner
    from vidup.engines.x4 import DiffusionX4, random_parts

    narrower = 1 if arguments.width == "full" else 8
    halves = (torch.float16, torch.float16) if arguments.width == "full" else (torch.float32, torch.float32)
    device = torch.device(arguments.device)
    if device.type == "cuda":
        torch.cuda.init()
    width, height = map(int, arguments.only.split("x"))
    parts = random_parts(device, *halves, narrower)
    if device.type == "meta":  # texts are compared, which meta cannot
        parts = replace(parts, texts=architecture.random_text(narrower).to(halves[0]))
    name = str(halves[0]).removeprefix("torch.")
    settings = Settings(steps=2, prompt="a", guidance_scale=9 if arguments.guided else 1, dtype=name)
    runtime = Runtime(compile="off", batch=arguments.batch, max_memory=arguments.max_memory)
    engine = DiffusionX4(settings, runtime, device, parts)
    planner = Planner(engine.needs, settings, runtime)
    choices = [Choice(arguments.batch, arguments.tile, keep) for keep in engine.needs.keeps]
    fitting = (one for one in choices if planner.memory(one, height, width) <= planner.limit)
    choice = next(fitting, choices[-1])
    planned = planner.memory(choice, height, width)
    weights = sum(engine.needs.weights)
    clip = torch.rand(arguments.batch, 3, height, width).to(device)
    place = Place(height=height, width=width)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        enlarge(engine, clip, place, choice)
        return {"planned": planned, "measured": torch.cuda.max_memory_allocated()}
    with LiveBytes() as live:
        enlarge(engine, clip, place, choice)
    return {"planned": planned, "measured": live.peak + weights + clip.nbytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", choices=("narrow", "full"), default="narrow")
    parser.add_argument("--device", help="meta, cpu or cuda; meta, and cpu for small frames, where not given")
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="WxH")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tile", type=int, default=0)
    parser.add_argument("--guided", action="store_true")
    parser.add_argument("--max-memory", default="200G", help="what the planner may take: less, and it decodes frugally")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(one(arguments)))
        return
    rows, found = [], []
    for size in arguments.sizes:
        width, height = map(int, size.split("x"))
        devices = [arguments.device or "meta"]
        if not arguments.device and arguments.width == "narrow" and width * height <= CPU_PIXELS:
            devices.append("cpu")
        for device in devices:
            command = [sys.executable, __file__, "--only", size, "--device", device, "--width", arguments.width,
                       "--batch", str(arguments.batch), "--tile", str(arguments.tile),
                       "--max-memory", arguments.max_memory, *(["--guided"] if arguments.guided else [])]  # fmt: skip
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            bytes_ = json.loads(result.stdout.splitlines()[-1])
            apart = bytes_["planned"] / bytes_["measured"] - 1
            found.append({"size": size, "device": device, **bytes_, "apart": apart})
            rows.append((size, device, *(f"{bytes_[key] / 1e6:.0f}" for key in ("planned", "measured")),
                         f"{100 * apart:+.1f} %"))  # fmt: skip
    known = report.facts("cuda" if arguments.device == "cuda" else "cpu")
    if arguments.json:
        print(json.dumps({"facts": known, "sizes": found}, indent=2))
    else:
        title = (
            f"{arguments.width} model, batch {arguments.batch}, tile {arguments.tile}, guided {arguments.guided}; MB"
        )
        report.show(title, ("size", "device", "planned", "measured", "apart"), rows, known)
    worst = max(abs(one_["apart"]) for one_ in found)
    print(f"farthest apart: {100 * worst:.1f} % (limit 15)", file=sys.stderr)
    sys.exit(worst > 0.15)


if __name__ == "__main__":
    main()
