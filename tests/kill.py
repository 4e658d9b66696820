"""Kill jobs with SIGKILL at random moments, go on each time, and compare the result with that of an undisturbed run.

    python tests/kill.py --kills 100

What must be equal: every decoded frame, every packet of sound, and that nothing else is left. POSIX only: jobs are
forked from a process that has everything loaded, so that the kills fall into the work and not into its imports.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from fractions import Fraction
from itertools import cycle
from pathlib import Path

import av
import numpy as np
import torch

import vidup.engines.x4  # noqa: F401  # what a job would import
from vidup import Settings, job
from vidup.config import Runtime

WIDTH, HEIGHT, FRAMES = 48, 32, 15
CASES = [
    ("nearest", "libx264", "mp4", {"preset": "veryfast"}),
    ("mini", "libx264", "mkv", {"preset": "veryfast"}),
    ("nearest", "libx265", "mkv", {"preset": "ultrafast"}),
    ("nearest", "libsvtav1", "mp4", {"preset": "12"}),
    ("mini", "ffv1", "mkv", {}),
    ("nearest", "ffv1", "mkv", {}),
    ("mini", "libx265", "mp4", {"preset": "ultrafast"}),
]


def make_source(path: Path) -> None:
    """A clip with moving noise, B-frames, uneven times, and sound."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (HEIGHT, WIDTH + FRAMES, 3), np.uint8)
    with av.open(str(path), "w", container_options={"movie_timescale": "12800"}) as container:
        video, audio = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=44100)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.time_base = video.time_base = Fraction(1, 12800)
        for index in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:, index : index + WIDTH]))
            frame.pts, frame.time_base = 512 * index + (37 if index % 3 else 0), Fraction(1, 12800)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        wave = np.sin(np.arange(44100 * FRAMES // 25) * 0.05).astype(np.float32)[None] * 0.3
        sound = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 44100, 0
        for part in av.AudioResampler("fltp", "stereo", 44100, 1024).resample(sound):
            container.mux(audio.encode(part))
        container.mux(audio.encode(None))


def contents(path: Path) -> tuple[list[tuple[int, str]], list[str]]:
    """(time, hash) of every decoded frame, and the hashes of the sound's packets."""
    with av.open(str(path)) as container:
        frames = [
            (frame.pts, hashlib.sha256(b"".join(bytes(plane) for plane in frame.planes)).hexdigest())
            for frame in container.decode(container.streams.video[0])
        ]
    with av.open(str(path)) as container:
        sound = [hashlib.sha256(bytes(p)).hexdigest() for p in container.demux(container.streams.audio[0]) if p.size]
    return frames, sound


def forked(work: Callable[[], object]) -> int:
    """Do something in a child process; returns its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def wait(child: int) -> int:
    """The exit code of a child; less than 0 where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


Case = tuple[str, str, str, dict[str, str]]
"""Model, encoder, container, options of the encoder."""


def kill_and_resume(source: Path, folder: Path, case: Case, kills: int, seed: int) -> int:
    """Disturb one job so many times; returns how many kills fell before its end.

    Raises:
        AssertionError: the result differs from that of an undisturbed run.
    """
    model, codec, ending, options = case
    overrides = {"codec": codec, "encoder_options": options, "segment_frames": 3, "scale": 2}
    settings = Settings.preset("mini", steps=1, **overrides) if model == "mini" else Settings(model=model, **overrides)
    runtime = Runtime(device="cpu", batch=1, overwrite=True)

    def run(output: Path) -> Callable[[], object]:
        return lambda: job.upscale(source, output, settings, runtime=runtime)

    whole, disturbed = folder / f"whole.{ending}", folder / f"disturbed.{ending}"
    began = time.monotonic()
    assert wait(forked(run(whole))) == 0, f"{case}: the undisturbed run failed"
    length = time.monotonic() - began
    rng, done = random.Random(seed), 0
    for _ in range(4 * kills):
        if done == kills:
            break
        child = forked(run(disturbed))
        # What is done stays done, so that the moments wander through the whole job.
        time.sleep(length * rng.uniform(0.05, 0.6))
        os.kill(child, signal.SIGKILL)
        if wait(child) == -signal.SIGKILL:
            done += 1
        else:
            assert disturbed.is_file()
            disturbed.unlink()  # it came to its end: once more from the beginning
    assert wait(forked(run(disturbed))) == 0, f"{case}: the resumed run failed"
    assert contents(disturbed) == contents(whole), f"{case}: the result differs"
    assert not disturbed.with_name(disturbed.name + ".vidup").exists(), f"{case}: the job's folder is left"
    disturbed.unlink()
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="in all, spread over the cases")
    parser.add_argument("--cases", type=int, default=len(CASES), help="the first of the list, each with a whole run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # no pool of threads that a fork would lose
    gc.freeze()  # nor a search for garbage in all that torch holds, at the end of each job
    folder = Path(tempfile.mkdtemp(prefix="vidup-kill-"))
    try:
        source = folder / "source.mp4"
        assert wait(forked(lambda: make_source(source))) == 0
        cases = CASES[: arguments.cases]
        shares = [0] * len(cases)
        for _, index in zip(range(arguments.kills), cycle(range(len(cases))), strict=False):
            shares[index] += 1
        total = 0
        for index, (case, kills) in enumerate(zip(cases, shares, strict=True)):
            done = kill_and_resume(source, folder, case, kills, arguments.seed + index) if kills else 0
            print(f"{case[0]:8} {case[1]:10} {case[2]:4} killed {done:3} times: same frames, same sound", flush=True)
            total += done
        print(f"{total} kills")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if total == arguments.kills else 1


if __name__ == "__main__":
    sys.exit(main())
