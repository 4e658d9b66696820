"""torch.compile: where it is used, what happens where it fails, and what is kept of it."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from vidup.errors import EngineError

log = logging.getLogger(__name__)

COMPILER: dict[str, Any] = {"mode": "reduce-overhead", "fullgraph": True, "dynamic": False}
"""What torch.compile is given: one graph for a shape, on CUDA recorded and replayed as one launch."""

_SHAPES = 64  # compiled for at most; torch gives up after 8 where it is not told


class Compiled:
    """A function of a batch, compiled for each shape that it meets.

    What it answers is to be used, or copied, before the next call: CUDA graphs write it to the same memory. They also
    belong to the thread that recorded them, so that all calls must come from one.

    Args:
        function: takes the batch first; whatever else it takes is of no concern.
        wish: ``off`` leaves it as it is; with ``auto`` what fails is told and left, with ``on`` it is an error.
    """

    def __init__(self, function: Callable[..., Any], wish: str) -> None:
        self.function, self.required = function, wish == "on"
        self.active = wish != "off"
        """Whether it is compiled, or will be."""
        self._seen: set[tuple[int, ...]] = set()
        self._fast = function
        if self.active:
            keep_compiled_code()
            torch._dynamo.config.cache_size_limit = max(_SHAPES, torch._dynamo.config.cache_size_limit)  # type: ignore[attr-defined, unused-ignore]
            self._fast = torch.compile(function, **COMPILER)

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
        if shape in self._seen:
            return self._fast(batch, *arguments, **keywords)
        log.info("compiling the model for batches of %s, once; later runs find it on disk", "x".join(map(str, shape)))
        try:
            answer = self._fast(batch, *arguments, **keywords)
            self._seen.add(shape)
            return answer
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler fails in many ways
            reason = " ".join(str(error).strip().splitlines()[:2])[:200] or type(error).__name__
            if self.required:
                raise EngineError(
                    f"compile = 'on': the model cannot be compiled ({reason}); take auto or off"
                ) from error
            log.warning("the model cannot be compiled (%s): it runs as it is", reason)
            self.active = False
        return self.function(batch, *arguments, **keywords)

    def forget(self) -> None:
        """Let compiled code go, and with it the memory that CUDA graphs hold."""
        if self._seen:
            self._seen.clear()
            torch.compiler.reset()


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


def compiled_or_not(function: Function, examples: Iterable[tuple[torch.Tensor, ...]]) -> Function:
    """A small function as one kernel for tensors of any size; itself where that fails with the examples."""
    kernel: Function = torch.compile(function, dynamic=True)
    try:
        for example in examples:
            kernel(*example)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # as above
        log.debug("%s stays uncompiled: %s", getattr(function, "__name__", function), error)
        return function
    return kernel


def keep_compiled_code() -> None:
    """Let torch keep what it compiled in the user's folder for caches: its own default is emptied on restarts."""
    if sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(caches / "vidup" / "compiled"))
