"""The queue of runs, in a folder shared by servers and the runner.

A run is a folder with ``run.json``, the fields of a `Run`, and its process's output: ``events``, ``errors``,
``newest/``. Whoever changes a run holds the queue's lock from reading to writing; the file is replaced atomically.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

import vidup
from vidup.errors import MediaError, system_words
from vidup.ui import places
from vidup.ui.safety import Refused

log = logging.getLogger(__name__)

_ID = re.compile(r"\d{20}-[0-9a-f]{8}")
_TAIL = 1 << 14
"""Bytes of a file's end in which its last line is."""
_MOST_RUNS = 200
_WAIT = 10.0  # seconds for a lock that is held for milliseconds

State = Literal["waiting", "running", "paused", "done", "failed"]


@dataclass(frozen=True)
class Run:
    """A run, as its file has it."""

    folder: Path
    command: tuple[str, ...]
    """The arguments of ``vidup``."""
    input: Path
    output: Path
    wish: Literal["run", "pause", "forget"]
    """The user's last request."""
    since: int
    """When that was requested, in nanoseconds: the order of the queue."""
    process: tuple[int, int] | None = None
    """As `places.identity` returns it, until its end is recorded."""
    ended: Literal["done", "failed"] | None = None
    error: str = ""

    @property
    def id(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def is_alive(self) -> bool:
        """Whether its process is running."""
        return self.process is not None and places.is_alive(*self.process)

    @property
    def state(self) -> State:
        """What it does, or how it ended."""
        if self.is_alive:
            return "running"
        return self.ended or ("paused" if self.wish == "pause" else "waiting")

    def change(self, **changes: Any) -> None:
        """Write its file, with changes, with the lock held; raises MediaError."""
        content = vars(self) | changes
        del content["folder"]
        write(self.folder / "run.json", content)


class Runs:
    """The runs of a user, in a folder, which must exist."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the queue's lock; raises MediaError."""
        try:
            with FileLock(self.folder / "lock", timeout=_WAIT):
                yield
        except Timeout:
            raise MediaError(f"{self.folder}: is locked by another process; try again") from None

    def runner_lock(self) -> FileLock:
        """The lock that the runner holds while it lives."""
        return FileLock(self.folder / "runner.lock", timeout=0)

    def add(self, command: Sequence[str], source: Path, output: Path) -> str:
        """Queue a run; returns its id.

        Raises Refused if an unfinished run has the same output, or there are too many; MediaError.
        """
        with self.locked():
            known = self.all()
            for old in [run for run in known if run.state == "done"][: len(known) + 1 - _MOST_RUNS]:
                shutil.rmtree(old.folder, ignore_errors=True)
                known.remove(old)
            if len(known) >= _MOST_RUNS:
                raise Refused(f"there are {len(known)} runs; remove some of them", 429)
            if any(run.output == output and run.state in ("waiting", "running", "paused") for run in known):
                raise Refused(f"{output}: is the output of a run already; remove that one, or give another name", 409)
            now = time.time_ns()
            folder = places.made(self.folder / f"{now:020}-{secrets.token_hex(4)}")
            try:
                Run(folder, tuple(command), source, output, "run", now).change()
            except MediaError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return folder.name

    def all(self) -> list[Run]:
        """All runs, in the order in which they were added."""
        return [run for run in self._every() if run.wish != "forget"]

    def _every(self) -> list[Run]:
        """The same, and those that are forgotten."""
        try:
            folders = sorted(path for path in self.folder.iterdir() if _ID.fullmatch(path.name))
        except OSError as error:
            raise MediaError(system_words(error, self.folder)) from None
        return [run for folder in folders if (run := read_run(folder)) is not None]

    def find(self, name: str) -> Run:
        """A run by its id; raises Refused."""
        found = read_run(self.folder / name) if _ID.fullmatch(name) else None
        if found is None or found.wish == "forget":
            raise Refused("there is no such run any more", 404)
        return found

    def pause(self, name: str) -> None:
        """Stop a run gracefully, or keep it from starting; finished frames are kept. No effect on an ended one."""
        with self.locked():
            run = self.find(name)
            if run.state in ("waiting", "running"):
                run.change(wish="pause")

    def resume(self, name: str) -> None:
        """Queue a paused or failed run again, at the end; it resumes."""
        with self.locked():
            run = self.find(name)
            is_stopping = run.state == "running" and run.wish == "pause"
            if run.state in ("paused", "failed") or is_stopping:
                run.change(wish="run", since=time.time_ns(), ended=None, error="")

    def forget(self, name: str) -> None:
        """Stop a run and remove it from the list; its output and job folder are kept."""
        with self.locked():
            run = self.find(name)
            run.change(wish="forget")
            if not run.is_alive:
                shutil.rmtree(run.folder, ignore_errors=True)

    def next(self) -> Run | None:
        """The first waiting run."""
        waiting = [run for run in self.all() if run.state == "waiting"]
        return min(waiting, key=lambda run: (run.since, run.id), default=None)

    def unsettled(self) -> list[Run]:
        """Runs whose process was started and its end not recorded yet, forgotten ones included."""
        return [run for run in self._every() if run.process is not None]

    def wake(self) -> None:
        """Start a runner if there is work and none is running."""
        if not (self.next() or self.unsettled()):
            return
        try:
            with self.runner_lock():
                pass
        except Timeout:
            return  # it checks the queue again before it ends
        command = [sys.executable, "-P", "-m", "vidup.ui.runner", str(self.folder)]
        with (self.folder / "runner.log").open("ab") as errors:
            process = start(command, subprocess.DEVNULL, errors)
        threading.Thread(target=process.wait, daemon=True).start()  # or it would stay a zombie


def read_run(folder: Path) -> Run | None:
    """A run, also a forgotten one; None if it is incomplete or was removed."""
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        found |= {name: Path(found[name]) for name in ("input", "output")}
        found |= {name: found[name] and tuple(found[name]) for name in ("command", "process")}
        return Run(folder, **found)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def as_json(run: Run) -> dict[str, Any]:
    """A run for the page, without its pictures."""
    event = last_event(run.folder / "events")
    # Until its model is loaded a resumed run reports 0 frames: show those of its process before.
    counted = event if event.get("file_frame") else last_event(run.folder / "events.before") or event
    state, frames, of = run.state, counted.get("file_frame") or 0, counted.get("file_frames") or 0
    share = 1.0 if state == "done" else frames / of if of else 0.0
    if not of and event.get("steps"):
        share = event["step"] / event["steps"]
    going = state == "running"
    return {
        "id": run.id, "input": str(run.input), "output": str(run.output), "state": state,
        "share": round(min(share, 1.0), 4), "frames": frames, "of": of,
        "rate": event.get("fps") if going else None, "time_left": event.get("eta") if going else None,
        "diffused": event.get("computed"), "line": _line(run, event), "error": run.error or None,
        "receipt": _receipt(event) if state == "done" else [],
    }  # fmt: skip


def _line(run: Run, event: dict[str, Any]) -> str:
    """The state of a run in words."""
    if run.state != "running":
        return {"waiting": "waiting", "paused": "paused; finished frames are kept"}.get(run.state, "")
    if run.wish != "run":
        return "stopping"
    step = f", step {event['step']} of {event['steps']}" if event.get("step") else ""
    words = {"": "starting", "loading": "loading the model", "compiling": "compiling the model"}
    state = event.get("state", "")
    return words.get(state, f"{state}{step}")


def _receipt(event: dict[str, Any]) -> list[str]:
    with suppress(TypeError, KeyError, ValueError):
        return vidup.Receipt(**event["receipt"]).lines()
    return []


def last_event(path: Path) -> dict[str, Any]:
    """The last progress event in a file of them; empty if there is none."""
    for size in (_TAIL, 64 * _TAIL):  # a receipt with many streams is long
        for line in reversed(tail(path, size)):
            with suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict):
                    return found
    return {}


def tail(path: Path, size: int = _TAIL) -> list[str]:
    """The last lines of a file; the first may be incomplete."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically; raises MediaError."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            json.dump(content, file, default=str)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise MediaError(f"{path}: cannot be written: {error.strerror}; make room, then try again") from None


def start(command: Sequence[str], output: Any, errors: Any) -> subprocess.Popen[bytes]:
    """Start a detached process: in a session of its own, without this process's terminal and files."""
    apart: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
        apart = {"creationflags": flags}
    home, environment = Path(vidup.__file__).resolve().parent.parent, dict(os.environ)
    if home.name not in ("site-packages", "dist-packages"):  # a checkout, which may not be on the default path
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), environment.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=environment, **apart
    )
