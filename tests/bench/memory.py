"""Memory must not grow with the length of the video.

    python tests/bench/memory.py [--frames 300 3000] [--limit 30]

Upscales clips of two lengths, 64x48, with the baseline engine (bilinear, scale 4, preset ultrafast), each in a process
of its own, and compares their resident memory. Exits with 1 where the peaks differ by more than the limit.
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
import psutil
import report

MB = 1e6


def measure(source: Path) -> None:
    """Upscale a clip in this process; print seconds, the peak and the last resident memory in MB as JSON."""
    import vidup

    settings = vidup.Settings(model="bilinear", scale=4, encoder_options={"preset": "ultrafast"})
    began = time.perf_counter()
    vidup.upscale(source, source.with_name(f"{source.stem}_x4.mp4"), settings, runtime=vidup.Runtime(device="cpu"))
    taken = time.perf_counter() - began
    print(json.dumps({"seconds": taken, "peak": peak() / MB, "end": psutil.Process().memory_info().rss / MB}))


def peak() -> int:
    """Bytes that were resident at most. On Linux it is no less than what the process that started this one held."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs=2, default=(300, 3000), metavar=("SHORT", "LONG"))
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
    rows = [
        (frames, f"{one['peak']:.1f}", f"{one['end']:.1f}", f"{frames / one['seconds']:.0f}")
        for frames, one in zip(arguments.frames, found, strict=True)
    ]
    short, long = found
    grown = abs(long["peak"] - short["peak"])
    rows.append(("difference", f"{long['peak'] - short['peak']:+.1f}", f"{long['end'] - short['end']:+.1f}", ""))
    report.show("resident memory, 64x48 to 256x192, bilinear", ("frames", "peak MB", "end MB", "frames/s"), rows,
                report.facts())  # fmt: skip
    fits = grown <= arguments.limit
    print(f"the peaks differ by {grown:.1f} MB: {'within' if fits else 'MORE than'} {arguments.limit:g} MB")
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
