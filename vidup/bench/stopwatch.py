"""Time the stages of a frame's way, count memory and FLOP, and say from that what a whole job takes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from vidup.job import plan
from vidup.job.carrying import Foreseen, whole_frames
from vidup.job.pace import Clock, encoded, enlarged
from vidup.picture.geometry import Turn
from vidup.prefetch import batched

if TYPE_CHECKING:
    from vidup.frame import Frame
    from vidup.job.plan import Job
    from vidup.media.encoder import Encoding
    from vidup.upscaler import Upscaler


@dataclass(frozen=True)
class Measured:
    """What a frame takes with these settings on this machine."""

    size: tuple[int, int]
    """Width and height of the input in pixels."""
    output: tuple[int, int]
    device: str
    dtype: str
    frames: int
    """How many were timed, after a first clip that was not."""
    batch: int
    tile: int
    """Side of the tiles; 0 is the whole frame."""
    stages: dict[str, float]
    """Seconds a frame; those of the UNet are of all steps."""
    evaluations: float
    """Of the UNet a frame, each for one window and one text; 0 for other engines."""
    seconds: float
    """A frame, all stages one after the other."""
    planned_bytes: int
    """Of the device, as the engine planned."""
    device_bytes: int | None
    """Of the device at the peak; None where the device is the CPU."""
    host_bytes: int
    """Resident memory of this process at its peak, with all libraries."""
    flops: int | None
    """FLOP of the model a frame, a multiplication and an addition counting 2; None where they are not counted."""
    flops_a_second: float | None
    device_flops_a_second: float
    """What large products of matrices and convolutions reach in the engine's dtype, the better of the two."""
    encoded_bytes: float
    """Of the result, a frame."""

    @property
    def frames_per_second(self) -> float:
        return 1 / self.seconds

    @property
    def share(self) -> float | None:
        """Of the device's measured FLOP/s, that the model reaches."""
        return None if self.flops_a_second is None else self.flops_a_second / self.device_flops_a_second


@dataclass(frozen=True)
class Estimate:
    """What a whole job would take, from a few of its frames."""

    frames: int
    seconds: float
    seconds_overlapped: float
    """Where decoding and encoding have cores of their own beside the engine: they run at the same time."""
    device_bytes: int
    host_bytes: int
    """Frames on their way; the model and the libraries come on top."""
    output_bytes: int
    """About; short samples hold more key frames than a film does, so rather less."""
    disk_bytes: int
    """While the job runs: its parts and what they are joined to."""
    computed: float | None
    """Share of the pixels that will be computed, the rest being carried along the motion; None where all are."""
    planning_seconds: float
    """A frame: to find the motion along which it is carried, and what of it is to be computed."""


WHOLE_ENGINE = "engine, anchor, size"
"""The stage of an engine whose parts are not timed apart."""


class _Timed:
    """Stands for a part of an engine and times its calls."""

    def __init__(self, part: Any, clock: Clock, stage: str) -> None:
        self._part, self._clock, self._stage = part, clock, stage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        with self._clock.of(self._stage):
            return self._part(*arguments, **keywords)


def measure(
    upscaler: Upscaler,
    frames: Sequence[Frame],
    encoding: Encoding,
    decode_seconds: float | None = None,
    turn: Turn | None = None,
) -> Measured:
    """Time every stage over frames of one size; the first clip warms up and is not timed.

    Args:
        frames: with their colour's matrix resolved; as many as a clip has are taken more than once.
        encoding: of the result.
        decode_seconds: a frame, where it was measured.
        turn: how the frames are turned.
    """
    engine, turn = upscaler.engine, turn or Turn()
    height, width = turn.size(*frames[0].planes[0].shape)
    choice = upscaler.choose(height, width)
    clock, warm = Clock(engine.device), (list(frames) * choice.batch)[: choice.batch]

    with _watched(engine, clock):
        for _ in range(3 if upscaler.compiles else 1):  # compiled by the first call, recorded by the second
            enlarged(upscaler, warm, encoding, turn, clock)
        clock.seconds.clear()
        whole = [clip for clip in batched(frames, choice.batch) if len(clip) == len(warm)] or [warm]
        results = [frame for clip in whole for frame in enlarged(upscaler, clip, encoding, turn, clock)]
    count = len(results)
    with clock.of("encode"):
        size = encoded(results, encoding)
    stages, model = _stages({stage: total / count for stage, total in clock.seconds.items()}, decode_seconds)
    device_bytes = _peak_on(upscaler)  # before anything else is asked of the engine
    flops, evaluations = engine.flops(height, width, choice)
    return Measured(
        size=(width, height),
        output=(encoding.width, encoding.height),
        device=_name(engine.device),
        dtype=str(engine.dtype).removeprefix("torch."),
        frames=count,
        batch=choice.batch,
        tile=choice.tile,
        stages=stages,
        evaluations=evaluations,
        seconds=sum(stages.values()),
        planned_bytes=upscaler.planner.planned(choice, height, width),
        device_bytes=device_bytes,
        host_bytes=_peak_resident(),
        flops=flops,
        flops_a_second=None if flops is None else flops / model,
        device_flops_a_second=_reachable_flops(engine.device, engine.dtype),
        encoded_bytes=size / count,
    )


def _stages(seconds: dict[str, float], decode: float | None) -> tuple[dict[str, float], float]:
    """Seconds a frame of each stage that a frame goes through, in order; and those of the model among them."""
    engine = seconds["engine"]
    inner: dict[str, float] = {stage: seconds[stage] for stage in ("UNet", "VAE") if stage in seconds}
    model = sum(inner.values()) or engine
    stages: dict[str, float] = {} if decode is None else {"decode": decode}
    stages |= {"to RGB": seconds["to RGB"], **inner}
    stages |= {"the engine's rest, anchor, size": engine - model} if inner else {WHOLE_ENGINE: engine}
    return stages | {"to planes": seconds["to planes"], "encode": seconds["encode"]}, model


def estimate(job: Job, upscaler: Upscaler, measured: Measured, seen: Foreseen | None = None) -> Estimate:
    """What a job takes, from what some of its frames took, each of them computed whole.

    Where pictures are carried, the model counts for the share of the pixels that will be computed; where model and
    rest are timed apart, the rest (anchor, size) counts whole, much as it is for what is carried. The warp itself, and
    what small windows cost beside their area, is not in it.
    """
    frames = len(job.times)
    stages, computed, planning = measured.stages, seen and seen.computed, seen.seconds if seen else 0.0
    model = sum(stages.get(stage, 0.0) for stage in ("UNet", "VAE", WHOLE_ENGINE))
    seconds = (measured.seconds - model + planning) * frames + model * whole_frames(job.settings, frames, computed)
    beside = [frames * each for each in (stages.get("decode", 0.0), planning, stages["encode"])]
    size = job.input_size
    choice = upscaler.choose(*size)
    output = round(measured.encoded_bytes * frames)
    return Estimate(
        frames=frames,
        seconds=seconds,
        seconds_overlapped=max(*beside, seconds - sum(beside)),
        device_bytes=upscaler.planner.planned(choice, *size),
        host_bytes=plan.host_memory(job),
        output_bytes=output,
        disk_bytes=2 * output + int(job.facts["size"]),
        computed=computed,
        planning_seconds=planning,
    )


@contextmanager
def _watched(engine: Any, clock: Clock) -> Iterator[None]:
    """Count memory anew, with the UNet and the decoder of an engine that has them under a clock."""
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)
    names = {"UNet": "unet", "VAE": "decoder"}
    parts = {stage: getattr(engine, name, None) for stage, name in names.items()}
    if not all(map(callable, parts.values())):
        yield
        return
    for stage, part in parts.items():
        setattr(engine, names[stage], _Timed(part, clock, stage))
    try:
        yield
    finally:
        for stage, part in parts.items():
            setattr(engine, names[stage], part)


def _reachable_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of some large products of matrices and convolutions: libraries are quicker at one of them."""
    side, channels, pixels = (8192, 512, 256) if device.type == "cuda" else (1024, 256, 64)
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    picture, kernel = (
        torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
        for shape in ((1, channels, pixels, pixels), (channels, channels, 3, 3))
    )
    works: dict[Callable[[], Any], int] = {
        lambda: one @ other: 2 * side**3,
        lambda: functional.conv2d(picture, kernel, padding=1): 2 * 9 * channels**2 * pixels**2,
    }
    clock, best = Clock(device), 0.0
    with torch.inference_mode():
        for work, flops in works.items():
            for _ in range(6):
                began = clock.now()
                work()
                best = max(best, flops / (clock.now() - began))
    return best


def _peak_on(upscaler: Upscaler) -> int | None:
    device = upscaler.engine.device
    if device.type != "cuda":
        return None
    # Between its replays a CUDA graph's memory is not "allocated", and yet taken.
    peak = torch.cuda.max_memory_reserved if upscaler.compiles else torch.cuda.max_memory_allocated
    return int(peak(device))


def _peak_resident() -> int:
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
