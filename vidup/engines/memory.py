"""A device's memory: its limit, what is kept of freed memory, and counting."""

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
from vidup.engines.card import allocator, card

_RESERVE = 512 * 2**20  # bytes of a GPU for CUDA's context, and workspaces of its libraries
_SHARE = 0.9  # of a GPU's memory, that may be taken by default; other processes need the host's
_ELSEWHERE = 0.6

_WORDS = (
    *("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED", "Invalid buffer size"),
    # Of CUDA's libraries, where there is no room for their workspace.
    *("unable to find an engine", "CUDNN_STATUS_INTERNAL_ERROR", "CUBLAS_STATUS_NOT_INITIALIZED"),
)


def memory_limit(runtime: Runtime, device: torch.device) -> int:
    """The bytes of a device that may be taken: the runtime's limit, else a share of the device's memory.

    It is not a share of the free memory: batch and tiles must not depend on chance.
    """
    on_cuda, taken = device.type == "cuda", runtime.memory_limit
    if taken is None:
        taken = int(card(device).memory * (_SHARE if on_cuda else _ELSEWHERE))
    return taken - (_RESERVE if on_cuda else 0)


def reserved(kind: str, graphs: bool, system: str = sys.platform) -> float:
    """The bytes that torch's allocator reserves for each byte of tensors.

    From a simulation with the sizes and lifetimes of the x4 upscaler's tensors: pools of CUDA graphs reserve 1.31 times
    the peak of live tensors; without expandable segments the allocator reserves 1.41 to 1.82 times.
    """
    if kind != "cuda":
        return 1.0
    return 1.35 if graphs else 1.1 if allocator(system, {}) else 1.6


_LIMITS: dict[torch.device, list[int]] = {}
"""The limits of the engines that exist."""


def keep_to_limit(runtime: Runtime, device: torch.device) -> Callable[[], None]:
    """Set a runtime's limit for CUDA's allocator, which keeps freed memory and would exceed it.

    Returns:
        A function that removes the limit, to be called when the engine no longer exists.
    """
    limit = runtime.memory_limit
    if device.type != "cuda" or limit is None:
        return lambda: None
    limits, total = _LIMITS.setdefault(device, []), card(device).memory

    def apply() -> None:
        torch.cuda.set_per_process_memory_fraction(min([1.0, *(one / total for one in limits)]), device)

    def lift() -> None:
        limits.remove(limit)
        apply()

    limits.append(limit)
    apply()
    return lift


KEPT = 2**30
"""The most bytes of freed memory that the C library keeps."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
_BY_ITSELF = 2**25  # bytes of a block that glibc keeps by default, and before 2.35 the most that can be set


def keep_freed(device: torch.device, size: int) -> None:
    """On the CPU, let glibc keep so many bytes of freed memory for the next allocations.

    By default it returns blocks of more than 32 MB to the system after every layer of a model, which then has to clear
    the same memory for the next one: a third of the time of a convolution net on large frames.

    Args:
        size: bytes, up to `KEPT`; 0 is the default.
    """
    if keeps_freed(device):
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, max(size, 2 * _BY_ITSELF))
        if not libc.mallopt(_MMAP_THRESHOLD, max(size, _BY_ITSELF)):
            libc.mallopt(_MMAP_THRESHOLD, _BY_ITSELF)


def release_freed(device: torch.device) -> None:
    """Return freed memory of a device to the system."""
    gc.collect()  # an engine's caches are in reference cycles with it
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif keeps_freed(device):
        ctypes.CDLL(None).malloc_trim(0)


def keeps_freed(device: torch.device) -> bool:
    """Whether `keep_freed` has an effect: on the CPU, with glibc."""
    try:
        return device.type == "cpu" and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, ValueError, OSError):  # Windows; other C libraries
        return False


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, means out of memory.

    CUDA has a type for it; for its libraries, MPS and the CPU's allocator the message decides.
    """
    while error is not None:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in _WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def weight_bytes(module: Any) -> int:
    """The bytes of a module's parameters and buffers."""
    return sum(one.numel() * one.element_size() for one in (*module.parameters(), *module.buffers()))


class LiveBytes(TorchDispatchMode):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Counts the bytes of all live tensors that were created while it is active, on any device, also meta; not what
    kernels allocate for themselves.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.now = self.peak = 0
        self._known: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False, as torch would import its compiler to skip this, which takes as long as importing torch."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        answer = func(*args, **(kwargs or {}))
        for one in tree_leaves(answer):
            if isinstance(one, torch.Tensor):
                storage = one.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in given and key not in self._known:  # a view of an older tensor is not new
                    self._known.add(key)
                    weakref.finalize(storage, self._release, key, size).atexit = False
                    self.now += size
                    self.peak = max(self.peak, self.now)
        return answer

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
