"""Find and load the parts of a x4 upscaler: a hub id, or a folder in the hub's layout. Weights are safetensors only."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import CLIPTextModel, CLIPTokenizer

from vidup.engines.detail import DetailAutoencoder
from vidup.errors import EngineError

log = logging.getLogger(__name__)

HUB_ID = "stabilityai/stable-diffusion-x4-upscaler"
"""What ``--model x4`` stands for."""

MINI = Path(__file__).resolve().parent.parent / "mini" / "checkpoint"
"""What ``--model mini`` stands for."""

# By name and from these two libraries only: a model's repository brings no code.
_AUTOENCODERS = {
    ("diffusers", "AutoencoderKL"): AutoencoderKL,
    ("vidup.engines.detail", "DetailAutoencoder"): DetailAutoencoder,
}
_HUB_SECONDS = 20.0
_WEIGHTS = ("unet", "vae", "text_encoder")
_NEEDED = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "scheduler/scheduler_config.json",
    "low_res_scheduler/scheduler_config.json",
)


@dataclass(frozen=True)
class Parts:
    """The modules of a checkpoint on their device, and the configurations that the loop needs."""

    unet: Any
    vae: Any
    positive: torch.Tensor
    """Embedding of the prompt, (1, tokens, width)."""
    negative: torch.Tensor
    """Embedding of the negative prompt, (1, tokens, width)."""
    scheduler: dict[str, Any]
    low_res_scheduler: dict[str, Any]
    max_noise_level: int


def locate(model: str, revision: str | None, half: bool) -> Path:
    """The folder of a model: fetched from the hub, or from its cache without network, where it is a hub id.

    Args:
        model: ``x4``, ``mini``, a folder or a hub id.
        half: prefer the fp16 variant.

    Raises:
        EngineError: it is not to be had, or a part of it is missing.
    """
    folder = MINI if model == "mini" else Path(model)
    if model != "x4" and folder.is_dir():
        if revision is not None:
            raise EngineError(f"revision = {revision!r}: {model} is a folder; leave the revision out")
        missing = _missing(_files(folder))
        if missing:
            raise EngineError(
                f"model = {model!r}: the folder lacks {', '.join(missing)}; it must have the hub's layout,"
                f" as {HUB_ID} has it"
            )
        return folder
    repository = HUB_ID if model == "x4" else model
    if folder.is_file() or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise EngineError(
            f"model = {model!r}: is no engine of vidup's, no folder and no hub id (owner/name);"
            " vidup list shows the engines"
        )
    return _fetch(repository, revision, half, model)


def load_parts(
    folder: Path,
    device: torch.device,
    unet_dtype: torch.dtype,
    vae_dtype: torch.dtype,
    prompt: str,
    negative_prompt: str,
) -> Parts:
    """Load a checkpoint's modules, encode the prompts, and let the text encoder go.

    Raises:
        EngineError: a part is damaged or is not one of a x4 upscaler.
    """
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()  # ours is the only bar
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        autoencoder = _AUTOENCODERS.get(tuple(index.get("vae", ())))
        if autoencoder is None:
            raise EngineError(f"model {folder}: its vae is {index.get('vae')}; expected AutoencoderKL of diffusers")
        unet = _load(UNet2DConditionModel, folder, "unet", unet_dtype, device)
        vae = _load(
            autoencoder, folder, "vae", torch.float32 if autoencoder is DetailAutoencoder else vae_dtype, device
        )
        if unet.config.in_channels != vae.config.latent_channels + 3 or unet.config.num_class_embeds is None:
            raise EngineError(
                f"model {folder}: is no x4 upscaler: its unet takes {unet.config.in_channels} channels,"
                f" expected {vae.config.latent_channels} latent and 3 of the input, and a noise level"
            )
        positive, negative = _embeddings(folder, unet, unet_dtype, device, prompt, negative_prompt)
        schedulers = [
            json.loads((folder / name / "scheduler_config.json").read_text(encoding="utf-8"))
            for name in ("scheduler", "low_res_scheduler")
        ]
    except EngineError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise EngineError(f"model {folder}: a part cannot be loaded: {_line(error)}") from error
    return Parts(unet, vae, positive, negative, schedulers[0], schedulers[1], int(index.get("max_noise_level", 350)))


def _load(kind: Any, folder: Path, part: str, dtype: torch.dtype, device: torch.device) -> Any:
    half = dtype in (torch.float16, torch.bfloat16)
    variant = _variant(_files(folder), part, half)
    options = {"subfolder": part, "variant": variant, "use_safetensors": True, "local_files_only": True}
    key = "dtype" if kind is CLIPTextModel else "torch_dtype"  # the two libraries name it differently
    module = kind.from_pretrained(str(folder), **options, **{key: dtype})
    return module.to(device).eval().requires_grad_(False)


def _embeddings(
    folder: Path, unet: Any, dtype: torch.dtype, device: torch.device, prompt: str, negative_prompt: str
) -> tuple[torch.Tensor, torch.Tensor]:
    if not any(name.endswith("attn2") for name, _ in unet.named_modules()):
        if prompt or negative_prompt:
            log.warning("this model reads no text: the prompt has no effect")
        nothing = torch.zeros(1, 1, unet.config.cross_attention_dim, dtype=dtype, device=device)
        return nothing, nothing
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), subfolder="tokenizer", local_files_only=True)
    encoder = _load(CLIPTextModel, folder, "text_encoder", dtype, device)

    def embed(text: str) -> torch.Tensor:
        whole = tokenizer(text).input_ids
        if len(whole) > tokenizer.model_max_length:
            log.warning(
                "the prompt is longer than the %d tokens that the model reads: its end is left out",
                tokenizer.model_max_length,
            )
        tokens = tokenizer(
            text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        masked = getattr(encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(device) if masked else None
        result: torch.Tensor = encoder(tokens.input_ids.to(device), attention_mask=mask)[0].to(dtype)
        return result

    with torch.inference_mode():
        return embed(prompt), embed(negative_prompt)


def _fetch(repository: str, revision: str | None, half: bool, model: str) -> Path:
    """From the cache where it is complete: a job that goes on for days must not change its weights with the hub."""
    with suppress(LocalEntryNotFoundError):
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        if not _missing(_files(folder)):
            return folder
    try:
        details = HfApi().model_info(repository, revision=revision, timeout=_HUB_SECONDS)
        files = [entry.rfilename for entry in details.siblings or ()]
        missing = _missing(files)
        if missing:
            raise EngineError(f"model = {model!r}: {repository} on the hub lacks {', '.join(missing)}")
        wanted = [*(name for name in files if _is_small(name)), *_weight_files(files, half)]
        log.info("%s: fetching from the hub, once", repository)
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except EngineError:
        raise
    except Exception as error:  # the hub's client and what is below it raise errors of many families
        raise EngineError(
            f"model = {model!r}: {repository} cannot be had from the hub ({_line(error)}). Connect this machine once,"
            " or give a folder that holds it with --model FOLDER, or take the small model that ships with vidup:"
            " --preset mini"
        ) from error


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.is_file()] + [
        path.name for path in folder.glob("*.json")
    ]


def _is_small(name: str) -> bool:
    part, _, rest = name.rpartition("/")
    return (
        name == "model_index.json"
        or part in ("tokenizer", "scheduler", "low_res_scheduler")
        or (part in _WEIGHTS and rest == "config.json")
    )


def _missing(files: Iterable[str]) -> list[str]:
    files = list(files)
    lacking = [name for name in _NEEDED if name not in files]
    return lacking + [f"{part}/*.safetensors" for part in _WEIGHTS if not any(_is_weight(name, part) for name in files)]


def _is_weight(name: str, part: str) -> bool:
    return name.startswith(f"{part}/") and name.endswith(".safetensors")


def _weight_files(files: Iterable[str], half: bool) -> list[str]:
    files = list(files)
    chosen = []
    for part in _WEIGHTS:
        mark = ".fp16." if _variant(files, part, half) == "fp16" else None
        for name in files:
            belongs = name.startswith(f"{part}/") and name.endswith((".safetensors", ".safetensors.index.json"))
            if belongs and (mark in name if mark else ".fp16." not in name):
                chosen.append(name)
    return chosen


def _variant(files: Iterable[str], part: str, half: bool) -> str | None:
    weights = [name for name in files if _is_weight(name, part)]
    has_half = any(".fp16." in name or ".fp16-" in name for name in weights)
    has_full = any(".fp16" not in name for name in weights)
    return "fp16" if has_half and (half or not has_full) else None


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
