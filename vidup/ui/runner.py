"""The process that runs what waits, one after another: ``python -m vidup.ui.runner FOLDER``, started by `Runs.wake`.

It outlives the server that started it. Killed, it leaves the run's own process at work; the next runner finds that.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
from filelock import Timeout

from vidup.terminal import STOP_SIGNALS
from vidup.ui import places
from vidup.ui.runs import Run, Runs, last_event, start, tail, write

_LOOK = 0.25  # seconds
_PATIENCE = 20.0
"""Seconds after which a run that was asked to stop is asked again, and after as many more is ended."""
_INTERRUPTED = (130, *(-number for number in STOP_SIGNALS))
"""What a run ends with that was stopped, and one that was while Python began."""
_MOST_BYTES = 16 << 20
"""Of what a run's process says; only the last is of interest."""


def main(folder: Path) -> None:
    """Run what waits until nothing does; ends at once where another runner does that."""
    runs = Runs(folder)
    while True:
        try:
            with runs.alone():
                _work(runs)
        except Timeout:
            return
        if not (runs.next() or runs.unsettled()):  # what was added meanwhile found the lock taken
            return


def _work(runs: Runs) -> None:
    while True:
        for run in runs.unsettled():  # of a runner before this one
            _watch(runs, run, None)
        run_next = runs.next()
        if run_next is None:
            return
        _begin(runs, run_next)


def _begin(runs: Runs, waiting: Run) -> None:
    """Start a run's process and stay with it."""
    with runs.held():
        run = runs.look(waiting)
        if run is None or run.state != "waiting":
            return
        record = run.folder / "process.json"
        write(record, {"pid": -1, "began": 0})  # where the disk is full nothing is started
        command = [sys.executable, "-P", "-m", "vidup", *run.command, "--progress", "json"]
        command += ["--watch", str(run.folder / "newest")]
        if (run.folder / "events").exists():
            (run.folder / "events").replace(run.folder / "events.before")
        (run.folder / "errors").unlink(missing_ok=True)
        with (run.folder / "events").open("ab") as events, (run.folder / "errors").open("ab") as errors:
            process = start(command, events, errors)
        try:
            pid, began = places.identity(process.pid)
            write(record, {"pid": pid, "began": began})
        except psutil.NoSuchProcess:  # it has ended already
            pass
        except BaseException:
            process.kill()
            raise
    _watch(runs, run, process)


def _watch(runs: Runs, run: Run, process: subprocess.Popen[bytes] | None) -> None:
    """Stay with a run's process until it ends, ask it to stop when that is wanted, and write down what became of it.

    Args:
        process: None where an earlier runner started it.
    """
    asked, times = 0.0, 0
    while process is None or process.poll() is None:
        now = runs.look(run)
        if now is None and process is not None:  # somebody removed its folder by hand
            process.terminate()
        elif now is None or (process is None and now.process is None):
            break
        elif now.wish != "run" and (times == 0 or time.monotonic() - asked > _PATIENCE):
            asked, times = time.monotonic(), times + 1
            _ask(now, times)
        for name in ("events", "errors"):
            _shorten(run.folder / name)
        time.sleep(_LOOK)
    code = None if process is None else process.wait()
    with runs.held():
        _settle(runs, run, code, times > 0)


def _ask(run: Run, times: int) -> None:
    """Ask a run's process to stop: kindly, then at once; then it is ended, with all that it started."""
    assert run.process is not None
    with suppress(psutil.Error, OSError):
        found = psutil.Process(run.process[0])
        if not places.is_alive(*run.process):
            return
        if sys.platform == "win32":  # which has no way to ask; what is done is kept all the same
            found.kill()
        elif times < 3:
            found.send_signal(signal.SIGTERM)
        else:
            os.killpg(run.process[0], signal.SIGKILL)  # it leads a session of its own


def _settle(runs: Runs, run: Run, code: int | None, asked: bool) -> None:
    """Write down what became of a run whose process has ended; held.

    Args:
        code: what it ended with; None where that is not known.
        asked: whether it was asked to stop.
    """
    now = runs.look(run)
    if now is None:
        return
    if now.wish == "forget":
        runs.remove(now)
        return
    event, record = last_event(run.folder / "events"), {"state": "done", "error": ""}
    if event.get("state") == "done":
        write(run.folder / "end.json", record)
    elif event.get("state") == "failed" or not (asked or now.wish == "pause" or code in (None, *_INTERRUPTED)):
        write(run.folder / "end.json", {"state": "failed", "error": _why(now, event, code)})
    elif now.wish == "run" and not asked and code in _INTERRUPTED:  # somebody else asked it to stop
        write(run.folder / "wish.json", {"wish": "pause", "since": now.since})
    # Else it is paused, or goes on when its turn comes: it ended together with its runner, as by a reboot.
    (run.folder / "process.json").unlink(missing_ok=True)


def _why(run: Run, event: dict[str, object], code: int | None) -> str:
    """Why a run failed, in a line: what it said itself, or how it ended."""
    if event.get("error"):
        return str(event["error"])
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"its process was ended by {name}: by hand, or the system had no memory left; it goes on where it was"
    lines = [line.removeprefix("vidup: ") for line in tail(run.folder / "errors") if line.strip()]
    return lines[-1] if lines else f"its process ended with {code}"


def _shorten(path: Path) -> None:
    """Drop what nobody will read; the process appends, wherever the end is."""
    with suppress(OSError):
        if path.stat().st_size > _MOST_BYTES:
            os.truncate(path, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
