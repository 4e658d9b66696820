"""The state folder, which holds runs and previews, and the identity of processes."""

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
    """The state folder by the platform's convention, created if missing; raises MediaError."""
    given = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(given):  # noqa: PTH117  # the XDG specification: relative paths are ignored
        home = Path(given)
    elif sys.platform == "win32":
        home = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        home = Path.home() / "Library" / "Application Support"
    else:
        home = Path.home() / ".local" / "state"
    return made(home / "vidup")


def made(folder: Path) -> Path:
    """Create a folder that only this user can read; raises as `state`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{error.strerror}; set XDG_STATE_HOME to another folder"
        raise MediaError(f"{folder}: cannot be created: {reason}") from None
    return folder


def of_this_process(parent: Path) -> Path:
    """Create a folder for this process, and remove those of processes that have ended."""
    with suppress(OSError):
        for path in parent.iterdir():
            if not is_alive(*_identity(path.name)):
                shutil.rmtree(path, ignore_errors=True)
    pid, began = identity(os.getpid())
    return made(parent / f"{pid}-{began}-{secrets.token_hex(4)}")


def identity(pid: int) -> tuple[int, int]:
    """A process's id and its start time in milliseconds, because ids are reused."""
    return pid, round(psutil.Process(pid).create_time() * 1000)


def is_alive(pid: int, began: int) -> bool:
    """Whether this process is still running."""
    try:
        process = psutil.Process(pid)
        same = abs(round(process.create_time() * 1000) - began) < 1000  # the clock may be adjusted
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, ValueError, OverflowError):
        return False


def _identity(name: str) -> tuple[int, int]:
    pid, began, *_ = [*name.split("-"), ""]
    return (int(pid), int(began)) if pid.isdecimal() and began.isdecimal() else (-1, 0)
