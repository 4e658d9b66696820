"""The standard streams and the signals of a command."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from vidup.errors import MediaError

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C, the request of another process, and the end of the terminal (not on Windows)."""


def open_streams() -> None:
    """Open standard streams that are closed: else a file of the job could get their number, and what libraries print
    would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("r" if number == 0 else "w"))  # noqa: SIM115


def put(line: str) -> None:
    """Write a line of data to standard output; raises MediaError, or BrokenPipeError if the reader is gone."""
    with _with_clear_errors():
        print(line)


def flush() -> None:
    """Flush standard output; raises as `put` does."""
    with _with_clear_errors():
        sys.stdout.flush()


@contextmanager
def _with_clear_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        silence(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"standard output: cannot be written: {reason}; send it elsewhere") from None


def say(line: str) -> None:
    """Write a line to standard error, if that is possible."""
    with suppress(OSError, ValueError), _above_the_bar(sys.stderr):
        print(line, file=sys.stderr, flush=True)


class LogHandler(logging.StreamHandler[Any]):
    """Writes log records to standard error, above a bar."""

    def emit(self, record: logging.LogRecord) -> None:
        with _above_the_bar(self.stream):
            super().emit(record)


class _Lock:
    """A lock for drawing a bar that nobody waits for longer than `_PATIENCE`.

    It may be left taken: by a thread that a second Ctrl-C interrupted just then, or, as tqdm's own, which forked
    processes share, by one that was killed. A torn line is better than a job that waits for ever.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def acquire(self, *given: Any) -> bool:
        """Take the lock, if need be from whoever does not give it back."""
        if not self._lock.acquire(timeout=_PATIENCE):
            self._lock = threading.RLock()
            self._lock.acquire()
        return True

    def release(self) -> None:
        """Give the lock back, if it has not been taken away."""
        with suppress(RuntimeError):
            self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *raised: object) -> None:
        self.release()


_PATIENCE = 2.0
_DRAWING = _Lock()


@contextmanager
def _above_the_bar(stream: Any) -> Iterator[None]:
    """Clear tqdm's bars while something else is written to the terminal, and draw them again."""
    tqdm = sys.modules.get("tqdm")  # there is no bar unless it is loaded
    if tqdm is not None and tqdm.tqdm.get_lock() is not _DRAWING:
        tqdm.tqdm.set_lock(_DRAWING)
    with nullcontext() if tqdm is None else tqdm.tqdm.external_write_mode(file=stream):
        yield


def silence(stream: Any) -> None:
    """Redirect a stream that cannot be written to to the null device: else Python would fail again when it exits."""
    with suppress(OSError, ValueError, AttributeError):  # it may be no file of the system
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


@contextmanager
def stopping(gently: bool, lasting: bool) -> Iterator[threading.Event]:
    """Handle Ctrl-C, SIGTERM and SIGHUP: the first sets the event, the second raises `KeyboardInterrupt`, the third
    ends the process at once. SIGHUP is not handled if it is ignored, as by ``nohup``.

    Args:
        gently: whether the block checks the event; else the first signal raises.
        lasting: whether signals are ignored after the block: one while Python exits would look like a failure.
    """
    stop = threading.Event()
    count = 0 if gently else 1

    def interrupt(number: int, frame: object) -> None:
        nonlocal count
        count += 1
        if count == 1:
            stop.set()
            _write(b"vidup: stopping; Ctrl-C again stops at once\n")
        elif count == 2:
            raise KeyboardInterrupt
        else:
            _write(b"vidup: ended at once\n")
            os._exit(130)

    hup = getattr(signal, "SIGHUP", None)
    handled = [each for each in STOP_SIGNALS if each != hup or signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in handled}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if lasting else handler)


def _write(line: bytes) -> None:
    """Write to standard error in a signal handler, where print() may fail because it was interrupted itself."""
    with suppress(OSError, ValueError, AttributeError):  # the stream may be closed, or be no file
        if sys.stderr.isatty():  # there may be a bar, which will be drawn again below
            line = b"\r\x1b[K" + line
        os.write(sys.stderr.fileno(), line)
