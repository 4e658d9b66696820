"""The UNet at speed: the texts' keys and values computed once, compiled where that pays, weights moved if they must."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn

from vidup.engines.compiling import Compiled


class Unet:
    """Answers for batches of windows, guided or not.

    Args:
        unet: a `UNet2DConditionModel` with a class embedding for the noise level; changed in place.
        negative, positive: embeddings of the texts, (1, tokens, width).
        guidance_scale: how far to go from the negative's answer to the positive's, and beyond.
        noise_level: of the input.
        device: where it works; the UNet may be elsewhere until then, see `Moved`.
        compiled: see `Compiled`.
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
        texts = torch.cat([negative, positive])
        self.texts = None if fix_texts(unet, texts) else texts.to(device)
        self.conditions = lru_cache(maxsize=8)(self._make_conditions)
        self.run = Compiled(unet, compiled, device, unet)

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
        answer: torch.Tensor = self.run(
            batch.contiguous(memory_format=self.run.memory_format),
            time,
            encoder_hidden_states=text,
            class_labels=level,
            return_dict=False,
        )[0].float()
        if guided:
            negative, positive = answer.chunk(2)
            answer = negative + self.guidance_scale * (positive - negative)
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
