"""How much faster a job is with several workers on Ray than with one in this process.

    python tests/bench/scaling.py [--workers 2] [--segments 20] [--seconds 1]
    python tests/bench/scaling.py --input FILE --model nearest [--workers 2] [-- --preset mini]

Without an input each segment sleeps, as one does that waits for its own GPU: what is measured is what handing out,
progress and results cost, and how long Ray takes to start and to end. With one, ``vidup upscale`` runs with
``--workers``; what stands behind ``--`` is passed on to it. There the workers share this machine's cores or GPU, and so
may gain less.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import report

from vidup.job import on_ray
from vidup.job.crew import Report, Worker
from vidup.job.ray_cluster import Wanted

UNITS = 20
"""What a sleeping segment reports, one by one."""


def sleeper(seconds: float) -> Worker[int, int]:
    """A worker that takes so many seconds for a segment."""

    def worker(items: Iterator[int], report: Report) -> Generator[tuple[int, int], None, None]:
        for item in items:
            for _ in range(UNITS):
                time.sleep(seconds / UNITS)
                report(1)
            yield item, item

    return worker


@dataclass(frozen=True)
class Times:
    """Seconds of one job."""

    begun: float
    """Until the first item was begun, as the first progress tells it: what starting took."""
    last: float
    """Until the last result."""
    whole: float
    """Until nothing is left of the workers."""


def sleeping(workers: int, segments: int, seconds: float) -> Times:
    stamps: list[tuple[float, int]] = []
    results: list[float] = []
    began = time.perf_counter()

    def now() -> float:
        return time.perf_counter() - began

    make, wanted = functools.partial(sleeper, seconds), Wanted(f"workers = {workers}", workers, threads=1)
    for _ in on_ray.run(make, range(segments), wanted, lambda units: stamps.append((now(), units)), lambda: False):
        results.append(now())
    first, units = stamps[0]
    return Times(max(0.0, first - units * seconds / UNITS), results[-1], now())


def upscaling(workers: int, source: Path, model: str, more: list[str]) -> Times:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.mkv"
        command = [sys.executable, "-m", "vidup", "upscale", str(source), "-o", str(target), "-n", model]
        began = time.perf_counter()
        subprocess.run([*command, "--workers", str(workers), *more], check=True)
        whole = time.perf_counter() - began
    return Times(0.0, whole, whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--segments", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0, help="that a segment sleeps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--input", type=Path, help="upscale this instead of sleeping")
    parser.add_argument("--model", default="nearest")
    parser.add_argument("more", nargs="*", help="options for vidup upscale, behind --")
    arguments = parser.parse_args()

    def run(workers: int) -> Times:
        if arguments.input is not None:
            return upscaling(workers, arguments.input, arguments.model, arguments.more)
        return sleeping(workers, arguments.segments, arguments.seconds)

    rounds = [(run(1), run(arguments.workers)) for _ in range(arguments.rounds)]
    rows = []
    for workers, times in ((1, [one for one, _ in rounds]), (arguments.workers, [many for _, many in rounds])):
        columns = zip(*((each.begun, each.last - each.begun, each.whole) for each in times), strict=True)
        rows.append((f"{workers}", *(f"{statistics.median(column):.2f}" for column in columns)))
    what = arguments.model if arguments.input else f"{arguments.segments} segments of {arguments.seconds:g} s, sleeping"
    report.show(what, ("workers", "s to start", "s at work", "s in all"), rows, report.facts())
    without = statistics.median((one.last - one.begun) / (many.last - many.begun) for one, many in rounds)
    including = statistics.median(one.whole / many.whole for one, many in rounds)
    print(f"{arguments.workers} workers against 1: {without:.2f}x at work, {including:.2f}x with starting and ending")


if __name__ == "__main__":
    main()
