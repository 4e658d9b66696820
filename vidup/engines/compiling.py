"""torch.compile: where it is used, what happens where it fails, and what is kept of it."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vidup.engines.memory import is_out_of_memory
from vidup.errors import EngineError, first_line

log = logging.getLogger(__name__)

COMPILER: dict[str, Any] = {"mode": "reduce-overhead", "fullgraph": True, "dynamic": False}
"""What torch.compile is given: one graph for a shape, on CUDA recorded and replayed as one launch."""

_SHAPES = 64  # compiled for at most; torch gives up after 8 by itself


class Compiled:
    """A function of a batch, compiled for each shape that it meets.

    What it answers is to be used, or copied, before the next call: CUDA graphs write it to the same memory. They also
    belong to the thread that recorded them, so that all calls must come from one.

    Args:
        function: takes the batch first; whatever else it takes is of no concern.
        wish: ``off`` leaves it as it is; with ``auto`` a failure is a warning and the model runs
            uncompiled, with ``on`` it is an error.
        module: what the function runs; its weights are laid out in `memory_format`, as batches should be.
    """

    def __init__(self, function: Callable[..., Any], wish: str, device: torch.device, module: Any = None) -> None:
        self.function, self.required, self.device, self.module = function, wish == "on", device, module
        self.active = wish != "off"
        """Whether it is compiled, or will be."""
        self._calls: Counter[tuple[int, ...]] = Counter()  # by shape, up to 2
        self._fast = function
        if self.active:
            keep_compiled_code()
            torch._dynamo.config.cache_size_limit = max(_SHAPES, torch._dynamo.config.cache_size_limit)  # type: ignore[attr-defined, unused-ignore]
            self._fast = torch.compile(function, **COMPILER)
        self._lay_out()

    @property
    def graphs(self) -> bool:
        """Whether it runs as CUDA graphs, which keep the memory of their tensors between calls."""
        return self.active and self.device.type == "cuda"

    def __call__(self, batch: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        """What the function answers.

        Raises:
            EngineError: it is required to be compiled, and cannot be.
        """
        if not self.active:
            return self.function(batch, *arguments, **keywords)
        mark: Any = torch.compiler.cudagraph_mark_step_begin
        mark()  # the answer before has been used up: its memory may be written
        shape = tuple(batch.shape)
        if self._calls[shape] > 1:  # compiled by the first call, recorded as a CUDA graph by the second
            return self._fast(batch, *arguments, **keywords)
        if not self._calls[shape]:
            words = "x".join(map(str, shape))
            log.info("compiling the model for batches of %s, once; later runs find it on disk", words)
            if batch.is_cuda:
                torch.cuda.empty_cache()  # which the allocator cannot do by itself while a graph is prepared
        self._calls[shape] += 1
        try:
            return self._fast(batch, *arguments, **keywords)
        except Exception as error:  # a compiler fails in many ways
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).strip().splitlines()[:2])[:200] or type(error).__name__
            if self.required:
                raise EngineError(
                    f"compile = 'on': the model cannot be compiled ({reason}); take auto or off"
                ) from error
            log.warning("the model cannot be compiled (%s): it runs as it is", reason)
            self.active = False
            self._lay_out()
        return self.function(batch, *arguments, **keywords)

    def release(self) -> None:
        """Let compiled code go, and with it the memory that CUDA graphs hold. It is compiled again when it is called.

        torch has no way to do so for one model alone.
        """
        if self._calls:
            self._calls.clear()
            torch.compiler.reset()

    def _lay_out(self) -> None:
        # The CPU's convolutions want channels last. On CUDA, uncompiled, group norm would turn each tensor back.
        wanted = self.active or self.device.type == "cpu"
        self.memory_format = torch.channels_last if wanted else torch.contiguous_format
        if self.module is not None:
            with torch.inference_mode(False), torch.no_grad():
                self.module.to(memory_format=self.memory_format)


def compiles(wish: str, device: torch.device, offload: bool) -> str:
    """What of `Runtime.compile` is done on this device: ``on``, ``auto`` (where it works) or ``off``.

    Raises:
        EngineError: it is on, and cannot be with weights that move.
    """
    if wish == "on" and offload:
        raise EngineError(
            "compile = 'on' and offload: compiled code keeps the weights where they are; give one of the two"
        )
    if wish != "auto":
        return wish
    has_compiler = importlib.util.find_spec("triton") is not None and any(
        map(shutil.which, ("cc", "gcc", "clang", "cl"))
    )
    return "auto" if device.type == "cuda" and has_compiler and not offload else "off"


Function = Callable[..., torch.Tensor]


def compiled_or_not(function: Function) -> Function:
    """A small function as one kernel for tensors of any size; itself from the first call on that cannot be compiled."""
    kernel: Function = torch.compile(function, dynamic=True)
    failed = False

    def called(*arguments: torch.Tensor) -> torch.Tensor:
        nonlocal failed
        if not failed:
            try:
                return kernel(*arguments)
            except Exception as error:  # a compiler fails in many ways
                if is_out_of_memory(error):
                    raise
                log.warning("%s stays uncompiled: %s", getattr(function, "__name__", function), first_line(error))
                failed = True
        return function(*arguments)

    return called


def keep_compiled_code() -> None:
    """Let torch keep what it compiled in the user's folder for caches: its own default is emptied on restarts."""
    if sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(caches / "vidup" / "compiled"))
