"""A device's memory: how much of it may be taken, and how much is."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vidup.config import Runtime
from vidup.engines.card import Card, allocator, card

_RESERVE = 512 * 2**20  # of a GPU's memory: CUDA's own context, and workspaces of its libraries
_SHARE = 0.9  # of a GPU's memory that may be taken where nothing is said; the host's is for others, too
_ELSEWHERE = 0.6

_WORDS = (
    *("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED", "Invalid buffer size"),
    # What CUDA's libraries say where their workspace finds no room.
    *("unable to find an engine", "CUDNN_STATUS_INTERNAL_ERROR", "CUBLAS_STATUS_NOT_INITIALIZED"),
)


def memory_limit(runtime: Runtime, device: torch.device) -> int:
    """Bytes of a device that may be taken.

    As the runtime says, else a share of what the device has, not of what is free now: a plan must not change by chance.
    """
    given = runtime.memory_limit
    return may_take(given, card(device) if given is None else Card(device.type))


def may_take(given: int | None, facts: Card) -> int:
    """The same, of what a runtime gives, if it does, and of the facts."""
    share = _SHARE if facts.kind == "cuda" else _ELSEWHERE
    return (int(facts.memory * share) if given is None else given) - (_RESERVE if facts.kind == "cuda" else 0)


def reserved(kind: str, graphs: bool, system: str = sys.platform) -> float:
    """How much of a device torch's allocator holds for each byte of tensors.

    Simulated with the sizes and lives of the x4 upscaler's tensors: pools of CUDA graphs hold 1.31 times of what is
    alive at the peak, and without segments that can grow the allocator holds 1.41 to 1.82 times.
    """
    if kind != "cuda":
        return 1.0
    return 1.35 if graphs else 1.1 if allocator(system, {}) else 1.6


_LIMITS: dict[torch.device, list[int]] = {}
"""Those that engines which are alive were given."""


def keep_to_limit(runtime: Runtime, device: torch.device) -> Callable[[], None]:
    """Hold CUDA's allocator to a limit that was given: it keeps what is freed, and would grow beyond a plan.

    Returns:
        What lifts it again, once its engine is gone: others have limits of their own, or none.
    """
    limit = runtime.memory_limit
    if device.type != "cuda" or limit is None:
        return lambda: None
    limits, total = _LIMITS.setdefault(device, []), card(device).memory

    def hold() -> None:
        torch.cuda.set_per_process_memory_fraction(min([1.0, *(one / total for one in limits)]), device)

    def lift() -> None:
        limits.remove(limit)
        hold()

    limits.append(limit)
    hold()
    return lift


KEPT = 2**30
"""Bytes at the most that the C library keeps of what is freed."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
_BY_ITSELF = 2**25  # bytes of a block that glibc comes to keep by itself, and before 2.35 the most that it can be told


def keep_freed(device: torch.device, size: int) -> None:
    """On the CPU, have glibc keep so many bytes of what is freed for what is needed next.

    By itself it gives blocks of more than 32 MB back to the system after every layer of a model, which has to clear the
    same memory for the next one: a third of the time of a convolution net on large frames.

    Args:
        size: bytes, up to `KEPT`; 0 leaves it as it is by itself.
    """
    if keeps_freed(device):
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, max(size, 2 * _BY_ITSELF))
        if not libc.mallopt(_MMAP_THRESHOLD, max(size, _BY_ITSELF)):
            libc.mallopt(_MMAP_THRESHOLD, _BY_ITSELF)


def release_freed(device: torch.device) -> None:
    """Give to the system what the process has freed of a device's memory."""
    gc.collect()  # an engine's caches hold on to it in a circle
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif keeps_freed(device):
        ctypes.CDLL(None).malloc_trim(0)


def keeps_freed(device: torch.device) -> bool:
    """Whether `keep_freed` has an effect: on the CPU, with glibc."""
    try:
        return device.type == "cpu" and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, ValueError, OSError):  # Windows has no such question, other C libraries no answer
        return False


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is that memory ran out.

    CUDA has a type for it; its libraries, MPS and the CPU's allocator say it in their messages.
    """
    while error is not None:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in _WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def weight_bytes(module: Any) -> int:
    """Bytes of a module's parameters and buffers."""
    return sum(one.numel() * one.element_size() for one in (*module.parameters(), *module.buffers()))


class LiveBytes(TorchDispatchMode):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Counts the bytes of all tensors that come to be while it is active and are alive together.

    On any device, the meta device included. What a kernel takes for itself while it runs is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.now = self.peak = 0
        self._known: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler to keep it out of here, which takes as long as torch itself."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        answer = func(*args, **(kwargs or {}))
        for one in tree_leaves(answer):
            if isinstance(one, torch.Tensor):
                storage = one.untyped_storage()
                # A view of what was there before, such as a weight, is nothing new.
                if storage._cdata not in given and storage._cdata not in self._known:
                    self._count(storage, storage._cdata, storage.nbytes())
        return answer

    def _count(self, storage: torch.UntypedStorage, key: int, size: int) -> None:
        self._known.add(key)
        weakref.finalize(storage, self._release, key, size).atexit = False
        self.now += size
        self.peak = max(self.peak, self.now)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
