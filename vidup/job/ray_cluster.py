"""Ray's cluster: started on this machine, or a running cluster; nothing of it is left afterwards."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from vidup.errors import ConfigError

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 30.0
"""Seconds without an answer of Ray's, or without a worker, before a warning."""
_CONNECT_SECONDS = 5.0
_LONGEST = 39  # bytes of a temporary folder's name: Ray adds up to 68, and a socket's name has at most 107
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = b"\x04"
"""The first bytes of a client of HTTP/2, which Ray uses, and the type of the frame that answers (RFC 9113, 3.4)."""


@dataclass(frozen=True)
class Wanted:
    """The workers that are requested from Ray."""

    setting: str
    """The setting that requests them, for errors."""
    workers: int
    address: str | None = None
    """The address of a running cluster, as for ``ray.init``; all its machines have the same files under the same paths.
    None: Ray is started here and ended after the work, unless this process is connected already."""
    threads: int = 0
    """CPU cores of a worker, and its OMP_NUM_THREADS; 0: an equal share on this machine, one on a cluster."""
    gpus: float = 0.0
    """GPUs of a worker: 0.5 are two workers on one GPU. Ray shows each worker only its own; with 0 it sees all."""

    def for_items(self, count: int) -> Wanted:
        """The workers for at most `count` items."""
        workers, threads = min(self.workers, count), self.threads
        if not threads:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            threads = max(1, cores // workers) if self.address is None else 1
        return replace(self, workers=workers, threads=threads)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a worker's process."""
        found = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # without a GPU from Ray, a worker sees all
            "OMP_NUM_THREADS": str(self.threads),
        }
        if self.address is None:  # a cluster has its own modules
            found["PYTHONPATH"] = os.pathsep.join(str(Path(folder).resolve()) for folder in sys.path)
        return found

    def places(self, ray: Any) -> int:
        """How many workers the machines have room for."""
        known = (process.info for process in psutil.process_iter(["ppid", "name", "status"]))
        if {"ppid": os.getpid(), "name": "raylet", "status": psutil.STATUS_ZOMBIE} in known:
            return 0  # Ray itself would notice only after another 15 s that its process for this machine is dead
        total = 0
        for node in ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                counts = [has.get("CPU", 0) / self.threads] + ([has.get("GPU", 0) / self.gpus] if self.gpus else [])
                total += math.floor(min(counts) + 1e-6)  # 1 / 0.1 and the like
        return total


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray."""

    ray: Any
    """The module."""
    wanted: Wanted
    is_ours: bool
    """Whether Ray was started here; its workers then inherit this process's environment."""


@contextmanager
def cluster(wanted: Wanted) -> Iterator[Cluster]:
    """Start Ray or connect to it, until the end of the block."""
    try:
        import ray
    except ImportError:
        raise ConfigError(f'{wanted.setting}: needs ray: pip install "vidup[ray]"') from None
    is_ours, folder = not ray.is_initialized(), None
    is_main = threading.current_thread() is threading.main_thread()  # only this thread may set handlers
    terminate = signal.getsignal(signal.SIGTERM) if is_main else None
    try:
        if is_ours:
            folder = _connect(ray, wanted)
            if callable(terminate):
                signal.signal(signal.SIGTERM, terminate)  # Ray has replaced it
        places = wanted.places(ray)
        each = f"{wanted.threads} CPU cores" + (f" and {wanted.gpus:g} GPU" if wanted.gpus else "")
        if places == 0:
            raise ConfigError(f"{wanted.setting}: ray has no machine with room for a worker of {each}")
        if places < wanted.workers:
            log.warning("%s: ray has room for %d of %d workers of %s", *(wanted.setting, places, wanted.workers, each))
        yield Cluster(ray, wanted, folder is not None)
    finally:
        if is_ours:
            _leave(ray)
            if terminate is not None:
                signal.signal(signal.SIGTERM, terminate)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _connect(ray: Any, wanted: Wanted) -> str | None:
    """Start Ray on this machine, or connect to a cluster; returns the folder of its logs where it was started."""
    address = wanted.address
    given: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "configure_logging": False}
    if address is not None:
        _check_address(address)
    else:
        given["num_cpus"] = wanted.workers * wanted.threads
        given["num_gpus"] = None if wanted.gpus else 0  # None counts them
        given |= {"include_dashboard": False, "object_store_memory": 80 * 2**20}  # little is in it; 75 MiB is the least
        is_long = len(os.fsencode(tempfile.gettempdir())) > _LONGEST
        if os.name == "posix" and is_long and "RAY_TMPDIR" not in os.environ:
            given["_temp_dir"] = "/tmp/ray"  # Ray's own choice on most POSIX systems
    logger, level = logging.getLogger("ray"), logging.getLogger("ray").level
    environment = wanted.environment
    before = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment)
    logger.setLevel(logging.ERROR)
    waiting = threading.Timer(
        PATIENCE_SECONDS, log.warning, ["ray has not answered for %.0f s; waiting", PATIENCE_SECONDS]
    )
    waiting.daemon = True
    waiting.start()
    try:
        context = ray.init(**given)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConfigError(f"{wanted.setting}: ray cannot be used: {' '.join(str(error).split())}") from error
    finally:
        waiting.cancel()
        logger.setLevel(level)
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    return None if address else str(context.address_info["session_dir"])


def _leave(ray: Any) -> None:
    """Disconnect, and end all processes that were started: workers may outlive Ray's process by some seconds."""
    processes: list[Any] = []
    with suppress(psutil.Error):
        for child in psutil.Process().children():
            processes += child.children(recursive=True) if child.name().startswith("raylet") else []
    ray.shutdown()
    for process in psutil.wait_procs(processes, timeout=1)[1]:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=1)


def _check_address(address: str) -> None:
    """Check that a server of HTTP/2 answers at ``host:port`` or ``ray://host:port``.

    Where no cluster answers, `ray.init` tries for minutes, and then ends this whole process from within its C++ core
    (2.60, seen), whatever time-outs are set.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return  # "auto", or another form that only Ray understands
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") in ("0", "false", ""):
                connection.sendall(_PREFACE)
                with connection.makefile("rb") as answer:
                    head = answer.read(9)
                if head[3:4] != _SETTINGS or head[5:] != bytes(4):
                    raise OSError("what answers is not Ray")
    except (OSError, OverflowError) as error:
        raise ConfigError(f"ray = {address!r}: no cluster answers there: {error}") from None
