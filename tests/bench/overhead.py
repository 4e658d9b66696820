"""The share of a job's wall time that is not the engine, and frames a second.

    python tests/bench/overhead.py [--clip samples/film.mp4] [--model mini|narrow|bicubic] [--frames N] [--rounds N]

The functions that work on a frame are wrapped with a stopwatch in this process. They all run in one thread, so what is
left of the wall time, from the end of loading to the last frame, is waiting for the decoder and the encoder. Those run
in threads of their own: where cores are few they slow the engine down, so the engine is timed alone as well, on the
same frames. Settings are those of the preset "mini": 4 steps, no guidance, the anchor on.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
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

ROOT = Path(__file__).resolve().parents[2]

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
    vidup.upscale(source, target, settings, runtime=runtime,
                  on_progress=lambda event: first.setdefault(event.state, watch.now()))  # fmt: skip
    parts = {name: watch.seconds[name] for name in WATCHED}
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
    parser.add_argument("--clip", type=Path, default=ROOT / "samples" / "film.mp4")
    parser.add_argument("--model", help="mini where its checkpoint is there, else narrow: the x4 upscaler, its widths"
                        " divided by 8, with random weights; or any name that vidup takes")  # fmt: skip
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=0, help="take so many of the clip; 0 takes all")
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
        source, target = arguments.clip, Path(folder) / "out.mp4"
        settings = vidup.Settings.preset("mini", model=chosen)
        runtime = vidup.Runtime(device=arguments.device, overwrite=True)
        info = vidup.probe(source)
        frames = list(islice(reader.decode(info), arguments.frames or None))
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
    share = statistics.median(1 - one["engine"] / one["wall"] for one in jobs)
    print(f"not the engine: {100 * share:.1f} %   frames a second: {len(frames) / middle['wall']:.2f}")


if __name__ == "__main__":
    main()
