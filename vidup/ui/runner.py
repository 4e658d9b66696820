"""The process that works through the queue: ``python -m vidup.ui.runner FOLDER``, started by `Runs.wake`.

It outlives the server that started it. If it is killed, the run's process goes on, and the next runner adopts it.
"""

from __future__ import annotations

import os
import shutil
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
from vidup.ui.runs import Run, Runs, last_event, read_run, start, tail

_LOOK = 0.25  # seconds
_PATIENCE = 20.0
"""Seconds between the first SIGTERM, the second and SIGKILL."""
_INTERRUPTED = (130, *(-number for number in STOP_SIGNALS))
"""Exit codes of a stopped run; a signal's own if it came before vidup handled it."""
_MOST_BYTES = 16 << 20
"""At which the files of events and errors are truncated; only their ends are read."""


def main(folder: Path) -> None:
    """Work until the queue is empty; returns at once if there is another runner."""
    runs = Runs(folder)
    while True:
        try:
            with runs.runner_lock():
                _work(runs)
        except Timeout:
            return
        if not (runs.next() or runs.unsettled()):  # a run added just now found the lock taken, and started no runner
            return


def _work(runs: Runs) -> None:
    while True:
        for run in runs.unsettled():  # of a killed runner
            _watch(runs, run, None)
        run_next = runs.next()
        if run_next is None:
            return
        _begin(runs, run_next)


def _begin(runs: Runs, waiting: Run) -> None:
    """Start a run's process and wait for it."""
    with runs.locked():
        run = read_run(waiting.folder)
        if run is None or run.state != "waiting":
            return
        run.change(process=(-1, 0))  # fails if the disk is full, before anything is started
        command = [sys.executable, "-P", "-m", "vidup", *run.command, "--progress", "json"]
        command += ["--watch", str(run.folder / "newest")]
        if (run.folder / "events").exists():
            (run.folder / "events").replace(run.folder / "events.before")
        (run.folder / "errors").unlink(missing_ok=True)
        with (run.folder / "events").open("ab") as events, (run.folder / "errors").open("ab") as errors:
            process = start(command, events, errors)
        try:
            run.change(process=places.identity(process.pid))
        except psutil.NoSuchProcess:  # it has ended already
            pass
        except BaseException:
            process.kill()
            raise
    _watch(runs, run, process)


def _watch(runs: Runs, run: Run, process: subprocess.Popen[bytes] | None) -> None:
    """Wait for a run's process, None if another runner started it; stop it if requested, and record its end."""
    asked, times = 0.0, 0
    while process is None or process.poll() is None:
        now = read_run(run.folder)
        if now is None and process is not None:  # its folder was removed by hand
            process.terminate()
        elif now is None or (process is None and not now.is_alive):
            break
        elif now.wish != "run" and (times == 0 or time.monotonic() - asked > _PATIENCE):
            asked, times = time.monotonic(), times + 1
            _ask(now, times)
        for name in ("events", "errors"):
            _shorten(run.folder / name)
        time.sleep(_LOOK)
    code = None if process is None else process.wait()
    with runs.locked():
        _settle(run, code, times > 0)


def _ask(run: Run, times: int) -> None:
    """Stop a run's process: twice by SIGTERM, which it handles, then by SIGKILL to its process group."""
    assert run.process is not None
    with suppress(psutil.Error, OSError):
        found = psutil.Process(run.process[0])
        if not places.is_alive(*run.process):
            return
        if sys.platform == "win32":  # which has no SIGTERM; finished frames are kept
            found.kill()
        elif times < 3:
            found.send_signal(signal.SIGTERM)
        else:
            os.killpg(run.process[0], signal.SIGKILL)  # it leads its own session


def _settle(run: Run, code: int | None, asked: bool) -> None:
    """Record the end of a run's process, with the lock held; its exit code is None if unknown.

    Args:
        asked: whether this runner stopped it.
    """
    now = read_run(run.folder)
    if now is None:
        return
    if now.wish == "forget":
        shutil.rmtree(now.folder, ignore_errors=True)
        return
    event = last_event(run.folder / "events")
    if event.get("state") == "done":
        now.change(process=None, ended="done")
    elif event.get("state") == "failed" or not (asked or now.wish == "pause" or code in (None, *_INTERRUPTED)):
        now.change(process=None, ended="failed", error=_why(now, event, code))
    elif now.wish == "run" and not asked and code in _INTERRUPTED:  # stopped by somebody else
        now.change(process=None, wish="pause")
    else:  # paused, or still queued: it ended together with its runner, as in a reboot
        now.change(process=None)


def _why(run: Run, event: dict[str, object], code: int | None) -> str:
    """The error of a failed run in one line."""
    if event.get("error"):
        return str(event["error"])
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"the process was killed by {name}, perhaps because memory ran out; resume it to go on where it was"
    lines = [line.removeprefix("vidup: ") for line in tail(run.folder / "errors") if line.strip()]
    return lines[-1] if lines else f"the process ended with code {code}"


def _shorten(path: Path) -> None:
    """Truncate a large file; the process appends to it."""
    with suppress(OSError):
        if path.stat().st_size > _MOST_BYTES:
            os.truncate(path, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
