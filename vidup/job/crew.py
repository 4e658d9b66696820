"""Where the work is done, here or by workers on Ray: one protocol, chosen once, so that a job does not know which."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from vidup import engines
from vidup.config import Runtime, Settings
from vidup.engines import Choice
from vidup.engines.memory import memory_limit
from vidup.engines.planner import Planner
from vidup.errors import Stopped
from vidup.job import on_ray
from vidup.job.cluster import Wanted
from vidup.upscaler import Upscaler

Item = TypeVar("Item")
Result = TypeVar("Result")

Report = Callable[[int], None]
"""Called with how many more units of the item in hand are done; raises `Stopped` once the job is to stop."""

Worker = Callable[[Iterator[Item], Report], Generator[tuple[Item, Result], None, None]]
"""Takes items, reports while it works on them, and yields each with its result; it may take the next one before."""


class Crew(Protocol):
    """Who works on the segments of a job. Made by `choose`."""

    @property
    def device(self) -> torch.device:
        """The kind of device that the work is done on."""

    @property
    def planner(self) -> Planner | None:
        """What chooses batch and tiles before the first frame; None where only a worker's loaded model can.

        Raises:
            EngineError: the model, or a part of it, is not to be had, or the device is not there.
        """

    @property
    def upscaler(self) -> Upscaler | None:
        """What works in this process; None where the workers have each their own."""

    def expect(self, pixels: int) -> None:
        """Say how many pixels of input there are in all, before the first is worked on."""

    def choose(self, height: int, width: int) -> Choice | None:
        """How much is done at once for frames of this size; None where there is no planner."""

    def located(self, path: Path) -> Path:
        """A path under which every worker finds the file."""

    def run(
        self,
        make: Callable[[Upscaler], Worker[Item, Result]],
        items: Iterable[Item],
        *,
        on_result: Callable[[Item, Result], None],
        on_progress: Callable[[int], None],
        stop: Callable[[], bool],
    ) -> None:
        """Have all items worked on by what `make` makes.

        Args:
            make: is called once a worker, in its process, with the upscaler that is to be used.
            items: iterated in this thread, one step whenever a worker is free.
            on_result: is called with each item and its result, as they end, in this thread; what it raises ends all.
            on_progress: likewise, with the units done since the last call; less than 0 where a lost worker's are done
                again.
            stop: polled often. Once true, no item is begun, those in hand end at their next report, and `Stopped` is
                raised. `KeyboardInterrupt` does not wait for that: it ends workers at once.

        Raises:
            ConfigError, EngineError: no workers can be had, or they are lost again and again.
            Stopped: `stop` was true before the last item was done.
        """


def choose(upscaler: Upscaler) -> Crew:
    """Workers on Ray where the runtime wants several, or a cluster; else this process with its upscaler."""
    runtime = upscaler.runtime
    return Here(upscaler) if runtime.workers == 1 and runtime.ray is None else OnRay(upscaler.settings, runtime)


class Here:
    """This process: one item after another, in a plain loop."""

    def __init__(self, upscaler: Upscaler) -> None:
        self.upscaler = upscaler

    @property
    def device(self) -> torch.device:
        """As the engine will choose it."""
        return engines.choose_device(self.upscaler.runtime.device)

    @property
    def planner(self) -> Planner:
        """The upscaler's own; the engine is loaded for it."""
        return self.upscaler.planner

    def expect(self, pixels: int) -> None:
        """Tells the upscaler."""
        self.upscaler.expect(pixels)

    def choose(self, height: int, width: int) -> Choice:
        """The upscaler's: where memory ran out meanwhile, it is what that became."""
        return self.upscaler.choose(height, width)

    def located(self, path: Path) -> Path:
        """The path itself."""
        return path

    def run(
        self,
        make: Callable[[Upscaler], Worker[Item, Result]],
        items: Iterable[Item],
        *,
        on_result: Callable[[Item, Result], None],
        on_progress: Callable[[int], None],
        stop: Callable[[], bool],
    ) -> None:
        """As `Crew.run`."""

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
        for first in left:  # nothing is made where there is none
            with closing(make(self.upscaler)(chain([first], left), report)) as results:
                for item, result in results:
                    on_result(item, result)


class OnRay:
    """Workers on Ray, each with an engine of its own; none is loaded in this process."""

    upscaler = None

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self._settings, self._runtime, self._pixels = settings, runtime, 0

    @property
    def device(self) -> torch.device:
        """That of this machine, or what is requested of a cluster's machines."""
        if self._runtime.ray is None:
            return engines.choose_device(self._runtime.device)
        return torch.device("cuda" if self._gpus else "cpu")

    @cached_property
    def planner(self) -> Planner | None:
        """Where the workers are on this machine, and the model's memory is known from its configuration."""
        return engines.foresee(self._settings, self._of_worker(), self._pixels) if self._runtime.ray is None else None

    def expect(self, pixels: int) -> None:
        """Each worker has its part."""
        self._pixels = pixels // self._runtime.workers
        self.__dict__.pop("planner", None)

    def choose(self, height: int, width: int) -> Choice | None:
        """The planner's."""
        return None if self.planner is None else self.planner.choose(height, width)

    def located(self, path: Path) -> Path:
        """Absolute for a cluster, whose workers stand elsewhere."""
        return path if self._runtime.ray is None else path.absolute()

    def run(
        self,
        make: Callable[[Upscaler], Worker[Item, Result]],
        items: Iterable[Item],
        *,
        on_result: Callable[[Item, Result], None],
        on_progress: Callable[[int], None],
        stop: Callable[[], bool],
    ) -> None:
        """As `Crew.run`; `make`, items and results must pickle."""
        runtime = self._runtime
        setting = f"workers = {runtime.workers}" if runtime.ray is None else f"ray = {runtime.ray!r}"
        wanted = Wanted(setting, runtime.workers, runtime.ray, gpus=self._gpus)
        made = partial(_make, make, self._settings, self._of_worker(), self._pixels)
        on_ray.run(made, items, wanted, on_result=on_result, on_progress=on_progress, stop=stop)

    @property
    def _gpus(self) -> float:
        """The share of a GPU that a worker is given; 0 where it is not for Ray to hand them out."""
        runtime = self._runtime
        if runtime.ray is not None:  # whose machines may have what this one has not
            here = engines.devices()[0].startswith("cuda")
            return 1.0 if runtime.device == "cuda" or (runtime.device == "auto" and here) else 0.0
        is_any = runtime.device in ("auto", "cuda")
        count = sum(name.startswith("cuda") for name in engines.devices()) if is_any else 0
        return 1 / math.ceil(runtime.workers / count) if count else 0.0

    def _of_worker(self) -> Runtime:
        """The runtime of one worker: several on this machine have their part of a device's memory."""
        part = self._gpus or 1 / self._runtime.workers
        if self._runtime.ray is not None or part == 1:
            return self._runtime
        limit = memory_limit(self._runtime, self.device)
        return replace(self._runtime, max_memory=str(int(limit * part)))


def _make(
    make: Callable[[Upscaler], Worker[Item, Result]], settings: Settings, runtime: Runtime, pixels: int
) -> Worker[Item, Result]:
    upscaler = Upscaler(settings, runtime)
    upscaler.expect(pixels)
    return make(upscaler)
