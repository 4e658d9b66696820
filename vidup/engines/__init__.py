"""The Engine protocol, the names that stand for engines, and the one wrapper that pads and crops."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import torch

from vidup.config import Runtime, Settings
from vidup.engines import operators
from vidup.engines.memory import keep_to_limit
from vidup.errors import EngineError

log = logging.getLogger(__name__)

operators.declare()  # before anything here imports diffusers

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
"""The baseline engines, by the names that ``--model`` takes."""

WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt")
"""What files with weights end in."""


@dataclass(frozen=True)
class Place:
    """Where a clip sits in the video."""

    top: int = 0
    left: int = 0
    height: int = 0
    """Size of the whole frame that the clip is a part of, in pixels."""
    width: int = 0
    times: tuple[Fraction, ...] = ()
    """When each picture of the clip is shown, in seconds."""


@dataclass(frozen=True)
class Choice:
    """What an engine decides by itself for one size of frame. A job stores it, so that a resumed one repeats it."""

    batch: int
    """Pictures, or tiles, in one call of the model."""
    tile: int
    """Largest side of a tile in input pixels; 0 is the whole frame."""


class Engine(Protocol):
    """Enlarges clips of RGB pictures. Made by `load`, called by `enlarge`."""

    @property
    def scale(self) -> float:
        """Size of the result against the input; a whole number for models."""

    @property
    def multiple(self) -> int:
        """Sides of the clips that it is called with are multiples of this."""

    @property
    def invents(self) -> bool:
        """True where it adds what the input does not hold, so that the anchor makes sense."""

    @property
    def clip_length(self) -> int:
        """How many pictures it likes at once."""

    @property
    def device(self) -> torch.device:
        """Where clips are expected and results are given."""

    @property
    def identity(self) -> str:
        """Fingerprint of the weights and whatever else of the model decides pixels beside the settings."""

    @property
    def compiles(self) -> bool:
        """Whether the first clip takes the time that compiling the model takes."""

    def choose(self, height: int, width: int) -> Choice:
        """What it does for frames of this size: as adopted, else as the settings, the runtime and the memory say."""

    def adopt(self, choice: Choice | None) -> None:
        """Do as this says from now on: `clip_length` becomes its batch. None forgets what was adopted."""

    def release(self) -> None:
        """Let memory go that is held for speed alone, such as that of compiled code."""

    def smaller(self, choice: Choice, height: int, width: int) -> Choice | None:
        """The next choice that takes less memory: the batch halved, then smaller tiles; None at the smallest."""

    def memory(self, choice: Choice, height: int, width: int) -> int:
        """Bytes on the device at the peak, weights included, as the planner figures."""

    def __call__(self, clip: torch.Tensor, place: Place) -> torch.Tensor:
        """Enlarge a clip.

        Args:
            clip: float32 (T, 3, h, w), nominally in [0, 1], h and w multiples of `multiple`.
            place: where it sits; equal pictures at one place give equal results.

        Returns:
            float32 (T, 3, round(scale * h), round(scale * w)).
        """


def load(settings: Settings, runtime: Runtime) -> Engine:
    """The engine that `settings.model` names.

    Raises:
        EngineError: the model, or a part of it, is not to be had, or the device is not there.
    """
    device = choose_device(runtime.device)
    keep_to_limit(runtime, device)
    # Where the caller is in inference mode: weights that were made there cannot be compiled.
    with current(device), torch.inference_mode(False), torch.no_grad():
        return _load(settings, runtime, device)


def _load(settings: Settings, runtime: Runtime, device: torch.device) -> Engine:
    if settings.model in INTERPOLATIONS:
        from vidup.engines.interpolate import Interpolation

        tell_unused(
            settings, settings.model, (), ("prompt", "negative_prompt", "revision", "vae", "tokenizer", "vae_attention")
        )
        for name in [name for name in ("compile", "offload") if getattr(runtime, name) in ("on", True)]:
            log.warning("%s: has no effect with %s", name, settings.model)
        return Interpolation(settings.model, settings.scale or 4, runtime, device)
    if _is_checkpoint(settings.model):
        from vidup.engines.checkpoint import Checkpoint

        return Checkpoint(settings, runtime, device)
    from vidup.engines.hub import family

    if family(settings.model, settings.revision) == "x2":
        from vidup.engines.x2 import LatentX2

        return LatentX2(settings, runtime, device)
    from vidup.engines.x4 import DiffusionX4

    return DiffusionX4(settings, runtime, device)


def tell_unused(settings: Settings, model: str, absent: Iterable[str], unused: Iterable[str]) -> None:
    """Tell of settings that a model has no use for.

    Args:
        absent: parts that it does not have: to name one is an error.
        unused: what it does not read: to change one is told in a line.

    Raises:
        EngineError: a part is named that it does not have.
    """
    for name in absent:
        if getattr(settings, name) is not None:
            raise EngineError(f"{name} = {getattr(settings, name)!r}: {model} has no use for it; leave it out")
    plain = Settings()
    for name in unused:
        if getattr(settings, name) != getattr(plain, name):
            log.warning("%s = %r: has no effect with %s", name, getattr(settings, name), model)


def native_scale(settings: Settings) -> float:
    """How much the model of the settings enlarges, found out without loading it where that can be.

    Raises:
        EngineError: a file with weights, which alone tell it, cannot be read.
    """
    if settings.model in INTERPOLATIONS:
        return settings.scale or 4
    if _is_checkpoint(settings.model):
        from vidup.engines.checkpoint import scale_of

        return scale_of(Path(settings.model))
    if settings.model in ("x4", "mini"):
        return 4
    from vidup.engines.hub import family

    return {"x4": 4, "x2": 2}[family(settings.model, settings.revision)]


def foresee(settings: Settings, runtime: Runtime, height: int, width: int) -> int | None:
    """Bytes on the device that a job with frames of this size will take; None where only the loaded model tells.

    Raises:
        EngineError: the device is not there.
    """
    if settings.model in (*INTERPOLATIONS, "mini"):  # loaded in no time
        engine = load(settings, runtime)
        return engine.memory(engine.choose(height, width), height, width)
    if settings.model != "x4":
        return None
    from vidup.engines import planner

    return planner.foresee(settings, runtime, choose_device(runtime.device), height, width)


def _is_checkpoint(model: str) -> bool:
    """Whether it is a file of another kind of model than diffusers runs."""
    path = Path(model)
    if path.suffix.lower() not in WEIGHTS or path.is_dir():
        return False
    if path.exists() and not path.is_file():  # to open a pipe would wait for its writer
        raise EngineError(f"model = {model!r}: is a pipe or a device; save it to a file")
    from vidup.engines.checkpoint import is_stable_diffusion

    return not is_stable_diffusion(path)


def choose_device(name: str) -> torch.device:
    """``auto`` takes CUDA, else Apple's MPS, else the CPU.

    Raises:
        EngineError: the named device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise EngineError(f"device = {name!r}: expected auto, cuda, cuda:1, mps or cpu") from None
    found = devices()
    if name not in found and not any(one.startswith(f"{name}:") for one in found):
        raise EngineError(f"device = {name!r}: is not there; this machine has {', '.join(found)}")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the one that streams, events and questions without a device are of: torch has one for each thread."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def devices() -> list[str]:
    """The devices of this machine, the one that ``auto`` takes first."""
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def enlarge(engine: Engine, clip: torch.Tensor, place: Place) -> torch.Tensor:
    """Call an engine with a clip of any size: padded by reflection to its multiple, the result cropped.

    Args:
        clip: float32 (T, 3, h, w) on the engine's device, 1 pixel and more.

    Returns:
        float32 (T, 3, round(scale * h), round(scale * w)).

    Raises:
        EngineError: the engine gave something else than it promised.
    """
    height, width = clip.shape[-2:]
    padded = reflect(reflect(clip, -height % engine.multiple, -2), -width % engine.multiple, -1)
    result = engine(padded, place)
    expected = (len(clip), 3, round(padded.shape[-2] * engine.scale), round(padded.shape[-1] * engine.scale))
    if tuple(result.shape) != expected:
        raise EngineError(f"the engine gave a clip of {tuple(result.shape)}, expected {expected}")
    return result[..., : round(height * engine.scale), : round(width * engine.scale)]


def reflect(clip: torch.Tensor, extra: int, axis: int) -> torch.Tensor:
    """Add `extra` pixels behind the end of an axis, mirrored there as often as it takes; one pixel is repeated."""
    if extra == 0:
        return clip
    length = clip.shape[axis]
    period = max(1, 2 * (length - 1))
    places = torch.arange(length + extra, device=clip.device) % period
    return clip.index_select(axis, torch.where(places < length, places, period - places))
