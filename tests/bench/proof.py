"""What the proof of pictures adds to a job whose engine costs nearly nothing.

    python tests/bench/proof.py [--sizes 64x48 32x24 16x16] [--frames 2000] [--rounds 3]

Upscales made clips with the bilinear engine, scale 4, by turns with the proof of every picture and without; the least
CPU seconds and the least wall time of the rounds are compared. One thread of torch's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import material
import report
import torch

import vidup
from vidup.job import worker
from vidup.proof.pictures import Compared

SETTINGS = vidup.Settings(model="bilinear", scale=4)


def job(source: Path) -> tuple[float, float]:
    """CPU seconds and wall time of a job."""
    began = time.process_time(), time.perf_counter()
    runtime = vidup.Runtime(device="cpu", overwrite=True)
    vidup.upscale(source, source.with_suffix(".x4.mp4"), SETTINGS, runtime=runtime)
    return time.process_time() - began[0], time.perf_counter() - began[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=material.size, nargs="+", default=[(64, 48), (32, 24), (16, 16)])
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    proof = worker.check_segment
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for width, height in arguments.sizes:
            source = material.clip(Path(folder) / f"{width}x{height}.mp4", arguments.frames, width, height)
            job(source)  # what is imported and cached once
            taken: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
            for _ in range(arguments.rounds):
                for proved in taken:
                    worker.check_segment = proof if proved else lambda *_: Compared(0, 1.0)
                    taken[proved].append(job(source))
            with_it, without = ([min(one) for one in zip(*taken[proved], strict=True)] for proved in taken)
            added = (f"{100 * (one / other - 1):.0f} %" for one, other in zip(with_it, without, strict=True))
            rows.append((f"{width}x{height}", f"{with_it[0]:.2f}", f"{without[0]:.2f}", *added))
    heads = ("input", "CPU s", "without", "added", "of wall time")
    report.show(f"the proof of {arguments.frames} pictures, bilinear", heads, rows, report.facts())


if __name__ == "__main__":
    main()
