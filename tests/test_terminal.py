"""What a command does where nobody reads, or where it is told to stop."""

import errno
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import video_times
from tqdm import tqdm

import vidup
from vidup import Settings, terminal
from vidup.cli import main
from vidup.job.progress import Bar, json_lines

NEAREST = Settings(model="nearest", scale=1, encoder_options={"preset": "ultrafast"})
ROOT = str(Path(__file__).parents[1])


class Broken(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error

    def isatty(self) -> bool:
        return True


ERRORS = [
    OSError(errno.ENOSPC, "No space left on device"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    ValueError("closed"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error))
@pytest.mark.parametrize("make", [json_lines, Bar])
def test_progress_that_nobody_reads_ends_no_job(make_clip: Callable[..., Path], caplog, make, error: Exception):
    source = make_clip(times=(0, 512, 1024), sound=False)
    sink = make(Broken(error))
    output = vidup.upscale(source, source.with_name("out.mp4"), NEAREST, on_progress=sink).output
    assert len(video_times(output)) == 3
    assert not getattr(tqdm, "_instances", ())  # below one that is left, all later bars would be drawn
    told = [record.message for record in caplog.records if "progress" in record.message]
    reason = getattr(error, "strerror", None) or str(error)
    if make is Bar and isinstance(error, ValueError):
        return  # tqdm itself lets go of a file that is closed
    assert told == [f"progress cannot be written ({reason}): the job goes on without"]


def test_data_that_cannot_be_written_is_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "stdout", Broken(ERRORS[0]))
    assert main(["list", "presets"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "vidup: standard output: cannot be written: No space left on device; send it elsewhere"


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors of POSIX")
def test_standard_streams_that_are_closed(make_clip: Callable[..., Path]):
    """The job is done all the same, and nothing that is printed goes into one of its files."""
    source = make_clip(times=(0, 512, 1024), sound=False)
    output = source.with_name("out.mp4")
    command = [sys.executable, "-m", "vidup", "upscale", str(source), "-o", str(output), "--model", "nearest"]
    command += ["-s", "1", "--progress", "json"]
    closed = "import os, sys; os.closerange(0, 3); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", closed, *command], env={**os.environ, "PYTHONPATH": ROOT}, timeout=100)
    assert done.returncode == 0
    assert len(video_times(output)) == 3 and not output.with_name("out.mp4.vidup").exists()


def test_the_reader_of_help_may_leave():
    command = [sys.executable, "-c", "import sys; from vidup.cli import main; sys.exit(main())", "--help"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ROOT}, timeout=100
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


SIGNALS = """
import os, signal, sys, time
from vidup import terminal
signal.signal(signal.SIGHUP, signal.SIG_IGN if "ignored" in sys.argv else signal.SIG_DFL)  # whatever nohup has left
try:
    with terminal.stopping(gently="probe" not in sys.argv, lasting=True) as stop:
        for name in sys.argv[1].split(","):
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(0.01)
        print("stop" if stop.is_set() else "go on")
except KeyboardInterrupt:
    os.kill(os.getpid(), signal.SIGINT)  # too late to matter
    print("interrupted")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("signals", "code", "out", "err"),
    [
        (("SIGINT",), 0, "stop", 1),
        (("SIGTERM",), 0, "stop", 1),
        (("SIGHUP",), 0, "stop", 1),
        (("SIGHUP", "ignored"), 0, "go on", 0),
        (("SIGINT,SIGINT",), 0, "interrupted", 1),
        (("SIGINT", "probe"), 0, "interrupted", 0),
        (("SIGINT,SIGINT,SIGINT",), 0, "interrupted", 1),
    ],
)
def test_signals(signals: tuple[str, ...], code: int, out: str, err: int):
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS, *signals],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip(), len(done.stderr.splitlines())) == (code, out, err)


STUCK = """
import os, signal
from vidup import terminal
with terminal.stopping(gently=True, lasting=True):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    finally:  # something that takes its time to end
        os.kill(os.getpid(), signal.SIGINT)
        print("not reached")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_the_third_ends_at_once():
    done = subprocess.run(
        [sys.executable, "-c", STUCK],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines() == [
        "vidup: stopping; Ctrl-C again stops at once",
        "vidup: ended at once",
    ]


def test_a_lock_that_a_killed_process_holds_is_not_waited_for(capsys: pytest.CaptureFixture[str]):
    """tqdm's is a semaphore that forked processes share."""
    own, stuck = tqdm.get_lock(), threading.Lock()
    stuck.acquire()
    tqdm.set_lock(stuck)
    try:
        terminal.say("and on")
        assert capsys.readouterr().err == "and on\n"
    finally:
        stuck.release()  # tqdm's own thread may wait for it
        tqdm.set_lock(own)


def test_a_lock_that_is_left_taken_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_PATIENCE", 0.01)
    lock = terminal._Lock()
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()
    with lock, lock:  # a lock of its own thread may be taken twice
        lock.release()
    lock.release()  # taken away from whoever has it no more
    with lock:
        pass
