"""The UNet at speed: texts' keys and values worked out once, compiled where that pays, weights moved if they must."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn

from vidup.errors import EngineError

log = logging.getLogger(__name__)

COMPILER: dict[str, Any] = {"mode": "reduce-overhead", "fullgraph": True, "dynamic": False}
"""What torch.compile is given: one graph for a shape, on CUDA recorded and replayed as one launch."""

_SHAPES = 64  # compiled for at most; torch gives up after 8 where it is not told


class Unet:
    """Answers for batches of windows, guided or not.

    Args:
        unet: a `UNet2DConditionModel` with a class embedding for the noise level; changed in place.
        negative, positive: embeddings of the texts, (1, tokens, width).
        guidance_scale: how far to go from the negative's answer to the positive's, and beyond.
        noise_level: of the input.
        device: where it works; the UNet may be elsewhere until then, see `Moved`.
        compiled: ``auto`` or ``on`` compiles; what fails is told and left, or with ``on`` is an error.
    """

    def __init__(
        self,
        unet: Any,
        negative: torch.Tensor,
        positive: torch.Tensor,
        guidance_scale: float,
        noise_level: int,
        device: torch.device,
        compiled: str = "off",
    ) -> None:
        self.module, self.guidance_scale, self.noise_level, self.device = unet, guidance_scale, noise_level, device
        self.compiled, self.required = compiled != "off", compiled == "on"
        # The CPU's convolutions want channels last. On CUDA, uncompiled, group norm would turn each tensor back.
        wanted = device.type == "cpu" or self.compiled
        self.memory_format = torch.channels_last if wanted else torch.contiguous_format
        unet.to(memory_format=self.memory_format)
        texts = torch.cat([negative, positive])
        self.texts = None if fix_texts(unet, texts) else texts.to(device)
        self.conditions = lru_cache(maxsize=8)(self._make_conditions)
        self._seen: set[tuple[int, ...]] = set()
        if self.compiled:
            keep_compiled_code()
            torch._dynamo.config.cache_size_limit = max(_SHAPES, torch._dynamo.config.cache_size_limit)  # type: ignore[attr-defined, unused-ignore]
        self._run = torch.compile(unet, **COMPILER) if self.compiled else unet

    def __call__(self, batch: torch.Tensor, time: torch.Tensor, guided: bool) -> torch.Tensor:
        """The model's answer.

        Args:
            batch: (n, C, h, w) in the UNet's dtype.
            time: the timestep, one number on the device.
            guided: ask with both texts, which costs twice as much as with the positive one alone.

        Returns:
            float32 (n, latent channels, h, w).
        """
        text, level = self.conditions(len(batch), guided)
        if guided:
            batch = torch.cat([batch, batch])
        answer = self._evaluate(batch.contiguous(memory_format=self.memory_format), time, text, level).float()
        if guided:
            negative, positive = answer.chunk(2)
            answer = negative + self.guidance_scale * (positive - negative)
        return answer

    def _evaluate(
        self, batch: torch.Tensor, time: torch.Tensor, text: torch.Tensor, level: torch.Tensor
    ) -> torch.Tensor:
        if not self.compiled:
            answer: torch.Tensor = self._ask(batch, time, text, level)
            return answer
        shape = tuple(batch.shape)
        mark: Any = torch.compiler.cudagraph_mark_step_begin
        mark()  # the answer before has been used up: its memory may be written
        if shape in self._seen:
            return self._ask(batch, time, text, level)
        log.info("compiling the model for batches of %s, once; later runs find it on disk", "x".join(map(str, shape)))
        try:
            answer = self._ask(batch, time, text, level)
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
            self.compiled, self._run = False, self.module
        return self._ask(batch, time, text, level)

    def _ask(self, batch: torch.Tensor, time: torch.Tensor, text: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self._run(
            batch, time, encoder_hidden_states=text, class_labels=level, return_dict=False
        )[0]
        return answer

    def _make_conditions(self, count: int, guided: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Text, or which of the fixed texts, and noise level for a batch of `count` windows."""
        which = torch.tensor([0, 1] if guided else [1], device=self.device).repeat_interleave(count)
        level = torch.full((len(which),), self.noise_level, device=self.device)
        return (which.view(-1, 1, 1) if self.texts is None else self.texts[which]), level


class FixedText(nn.Module):
    """Keys or values of the job's texts, in the place of the layer that would work them out at every evaluation."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, which: torch.Tensor) -> torch.Tensor:
        """Rows of (texts, tokens, width) by number; `which` has one number a picture."""
        rows: torch.Tensor = self.rows.index_select(0, which.flatten())  # type: ignore[operator, unused-ignore]
        return rows


def fix_texts(unet: Any, texts: torch.Tensor) -> bool:
    """Replace the layers that read text by their results for these texts; (texts, tokens, width).

    Afterwards the UNet takes numbers of texts, int64 (n, 1, 1), in place of `encoder_hidden_states`.

    Returns:
        False, and nothing is replaced, where a part of the UNet uses the text in another way.
    """
    readers = [one for one in unet.modules() if getattr(one, "is_cross_attention", False)]
    plain = all(
        type(one) is Attention
        and type(one.processor) in (AttnProcessor, AttnProcessor2_0)
        and not one.norm_cross
        and getattr(one, "add_k_proj", None) is None
        for one in readers
    )
    if not plain or unet.encoder_hid_proj is not None or unet.config.addition_embed_type is not None:
        return False
    with torch.no_grad():
        for one in readers:
            source = texts.to(one.to_k.weight.device, one.to_k.weight.dtype)
            one.to_k, one.to_v = FixedText(one.to_k(source)), FixedText(one.to_v(source))
    return True


class Moved:
    """A module whose weights stay on the host, pinned, and are on the device only while it works."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.device = device
        self.tensors = [*module.parameters(), *module.buffers()]
        self.host = [one.data.pin_memory() if device.type == "cuda" else one.data for one in self.tensors]

    def bring(self, kept: torch.Tensor) -> torch.Tensor:
        """A copy on the device."""
        return kept.to(self.device, non_blocking=True)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with torch.inference_mode(False), torch.no_grad():
            for tensor, kept in zip(self.tensors, self.host, strict=True):
                tensor.data = self.bring(kept)
        try:
            yield
        finally:
            with torch.inference_mode(False), torch.no_grad():  # nothing goes back: weights do not change
                for tensor, kept in zip(self.tensors, self.host, strict=True):
                    tensor.data = kept


def at_work(moves: Moved | None) -> AbstractContextManager[None]:
    """While a module works; None where its weights stay where they are."""
    return nullcontext() if moves is None else moves.at_work()


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


def compiled_or_not(function: Function, device: torch.device) -> Function:
    """An elementwise function of (1, C, h, w) and twice (1, C, 1, 1) as one kernel; itself where that fails."""
    fused: Function = torch.compile(function, dynamic=True)
    try:
        for height in (3, 5):
            rows = torch.zeros(1, 8, height, 7, dtype=torch.bfloat16, device=device)
            one = torch.ones(1, 8, 1, 1, device=device)
            fused(rows.contiguous(memory_format=torch.channels_last), one, one)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # as above
        log.debug("%s stays uncompiled: %s", getattr(function, "__name__", function), error)
        return function
    return fused


def keep_compiled_code() -> None:
    """Let torch keep what it compiled in the user's folder for caches: its own default is emptied on restarts."""
    if sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(caches / "vidup" / "compiled"))
