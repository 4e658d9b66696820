"""Options of the command line that are fields of `Settings` and `Runtime`; `arguments` has the others."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin

from vidup.config import Config, Runtime, Settings, layered
from vidup.errors import ConfigError
from vidup.values import hints, scalar, words

FIRST = ("model", "scale", "height", "prompt", "crf", "start", "duration", "overwrite")
"""The options that most people need; the help shows them first, with ``--output`` and ``--preset``."""

GROUPS: dict[str, tuple[str, ...]] = {
    "options that matter first": FIRST,
    "size": ("scale", "height", "width"),
    "part of the input": ("start", "duration", "end"),
    "the picture": (
        *("prompt", "negative_prompt", "guidance_scale", "guidance_start", "guidance_end", "steps", "noise_level"),
        *("quantiser", "seed", "sampler", "anchor"),
    ),
    "from frame to frame": ("temporal", "trust", "refresh"),
    "the model": ("model", "revision", "dtype", "vae", "vae_attention", "tokenizer", "tile", "tile_overlap"),
    "encoding": ("codec", "crf", "bitrate", "pix_fmt", "encoder_options", "muxer_options", "segment_frames"),
    "how the input is taken": ("matrix", "range", "deinterlace", "fps", "bake_rotation", "tolerate_errors"),
    "streams": ("streams", "drop_streams", "no_audio", "no_subtitles", "strict"),
    "machine": ("device", "batch", "compile", "max_memory", "offload", "workers", "ray"),
    "job": ("verify", "restart", "keep_work", "skip_done", "report", "watch", "overwrite"),
}
"""Title -> the options that the help shows under it; one that is listed twice is shown under the first title."""


def add_options(
    parser: argparse.ArgumentParser,
    *configs: type[Settings] | type[Runtime],
    only: Sequence[str] | None = None,
    first: Any = None,
) -> None:
    """Add an option for each field of `configs`; only options that are typed appear in the namespace.

    Args:
        only: the names of the fields; None: all.
        first: the group of the help for those in `FIRST`; None: they are in their other groups.
    """
    specs = {spec.name: (spec, hints(config)[spec.name]) for config in configs for spec in fields(config)}
    left = {name: found for name, found in specs.items() if only is None or name in only}
    for title, names in GROUPS.items():
        shown = [name for name in names if name in left]
        if (names is FIRST and first is None) or not shown:
            continue
        group = first if names is FIRST else parser.add_argument_group(title)
        for name in shown:
            _add_option(group, *left.pop(name))
        if "width" in shown:
            group.add_argument(
                "--size", action=_Size, default=argparse.SUPPRESS, metavar="WxH", help="--width and --height in one"
            )
    assert not left, f"options without a group of the help: {', '.join(left)}"


def _add_option(group: Any, spec: Field[Any], hint: Any) -> None:
    kind, about = scalar(hint), spec.metadata
    default = "" if spec.default in (MISSING, None, "", False) else f" (default: {spec.default})"
    keywords: dict[str, Any] = {
        "dest": spec.name,
        "default": argparse.SUPPRESS,
        "help": (about["help"] + default).replace("%", "%%"),
    }
    if kind is bool:
        keywords["action"] = "store_true"
    elif get_origin(kind) is Literal:
        keywords["choices"] = get_args(kind)
    elif get_origin(kind) is dict:
        keywords |= {"action": "append", "type": _pair, "metavar": about["metavar"]}
    else:
        metavar = about["metavar"] or kind.__name__.upper()
        keywords |= {"type": _reader(spec, hint), "metavar": "|".join([*words(hint), metavar])}
    group.add_argument(*about["flags"], "--" + spec.name.replace("_", "-"), **keywords)


def _reader(spec: Field[Any], hint: Any) -> Callable[[str], Any]:
    """A function that reads the value of a field, which may be one of some words."""
    named, kind = words(hint), scalar(hint)
    read = _TYPES.get(spec.metadata["metavar"], kind if kind in (int, float) else str)

    def either(text: str) -> Any:
        return text if text in named else read(text)

    either.__name__ = read.__name__  # argparse shows it where it refuses
    return either


_UNITS = {"": 1.0, "s": 1.0, "ms": 0.001, "min": 60.0, "h": 3600.0}


def _seconds(text: str) -> float:
    """``65.5``, ``65.5s``, ``500ms``, ``1:05.5``, ``00:01:05.5``."""
    if match := re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|min|h|)", text.strip()):
        return float(match[1]) * _UNITS[match[2]]
    if match := re.fullmatch(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d(?:\.\d*)?)", text.strip()):
        return int(match[1] or 0) * 3600 + int(match[2]) * 60 + float(match[3])
    raise argparse.ArgumentTypeError(f"{text!r} is no time: seconds (65.5, 65.5s) or 00:01:05.5 are")


def _lines(text: str) -> int:
    """``1080``, ``1080p``, ``4k``."""
    if match := re.fullmatch(r"(\d{1,9})[pP]?", text.strip()):
        return int(match[1])
    if text.strip().lower() in _NAMED_LINES:
        return _NAMED_LINES[text.strip().lower()]
    raise argparse.ArgumentTypeError(f"{text!r} is no number of lines: 1080 or 1080p is")


def _pair(text: str) -> tuple[str, str]:
    """``KEY=VALUE``."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected KEY=VALUE")
    return key, value


_NAMED_LINES = {"4k": 2160, "8k": 4320}


def _factor(text: str) -> float:
    """``4``, ``4x``, ``x4``, ``400%``."""
    word = text.strip().lower()
    number, divisor = (word[:-1], 100) if word.endswith("%") else (word.removeprefix("x").removesuffix("x"), 1)
    with suppress(ValueError):
        return float(number) / divisor
    raise argparse.ArgumentTypeError(f"{text!r} is no scale: 4 or 4x is")


_TYPES: dict[str, Callable[[str], Any]] = {"TIME": _seconds, "LINES": _lines, "FACTOR": _factor}
"""Metavar of an option -> function that reads its values, which people write in several ways."""


class _Size(argparse.Action):
    """``--size 1920x1080``: width and height."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        match = re.fullmatch(r"(\d{1,9})\s*[xX×*:]\s*(\d{1,9})", str(values).strip())
        if match is None:
            parser.error(f"argument {option_string}: {str(values)!r} is no size: 1920x1080 is")
        namespace.width, namespace.height = int(match[1]), int(match[2])


def as_options(values: Mapping[str, Any]) -> Iterator[str]:
    """The command line for values, which are named as their fields; None and False are left out."""
    for name, value in values.items():
        option = "--" + name.replace("_", "-")
        pairs = [f"{key}={text}" for key, text in value.items()] if isinstance(value, dict) else [value]
        for one in pairs:
            if one is True:
                yield option
            elif one is not None and one is not False:
                text = f"{one:g}" if isinstance(one, float) and float(f"{one:g}") == one else str(one)
                # A value that begins with a dash would be taken for an option.
                yield from [f"{option}={text}"] if text.startswith("-") else [option, text]


def read_option(config: type[Settings] | type[Runtime], name: str, text: str) -> Any:
    """Read the value of a field of `config` as on the command line, unchecked; raises ConfigError."""
    (spec,) = (spec for spec in fields(config) if spec.name == name)
    hint = hints(config)[name]
    kind = scalar(hint)
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return dict(map(_pair, text.split())) if get_origin(kind) is dict else _reader(spec, hint)(text)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{name}: {error}") from None
    except ValueError:
        return text  # the check of the field will refuse it, and say what is expected


def from_options(config: type[Config], typed: Mapping[str, Any], preset: str | None = None) -> Config:
    """A config from the command line: typed values replace the preset's, those the model's preset and the defaults."""
    names = {spec.name for spec in fields(config)}
    given: dict[str, Any] = {
        key: dict(value) if isinstance(value, list) else value for key, value in typed.items() if key in names
    }
    if config is Settings:
        given = layered(preset, given)
    return config(**given)


def preset_line(settings: Settings) -> str:
    """The main settings of a preset, in a line."""
    return (
        f"model {settings.model}, {settings.sampler}, {settings.steps} steps, guidance {settings.guidance_scale:g},"
        f" noise level {settings.noise_level}"
    )
