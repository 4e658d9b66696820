"""The share of a job's wall time that is not the engine, and frames a second.

    python tests/bench/overhead.py [--model mini|narrow|bicubic] [--frames 120] [--clip FILE] [--rounds N]

The engine's thread is watched with a stopwatch: the model, the anchor, and the two conversions of colour. What is left
of its wall time, from the end of loading to the last frame, is waiting for the decoder and the encoder, and handing
frames over. Those run in threads of their own: where cores are few they slow the engine down, so the engine is timed
alone as well, on the same frames. Settings are those of the preset "mini", each frame alone.

On CUDA, parts are timed by events on the device's own stream, so that nothing waits for the stopwatch. Where vidup
compiles, the clip that does so is left out, of the parts and of the wall time.
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
from vidup import engines
from vidup.engines.hub import MINI
from vidup.media import decoding
from vidup.media.probing import probe
from vidup.picture import color, footage
from vidup.prefetch import batched

WATCHED = {
    "engine": (engines, "enlarge"),
    "anchor": (footage, "held"),
    "planes to RGB": (color, "to_rgb"),
    "RGB to planes": (color, "to_codes"),
}
"""What is timed, by where it is looked up."""


Parts = dict[str, float]
"""Seconds by the name of what took them."""


class Stopwatch:
    """How long functions take, on the device that they work on."""

    def __init__(self, device: str) -> None:
        self.is_cuda = device.startswith("cuda")
        self.spans: list[tuple[str, Any, Any]] = []
        self.frames = 0
        """That went through the engine."""

    def watch(self, name: str, home: Any, attribute: str) -> None:
        function: Callable[..., Any] = getattr(home, attribute)

        @functools.wraps(function)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return function(*arguments, **keywords)
            began = self.mark()
            result = function(*arguments, **keywords)
            self.spans.append((name, began, self.mark()))
            self.frames += len(arguments[1]) if name == "engine" else 0
            return result

        setattr(home, attribute, timed)

    def mark(self) -> Any:
        """A moment: of this thread, or of the device's stream, which is reached when all before it is done."""
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def now(self) -> float:
        """Once the device has done all."""
        if self.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self) -> Parts:
        """By the name of what took them, since the last call of `clear`."""
        self.now()
        found: Parts = defaultdict(float)
        for name, begin, end in self.spans:
            found[name] += begin.elapsed_time(end) / 1000 if self.is_cuda else end - begin
        return found

    def clear(self) -> None:
        self.now()
        self.spans.clear()
        self.frames = 0


def job(source: Path, target: Path, settings: vidup.Settings, runtime: vidup.Runtime, watch: Stopwatch) -> Parts:
    """Seconds of a job by part, and its "frames"; "wall" is from the end of loading or compiling to the last frame."""
    watch.clear()
    first: dict[str, float] = {}
    began = watch.now()
    parts: Parts = {}

    def look(event: vidup.Progress) -> None:
        if event.state not in first:
            first[event.state] = watch.now()
            if event.state == "upscaling":  # after a clip that was compiled for, if one was
                watch.clear()
        if event.state == "joining" and not parts:  # what comes after is not the engine's time
            seconds = watch.seconds()
            parts.update({name: seconds[name] for name in WATCHED})
            parts["frames"] = watch.frames

    vidup.upscale(source, target, settings, runtime=runtime, on_progress=look)
    wall = first["joining"] - first["upscaling"]
    parts["waiting for decoder and encoder"] = wall - sum(parts[name] for name in WATCHED)
    outside = {
        "before (load, plan, compile)": first["upscaling"] - began,
        "after (join, verify)": watch.now() - first["joining"],
    }
    return {**parts, "wall": wall, **outside}


def alone(frames: list[vidup.Frame], settings: vidup.Settings, runtime: vidup.Runtime, watch: Stopwatch) -> float:
    """Seconds of the engine a frame, on the same frames, with nothing beside it."""
    height, width = frames[0].planes[0].shape
    with vidup.Upscaler(settings, runtime) as loaded, torch.inference_mode():
        choice, place = loaded.choose(height, width), engines.Place(height=height, width=width)
        clips = list(batched(frames, choice.batch))
        for number, clip in enumerate(clips):
            rgb = torch.stack([color.to_rgb(frame, loaded.engine.device) for frame in clip])
            engines.enlarge(loaded.engine, rgb, place, choice)
            if number == 1 and loaded.compiles:  # compiled by the first, recorded by the second
                watch.clear()
        return watch.seconds()["engine"] / watch.frames


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
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
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
        settings = vidup.Settings.preset("mini", model=chosen, temporal="off")
        runtime = vidup.Runtime(device=arguments.device, overwrite=True, compile=arguments.compile)
        info = probe(source)
        frames = list(islice(decoding.decode(info), arguments.frames))
        if len(frames) < info.frames:
            settings = replace(settings, duration=float((frames[-1].pts + 1) * info.time_base - info.begin))
        for _ in range(arguments.rounds):
            jobs.append(job(source, target, settings, runtime, watch))
            watch.clear()
            engine_alone.append(alone(frames, settings, runtime, watch))

    middle = {name: statistics.median(one[name] for one in jobs) for name in jobs[0]}
    timed = middle.pop("frames")
    middle["engine, alone"] = statistics.median(engine_alone) * timed
    rows = [
        (name, f"{1000 * value / timed:.1f}", f"{100 * value / middle['wall']:.1f}") for name, value in middle.items()
    ]
    known = report.facts(arguments.device) | {"threads": torch.get_num_threads()}
    title = f"{model}, {len(frames)} frames, {info.width}x{info.height} to {4 * info.width}x{4 * info.height}"
    report.show(title, ("part", "ms a frame", "% of wall"), rows, known)
    shares = [(one["engine"] + one["anchor"]) / one["wall"] for one in jobs]
    print(f"engine and anchor: {100 * statistics.median(shares):.1f} % of the wall time   "
          f"frames a second: {timed / middle['wall']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
