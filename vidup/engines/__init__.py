"""The Engine protocol, the catalogue of models, and the one wrapper that pads and crops."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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

log = logging.getLogger(__name__)

libraries.set_aside()  # before anything here imports diffusers

_ONE_PASS = "weights of one pass"
_X4 = "StableDiffusionUpscalePipeline"
DISTILLED = "StreamDiffVSRPipeline"
"""The pipeline of an x4 upscaler that was distilled to four steps."""


@dataclass(frozen=True)
class Family:
    """Models that one file of this folder runs, and all that the rest of vidup knows of them."""

    file: str
    """It has `load`, `identity`, `foresee`, as `load`, `identify`, `foresee` here, and `scale` where not given."""
    names: dict[str, str]
    """What ``--model`` takes for them, each with its line in ``vidup list``."""
    kinds: tuple[str, ...] = ()
    """How those that bear no name are recognised: what `_kind` says of a folder, a hub id or a file."""
    homes: dict[str, str] = field(default_factory=dict)
    """The hub id that a name stands for."""
    scale: float | None = None
    """Of the result against the input; None where the settings or the weights decide it."""
    others: dict[str, str] = field(default_factory=dict)
    """What else ``vidup list`` shows."""
    invents: bool = True
    """As `Engine.invents`."""
    anchor: int = 5
    """Rounds of the anchor where the settings give none. Of models of one pass, whose faults lie at edges, more rounds
    bring little (87 % of the gain in PSNR is the first's) and leave a pattern of the scale's size beside lines."""


_BASELINE = "baseline: resampling without a model, any scale"
FAMILIES = (
    Family(
        "x4",
        {
            "x4": "Stable Diffusion x4 upscaler, from the hub or its cache",
            "mini": "small x4 diffusion model that ships with vidup",
        },
        (_X4, DISTILLED),
        {"x4": "stabilityai/stable-diffusion-x4-upscaler"},
        4,
    ),
    Family(
        "x2",
        {"x2": "Stable Diffusion x2 latent upscaler, from the hub or its cache"},
        ("StableDiffusionLatentUpscalePipeline",),
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
"""The catalogue. The preset that a name brings along is the one of that name, see `config`."""


HOMES = {name: home for one in FAMILIES for name, home in one.homes.items()}
"""The hub ids that names stand for."""


def models() -> dict[str, str]:
    """What ``--model`` takes, each with a line about it."""
    return {name: line for one in FAMILIES for name, line in {**one.names, **one.others}.items()}


def family(settings: Settings) -> Family:
    """The family of the settings' model, by its name or by what it is.

    Raises:
        EngineError: it is no model that vidup runs, or the hub, which alone knows it, does not answer.
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
    """What a folder, a hub id or a file holds: a pipeline of diffusers, by its name, or weights of one pass."""
    path = Path(model)
    if path.suffix.lower() in WEIGHTS and not path.is_dir():
        if path.exists() and not path.is_file():  # to open a pipe would wait for its writer
            raise EngineError(f"model = {model!r}: is a pipe or a device; save it to a file")
        from vidup.engines.claims import is_stable_diffusion

        return _X4 if is_stable_diffusion(path) else _ONE_PASS
    found: str = libraries.imported("vidup.engines.hub").pipeline(model, revision)
    return found


def _file(settings: Settings) -> Any:
    """The file of this folder that runs the settings' model."""
    return libraries.imported(f"vidup.engines.{family(settings).file}")


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
    """The scales that the decoder can keep, from large to small."""
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
    carried: float = 0.0
    """Held for each input pixel of a frame by what is carried from frame to frame; see `with_carried`."""
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
    def wider(self) -> Engine | None:
        """The same model in a precision that holds what overflows in this one; None where this one has float32's range.

        It is loaded at first use.
        """

    @property
    def identity(self) -> str:
        """Fingerprint of the weights and whatever else of the model decides pixels beside the settings."""

    @property
    def needs(self) -> Needs:
        """The memory that it takes; measured at first use."""

    def __call__(self, clip: torch.Tensor, place: Place, choice: Choice) -> torch.Tensor:
        """Enlarge a clip.

        Args:
            clip: float32 (T, 3, h, w), nominally in [0, 1], h and w multiples of `multiple`.
            place: where it sits; equal pictures at one place give equal results.
            choice: how many pictures or tiles at once, and how large.

        Returns:
            float32 (T, 3, round(scale * h), round(scale * w)); NaN where the model overflowed.
        """

    def flops(self, height: int, width: int, choice: Choice) -> tuple[int | None, float]:
        """FLOP for one frame, None where they are not counted; and the UNet's evaluations of one window and text."""

    def expect(self, pixels: int) -> None:
        """Say how many pixels of input are to come in all: a model may be compiled for that many, see `compiling`."""

    def lend(self, settings: Settings) -> Engine | None:
        """An engine for other settings over the same weights, made in no time; None where they must be loaded anew."""

    def close(self) -> None:
        """Let compiled code go, and the memory that it holds; another call compiles again."""


def load(settings: Settings, runtime: Runtime) -> Engine:
    """The engine that `settings.model` names.

    Raises:
        EngineError: the model, or a part of it, is not to be had, or the device is not there.
    """
    device = choose_device(runtime.device)
    lift = keep_to_limit(runtime, device)
    try:
        # Where the caller is in inference mode: weights that were made there cannot be compiled.
        with current(device), torch.inference_mode(False), torch.no_grad():
            engine: Engine = _file(settings).load(settings, runtime, device)
    except BaseException:
        lift()
        raise
    weakref.finalize(engine, lift).atexit = False
    return engine


_OF_WEIGHTS = ("model", "revision", "dtype", "vae", "vae_attention", "tokenizer")


def lend(engine: Engine, before: Settings, settings: Settings) -> Engine | None:
    """An engine for other settings over the weights of one for those before; None where they must be loaded anew."""
    if any(getattr(before, name) != getattr(settings, name) for name in _OF_WEIGHTS):
        return None
    with current(engine.device), torch.inference_mode(False), torch.no_grad():
        return engine.lend(settings)


def identify(settings: Settings, device: torch.device) -> str:
    """An engine's `identity`, without loading its weights.

    Args:
        device: where it will work; for half precision some models have weights of their own.

    Raises:
        EngineError: the model is not to be had.
    """
    half = settings.dtype in ("float16", "bfloat16") or (settings.dtype == "auto" and device.type == "cuda")
    found: str = _file(settings).identity(settings, half)
    return found


def native_scale(settings: Settings) -> float:
    """How much the model of the settings enlarges, found out without loading it where that can be.

    Raises:
        EngineError: a file with weights, which alone decide it, cannot be read.
    """
    found = family(settings).scale
    return float(_file(settings).scale(settings)) if found is None else found


LEAD_IN = 12
"""Frames before a segment that are upscaled and not written, so that at its border nothing but the motion is new."""


def carries(settings: Settings) -> bool:
    """Whether results are carried from frame to frame; where nothing is invented there is nothing to carry."""
    return settings.temporal != "off" and family(settings).invents


def anchor_rounds(settings: Settings) -> int:
    """Rounds of the anchor: as given, else the family's; none where nothing is invented, or nothing enlarged.

    Raises:
        EngineError: as `native_scale`.
    """
    own = family(settings)
    if not own.invents or native_scale(settings) == 1:  # of a model that restores, the target is the input itself
        return 0
    return own.anchor if settings.anchor == "auto" else settings.anchor


_CARRIED = 6
"""Results at once: two that are carried, a segment's next, one that is warped, one blended, the last clip's."""


def with_carried(needs: Needs, settings: Settings, scale: float) -> Needs:
    """What a model takes, and what is carried from frame to frame beside it."""
    bytes_each = 3 * torch.float32.itemsize * scale**2
    return replace(needs, carried=_CARRIED * bytes_each) if carries(settings) else needs


def foresee(settings: Settings, runtime: Runtime, pixels: int = 0) -> Planner | None:
    """The planner of a model that is not loaded, by its configuration; None where only a loaded one has it.

    Args:
        pixels: of input that are to come, as for `Engine.expect`.

    Raises:
        EngineError: the device is not there.
    """
    needs = _file(settings).foresee(settings, runtime, choose_device(runtime.device), pixels)
    if needs is None:
        return None
    from vidup.engines.planner import Planner

    return Planner(with_carried(needs, settings, native_scale(settings)), settings, runtime)


def enlarge(engine: Engine, clip: torch.Tensor, place: Place, choice: Choice) -> torch.Tensor:
    """Call an engine with a clip of any size: padded by reflection to its multiple, the result cropped.

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
