"""Run a function over items, in this process or in workers on Ray. Knows no video.

A worker is a process of its own on this machine or on a cluster. It makes its function once and is then given one item
after another, whoever is free first. Nothing of it is left when `execute` ends, in whichever way.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import psutil

from vidup.errors import ConfigError, EngineError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

Report = Callable[[int], None]
"""Is told how many more units of the item in hand are done; raises `Stopped` once the job is to stop."""

Worker = Callable[[Item, Report], Result]
"""Works on one item, and reports while it does."""

_POLL_SECONDS = 0.2  # how often progress is fetched from the workers, and `stop` is looked at
_CONNECT_SECONDS = 5.0
_PATIENCE_SECONDS = 30  # after which it is told that a cluster has no place

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a worker that asks Ray for no GPU keeps those that it sees
}
_PACKAGE = __name__.partition(".")[0]


class Stopped(Exception):
    """The job was told to stop before its end: from `report`, and from `execute` if items are left."""


def execute(
    make: Callable[[], Worker[Item, Result]],
    items: Iterable[Item],
    *,
    on_result: Callable[[Item, Result], Any],
    on_progress: Callable[[int], Any] = lambda units: None,
    stop: Callable[[], bool] = lambda: False,
    workers: int = 1,
    address: str | None = None,
    threads: int | None = None,
    gpus_per_worker: float = 0.0,
    retries: int = 2,
) -> None:
    """Call ``make()(item, report)`` for every item.

    With one worker and no address that is a plain loop in this process: errors and `KeyboardInterrupt` pass as they
    are. Else Ray runs it, and `make`, items and results must pickle. A worker that is lost (killed, out of memory, its
    machine gone) is replaced and its item done again. An error of the function ends the job at once, and is raised here
    as it was there. What workers log comes out of this process's loggers.

    Args:
        make: is called once a worker, in its process, before its first item.
        on_result: is called with each item and its result, in the order in which they end. As for `on_progress`: in
            the caller's thread; what it raises ends the job.
        on_progress: is called with the number of units done since the last call; less than 0 where a lost worker's
            have to be done again.
        stop: is asked often, such as ``event.is_set``. Once true, no item is begun, those in hand end at their next
            report, and `Stopped` is raised. `KeyboardInterrupt` does not wait for that: it ends workers at once.
        workers: items that are in hand at once.
        address: of a running Ray cluster, as ``ray.init`` takes it; all its machines must see the same files under the
            same names. Without one, Ray is started on this machine for the time of the call. Where the calling process
            is connected to Ray already, that is used.
        threads: CPU cores of a worker, and its OMP_NUM_THREADS, which Ray would set to the same; an equal share of
            this machine's where not given, one on a cluster. A limit by ``torch.set_num_threads`` is for `make`.
        gpus_per_worker: 1 for one each, 0.5 for two on one; Ray shows each worker only its own. 0 shows all.
        retries: how often an item is done again because its worker was lost.

    Raises:
        ConfigError: Ray is not installed, does not answer, or has no room for the workers.
        EngineError: an item's worker was lost more than `retries` times, or all machines were.
        Stopped: `stop` was true before the last item was done.
    """
    if workers == 1 and address is None:
        _execute_here(make, items, on_result, on_progress, stop)
        return
    todo = list(items)
    if not todo:
        return
    asked = f"workers = {workers}" if address is None else f"ray = {address!r}"
    workers = min(workers, len(todo))
    needs = _Needs(threads or (max(1, _cores() // workers) if address is None else 1), gpus_per_worker)
    environment = {**_ENVIRONMENT, "OMP_NUM_THREADS": str(needs.threads)}
    if address is None:  # a worker finds the modules that this process finds; a cluster has its own
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(folder).resolve()) for folder in sys.path)
    with _cluster(asked, workers, address, needs) as ray:
        _Crew(ray, make, todo, on_result, on_progress, needs, environment, retries).run(workers, stop)


def _execute_here(
    make: Callable[[], Worker[Item, Result]],
    items: Iterable[Item],
    on_result: Callable[[Item, Result], Any],
    on_progress: Callable[[int], Any],
    stop: Callable[[], bool],
) -> None:
    def report(units: int) -> None:
        if units:
            on_progress(units)
        if stop():
            raise Stopped

    worker: Worker[Item, Result] | None = None
    for item in items:
        report(0)
        worker = worker or make()
        on_result(item, worker(item, report))


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
            result = self._worker(item, self._report)
        except Exception as error:
            error.add_note(f"in a worker:\n{traceback.format_exc()}")  # what pickles; the traceback itself does not
            raise
        return result, *self.look()[1:]

    def look(self) -> tuple[int, int, list[Any]]:
        """The number of the item in hand, its units, and what was logged since the last look."""
        return *self._progress, [self._told.get() for _ in range(self._told.qsize())]

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
    look: Any
    """The answer to `_Member.look` that is awaited; None where none was asked for."""
    ready: bool = False
    """True once it has answered. Before, it may have no place yet on any machine: it is given nothing to do."""
    task: Any = None
    """The result that is awaited; None while it is free."""
    number: int = -1
    """Of the last item that it was given; -1 before the first."""
    units: int = 0
    """Of that item, as far as they were told."""


class _Crew:
    """Workers on Ray: hands out items and gathers results until all are done."""

    def __init__(
        self,
        ray: Any,
        make: Any,
        items: Sequence[Any],
        on_result: Callable[[Any, Any], Any],
        on_progress: Callable[[int], Any],
        needs: _Needs,
        environment: dict[str, str],
        retries: int,
    ) -> None:
        self._ray, self._items, self._needs, self._retries = ray, items, needs, retries
        self._on_result, self._on_progress = on_result, on_progress
        self._make = ray.put(make)
        self._queue, self._losses = deque(range(len(items))), Counter[int]()
        self._hands: list[_Hand] = []
        self._halted = False
        self._began = time.monotonic()
        self._kind = ray.remote(concurrency_groups={"control": 1})(_Member).options(
            num_cpus=needs.threads, num_gpus=needs.gpus, max_restarts=0, runtime_env={"env_vars": environment}
        )

    def run(self, workers: int, stop: Callable[[], bool]) -> None:
        try:
            while self._queue or self._at_work():
                if not self._halted and stop():
                    self._halted = True
                    for hand in self._at_work():
                        _ask(hand.actor.halt)
                if self._halted and not self._at_work():
                    raise Stopped
                if not self._halted:
                    self._hand_out(workers)
                self._gather()
        finally:
            for hand in self._hands:
                self._kill(hand)

    def _at_work(self) -> list[_Hand]:
        return [hand for hand in self._hands if hand.task is not None]

    def _hand_out(self, workers: int) -> None:
        while len(self._hands) < min(workers, len(self._queue) + len(self._at_work())):
            actor = self._kind.remote(logging.getLogger(_PACKAGE).getEffectiveLevel())
            self._hands.append(_Hand(actor, _ask(actor.look)))
        for hand in self._hands:
            if self._queue and hand.ready and hand.task is None:
                make = self._make if hand.number < 0 else None
                hand.number, hand.units = self._queue.popleft(), 0
                hand.task = hand.actor.work.remote(hand.number, self._items[hand.number], make)

    def _gather(self) -> None:
        """Wait for an event, but not long; then take in all that there is, and ask those at work how far they are."""
        events = [hand.task or hand.look for hand in self._hands if hand.task is not None or not hand.ready]
        if events:
            self._ray.wait(events, timeout=_POLL_SECONDS)
        asked = [each for hand in self._hands for each in (hand.task, hand.look) if each is not None]
        there = set(self._ray.wait(asked, num_returns=len(asked), timeout=0)[0]) if asked else set()
        lost = self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError
        for hand in list(self._hands):
            try:
                if hand.look in there:
                    self._hear(hand)
                if hand.task in there:
                    self._settle(hand)
                elif hand.task is not None and hand.look is None:
                    hand.look = _ask(hand.actor.look)
            except lost as error:
                self._lose(hand, error)
            except self._ray.exceptions.RayError as error:
                raise EngineError(f"a worker cannot be used: {_line(error)}") from error
        if not any(hand.ready for hand in self._hands) and time.monotonic() > self._began + _PATIENCE_SECONDS:
            self._began = math.inf
            log.warning("ray has had no place for a worker for %d s; waiting", _PATIENCE_SECONDS)

    def _hear(self, hand: _Hand) -> None:
        number, units, told = self._ray.get(hand.look)
        hand.look, hand.ready = None, True
        _tell(told)
        if hand.task is not None and number == hand.number:  # else it is of an item that has ended
            self._reach(hand, units)

    def _reach(self, hand: _Hand, units: int) -> None:
        more, hand.units = units - hand.units, units
        if more:
            self._on_progress(more)

    def _settle(self, hand: _Hand) -> None:
        try:
            result, units, told = self._ray.get(hand.task)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if self._halted and isinstance(cause, Stopped):
                hand.task = None
                self._queue.append(hand.number)
                return
            if not isinstance(cause, Exception):
                raise EngineError(f"a worker failed: {_line(error)}") from None
            raise cause from None
        hand.task = None
        _tell(told)
        self._reach(hand, units)
        self._on_result(self._items[hand.number], result)

    def _lose(self, hand: _Hand, error: Exception) -> None:
        """Give the item of a worker that is gone to another."""
        self._kill(hand)  # where it was only out of reach
        self._hands.remove(hand)
        log.debug("a worker was lost: %s", error)
        subject = "a worker"
        if hand.task is not None:
            self._queue.appendleft(hand.number)
            self._reach(hand, 0)
            subject = f"{self._items[hand.number]}: its worker"
        if self._halted:
            return
        self._losses[hand.number] = losses = self._losses[hand.number] + 1
        if losses > self._retries:
            raise EngineError(
                f"{subject} was killed or crashed, try {losses} of {losses}; if memory ran out, take fewer workers or"
                " a smaller batch, then give the same command again"
            ) from error
        if self._needs.places(self._ray) == 0:
            raise EngineError("ray was killed or has no machine left; give the same command again") from error
        log.warning("%s was killed or crashed; another takes its place", subject)

    def _kill(self, hand: _Hand) -> None:
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(hand.actor)


def _ask(method: Any) -> Any:
    return method.options(concurrency_group="control").remote()


def _tell(told: list[logging.LogRecord]) -> None:
    for record in told:
        logging.getLogger(record.name).handle(record)


@dataclass(frozen=True)
class _Needs:
    """What one worker takes of a machine."""

    threads: int
    gpus: float

    def __str__(self) -> str:
        return f"{self.threads} CPU cores" + (f" and {self.gpus:g} GPU" if self.gpus else "")

    def places(self, ray: Any) -> int:
        """How many workers the machines that are there could hold."""
        own = [process for process in psutil.Process().children() if process.name() == "raylet"]
        if any(process.status() == psutil.STATUS_ZOMBIE for process in own):
            return 0  # Ray would take another 15 s to see that its process for this machine is dead
        total = 0
        for node in ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                rooms = [has.get("CPU", 0) / self.threads] + ([has.get("GPU", 0) / self.gpus] if self.gpus else [])
                total += math.floor(min(rooms) + 1e-6)  # 1 / 0.1 and the like
        return total


@contextmanager
def _cluster(asked: str, workers: int, address: str | None, needs: _Needs) -> Iterator[Any]:
    """The module ``ray``, connected; `asked` is what an error names."""
    try:
        import ray
    except ImportError:
        raise ConfigError(f'{asked}: needs ray: pip install "vidup[ray]"') from None
    is_ours, folder = not ray.is_initialized(), None
    is_main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    terminate = signal.getsignal(signal.SIGTERM) if is_main else None
    try:
        if is_ours:
            folder = _connect(ray, asked, workers, address, needs)
            if callable(terminate):
                signal.signal(signal.SIGTERM, terminate)  # Ray put its own there, which exits in order
        places = needs.places(ray)
        if places == 0:
            raise ConfigError(f"{asked}: ray has no machine with room for a worker of {needs}")
        if places < workers:
            log.warning("%s: ray has room for %d of %d workers of %s each", asked, places, workers, needs)
        yield ray
    finally:
        if is_ours:
            ray.shutdown()
            if terminate is not None:
                signal.signal(signal.SIGTERM, terminate)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _connect(ray: Any, asked: str, workers: int, address: str | None, needs: _Needs) -> str | None:
    """Start Ray on this machine, or reach a cluster. The folder that it made for its logs, where it did."""
    given: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "configure_logging": False}
    if address is not None:
        _check_address(address)
    else:
        given |= {"num_cpus": workers * needs.threads, "num_gpus": None if needs.gpus else 0}  # None counts them
        given |= {"include_dashboard": False, "object_store_memory": 80 * 2**20}  # little is in it; 75 MiB is the least
    logger, level = logging.getLogger("ray"), logging.getLogger("ray").level
    environment = {key: _ENVIRONMENT[key] for key in _ENVIRONMENT.keys() - os.environ.keys()}
    os.environ.update(environment)
    logger.setLevel(logging.ERROR)
    try:
        context = ray.init(**given)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:  # of which ConnectionError is one
        raise ConfigError(f"{asked}: ray cannot be {'reached' if address else 'started'}: {_line(error)}") from error
    finally:
        logger.setLevel(level)
        for key in environment:
            os.environ.pop(key, None)
    return None if address is not None else str(context.address_info["session_dir"])


def _check_address(address: str) -> None:
    """See that something answers at ``host:port`` or ``ray://host:port``: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return  # "auto", or what only Ray understands
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"ray = {address!r}: no cluster answers there: {error}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
