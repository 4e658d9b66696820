"""The facts of a device, and decisions that depend on them alone: precision, memory format, allocator."""

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
    """The facts of a device."""

    kind: str
    """``torch.device.type``: cuda, mps, cpu."""
    memory: int = 0
    """Bytes of its memory, or of the host's where it has none of its own."""
    bfloat16: bool = False
    """Whether it supports bfloat16 natively, with convolutions."""
    compiler: bool = False
    """Whether torch.compile finds what it needs: Triton and a C compiler."""
    matrix_units: bool = False
    """Whether a CPU has units for matrix products in bfloat16 (AMX), which are four times as fast as in float32."""


def card(device: torch.device) -> Card:
    """Read the facts of a device."""
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
    """The device for a name; ``auto`` is CUDA, else Apple's MPS, else the CPU.

    The settings of CUDA's allocator are made here, before CUDA is initialised; see `allocator`.

    Raises:
        EngineError: the named device does not exist.
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
    """Make a GPU the current one of this thread, for calls of torch that take no device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def devices() -> list[str]:
    """The devices of this machine; the first is that of ``auto``."""
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def precisions(name: str, facts: Card, detail: bool = False) -> tuple[torch.dtype, torch.dtype]:
    """The precisions of the UNet and of the VAE; for a VAE in float16 see `folding.fold`.

    Args:
        name: as `Settings.dtype`.
        detail: whether the model only computes detail that is added to an enlargement of the input, as `mini` does:
            for that the eight bits of bfloat16 are enough.
    """
    automatic = torch.float16 if facts.kind == "cuda" else torch.float32
    if detail and facts.matrix_units:
        automatic = torch.bfloat16
    unet: torch.dtype = automatic if name == "auto" else getattr(torch, name)
    has_it = unet != torch.bfloat16 or facts.bfloat16
    return unet, unet if has_it else torch.float32


def wider(dtype: torch.dtype, facts: Card) -> Literal["bfloat16", "float32"] | None:
    """The precision, as in `Settings.dtype`, with more range than this one; None where there is none."""
    if dtype != torch.float16:
        return None  # bfloat16 has the range of float32
    return "bfloat16" if facts.kind == "cuda" and facts.bfloat16 else "float32"


def memory_format(kind: str, norms_keep_it: bool) -> torch.memory_format:
    """The memory format for convolutions.

    Channels last is faster, but on MPS convolutions with it have silently been wrong.

    Args:
        norms_keep_it: on CUDA, torch's uncompiled group norm would convert each tensor back.
    """
    wanted = kind == "cpu" or (norms_keep_it and kind != "mps")
    return torch.channels_last if wanted else torch.contiguous_format


ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"  # torch 2.9 warns of the name, and ignores this setting under its new one


def allocator(system: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables to set before CUDA's allocator is initialised.

    With expandable segments it does not keep blocks that fit no tensor: without them it reserves up to 1.8 times the
    memory of the tensors. Windows has none, and the user's settings are kept.
    """
    given = any(name in environment for name in (ALLOCATOR, "PYTORCH_ALLOC_CONF"))
    return {} if given or not system.startswith("linux") else {ALLOCATOR: "expandable_segments:True"}
