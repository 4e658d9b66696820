"""From a prompt to what the UNet reads: CLIP's tokens, and their embeddings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from transformers import CLIPTokenizer

from vidup.engines import architecture, single_file
from vidup.errors import EngineError, first_line

log = logging.getLogger(__name__)

Tokens = Callable[[str], tuple[torch.Tensor, torch.Tensor]]
"""A text to its token ids and to the mask of those that are no padding: int64, (1, length) both."""


def tokens(folder: Path) -> Tokens:
    """What a layout's tokenizer makes of a text; one that is cut is told of."""
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), subfolder="tokenizer", local_files_only=True)
    length = tokenizer.model_max_length

    def encode(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        _tell_if_cut(len(tokenizer(text).input_ids), length)
        found = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return found.input_ids, found.attention_mask

    return encode


def single_file_tokens(folder: str | None) -> Tokens:
    """The same without a tokenizer's folder of its own: an empty text needs none, and padding is always 0."""
    start, end, length = single_file.START, single_file.END, architecture.TOKENS

    def encode(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = [start, end]
        if text:
            tokenizer = _clip_tokenizer(folder)
            _tell_if_cut(len(tokenizer(text).input_ids), length)
            ids = tokenizer(text, max_length=length, truncation=True).input_ids
            if ids[0] != start or ids[-1] != end:
                raise EngineError(
                    f"tokenizer = {folder!r}: is not CLIP's: a text must begin with {start}, end with {end}"
                )
        padding = [0] * (length - len(ids))
        return torch.tensor([ids + padding]), torch.tensor([[1] * len(ids) + padding])

    return encode


def _clip_tokenizer(folder: str | None) -> Any:
    names = ("vocab.json", "merges.txt")
    try:
        if folder is None:
            files = [hf_hub_download(architecture.HUB_ID, f"tokenizer/{name}", local_files_only=True) for name in names]
            home = Path(files[0]).parent
        else:
            home = Path(folder)
            # transformers would make one that knows no word.
            if not (home / "tokenizer.json").is_file() and not all((home / name).is_file() for name in names):
                raise FileNotFoundError(f"{folder} lacks {' or '.join(names)}")
        return CLIPTokenizer.from_pretrained(str(home), local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise EngineError(
            f"tokenizer = {folder!r}: cannot be loaded ({first_line(error)}). A prompt with a single file needs CLIP's"
            " tokenizer: a folder with its vocab.json and merges.txt, as --tokenizer FOLDER"
        ) from error


def _tell_if_cut(found: int, length: int) -> None:
    if found > length:
        log.warning("the prompt is longer than the %d tokens that the model reads: its end is left out", length)


def embeddings(
    encode: Tokens, encoder: Any, unet: Any, device: torch.device, prompt: str, negative_prompt: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of the prompt and of the negative prompt, (1, tokens, width) each, in the UNet's dtype."""
    masked = getattr(encoder.config, "use_attention_mask", False)

    def embed(text: str) -> torch.Tensor:
        ids, mask = encode(text)
        result: torch.Tensor = encoder(ids.to(device), attention_mask=mask.to(device) if masked else None)[0]
        return result.to(unet.dtype)

    with torch.inference_mode():
        return embed(prompt), embed(negative_prompt)
