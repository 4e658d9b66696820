"""Plan segments, and keep them on disk, so that a job that was stopped goes on where it was.

The job folder holds one file a finished segment, ``job.json`` with what the job was made of, and ``lock``. A finished
file is the only record of what is done. Nothing is ever deleted in it that does not bear one of these names.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from vidup.errors import MediaError, ResumeError, VidupError

log = logging.getLogger(__name__)

_RECORD, _LOCK = "job.json", "lock"
_OWN = re.compile(
    r"lock|(job\.json|\d{5,}\.seg|stream\d+-[\w.()-]+\.kept|(whole|unproved|undelivered|rehearsal)\.\w+)((\.\w+)*\.part)?"
)
"""The names that files of a job bear: lock, record, segments, converted streams, the joined result, the rehearsal's;
and what of these is not whole."""
_SEGMENT = re.compile(r"\d{5,}\.seg")
_EDGE = 1 << 20  # bytes that are hashed at both ends of a file
_SAMPLES, _SAMPLE = 64, 1 << 16  # and pieces of so many bytes, evenly spread between them


@dataclass(frozen=True)
class Segment:
    """Frames that are encoded on their own: those with ``begin <= pts < end``."""

    index: int
    begin: int | None
    """In the input's time base; None where the input tells no times, and there is one segment."""
    end: int | None
    """In the input's time base; None for the last: all that follows."""
    frames: int
    """How many there are; 0 where the input does not tell."""
    path: Path
    """Where its file belongs."""

    def __str__(self) -> str:
        return f"segment {self.index}"


def plan_segments(times: Sequence[int], length: int, folder: Path, end: int | None = None) -> list[Segment]:
    """Cut at every `length` frames. Depends on nothing but the arguments.

    Args:
        times: of the frames, rising, in the input's time base; empty where they are not known.
        length: frames in a segment; the last may have fewer.
        folder: where the files belong.
        end: of the last segment, where the job ends before the input does.

    Returns:
        Segments whose half-open ranges join without a gap and hold every time once.
    """
    if not times:
        return [Segment(0, None, end, 0, folder / "00000.seg")]
    starts = range(0, len(times), length)
    begins = [times[start] for start in starts]
    return [
        Segment(index, begin, after, min(length, len(times) - start), folder / f"{index:05}.seg")
        for index, (start, begin, after) in enumerate(zip(starts, begins, [*begins[1:], end], strict=True))
    ]


def fingerprint_file(path: Path) -> dict[str, Any]:
    """What tells a file from another without reading all of it: ``size``, ``mtime_ns``, ``sha256``.

    The hash is of both ends, 1 MiB each, and of 64 pieces of 64 KiB between them; of all of the file up to 6 MiB. Two
    files of one size that differ only between those pieces are not told apart.

    Raises:
        MediaError: the file cannot be read, or is no regular file.
    """
    digest = hashlib.sha256()
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # to open a pipe would wait for its writer
            raise MediaError(f"{path}: is no regular file, so that a stopped job could not go on; copy it to one")
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            size = facts.st_size
            if size <= 2 * _EDGE + _SAMPLES * _SAMPLE:
                digest.update(file.read())
            else:
                digest.update(file.read(_EDGE))
                for index in range(_SAMPLES):
                    file.seek(_EDGE + (size - 2 * _EDGE - _SAMPLE) * index // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE))
                file.seek(size - _EDGE)
                digest.update(file.read(_EDGE))
    except OSError as error:
        raise MediaError(f"{path}: cannot be read: {error.strerror or error}") from error
    return {"size": size, "mtime_ns": facts.st_mtime_ns, "sha256": digest.hexdigest()}


class Store:
    """A job's folder, locked until it is closed. Made by `open_store`."""

    def __init__(self, folder: Path, lock: BinaryIO, fingerprint: dict[str, Any], choice: dict[str, Any]) -> None:
        self.folder = folder
        self._lock, self._fingerprint, self._choice = lock, fingerprint, choice

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def choice(self) -> dict[str, Any]:
        """What was decided automatically when the job began; empty before `save_choice`."""
        return dict(self._choice)

    def save_choice(self, choice: Mapping[str, Any]) -> None:
        """Record what was decided automatically, so that a resumed job repeats it.

        Args:
            choice: what JSON holds.
        """
        self._choice = json.loads(json.dumps(choice))
        self._write()

    def finished(self, segments: Sequence[Segment], check: Callable[[Segment], bool]) -> set[int]:
        """The indexes of those whose file stands and is sound. Damaged ones and what was left half-written go.

        Args:
            check: reads a segment's file and tells whether it is whole and holds the frames that it should; a
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
        for path in _own(self.folder):
            if path.name != _LOCK:
                _remove(path)
        self.close(forget=True)
        with suppress(OSError):  # not empty: what is left is not ours
            self.folder.rmdir()

    def close(self, forget: bool = False) -> None:
        """Let another process have the folder; may be called twice."""
        if not self._lock.closed:
            if forget and sys.platform != "win32":  # there an open file cannot be removed
                _remove(self.folder / _LOCK)
            self._lock.close()
            if forget and sys.platform == "win32":
                _remove(self.folder / _LOCK)

    def _write(self) -> None:
        content = {"fingerprint": self._fingerprint, "choice": self._choice}
        with disk_full_told(self.folder):
            write_atomically(self.folder / _RECORD, json.dumps(content, indent=1).encode())


def open_store(folder: Path, fingerprint: Mapping[str, Any], restart: bool = False) -> Store:
    """Open a job's folder to begin or to go on.

    The job on disk is the same if its fingerprint is. Only the input's ``mtime_ns`` may differ where its size and its
    hash do not: a copied or touched file is the same input.

    Args:
        folder: is made where it is not there; its parent must be.
        fingerprint: all that decides the result, as JSON holds it: ``input`` (of `fingerprint_file`), ``settings``,
            ``engine``, ``version``.
        restart: forget what was done.

    Raises:
        ResumeError: the folder belongs to a job of another input or with other settings (each is named), its record is
            damaged, it holds files of somebody else, or another process works on it.
        MediaError: the folder cannot be written to.
    """
    wanted = json.loads(json.dumps(fingerprint))
    try:
        folder.mkdir(exist_ok=True)
        names = sorted(path.name for path in folder.iterdir())
        foreign = [name for name in names if not _OWN.fullmatch(name)]
        if foreign and _RECORD not in names:
            raise ResumeError(
                f"{folder}: is no folder of a job, and is not empty ({foreign[0]}); move it, or choose another output"
            )
        lock = _take_lock(folder)
    except OSError as error:
        raise MediaError(f"{folder}: cannot be used: {error.strerror or error}") from error
    try:
        if restart:
            for path in _own(folder):
                if path.name != _LOCK:
                    _remove(path)
        known = _read(folder)
        if known is not None:
            _compare(folder, known["fingerprint"], wanted)
            return Store(folder, lock, known["fingerprint"], known["choice"])
        store = Store(folder, lock, wanted, {})
        store._write()
        return store
    except OSError as error:
        lock.close()
        raise MediaError(f"{folder}: cannot be used: {error.strerror or error}") from error
    except BaseException:
        lock.close()
        raise


def _read(folder: Path) -> dict[str, Any] | None:
    """The record; None where there is none, and nothing that it would be missed for."""
    try:
        known = json.loads((folder / _RECORD).read_bytes())
        if isinstance(known["fingerprint"], dict) and isinstance(known["choice"], dict):
            return {"fingerprint": known["fingerprint"], "choice": known["choice"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
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
    return [path for path in folder.iterdir() if _OWN.fullmatch(path.name) and not path.is_dir()]


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise MediaError(f"{path}: cannot be removed: {error.strerror or error}") from error


def _take_lock(folder: Path) -> BinaryIO:
    """An open file that the system has locked for this process: however that ends, the lock ends with it."""
    path = folder / _LOCK
    for _ in range(100):
        file = path.open("a+b")
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


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, it has the old content or the new.

    Raises:
        OSError: it cannot be written; the old one stands.
    """
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring a rename to the disk itself, where the system can: not on Windows, nor on every network drive."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def need_disk(folder: Path, bytes_needed: int) -> None:
    """See that a job will find room.

    Args:
        folder: on the disk in question; need not be there yet.

    Raises:
        MediaError: less is free.
    """
    place = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise MediaError(f"{place}: its free space cannot be told: {error.strerror or error}") from error
    if free < bytes_needed:
        raise MediaError(
            f"{place}: about {bytes_needed / 2**30:.2f} GiB are needed and {free / 2**30:.2f} GiB are free;"
            " make room, or choose an output on another disk"
        )


@contextmanager
def disk_full_told(folder: Path) -> Iterator[None]:
    """Turn the system's "no space left", and a `MediaError` that it caused, into one that says how to go on.

    Causes do not pickle: in a worker this belongs around the work, not around what fetches its result.

    Raises:
        MediaError: the disk, or the user's share of it, is full.
    """
    try:
        yield
    except (OSError, MediaError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise MediaError(
                f"{folder}: the disk is full; what is done is kept: make room, then give the same command again"
            ) from error
        raise
