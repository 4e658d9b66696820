"""What a device is, and what follows from that: precisions, layouts, what is compiled, the allocator's settings.

Facts are read once, by `card`; every decision is a function of them alone.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch

from vidup.errors import EngineError


@dataclass(frozen=True)
class Card:
    """The facts of a device that decisions are made of."""

    kind: str
    """As `torch.device.type`: cuda, mps, cpu."""
    memory: int = 0
    """Bytes; of the host where the device has none of its own."""
    bfloat16: bool = False
    """It computes in bfloat16 by itself, convolutions included."""
    compiler: bool = False
    """What torch.compile makes code with is there: Triton and a C compiler."""
    system: str = sys.platform
    matrix_units: bool = False
    """A CPU that multiplies matrices of bfloat16 in units of its own (AMX), four times as fast as those of float32."""


def card(device: torch.device) -> Card:
    """The facts of a device that is there."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)  # emulated, it has no convolutions
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        has_bfloat16, memory = device.type == "cpu", psutil.virtual_memory().total
    has_compiler = importlib.util.find_spec("triton") is not None and any(
        map(shutil.which, ("cc", "gcc", "clang", "cl"))
    )
    has_units = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    return Card(device.type, memory, has_bfloat16, has_compiler, matrix_units=has_units)


def choose_device(name: str) -> torch.device:
    """``auto`` takes CUDA, else Apple's MPS, else the CPU.

    Before CUDA comes up its allocator is set here, see `allocator`.

    Raises:
        EngineError: the named device is not there.
    """
    os.environ.update(allocator(sys.platform, os.environ))
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise EngineError(f"device = {name!r}: expected auto, cuda, cuda:1, mps or cpu") from None
    found = devices()
    if name not in found and not any(one.startswith(f"{name}:") for one in found):
        raise EngineError(f"device = {name!r}: is not there; this machine has {', '.join(found)}")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the one that streams, events and questions without a device are of: torch has one for each thread."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def devices() -> list[str]:
    """The devices of this machine, the one that ``auto`` takes first."""
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def precisions(name: str, facts: Card, detail: bool = False) -> tuple[torch.dtype, torch.dtype]:
    """Of the UNet and of the VAE.

    In float16 a VAE overflows as it is: see `folding.fold`.

    Args:
        name: as `Settings.dtype`.
        detail: what is computed is added to an enlargement of the input, as with `mini`, so that the eight bits of
            bfloat16 are of a small part of the picture.
    """
    automatic = torch.float16 if facts.kind == "cuda" else torch.float32
    if detail and facts.matrix_units:
        automatic = torch.bfloat16
    unet: torch.dtype = automatic if name == "auto" else getattr(torch, name)
    has_it = unet != torch.bfloat16 or facts.bfloat16
    return unet, unet if has_it else torch.float32


def wider(dtype: torch.dtype, facts: Card) -> Literal["bfloat16", "float32"] | None:
    """The precision, in `Settings.dtype`'s words, that holds what overflows in this one; None where none does."""
    if dtype != torch.float16:
        return None  # bfloat16 has the range of float32
    return "bfloat16" if facts.kind == "cuda" and facts.bfloat16 else "float32"


def memory_format(kind: str, compiled: bool) -> torch.memory_format:
    """How pictures lie in memory for a UNet.

    The CPU's convolutions want channels last. On CUDA, uncompiled, group norm would turn each tensor back. On MPS
    convolutions over channels last have given wrong results in silence.
    """
    wanted = kind == "cpu" or (compiled and kind != "mps")
    return torch.channels_last if wanted else torch.contiguous_format


def decoder_format(kind: str) -> torch.memory_format:
    """How bands of rows lie in memory for the convolutions of a decoder: see `memory_format`."""
    return torch.contiguous_format if kind == "mps" else torch.channels_last


ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"  # torch 2.9 warns of the name, and ignores this setting under its new one


def allocator(system: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What to set in the environment before CUDA's allocator comes up.

    Segments that can grow keep it from holding blocks that fit no tensor: without them it reserves up to 1.8 times of
    what tensors take. Windows has none, and whoever has set it keeps it.
    """
    given = any(name in environment for name in (ALLOCATOR, "PYTORCH_ALLOC_CONF"))
    return {} if given or not system.startswith("linux") else {ALLOCATOR: "expandable_segments:True"}
