"""Find the weights of a diffusion model (hub id, folder, file) and load them into its parts; safetensors only."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
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

from vidup.config import Settings
from vidup.engines import DISTILLED, HOMES, WEIGHTS, X4, architecture, claims, libraries, prompts, single_file, solver
from vidup.engines.detail import DetailAutoencoder
from vidup.engines.folding import fold
from vidup.engines.layout import LAYOUTS, files_of, fingerprint, variant, weight_files
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
    """The modules of a diffusion model on their device, and what else it is sampled with."""

    unet: Any
    vae: Any
    """None where it is not supported: a tiny autoencoder replaces it."""
    texts: torch.Tensor
    """Embeddings of the negative prompt and of the prompt, (2, tokens, width)."""
    scheduler: dict[str, Any]
    identity: str
    """Fingerprint of the weights and configurations."""
    folder: Path | None = None
    """A folder with the hub's layout, or a single file; None for random weights."""
    text_bytes: int = 0
    """Of the text encoder, which was unloaded."""
    noise_levels: torch.Tensor = field(default_factory=lambda: torch.ones(1, dtype=torch.float32))
    """`alphas_cumprod` of the levels of noise that are added to the input, float32 (levels,)."""
    noise_level: int | None = None
    """The default for clean input; None for a distilled model: its input gets no noise, and it has a few fixed
    timesteps and no guidance."""
    pooled: torch.Tensor | None = None
    """Pooled embeddings of both texts, (2, width), for the x2 upscaler."""


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
    """The name of the pipeline of a model of the x4 family.

    Raises:
        EngineError: as `pipeline`.
    """
    return X4 if model in HOMES or model in SHIPPED or Path(model).is_file() else pipeline(model, revision)


def _check_id(model: str, repository: str) -> None:
    if not re.fullmatch(_ID, repository):
        raise EngineError(
            f"model = {model!r}: is no engine of vidup's, no file or folder and no hub id (owner/name);"
            " vidup list shows the engines"
        )


def _answering(model: str, repository: str) -> AbstractContextManager[None]:
    return libraries.told(
        f"model = {model!r}: {repository} cannot be had from the hub (",
        "). Connect this machine once, or give a folder that holds it with --model FOLDER, or take the small model that"
        " ships with vidup: --preset mini",
    )


def _cached_or_fetched(repository: str, revision: str | None) -> Path:
    with suppress(LocalEntryNotFoundError):
        return Path(hf_hub_download(repository, "model_index.json", revision=revision, local_files_only=True))
    files_on_hub(repository, revision)
    return Path(hf_hub_download(repository, "model_index.json", revision=revision, etag_timeout=_HUB_SECONDS))


def files_on_hub(repository: str, revision: str | None) -> list[str]:
    """The names of a repository's files on the hub. Without network it fails soon, where a download tries for long."""
    details = HfApi().model_info(repository, revision=revision, timeout=_HUB_SECONDS)
    return [entry.rfilename for entry in details.siblings or ()]


def locate(model: str, revision: str | None, half: bool, kind: str = X4) -> Path:
    """Find a model; one on the hub is downloaded unless it is in the hub's cache.

    Args:
        model: ``x4``, ``x2``, ``mini``, a folder, a hub id, or a file with the x4 upscaler.
        half: prefer the fp16 variant.
        kind: the pipeline whose layout is required.

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
    repository, layout = HOMES.get(model, model), LAYOUTS[kind]
    _check_id(model, repository)
    with _answering(model, repository):
        return fetched(repository, revision, layout.missing, partial(layout.deciding, half=half), f"model = {model!r}")


def fetched(
    repository: str,
    revision: str | None,
    missing: Callable[[list[str]], list[str]],
    wanted: Callable[[list[str]], list[str]],
    named: str,
) -> Path:
    """The folder in the hub's cache, downloaded unless it is complete: weights must not change during a long job.

    Args:
        missing, wanted: of the files that there are, what is missing, and what is downloaded.
        named: the setting, for an error.
    """
    with suppress(LocalEntryNotFoundError):
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        if not missing(files_of(folder)):
            return folder
    files = files_on_hub(repository, revision)
    if lacking := missing(files):
        raise EngineError(f"{named}: {repository} on the hub lacks {', '.join(lacking)}")
    log.info("%s: fetching from the hub, once", repository)
    return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted(files)))


def load_parts(settings: Settings, device: torch.device, unet_dtype: torch.dtype, vae_dtype: torch.dtype) -> Parts:
    """Load the modules of an x4 upscaler, encode the prompts, and unload the text encoder.

    Raises:
        EngineError: the model is missing, or a part is damaged or not that of an x4 upscaler.
    """
    kind, half = kind_of(settings.model, settings.revision), unet_dtype != torch.float32
    folder = locate(settings.model, settings.revision, half, kind)
    quiet()
    with load_errors(folder):
        levels, level = torch.ones(1, dtype=torch.float32), None
        if folder.is_file():
            unet, vae, encoder = single_file.load(folder, device, unet_dtype, vae_dtype)
            scheduler = architecture.SCHEDULER
            if vae_dtype == torch.float16:
                fold(vae)
            encode = prompts.single_file_tokens(settings.tokenizer)
            both = prompts.embeddings(encode, encoder, unet, device, settings)
            levels, level = default_levels(), architecture.NOISE_LEVEL
        else:
            if settings.tokenizer is not None:
                raise EngineError(f"tokenizer = {settings.tokenizer!r}: {folder} has its own; leave it out")
            scheduler = schedule(folder, "scheduler", solver.variance_preserving)
            unet = load_module(UNet2DConditionModel, folder, "unet", unet_dtype, device)
            if kind == DISTILLED:
                vae = None  # its own is not supported
                _check_distilled(folder, unet.config)
            else:
                vae, levels, level = _vae_and_levels(folder, unet.config, vae_dtype, device)
            both = texts(folder, unet, device, unet_dtype, settings)
        size = text_bytes(folder, unet_dtype.itemsize)
        return Parts(unet, vae, both, scheduler, identity(folder, half, kind), folder, size, levels, level)


def _vae_and_levels(folder: Path, unet: Any, dtype: torch.dtype, device: torch.device) -> tuple[Any, torch.Tensor, int]:
    """The VAE beside a UNet of this configuration, and the model's levels of noise with the default one."""
    index = claims.read_table(folder / "model_index.json")
    autoencoder = _autoencoder(folder, index.get("vae"))
    ddpm = schedule(folder, "low_res_scheduler", lambda config, *_: noise_levels(config).sqrt().tolist())
    vae = load_vae(autoencoder, folder, dtype, device)
    if autoencoder is AutoencoderKL:  # older files lack it, and diffusers' default is wrong for this model
        vae.register_to_config(scaling_factor=architecture.SCALING_FACTOR)
    if unet.in_channels != vae.config.latent_channels + 3 or unet.num_class_embeds is None:
        raise EngineError(
            f"model {folder}: is no x4 upscaler: its unet takes {unet.in_channels} channels,"
            f" expected {vae.config.latent_channels} latent and 3 of the input, and a noise level"
        )
    level = index.get("max_noise_level", architecture.MAX_NOISE_LEVEL)
    levels = noise_levels(ddpm)
    known = min(int((levels > 0).sum()), unet.num_class_embeds)
    if not isinstance(level, int) or not 0 <= level < known:
        raise EngineError(f"model {folder}: max_noise_level = {level!r}: it knows the levels below {known}")
    own = index.get("noise_level", architecture.NOISE_LEVEL)
    if not isinstance(own, int) or not 0 <= own <= level:
        raise EngineError(f"model {folder}: noise_level = {own!r}: expected 0 to max_noise_level, {level}")
    return vae, levels[: level + 1], own


def _check_distilled(folder: Path, unet: Any) -> None:
    """Check that the configuration is that of an x4 upscaler that was distilled to a few steps."""
    if unet.in_channels != unet.out_channels + 3 or unet.num_class_embeds is not None:
        raise EngineError(
            f"model {folder}: is no distilled x4 upscaler: its unet takes {unet.in_channels} channels and"
            f" {unet.num_class_embeds} noise levels, expected {unet.out_channels} latent and 3 of the input, and no"
            " noise level"
        )


def texts(folder: Path, unet: Any, device: torch.device, dtype: torch.dtype, settings: Settings) -> torch.Tensor:
    """`Parts.texts` of the settings' prompts, for which the text encoder is loaded.

    Raises:
        EngineError: it, or its tokenizer, is damaged.
    """
    if not reads_text(unet):
        if settings.prompt or settings.negative_prompt:
            log.warning("this model reads no text: the prompt has no effect")
        return torch.zeros(2, 1, unet.config.cross_attention_dim, dtype=dtype, device=device)
    with load_errors(folder):
        encoder = load_module(CLIPTextModel, folder, "text_encoder", dtype, device)
        return prompts.embeddings(prompts.tokens(folder), encoder, unet, device, settings)


def text_bytes(place: Path, size: int) -> int:
    """The bytes of the text encoder in a layout or a single file, with `size` bytes a number; 0 without one."""
    prefix, files = (single_file.TEXT, [place]) if place.is_file() else ("", _weights(place, "text_encoder", False))
    shapes = (weights for file in files for weights in claims.weight_shapes(file).items())
    return size * sum(math.prod(shape) for name, shape in shapes if name.startswith(prefix))


def _autoencoder(folder: Path, named: Any) -> Any:
    found = _AUTOENCODERS.get((str(named[0]), str(named[-1]))) if named and isinstance(named, list) else None
    if found is None:
        raise EngineError(f"model {folder}: its vae is {named}; expected AutoencoderKL of diffusers")
    return found


def quiet() -> None:
    """Disable the bars of the two libraries."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()


def load_errors(folder: Path) -> AbstractContextManager[None]:
    """Turn errors in loading a model into an EngineError that names it."""
    return libraries.told(f"model {folder}: a part cannot be loaded: ")


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
    except Exception as error:  # of all kinds, and `solver`'s own, which does not name the file
        raise EngineError(f"{path}: no noise schedule can be built from it: {first_line(error)}") from error
    if any("nan" in text or "inf" in text for text in found):
        raise EngineError(f"{path}: its noise levels are no numbers")
    return config


def noise_levels(config: dict[str, Any]) -> torch.Tensor:
    """`alphas_cumprod` of the configuration of a low-resolution scheduler."""
    levels: torch.Tensor = DDPMScheduler.from_config(config).alphas_cumprod
    return levels


def default_levels() -> torch.Tensor:
    """`Parts.noise_levels` of the x4 upscaler, for files without a configuration."""
    return noise_levels(architecture.LOW_RES_SCHEDULER)[: architecture.MAX_NOISE_LEVEL + 1]


def identity(folder: Path, half: bool, kind: str = X4) -> str:
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


def _weights(folder: Path, part: str, half: bool) -> list[Path]:
    names = weight_files(files_of(folder), part, half)
    return [folder / name for name in names if name.endswith(".safetensors")]


_LOADING = Lock()
"""Held while a library builds a module: it makes `dtype` the process's default meanwhile, and gives back what it found,
which is another thread's where two overlap."""


def load_module(kind: Any, folder: Path, part: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a module of a layout to its device; the fp16 variant where half precision is requested."""
    half = dtype in (torch.float16, torch.bfloat16)
    claims.check_config(folder / part / "config.json", _weights(folder, part, half))
    options = {
        "subfolder": part,
        "variant": variant(files_of(folder), part, half),
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
