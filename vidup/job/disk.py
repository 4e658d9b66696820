"""Files on a disk: fingerprints, atomic writes that follow no link, and free space."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast
from uuid import uuid4

from vidup.errors import ConfigError, MediaError
from vidup.media import sequences

log = logging.getLogger(__name__)

_EDGE = 1 << 20  # bytes that are hashed at both ends of a file
_SAMPLES, _SAMPLE = 64, 1 << 16  # the number of pieces between them that are hashed, and the bytes of each
_MOST_NAME = 255  # bytes of a file's name, where the system does not state it
_NOT_THROUGH_LINKS = getattr(os, "O_NOFOLLOW", 0)  # Windows has none, and lets few users create links


def fingerprint_file(path: Path) -> dict[str, Any]:
    """A fingerprint of a file without reading all of it: ``size``, ``mtime_ns``, ``sha256``.

    The hash is of both ends, 1 MiB each, and of 64 pieces of 64 KiB between them; of the whole file up to 6 MiB. Files
    of equal size that differ only between those pieces have the same fingerprint.

    Raises:
        MediaError: the file cannot be read, or is no regular file.
    """
    digest = hashlib.sha256()
    try:
        if sequences.is_sequence(path):
            return sequences.find(path).fingerprint()
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # opening a pipe would wait for its writer
            raise MediaError(f"{path}: is no regular file, so that a stopped job could not go on; copy it to one")
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            size = facts.st_size
            pieces = [(0, size)]
            if size > 2 * _EDGE + _SAMPLES * _SAMPLE:
                between = (_EDGE + (size - 2 * _EDGE - _SAMPLE) * index // (_SAMPLES - 1) for index in range(_SAMPLES))
                pieces = [(0, _EDGE), *((place, _SAMPLE) for place in between), (size - _EDGE, _EDGE)]
            for place, length in pieces:
                file.seek(place)
                digest.update(file.read(length))
    except OSError as error:
        raise MediaError(f"{path}: cannot be read: {error.strerror or error}") from error
    return {"size": size, "mtime_ns": facts.st_mtime_ns, "sha256": digest.hexdigest()}


def check_unchanged(path: Path, known: dict[str, Any]) -> None:
    """Raise a `MediaError` if a file is gone, or its size or content is not that of an earlier `fingerprint_file`."""
    now = fingerprint_file(path)
    changes = [key for key in ("size", "sha256") if now[key] != known[key]]
    if changes:
        words = ", ".join(f"{key}: {shortened(str(known[key]))} -> {shortened(str(now[key]))}" for key in changes)
        raise MediaError(
            f"{path}: was replaced or written to while the job ran ({words}); what was upscaled before is kept: bring"
            " it back and give the same command again, or add --restart to begin with the new one"
        )
    if now["mtime_ns"] != known["mtime_ns"]:
        log.warning("%s: was touched while the job ran; its size and content have not changed", path)
        known["mtime_ns"] = now["mtime_ns"]


def shortened(text: str) -> str:
    """The text, or the beginning of a long one such as a hash."""
    return text if len(text) <= 40 else f"{text[:12]}..."


def followed(output: Path) -> Path:
    """The file that an output's path leads to: the target of a link, as in editors, which need not exist."""
    if not output.is_symlink():
        return output
    target = Path(os.path.realpath(output))
    if target.is_symlink():
        raise ConfigError(f"{output}: is a link that leads nowhere: {os.strerror(errno.ELOOP)}")
    log.info("%s: is a link: %s is written", output, target)
    return target


def beside(output: Path, ending: str) -> Path:
    """The output's path with an ending appended; its name is shortened where it would be too long."""
    name = output.name + ending
    try:
        most = os.pathconf(output.parent, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows; a folder that does not exist
        most = _MOST_NAME
    if len(os.fsencode(name)) > most:
        ending = f".{hashlib.sha256(os.fsencode(output.name)).hexdigest()[:8]}{ending}"
        head = os.fsencode(output.name)[: most - len(os.fsencode(ending))]
        name = head.decode(errors="ignore") + ending
    return output.with_name(name)


def open_plain(path: Path, mode: str) -> BinaryIO:
    """Open a file of a job, but never through a link to another file."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | _NOT_THROUGH_LINKS, 0o666)

    return cast(BinaryIO, open(path, mode, opener=opener))


def put_in_place(whole: Path, output: Path, overwrite: bool) -> None:
    """Move a finished file into place atomically; a file that has appeared there meanwhile is replaced if it may be."""
    try:
        with whole.open("rb+") as file:
            os.fsync(file.fileno())
        if overwrite:
            whole.replace(output)
        else:
            _move_to_new(whole, output)
        sync_folder(output.parent)
    except FileExistsError:
        raise ConfigError(
            f"{output}: has appeared while the job ran, and is left as it is; what is done is kept: move that file"
            " away, or add -y to replace it, and give the same command again"
        ) from None
    except OSError as error:
        raise MediaError(f"{output}: cannot be written: {error.strerror or error}") from error


def _move_to_new(whole: Path, output: Path) -> None:
    try:
        os.link(whole, output)  # unlike a rename it fails if the file exists
    except (OSError, AttributeError, NotImplementedError):  # FAT, some network drives, Android have no links
        output.touch(exist_ok=False)
        try:
            whole.replace(output)
        except OSError:
            output.unlink()
            raise
    else:
        whole.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, it has the old content or the new."""
    part = path.with_name(f"{path.name}.{uuid4().hex[:8]}.part")  # several workers may write
    try:
        with open_plain(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a rename to the disk, where the system can: not on Windows, nor on every network drive."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def need_disk(folder: Path, bytes_needed: int) -> None:
    """Raise a `MediaError` if less is free on a folder's disk."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise MediaError(f"{folder}: its free space cannot be read: {error.strerror or error}") from error
    if free < bytes_needed:
        raise MediaError(
            f"{folder}: about {bytes_needed / 2**30:.2f} GiB are needed and {free / 2**30:.2f} GiB are free;"
            " make room, or choose an output on another disk"
        )


@contextmanager
def disk_full_named(folder: Path) -> Iterator[None]:
    """Turn the system's "no space left", and a `MediaError` that it caused, into a `MediaError` that says what to do.

    Causes do not pickle: on Ray this has to be used in the worker's process.
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
