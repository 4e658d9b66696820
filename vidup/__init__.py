"""Upscale video: a file goes in, the same file comes out larger, every frame at its own time, the sound untouched.

The map of the code, from the bottom up. A wing, and in a wing a file, imports only from lines above its own:

    errors, frame       what can go wrong, and what flows: frames, colours, facts of a file
    prefetch, config    the only thread code; settings and presets
    picture/            tensors in, tensors out: color, geometry, tiling, noise, resample, metrics, temporal,
                        flicker
    engines/            what makes the picture: x4 (mini too), x2, checkpoint, interpolate; how models are run
    media/              PyAV, in: opening, interlace, decoding, probing; out: containers, codecs, options, trial,
                        encoder, segment, joining; beside the pictures: side_data, captions, cropping, hdr; the other
                        streams: selection, packets, sound, texts, conversion, streams; delivery: what an output has
                        to hold; kept: what was converted
    upscaler            frames in, larger frames out
    proof/              re-read what was written, and prove it
    job/                upscale(): plan, describe; rehearse; queue; segments by worker; store, disk; execute, on_ray
    compare, bench/     quality of one video against another; what this machine can do
    terminal            the standard streams and the signals of a command
    cli                 parse, call the library, exit code

`engines` and `media` stand side by side and never meet. A frame's way is `job.worker.upscale_segment`: decode ->
upscale -> encode. The decoder runs ahead in a thread of its own, the encoder behind in another; the engine stays in
the caller's.

The public names below are loaded on first use: ``import vidup`` loads neither torch nor PyAV.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "upscale": "vidup.job",
    "upscale_files": "vidup.job",
    "verify": "vidup.proof",
    "Receipt": "vidup.proof",
    "Outcome": "vidup.job",
    "Stopped": "vidup.errors",
    "Upscaler": "vidup.upscaler",
    "compare": "vidup.compare",
    "probe": "vidup.media.probing",
    "Settings": "vidup.config",
    "Runtime": "vidup.config",
    "Progress": "vidup.job.progress",
    "Frame": "vidup.frame",
    "Color": "vidup.frame",
    "MediaInfo": "vidup.frame",
    "VidupError": "vidup.errors",
    "ConfigError": "vidup.errors",
    "MediaError": "vidup.errors",
    "EngineError": "vidup.errors",
    "ResumeError": "vidup.errors",
    "VerifyError": "vidup.errors",
}

__all__ = [
    "Color",
    "ConfigError",
    "EngineError",
    "Frame",
    "MediaError",
    "MediaInfo",
    "Outcome",
    "Progress",
    "Receipt",
    "ResumeError",
    "Runtime",
    "Settings",
    "Stopped",
    "Upscaler",
    "VerifyError",
    "VidupError",
    "compare",
    "probe",
    "upscale",
    "upscale_files",
    "verify",
]

if TYPE_CHECKING:
    from vidup.compare import compare
    from vidup.config import Runtime, Settings
    from vidup.errors import ConfigError, EngineError, MediaError, ResumeError, Stopped, VerifyError, VidupError
    from vidup.frame import Color, Frame, MediaInfo
    from vidup.job import Outcome, upscale, upscale_files
    from vidup.job.progress import Progress
    from vidup.media.probing import probe
    from vidup.proof import Receipt, verify
    from vidup.upscaler import Upscaler


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        # Kept: importing `vidup.compare` the module would leave it under the name of the function.
        globals()[name] = getattr(import_module(_HOMES[name]), name)
        return globals()[name]
    raise AttributeError(f"module 'vidup' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
