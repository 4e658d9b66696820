"""The standard streams and the signals of a command: who stops reading ends no job, and nothing ends without a word."""

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
"""Ctrl-C, the wish of another process, and the end of the terminal (which Windows has not)."""


def open_streams() -> None:
    """Open the standard streams that the process was started without: a file of the job would get their number, and
    what libraries print there would go into it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the system gives the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("r" if number == 0 else "w"))  # noqa: SIM115


def put(line: str) -> None:
    """Write a line of data to standard output.

    Raises:
        MediaError: it cannot be written there.
        BrokenPipeError: whoever read it is gone.
    """
    with _told():
        print(line)


def flush() -> None:
    """See that all of standard output is written, or given up; raises as `put` does."""
    with _told():
        sys.stdout.flush()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        silence(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"standard output: cannot be written: {reason}; send it elsewhere") from None


def say(line: str) -> None:
    """Write a line to standard error, where there is anybody to read it."""
    with suppress(OSError, ValueError), _above_the_bar(sys.stderr):
        print(line, file=sys.stderr, flush=True)


class LogHandler(logging.StreamHandler[Any]):
    """Writes what is logged to standard error, each line whole, above the bar where one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """As its base."""
        with _above_the_bar(self.stream):
            super().emit(record)


_DRAWING = threading.RLock()
"""Held while a bar is drawn. tqdm's own lock is shared with forked processes: one that is killed while it holds it
would leave all others waiting for ever."""


@contextmanager
def _above_the_bar(stream: Any) -> Iterator[None]:
    """Take tqdm's bars off the terminal while something else is written there."""
    tqdm = sys.modules.get("tqdm")  # where it is not loaded there is no bar
    if tqdm is not None and tqdm.tqdm.get_lock() is not _DRAWING:
        tqdm.tqdm.set_lock(_DRAWING)
    with nullcontext() if tqdm is None else tqdm.tqdm.external_write_mode(file=stream):
        yield


def silence(stream: Any) -> None:
    """Let a stream that cannot be written to end in nothing: Python would try again, and fail, at its own end."""
    with suppress(OSError, ValueError, AttributeError):  # it may be no file of the system's
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


@contextmanager
def stopping(gently: bool, lasting: bool) -> Iterator[threading.Event]:
    """Handle Ctrl-C, SIGTERM and SIGHUP: the first sets the event, the second raises `KeyboardInterrupt`, the third
    ends the process at once. SIGHUP is left alone where it is ignored, as ``nohup`` does.

    Args:
        gently: whether there is somebody who looks at the event; else the first already raises.
        lasting: they are ignored afterwards: one that comes while Python ends would make a failure of what is done.
    """
    stop = threading.Event()
    count = 0 if gently else 1

    def ask(number: int, frame: object) -> None:
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
    before = {number: signal.signal(number, ask) for number in handled}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if lasting else handler)


def _write(line: bytes) -> None:
    """Not by print: a signal may come while sys.stderr is being written to, which then refuses."""
    with suppress(OSError, ValueError, AttributeError):  # it may be gone, or be no file
        if sys.stderr.isatty():  # there may be a bar, which is drawn again below
            line = b"\r\x1b[K" + line
        os.write(sys.stderr.fileno(), line)
