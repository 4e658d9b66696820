"""torch.compile: where it is used, how a failure is handled, and where compiled code is cached."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vidup.engines import Place, stops
from vidup.engines.card import Card, memory_format
from vidup.engines.memory import is_out_of_memory
from vidup.errors import EngineError

log = logging.getLogger(__name__)

_SHAPES = 64  # that are compiled at most; torch's default is 8

X4_FLOPS = 69e6
"""FLOP of the x4 upscaler's UNet for each pixel and evaluation."""

WORTH = 500 * 480 * 270 * 20 * X4_FLOPS
"""FLOP of a job for which compiling pays: 20 evaluations of the x4 upscaler for 500 frames of 480x270. An estimate: it
breaks even near 200 frames on a card of 80 TFLOP/s and near 1,000 on one of 800."""


def compiler(whole: bool = True) -> dict[str, Any]:
    """The arguments of torch.compile, whose code on CUDA is recorded and replayed as one launch for each shape.

    Args:
        whole: compile for each shape, as of whole frames and their tiles. Relay's windows are compiled once for all
            shapes, because that takes minutes, and recorded for each; `windows.fixed` has few.
    """
    from torch._inductor import config  # here, because the import takes a while

    options = {"triton.cudagraphs": True}
    if hasattr(config, "deterministic"):  # torch 2.9: kernels are not chosen by measured speed, so a resumed job
        options["deterministic"] = True  # is the same to the bit
    return {"options": options, "fullgraph": True, "dynamic": not whole}


class Compiled:
    """A function of a batch, compiled for each shape of the batch.

    A result has to be used, or copied, before the next call: CUDA graphs write results to the same memory. They also
    belong to the thread that recorded them, so all calls have to be made by one thread.

    Args:
        function: its first argument is the batch.
        wish: ``off``: it is not compiled; ``auto``: it is compiled once `expect` announces enough work, and after a
            failure, with a warning, it falls back to running uncompiled; ``on``: a failure is an error.
        module: the module that the function runs; its weights are converted to `memory_format`, as batches should be.
    """

    def __init__(self, function: Callable[..., Any], wish: str, device: torch.device, module: Any = None) -> None:
        self.function, self.required, self.device, self.module = function, wish == "on", device, module
        self.weighs = wish == "auto"
        """Whether `expect` decides if it is compiled."""
        self.active = False
        """Whether it is compiled, or will be with its first call."""
        self._calls: Counter[tuple[int, ...]] = Counter()  # for whole frames by shape; for windows under ()
        self._size, self._whole = (0, 0), True
        self._fast = self._windows = function
        self._hooks: list[Any] = []
        self._lay_out()
        if wish == "on":
            self._activate()

    def expect(self, flop: float) -> bool:
        """Announce all coming work; if that pays, it will be compiled. Returns whether that has changed."""
        if not self.weighs or self.active or flop < WORTH:
            return False
        self._activate()
        return True

    def _activate(self) -> None:
        self.active = True
        keep_compiled_code()
        torch._dynamo.config.cache_size_limit = max(_SHAPES, torch._dynamo.config.cache_size_limit)  # type: ignore[attr-defined, unused-ignore]
        self._fast = torch.compile(self.function, **compiler())
        self._windows = torch.compile(self.function, **compiler(whole=False))
        self._lay_out()

    @property
    def graphs(self) -> bool:
        """Whether it runs as CUDA graphs, which keep the memory of their tensors between calls."""
        return self.active and self.device.type == "cuda"

    def __call__(self, batch: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        """Call the function.

        Raises:
            EngineError: it has to be compiled, and cannot be.
        """
        if not self.active:
            return self.function(batch, *arguments, **keywords)
        fast, shape = (self._fast, tuple(batch.shape)) if self._whole else (self._windows, ())
        mark: Any = torch.compiler.cudagraph_mark_step_begin
        mark()  # the memory of the last result may be overwritten
        if self._whole and self._calls[shape] > 1:  # the first call compiles, the second records a CUDA graph
            return fast(batch, *arguments, **keywords)
        if not self._calls[shape]:
            words = f"batches of {'x'.join(map(str, shape))}" if shape else "windows of any shape"
            log.info("compiling the model for %s, once; later runs find it on disk", words)
            if batch.is_cuda:
                torch.cuda.empty_cache()  # the allocator cannot do this while a graph is recorded
        self._calls[shape] += 1
        return self._tried(fast, batch, *arguments, **keywords)

    def _tried(self, fast: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        try:
            return fast(*arguments, **keywords)
        except Exception as error:  # compilers raise all kinds
            if is_out_of_memory(error):
                raise
            reason = _reason(error)
            if self.required:
                raise EngineError(
                    f"compile = 'on': the model cannot be compiled ({reason}); take auto or off"
                ) from error
            log.warning("the model cannot be compiled (%s): it runs uncompiled", reason)
            self.active = self.weighs = False
            self._lay_out()
        return self.function(*arguments, **keywords)

    def begin(self, clip: torch.Tensor, place: Place) -> None:
        """Prepare for a clip: if its frame has another size than the last, free that size's CUDA graphs, whose memory
        no plan counts.
        """
        size = place.height, place.width
        if self.graphs and self._size not in ((0, 0), size):
            self.release()
        self._size, self._whole = size, clip.shape[-2] >= place.height and clip.shape[-1] >= place.width

    def release(self) -> None:
        """Free compiled code, and the memory of CUDA graphs; the next call compiles again."""
        if self._calls:
            self._calls.clear()
            torch.compiler.reset()  # of all models: torch has nothing finer

    def _hook_stops(self) -> None:
        """Check whether to stop before each part of the module, unless it is compiled: a hook would break a graph."""
        while self._hooks:
            self._hooks.pop().remove()
        lists = (torch.nn.ModuleList, torch.nn.Sequential)
        if self.module is not None and not self.active:
            parts = {part for one in self.module.modules() if isinstance(one, lists) for part in one}
            self._hooks = [part.register_forward_pre_hook(lambda *_: stops.check()) for part in parts]

    def _lay_out(self) -> None:
        self._hook_stops()
        self.memory_format = memory_format(self.device.type, self.active)
        if self.module is not None:
            with torch.inference_mode(False), torch.no_grad():
                self.module.to(memory_format=self.memory_format)


def compiles(wish: str, facts: Card, offload: bool) -> str:
    """The value of `Runtime.compile` for a device: ``on``, ``auto`` (if it works and pays) or ``off``.

    Raises:
        EngineError: it is on, and weights are moved.
    """
    if wish == "on" and offload:
        raise EngineError(
            "compile = 'on' and offload: compiled code keeps the weights where they are; give one of the two"
        )
    if wish != "auto":
        return wish
    return "auto" if facts.kind == "cuda" and facts.compiler and not offload else "off"


def _reason(error: Exception) -> str:
    """The first two lines of a compiler's error; the first only names it."""
    return " ".join(str(error).strip().splitlines()[:2])[:200] or type(error).__name__


Function = Callable[..., torch.Tensor]


def compiled_or_not(function: Function) -> Function:
    """Compile a small function to one kernel for tensors of any size; falls back to the function itself."""
    kernel: Function = torch.compile(function, dynamic=True)
    failed = False

    def called(*arguments: torch.Tensor) -> torch.Tensor:
        nonlocal failed
        if not failed:
            try:
                return kernel(*arguments)
            except Exception as error:  # compilers raise all kinds
                if is_out_of_memory(error):
                    raise
                log.warning("%s stays uncompiled: %s", getattr(function, "__name__", function), _reason(error))
                failed = True
        return function(*arguments)

    return called


def keep_compiled_code() -> None:
    """Let torch cache compiled code in the user's folder for caches: its default is emptied on restarts."""
    if sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(caches / "vidup" / "compiled"))
