"""Damage small clips in many ways and upscale them: each must be delivered and verified, or refused in one line.

    python tests/mutate.py [--count 2000] [--seed 0] [--first 0] [--only N] [--seconds-per-file 20] [--memory 4096]

Every mutant follows from its number and the seed alone, so that ``--only N`` makes the same one again; it is upscaled
with the default settings and with ``tolerate_errors``. Workers are processes of their own with a limit on memory; one
that crashes or hangs is a finding, and is replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import random
import re
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
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

import av
import numpy as np

# name, format, video encoder, pixel format, its options, sound, subtitles
_CLIPS: list[tuple[str, str, str, str, dict[str, str], str, str]] = [
    ("h264.mp4", "mp4", "libx264", "yuv420p", {"preset": "ultrafast", "bf": "2"}, "aac", "mov_text"),
    ("faststart.mp4", "mp4", "libx264", "yuv420p", {"preset": "ultrafast"}, "aac", ""),
    ("fragments.mp4", "mp4", "libx264", "yuv420p", {"preset": "ultrafast", "bf": "2"}, "aac", ""),
    ("hevc.mp4", "mp4", "libx265", "yuv420p10le", {"preset": "ultrafast", "x265-params": "log-level=none"}, "", ""),
    ("av1.mp4", "mp4", "libsvtav1", "yuv420p", {"preset": "10"}, "", ""),
    ("prores.mov", "mov", "prores_ks", "yuv422p10le", {}, "pcm_s16le", ""),
    ("mjpeg.mov", "mov", "mjpeg", "yuvj420p", {}, "", ""),
    ("h264.mkv", "matroska", "libx264", "yuv420p", {"preset": "ultrafast", "bf": "2"}, "flac", "subrip"),
    ("ffv1.mkv", "matroska", "ffv1", "yuv420p", {"level": "3", "slices": "4"}, "pcm_s16le", ""),
    ("hevc.mkv", "matroska", "libx265", "yuv420p", {"preset": "ultrafast", "x265-params": "log-level=none"}, "", ""),
    ("vp9.webm", "webm", "libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}, "libopus", "webvtt"),
    ("mpeg4.avi", "avi", "mpeg4", "yuv420p", {}, "mp2", ""),
    ("mjpeg.avi", "avi", "mjpeg", "yuvj420p", {}, "pcm_s16le", ""),
    ("h264.ts", "mpegts", "libx264", "yuv420p", {"preset": "ultrafast", "bf": "2"}, "mp2", ""),
    ("mpeg2.ts", "mpegts", "mpeg2video", "yuv420p", {"bf": "2"}, "aac", ""),
    ("mpeg2.mpg", "mpeg", "mpeg2video", "yuv420p", {"bf": "2"}, "mp2", ""),
    ("h264.flv", "flv", "libx264", "yuv420p", {"preset": "ultrafast"}, "aac", ""),
    ("moving.gif", "gif", "gif", "rgb8", {}, "", ""),
    ("vp8.ogg", "ogg", "libvpx", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}, "flac", ""),
    ("ffv1.nut", "nut", "ffv1", "yuv420p", {}, "pcm_s16le", ""),
    ("wmv2.asf", "asf", "wmv2", "yuv420p", {}, "mp2", ""),
    ("moving.apng", "apng", "apng", "rgb24", {}, "", ""),
    ("raw.h264", "h264", "libx264", "yuv420p", {"preset": "ultrafast"}, "", ""),
]
_MUXER_OPTIONS = {"fragments.mp4": {"movflags": "frag_keyframe+empty_moov"}, "faststart.mp4": {"movflags": "faststart"}}
_SIZE, _FRAMES = (64, 32), 12  # x265 spoils the heap where a picture is 48 wide

# Values at which fields of sizes, counts and times go wrong.
_ODD_NUMBERS = [0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF]
_ODD_NUMBERS += [2**62, 2**63 - 1, 2**63, 2**64 - 1]
_TAG = re.compile(rb"[A-Za-z][A-Za-z0-9 ]{3}")  # box, chunk and codec names
_EBML = re.compile(  # elements of Matroska: those with long ids, which hold others, and some with short ones
    rb"\x1a\x45\xdf\xa3|\x18\x53\x80\x67|\x15\x49\xa9\x66|\x16\x54\xae\x6b|\x1f\x43\xb6\x75|\x11\x4d\x9b\x74"
)
_EBML_SHORT = re.compile(
    rb"[\xae\xe0\xe1\xd7\x83\x86\xb0\xba\xa3\xa0\xa1\xe7\x9b]|\x2a\xd7\xb1|\x44\x89|\x63\xa2|\x23\xe3\x83"
)


def make_clips(folder: Path, only: Iterable[str] = ()) -> list[Path]:
    """Write the clips that are damaged, each a few kB; those that the encoders at hand cannot write are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted, clips = set(only), []
    for name, kind, codec, pix_fmt, options, sound, texts in _CLIPS:
        if wanted and name not in wanted:
            continue
        path = folder / name
        if not path.exists():
            try:
                _write(path, kind, codec, pix_fmt, options, sound, texts)
            except (av.error.FFmpegError, ValueError) as error:
                print(f"{name} cannot be made: {error}", file=sys.stderr)
                path.unlink(missing_ok=True)
                continue
        clips.append(path)
    return clips


def _write(path: Path, kind: str, codec: str, pix_fmt: str, options: dict[str, str], sound: str, texts: str) -> None:
    width, height = _SIZE
    muxing = {"fflags": "+bitexact"} | _MUXER_OPTIONS.get(path.name, {})
    with av.open(str(path), "w", format=kind, container_options=muxing) as container:
        video = container.add_stream(codec, rate=25)
        context = video.codec_context
        context.width, context.height, context.pix_fmt, context.thread_count = width, height, pix_fmt, 1
        context.options = {"g": "5"} | options if codec.startswith(("lib", "mpeg", "wmv")) else options
        audio = container.add_stream(sound, rate=48000) if sound else None
        titles = container.add_mux_stream(texts) if texts in ("subrip", "webvtt") else None
        if kind in ("mp4", "mov", "matroska"):
            container.metadata["title"] = "A title, with \u00e4 in it"
            container.set_chapters(
                [
                    {"id": n, "start": 200 * n, "end": 200 * n + 200, "time_base": Fraction(1, 1000), "metadata": {}}
                    for n in range(2)
                ]
            )
        if kind == "matroska":
            container.add_attachment("note.txt", "text/plain", b"a file within")
        for packet in _encoded(video, audio):
            container.mux(packet)
        for index in range(3 if titles is not None else 0):
            packet = av.Packet(f"text {index}".encode())
            packet.stream, packet.time_base = titles, Fraction(1, 1000)
            packet.pts = packet.dts = 100 * index
            packet.duration = 90
            container.mux(packet)


def _encoded(video: Any, audio: Any) -> Iterator[Any]:
    width, height = _SIZE
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for index in range(_FRAMES):
        light = 128 + 80 * np.sin(x / 7 + index / 3) + 30 * np.cos(y / 5 - index / 4)
        picture = np.stack([light, 255 - light, light * (x > 4 * index)], -1).clip(0, 255).astype(np.uint8)
        frame = av.VideoFrame.from_ndarray(picture).reformat(format=video.codec_context.pix_fmt)
        frame.pts, frame.time_base = index, Fraction(1, 25)
        yield from video.encode(frame)
        if audio is not None and index == 0:
            yield from _sound(audio)
    yield from video.encode(None)


def _sound(audio: Any) -> Iterator[Any]:
    context = audio.codec_context
    context.open(strict=False)
    samples = (np.sin(np.arange(int(_FRAMES / 25 * 48000)) * 0.06) * 0.3).astype(np.float32)[None]
    resampler = av.AudioResampler(context.format, context.layout, 48000, context.frame_size or 1024)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        yield from audio.encode(part)
    yield from audio.encode(None)


def mutate(data: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Damage a file in one to three ways; returns it, and what was done in words."""
    told = []
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        change = chance.choice(_CHANGES)
        damaged = bytearray(data)
        change(damaged, chance)
        data = bytes(damaged)
        told.append(change.__name__.strip("_"))
    return data, "+".join(told)


def _place(data: bytearray, chance: random.Random) -> int:
    """Anywhere; in the first or the last kB as often as in all the rest."""
    edge = min(len(data), 1024)
    low, high = chance.choice([(0, edge), (len(data) - edge, len(data)), (0, len(data)), (0, len(data))])
    return chance.randrange(low, max(high, low + 1))


def _range(data: bytearray, chance: random.Random) -> tuple[int, int]:
    begin = _place(data, chance)
    return begin, min(len(data), begin + 1 + int(2 ** chance.uniform(0, 12)))


def _bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(int(2 ** chance.uniform(0, 6))):
        if data:
            data[_place(data, chance) % len(data)] ^= 1 << chance.randrange(8)


def _head_bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randrange(1, 9)):
        if data:
            data[chance.randrange(min(len(data), 1024))] ^= 1 << chance.randrange(8)


def _zeros(data: bytearray, chance: random.Random) -> None:
    begin, end = _range(data, chance)
    data[begin:end] = bytes([chance.choice([0, 255])]) * (end - begin)


def _noise(data: bytearray, chance: random.Random) -> None:
    begin, end = _range(data, chance)
    data[begin:end] = chance.randbytes(end - begin)


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[_place(data, chance) :]


def _doubled(data: bytearray, chance: random.Random) -> None:
    begin, end = _range(data, chance)
    data[begin:begin] = data[begin:end]


def _deleted(data: bytearray, chance: random.Random) -> None:
    begin, end = _range(data, chance)
    del data[begin:end]


def _swapped(data: bytearray, chance: random.Random) -> None:
    (a, b), (c, d) = sorted([_range(data, chance), _range(data, chance)])
    if b <= c:
        data[a:d] = data[c:d] + data[b:c] + data[a:b]


def _number(data: bytearray, chance: random.Random) -> None:
    """An odd number somewhere."""
    _put(data, _place(data, chance), chance.choice([1, 2, 4, 4, 8]), chance)


def _field(data: bytearray, chance: random.Random) -> None:
    """An odd number beside the name of a box or a chunk: its size, or the first of what it holds."""
    if names := [match.start() for match in _TAG.finditer(data)]:
        place = chance.choice(names[:200])
        _put(data, place + chance.choice([-4, -4, 4, 8, 12, 16, 20, 24]), chance.choice([4, 4, 4, 8]), chance)


def _element(data: bytearray, chance: random.Random) -> None:
    """An odd size, or an odd number, after the id of a Matroska element."""
    pattern = chance.choice([_EBML, _EBML_SHORT])
    if ids := [match.end() for match in pattern.finditer(data)]:
        place = chance.choice(ids[:300])
        if chance.random() < 0.5:
            sizes = [b"\x01\xff\xff\xff\xff\xff\xff\xff", b"\x01" + bytes(7), b"\x08\x7f\xff\xff\xff", b"\xff", b"\x80"]
            data[place : place + 1] = chance.choice(sizes)
        else:
            _put(data, place + 1, chance.choice([1, 2, 4, 8]), chance)


def _put(data: bytearray, place: int, size: int, chance: random.Random) -> None:
    number = chance.choice(_ODD_NUMBERS) & ((1 << 8 * size) - 1)
    if 0 <= place <= len(data) - size:
        data[place : place + size] = number.to_bytes(size, chance.choice(["big", "big", "little"]))


_CHANGES: list[Callable[[bytearray, random.Random], None]] = [
    *(_bits, _bits, _head_bits, _zeros, _noise, _cut, _doubled, _deleted, _swapped),
    *(_number, _number, _field, _field, _field, _element),
]


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


def mutant(number: int, seed: int, clips: list[Path]) -> tuple[Path, bytes, str]:
    """The clip that a mutant is made of, its bytes, and what was done to it."""
    chance = random.Random(f"{seed}/{number}")
    clip = clips[number % len(clips)]
    return (clip, *mutate(clip.read_bytes(), chance))


def try_one(number: int, seed: int, clips: list[Path], folder: Path, tolerate: bool) -> Result:
    """Upscale a mutant, and see that all rules hold."""
    import vidup
    from vidup.job import store

    clip, data, change = mutant(number, seed, clips)
    source = folder / f"mutant{clip.suffix}"
    source.write_bytes(data)
    kept = clip.suffix in (".mp4", ".mov", ".mkv", ".webm")
    output = folder / f"out{clip.suffix if kept else '.mkv'}"
    work = folder / f"{output.name}.vidup"
    webm = clip.suffix == ".webm"
    settings = vidup.Settings(
        model="nearest",
        scale=2,
        codec=None if webm else "libx264",
        tolerate_errors=tolerate,
        encoder_options={"deadline": "realtime", "cpu-used": "8"} if webm else {"preset": "ultrafast"},
    )
    result = Result(number, clip.name, change, tolerate, "delivered", "")
    begin = time.monotonic()
    try:
        vidup.upscale(source, output, settings, runtime=vidup.Runtime(device="cpu"))
    except vidup.VidupError as error:
        result.outcome, result.message = type(error).__name__, str(error)
        if "\n" in result.message or "\r" in result.message or not result.message.strip():
            result.wrong = "the message is not one line"
        elif output.exists():
            result.wrong = "there is an error, and a file at the output path"
        elif work.exists() and not all(store._OWN.fullmatch(path.name) for path in work.iterdir()):
            result.wrong = "a work folder with strange files is left"
    except BaseException as error:
        result.outcome, result.message = type(error).__name__, f"{error}"
        result.wrong = "".join(traceback.format_exc().splitlines(keepends=True)[-14:])
    else:
        if not output.is_file() or work.exists():
            result.wrong = "delivered without a file, or with its work folder"
    result.seconds = time.monotonic() - begin
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("vidup")]
    if left and not result.wrong:
        result.wrong = f"threads are left: {left}"
    for path in [source, output, *(work.iterdir() if work.is_dir() else [])]:
        path.unlink(missing_ok=True)
    if work.is_dir():
        work.rmdir()
    return result


def _work(seed: int, clips: list[Path], folder: Path, memory: int) -> None:
    """In a worker: upscale each mutant whose number comes in, and write what became of it."""
    import torch

    import vidup.job  # before the limit: what the libraries map is not the mutant's

    torch.set_num_threads(1)
    assert vidup.job
    if sys.platform == "linux":
        import resource

        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory * 2**20,) * 2)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        number, tolerate = json.loads(line)
        print(json.dumps(asdict(try_one(number, seed, clips, folder, tolerate))), flush=True)


class Worker:
    """A process that upscales mutants until one ends it."""

    def __init__(self, seed: int, clips: list[Path], memory: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mutant")
        arguments = ["--work", self._folder.name, "--seed", str(seed), "--memory", str(memory)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *arguments, *map(str, clips)],
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
    numbers: Iterable[int], seed: int, clips: list[Path], seconds: float = 20, memory: int = 4096
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
                worker = worker or Worker(seed, clips, memory)
                result = worker.try_one(number, tolerate, seconds)
                if result.outcome in ("crash", "hang"):
                    clip, _, result.change = mutant(number, seed, clips)
                    result.clip, worker = clip.name, None
                yield result
    finally:
        if worker is not None:
            worker.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Damage small clips in many ways and upscale them.")
    parser.add_argument("--count", type=int, default=2000, help="mutants")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--only", type=int, help="number of the only one; tells its messages")
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
        clips = make_clips(Path(folder))
        for result in try_all(numbers, given.seed, clips, given.seconds_per_file, given.memory):
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
