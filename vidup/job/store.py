"""Plan segments, and keep them on disk, so that a stopped job can be resumed.

A job's folder has a file for each finished segment, which is the only record of what is done, ``job.json`` with the
job's input and settings, and ``lock``. Only files with these names are ever deleted.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vidup.errors import MediaError, ResumeError, VidupError
from vidup.job.disk import disk_full_named, fingerprint_file, open_plain, shortened, write_atomically

log = logging.getLogger(__name__)

_RECORD, _LOCK = "job.json", "lock"
_OWN = re.compile(
    r"lock|(job\.json|\d{5,}\.(seg|planes|made)|stream\d+-[\w.()-]+\.kept"
    r"|(whole|unproved|undelivered|rehearsal)\.\w+)((\.\w+)*\.part)?"
)
"""The names of a job's files: lock, record, segments, kept frames of unfinished segments, converted streams, the joined
result, the rehearsal's; and of those that are being written."""
_MOST_BYTES = 1 << 24  # of a record, which contains the settings


@dataclass(frozen=True)
class Segment:
    """Frames that are encoded on their own: those with ``begin <= pts < end``, in the input's time base."""

    index: int
    begin: int
    end: int | None
    """None: the end of the input."""
    frames: int
    """The number of its frames in the input."""
    path: Path
    lead_in: int | None = None
    """The time from which frames are upscaled but not written, so that pictures can be carried to `begin`."""

    def __str__(self) -> str:
        return f"segment {self.index}"


def plan_segments(
    times: Sequence[int], length: int, folder: Path, end: int | None = None, low: int = 0, lead: int = 0
) -> list[Segment]:
    """Cut frames into segments of `length` frames, the last perhaps of fewer, which join without a gap.

    Args:
        times: the times of the input's frames up to the last of the job, rising, in the input's time base.
        folder: the folder of the files.
        end: the end of the last segment, where the job ends before the input.
        low: the place in `times` of the job's first frame.
        lead: the number of lead-in frames of a segment, as far as there are any.
    """
    segments = []
    for index, start in enumerate(range(low, len(times), length)):
        after = times[start + length] if start + length < len(times) else end
        frames, path = min(length, len(times) - start), folder / f"{index:05}.seg"
        lead_in = times[max(0, start - lead)] if lead else None
        segments.append(Segment(index, times[start], after, frames, path, lead_in))
    return segments


class Store:
    """A job's folder, opened to begin or to resume the job; locked while it is open.

    Args:
        folder: is created if it does not exist; its parent has to exist.
        recipe: all that decides the result, as values for JSON: ``input`` (of `fingerprint_file`), ``settings``,
            ``engine``, ``version``. It has to be that of the resumed job, but for ``mtime_ns``: a copied or touched
            file is the same input.
        restart: delete what was done.
        allowed: whether a stored choice is possible; else the record is damaged.

    Raises:
        ResumeError: the folder belongs to a job with another input or other settings (each is named), its record is
            damaged, it has other files, or another process works on it.
        MediaError: the folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Mapping[str, Any],
        restart: bool = False,
        allowed: Callable[[dict[str, Any]], bool] = lambda choice: True,
    ) -> None:
        self.folder = folder
        self._recipe, self._allowed = json.loads(json.dumps(recipe)), allowed
        self._record: dict[str, Any] = {}
        self._lock: BinaryIO | None = None
        self.open(restart)

    def open(self, restart: bool = False) -> None:
        """Lock the folder and read its record, again after `close`."""
        if self._lock is not None:
            return
        self._lock = _enter(self.folder)
        try:
            if restart:
                self._remove_all()
            known = _read(self.folder, self._allowed)
            if known is None:
                self._record = {"fingerprint": self._recipe, "choice": {}}
                self._write()
            else:
                _compare(self.folder, known["fingerprint"], self._recipe)
                self._record = known
        except BaseException:
            self.close()
            raise

    @property
    def choice(self) -> dict[str, Any]:
        """The stored choice of batch and tiles; empty before `save_choice`."""
        return dict(self._record["choice"])

    def save_choice(self, choice: dict[str, Any]) -> None:
        """Store the choice of batch and tiles, as values for JSON, so that a resumed job repeats it."""
        if choice != self._record["choice"]:
            self._record["choice"] = choice
            self._write()

    def save_result(self, whole: Path) -> None:
        """Store the fingerprint of the result before it is moved into place, so that a later run recognizes it."""
        self._record["delivery"] = fingerprint_file(whole)
        self._write()

    def finished(self, segments: Sequence[Segment], check: Callable[[Segment], bool]) -> set[int]:
        """The indexes of the segments with a valid file; damaged files, and those that were being written, are deleted.

        Where `check` raises a `VidupError`, the file is not valid either.
        """
        for path in _own(self.folder):
            if path.suffix == ".part":
                _remove(path)
        found = set()
        for segment in segments:
            if not segment.path.is_file():
                continue
            try:
                valid, reason = check(segment), "it does not hold the frames that it should"
            except VidupError as error:
                valid, reason = False, str(error)
            if valid:
                found.add(segment.index)
            else:
                log.warning("%s of %s is recomputed: %s", segment, self.folder, reason)
                _remove(segment.path)
        return found

    def delete(self) -> None:
        """Delete the job's files, and the folder if nothing else is in it; closes the store."""
        self._remove_all()
        if sys.platform == "win32":  # where an open file cannot be deleted
            self.close()
            _remove(self.folder / _LOCK)
        else:
            _remove(self.folder / _LOCK)
            self.close()
        with suppress(OSError):  # other files are in it
            self.folder.rmdir()

    def close(self) -> None:
        """Unlock the folder; may be called twice."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _remove_all(self) -> None:
        # The record last: if the process is killed meanwhile, no segments must be left without it.
        for path in sorted(_own(self.folder), key=lambda path: path.name == _RECORD):
            if path.name != _LOCK:
                _remove(path)

    def _write(self) -> None:
        with disk_full_named(self.folder):
            write_atomically(self.folder / _RECORD, json.dumps(self._record, indent=1).encode())


def was_delivered(folder: Path, output: Path) -> bool:
    """Whether the output is the result of the folder's job, whose process was killed before it deleted the folder.

    A folder with nothing but the lock of a job that has ended is deleted.
    """
    with suppress(OSError):
        if not folder.is_symlink() and {path.name for path in folder.iterdir()} <= {_LOCK}:
            with suppress(VidupError):
                _enter(folder).close()
                _remove(folder / _LOCK)
                folder.rmdir()
            return False
        known = _load(folder).get("delivery")
        if isinstance(known, dict):
            found = fingerprint_file(output)
            return all(found[key] == known.get(key) for key in ("size", "sha256"))
    return False


def _enter(folder: Path) -> BinaryIO:
    """Create a job's folder, or check that this is one, and lock it."""
    try:
        if folder.is_symlink():
            raise ResumeError(f"{folder}: is a link, expected the folder of a job; move it, or choose another output")
        folder.mkdir(exist_ok=True)
        names = sorted(path.name for path in folder.iterdir())
        foreign = [name for name in names if not _OWN.fullmatch(name)]
        if foreign and _RECORD not in names:
            raise ResumeError(
                f"{folder}: is no folder of a job, and is not empty ({foreign[0]}); move it, or choose another output"
            )
        for path in _own(folder):
            _check_plain(path)
        return _take_lock(folder)
    except FileExistsError:
        raise MediaError(f"{folder}: cannot be used: is no folder; move it, or choose another output") from None
    except OSError as error:
        raise MediaError(f"{folder}: cannot be used: {error.strerror or error}") from error


def _check_plain(path: Path) -> None:
    """Check that a file of a job is a regular file: writing to a link or a pipe would go elsewhere, or block."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ResumeError(f"{path}: is a link, a folder or a pipe, expected a file of the job; move it")


def _load(folder: Path) -> dict[str, Any]:
    """The record in a folder, unchecked; empty where there is none that can be read."""
    try:
        with open_plain(folder / _RECORD, "rb") as file:
            known = json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _read(folder: Path, allowed: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    """The record in a folder; None where there is no valid one, and no segment that needs it."""
    known = _load(folder)
    choice = known.get("choice")
    if isinstance(known.get("fingerprint"), dict) and isinstance(choice, dict) and (not choice or allowed(choice)):
        return known
    if segments := list(folder.glob("*.seg")):
        raise ResumeError(
            f"{folder}: {_RECORD} is missing or damaged, so that its {len(segments)} finished segments cannot be"
            " trusted; add --restart to start again"
        )
    return None


def _compare(folder: Path, known: dict[str, Any], wanted: dict[str, Any]) -> None:
    changes = dict(_changes(known, wanted))
    if not {"input.size", "input.sha256"} & changes.keys():
        changes.pop("input.mtime_ns", None)
    if changes:
        raise ResumeError(
            f"{folder}: was begun differently ({', '.join(f'{key}: {change}' for key, change in changes.items())});"
            " add --restart to start again, or give the command as it was"
        )


def _changes(known: Any, wanted: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The dotted path and ``old -> new`` of each value that differs."""
    if isinstance(known, dict) and isinstance(wanted, dict):
        for key in [*known, *(key for key in wanted if key not in known)]:
            inner = f"{path}.{key}" if path else key
            yield from _changes(known.get(key, _ABSENT), wanted.get(key, _ABSENT), inner)
    elif known != wanted or isinstance(known, bool) != isinstance(wanted, bool):
        yield path, f"{_show(known)} -> {_show(wanted)}"


_ABSENT = object()


def _show(value: Any) -> str:
    """A value as it is written in a preset."""
    if value is _ABSENT or value is None:
        return "not given"
    return shortened(value if isinstance(value, str) and value else json.dumps(value))


def _own(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _OWN.fullmatch(path.name)]


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise MediaError(f"{path}: cannot be removed: {error.strerror or error}") from error


def _take_lock(folder: Path) -> BinaryIO:
    """Lock a folder by an open file; however the process ends, the system releases the lock."""
    path = folder / _LOCK
    for _ in range(100):
        file = open_plain(path, "a+b")
        try:
            if not _lock(file):
                file.seek(0)
                holder = file.read(20).decode(errors="replace") if sys.platform != "win32" else ""
                raise ResumeError(
                    f"{folder}: another process{f' ({holder})' if holder else ''} works on this job; wait until it ends"
                )
            # Its last owner may have deleted the file between opening and locking: then the lock is worthless.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                file.write(str(os.getpid()).encode())
                file.flush()
                return file
        except BaseException:
            file.close()
            raise
        file.close()
    raise MediaError(f"{path}: cannot be locked: the file system shows another file each time; take another folder")


def _lock(file: BinaryIO) -> bool:
    """Lock a file without waiting; False where another process has it."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(1 << 30)  # behind its content, as others cannot read locked bytes
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("%s: cannot be locked (%s): make sure that no other vidup works there", file.name, error.strerror)
    return True
