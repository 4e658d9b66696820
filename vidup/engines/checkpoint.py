"""Single-image models that spandrel supports, from one file: the ESRGAN family, SwinIR, DAT, HAT and many more."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from vidup.config import Runtime, Settings
from vidup.engines import Choice, Engine, Needs, Place, claims, libraries, windows
from vidup.engines.compiling import Compiled
from vidup.engines.finite import clamped, in_wider
from vidup.engines.layout import fingerprint
from vidup.engines.memory import LiveBytes, is_out_of_memory, weight_bytes
from vidup.engines.unused import warn_unused
from vidup.errors import EngineError, first_line
from vidup.picture import tiling

log = logging.getLogger(__name__)

_SCRATCH = 1.5  # factor for memory inside kernels; measured: up to 1.09 for Compact, SwinIR and RCAN, 1.5 for ESRGAN
_PROBES = (16, 24, 64)  # sides in pixels of the pictures with which memory is measured
_LIKE = 0.01  # the relative difference of the bytes a pixel, below which larger pictures are not measured


def identity(settings: Settings, half: bool) -> str:
    """Fingerprint of the file."""
    return fingerprint([_stamp(Path(settings.model))[0]])


def scale(settings: Settings) -> int:
    """The model's factor of enlargement, for which its weights are read.

    Raises:
        EngineError: as `Checkpoint`.
    """
    stamp = _stamp(Path(settings.model))
    if stamp not in _scales:
        _read.clear()
        with torch.inference_mode(False):  # the caller may be in inference mode, the user of the model not
            model = _read[stamp] = _describe(stamp[0])
        _scales[stamp] = model.scale
    return _scales[stamp]


_Stamp = tuple[Path, int, int]

_scales: dict[_Stamp, int] = {}
_read: dict[_Stamp, Any] = {}  # the model that was read last for its scale, until it is loaded


def _stamp(path: Path) -> _Stamp:
    """A file, its size in bytes, and the time of its last change in nanoseconds."""
    if not path.is_file():
        raise EngineError(f"model = {str(path)!r}: there is no such file")
    facts = path.stat()
    return path, facts.st_size, facts.st_mtime_ns


def foresee(settings: Settings, runtime: Runtime, device: torch.device, pixels: int) -> Needs | None:
    """The needs on the CPU; None on other devices, to which the model would have to be loaded."""
    return Checkpoint(settings, runtime, device).needs if device.type == "cpu" else None


class Checkpoint(Engine):
    """A model of one pass. Pictures in and out are RGB, clamped to [0, 1]."""

    def __init__(self, settings: Settings, runtime: Runtime, device: torch.device) -> None:
        self.runtime, self.device = runtime, device
        path = Path(settings.model)
        warn_unused(
            settings, path.name, ("revision", "vae", "tokenizer"), ("prompt", "negative_prompt", "vae_attention")
        )
        stamp = _stamp(path)
        self.model = _read.pop(stamp, None) or _describe(path)
        _scales[stamp] = self.model.scale
        self.dtype = _dtype(settings.dtype, self.model, device, path)
        self.model.to(device, self.dtype).eval()
        self.model.model.requires_grad_(False)
        self.identity = identity(settings, half=False)
        self.scale: int = self.model.scale
        self.multiple: int = self.model.size_requirements.multiple_of
        # The anchor would undo a model that restores at the input's size.
        self.invents = self.scale > 1
        if runtime.offload:
            log.warning("offload: has no effect with %s, which is one part and always at work", path.name)
        # Not with auto: not all of the dozens of architectures can be one graph.
        self.run = Compiled(self.model, "on" if runtime.compile == "on" else "off", device, self.model.model)
        self._draws = self.model.architecture.id == "AuraSR"
        self._settle(settings)

    def lend(self, settings: Settings) -> Checkpoint:
        other = copy.copy(self)
        other.__dict__.pop("wider", None)
        other._settle(settings)
        return other

    def _settle(self, settings: Settings) -> None:
        self.settings = settings
        self._weights = lru_cache(maxsize=2)(self._make_weights)

    @cached_property
    def needs(self) -> Needs:
        """Measured with small pictures."""
        return Needs(
            self.device,
            frame=12.0 * 2 + 16 * self.scale**2,  # the clip, clamped; its enlargement and the weights of tiles
            window=self._measure(),
            weights=(weight_bytes(self.model.model), 0),
            multiple=self.multiple,
            tiles=self.model.tiling.name != "INTERNAL",
            compiled=self.run.active,
        )

    @cached_property
    def wider(self) -> Checkpoint | None:
        found: Checkpoint | None = in_wider(self, offload=False, bfloat16=self.model.supports_bfloat16)
        return found

    def close(self) -> None:
        self.run.release()

    @torch.inference_mode()
    def __call__(self, clip: torch.Tensor, place: Place, choice: Choice) -> torch.Tensor:
        height, width = clip.shape[-2:]
        self.run.begin(clip, place)
        tiles = windows.cut(choice, height, width, self.settings.tile_overlap, self.multiple)
        large = tiles.scaled(self.scale)
        frames = clip.clamp(0, 1).to(self.dtype)
        pictures = windows.blend(self._enlarge, frames, tiles, large, self._weights(tiles), choice.batch)
        return clamped(pictures, self.dtype)

    def flops(self, height: int, width: int, choice: Choice) -> tuple[int | None, float]:
        """FLOP for one frame, None where torch cannot count them on the meta device; and 0, as there is no UNet."""
        tiles = windows.cut(choice, height, width, self.settings.tile_overlap, self.multiple)
        tile = torch.empty(1, 3, tiles.tile_height, tiles.tile_width, dtype=self.dtype, device="meta")
        model = self.model.model
        named = [*model.named_parameters(), *model.named_buffers()]
        weights = {name: one.to("meta") for name, one in named}
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                functional_call(model, weights, (tile,))
        except (RuntimeError, NotImplementedError):  # some architectures read values of tensors
            return None, 0.0
        return len(tiles.origins) * int(counter.get_total_flops()) or None, 0.0

    def _enlarge(self, batch: torch.Tensor) -> torch.Tensor:
        with self._model_errors(batch), self._seeded():
            enlarged: torch.Tensor = self.run(batch.contiguous(memory_format=self.run.memory_format))
        return enlarged

    @contextmanager
    def _model_errors(self, batch: torch.Tensor) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):  # which the caller handles
                raise
            name, (height, width) = self.model.architecture.name, batch.shape[-2:]
            # spandrel's list of precisions is not always right.
            hint = "" if self.dtype == torch.float32 else f", in {str(self.dtype)[6:]}; take --dtype float32"
            raise EngineError(f"{name} failed on a picture of {width}x{height}: {first_line(error)}{hint}") from error

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Seed torch for the architecture that uses noise: with the same in every call, equal frames stay equal."""
        if not self._draws:
            yield
            return
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.settings.seed)
            yield

    def _make_weights(self, tiles: tiling.Tiles) -> torch.Tensor:
        if tiles.whole:
            return torch.ones(1, dtype=torch.float32, device=self.device)
        log.info("%s", tiles)
        if self.model.tiling.name == "DISCOURAGED":
            log.info("%s looks at the whole picture: tiles may differ slightly", self.model.architecture.name)
        overlap = self.settings.tile_overlap * self.scale
        return tiling.weights(tiles.scaled(self.scale), overlap, overlap // 4).to(self.device)

    def _measure(self) -> float:
        """Bytes at the peak for each pixel, counted with small pictures until they are proportional to pixels."""
        found = 0.0
        for side in _PROBES:
            side = max(side, self.model.size_requirements.minimum)
            side += -side % self.multiple
            picture = torch.full((1, 3, side, side), 0.5, dtype=self.dtype, device=self.device)
            with torch.inference_mode(), self._model_errors(picture), self._seeded(), LiveBytes() as live:
                self.model(picture)
            before, found = found, live.peak / side**2
            if abs(before - found) < _LIKE * found:
                break
        return found * _SCRATCH


load = Checkpoint


def _describe(path: Path) -> Any:
    """Read a model, as spandrel's description, on the CPU."""
    try:
        with libraries.deferred():
            import spandrel
    except ImportError:
        raise EngineError(
            f'model = {str(path)!r}: needs spandrel, which is not installed: pip install "vidup[checkpoint]"'
        ) from None
    found = _state(path)
    claims.check_weights(path, found)
    with libraries.told(f"model = {str(path)!r}: cannot be loaded: "), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the code of some architectures
        weights = spandrel.canonicalize_state_dict(found)
        claims.check_weights(path, weights)
        if any(name.startswith(claims.DIFFUSION) for name in weights):
            raise EngineError(f"model = {str(path)!r}: is a Stable Diffusion model; take it as .safetensors")
        try:
            model = spandrel.ModelLoader().load_from_state_dict(weights)
        except spandrel.UnsupportedModelError:
            raise EngineError(
                f"model = {str(path)!r}: holds no architecture that spandrel {spandrel.__version__} knows"
            ) from None
    if not isinstance(model, spandrel.ImageModelDescriptor) or model.purpose == "FaceSR":
        kind = {"Inpainting": "fills holes in pictures", "FaceSR": "is for faces alone"}.get(model.purpose, "")
        raise EngineError(
            f"model = {str(path)!r}: {model.architecture.name} {kind}; vidup takes super-resolution models"
        )
    if (model.input_channels, model.output_channels) != (3, 3):
        raise EngineError(
            f"model = {str(path)!r}: takes {model.input_channels} channels and gives {model.output_channels};"
            " vidup needs a model of RGB, 3 and 3"
        )
    return model


def _state(path: Path) -> dict[str, Any]:
    """Read a file's weights, without running code of a pickle."""
    try:
        if path.suffix.lower() == ".safetensors":
            found = load_file(path)
        else:
            claims.check_pickle(path)
            found = torch.load(path, map_location="cpu", weights_only=True)
    except EngineError:
        raise
    except Exception as error:  # of all kinds
        # The unpickler's message advises to trust the file.
        pickled = type(error).__name__ == "UnpicklingError"
        reason = "it holds objects beside weights, or is damaged" if pickled else first_line(error)
        raise EngineError(
            f"model = {str(path)!r}: cannot be read as plain weights: {reason}; take the model as .safetensors"
        ) from error
    if not isinstance(found, dict) or not found:
        raise EngineError(f"model = {str(path)!r}: holds no table of weights")
    return found


def _dtype(name: str, model: Any, device: torch.device, path: Path) -> torch.dtype:
    if name == "auto":
        return torch.float16 if device.type == "cuda" and model.supports_half else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    able = {torch.float16: model.supports_half, torch.bfloat16: model.supports_bfloat16}.get(dtype, True)
    if not able:
        raise EngineError(
            f"dtype = {name!r}: {path.name} ({model.architecture.name}) does not hold in it; take float32"
        )
    return dtype
