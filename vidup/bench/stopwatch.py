"""Time the stages of upscaling a frame, count memory and FLOP, and estimate from that what a whole job takes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from vidup.engines import Engine
from vidup.engines.diffusion import Diffusion
from vidup.frame import Frame
from vidup.job import plan
from vidup.job.describe import share
from vidup.job.pace import Clock, Foreseen, encoded, enlarged, in_words, whole_frames
from vidup.job.plan import Job
from vidup.media.encoder import Encoding
from vidup.picture.geometry import Turn
from vidup.prefetch import batched
from vidup.upscaler import Upscaler


@dataclass(frozen=True)
class Measured:
    """The measurements of upscaling a frame with some settings on this machine."""

    size: tuple[int, int]
    """Width and height of the input in pixels."""
    output: tuple[int, int]
    device: str
    dtype: str
    frames: int
    """The number of timed frames, after a first clip that was not timed."""
    batch: int
    tile: int
    """Side of the tiles; 0 is the whole frame."""
    stages: dict[str, float]
    """Stage -> seconds a frame; those of the UNet are of all steps."""
    evaluations: float
    """Evaluations of the UNet for a frame, each for one window and one text; 0 for other engines."""
    seconds: float
    """Seconds a frame, all stages one after the other."""
    planned_bytes: int
    """The device's memory, as planned."""
    device_bytes: int | None
    """The peak of the device's memory; None where the device is the CPU."""
    host_bytes: int
    """The peak of this process's resident memory, with all libraries."""
    flops: int | None
    """FLOP of the model for a frame, a multiplication and an addition counting 2; None where they are not counted."""
    flops_a_second: float | None
    device_flops_a_second: float
    """The speed of large matrix products or convolutions in the engine's dtype, the better of the two."""
    encoded_bytes: float
    """Bytes of an encoded frame of the result."""

    @property
    def frames_per_second(self) -> float:
        return 1 / self.seconds

    @property
    def share(self) -> float | None:
        """The share of the device's measured FLOP/s that the model reaches."""
        return None if self.flops_a_second is None else self.flops_a_second / self.device_flops_a_second


@dataclass(frozen=True)
class Estimate:
    """The estimate for a whole job, from a few of its frames."""

    frames: int
    seconds: float
    seconds_overlapped: float
    """The same if decoding and encoding run in parallel with the engine, on cores of their own."""
    device_bytes: int
    host_bytes: int
    """Memory for frames, without that of the model and the libraries."""
    output_bytes: int
    """Rather too high, as short samples have more key frames than a film."""
    disk_bytes: int
    """Disk while the job runs: its segments and the output."""
    computed: float | None
    """The share of pixels that will be computed, the rest being carried along the motion; None where all are."""
    planning_seconds: float
    """Seconds a frame for finding the motion along which it is carried, and what has to be computed."""


WHOLE_ENGINE = "engine, anchor, size"
"""The stage of an engine whose parts are not timed separately."""


class _Timed:
    """Replaces a part of an engine, and times its calls."""

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
    """Time every stage with frames of one size; a first clip is not timed.

    Args:
        frames: with resolved colour matrix; they are repeated where they do not fill a clip.
        encoding: the encoding of the result.
        decode_seconds: seconds a frame, where they were measured.
        turn: how the frames are turned.
    """
    engine, turn = upscaler.engine, turn or Turn()
    height, width = turn.size(*frames[0].planes[0].shape)
    choice = upscaler.choose(height, width)
    clock, warm = Clock(engine.device), (list(frames) * choice.batch)[: choice.batch]

    with _watched(engine, clock):
        for _ in range(3 if upscaler.compiles else 1):  # the first call compiles, the second records a CUDA graph
            enlarged(upscaler, warm, encoding, turn, clock)
        clock.seconds.clear()
        whole = [clip for clip in batched(frames, choice.batch) if len(clip) == len(warm)] or [warm]
        results = [frame for clip in whole for frame in enlarged(upscaler, clip, encoding, turn, clock)]
    count = len(results)
    with clock.of("encode"):
        size = encoded(results, encoding)
    stages, model = _stages({stage: total / count for stage, total in clock.seconds.items()}, decode_seconds)
    device_bytes = _peak_on(upscaler)  # before counting FLOP uses the device
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
    """Seconds a frame of each stage, in order; and those of the model among them."""
    engine = seconds["engine"]
    inner: dict[str, float] = {stage: seconds[stage] for stage in ("UNet", "VAE") if stage in seconds}
    model = sum(inner.values()) or engine
    stages: dict[str, float] = {} if decode is None else {"decode": decode}
    stages |= {"to RGB": seconds["to RGB"], **inner}
    stages |= {"the engine's rest, anchor, size": engine - model} if inner else {WHOLE_ENGINE: engine}
    return stages | {"to planes": seconds["to planes"], "encode": seconds["encode"]}, model


def estimate(job: Job, upscaler: Upscaler, measured: Measured, seen: Foreseen | None) -> Estimate:
    """Estimate a job from the measurements of some of its frames, which were computed whole.

    Where pictures are carried, the model counts for the share of the pixels that will be computed; the rest of the
    engine (anchor, size), where it is timed separately, counts whole. Warping, and the overhead of small windows, are
    not counted.
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
def _watched(engine: Engine, clock: Clock) -> Iterator[None]:
    """Reset the peak of memory; time the UNet and the VAE of an engine that has them."""
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)
    if not isinstance(engine, Diffusion):
        yield
        return
    parts: Any = engine
    unet, vae = parts.unet, parts.vae
    parts.unet, parts.vae = _Timed(unet, clock, "UNet"), _Timed(vae, clock, "VAE")
    try:
        yield
    finally:
        parts.unet, parts.vae = unet, vae


def _reachable_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The FLOP/s of large matrix products or convolutions, the better of the two."""
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
    # A CUDA graph's memory is not counted as allocated between its replays.
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


def describe(found: Measured) -> list[str]:
    """Lines that describe a measurement."""
    (width, height), (wide, tall) = found.size, found.output
    shape = f"tiles of {found.tile}" if found.tile else "whole frames"
    lines = [
        f"{width}x{height} to {wide}x{tall}, {found.device}, {found.dtype}, {shape}, {found.batch} at a time,"
        f" {found.frames} frames timed"
    ]
    for stage, seconds in found.stages.items():
        more = ""
        if stage == "UNet" and found.evaluations:
            each = 1000 * seconds / found.evaluations
            more = f"  {found.evaluations:g} evaluations of a window, {each:.1f} ms each"
        lines.append(f"  {stage:32} {1000 * seconds:10.1f} ms a frame  {100 * seconds / found.seconds:5.1f} %{more}")
    if "decode" not in found.stages:
        lines.append(f"  {'decode':32} {'?':>10} ms a frame: needs --input")
    lines.append(f"frames a second    {found.frames_per_second:.3g}")
    device = "the same as the host's" if found.device_bytes is None else f"{found.device_bytes / 1e9:.2f} GB"
    lines.append(f"memory at the peak device {device} (planned {found.planned_bytes / 1e9:.2f} GB),"
                 f" host {found.host_bytes / 1e9:.2f} GB")  # fmt: skip
    if found.flops is not None and found.flops_a_second is not None and found.share is not None:
        lines.append(
            f"model              {found.flops / 1e12:.3g} TFLOP a frame, {found.flops_a_second / 1e12:.3g} TFLOP/s:"
            f" {100 * found.share:.0f} % of the {found.device_flops_a_second / 1e12:.3g} that large operations reach"
        )
    return lines


def describe_estimate(whole: Estimate, source: str, seen: Foreseen | None) -> list[str]:
    """Lines that describe an estimate."""
    return [
        f"{source}: {whole.frames} frames",
        f"  time      about {in_words(whole.seconds_overlapped)} to {in_words(whole.seconds)}: decoding and encoding"
        " in parallel with the engine, or one after the other",
        *((f"  motion    {share(seen)}; the time is for that, without the warp",) if seen else ()),
        f"  memory    about {whole.device_bytes / 1e9:.2f} GB of the device;"
        f" {whole.host_bytes / 1e9:.2f} GB of the host for frames",
        f"  output    at most about {whole.output_bytes / 1e6:.1f} MB; disk while it runs"
        f" {whole.disk_bytes / 1e6:.1f} MB",
    ]
