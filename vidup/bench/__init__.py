"""`vidup bench`: measure speed and memory of this machine with some settings, or estimate a file's job."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from vidup.config import Runtime, Settings
from vidup.errors import ConfigError
from vidup.options import add_options, from_options

if TYPE_CHECKING:
    from vidup.bench.stopwatch import Estimate, Measured
    from vidup.engines.x4 import DiffusionX4
    from vidup.frame import Frame, MediaInfo
    from vidup.job.pace import Foreseen
    from vidup.job.plan import Job
    from vidup.media.encoder import Encoding
    from vidup.upscaler import Upscaler

_PLACES = 3  # of a film, from which frames are taken
_DECODED = 24  # frames at each place with which decoding is timed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command ``bench``."""
    parser.add_argument("--input", metavar="FILE", help="a video; made-up frames where not given")
    parser.add_argument("--frame-size", default="480x270", metavar="WxH", help="of made-up frames (default: 480x270)")
    parser.add_argument("--frames", type=int, default=4, metavar="INT", help="how many are timed (default: 4)")
    parser.add_argument("-p", "--preset", metavar="NAME", help="a preset, or the path of a .toml")
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="the x4 upscaler without a download: as fast, the picture is noise",
    )
    parser.add_argument(
        "--narrower", type=int, default=1, choices=(1, 2, 4, 8), help="divide the widths of --random-weights by this"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_options(parser, Settings, Runtime)


def report(arguments: argparse.Namespace) -> str:
    """Run the command; returns the text that it prints."""
    from vidup.bench.stopwatch import estimate, measure
    from vidup.engines import windows
    from vidup.job import pace, plan
    from vidup.upscaler import Upscaler

    typed = vars(arguments)
    if arguments.frames < 1:
        raise ConfigError(f"frames = {arguments.frames}: must be 1 or more")
    settings, runtime = from_options(Settings, typed, arguments.preset), from_options(Runtime, typed)
    if arguments.random_weights and settings.model != Settings.model:
        raise ConfigError(f"model = {settings.model!r}: random_weights are the x4 upscaler's; leave one of the two out")
    if runtime.workers != 1 or runtime.ray is not None:
        raise ConfigError("workers, ray: bench measures one worker, in this process; leave them out")
    seen = None
    with Upscaler(settings, runtime) as upscaler:
        if arguments.random_weights:
            upscaler.__dict__["engine"] = random_engine(settings, runtime, arguments.narrower)
        whole = None
        if arguments.input:
            job, frames, decoding = _from_file(Path(arguments.input), settings, arguments.frames)
            upscaler.expect(plan.pixels(job))
            found = measure(upscaler, frames, job.encoding, decoding, job.turn)
            seen = pace.foresee(job, fit=windows.fixed if upscaler.compiles else None)
            whole = estimate(job, upscaler, found, seen)
        else:
            upscaler.expect(2**62)  # as in a long film
            found = measure(upscaler, *made_up(arguments.frame_size, arguments.frames, upscaler))
    if arguments.json:
        table = asdict(found) | {"frames_per_second": found.frames_per_second, "share": found.share}
        return json.dumps(table | ({"estimate": asdict(whole)} if whole else {}))
    return "\n".join([*describe(found), *(describe_estimate(whole, arguments.input, seen) if whole else ())])


def random_engine(settings: Settings, runtime: Runtime, narrower: int = 1) -> DiffusionX4:
    """The x4 upscaler with random weights, which has its speed and memory.

    Args:
        narrower: the divisor of all widths.
    """
    import torch

    from vidup.engines import choose_device, x4
    from vidup.engines.card import card, precisions

    device = choose_device(runtime.device)
    dtype, vae_dtype = precisions(settings.dtype, card(device))
    home = torch.device("cpu") if runtime.offload else device
    parts = x4.random_parts(home, dtype, vae_dtype, narrower)
    if not (settings.prompt or settings.negative_prompt):
        parts = replace(parts, texts=parts.texts[1:].expand(2, -1, -1))
    if settings.vae is not None:
        parts = x4.with_tiny(parts, settings.vae, home, dtype)
    return x4.DiffusionX4(settings, runtime, device, parts)


def synthetic(width: int, height: int, count: int) -> list[Frame]:
    """Frames with moving smooth light and grain: yuv420p, BT.601, 25 a second."""
    import numpy as np

    from vidup.frame import Color, Frame
    from vidup.picture.color import BT601

    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    frames = []
    for index in range(count):
        luma = 120 + 70 * np.sin(x / 9 + index / 3) * np.cos(y / 7) + random.normal(0, 3, (height, width))
        chroma = 128 + 40 * np.sin(x[::2, ::2] / 40 + index / 9), 128 + 40 * np.cos(y[::2, ::2] / 30)
        planes = tuple(plane.clip(16, 235).astype(np.uint8) for plane in (luma, *chroma))
        frames.append(Frame(planes, "yuv420p", Color(BT601), index, 1, Fraction(1, 25)))
    return frames


def _from_file(source: Path, settings: Settings, count: int) -> tuple[Job, list[Frame], float | None]:
    """Frames from the begin, the middle and the end of a file's job, and the seconds that decoding one takes."""
    from vidup.job import plan
    from vidup.media import decoding
    from vidup.media.containers import MATROSKA

    job = plan.plan(source, source.with_suffix(MATROSKA.endings[0]), settings)
    info, places = job.info, min(_PLACES, count)
    each = -(-count // places)
    frames: list[Frame] = []
    seconds, decoded = 0.0, 0
    for place in range(places):
        first = job.low + max(0, job.high - job.low - each) * place // max(1, places - 1)
        with closing(decoding.decode(info, info.pts[first], None, settings)) as pictures:
            taken = list(islice(pictures, 1))  # not timed: all from the key frame on are decoded, too
            began = time.perf_counter()
            taken += islice(pictures, max(each - 1, _DECODED))
            seconds += time.perf_counter() - began
        decoded += len(taken) - 1
        frames += taken[:each]
    return job, frames[:count], seconds / decoded if decoded else None


def made_up(size: str, count: int, upscaler: Upscaler) -> tuple[list[Frame], Encoding]:
    """Synthetic frames of a size such as ``480x270``, and an encoding for their results."""
    from vidup.media import encoder
    from vidup.media.containers import MATROSKA
    from vidup.picture.geometry import output_size

    try:
        width, height = map(int, size.lower().split("x"))
    except ValueError:
        raise ConfigError(f"frame_size = {size!r}: expected WIDTHxHEIGHT, such as 480x270") from None
    if not 8 <= min(width, height) <= max(width, height) <= 16384:
        raise ConfigError(f"frame_size = {size!r}: must be 8x8 to 16384x16384 pixels")
    frames = synthetic(width, height, count)
    tall, wide = output_size(upscaler.settings, upscaler.engine.scale, height, width, even=True)
    return frames, encoder.choose_encoding(upscaler.settings, _info(frames, width, height), wide, tall, MATROSKA)


def _info(frames: Sequence[Frame], width: int, height: int) -> MediaInfo:
    from vidup.frame import MediaInfo

    first = frames[0]
    return MediaInfo(
        path="made up", container="", video_index=0, codec="", width=width, height=height, pix_fmt=first.pix_fmt,
        color=first.color, color_tagged=True, sample_aspect_ratio=Fraction(1), rotation=0, display_matrix=None,
        field_order="progressive", hdr=None, dynamic_hdr=(), time_base=first.time_base,
        pts=tuple(frame.pts for frame in frames), timing="packets", begin=Fraction(0), end=len(frames),
        frames=len(frames), rate=Fraction(25), variable_rate=False, streams=(), chapters=0,
    )  # fmt: skip


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
    from vidup.job.describe import share
    from vidup.job.pace import in_words

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
