"""Run a function over items, in this process or in workers on Ray. Knows no video.

A worker is a process of its own on this machine or on a cluster. It makes its function once and is then given one item
after another, whoever is free first. Nothing of it is left when `execute` ends, in whichever way.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from vidup import engines
from vidup.config import Runtime
from vidup.engines.memory import memory_limit
from vidup.errors import Stopped
from vidup.job.on_ray import ENVIRONMENT, Crew, Needs, cluster

Item = TypeVar("Item")
Result = TypeVar("Result")

Report = Callable[[int], None]
"""Is told how many more units of the item in hand are done; raises `Stopped` once the job is to stop."""

Worker = Callable[[Iterator[Item], Report], Generator[tuple[Item, Result], None, None]]
"""Takes items, reports while it works on them, and yields each with its result; it may take the next one before."""


def one_by_one(work: Callable[[Item, Report], Result]) -> Worker[Item, Result]:
    """A worker that is done with an item before it takes the next."""

    def worker(items: Iterator[Item], report: Report) -> Generator[tuple[Item, Result], None, None]:
        for item in items:
            yield item, work(item, report)

    return worker


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
    """Have all items worked on by what `make` makes.

    With one worker and no address that is a plain loop in this thread. Else Ray runs it, gives out one item at a time,
    and `make`, items and results must pickle. A lost worker (killed, its machine gone) is replaced and its item done
    again. An error of the function ends the job, and is raised here as it was there. What workers log comes out of this
    process's loggers.

    Args:
        make: is called once a worker, in its process.
        items: is asked for the next one, in this thread, when there is somebody to work on it.
        on_result: is called with each item and its result, as they end; in this thread; what it raises ends the job.
        on_progress: likewise with the units done since the last call; less than 0 where a lost worker's are done again.
        stop: is asked often. Once true, no item is begun, those in hand end at their next report, and `Stopped` is
            raised. `KeyboardInterrupt` does not wait for that: it ends workers at once.
        workers: items that are in hand at once.
        address: of a running Ray cluster, as ``ray.init`` takes it; all its machines see the same files under the same
            names. Without one Ray is started here for the time of the call, unless this process is connected already.
        threads: CPU cores of a worker, and its OMP_NUM_THREADS; where not given an equal share here, one on a cluster.
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
    left = iter(items)
    first = list(islice(left, workers))
    if not first:
        return
    asked = f"workers = {workers}" if address is None else f"ray = {address!r}"
    workers = len(first)
    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, cores // workers) if address is None else 1
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
    if address is None:  # a worker finds the modules that this process finds; a cluster has its own
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(folder).resolve()) for folder in sys.path)
    needs = Needs(asked, workers, address, threads, gpus_per_worker, environment)
    with cluster(needs) as (ray, runtime_env, started_here):
        todo = chain(first, left)
        Crew(ray, make, todo, on_result, on_progress, needs, runtime_env, started_here, retries).run(stop)


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

    def taken() -> Iterator[Item]:
        for item in items:
            report(0)
            yield item

    todo = taken()
    for first in todo:  # nothing is made where there is none
        with closing(make()(chain([first], todo), report)) as results:
            for item, result in results:
                on_result(item, result)


def is_here(runtime: Runtime) -> bool:
    """Whether the work is done in this process, which then holds the engine."""
    return runtime.workers == 1 and runtime.ray is None


def located(path: Path, runtime: Runtime) -> Path:
    """A path as all workers understand it: those of a cluster stand elsewhere."""
    return path if runtime.ray is None else path.absolute()


def shared(runtime: Runtime) -> Runtime:
    """For one of several workers on this machine: its part of a device's memory."""
    part = gpus(runtime) or 1 / runtime.workers
    if runtime.ray is not None or part == 1:
        return runtime
    limit = memory_limit(runtime, engines.choose_device(runtime.device))
    return replace(runtime, max_memory=str(int(limit * part)))


def gpus(runtime: Runtime) -> float:
    """The share of a GPU that a worker of its own process is given; 0 where it is not for Ray to hand them out."""
    if runtime.ray is not None:  # whose machines may have what this one has not
        here = engines.devices()[0].startswith("cuda")
        return 1.0 if runtime.device == "cuda" or (runtime.device == "auto" and here) else 0.0
    count = sum(name.startswith("cuda") for name in engines.devices()) if runtime.device in ("auto", "cuda") else 0
    return 1 / math.ceil(runtime.workers / count) if count and runtime.workers > 1 else 0.0
