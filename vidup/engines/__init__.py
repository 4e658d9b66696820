"""The Engine protocol, the names that stand for engines, and the one wrapper that pads and crops."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
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
    """Where a clip sits in the frame that it is cut from, or is the whole of."""

    top: int = 0
    """Of the clip's first pixel; the engine's `multiple` divides it, and `left`."""
    left: int = 0
    height: int = 0
    """Of the whole frame, in pixels."""
    width: int = 0


@dataclass(frozen=True)
class Choice:
    """What is decided for one size of frame. A job stores it, so that a resumed one repeats it."""

    batch: int
    """Pictures, or tiles, in one call of the model."""
    tile: int
    """Largest side of a tile in input pixels; 0 is the whole frame."""
    keep: int = 8
    """The largest scale, against the latents, whose layers the decoder keeps; 8 is all. See `vae.Limits`."""


@dataclass(frozen=True)
class Needs:
    """What a model takes on its device, in bytes, and how its work can be cut."""

    device: torch.device
    frame: float
    """Held for each input pixel of a frame while its windows are worked on."""
    window: float = 0.0
    """At the peak for each input pixel of a window; 0 where there are none, and frames are never cut."""
    decoded: float = 0.0
    """Held for each input pixel of a frame while whole frames are decoded, one after the other."""
    decoder: Callable[[int, int, int], float] | None = None
    """At the peak of decoding one frame of (height, width), keeping layers up to a scale."""
    keeps: tuple[int, ...] = (8,)
    """The scales that the decoder can be told to keep, from large to small."""
    weights: tuple[int, int] = (0, 0)
    """Of what works on windows, and of what decodes."""
    loading: int = 0
    """Beside the weights while they are loaded."""
    multiple: int = 1
    """Sides of frames and tiles are multiples of it."""
    batch: int = 1
    """Pictures, or tiles, in one call that are worth it at the most."""
    busy: int = 2**63
    """Input pixels in one call that keep the device busy: a larger batch gains nothing."""
    tiles: bool = True
    """Whether frames may be cut where nobody asks for it."""
    compiled: bool = False
    """The first clip takes the time that compiling takes; on CUDA graphs keep their memory while frames are decoded."""


class Engine(Protocol):
    """Enlarges clips of RGB pictures and remembers nothing. Made by `load`, called by `enlarge`."""

    @property
    def scale(self) -> float:
        """Size of the result against the input; a whole number for models."""

    @property
    def multiple(self) -> int:
        """Sides of the clips that it is called with, and their places, are multiples of this."""

    @property
    def invents(self) -> bool:
        """True where it adds what the input does not hold, so that the anchor makes sense."""

    @property
    def device(self) -> torch.device:
        """Where clips are expected and results are given."""

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""

    @property
    def identity(self) -> str:
        """Fingerprint of the weights and whatever else of the model decides pixels beside the settings."""

    @property
    def needs(self) -> Needs:
        """The memory that it takes; measured when it is first asked for."""

    def __call__(self, clip: torch.Tensor, place: Place, choice: Choice) -> torch.Tensor:
        """Enlarge a clip.

        Args:
            clip: float32 (T, 3, h, w), nominally in [0, 1], h and w multiples of `multiple`.
            place: where it sits; equal pictures at one place give equal results.
            choice: how many pictures or tiles at once, and how large.

        Returns:
            float32 (T, 3, round(scale * h), round(scale * w)).
        """

    def flops(self, height: int, width: int, choice: Choice) -> tuple[int | None, float]:
        """FLOP for one frame, None where they are not counted; and the UNet's evaluations of one window and text."""

    def close(self) -> None:
        """Let compiled code go, and the memory that it holds; another call compiles again."""


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
        return Interpolation(settings.model, settings.scale or 4, device)
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
        needs = load(settings, runtime).needs
    elif settings.model == "x4":
        from vidup.engines import x4

        needs = x4.foresee(settings, runtime, choose_device(runtime.device))
    else:
        return None
    from vidup.engines.planner import Planner

    planner = Planner(needs, settings, runtime)
    return planner.memory(planner.choose(height, width), height, width)


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


def enlarge(engine: Engine, clip: torch.Tensor, place: Place, choice: Choice) -> torch.Tensor:
    """Call an engine with a clip of any size: padded by reflection to its multiple, the result cropped.

    Args:
        clip: float32 (T, 3, h, w) on the engine's device, 1 pixel and more.

    Returns:
        float32 (T, 3, round(scale * h), round(scale * w)).

    Raises:
        EngineError: the engine gave something else than it promised, or the clip does not lie in its frame.
    """
    height, width = clip.shape[-2:]
    inside = 0 <= place.top <= place.height - height and 0 <= place.left <= place.width - width
    if not inside or place.top % engine.multiple or place.left % engine.multiple:
        raise EngineError(
            f"a clip of {width}x{height} at {place.left},{place.top} in a frame of {place.width}x{place.height}: must"
            f" lie inside, at multiples of {engine.multiple}"
        )
    padded = reflect(reflect(clip, -height % engine.multiple, -2), -width % engine.multiple, -1)
    result = engine(padded, place, choice)
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
