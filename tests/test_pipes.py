"""Y4M through pipes: what comes in goes out larger, at the same rate and depth; nothing else is on standard output."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vidup.cli import main
from vidup.job import piping
from vidup.media import y4m

ROOT = str(Path(__file__).parents[1])
NEAREST = ["--model", "nearest", "--scale", "2"]
Output = pytest.CaptureFixture[str]


def sent(chroma: str, bits: int, shapes: list[tuple[int, int]], frames: int = 5, head: str = "") -> bytes:
    """Y4M of noise, by hand."""
    random = np.random.default_rng(1)
    height, width = shapes[0]
    low, high = 64 << (bits - 8), 192 << (bits - 8)  # which no matrix takes out of range
    data = f"YUV4MPEG2 W{width} H{height} F30000:1001 Ip A1:1 C{chroma}{head}\n".encode()
    for _ in range(frames):
        data += b"FRAME\n"
        for shape in shapes:
            data += random.integers(low, high, shape).astype("u1" if bits == 8 else "<u2").tobytes()
    return data


class Pipe:
    """Stands for a standard stream that is a pipe."""

    def __init__(self, data: bytes = b"") -> None:
        self.buffer = io.BytesIO(data)

    def isatty(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def fileno(self) -> int:
        raise OSError


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, bytes]]:
    """Runs a command on data; gives its exit code, and what it wrote."""

    def run(data: bytes, *words: str, source: str = "-") -> tuple[int, bytes]:
        output = Pipe()
        monkeypatch.setattr(sys, "stdin", Pipe(data))
        monkeypatch.setattr(sys, "stdout", output)
        return main(["upscale", source, "-o", "-", *NEAREST, *words]), output.buffer.getvalue()

    return run


def read(data: bytes) -> tuple[av.VideoFrame, list[list[np.ndarray]], Fraction]:
    """As FFmpeg reads it: the first frame, the planes of all, the rate."""
    with av.open(io.BytesIO(data), format="yuv4mpegpipe") as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        return frames[0], [[np.from_dlpack(plane) for plane in frame.planes] for frame in frames], stream.average_rate


@pytest.mark.parametrize(
    ("chroma", "bits", "pix_fmt", "parts"),
    [
        ("420jpeg", 8, "yuv420p", (2, 2)),
        ("420p10 XYSCSS=420P10", 10, "yuv420p10le", (2, 2)),
        ("422p12 XYSCSS=422P12", 12, "yuv422p12le", (1, 2)),
        ("444", 8, "yuv444p", (1, 1)),
        ("444p16 XYSCSS=444P16", 16, "yuv444p16le", (1, 1)),
        ("mono", 8, "gray", None),
        ("mono16", 16, "gray16le", None),
    ],
)
def test_what_goes_out_is_what_came_in_but_larger(piped, capsys: Output, chroma: str, bits: int, pix_fmt: str, parts):
    whole = (12, 16)
    shapes = [whole] if parts is None else [whole, *[(12 // parts[0], 16 // parts[1])] * 2]
    data = sent(chroma, bits, shapes)
    code, result = piped(data)
    assert code == 0
    first, planes, rate = read(result)
    _, before, _ = read(data)
    assert (first.format.name, first.width, first.height) == (pix_fmt, 32, 24)
    assert (rate, len(planes)) == (Fraction(30000, 1001), 5)
    for old, new in zip(before, planes, strict=True):
        assert np.abs(new[0][::2, ::2].astype(int) - old[0].astype(int)).max() <= 1 << max(0, bits - 10)
        assert all(np.abs(one.mean() - other.mean()) < 1 << (bits - 8) for one, other in zip(old, new, strict=True))
    assert "y4m" in capsys.readouterr().err


def test_a_chain_of_programs(tmp_path: Path):
    """The real command, between real pipes."""
    data = sent("420mpeg2", 8, [(12, 16), (6, 8), (6, 8)], 9, " XCOLORRANGE=FULL")
    command = [sys.executable, "-m", "vidup", "upscale", "-", "-o", "-", *NEAREST]
    done = subprocess.run(
        command, input=data, capture_output=True, env={**os.environ, "PYTHONPATH": ROOT}, cwd=tmp_path, timeout=100
    )
    assert done.returncode == 0 and list(tmp_path.iterdir()) == []
    line = done.stdout.partition(b"\n")[0]
    assert line == b"YUV4MPEG2 W32 H24 F30000:1001 Ip A1:1 C420mpeg2 XYSCSS=420MPEG2 XCOLORRANGE=FULL"
    assert len(read(done.stdout)[1]) == 9
    told = done.stderr.decode().splitlines()
    assert all(line.startswith("vidup: ") for line in told)
    assert any("a stopped job starts again from the beginning, and the result is not proved" in line for line in told)


def test_a_file_goes_into_a_pipe(piped, make_clip: Callable[..., Path], capsys: Output):
    source = make_clip(pix_fmt="yuv420p10le", rotate=90)
    code, result = piped(b"", source=str(source))
    first, planes, rate = read(result)
    assert (code, len(planes), rate) == (0, 12, 25)
    assert (first.format.name, first.width, first.height) == ("yuv420p10le", 96, 128)  # turned, as y4m cannot say it
    uneven = make_clip("uneven.mp4", times=(0, 512, 2000))
    assert piped(b"", source=str(uneven)) == (2, b"")
    assert "uneven.mp4: its frames have uneven times" in capsys.readouterr().err.splitlines()[-1]


def test_a_part_of_what_comes(piped):
    data = sent("mono", 8, [(8, 8)], 30)
    _, planes, _ = read(piped(data, "--start", "0.2", "--end", "0.5")[1])
    assert len(planes) == 9  # of 29.97 a second: those that begin from 0.2002 s to 0.4671 s


def test_formats_are_those_that_ffmpeg_knows():
    for chroma, pix_fmt in y4m._FORMATS.items():
        deep = f" XYSCSS={chroma.upper()}" if chroma[:3].isdigit() else ""
        line = f"YUV4MPEG2 W8 H8 F25:1 Ip A0:0 C{chroma}{deep}\n".encode()
        bytes_each = av.VideoFormat(pix_fmt, 8, 8)
        size = 2 * 8 * 8 * 4 if bytes_each.components[0].bits > 8 else 8 * 8 * 4
        with av.open(io.BytesIO(line + b"FRAME\n" + bytes(size)), format="yuv4mpegpipe") as container:
            found = container.streams.video[0].codec_context.pix_fmt
        assert found in (pix_fmt, pix_fmt.replace("yuva", "yuv")), chroma
        assert y4m.nearest(pix_fmt) == pix_fmt
    assert [y4m.nearest(name) for name in ("gbrp", "gbrp12le", "yuvj420p", "yuv440p", "yuva420p")] == [
        *("yuv444p", "yuv444p12le", "yuv420p", "yuv444p", "yuv420p"),
    ]


@pytest.mark.parametrize(
    ("data", "words", "named"),
    [
        (b"", [], "standard input: is empty; send it with ffmpeg"),
        (b"\0\0\0\x20ftypisom" * 99, [], "standard input: is no y4m"),
        (b"YUV4MPEG2 W8 F25:1\n", [], "the head of its y4m is damaged"),
        (b"YUV4MPEG2 W8 H8 F25:0\n", [], "the head of its y4m is damaged"),
        (b"YUV4MPEG2 W99999 H99999 F25:1\n", [], "claims 99999x99999"),
        (b"YUV4MPEG2 W8 H8 F25:1 C420p11\n", [], "y4m of the kind C420p11 is not known"),
        (b"YUV4MPEG2 W8 H8 F25:1 It\n", [], "is interlaced"),
        (b"YUV4MPEG2 W8 H8 F25:1 Cmono\n", [], "holds no frame"),
        (sent("mono", 8, [(8, 8)])[:-3], [], "is cut short within frame 4"),
        (sent("mono", 8, [(8, 8)], 2) + b"NOISE\n", [], "frame 2 is damaged"),
        (sent("mono", 8, [(8, 8)]), ["--workers", "2"], "workers: a job through pipes has none"),
        (sent("mono", 8, [(8, 8)]), ["--pix-fmt", "nv12"], "'nv12'"),
        (sent("mono", 8, [(8, 8)]), ["--progress", "json"], "progress json: would go to standard output"),
        (sent("mono", 8, [(8, 8)]), ["--model", "mimi"], "did you mean mini?"),
    ],
)
def test_what_cannot_be_is_one_line(piped, capsys: Output, data: bytes, words: list[str], named: str):
    code, result = piped(data, *words)
    assert code in (1, 2) and named in capsys.readouterr().err.splitlines()[-1]
    if "cut short" in named:  # what came whole is not lost
        assert len(read(result)[1]) == 4


def test_what_is_wrong_is_said_and_not_silenced(piped, monkeypatch: pytest.MonkeyPatch, capsys: Output):
    """What is silenced is standard output, in which something may be left; `sys.stdout` is another while a job runs."""
    silenced: list[object] = []
    monkeypatch.setattr("vidup.terminal.silence", silenced.append)
    assert piped(b"no video")[0] == 1
    assert len(silenced) == 1 and isinstance(silenced[0], io.BytesIO) and "is no y4m" in capsys.readouterr().err


def test_the_next_program_is_gone(piped, monkeypatch: pytest.MonkeyPatch, capsys: Output):
    def gone(*_: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(y4m, "write_frame", gone)
    code, _ = piped(sent("mono", 8, [(8, 8)]))
    assert code == 1 and capsys.readouterr().err.splitlines()[-1] == "vidup: standard output: its reader is gone"


def test_a_pipe_has_two_ends(capsys: Output, tmp_path: Path):
    for words in (["-"], ["-", "-o", str(tmp_path / "out.mp4")], ["-", "in.mp4", "-o", "-"]):
        assert main(["upscale", *words, *NEAREST]) == 2
        assert "goes to standard output, with -o -" in capsys.readouterr().err


def test_it_stops_when_it_is_told_to(piped, monkeypatch: pytest.MonkeyPatch, capsys: Output):
    given = piping.upscale_piped
    monkeypatch.setattr(piping, "upscale_piped", lambda *words: given(*words[:-1], lambda: True))
    code, _ = piped(sent("mono", 8, [(8, 8)]))
    assert code == 130 and "what was upscaled is with the next program" in capsys.readouterr().err
