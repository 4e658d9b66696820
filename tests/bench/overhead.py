"""The share of a job's wall time that is not the engine, and frames a second.

    python tests/bench/overhead.py [--model mini|narrow|bicubic] [--frames 120] [--clip FILE] [--rounds N]

The engine's thread is watched with a stopwatch: the model, the anchor, and the two conversions of colour. What is left
of its wall time, from the end of loading to the last frame, is waiting for the decoder and the encoder, and handing
frames over. Those run in threads of their own: where cores are few they slow the engine down, so the engine is timed
alone as well, on the same frames. Settings are those of the preset "mini": 3 steps, no guidance, the anchor on.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import material
import report
import torch

import vidup
from vidup import color, engines, reader, upscaler
from vidup.engines.hub import MINI
from vidup.prefetch import batched

WATCHED = {
    "engine": (engines, "enlarge"),
    "anchor": (upscaler, "anchor"),
    "planes to RGB": (color, "to_rgb"),
    "RGB to planes": (color, "to_codes"),
}
"""What is timed, by where the upscaler looks it up."""


Parts = dict[str, float]
"""Seconds by the name of what took them."""


class Stopwatch:
    """How long functions take."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: Parts = defaultdict(float)

    def watch(self, name: str, home: Any, attribute: str) -> None:
        function: Callable[..., Any] = getattr(home, attribute)

        @functools.wraps(function)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return function(*arguments, **keywords)
            began = self.now()
            result = function(*arguments, **keywords)
            self.seconds[name] += self.now() - began
            return result

        setattr(home, attribute, timed)

    def now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()


def job(source: Path, target: Path, settings: vidup.Settings, runtime: vidup.Runtime, watch: Stopwatch) -> Parts:
    """Seconds of one job by part; "wall" is from the end of loading to the last frame."""
    watch.seconds.clear()
    first: dict[str, float] = {}
    began = watch.now()
    parts: Parts = {}

    def look(event: vidup.Progress) -> None:
        first.setdefault(event.state, watch.now())
        if event.state == "joining":  # what comes after is not the engine's time
            parts.update({name: watch.seconds[name] for name in WATCHED})

    vidup.upscale(source, target, settings, runtime=runtime, on_progress=look)
    wall = first["joining"] - first["upscaling"]
    parts["waiting for decoder and encoder"] = wall - sum(parts.values())
    outside = {
        "before (load, plan)": first["upscaling"] - began,
        "after (join, verify)": watch.now() - first["joining"],
    }
    return {**parts, "wall": wall, **outside}


def alone(frames: list[vidup.Frame], settings: vidup.Settings, runtime: vidup.Runtime, watch: Stopwatch) -> float:
    """Seconds of the engine on the same frames, with nothing beside it."""
    height, width = frames[0].planes[0].shape
    with vidup.Upscaler(settings, runtime) as loaded, torch.inference_mode():
        watch.seconds.clear()
        for clip in batched(frames, loaded.engine.clip_length):
            rgb = torch.stack([color.to_rgb(frame, loaded.engine.device) for frame in clip])
            engines.enlarge(loaded.engine, rgb, engines.Place(height=height, width=width))
    return watch.seconds["engine"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, help="a film instead of made pictures")
    parser.add_argument("--size", type=material.size, default=(160, 90), metavar="WxH", help="of the made pictures")
    parser.add_argument("--model", help="mini where its checkpoint is there, else narrow: the x4 upscaler, its widths"
                        " divided by 8, with random weights; or any name that vidup takes")  # fmt: skip
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=120, help="how many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = arguments.model or ("mini" if (MINI / "model_index.json").is_file() else "narrow")
    watch = Stopwatch(arguments.device)
    for name, (home, attribute) in WATCHED.items():
        watch.watch(name, home, attribute)

    jobs, engine_alone = [], []
    with tempfile.TemporaryDirectory() as folder:
        chosen = str(material.model(Path(folder) / "model", narrower=8)) if model == "narrow" else model
        target = Path(folder) / "out.mp4"
        source = arguments.clip or material.clip(Path(folder) / "in.mp4", arguments.frames, *arguments.size)
        settings = vidup.Settings.preset("mini", model=chosen)
        runtime = vidup.Runtime(device=arguments.device, overwrite=True)
        info = vidup.probe(source)
        frames = list(islice(reader.decode(info), arguments.frames))
        if len(frames) < info.frames:
            settings = replace(settings, duration=float((frames[-1].pts + 1) * info.time_base - info.begin))
        for _ in range(arguments.rounds):
            jobs.append(job(source, target, settings, runtime, watch))
            engine_alone.append(alone(frames, settings, runtime, watch))

    middle = {name: statistics.median(one[name] for one in jobs) for name in jobs[0]}
    middle["engine, alone"] = statistics.median(engine_alone)
    rows = [
        (name, f"{1000 * value / len(frames):.1f}", f"{100 * value / middle['wall']:.1f}")
        for name, value in middle.items()
    ]
    known = report.facts(arguments.device) | {"threads": torch.get_num_threads()}
    title = f"{model}, {len(frames)} frames, {info.width}x{info.height} to {4 * info.width}x{4 * info.height}"
    report.show(title, ("part", "ms a frame", "% of wall"), rows, known)
    shares = [(one["engine"] + one["anchor"]) / one["wall"] for one in jobs]
    print(f"engine and anchor: {100 * statistics.median(shares):.1f} % of the wall time   "
          f"frames a second: {len(frames) / middle['wall']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
