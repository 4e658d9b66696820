"""Where the work is done, in this process or by workers on Ray: chosen once, and used alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain
from typing import TypeVar

import torch

from vidup import engines
from vidup.config import Runtime, Settings
from vidup.engines.memory import memory_limit
from vidup.engines.planner import Planner
from vidup.errors import Stopped
from vidup.job import on_ray
from vidup.job.ray_cluster import Wanted
from vidup.upscaler import Upscaler

Item = TypeVar("Item")
Result = TypeVar("Result")

Report = Callable[[int], None]
"""Called with the number of units of an item that are newly done; raises `Stopped` once the job has to stop."""

Results = Generator[tuple[Item, Result], None, None]
Worker = Callable[[Iterator[Item], Report], Results[Item, Result]]
"""Takes items, reports while it works, and yields each with its result, perhaps after it has taken the next."""
Make = Callable[[Upscaler], Worker[Item, Result]]


class Here:
    """This process: one item after another, in a plain loop."""

    def __init__(self, upscaler: Upscaler) -> None:
        self.upscaler = upscaler
        """The upscaler of this process; None where each worker has its own."""
        self.expect = upscaler.expect

    @property
    def device(self) -> torch.device:
        """The kind of device that the workers use: of this machine, or that which is requested of a cluster's."""
        return engines.choose_device(self.upscaler.runtime.device)

    @property
    def planner(self) -> Planner:
        """Chooses batch and tiles before the first frame; None where only a worker's loaded model can: on a cluster,
        and where the model's memory is not known from its configuration.

        Raises:
            EngineError: the model, a part of it or the device is missing.
        """
        return self.upscaler.planner

    def run(
        self,
        make: Make[Item, Result],
        items: Iterable[Item],
        on_progress: Callable[[int], None],
        stop: Callable[[], bool],
    ) -> Results[Item, Result]:
        """Let workers process all items; yields each with its result. Closing the generator ends the work.

        Args:
            make: creates a worker; called in each worker's process, with the upscaler to use.
            items: iterated in this thread, whenever a worker is free.
            on_progress: called in this thread with the units done since the last call; negative where a lost worker's
                are redone.
            stop: polled often. Once it returns true, no item is started, those in work end at their next report, and
                `Stopped` is raised. `KeyboardInterrupt` ends workers at once.

        Raises:
            ConfigError, EngineError: there are no workers, or they are lost repeatedly.
            Stopped: `stop` returned true before the last item was done.
        """

        def report(units: int) -> None:
            if units:
                on_progress(units)
            if stop():
                raise Stopped

        def taken() -> Iterator[Item]:
            for item in items:
                report(0)
                yield item

        left = taken()
        for first in left:  # without items no worker is created
            yield from make(self.upscaler)(chain([first], left), report)


class OnRay:
    """Workers on Ray, each with an engine of its own; none is loaded in this process. Has what `Here` has."""

    upscaler = None

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self._settings, self._runtime, self._pixels = settings, runtime, 0

    @property
    def device(self) -> torch.device:
        if self._runtime.ray is None:
            return engines.choose_device(self._runtime.device)
        return torch.device("cuda" if self._gpus else "cpu")

    @cached_property
    def planner(self) -> Planner | None:
        return engines.foresee(self._settings, self._of_worker(), self._pixels) if self._runtime.ray is None else None

    def expect(self, pixels: int) -> None:
        self._pixels = pixels // self._runtime.workers  # each has an equal share
        self.__dict__.pop("planner", None)

    def run(
        self,
        make: Make[Item, Result],
        items: Iterable[Item],
        on_progress: Callable[[int], None],
        stop: Callable[[], bool],
    ) -> Results[Item, Result]:
        """As `Here.run`; `make`, items and results must pickle."""
        runtime = self._runtime
        setting = f"workers = {runtime.workers}" if runtime.ray is None else f"ray = {runtime.ray!r}"
        wanted = Wanted(setting, runtime.workers, runtime.ray, gpus=self._gpus)
        made = partial(_make, make, self._settings, self._of_worker(), self._pixels)
        return on_ray.run(made, items, wanted, on_progress, stop)

    @property
    def _gpus(self) -> float:
        """The share of a GPU that each worker requests; 0 where Ray does not assign GPUs."""
        runtime = self._runtime
        if runtime.ray is not None:  # "cuda" is requested even if this machine has none
            here = engines.devices()[0].startswith("cuda")
            return 1.0 if runtime.device == "cuda" or (runtime.device == "auto" and here) else 0.0
        is_any = runtime.device in ("auto", "cuda")
        count = sum(name.startswith("cuda") for name in engines.devices()) if is_any else 0
        return 1 / math.ceil(runtime.workers / count) if count else 0.0

    def _of_worker(self) -> Runtime:
        """The runtime of one worker; several on one machine share a device's memory."""
        share = self._gpus or 1 / self._runtime.workers
        if self._runtime.ray is not None or share == 1:
            return self._runtime
        limit = memory_limit(self._runtime, self.device)
        return replace(self._runtime, max_memory=str(int(limit * share)))


def _make(make: Make[Item, Result], settings: Settings, runtime: Runtime, pixels: int) -> Worker[Item, Result]:
    upscaler = Upscaler(settings, runtime)
    upscaler.expect(pixels)
    return make(upscaler)


Crew = Here | OnRay
"""The workers of a job."""


def choose(upscaler: Upscaler) -> Crew:
    """Workers on Ray where the runtime wants several, or a cluster; else this process with its upscaler."""
    runtime = upscaler.runtime
    return Here(upscaler) if runtime.workers == 1 and runtime.ray is None else OnRay(upscaler.settings, runtime)
