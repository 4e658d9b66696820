"""What a job says of how far it is, how fast, and how long it takes: to a terminal, line by line, as events."""

from __future__ import annotations

import io
import itertools
import logging
import re
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import vidup
from vidup import EngineError, Progress, terminal
from vidup.cli import main
from vidup.engines.interpolate import Interpolation
from vidup.job import pace, progress
from vidup.job.progress import Bar, Tracker

Clips = Callable[..., Path]
Show = Callable[[], "Screen"]
NEAREST = ["--model", "nearest", "--scale", "1", "-e", "preset=ultrafast"]


class Screen(io.StringIO):
    """A terminal of 100 columns, and what is to be seen on it."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """Of all that was ever written: the last state of each line."""
        rows, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[[0-9]*[A-Z]|.|\n", self.getvalue(), re.DOTALL):
            if part == "\n":
                row, column = row + 1, 0
                rows += [""] * (row == len(rows))
            elif part == "\r":
                column = 0
            elif part == "\x1b[K":
                rows[row] = rows[row][:column]
            elif part == "\x1b[A":
                row -= 1
            else:
                rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + 1 :]
                column += 1
        return [line.rstrip() for line in rows]

    def drawn(self) -> list[str]:
        """All states of the bar, one after the other."""
        return [part.rstrip() for part in re.split(r"[\r\n]", self.getvalue()) if "|" in part or "loading" in part]


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Screen]:
    """Makes standard error a terminal, from within a test: pytest has its own before."""

    def make() -> Screen:
        made = Screen()
        monkeypatch.setattr(sys, "stderr", made)
        monkeypatch.setattr(progress, "_DRAWN_EVERY", 0.0)
        return made

    return make


class Hours:
    """A clock that is only moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_the_bar_has_a_total_and_a_time_left(make_clip: Clips, show: Show):
    screen = show()
    source = make_clip(times=tuple(range(0, 6 * 512, 512)), sound=False)
    assert main(["upscale", str(source), *NEAREST, "--batch", "1"]) == 0
    bars = screen.drawn()
    assert any(re.match(r"upscaling +\d+%\|.*\| 3/6, [\d.]+ frames/s, 00:00 left", bar) for bar in bars)
    assert any(bar.startswith("done") and "| 6/6" in bar for bar in bars)


def test_what_is_logged_tears_no_line(show: Show):
    screen = show()
    log = logging.getLogger("vidup.test")
    log.propagate = False
    log.handlers = [terminal.LogHandler()]
    bar = Bar()
    for frame in range(1, 5):
        bar(Progress("upscaling", frame, 4, 2.0, (4 - frame) / 2, "out.mp4"))
        log.warning(
            "vidup: frame %d: something to be said that is rather longer than the bar itself is " + "-" * 60, frame
        )
        terminal.say(f"vidup: and {frame}")
    bar.close()
    shown = screen.lines()
    assert [line for line in shown if line.startswith("vidup: and ")] == [f"vidup: and {n}" for n in range(1, 5)]
    assert all(line.endswith("---") and "|" not in line for line in shown if line.startswith("vidup: frame"))
    assert [line for line in shown if "|" in line] == [shown[-2]] and "| 4/4, 2 frames/s" in shown[-2]


def test_a_line_of_a_signal_tears_no_line(show: Show, monkeypatch: pytest.MonkeyPatch):
    screen = show()
    monkeypatch.setattr(screen, "fileno", lambda: 99)
    monkeypatch.setattr(terminal.os, "write", lambda _, line: screen.write(line.decode()))
    bar = Bar()
    bar(Progress("upscaling", 1, 4, 2.0, 1.5, "out.mp4"))
    terminal._write(b"vidup: stopping\n")
    bar(Progress("upscaling", 2, 4, 2.0, 1.0, "out.mp4"))
    bar.close()
    shown = screen.lines()
    assert shown[0] == "vidup: stopping" and "| 2/4" in shown[1]


def test_the_rate_leaves_loading_and_compiling_out(monkeypatch: pytest.MonkeyPatch):
    clock, events = Hours(monkeypatch), []
    tracker = Tracker(events.append)
    tracker.expect(12)
    tracker.enter("loading", "out.mp4")
    clock.now += 60
    tracker.enter("compiling", first=4)
    for batch in (600, 2, 2):  # the first is compiled meanwhile; the frames of a batch come at once
        clock.now += batch
        for _ in range(4):
            tracker.advance()
    assert [event.fps for event in events[:6]] == [0] * 6
    assert all(0 < event.fps <= 2 for event in events[6:]) and events[9].eta == 2.0 and events[-1].fps == 2


def test_the_rate_of_a_job_that_goes_on_is_of_this_run(monkeypatch: pytest.MonkeyPatch):
    clock, events = Hours(monkeypatch), []
    tracker = Tracker(events.append)
    tracker.expect(100)
    tracker.expect(0, 90)
    tracker.enter("upscaling")
    clock.now += 2
    tracker.advance()
    assert (events[-1].fps, events[-1].eta) == (0.5, 18)


@pytest.mark.parametrize(("options", "said"), [(["--batch", "1"], True), (["--batch", "2"], False)])
def test_how_long_it_takes_is_said_before_it_begins(make_clip: Clips, show: Show, options: list[str], said: bool):
    screen = show()
    source = make_clip(times=tuple(range(0, 50 * 512, 512)), size=(32, 24), sound=False)
    assert main(["upscale", str(source), *NEAREST, *options]) == 0
    text = screen.getvalue()
    found = re.search(r"clip_x1\.mp4: about \d+ s for 50 frames, as the first take", text)
    assert (found is not None) == said
    if found is not None:
        first = re.search(r"upscaling +\d+%\|[^|]*\| 1/50", text)
        assert first is None or found.start() < first.start()


def test_times_in_words():
    lengths = [0.2, 40, 119, 700, 3600 * 3 + 1210, 3600 * 52]
    assert [pace.in_words(seconds) for seconds in lengths] == [
        *("1 s", "40 s", "2 min", "12 min", "3 h 20 min", "2 d 4 h"),
    ]
    assert all(len(pace.in_words(2.0**power)) < 16 for power in itertools.islice(itertools.count(), 25))


def test_without_a_terminal_a_line_every_half_minute(monkeypatch: pytest.MonkeyPatch):
    clock, stream = Hours(monkeypatch), StringIO()
    bar = Bar(stream)
    for frame in range(1, 10):
        clock.now += 10
        bar(Progress("upscaling", frame, 9, 0.1, 90 - 10.0 * frame, "out.mp4", None, 2, 20))
    bar.close()
    assert stream.getvalue().splitlines() == [
        "upscaling: 3 of 9 frames, step 2 of 20, 10 s/frame, 01:00 left",
        "upscaling: 6 of 9 frames, step 2 of 20, 10 s/frame, 00:30 left",
        "upscaling: 9 of 9 frames, step 2 of 20, 10 s/frame",
    ]


def test_in_a_notebook_a_bar_is_drawn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Whose standard error is no terminal; with ipywidgets it is one of theirs."""
    kernel = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    given = dict[str, object]()

    class Watched(progress.tqdm):
        def __init__(self, **options: object) -> None:
            given.update(options)
            super().__init__(**options)

    monkeypatch.setattr(progress, "tqdm", Watched)
    bar = Progress.bar()
    bar(Progress("upscaling", 2, 4, 2.0, 1.0, "out.mp4"))
    bar.close()
    assert "| 2/4, 2 frames/s, 00:01 left" in capsys.readouterr().err
    assert not {"delay", "file"} & given.keys()  # with a delay theirs is shown when that is over, and never


def test_an_error_never_stands_below_done(make_clip: Clips, show: Show, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise EngineError("no")

    source = make_clip(times=(0, 512, 1024), sound=False)
    screen = show()
    monkeypatch.setattr(Interpolation, "__call__", fail)
    assert main(["upscale", str(source), *NEAREST]) == 1
    shown = [line for line in screen.lines() if line]
    assert shown[-1] == "vidup: no" and any(line.startswith("failed") for line in shown)
    assert "done" not in screen.getvalue()


def test_the_newest_picture_can_be_watched(make_clip: Clips, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source, folder = make_clip(rotate=90), tmp_path / "seen"
    settings = vidup.Settings(model="nearest", scale=2, start=0.1)
    vidup.upscale(source, tmp_path / "out.mp4", settings, runtime=vidup.Runtime(watch=str(folder)))
    found = {path.name: Image.open(path) for path in folder.iterdir()}
    assert {name: image.size for name, image in found.items()} == {"before.jpg": (48, 64), "after.jpg": (96, 128)}
    times = {image.info["comment"] for image in found.values()}
    assert len(times) == 1 and float(times.pop()) == pytest.approx(0.08, abs=0.04)  # what is shown at 0.1 s
    shrunk = np.asarray(found["after.jpg"].resize((48, 64), Image.Resampling.BOX), float)
    assert abs(shrunk - np.asarray(found["before.jpg"], float)).mean() < 3
    source.with_name("taken").write_text("")
    runtime = vidup.Runtime(watch=str(source.with_name("taken")), overwrite=True)
    vidup.upscale(source, tmp_path / "out.mp4", settings, runtime=runtime)
    assert "taken: the newest picture cannot be written there" in caplog.text
