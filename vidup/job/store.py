"""Plan segments, and keep them on disk, so that a job that was stopped goes on where it was.

The job folder holds one file a finished segment, ``job.json`` with what the job was made of, and ``lock``. A finished
file is the only record of what is done. Nothing is ever deleted in it that does not bear one of these names.
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
from types import TracebackType
from typing import Any, BinaryIO

from vidup.errors import MediaError, ResumeError, VidupError
from vidup.job.disk import disk_full_named, fingerprint_file, open_plain, write_atomically

log = logging.getLogger(__name__)

_RECORD, _LOCK = "job.json", "lock"
_OWN = re.compile(
    r"lock|(job\.json|\d{5,}\.(seg|planes|made)|stream\d+-[\w.()-]+\.kept"
    r"|(whole|unproved|undelivered|rehearsal)\.\w+)((\.\w+)*\.part)?"
)
"""The names that files of a job bear: lock, record, segments and what is done of them, converted streams, the joined
result, the rehearsal's; and what of these is not whole."""
_SEGMENT = re.compile(r"\d{5,}\.seg")
_MOST_BYTES = 1 << 24  # of a record: presets and prompts have their place


@dataclass(frozen=True)
class Segment:
    """Frames that are encoded on their own: those with ``begin <= pts < end``."""

    index: int
    begin: int
    """In the input's time base."""
    end: int | None
    """In the input's time base; None for the last: all that follows."""
    frames: int
    """How many there are."""
    path: Path
    """Where its file belongs."""
    lead_in: int | None = None
    """From where frames are decoded and upscaled, so that what is carried is there at `begin`; not written."""

    def __str__(self) -> str:
        return f"segment {self.index}"


def plan_segments(
    times: Sequence[int], length: int, folder: Path, end: int | None = None, before: Sequence[int] = (), lead: int = 0
) -> list[Segment]:
    """Cut at every `length` frames. Depends on nothing but the arguments.

    Args:
        times: of the frames, rising, in the input's time base.
        length: frames in a segment; the last may have fewer.
        folder: where the files belong.
        end: of the last segment, where the job ends before the input does.
        before: times of the frames of the input that come before these.
        lead: how many frames before its own a segment is led in by, as far as there are.

    Returns:
        Segments whose half-open ranges join without a gap and hold every time once.
    """
    known, own = [*before, *times], len(before)
    starts = range(own, len(known), length)
    ends = [*(known[start] for start in starts[1:]), end]
    return [
        Segment(index, known[start], after, min(length, len(known) - start), folder / f"{index:05}.seg", lead_in)
        for index, (start, after, lead_in) in enumerate(
            zip(starts, ends, (known[max(0, start - lead)] if lead else None for start in starts), strict=True)
        )
    ]


class Store:
    """A job's folder, locked while it is open. Made by `open_store`; closed, it may be opened again."""

    def __init__(self, folder: Path, fingerprint: dict[str, Any], allowed: Callable[[dict[str, Any]], bool]) -> None:
        self.folder = folder
        self._wanted, self._allowed = fingerprint, allowed
        self._record: dict[str, Any] = {}
        self._lock: BinaryIO | None = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self, restart: bool = False) -> None:
        """Lock the folder, make it where it is not there, and read its record; raises as `open_store` does."""
        if self._lock is not None:
            return
        self._lock = _enter(self.folder)
        try:
            if restart:
                for path in _own(self.folder):
                    if path.name != _LOCK:
                        _remove(path)
            known = _read(self.folder, self._allowed)
            if known is None:
                self._record = {"fingerprint": self._wanted, "choice": {}}
                self._write()
            else:
                _compare(self.folder, known["fingerprint"], self._wanted)
                self._record = known
        except BaseException:
            self.close()
            raise

    @property
    def choice(self) -> dict[str, Any]:
        """What was decided automatically when the job began; empty before `save_choice`."""
        return dict(self._record["choice"])

    def save_choice(self, choice: Mapping[str, Any]) -> None:
        """Record what was decided automatically, so that a resumed job repeats it.

        Args:
            choice: what JSON holds.
        """
        self._record["choice"] = json.loads(json.dumps(choice))
        self._write()

    def save_delivery(self, whole: Path) -> None:
        """Record what is about to be moved to the output: a kill after that leaves a job that has been delivered."""
        self._record["delivery"] = fingerprint_file(whole)
        self._write()

    def finished(self, segments: Sequence[Segment], check: Callable[[Segment], bool]) -> set[int]:
        """The indexes of those whose file stands and is sound. Damaged ones and what was left half-written go.

        Args:
            check: reads a segment's file and returns whether it is whole and holds the frames that it should; a
                `VidupError` counts as no.
        """
        for path in _own(self.folder):
            if path.suffix == ".part":
                _remove(path)
        found = set()
        for segment in segments:
            if not segment.path.is_file():
                continue
            try:
                sound, reason = check(segment), "it does not hold the frames that it should"
            except VidupError as error:
                sound, reason = False, str(error)
            if sound:
                found.add(segment.index)
            else:
                log.warning("%s of %s is made again: %s", segment, self.folder, reason)
                _remove(segment.path)
        return found

    def delete(self) -> None:
        """Remove the job's files, and the folder if nothing else is in it; closes the store."""
        # The record after all that it describes: a kill in between must not leave segments that nothing is known of.
        for path in sorted(_own(self.folder), key=lambda path: path.name == _RECORD):
            if path.name != _LOCK:
                _remove(path)
        self.close(forget=True)
        with suppress(OSError):  # not empty: what is left is not ours
            self.folder.rmdir()

    def close(self, forget: bool = False) -> None:
        """Let another process have the folder; may be called twice."""
        if self._lock is not None:
            if forget and sys.platform != "win32":  # there an open file cannot be removed
                _remove(self.folder / _LOCK)
            self._lock.close()
            self._lock = None
            if forget and sys.platform == "win32":
                _remove(self.folder / _LOCK)

    def _write(self) -> None:
        with disk_full_named(self.folder):
            write_atomically(self.folder / _RECORD, json.dumps(self._record, indent=1).encode())


def open_store(
    folder: Path,
    fingerprint: Mapping[str, Any],
    restart: bool = False,
    allowed: Callable[[dict[str, Any]], bool] = lambda choice: True,
) -> Store:
    """Open a job's folder to begin or to go on.

    The job on disk is the same if its fingerprint is. Only the input's ``mtime_ns`` may differ where its size and its
    hash do not: a copied or touched file is the same input.

    Args:
        folder: is made where it is not there; its parent must be.
        fingerprint: all that decides the result, as JSON holds it: ``input`` (of `fingerprint_file`), ``settings``,
            ``engine``, ``version``.
        restart: forget what was done.
        allowed: whether a stored choice is one that can have been made; a record with another is damaged.

    Raises:
        ResumeError: the folder belongs to a job of another input or with other settings (each is named), its record is
            damaged, it holds files of somebody else, or another process works on it.
        MediaError: the folder cannot be written to.
    """
    store = Store(folder, json.loads(json.dumps(fingerprint)), allowed)
    store.open(restart)
    return store


def was_delivered(folder: Path, output: Path) -> bool:
    """Whether the output is what the job of a folder has made: its process was killed before the folder was removed.

    A folder in which nothing is left but the lock of a job that has ended is removed.
    """
    with suppress(OSError):
        if not folder.is_symlink() and {path.name for path in folder.iterdir()} <= {_LOCK}:
            with suppress(VidupError):
                _enter(folder).close()
                _remove(folder / _LOCK)
                folder.rmdir()
            return False
        known = (_load(folder) or {}).get("delivery")
        if isinstance(known, dict):
            found = fingerprint_file(output)
            return all(found[key] == known.get(key) for key in ("size", "sha256"))
    return False


def _enter(folder: Path) -> BinaryIO:
    """Make a job's folder or see that this is one, and lock it."""
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
        _check_plain(folder / _LOCK)
        lock = _take_lock(folder)
        try:
            for path in _own(folder):
                _check_plain(path)
        except BaseException:
            lock.close()
            raise
        return lock
    except FileExistsError:
        raise MediaError(f"{folder}: cannot be used: is no folder; move it, or choose another output") from None
    except OSError as error:
        raise MediaError(f"{folder}: cannot be used: {error.strerror or error}") from error


def _check_plain(path: Path) -> None:
    """See that what bears the name of a job's file is one: else what is written goes elsewhere, or waits for ever."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ResumeError(f"{path}: is a link, a folder or a pipe, expected a file of the job; move it")


def _load(folder: Path) -> dict[str, Any] | None:
    """The record as it stands there; None where there is none that can be read."""
    try:
        with open_plain(folder / _RECORD, "rb") as file:
            known = json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return known if isinstance(known, dict) else None


def _read(folder: Path, allowed: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    """The record; None where there is none, and nothing that it would be missed for."""
    known = _load(folder) or {}
    choice = known.get("choice")
    if isinstance(known.get("fingerprint"), dict) and isinstance(choice, dict) and (not choice or allowed(choice)):
        return known
    segments = sum(1 for path in folder.iterdir() if _SEGMENT.fullmatch(path.name))
    if segments:
        raise ResumeError(
            f"{folder}: {_RECORD} is missing or damaged, so that its {segments} finished segments cannot be trusted;"
            " add --restart to begin anew"
        )
    return None


def _compare(folder: Path, known: dict[str, Any], wanted: dict[str, Any]) -> None:
    changes = dict(_changes(known, wanted))
    if not {"input.size", "input.sha256"} & changes.keys():
        changes.pop("input.mtime_ns", None)
    if changes:
        raise ResumeError(
            f"{folder}: was begun differently ({', '.join(f'{key}: {change}' for key, change in changes.items())});"
            " add --restart to begin anew, or give the command as it was"
        )


def _changes(known: Any, wanted: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Each leaf that differs: its dotted path and ``old -> new``."""
    if isinstance(known, dict) and isinstance(wanted, dict):
        for key in [*known, *(key for key in wanted if key not in known)]:
            inner = f"{path}.{key}" if path else key
            yield from _changes(known.get(key, _ABSENT), wanted.get(key, _ABSENT), inner)
    elif known != wanted or isinstance(known, bool) != isinstance(wanted, bool):
        yield path, f"{_show(known)} -> {_show(wanted)}"


_ABSENT = object()


def _show(value: Any) -> str:
    """As in a preset, shortened where it is a hash."""
    if value is _ABSENT or value is None:
        return "not given"
    text = value if isinstance(value, str) and value else json.dumps(value)
    return text if len(text) <= 40 else text[:12] + "..."


def _own(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _OWN.fullmatch(path.name)]


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise MediaError(f"{path}: cannot be removed: {error.strerror or error}") from error


def _take_lock(folder: Path) -> BinaryIO:
    """An open file that the system has locked for this process: however that ends, the lock ends with it."""
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
            # Its last holder may have removed it between the two calls: then it locks nobody else out.
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

        file.seek(1 << 30)  # behind what is in it: what is locked there nobody else may read
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
        log.warning("%s: cannot be locked (%s): see that no other vidup works there", file.name, error.strerror)
    return True
