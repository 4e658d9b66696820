"""Settings (what decides a pixel), Runtime (what does not), and presets. `options` makes the command line from them.

A field of a dataclass is the only source of a name, its default, range and help: `noise_level` is the keyword, the TOML
key and ``--noise-level``.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from vidup.errors import ConfigError
from vidup.presets import brought, folder, preset_names, read_table
from vidup.values import check, differing, option, shown

Config = TypeVar("Config", "Settings", "Runtime")
_Any = TypeVar("_Any")


MODELS = ("x4", "x2", "mini", "nearest", "bilinear", "bicubic", "lanczos")
"""The names of models; `engines.FAMILIES` defines them."""

WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt")
"""The endings of files with weights."""


def _with_its_preset(config: type[_Any]) -> type[_Any]:
    """Let a model's preset replace the defaults; given values replace both."""
    plain = config.__init__

    def __init__(self: Any, **given: Any) -> None:
        plain(self, **{**brought(given.get("model")), **given})

    config.__init__ = functools.wraps(plain)(__init__)  # type: ignore[method-assign]
    return config


@_with_its_preset
@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """Everything that decides the pixels of the result.

    A model's own preset replaces the defaults: ``Settings(model="mini")`` has the steps of the preset ``mini``. NumPy's
    numbers, ``20.0`` for an integer, and a `Path` for a string are converted.

    Raises:
        ConfigError: a value has the wrong type or is out of its range.
    """

    model: str = option(
        "x4",
        f"{', '.join(MODELS)}, a hub id, a folder in the hub's layout, a file of weights",
        flags=("-n",),
    )
    revision: str | None = option(None, "commit, tag or branch to pin a hub id to")
    prompt: str = option("", "text that describes the picture; empty costs half as much")
    negative_prompt: str = option("", "text that describes what is not wanted")
    guidance_scale: float = option(9.0, "how strongly the prompt is followed; 1 is off", low=0, high=50)
    guidance_start: float = option(0.0, "share of the steps after which guidance sets in", low=0, high=1)
    guidance_end: float = option(1.0, "share of the steps after which guidance ends", low=0, high=1)
    steps: int = option(20, "denoising steps", low=1, high=1000)
    noise_level: int | Literal["auto"] = option(
        "auto",
        "noise given to the input: more lets the model invent more; auto is the model's own, and more where the input"
        " is compressed or noisy",
        low=0,
        high=999,
    )
    quantiser: float | Literal["auto"] = option(
        "auto",
        "step of the quantiser that the input was encoded with, in codes of 255, which noise_level and anchor follow: 0"
        " is a clean input; auto reads it from the file",
        low=0,
        high=1000,
    )
    seed: int = option(0, "same seed, same pixels", low=0, high=2**63 - 1)
    sampler: Literal["dpmpp_2m", "unipc", "ddim"] = option("dpmpp_2m", "the solver; ddim is as on the hub")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = option(
        "auto",
        "precision of the model; auto is float16 on cuda, else float32 (mini: bfloat16 where a CPU has units for it)",
    )
    vae: str | None = option(None, "another decoder: the hub id or folder of an AutoencoderTiny")
    vae_attention: Literal["auto", "full", "windowed"] = option(
        "auto",
        "attention of the decoder: over the whole frame, or in windows, which is faster and near it; auto takes windows"
        " for frames of more than 256x256",
    )
    tokenizer: str | None = option(None, "folder of a CLIP tokenizer, for a prompt with a model that is a single file")
    tile: int = option(
        0, "side of a tile in input pixels; 0 takes the whole frame where it fits", flags=("-t",), low=0, high=32768
    )
    tile_overlap: int = option(32, "input pixels that neighbouring tiles share", low=32, high=512)
    anchor: int | Literal["auto"] = option(
        "auto",
        "rounds that pull the result back to the input's colours and light, 0 is off; auto is 5 for diffusion and 1"
        " for other models, and leaves out what compression and noise put into the input",
        low=0,
        high=100,
    )
    temporal: Literal["relay", "steady", "off"] = option(
        "relay",
        "what is carried along the motion: relay computes only what is new, steady computes every frame and blends,"
        " off takes each frame alone",
    )
    trust: float = option(2.0, "codes of 255 by which what is carried may differ; more is faster", low=0.1, high=32)
    refresh: int = option(12, "frames within which all of what is carried is refreshed; 0 is never", low=0, high=1000)
    scale: float | None = option(
        None,
        "size of the result against the input; the model's own where not given",
        flags=("-s",),
        low=1,
        high=16,
        metavar="FACTOR",
    )
    height: int | None = option(
        None, "lines of the result, such as 1080 or 1080p, instead of a scale", low=2, high=32768, metavar="LINES"
    )
    width: int | None = option(
        None, "width of the result in pixels; with height, the box that it fits within", low=2, high=32768
    )
    codec: str | None = option(
        None,
        "video encoder, in ffmpeg's name; where not given libx264 (mp4, mov above 8 bits: libx265; webm: libvpx-vp9)",
        flags=("-c",),
    )
    crf: float | None = option(None, "constant quality of the encoder, lower is better", low=0, high=63)
    bitrate: str | None = option(
        None, "bitrate of each segment's pictures on average, such as 20M; with crf, the most that they take"
    )
    pix_fmt: str | None = option(None, "pixel format of the result; the nearest to the input's where not given")
    encoder_options: dict[str, str] = option(
        {}, "an option of the encoder, such as preset=slow; may be repeated", flags=("-e",), metavar="KEY=VALUE"
    )
    muxer_options: dict[str, str] = option(
        {}, "an option of the output's container, such as movflags=+frag_keyframe; may be repeated", metavar="KEY=VALUE"
    )
    matrix: Literal["auto", "bt709", "bt601", "bt2020", "smpte240m", "fcc"] = option(
        "auto", "colour matrix of the input, where its tag is missing or wrong"
    )
    range: Literal["auto", "limited", "full"] = option(
        "auto", "range of the input's codes, where its tag is missing or wrong"
    )
    deinterlace: Literal["frame", "field", "off"] = option(
        "frame", "for interlaced input: a picture a frame, a picture a field (double rate), or as it is"
    )
    fps: float | None = option(
        None,
        "frames a second of numbered pictures, and of a stream without times (25 where not given)",
        low=0.01,
        high=1000,
    )
    bake_rotation: bool = option(False, "turn the pictures themselves instead of keeping the display matrix")
    streams: str | None = option(
        None, "streams to keep beside the picture, by ffmpeg's specifiers: a:0,s:m:language:eng; all where not given"
    )
    drop_streams: str | None = option(None, "streams to leave out, by ffmpeg's specifiers: d,s:1")
    no_audio: bool = option(False, "leave all sound out")
    no_subtitles: bool = option(False, "leave all subtitles out")
    tolerate_errors: bool = option(False, "upscale what can be decoded of a damaged input, and warn of what is lost")
    segment_frames: int = option(
        96, "frames that are encoded on their own: what a stopped job loses at most", low=1, high=100_000
    )
    start: float = option(
        0.0, "begin at this time of the input: 65.5, 1:05.5, 65.5s", low=0, high=1_000_000_000, metavar="TIME"
    )
    duration: float | None = option(None, "take as much: 10, 10s, 1:30", low=0, high=1_000_000_000, metavar="TIME")
    end: float | None = option(
        None, "end at this time of the input, instead of a duration", low=0, high=1_000_000_000, metavar="TIME"
    )

    def __post_init__(self) -> None:
        check(self)
        if self.tile and self.tile <= 2 * self.tile_overlap:
            raise ConfigError(f"tile = {self.tile}: must be more than twice tile_overlap ({self.tile_overlap}), or 0")
        for name in ("height", "width"):
            if self.scale is not None and getattr(self, name) is not None:
                raise ConfigError(f"scale = {self.scale} and {name} = {getattr(self, name)}: give one of the two")
        if self.guidance_start > self.guidance_end:
            raise ConfigError(
                f"guidance_start = {self.guidance_start}: must not be more than guidance_end ({self.guidance_end})"
            )
        if self.duration == 0:
            raise ConfigError("duration = 0: must be more than 0 seconds")
        if self.end is not None and self.duration is not None:
            raise ConfigError(f"duration = {self.duration:g} and end = {self.end:g}: give one of the two")
        if self.end is not None and self.end <= self.start:
            raise ConfigError(f"end = {self.end:g}: must be after start ({self.start:g})")
        _ = self.bits_a_second

    def __repr__(self) -> str:
        return differing(self)

    @property
    def until(self) -> float | None:
        """The end of the requested part in seconds of the input; None: the input's end."""
        return self.end if self.duration is None else self.start + self.duration

    @property
    def bits_a_second(self) -> int | None:
        """`bitrate` as a number; its letters are powers of 1000, as in ffmpeg."""
        if self.bitrate is None:
            return None
        match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)([kKMG]?)", self.bitrate.strip())
        bits = 0 if match is None else int(float(match[1]) * 1000 ** " KMG".index(match[2].upper() or " "))
        if not 1000 <= bits < 2**31:  # encoders have 32 bits for it
            raise ConfigError(f"bitrate = {self.bitrate!r}: expected bits a second such as 20M, from 1k to 2G")
        return bits

    @classmethod
    def preset(cls, preset: str | os.PathLike[str], /, **overrides: Any) -> Settings:
        """The settings of a preset, which is a name or the path of a TOML file, with some overrides.

        Raises:
            ConfigError: there is no such preset, the file is no TOML, a key is unknown, a value is out of range.
        """
        return cls(**layered(preset, _known(overrides, "settings")))

    @classmethod
    def presets(cls) -> dict[str, Settings]:
        """The presets that ship with vidup, by name."""
        return {name: cls.preset(name) for name in preset_names()}

    @staticmethod
    def models() -> dict[str, str]:
        """The values of `model` that have a name, each with a line of description; files and hub ids are others."""
        from vidup.engines import models

        return models()

    def replace(self, **changes: Any) -> Settings:
        """These settings with changes; the preset of another model is not applied.

        Raises:
            ConfigError: a key is unknown, a value is out of range.
        """
        gone = {name: None for names in _INSTEAD if names & changes.keys() for name in names}
        return dataclasses.replace(self, **{**gone, **_known(changes, "settings")})


@dataclass(frozen=True, kw_only=True, repr=False)
class Runtime:
    """Where and how a job runs, which decides no pixel beyond rounding."""

    device: str = option("auto", "cuda, cuda:1, mps or cpu; auto takes the first that is there")
    batch: int = option(0, "frames or tiles in one call of the model; 0 chooses", flags=("-b",), low=0, high=1024)
    compile: Literal["auto", "on", "off"] = option(
        "auto", "torch.compile the model; auto does with the diffusion models on cuda, for jobs that are long enough"
    )
    max_memory: str | None = option(None, "memory of the device that may be taken, such as 8G")
    offload: bool = option(False, "keep on the device only the part of the model that is at work")
    workers: int = option(
        1, "segments that are upscaled at once, each by a process of its own (needs ray)", low=1, high=1024
    )
    ray: str | None = option(None, "address of a running ray cluster")
    verify: Literal["full", "fast"] = option("full", "decode all of the result to prove it, or samples")
    strict: bool = option(False, "a stream that would be lost is an error")
    restart: bool = option(False, "forget what an earlier run of this job has done")
    keep_work: bool = option(False, "keep the job's folder, OUTPUT.vidup, after delivery")
    skip_done: bool = option(False, "leave out what was delivered and verified before")
    report: bool = option(
        False, "write OUTPUT.html after delivery, a page to look at: the result beside the input, and what it invents"
    )
    watch: str | None = option(
        None,
        "folder that keeps the newest finished picture as the job goes, after.jpg, and its source, before.jpg",
    )
    overwrite: bool = option(False, "replace the output if it exists", flags=("-y",))

    def __post_init__(self) -> None:
        check(self)
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,4})?", self.device):
            raise ConfigError(f"device = {shown(self.device)}: expected auto, cuda, cuda:1, mps or cpu")
        _ = self.memory_limit

    @staticmethod
    def devices() -> list[str]:
        """The devices of this machine; the first is that of ``auto``."""
        from vidup.engines import devices

        return devices()

    def __repr__(self) -> str:
        return differing(self)

    @property
    def memory_limit(self) -> int | None:
        """`max_memory` in bytes; its letters are powers of 1024."""
        if self.max_memory is None:
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", self.max_memory.strip(), re.IGNORECASE)
        size = float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ") if match is not None else 0
        if not 1 <= size < 2**63:
            raise ConfigError(f"max_memory = {shown(self.max_memory)}: expected a size such as 8G or 512M")
        if match is not None and not match[2] and size < _LEAST_BYTES:
            raise ConfigError(f"max_memory = {shown(self.max_memory)}: is {size:g} bytes; was {match[1]}G meant?")
        return int(size)


_LEAST_BYTES = 1 << 20  # a smaller number without a unit is taken for a mistake


DELIVERY: tuple[str, ...] = (
    *("start", "duration", "end", "matrix", "range", "deinterlace", "fps", "bake_rotation"),
    *("streams", "drop_streams", "no_audio", "no_subtitles", "muxer_options", "tolerate_errors"),
)
"""The settings that decide what has to be in the output, apart from its pictures."""


Given: TypeAlias = Settings | str | os.PathLike[str] | None
"""Settings, or a preset by its name or path; None: the defaults."""


def settings_of(given: Given) -> Settings:
    """Resolve settings; raises as `Settings.preset`."""
    if given is None or isinstance(given, Settings):
        return given or Settings()
    return Settings.preset(given)


_INSTEAD = ({"scale", "height", "width"}, {"duration", "end"})
"""Settings of the same thing: a given one replaces all of a preset's."""


def layered(preset: str | os.PathLike[str] | None, over: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a preset, if one is given, replaced by `over`, which is not checked."""
    below = _read_preset(preset) if preset is not None else {}
    gone = {name for names in _INSTEAD if names & over.keys() for name in names}
    return {**{name: value for name, value in below.items() if name not in gone}, **over}


def _read_preset(preset: str | os.PathLike[str]) -> dict[str, Any]:
    path = Path(preset)
    if path.suffix != ".toml":
        path = folder() / f"{preset}.toml"
        if not path.is_file():
            near = difflib.get_close_matches(str(preset).lower(), preset_names(), 1)
            raise ConfigError(
                f"preset {str(preset)!r} is not known: take one of {', '.join(preset_names())}"
                f", or a path that ends in .toml{f'; did you mean {near[0]}?' if near else ''}"
            )
    table = read_table(path)
    if path.parent == folder():
        table.pop("models", None)
    known = _known(table, f"preset {path}")
    try:
        Settings(**known)
    except ConfigError as error:
        raise ConfigError(f"preset {path}: {error}") from None
    return known


def _known(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    names = [spec.name for spec in fields(Settings)]
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the keys are {', '.join(names)}"
            raise ConfigError(f"{where}: unknown key {shown(key)}{hint}")
    return dict(table)
