"""Find and load the weights of a diffusion model (hub id, folder, file), part by part; safetensors only."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import CLIPTextModel

from vidup.engines import HOMES, WEIGHTS, architecture, claims, prompts, single_file, solver
from vidup.engines.detail import DetailAutoencoder
from vidup.engines.folding import fold
from vidup.engines.identity import fingerprint as fingerprint
from vidup.engines.layout import KINDS, LAYOUTS, files_of, variant, weight_files
from vidup.errors import EngineError, first_line

log = logging.getLogger(__name__)

MINI = Path(__file__).resolve().parent.parent / "mini" / "checkpoint"
"""The folder of ``--model mini``."""

SHIPPED = {"mini": MINI}
"""Name of a model -> folder."""

# Only these classes, by name: code of a model's repository is never run.
_AUTOENCODERS = {
    ("diffusers", "AutoencoderKL"): AutoencoderKL,
    ("vidup.engines.detail", "DetailAutoencoder"): DetailAutoencoder,
}
_HUB_SECONDS = 20.0
_ID = r"[\w.-]+/[\w.-]+"


@dataclass(frozen=True)
class Parts:
    """The modules of a checkpoint on their device, and the configurations for sampling."""

    unet: Any
    vae: Any
    """None where it is not supported: a tiny autoencoder replaces it."""
    positive: torch.Tensor
    """Embedding of the prompt, (1, tokens, width)."""
    negative: torch.Tensor
    """Embedding of the negative prompt, (1, tokens, width)."""
    scheduler: dict[str, Any]
    low_res_scheduler: dict[str, Any] | None
    """None for a distilled model: its input gets no noise, and it has a few fixed timesteps and no guidance."""
    noise_level: int
    """The default for clean input."""
    max_noise_level: int | None
    identity: str
    """Fingerprint of the weights and configurations."""


def pipeline(model: str, revision: str | None) -> str:
    """The name of the pipeline in a folder with the hub's layout, or of a hub id.

    Raises:
        EngineError: it is neither, has no such name, or the hub does not answer.
    """
    path = Path(model)
    if path.is_file():
        raise EngineError(f"model = {model!r}: is a file of another kind than {', '.join(WEIGHTS)}")
    if path.exists():
        index = path / "model_index.json"
        if not index.is_file():
            raise EngineError(f"model = {model!r}: the folder lacks model_index.json; it must have the hub's layout")
    else:
        _check_id(model, model)
        with _answering(model, model):
            index = _cached_or_fetched(model, revision)
    with load_errors(path):
        return str(claims.read_table(index).get("_class_name"))


def kind_of(model: str, revision: str | None) -> str:
    """The name in `layout.LAYOUTS` of the layout of a model of the x4 family.

    Raises:
        EngineError: as `pipeline`.
    """
    if model in HOMES or model in SHIPPED or Path(model).is_file():
        return "x4"
    return KINDS.get(pipeline(model, revision), "x4")


def _check_id(model: str, repository: str) -> None:
    if not re.fullmatch(_ID, repository):
        raise EngineError(
            f"model = {model!r}: is no engine of vidup's, no file or folder and no hub id (owner/name);"
            " vidup list shows the engines"
        )


@contextmanager
def _answering(model: str, repository: str) -> Iterator[None]:
    """Turn errors of the hub's client into an EngineError that says what to do."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # of all kinds
        raise EngineError(
            f"model = {model!r}: {repository} cannot be had from the hub ({first_line(error)}). Connect this machine"
            " once, or give a folder that holds it with --model FOLDER, or take the small model that ships with vidup:"
            " --preset mini"
        ) from error


def _cached_or_fetched(repository: str, revision: str | None) -> Path:
    with suppress(LocalEntryNotFoundError):
        return Path(hf_hub_download(repository, "model_index.json", revision=revision, local_files_only=True))
    files_on_hub(repository, revision)
    return Path(hf_hub_download(repository, "model_index.json", revision=revision, etag_timeout=_HUB_SECONDS))


def files_on_hub(repository: str, revision: str | None) -> list[str]:
    """The names of a repository's files on the hub. Without network it fails soon, where a download tries for long."""
    details = HfApi().model_info(repository, revision=revision, timeout=_HUB_SECONDS)
    return [entry.rfilename for entry in details.siblings or ()]


def locate(model: str, revision: str | None, half: bool, kind: str = "x4") -> Path:
    """Find a model; one on the hub is downloaded unless it is in the hub's cache.

    Args:
        model: ``x4``, ``x2``, ``mini``, a folder, a hub id, or a file with the x4 upscaler.
        half: prefer the fp16 variant.
        kind: the required layout.

    Returns:
        A folder with the hub's layout, or the file.

    Raises:
        EngineError: it, or a part of it, is missing.
    """
    path = SHIPPED.get(model, Path(model))
    if model not in HOMES and path.exists():
        if revision is not None:
            raise EngineError(f"revision = {revision!r}: {model} is on this machine; leave the revision out")
        if path.is_file() and path.suffix.lower() != ".safetensors":
            raise EngineError(f"model = {model!r}: is a file of another kind than {', '.join(WEIGHTS)}")
        missing = LAYOUTS[kind].missing(files_of(path)) if path.is_dir() else []
        if missing:
            raise EngineError(
                f"model = {model!r}: the folder lacks {', '.join(missing)}; it must have the hub's layout,"
                f" as {LAYOUTS[kind].example} has it"
            )
        return path
    repository = HOMES.get(model, model)
    _check_id(model, repository)
    return _fetch(repository, revision, half, model, kind)


def load_parts(
    folder: Path,
    device: torch.device,
    unet_dtype: torch.dtype,
    vae_dtype: torch.dtype,
    prompt: str,
    negative_prompt: str,
    tokenizer: str | None = None,
) -> Parts:
    """Load the modules of an x4 upscaler, encode the prompts, and unload the text encoder.

    Args:
        folder: the result of `locate`: a folder with the hub's layout, or a single file.
        tokenizer: folder of the tokenizer, for a single file.

    Raises:
        EngineError: a part is damaged, or not that of an x4 upscaler.
    """
    quiet()
    with load_errors(folder):
        if folder.is_file():
            file = single_file.load(folder, device, unet_dtype, vae_dtype)
            if vae_dtype == torch.float16:
                fold(file.vae)
            encode = prompts.single_file_tokens(tokenizer)
            positive, negative = prompts.embeddings(
                encode, file.text_encoder, file.unet, device, prompt, negative_prompt
            )
            return Parts(
                file.unet, file.vae, positive, negative,
                architecture.SCHEDULER, architecture.LOW_RES_SCHEDULER, architecture.NOISE_LEVEL,
                architecture.MAX_NOISE_LEVEL, fingerprint([folder]),
            )  # fmt: skip
        if tokenizer is not None:
            raise EngineError(f"tokenizer = {tokenizer!r}: {folder} has its own; leave it out")
        index = claims.read_table(folder / "model_index.json")
        if KINDS.get(str(index.get("_class_name"))) == "distilled":
            return _distilled(folder, device, unet_dtype, prompt, negative_prompt)
        autoencoder = _autoencoder(folder, index.get("vae"))
        ddim = schedule(folder, "scheduler", solver.variance_preserving)
        ddpm = schedule(folder, "low_res_scheduler", _noise_levels)
        unet = load_module(UNet2DConditionModel, folder, "unet", unet_dtype, device)
        vae = load_vae(autoencoder, folder, vae_dtype, device)
        if autoencoder is AutoencoderKL:  # older files lack it, and diffusers' default is wrong for this model
            vae.register_to_config(scaling_factor=architecture.SCALING_FACTOR)
        if unet.config.in_channels != vae.config.latent_channels + 3 or unet.config.num_class_embeds is None:
            raise EngineError(
                f"model {folder}: is no x4 upscaler: its unet takes {unet.config.in_channels} channels,"
                f" expected {vae.config.latent_channels} latent and 3 of the input, and a noise level"
            )
        positive, negative = texts(folder, unet, device, unet_dtype, prompt, negative_prompt)
        level = index.get("max_noise_level", architecture.MAX_NOISE_LEVEL)
        known = [signal for signal in _noise_levels(ddpm) if signal > 0][: unet.config.num_class_embeds]
        if not isinstance(level, int) or not 0 <= level < len(known):
            raise EngineError(f"model {folder}: max_noise_level = {level!r}: it knows the levels below {len(known)}")
        own = index.get("noise_level", architecture.NOISE_LEVEL)
        if not isinstance(own, int) or not 0 <= own <= level:
            raise EngineError(f"model {folder}: noise_level = {own!r}: expected 0 to max_noise_level, {level}")
        hashed = identity(folder, unet_dtype != torch.float32)
        return Parts(unet, vae, positive, negative, ddim, ddpm, own, level, hashed)


def _distilled(folder: Path, device: torch.device, dtype: torch.dtype, prompt: str, negative_prompt: str) -> Parts:
    """Load an x4 upscaler that was distilled to a few steps: it has no noise level, and its decoder is not used."""
    ddim = schedule(folder, "scheduler", solver.variance_preserving)
    unet = load_module(UNet2DConditionModel, folder, "unet", dtype, device)
    if unet.config.in_channels != unet.config.out_channels + 3 or unet.config.num_class_embeds is not None:
        raise EngineError(
            f"model {folder}: is no distilled x4 upscaler: its unet takes {unet.config.in_channels} channels and"
            f" {unet.config.num_class_embeds} noise levels, expected {unet.config.out_channels} latent and 3 of the"
            " input, and no noise level"
        )
    positive, negative = texts(folder, unet, device, dtype, prompt, negative_prompt)
    hashed = identity(folder, dtype != torch.float32, "distilled")
    return Parts(unet, None, positive, negative, ddim, None, 0, None, hashed)


def texts(
    folder: Path, unet: Any, device: torch.device, dtype: torch.dtype, prompt: str, negative_prompt: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of the prompt and of the negative prompt, for which the text encoder is loaded.

    Raises:
        EngineError: it, or its tokenizer, is damaged.
    """
    if not reads_text(unet):
        if prompt or negative_prompt:
            log.warning("this model reads no text: the prompt has no effect")
        nothing = torch.zeros(1, 1, unet.config.cross_attention_dim, dtype=dtype, device=device)
        return nothing, nothing
    with load_errors(folder):
        encoder = load_module(CLIPTextModel, folder, "text_encoder", dtype, device)
        return prompts.embeddings(prompts.tokens(folder), encoder, unet, device, prompt, negative_prompt)


def _autoencoder(folder: Path, named: Any) -> Any:
    found = _AUTOENCODERS.get((str(named[0]), str(named[-1]))) if named and isinstance(named, list) else None
    if found is None:
        raise EngineError(f"model {folder}: its vae is {named}; expected AutoencoderKL of diffusers")
    return found


def quiet() -> None:
    """Disable the bars of the two libraries."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()


@contextmanager
def load_errors(folder: Path) -> Iterator[None]:
    """Turn errors in loading a model into an EngineError that names it."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # of all kinds
        raise EngineError(f"model {folder}: a part cannot be loaded: {first_line(error)}") from error


def schedule(folder: Path, name: str, steps: Callable[[dict[str, Any], str, int], Any]) -> dict[str, Any]:
    """The configuration of a scheduler, checked by computing steps from it.

    Args:
        steps: computes them from a configuration, a sampler and their number.

    Raises:
        EngineError: that fails.
    """
    path = folder / name / "scheduler_config.json"
    config = claims.check_schedule(path)
    try:
        found = [str(steps(config, sampler, 2)) for sampler in solver.SAMPLERS]
    except Exception as error:  # of all kinds
        raise EngineError(f"{path}: no noise schedule can be built from it: {first_line(error)}") from error
    if any("nan" in text or "inf" in text for text in found):
        raise EngineError(f"{path}: its noise levels are no numbers")
    return config


def _noise_levels(config: dict[str, Any], *_: object) -> list[float]:
    found: list[float] = DDPMScheduler.from_config(config).alphas_cumprod.double().sqrt().tolist()
    return found


def identity(folder: Path, half: bool, kind: str = "x4") -> str:
    """Fingerprint of a single file, or of the files of a layout that decide pixels."""
    if folder.is_file():
        return fingerprint([folder])
    return fingerprint(folder / name for name in LAYOUTS[kind].deciding(files_of(folder), half))


def reads_text(unet: Any) -> bool:
    """Whether a UNet has cross-attention."""
    return any(name.endswith("attn2") for name, _ in unet.named_modules())


def load_vae(kind: Any, folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Load the VAE of a layout; for float16 a power of two is folded into it, or it falls back to float32."""
    if kind is DetailAutoencoder:
        return load_module(kind, folder, "vae", torch.float32, device)
    vae = load_module(kind, folder, "vae", dtype, device)
    if dtype != torch.float16 or fold(vae):
        return vae
    log.warning("model %s: its vae would overflow in float16: it works in float32", folder)
    return load_module(kind, folder, "vae", torch.float32, device)


_LOADING = Lock()
"""Held while a library builds a module: it makes `dtype` the process's default meanwhile, and gives back what it found,
which is another thread's where two overlap."""


def load_module(kind: Any, folder: Path, part: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a module of a layout to its device; the fp16 variant where half precision is requested."""
    half = dtype in (torch.float16, torch.bfloat16)
    files = files_of(folder)
    weights = [folder / name for name in weight_files(files, part, half)]
    claims.check_config(folder / part / "config.json", [path for path in weights if path.suffix == ".safetensors"])
    options = {
        "subfolder": part,
        "variant": variant(files, part, half),
        "use_safetensors": True,
        "local_files_only": True,
    }
    key = "dtype" if kind is CLIPTextModel else "torch_dtype"  # the two libraries name it differently
    with _LOADING:
        module, found = kind.from_pretrained(str(folder), **options, **{key: dtype}, output_loading_info=True)
    if lacking := [*found["missing_keys"], *found.get("mismatched_keys", ())]:  # which would have random values
        raise EngineError(f"model {folder}: the weights of its {part} lack {lacking[0]}")
    factor = getattr(module.config, "scaling_factor", 1.0)
    if not isinstance(factor, int | float) or factor <= 0:
        raise EngineError(f"model {folder}: the scaling_factor of its {part} is {factor!r}, expected a number above 0")
    return module.to(device).eval().requires_grad_(False)


def _fetch(repository: str, revision: str | None, half: bool, model: str, kind: str) -> Path:
    """The folder in the hub's cache, downloaded unless it is complete: weights must not change during a long job."""
    with suppress(LocalEntryNotFoundError):
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        if not LAYOUTS[kind].missing(files_of(folder)):
            return folder
    with _answering(model, repository):
        files = files_on_hub(repository, revision)
        missing = LAYOUTS[kind].missing(files)
        if missing:
            raise EngineError(f"model = {model!r}: {repository} on the hub lacks {', '.join(missing)}")
        wanted = LAYOUTS[kind].deciding(files, half)
        log.info("%s: fetching from the hub, once", repository)
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
