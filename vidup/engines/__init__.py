"""The `Engine` class, the catalogue of models, and `enlarge`, which pads and crops for all engines."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidup.config import WEIGHTS as WEIGHTS
from vidup.config import Runtime, Settings
from vidup.engines import libraries
from vidup.engines.card import choose_device as choose_device
from vidup.engines.card import current as current
from vidup.engines.card import devices as devices
from vidup.engines.memory import is_out_of_memory, keep_to_limit
from vidup.errors import EngineError, VidupError, first_line

if TYPE_CHECKING:
    from vidup.engines.planner import Planner

libraries.set_aside()  # before anything here imports diffusers

_ONE_PASS = "weights of one pass"
X4 = "StableDiffusionUpscalePipeline"
X2 = "StableDiffusionLatentUpscalePipeline"
DISTILLED = "StreamDiffVSRPipeline"
"""An x4 upscaler that was distilled to four steps."""


@dataclass(frozen=True)
class Family:
    """The models that one file of this folder runs, and all that the rest of vidup knows of them."""

    file: str
    """The file's name. It has functions `load`, `identity`, `foresee`, for `load`, `identify`, `foresee` here, and
    `scale` if that is None."""
    names: dict[str, str]
    """Names for ``--model`` -> the line in ``vidup list``."""
    kinds: tuple[str, ...] = ()
    """The results of `_kind` for models that are given as a folder, a hub id or a file."""
    homes: dict[str, str] = field(default_factory=dict)
    """Name -> hub id."""
    scale: float | None = None
    """The factor of enlargement; None where the settings or the weights decide it."""
    others: dict[str, str] = field(default_factory=dict)
    """Other lines of ``vidup list``."""
    invents: bool = True
    """See `Engine.invents`."""
    anchor: int = 5
    """The default rounds of the anchor. With models of one pass, whose errors are at edges, the first round has 87 % of
    the gain in PSNR, and more leave a pattern of the scale's size beside lines."""


_BASELINE = "baseline: resampling without a model, any scale"
FAMILIES = (
    Family(
        "x4",
        {
            "x4": "Stable Diffusion x4 upscaler, from the hub or its cache",
            "mini": "small x4 diffusion model that ships with vidup",
        },
        (X4, DISTILLED),
        {"x4": "stabilityai/stable-diffusion-x4-upscaler"},
        4,
    ),
    Family(
        "x2",
        {"x2": "Stable Diffusion x2 latent upscaler, from the hub or its cache"},
        (X2,),
        {"x2": "stabilityai/sd-x2-latent-upscaler"},
        2,
    ),
    Family(
        "checkpoint",
        {},
        (_ONE_PASS,),
        others={
            "FILE": f"a single-image model ({', '.join(WEIGHTS)}; needs vidup[checkpoint]),"
            " or the x4 upscaler as one file"
        },
        anchor=1,
    ),
    Family("interpolate", dict.fromkeys(("nearest", "bilinear", "bicubic", "lanczos"), _BASELINE), invents=False),
)
"""The catalogue of models."""


HOMES = {name: home for one in FAMILIES for name, home in one.homes.items()}
"""Name of a model -> hub id."""


def models() -> dict[str, str]:
    """Values of ``--model`` -> a line of description."""
    return {name: line for one in FAMILIES for name, line in {**one.names, **one.others}.items()}


def family(settings: Settings) -> Family:
    """The family of the settings' model, by its name or its files.

    Raises:
        EngineError: vidup does not run such a model, or the hub does not answer.
    """
    found = next((one for one in FAMILIES if settings.model in one.names), None)
    if found is None:
        kind = _kind(settings.model, settings.revision)
        found = next((one for one in FAMILIES if kind in one.kinds), None)
        if found is None:
            known = ", ".join(kind for one in FAMILIES for kind in one.kinds)
            raise EngineError(f"model = {settings.model!r}: is a {kind}; vidup runs {known}")
    return found


def _kind(model: str, revision: str | None) -> str:
    """The kind of model of a folder, a hub id or a file: the name of diffusers' pipeline, or weights of one pass."""
    path = Path(model)
    if path.suffix.lower() in WEIGHTS and not path.is_dir():
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
            raise EngineError(f"model = {model!r}: is a pipe or a device; save it to a file")
        from vidup.engines.claims import is_stable_diffusion

        return X4 if is_stable_diffusion(path) else _ONE_PASS
    found: str = libraries.imported("vidup.engines.hub").pipeline(model, revision)
    return found


def _file(settings: Settings) -> Any:
    """The module of this folder that runs the settings' model."""
    return libraries.imported(f"vidup.engines.{family(settings).file}")


@dataclass(frozen=True)
class Place:
    """The place of a clip in its frame, and what the file tells of its pictures."""

    top: int = 0
    """The row of the clip's first pixel; a multiple of the engine's `multiple`, as is `left`."""
    left: int = 0
    height: int = 0
    """The size of the whole frame, in pixels."""
    width: int = 0
    quantisers: tuple[float, ...] = ()
    """Step of the quantiser of each picture, in codes of 255; empty where all are clean."""


@dataclass(frozen=True)
class Choice:
    """The choice of batch and tiles for one size of frame. A job stores it, so that a resumed one repeats it."""

    batch: int
    """Pictures, or tiles, in one call of the model."""
    tile: int
    """The largest side of a tile in input pixels; 0 is the whole frame."""
    keep: int = 8
    """The largest scale, against the latents, whose layers the VAE keeps; 8 is all. See `vae.Limits`."""


@dataclass(frozen=True)
class Needs:
    """The memory that a model takes on its device, in bytes, and how its work can be cut."""

    device: torch.device
    frame: float
    """Bytes for each input pixel of a frame while its windows are processed."""
    window: float = 0.0
    """Bytes at the peak for each input pixel of a window; 0 for engines whose frames are never cut."""
    decoded: float = 0.0
    """Bytes for each input pixel of a frame while frames are decoded, one after the other."""
    decoding: Callable[[int, int, int], float] | None = None
    """Bytes at the peak of decoding a frame of (height, width), keeping layers up to a scale."""
    keeps: tuple[int, ...] = (8,)
    """The scales up to which the VAE can keep layers, from large to small."""
    weights: tuple[int, int] = (0, 0)
    """Bytes of the weights for windows, and of those for decoding."""
    loading: int = 0
    """More bytes that are needed while the weights are loaded."""
    multiple: int = 1
    """Sides of frames and tiles are multiples of it."""
    batch: int = 1
    """The most pictures, or tiles, in one call that are worth it."""
    busy: int = 2**63
    """Input pixels in one call that keep the device busy: a larger batch gains nothing."""
    tiles: bool = True
    """Whether frames may be cut if the settings do not request it."""
    carried: float = 0.0
    """Bytes for each input pixel of a frame of what is carried from frame to frame; see `with_carried`."""
    compiled: bool = False
    """Whether the first clip compiles the model; CUDA graphs then keep their memory while frames are decoded."""


class Engine(ABC):
    """Enlarges clips of RGB pictures, without any state. `load` creates it, `enlarge` calls it."""

    scale: float
    """The factor of enlargement; an integer for models."""
    multiple: int
    """Sides and places of the clips that it gets are multiples of this."""
    invents: bool
    """Whether it adds details that the input does not have, so that the anchor is useful."""
    device: torch.device
    """The device of clips and results."""
    dtype: torch.dtype
    """The precision in which it computes."""
    identity: str
    """Fingerprint of the weights, and of all else of the model that decides pixels."""

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """The memory that it takes, measured on first access."""

    @property
    def wider(self) -> Engine | None:
        """The same model in a precision with more range, loaded on first access; None if it has float32's range."""
        return None

    @abstractmethod
    def __call__(self, clip: torch.Tensor, place: Place, choice: Choice) -> torch.Tensor:
        """Enlarge a clip.

        Args:
            clip: float32 (T, 3, h, w), nominally in [0, 1], h and w multiples of `multiple`.
            place: its place in the frame; equal pictures at one place give equal results.
            choice: batch and tiles.

        Returns:
            float32 (T, 3, round(scale * h), round(scale * w)); NaN where the model overflowed.
        """

    def flops(self, height: int, width: int, choice: Choice) -> tuple[int | None, float]:
        """FLOP for one frame, None where they are not counted; and the UNet's evaluations of one window and text."""
        return None, 0.0

    def expect(self, pixels: int) -> None:  # noqa: B027
        """Announce the pixels of all coming input: a model may be compiled for that many, see `compiling`."""

    @abstractmethod
    def lend(self, settings: Settings) -> Engine | None:
        """An engine for other settings that shares the weights; None where other weights have to be loaded."""

    def close(self) -> None:  # noqa: B027
        """Free compiled code and its memory; another call compiles again."""


def load(settings: Settings, runtime: Runtime) -> Engine:
    """Load the engine that `settings.model` names.

    Raises:
        EngineError: the model, a part of it, or the device is missing.
    """
    device = choose_device(runtime.device)
    lift = keep_to_limit(runtime, device)
    try:
        # The caller may be in inference mode, in which weights would be created that cannot be compiled.
        with current(device), torch.inference_mode(False), torch.no_grad():
            engine: Engine = _file(settings).load(settings, runtime, device)
    except BaseException:
        lift()
        raise
    weakref.finalize(engine, lift).atexit = False
    return engine


_OF_WEIGHTS = ("model", "revision", "dtype", "vae", "vae_attention", "tokenizer")


def lend(engine: Engine, before: Settings, settings: Settings) -> Engine | None:
    """An engine for other settings that shares the weights of a loaded one; None where others have to be loaded."""
    if any(getattr(before, name) != getattr(settings, name) for name in _OF_WEIGHTS):
        return None
    with current(engine.device), torch.inference_mode(False), torch.no_grad():
        return engine.lend(settings)


def identify(settings: Settings, device: torch.device) -> str:
    """An engine's `identity`, without loading its weights.

    Args:
        device: where it will work; some models have other weights for half precision.

    Raises:
        EngineError: the model is missing.
    """
    half = settings.dtype in ("float16", "bfloat16") or (settings.dtype == "auto" and device.type == "cuda")
    found: str = _file(settings).identity(settings, half)
    return found


def native_scale(settings: Settings) -> float:
    """The factor of enlargement of the settings' model, without loading it if possible.

    Raises:
        EngineError: it depends on a file with weights, which cannot be read.
    """
    found = family(settings).scale
    return float(_file(settings).scale(settings)) if found is None else found


LEAD_IN = 12
"""Frames before a segment that are upscaled but not written, so that pictures can be carried over its border."""


def carries(settings: Settings) -> bool:
    """Whether results are carried from frame to frame, which is useful only if the model invents details."""
    return settings.temporal != "off" and family(settings).invents


def anchor_rounds(settings: Settings) -> int:
    """Rounds of the anchor: the settings', else the family's; none where nothing is invented, or nothing enlarged.

    Raises:
        EngineError: as `native_scale`.
    """
    own = family(settings)
    if not own.invents or native_scale(settings) == 1:  # the anchor would undo a model that restores
        return 0
    return own.anchor if settings.anchor == "auto" else settings.anchor


_CARRIED = 6
"""Results in memory: two that are carried, the next segment's, one that is warped, one blended, the last clip's."""


def with_carried(needs: Needs, settings: Settings, scale: float) -> Needs:
    """A model's needs with those of what is carried from frame to frame."""
    bytes_each = 3 * torch.float32.itemsize * scale**2
    return replace(needs, carried=_CARRIED * bytes_each) if carries(settings) else needs


def foresee(settings: Settings, runtime: Runtime, pixels: int = 0) -> Planner | None:
    """The planner of a model that is not loaded, from its configuration; None where only a loaded model has one.

    Args:
        pixels: of all coming input, as for `Engine.expect`.

    Raises:
        EngineError: the device is missing.
    """
    needs = _file(settings).foresee(settings, runtime, choose_device(runtime.device), pixels)
    if needs is None:
        return None
    from vidup.engines.planner import Planner

    return Planner(with_carried(needs, settings, native_scale(settings)), settings, runtime)


def enlarge(engine: Engine, clip: torch.Tensor, place: Place, choice: Choice) -> torch.Tensor:
    """Call an engine with a clip of any size, which is padded by reflection to its multiple; the result is cropped.

    Args:
        clip: float32 (T, 3, h, w) on the engine's device, 1 pixel and more.

    Returns:
        float32 (T, 3, round(scale * h), round(scale * w)).

    Raises:
        EngineError: the model failed, it gave something else than it promised, or the clip does not lie in its frame.
    """
    height, width = clip.shape[-2:]
    inside = 0 <= place.top <= place.height - height and 0 <= place.left <= place.width - width
    if not inside or place.top % engine.multiple or place.left % engine.multiple:
        raise EngineError(
            f"a clip of {width}x{height} at {place.left},{place.top} in a frame of {place.width}x{place.height}: must"
            f" lie inside, at multiples of {engine.multiple}"
        )
    padded = reflect(reflect(clip, -height % engine.multiple, -2), -width % engine.multiple, -1)
    try:
        result = engine(padded, place, choice)
    except (VidupError, MemoryError):
        raise
    except Exception as error:  # a model is what its files say, and can fail in each of its layers
        if is_out_of_memory(error):  # the caller has an answer to that
            raise
        raise EngineError(f"the model failed on a picture of {width}x{height}: {first_line(error)}") from error
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
