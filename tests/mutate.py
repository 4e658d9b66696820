"""Damage clips, pictures, models and jobs in many ways: each is upscaled, and verified, or refused in one line.

    python tests/mutate.py [--kind pictures] [--count 2000] [--seed 0] [--first 0] [--only N] [--seconds-per-file 20]
        [--memory 4096]

Every mutant follows from its number and the seed alone, so that ``--only N`` makes the same one again. It is tried in
two ways: a clip with the default settings and with ``tolerate_errors``, a stopped job resumed and with ``restart``, a
model without a prompt and with one, a picture into two formats. Workers are processes of their own with a limit on
memory; one that crashes or hangs is a finding, and is replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import mutants


@dataclass
class Result:
    """What became of a mutant."""

    number: int
    clip: str
    change: str
    tolerate: bool
    outcome: str
    """``delivered``, or the name of a `VidupError`; else ``crash``, ``hang``, or another error's name."""
    message: str
    seconds: float = 0.0
    wrong: str = ""
    """What is against the rules; empty where nothing is."""


def try_one(number: int, seed: int, sources: list[Path], folder: Path, second: bool) -> Result:
    """Upscale a mutant, and see that all rules hold.

    Args:
        second: the other way: a clip with ``tolerate_errors``, a job with ``restart``, a model with a prompt.
    """
    made = mutants.mutant(number, seed, sources)
    result = Result(number, made.source.name, f"{made.file} {made.change}".strip(), second, "delivered", "")
    begin = time.monotonic()
    before = {thread.name for thread in threading.enumerate()}
    try:
        _TRIED[mutants.kind(made.source)](made, folder, second, result)
    except BaseException as error:
        result.outcome, result.message = type(error).__name__, f"{error}"
        result.wrong = "".join(traceback.format_exc().splitlines(keepends=True)[-14:])
    result.seconds = time.monotonic() - begin
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("vidup")]
    if left and not result.wrong:
        result.wrong = f"threads are left: {[name for name in left if name not in before]}"
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return result


def _refused(result: Result, error: Exception, output: Path) -> None:
    result.outcome, result.message = type(error).__name__, str(error)
    if "\n" in result.message or "\r" in result.message or not result.message.strip():
        result.wrong = "the message is not one line"
    elif output.exists():
        result.wrong = "there is an error, and a file at the output path"


def _try_clip(made: mutants.Mutant, folder: Path, second: bool, result: Result) -> None:
    import vidup
    from vidup.job import store

    source = folder / f"mutant{made.source.suffix}"
    mutants.place(made, source)
    kept = source.suffix in (".mp4", ".mov", ".mkv", ".webm")
    output = folder / f"out{source.suffix if kept else '.mkv'}"
    work = folder / f"{output.name}.vidup"
    webm = source.suffix == ".webm"
    settings = vidup.Settings(
        model="nearest",
        scale=2,
        codec=None if webm else "libx264",
        tolerate_errors=second,
        encoder_options={"deadline": "realtime", "cpu-used": "8"} if webm else {"preset": "ultrafast"},
    )
    try:
        vidup.upscale(source, output, settings, runtime=vidup.Runtime(device="cpu"))
    except vidup.VidupError as error:
        _refused(result, error, output)
        if work.exists() and not all(store._OWN.fullmatch(path.name) for path in work.iterdir()):
            result.wrong = result.wrong or "a work folder with strange files is left"
    else:
        if not output.is_file() or work.exists():
            result.wrong = "delivered without a file, or with its work folder"


def _try_picture(made: mutants.Mutant, folder: Path, second: bool, result: Result) -> None:
    from PIL import Image

    import vidup

    source = folder / f"mutant{made.source.suffix}"
    endings = [".png", ".jpg", ".webp", ".tif", ".bmp"]
    output = folder / f"out{endings[(result.number // 7 + second) % len(endings)]}"
    mutants.place(made, source)
    try:
        vidup.upscale(source, output, vidup.Settings(model="nearest", scale=2), runtime=vidup.Runtime(device="cpu"))
    except vidup.VidupError as error:
        _refused(result, error, output)
        return
    with Image.open(output) as big:
        big.load()


def _try_model(made: mutants.Mutant, folder: Path, second: bool, result: Result) -> None:
    from PIL import Image

    import vidup

    source = folder / f"mutant{made.source.suffix}"
    mutants.place(made, source)
    settings = vidup.Settings(model=str(source), steps=2, prompt="a boat" if second else "", guidance_scale=3.0)
    try:
        with vidup.Upscaler(settings, vidup.Runtime(device="cpu")) as upscaler:
            upscaler(Image.new("RGB", (12, 10), (200, 30, 60)))
    except vidup.VidupError as error:
        _refused(result, error, folder / "none")


def _try_job(made: mutants.Mutant, folder: Path, second: bool, result: Result) -> None:
    import vidup

    job, expected = folder / "job", (made.source / "expected").read_text()
    output = job / "out.mkv"
    mutants.place(made, job)
    runtime = vidup.Runtime(device="cpu", restart=second)
    try:
        vidup.upscale(job / "in.mkv", output, vidup.Settings(**mutants.JOB), runtime=runtime)
    except vidup.VidupError as error:
        _refused(result, error, output)
        return
    if mutants.pictures_of(output) != expected:
        result.wrong = "other pictures, or other times, than without the stop"


_TRIED = {
    "clip": _try_clip, "picture": _try_picture, "weights": _try_model, "model": _try_model, "job": _try_job,
}  # fmt: skip


def _work(seed: int, sources: list[Path], folder: Path, memory: int) -> None:
    """In a worker: upscale each mutant whose number comes in, and write what became of it."""
    import torch

    import vidup.job  # before the limit: what the libraries map is not the mutant's

    torch.set_num_threads(1)
    assert vidup.job
    if any(mutants.kind(source) in ("model", "weights") for source in sources):
        import vidup.engines.x2
        import vidup.engines.x4
    if sys.platform == "linux":
        import resource

        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory * 2**20,) * 2)
    gc.freeze()  # else each mutant ends with a search for garbage in all that torch holds
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        number, tolerate = json.loads(line)
        print(json.dumps(asdict(try_one(number, seed, sources, folder, tolerate))), flush=True)


class Worker:
    """A process that upscales mutants until one ends it."""

    def __init__(self, seed: int, sources: list[Path], memory: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mutant")
        arguments = ["--work", self._folder.name, "--seed", str(seed), "--memory", str(memory)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *arguments, *map(str, sources)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._read, args=[self._process.stdout, self._lines.put], daemon=True),
            threading.Thread(target=self._read, args=[self._process.stderr, self._errors.append], daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        assert self._answer(180) == {"ready": True}, "".join(line for line in self._errors if line)

    @staticmethod
    def _read(stream: TextIO, put: Callable[[Any], None]) -> None:
        for line in stream:
            put(line)
        put(None)

    def _answer(self, seconds: float) -> dict[str, Any] | None:
        """What the worker writes next; None where it ended. `TimeoutError` where it takes longer."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        return json.loads(line) if line else None

    def try_one(self, number: int, tolerate: bool, seconds: float) -> Result:
        """What becomes of a mutant; the worker has ended where it is a ``crash`` or a ``hang``."""
        assert self._process.stdin is not None
        result = Result(number, "", "", tolerate, "hang", f"more than {seconds:g} s")
        result.wrong = result.message
        try:
            self._process.stdin.write(json.dumps([number, tolerate]) + "\n")
            self._process.stdin.flush()
            if (found := self._answer(seconds)) is not None:
                return Result(**found)
            code = self._process.wait()
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            result.outcome, result.message = "crash", name
            result.wrong = name + ": " + "".join(line for line in self._errors if line)[-400:]
        except TimeoutError:
            pass
        self.close()
        return result

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        with contextlib.suppress(OSError):
            self._folder.cleanup()


def try_all(
    numbers: Iterable[int], seed: int, sources: list[Path], seconds: float = 20, memory: int = 4096
) -> Iterator[Result]:
    """What becomes of the mutants with these numbers: one by default, one with ``tolerate_errors``.

    Args:
        seconds: after which a file counts as hung.
        memory: MiB that a worker may map beyond what it has before the first file (Linux).
    """
    worker: Worker | None = None
    try:
        for number in numbers:
            for tolerate in (False, True):
                worker = worker or Worker(seed, sources, memory)
                result = worker.try_one(number, tolerate, seconds)
                if result.outcome in ("crash", "hang"):
                    made = mutants.mutant(number, seed, sources)
                    result.clip, result.change, worker = made.source.name, f"{made.file} {made.change}", None
                yield result
    finally:
        if worker is not None:
            worker.close()


_MADE = {
    "clips": mutants.make_clips, "pictures": mutants.make_pictures, "models": mutants.make_models,
    "jobs": mutants.make_jobs,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="Damage clips, pictures, models and jobs and upscale them.")
    parser.add_argument("--count", type=int, default=2000, help="mutants")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--only", type=int, help="number of the only one; tells its messages")
    parser.add_argument("--kind", choices=list(_MADE), action="append", help="of what (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds-per-file", type=float, default=20)
    parser.add_argument("--memory", type=int, default=4096, help="MiB beyond what the libraries take")
    parser.add_argument("--verbose", action="store_true", help="tell every outcome")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("clips", nargs="*", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        _work(given.seed, given.clips, given.work, given.memory)
        return 0
    numbers = [given.only] if given.only is not None else range(given.first, given.first + given.count)
    table: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        sources = [each for name in given.kind or _MADE for each in _MADE[name](Path(folder))]
        for result in try_all(numbers, given.seed, sources, given.seconds_per_file, given.memory):
            table[result.tolerate][result.outcome] += 1
            wrong += bool(result.wrong)
            if result.wrong or given.verbose or given.only is not None:
                mode = "tolerated" if result.tolerate else "default"
                about = f"--only {result.number} ({mode}, {result.clip}, {result.change}, {result.seconds:.1f} s)"
                print(f"{about}: {result.outcome}: {result.message}\n{result.wrong}".rstrip(), flush=True)
    print(f"{'outcome':24} default  tolerated")
    for outcome in sorted(table[False] | table[True]):
        print(f"{outcome:24} {table[False][outcome]:7}  {table[True][outcome]:9}")
    print(f"{wrong} violations")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
