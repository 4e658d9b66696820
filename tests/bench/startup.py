"""How long commands take to start: to say a first word, and to do what hardly takes time, against what they stand on.

    python tests/bench/startup.py [--runs 15]

The commands take turns; the bytecode of all that is imported is cached, as it is after the first run of an install.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import material
import report


def commands(clip: str) -> dict[str, list[str]]:
    """What is timed, some of it on a clip of one frame.

    `vidup` is this interpreter's script where it is installed, else ``python -m vidup``.
    """
    script = shutil.which("vidup", path=str(Path(sys.executable).parent))
    vidup = [script] if script else [sys.executable, "-m", "vidup"]
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import vidup'": [sys.executable, "-c", "import vidup"],
        "vidup --version": [*vidup, "--version"],
        "vidup --help": [*vidup, "--help"],
        "vidup upscale --help": [*vidup, "upscale", "--help"],
        "python -c 'import torch, av'": [sys.executable, "-c", "import torch, av"],
        "vidup probe, one frame": [*vidup, "probe", clip, "--model", "nearest"],
        "vidup upscale, one frame, nearest": [
            *vidup,
            "upscale",
            clip,
            "-o",
            f"{clip}.mkv",
            "-yq",
            "--model",
            "nearest",
        ],
        "vidup upscale, one frame, mini": [*vidup, "upscale", clip, "-o", f"{clip}.mkv", "-yq", "--model", "mini"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as cache:
        timed = commands(str(material.clip(Path(cache) / "clip.mp4", 1, 32, 24)))
        taken: dict[str, list[float]] = {name: [] for name in timed}
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for number in range(runs + 1):
            for name, command in timed.items():
                began = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
                if number:  # the first time fills the cache
                    taken[name].append(1000 * (time.perf_counter() - began))
    nothing = statistics.median(taken["python -c pass"])
    rows = [
        (name, f"{statistics.median(times):.0f}", f"{min(times):.0f}", f"{statistics.median(times) - nothing:+.0f}")
        for name, times in taken.items()
    ]
    heads = ("command", "median", "least", "over pass")
    report.show(f"start, {runs} runs each, milliseconds", heads, rows, report.facts())


if __name__ == "__main__":
    main()
