"""Workers on Ray: processes that get items one after another. Nothing here is about video.

A worker is a process of its own on this machine or on a cluster. It creates its function once, and then gets an item
whenever it is free. No worker is left when `run` ends, however it ends.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from logging.handlers import QueueHandler
from queue import Empty, SimpleQueue
from typing import Any

from vidup.errors import EngineError, Stopped
from vidup.job.ray_cluster import PATIENCE_SECONDS, Cluster, Wanted, cluster

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2  # between two looks at the workers' progress and at `stop`
_MOST_SECONDS = 300.0  # without a worker, after which Ray that was started here has failed
_RETRIES = 2  # how often an item is repeated because its worker was lost
_PACKAGE = __name__.partition(".")[0]


class _Member:
    """The actor in a worker's process. `work` runs in a thread of its own, so that the other methods can be called."""

    def __init__(self, level: int) -> None:
        self._worker: Any = None
        self._progress = (-1, 0)
        self._halted = threading.Event()
        self._records: SimpleQueue[logging.LogRecord] = SimpleQueue()
        logger = logging.getLogger(_PACKAGE)
        logger.setLevel(level)
        logger.addHandler(QueueHandler(self._records))

    def work(self, number: int, item: Any, make: Callable[[], Any] | None) -> tuple[Any, int, list[Any]]:
        """Process an item; returns its result, its units, and the log since the last look. The first needs `make`."""
        self._progress = (number, 0)
        try:
            if make is not None:
                self._worker = make()
            ((_, result),) = self._worker(iter([item]), self._report)
        except Exception as error:
            error.add_note(f"in a worker:\n{traceback.format_exc()}")  # a traceback does not pickle, a note does
            raise
        return result, *self.look()[1:]

    def look(self) -> tuple[int, int, list[Any]]:
        """The number of the item in work, its units, and the log since the last look."""
        records: list[logging.LogRecord] = []
        with suppress(Empty):  # not by the queue's size: `work` may look at the same moment
            while True:
                records.append(self._records.get_nowait())
        return *self._progress, records

    def halt(self) -> None:
        self._halted.set()

    def _report(self, units: int) -> None:
        number, before = self._progress
        self._progress = (number, before + units)
        if self._halted.is_set():
            raise Stopped


@dataclass
class _Hand:
    """A worker, as the driver sees it."""

    actor: Any
    look: Any  # Ray's reference to a pending answer of `_Member.look`; None without
    ready: bool = False  # it has answered: before that it may have no machine yet, and gets no item
    task: Any = None  # Ray's reference to a pending result; None while the worker is free
    number: int = -1  # the number of its last item; -1 before the first
    units: int = 0  # the known units of that item


def run(
    make: Callable[[], Any],
    items: Iterable[Any],
    wanted: Wanted,
    on_progress: Callable[[int], Any],
    stop: Callable[[], bool],
) -> Generator[tuple[Any, Any], None, None]:
    """Let workers on Ray process all items, as in `crew.Here.run`; `make`, items and results must pickle.

    A lost worker (killed, its machine gone) is replaced, and its item repeated, at most twice. A worker's exception is
    raised here, and ends the work. Log records of workers go to this process's loggers.
    """
    left = iter(items)
    first = list(islice(left, wanted.workers))
    if first:
        with cluster(wanted.for_items(len(first))) as found:
            yield from Pool(found, make, chain(first, left), on_progress).run(stop)


class Pool:
    """Distributes items to workers and collects results, until all are done."""

    def __init__(
        self, cluster: Cluster, make: Callable[[], Any], items: Iterable[Any], on_progress: Callable[[int], Any]
    ) -> None:
        self._cluster, self._ray, self._wanted = cluster, cluster.ray, cluster.wanted
        self._todo, self._on_progress = enumerate(items), on_progress
        self._make = self._ray.put(make)
        self._items: dict[int, Any] = {}  # those that were taken from the iterator and are not done
        self._queue, self._losses = deque[int](), Counter[int]()
        self._hands: list[_Hand] = []
        self._halted = False
        self._manned = time.monotonic()  # when there was a worker last
        self._warned = False  # whether it was logged that there is none
        self._kind = self._ray.remote(concurrency_groups={"control": 1})(_Member).options(
            num_cpus=self._wanted.threads,
            num_gpus=self._wanted.gpus,
            max_restarts=0,
            runtime_env=None if cluster.is_ours else {"env_vars": self._wanted.environment},
        )

    def run(self, stop: Callable[[], bool]) -> Iterator[tuple[Any, Any]]:
        """Work until the last item is done; yields and raises as the function `run` does."""
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
                yield from self._gather()
                if not self._halted:
                    self._take()
        finally:
            while self._hands:
                self._kill(self._hands.pop())

    def _at_work(self) -> list[_Hand]:
        return [hand for hand in self._hands if hand.task is not None]

    def _take(self) -> None:
        """Take an item from the iterator for each worker that has none, or could be added."""
        for number, item in islice(self._todo, max(0, self._wanted.workers - len(self._items))):
            self._items[number] = item
            self._queue.append(number)

    def _hand_out(self) -> None:
        while len(self._hands) < min(self._wanted.workers, len(self._queue) + len(self._at_work())):
            actor = self._kind.remote(logging.getLogger(_PACKAGE).getEffectiveLevel())
            self._hands.append(_Hand(actor, self._ask(actor.look)))
        for hand in self._hands:
            if self._queue and hand.ready and hand.task is None:
                make = self._make if hand.number < 0 else None
                hand.number, hand.units = self._queue.popleft(), 0
                hand.task = hand.actor.work.remote(hand.number, self._items[hand.number], make)

    def _gather(self) -> Iterator[tuple[Any, Any]]:
        """Wait shortly for an event; then handle all answers and results, and look at the busy workers' progress."""
        events = [hand.task or hand.look for hand in self._hands if hand.task is not None or not hand.ready]
        self._ray.wait(events, timeout=_POLL_SECONDS)
        awaited = [each for hand in self._hands for each in (hand.task, hand.look) if each is not None]
        there = set(self._ray.wait(awaited, num_returns=len(awaited), timeout=0)[0])
        lost = self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError
        for hand in list(self._hands):
            try:
                if hand.look in there:
                    self._hear(hand)
                if hand.task in there:
                    yield from self._settle(hand)
                elif hand.task is not None and hand.look is None:
                    hand.look = self._ask(hand.actor.look)
            except lost as error:
                self._lose(hand, error)
            except self._ray.exceptions.RayError as error:
                raise EngineError(f"a worker cannot be used: {' '.join(str(error).split())}") from error
        self._check_workers()

    def _check_workers(self) -> None:
        """Check that there is a worker; a cluster may have room later, Ray that was started here has it at once."""
        if any(hand.ready for hand in self._hands):
            self._manned, self._warned = time.monotonic(), False
            return
        waited = time.monotonic() - self._manned
        if waited > _MOST_SECONDS and self._cluster.is_ours:
            raise EngineError(f"ray has made no worker for {waited:.0f} s; take --workers 1, which does without it")
        if waited > PATIENCE_SECONDS and not self._warned:
            self._warned = True
            log.warning("ray has had no place for a worker for %.0f s; waiting", waited)

    def _hear(self, hand: _Hand) -> None:
        number, units, records = self._ray.get(hand.look)
        hand.look, hand.ready = None, True
        is_done = hand.task is None or number != hand.number
        self._note(hand, hand.units if is_done else units, records)

    def _note(self, hand: _Hand, units: int, records: Iterable[logging.LogRecord] = ()) -> None:
        """Log what a worker has logged, and count what it has done."""
        for record in records:
            logging.getLogger(record.name).handle(record)
        more, hand.units = units - hand.units, units
        if more:
            self._on_progress(more)

    def _settle(self, hand: _Hand) -> Iterator[tuple[Any, Any]]:
        try:
            result, units, records = self._ray.get(hand.task)
        except self._ray.exceptions.RayTaskError as error:
            if not (self._halted and isinstance(error.cause, Stopped)):
                raise error.cause from None
            hand.task = None
            self._queue.append(hand.number)
            return
        hand.task = None
        self._note(hand, units, records)
        yield self._items.pop(hand.number), result

    def _lose(self, hand: _Hand, error: Exception) -> None:
        """Replace a lost worker, and repeat its item."""
        self._kill(hand)  # it may only be out of reach
        self._hands.remove(hand)
        subject = "a worker"
        if hand.task is not None:
            self._queue.appendleft(hand.number)
            self._note(hand, 0)
            subject = f"{self._items[hand.number]}: its worker"
        if self._halted:
            return
        self._losses[hand.number] = losses = self._losses[hand.number] + 1
        if losses > _RETRIES:
            hint = "if memory ran out, take fewer workers or a smaller batch, then give the same command again"
            raise EngineError(f"{subject} was killed or crashed, try {losses} of {losses}; {hint}") from error
        if self._wanted.places(self._ray) == 0:
            raise EngineError("ray was killed or has no machine left; give the same command again") from error
        log.warning("%s was killed or crashed; another takes its place", subject)

    def _ask(self, method: Any) -> Any:
        return method.options(concurrency_group="control").remote()

    def _kill(self, hand: _Hand) -> None:
        """End a worker. One that is not ready ends by itself once nothing refers to it: if it were killed then, Ray
        (2.60, seen) would never free its place.
        """
        actor, hand.actor = hand.actor, None
        if hand.ready:
            with suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)
