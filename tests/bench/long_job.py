"""A long job: planning takes seconds, memory stays flat, joining is linear.

    python tests/bench/long_job.py [--frames 5000 20000] [--limit 30]

Upscales clips of two lengths, 64x48, with the baseline engine (nearest, scale 2, preset ultrafast), each in
a process of its own, and times its parts: planning, rehearsing the join, upscaling, joining, verifying. Exits with 1
where the peaks of resident memory differ by more than the limit (in MB).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import material
import memory
import report


def measure(source: Path) -> None:
    """Upscale a clip in this process; print the seconds of each part and the peak in MB as JSON."""
    import vidup
    from vidup.job.plan import plan
    from vidup.job.rehearse import rehearse

    settings = vidup.Settings(model="nearest", scale=2, encoder_options={"preset": "ultrafast"})
    began = time.perf_counter()
    job = plan(source, source.with_suffix(".x2.mp4"), settings)
    parts = {"planning": time.perf_counter() - began}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rehearse(job, Path(folder))
    parts["rehearsing"] = time.perf_counter() - began
    entered: list[tuple[str, float]] = []

    def look(event: vidup.Progress) -> None:
        if not entered or entered[-1][0] != event.state:
            entered.append((event.state, time.perf_counter()))

    vidup.upscale(source, job.output, settings, runtime=vidup.Runtime(device="cpu"), on_progress=look)
    for (state, begin), (_, end) in zip(entered, entered[1:], strict=False):
        parts[state] = end - begin
    print(json.dumps({**parts, "peak": memory.peak() / memory.MB}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs=2, default=(5000, 20000), metavar=("SHORT", "LONG"))
    parser.add_argument("--limit", type=float, default=30, help="MB that the peaks may differ by")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # what the child processes are asked to do
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return 0
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for frames in arguments.frames:
            source = material.clip(Path(folder) / f"{frames}.mp4", frames, 64, 48)
            command = [sys.executable, __file__, "--measure", str(source)]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found.append(json.loads(result.stdout))
    names = ("planning", "rehearsing", "upscaling", "joining", "verifying", "peak")
    rows = [
        (frames, *(f"{one[name]:.2f}" for name in names)) for frames, one in zip(arguments.frames, found, strict=True)
    ]
    short, long = found
    ratio = arguments.frames[1] / arguments.frames[0]
    rows.append((f"ratio ({ratio:g})", *(f"{long[name] / short[name]:.2f}" for name in names)))
    heads = ("frames", "planning s", "rehearsing s", "upscaling s", "joining s", "verifying s", "peak MB")
    report.show("a long job, 64x48 to 128x96, nearest", heads, rows, report.facts())
    grown = long["peak"] - short["peak"]
    fits = grown <= arguments.limit
    print(f"the peaks differ by {grown:.1f} MB: {'within' if fits else 'MORE than'} {arguments.limit:g} MB")
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
