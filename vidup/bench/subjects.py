"""What is measured: frames of a file or synthetic ones, and the x4 upscaler with random weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from vidup.config import Runtime, Settings
from vidup.engines import choose_device, x4
from vidup.engines.card import card, precisions
from vidup.errors import ConfigError
from vidup.frame import Color, Frame, MediaInfo
from vidup.job import plan
from vidup.job.plan import Job
from vidup.media import decoding, encoder
from vidup.media.containers import MATROSKA
from vidup.media.encoder import Encoding
from vidup.picture.color import BT601
from vidup.picture.geometry import output_size
from vidup.upscaler import Upscaler

_PLACES = 3  # of a film, from which frames are taken
_DECODED = 24  # frames at each place with which decoding is timed


def random_engine(settings: Settings, runtime: Runtime, narrower: int = 1) -> x4.DiffusionX4:
    """The x4 upscaler with random weights, which has its speed and memory.

    Args:
        narrower: the divisor of all widths.
    """
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
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    frames = []
    for index in range(count):
        luma = 120 + 70 * np.sin(x / 9 + index / 3) * np.cos(y / 7) + random.normal(0, 3, (height, width))
        chroma = 128 + 40 * np.sin(x[::2, ::2] / 40 + index / 9), 128 + 40 * np.cos(y[::2, ::2] / 30)
        planes = tuple(plane.clip(16, 235).astype(np.uint8) for plane in (luma, *chroma))
        frames.append(Frame(planes, "yuv420p", Color(BT601), index, 1, Fraction(1, 25)))
    return frames


def from_file(source: Path, settings: Settings, count: int) -> tuple[Job, list[Frame], float | None]:
    """Frames from the begin, the middle and the end of a file's job, and the seconds that decoding one takes."""
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
    first = frames[0]
    return MediaInfo(
        path="made up", container="", video_index=0, codec="", width=width, height=height, pix_fmt=first.pix_fmt,
        color=first.color, color_tagged=True, sample_aspect_ratio=Fraction(1), rotation=0, display_matrix=None,
        field_order="progressive", hdr=None, dynamic_hdr=(), time_base=first.time_base,
        pts=tuple(frame.pts for frame in frames), timing="packets", begin=Fraction(0), end=len(frames),
        frames=len(frames), rate=Fraction(25), variable_rate=False, streams=(), chapters=0,
    )  # fmt: skip
