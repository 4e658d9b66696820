"""A file of weights through vidup against a plain loop: PyAV, the bare network, PyAV.

    python tests/bench/checkpoint_loop.py [--threads 1]

Each is a process of its own, from file to file, its start included: CPU seconds and the most memory that was resident.
The plain loop is what one writes for this one model: it decodes to RGB, enlarges frame by frame in inference mode, and
encodes as vidup does (libx264, crf 18); it plans, proves and resumes nothing. vidup runs once as the loop does, each
frame alone and without the anchor, and once with its defaults. Weights are of the published shapes, and random but for
a way that brings the picture through: vidup refuses what does not show its source.
Exits with 1 where vidup, as the loop does, takes more than --limit times of its CPU time or memory; a single frame,
which is the start alone, does not count. Needs vidup[checkpoint].
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import material
import networks
import report

CLIPS = (("Compact", 1, 64, 48), ("Compact", 32, 320, 180), ("RRDB", 12, 96, 64))
"""Network, frames, width and height: tens of seconds of one core. A single small frame is the start alone."""

WAYS = {
    "plain loop": None,
    "vidup --anchor 0 --temporal off": ["--anchor", "0", "--temporal", "off"],
    "vidup": [],
}


class Taken(NamedTuple):
    """What a process took."""

    seconds: float
    """Of the CPU, in its own code and in the system's."""
    peak: int
    """Bytes that were resident at most."""


def plain(network: str, weights: Path, source: Path, target: Path) -> None:
    """Upscale a clip in this process."""
    import av
    import torch

    model = networks.NETWORKS[network]()
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval().requires_grad_(False)
    with av.open(str(source)) as before, av.open(str(target), "w") as after, torch.inference_mode():
        video = before.streams.video[0]
        video.thread_type = "AUTO"
        stream = after.add_stream("libx264", rate=video.average_rate, options={"crf": "18", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = 4 * video.width, 4 * video.height, "yuv420p"
        for frame in before.decode(video):
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            result = model(pixels.permute(2, 0, 1)[None] / 255).clamp_(0, 1)
            codes = (result[0] * 255).round_().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            picture = av.VideoFrame.from_ndarray(codes, format="rgb24")
            picture.pts, picture.time_base = frame.pts, frame.time_base
            after.mux(stream.encode(picture))
        after.mux(stream.encode(None))


def run(command: list[str], threads: int, cache: str) -> Taken:
    """Run a process to its end.

    Args:
        cache: the folder of the bytecode.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPYCACHEPREFIX": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed library has its bytecode
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{said}")
    return Taken(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="torch's")
    parser.add_argument("--limit", type=float, default=1.15)
    parser.add_argument("--plain", nargs=4, help=argparse.SUPPRESS)  # what the child processes are asked to do
    arguments = parser.parse_args()
    if arguments.plain:
        network, *paths = arguments.plain
        plain(network, *map(Path, paths))
        return 0

    rows, most = [], 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for network, frames, width, height in CLIPS:
            source = material.clip(folder / f"{network}{frames}.mp4", frames, width, height)
            weights = networks.write(network, folder / f"{network}.pth")
            found: dict[str, Taken] = {}
            for way, options in WAYS.items():
                target = folder / "out.mp4"
                command = [sys.executable, __file__, "--plain", network, *map(str, (weights, source, target))]
                if options is not None:
                    upscale = [sys.executable, "-m", "vidup", "upscale", str(source), "-o", str(target), "-y", "-q"]
                    command = [*upscale, "--device", "cpu", "--model", str(weights), *options]
                for _ in range(1 if rows else 2):  # the first run of all makes the bytecode
                    found[way] = run(command, arguments.threads, str(folder / "bytecode"))
            first = found["plain loop"]
            for way, taken in found.items():
                ratios = taken.seconds / first.seconds, taken.peak / first.peak
                most = max(most, *ratios) if way != "vidup" and frames > 1 else most
                rows.append(
                    (f"{network} {width}x{height}, {frames}: {way}", f"{taken.seconds:.1f}", f"{ratios[0]:.2f}",
                     f"{taken.peak / 1e6:.0f}", f"{ratios[1]:.2f}")
                )  # fmt: skip
    heads = ("network, size, frames: way", "CPU s", "ratio", "peak MB", "ratio")
    report.show("from file to file, start included", heads, rows, report.facts() | {"threads": arguments.threads})
    fits = most <= arguments.limit
    print(
        f"as the loop does, vidup takes up to {most:.2f} times: {'within' if fits else 'MORE than'} {arguments.limit:g}"
    )
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
