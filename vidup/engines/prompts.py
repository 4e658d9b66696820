"""From a prompt to the UNet's input: CLIP's tokens, and their embeddings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from transformers import CLIPTokenizer

from vidup.config import Settings
from vidup.engines import HOMES, architecture, libraries, single_file
from vidup.errors import EngineError

log = logging.getLogger(__name__)

_MOST_TOKENS = 1024  # transformers' default where a tokenizer states no number is 10^30

Tokens = Callable[[str], tuple[torch.Tensor, torch.Tensor]]
"""From a text to its token ids, and the mask of those that are no padding: int64, (1, length) both."""


def tokens(folder: Path) -> Tokens:
    """The tokenizer of a layout."""
    with libraries.told(f"model {folder}: its tokenizer cannot be loaded: "):
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), subfolder="tokenizer", local_files_only=True)
    if not set(tokenizer.get_vocab()) - {*tokenizer.all_special_tokens}:
        raise EngineError(f"model {folder}: its tokenizer knows no word: its vocabulary is empty")
    length = tokenizer.model_max_length
    if not 2 < length <= _MOST_TOKENS:
        raise EngineError(
            f"model {folder}: model_max_length = {length} of its tokenizer: expected {architecture.TOKENS}"
        )

    return _encoder(tokenizer, f"model {folder}: its tokenizer", length)


def single_file_tokens(folder: str | None) -> Tokens:
    """The tokenizer of a single file, in which padding is always 0; only for a text that is not empty one is loaded."""
    start, end, length = single_file.START, single_file.END, architecture.TOKENS

    def encode(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        if not text:
            ids = torch.zeros(1, length, dtype=torch.long)
            ids[0, :2] = torch.tensor([start, end])
            return ids, (ids > 0).long()
        ids, mask = _encoder(_clip_tokenizer(folder), f"tokenizer = {folder!r}:", length)(text)
        if ids[0, 0] != start or ids[0, mask.sum() - 1] != end:
            raise EngineError(f"tokenizer = {folder!r}: is not CLIP's: a text must begin with {start}, end with {end}")
        return ids * mask, mask

    return encode


def _encoder(tokenizer: Any, name: str, length: int) -> Tokens:
    """A tokenizer as a function; it warns of texts that are too long, or not known.

    Raises:
        EngineError: it knows no word of the text.
    """

    def encode(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = tokenizer(text).input_ids
        if text.strip() and not set(ids) - {*tokenizer.all_special_ids}:
            raise EngineError(f"{name} knows no word of {text!r:.60}")
        if tokenizer.unk_token_id in ids[1:-1]:
            log.warning("%s does not know all of %.60r: what it does not know is left out", name, text)
        if len(ids) > length:
            log.warning("the prompt is longer than the %d tokens that the model reads: its end is left out", length)
        found = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return found.input_ids, found.attention_mask

    return encode


def _clip_tokenizer(folder: str | None) -> Any:
    names = ("vocab.json", "merges.txt")
    words = (
        f"tokenizer = {folder!r}: cannot be loaded (",
        "). A prompt with a single file needs CLIP's tokenizer: a folder with its vocab.json and merges.txt, as"
        " --tokenizer FOLDER",
    )
    with libraries.told(*words):
        if folder is None:
            files = [hf_hub_download(HOMES["x4"], f"tokenizer/{name}", local_files_only=True) for name in names]
            home = Path(files[0]).parent
        else:
            home = Path(folder)
            # Without them transformers would create a tokenizer with no words.
            if not (home / "tokenizer.json").is_file() and not all((home / name).is_file() for name in names):
                raise FileNotFoundError(f"{folder} lacks {' or '.join(names)}")
        return CLIPTokenizer.from_pretrained(str(home), local_files_only=True)


def check_known(ids: torch.Tensor, encoder: Any) -> None:
    """Check that a text encoder has an embedding for each token.

    Raises:
        EngineError: the tokenizer is another model's.
    """
    if (largest := int(ids.max())) >= encoder.config.vocab_size:
        raise EngineError(
            f"the tokenizer gives token {largest}, and the text encoder knows {encoder.config.vocab_size}: they are not"
            " of one model"
        )


def embeddings(encode: Tokens, encoder: Any, unet: Any, device: torch.device, settings: Settings) -> torch.Tensor:
    """Embeddings of the negative prompt and of the prompt, (2, tokens, width), in the UNet's dtype."""
    masked = getattr(encoder.config, "use_attention_mask", False)

    def embed(text: str) -> torch.Tensor:
        ids, mask = encode(text)
        check_known(ids, encoder)
        result: torch.Tensor = encoder(ids.to(device), attention_mask=mask.to(device) if masked else None)[0]
        return result.to(unet.dtype)

    with torch.inference_mode():
        positive, negative = embed(settings.prompt), embed(settings.negative_prompt)
        return torch.cat([negative, positive])
