"""Where the page keeps what is its own: runs, and finished previews, in the user's folder for such things."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from vidup.errors import MediaError


def state() -> Path:
    """The folder of what outlives a server; made where it is not there.

    Raises:
        MediaError: it cannot be made.
    """
    given = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(given):  # noqa: PTH117  # as the XDG specification has it: others are ignored
        home = Path(given)
    elif sys.platform == "win32":
        home = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        home = Path.home() / "Library" / "Application Support"
    else:
        home = Path.home() / ".local" / "state"
    return made(home / "vidup")


def made(folder: Path) -> Path:
    """A folder for nobody else's eyes; raises as `state`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(f"{folder}: cannot be made: {error.strerror}; set XDG_STATE_HOME to another folder") from None
    return folder


def of_this_process(parent: Path) -> Path:
    """A folder that is this process's own; those of processes that are gone are removed."""
    with suppress(OSError):
        for path in parent.iterdir():
            if not is_alive(*_identity(path.name)):
                shutil.rmtree(path, ignore_errors=True)
    pid, began = identity(os.getpid())
    return made(parent / f"{pid}-{began}-{secrets.token_hex(4)}")


def identity(pid: int) -> tuple[int, int]:
    """What tells a process from one that gets its number later: the number, and when it began, in milliseconds."""
    return pid, round(psutil.Process(pid).create_time() * 1000)


def is_alive(pid: int, began: int) -> bool:
    """Whether a process is there yet, and no other in its place."""
    try:
        process = psutil.Process(pid)
        same = abs(round(process.create_time() * 1000) - began) < 1000  # the system's clock may be set anew
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, ValueError, OverflowError):
        return False


def _identity(name: str) -> tuple[int, int]:
    pid, began, *_ = [*name.split("-"), ""]
    return (int(pid), int(began)) if pid.isdecimal() and began.isdecimal() else (-1, 0)
