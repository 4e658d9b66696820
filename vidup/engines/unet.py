"""A fast UNet: the texts' keys and values are computed once, it is compiled where that pays, it may be offloaded."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn

from vidup.engines.compiling import Compiled


class Unet:
    """Evaluates a UNet for batches of windows, with or without guidance.

    Args:
        unet: a `UNet2DConditionModel`; changed in place.
        texts: embeddings of the negative prompt and of the prompt, (2, tokens, width).
        guidance_scale: the factor of classifier-free guidance.
        device: where it works; its weights may be elsewhere until then, see `Moved`.
        compiled: see `Compiled`.
    """

    def __init__(
        self,
        unet: Any,
        texts: torch.Tensor,
        guidance_scale: float,
        device: torch.device,
        compiled: str = "off",
    ) -> None:
        self.module, self.device = unet, device
        self._known = [texts] if fix_texts(unet, texts) else None
        self._settle(texts, guidance_scale)
        self.run = Compiled(unet, compiled, device, unet)

    def with_texts(self, texts: torch.Tensor, guidance_scale: float) -> Unet:
        """The same model with other texts and another guidance scale; this one does not change."""
        other = copy.copy(self)
        if self._known is not None and not any(torch.equal(texts, known) for known in self._known):
            with torch.inference_mode(False), torch.no_grad():
                for one in self.module.modules():
                    if isinstance(one, FixedText):
                        one.add(texts)
            self._known.append(texts)
        other._settle(texts, guidance_scale)
        return other

    def _settle(self, texts: torch.Tensor, guidance_scale: float) -> None:
        self.guidance_scale = guidance_scale
        self.texts = texts.to(self.device) if self._known is None else None
        known = self._known or []
        self._first = 2 * next((place for place, one in enumerate(known) if one is texts or torch.equal(one, texts)), 0)
        self.text = lru_cache(maxsize=8)(self._make_text)

    def __call__(
        self, batch: torch.Tensor, time: torch.Tensor, guided: bool, **conditions: torch.Tensor | None
    ) -> torch.Tensor:
        """The model's answer.

        Args:
            batch: (n, C, h, w) in the UNet's dtype.
            time: the timestep, one number on the device.
            guided: evaluate both texts, which costs twice as much as the positive one alone.
            conditions: other arguments of the UNet, (n, ...), or (2 * n, ...) if guided.

        Returns:
            float32 (n, latent channels, h, w).
        """
        text = self.text(len(batch), guided)
        if guided:
            batch = torch.cat([batch, batch])
        answer: torch.Tensor = self.run(
            batch.contiguous(memory_format=self.run.memory_format),
            time,
            encoder_hidden_states=text,
            return_dict=False,
            **conditions,
        )[0].float()
        if guided:
            negative, positive = answer.chunk(2)
            answer = negative + self.guidance_scale * (positive - negative)
        return answer

    def _make_text(self, count: int, guided: bool) -> torch.Tensor:
        """The text, or the number of the fixed text, of each of `count` windows."""
        which = torch.tensor([0, 1] if guided else [1], device=self.device).repeat_interleave(count)
        return (which + self._first).view(-1, 1, 1) if self.texts is None else self.texts[which]


class FixedText(nn.Module):
    """Keys or values of fixed texts, instead of the layer that would compute them at every evaluation.

    The layer is kept on the host for further texts.
    """

    rows: torch.Tensor

    def __init__(self, layer: nn.Module, texts: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", layer(texts), persistent=False)
        self._layer = [layer.to("cpu") if texts.is_cuda else layer]  # in a list, so that it is no submodule

    def add(self, texts: torch.Tensor) -> None:
        """Append rows for more texts, (texts, tokens, width)."""
        weight = next(self._layer[0].parameters())
        self.rows = torch.cat([self.rows, self._layer[0](texts.to(weight.device, weight.dtype)).to(self.rows)])

    def forward(self, which: torch.Tensor) -> torch.Tensor:
        """The rows, (n, tokens, width), for the number of a text for each picture."""
        return self.rows.index_select(0, which.flatten())


def fix_texts(unet: Any, texts: torch.Tensor) -> bool:
    """Replace the layers that read text by their results for these texts, (texts, tokens, width).

    Afterwards the UNet's `encoder_hidden_states` are numbers of texts, int64 (n, 1, 1).

    Returns:
        False, and nothing is replaced, where the UNet also uses text elsewhere.
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
            one.to_k, one.to_v = FixedText(one.to_k, source), FixedText(one.to_v, source)
    return True


class Moved:
    """A module whose weights are on the device only while it works, and else on the host, pinned.

    Args:
        offload: otherwise its weights stay where they are.
    """

    def __init__(self, module: nn.Module, device: torch.device, offload: bool) -> None:
        self.device = device
        self.tensors = [*module.parameters(), *module.buffers()] if offload else []
        self.host = [one.data.pin_memory() if device.type == "cuda" else one.data for one in self.tensors]

    def bring(self, kept: torch.Tensor) -> torch.Tensor:
        """A copy on the device."""
        return kept.to(self.device, non_blocking=True)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Have the weights on the device during the block."""
        self._put(map(self.bring, self.host))
        try:
            yield
        finally:
            self._put(self.host)  # nothing is copied back: weights do not change

    def _put(self, data: Iterable[torch.Tensor]) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for tensor, one in zip(self.tensors, data, strict=True):
                tensor.data = one
