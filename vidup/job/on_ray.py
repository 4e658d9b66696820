"""Workers on Ray: processes that are given items one after another. Knows no video."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from logging.handlers import QueueHandler
from queue import Empty, SimpleQueue
from typing import Any

import psutil

from vidup.errors import ConfigError, EngineError, Stopped

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2  # how often progress is fetched from the workers, and `stop` is looked at
_CONNECT_SECONDS = 5.0
_SOME_SECONDS = 30.0  # without a worker: it is told
_MOST_SECONDS = 300.0  # without a worker of our own Ray: it has failed
_LONGEST = 39  # bytes of a temporary folder's name: Ray adds up to 68, and a socket's name has 107 at the most
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = b"\x04"
"""What a client of gRPC, which Ray speaks, says first, and the type of the frame that answers it: RFC 9113, 3.4."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a worker that asks Ray for no GPU keeps those that it sees
}
_PACKAGE = __name__.partition(".")[0]


class _Member:
    """What lives in a worker's process. `work` has a thread of its own, so that the rest answers meanwhile."""

    def __init__(self, level: int) -> None:
        self._worker: Any = None
        self._progress = (-1, 0)
        self._halted = threading.Event()
        self._told: SimpleQueue[logging.LogRecord] = SimpleQueue()
        logger = logging.getLogger(_PACKAGE)
        logger.setLevel(level)
        logger.addHandler(QueueHandler(self._told))

    def work(self, number: int, item: Any, make: Callable[[], Any] | None) -> tuple[Any, int, list[Any]]:
        """An item's result, its units, and what was logged since the last look. `make` comes with the first item."""
        self._progress = (number, 0)
        try:
            if make is not None:
                self._worker = make()
            ((_, result),) = self._worker(iter([item]), self._report)
        except Exception as error:
            error.add_note(f"in a worker:\n{traceback.format_exc()}")  # what pickles; the traceback itself does not
            raise
        return result, *self.look()[1:]

    def look(self) -> tuple[int, int, list[Any]]:
        """The number of the item in hand, its units, and what was logged since the last look."""
        told: list[logging.LogRecord] = []
        with suppress(Empty):  # not by its size: `work` and the driver may look at the same moment
            while True:
                told.append(self._told.get_nowait())
        return *self._progress, told

    def halt(self) -> None:
        self._halted.set()

    def _report(self, units: int) -> None:
        number, before = self._progress
        self._progress = (number, before + units)
        if self._halted.is_set():
            raise Stopped


@dataclass
class _Hand:
    """A worker, seen from here."""

    actor: Any
    look: Any  # the answer to `_Member.look` that is awaited; None where none was asked for
    ready: bool = False  # once it has answered: before, it may have no place yet, and is given nothing to do
    task: Any = None  # the result that is awaited; None while it is free
    number: int = -1  # of the last item that it was given; -1 before the first
    units: int = 0  # of that item, as far as they were told


class Crew:
    """Workers on Ray: hands out items and gathers results until all are done."""

    def __init__(
        self,
        ray: Any,
        make: Any,
        items: Iterator[Any],
        on_result: Callable[[Any, Any], Any],
        on_progress: Callable[[int], Any],
        needs: Needs,
        runtime_env: dict[str, Any] | None,
        started_here: bool,
        retries: int,
    ) -> None:
        self._started_here = started_here
        self._ray, self._todo, self._needs, self._retries = ray, enumerate(items), needs, retries
        self._on_result, self._on_progress = on_result, on_progress
        self._make = ray.put(make)
        self._items: dict[int, Any] = {}  # those that were taken and are not done
        self._queue, self._losses = deque[int](), Counter[int]()
        self._hands: list[_Hand] = []
        self._halted = False
        self._manned = time.monotonic()  # when there was a worker last
        self._told = False  # that there is none
        self._kind = ray.remote(concurrency_groups={"control": 1})(_Member).options(
            num_cpus=needs.threads, num_gpus=needs.gpus, max_restarts=0, runtime_env=runtime_env
        )

    def run(self, stop: Callable[[], bool]) -> None:
        try:
            self._take()
            while self._queue or self._at_work():
                if not self._halted and stop():
                    self._halted = True
                    for hand in self._at_work():
                        self._ask(hand.actor.halt)
                if self._halted and not self._at_work():
                    raise Stopped
                if not self._halted:
                    self._hand_out()
                self._gather()
                if not self._halted:
                    self._take()
        finally:
            while self._hands:
                self._kill(self._hands.pop())

    def _at_work(self) -> list[_Hand]:
        return [hand for hand in self._hands if hand.task is not None]

    def _take(self) -> None:
        """Take as many items as there are workers with nothing to do, or places for more."""
        for number, item in islice(self._todo, max(0, self._needs.workers - len(self._items))):
            self._items[number] = item
            self._queue.append(number)

    def _hand_out(self) -> None:
        while len(self._hands) < min(self._needs.workers, len(self._queue) + len(self._at_work())):
            actor = self._kind.remote(logging.getLogger(_PACKAGE).getEffectiveLevel())
            self._hands.append(_Hand(actor, self._ask(actor.look)))
        for hand in self._hands:
            if self._queue and hand.ready and hand.task is None:
                make = self._make if hand.number < 0 else None
                hand.number, hand.units = self._queue.popleft(), 0
                hand.task = hand.actor.work.remote(hand.number, self._items[hand.number], make)

    def _gather(self) -> None:
        """Wait for an event, but not long; then take in all that there is, and ask those at work how far they are."""
        events = [hand.task or hand.look for hand in self._hands if hand.task is not None or not hand.ready]
        self._ray.wait(events, timeout=_POLL_SECONDS)
        asked = [each for hand in self._hands for each in (hand.task, hand.look) if each is not None]
        there = set(self._ray.wait(asked, num_returns=len(asked), timeout=0)[0])
        lost = self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError
        for hand in list(self._hands):
            try:
                if hand.look in there:
                    self._hear(hand)
                if hand.task in there:
                    self._settle(hand)
                elif hand.task is not None and hand.look is None:
                    hand.look = self._ask(hand.actor.look)
            except lost as error:
                self._lose(hand, error)
            except self._ray.exceptions.RayError as error:
                raise EngineError(f"a worker cannot be used: {' '.join(str(error).split())}") from error
        self._see_that_there_is_one()

    def _see_that_there_is_one(self) -> None:
        """A cluster may have a place later; Ray of our own has it at once, or something is wrong with it."""
        if any(hand.ready for hand in self._hands):
            self._manned, self._told = time.monotonic(), False
            return
        waited = time.monotonic() - self._manned
        if waited > _MOST_SECONDS and self._started_here:
            raise EngineError(f"ray has made no worker for {waited:.0f} s; take --workers 1, which does without it")
        if waited > _SOME_SECONDS and not self._told:
            self._told = True
            log.warning("ray has had no place for a worker for %.0f s; waiting", waited)

    def _hear(self, hand: _Hand) -> None:
        number, units, told = self._ray.get(hand.look)
        hand.look, hand.ready = None, True
        self._tell(told)
        if hand.task is not None and number == hand.number:  # else it is of an item that has ended
            self._reach(hand, units)

    def _tell(self, told: list[logging.LogRecord]) -> None:
        for record in told:
            logging.getLogger(record.name).handle(record)

    def _reach(self, hand: _Hand, units: int) -> None:
        more, hand.units = units - hand.units, units
        if more:
            self._on_progress(more)

    def _settle(self, hand: _Hand) -> None:
        try:
            result, units, told = self._ray.get(hand.task)
        except self._ray.exceptions.RayTaskError as error:
            if not (self._halted and isinstance(error.cause, Stopped)):
                raise error.cause from None
            hand.task = None
            self._queue.append(hand.number)
            return
        hand.task = None
        self._tell(told)
        self._reach(hand, units)
        self._on_result(self._items.pop(hand.number), result)

    def _lose(self, hand: _Hand, error: Exception) -> None:
        """Give the item of a worker that is gone to another."""
        self._kill(hand)  # where it was only out of reach
        self._hands.remove(hand)
        subject = "a worker"
        if hand.task is not None:
            self._queue.appendleft(hand.number)
            self._reach(hand, 0)
            subject = f"{self._items[hand.number]}: its worker"
        if self._halted:
            return
        self._losses[hand.number] = losses = self._losses[hand.number] + 1
        if losses > self._retries:
            hint = "if memory ran out, take fewer workers or a smaller batch, then give the same command again"
            raise EngineError(f"{subject} was killed or crashed, try {losses} of {losses}; {hint}") from error
        if self._needs.places(self._ray) == 0:
            raise EngineError("ray was killed or has no machine left; give the same command again") from error
        log.warning("%s was killed or crashed; another takes its place", subject)

    def _ask(self, method: Any) -> Any:
        return method.options(concurrency_group="control").remote()

    def _kill(self, hand: _Hand) -> None:
        """End a worker. One that is still being made ends by itself once nothing refers to it: Ray (2.60, seen) would
        never give back the place of one that is killed at that moment."""
        actor, hand.actor = hand.actor, None
        if hand.ready:
            with suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)


@dataclass(frozen=True)
class Needs:
    """What is wanted of Ray."""

    asked: str  # the setting that asks for it, as errors name it
    workers: int
    address: str | None
    threads: int  # of a worker
    gpus: float  # of a worker
    environment: dict[str, str]  # of a worker's process

    def places(self, ray: Any) -> int:
        """How many workers the machines that are there could hold."""
        known = (process.info for process in psutil.process_iter(["ppid", "name", "status"]))
        if {"ppid": os.getpid(), "name": "raylet", "status": psutil.STATUS_ZOMBIE} in known:
            return 0  # Ray would take another 15 s to see that its process for this machine is dead
        total = 0
        for node in ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                rooms = [has.get("CPU", 0) / self.threads] + ([has.get("GPU", 0) / self.gpus] if self.gpus else [])
                total += math.floor(min(rooms) + 1e-6)  # 1 / 0.1 and the like
        return total


@contextmanager
def cluster(needs: Needs) -> Iterator[tuple[Any, dict[str, Any] | None, bool]]:
    """The module ``ray``, connected, the runtime environment for its workers, and whether it was started here."""
    try:
        import ray
    except ImportError:
        raise ConfigError(f'{needs.asked}: needs ray: pip install "vidup[ray]"') from None
    is_ours, folder = not ray.is_initialized(), None
    is_main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    terminate = signal.getsignal(signal.SIGTERM) if is_main else None
    try:
        if is_ours:
            folder = _connect(ray, needs)
            if callable(terminate):
                signal.signal(signal.SIGTERM, terminate)  # Ray put its own there, which exits in order
        places = needs.places(ray)
        each = f"{needs.threads} CPU cores" + (f" and {needs.gpus:g} GPU" if needs.gpus else "")
        if places == 0:
            raise ConfigError(f"{needs.asked}: ray has no machine with room for a worker of {each}")
        if places < needs.workers:
            log.warning("%s: ray has room for %d of %d workers of %s", needs.asked, places, needs.workers, each)
        # What we started has its environment from this process.
        yield ray, None if folder else {"env_vars": needs.environment}, folder is not None
    finally:
        if is_ours:
            _leave(ray)
            if terminate is not None:
                signal.signal(signal.SIGTERM, terminate)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _connect(ray: Any, needs: Needs) -> str | None:
    """Start Ray on this machine, or reach a cluster. The folder that it made for its logs, where it did."""
    address = needs.address
    given: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "configure_logging": False}
    if address is not None:
        _check_address(address)
    else:
        given |= {"num_cpus": needs.workers * needs.threads, "num_gpus": None if needs.gpus else 0}  # None counts them
        given |= {"include_dashboard": False, "object_store_memory": 80 * 2**20}  # little is in it; 75 MiB is the least
        is_long = len(os.fsencode(tempfile.gettempdir())) > _LONGEST
        if os.name == "posix" and is_long and "RAY_TMPDIR" not in os.environ:
            given["_temp_dir"] = "/tmp/ray"  # where Ray puts its things by itself on a plain POSIX system
    logger, level = logging.getLogger("ray"), logging.getLogger("ray").level
    before = {key: os.environ.get(key) for key in needs.environment}
    os.environ.update(needs.environment)
    logger.setLevel(logging.ERROR)
    waiting = threading.Timer(_SOME_SECONDS, log.warning, ["ray has not answered for %.0f s; waiting", _SOME_SECONDS])
    waiting.daemon = True
    waiting.start()
    try:
        context = ray.init(**given)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:  # of which ConnectionError is one
        raise ConfigError(f"{needs.asked}: ray cannot be used: {' '.join(str(error).split())}") from error
    finally:
        waiting.cancel()
        logger.setLevel(level)
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    return None if address else str(context.address_info["session_dir"])


def _leave(ray: Any) -> None:
    """Disconnect, and end what was started: workers may outlive Ray's own process by some seconds."""
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
    """See that Ray may be at ``host:port`` or ``ray://host:port``: it would itself try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return  # "auto", or what only Ray understands
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") in ("0", "false", ""):
                connection.sendall(_PREFACE)
                head, end = b"", time.monotonic() + _CONNECT_SECONDS
                while len(head) < 9 and time.monotonic() < end and (more := connection.recv(9 - len(head))):
                    head += more
                if head[3:4] != _SETTINGS or head[5:] != bytes(4):
                    raise OSError("what answers is not Ray")
    except (OSError, OverflowError) as error:
        raise ConfigError(f"ray = {address!r}: no cluster answers there: {error}") from None
