"""Which files a command means, and whether they can be used: found out before torch is loaded, let alone a model."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from vidup.config import MODELS, WEIGHTS, Settings
from vidup.errors import ConfigError, EngineError, MediaError
from vidup.media.containers import STILLS, STILLS_READ, check_ending

_VIDEOS = {
    *(".3gp", ".asf", ".avi", ".dv", ".f4v", ".flv", ".h264", ".hevc", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogg", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
}
"""Endings of the videos that are looked for in a folder; one that is named may have any."""

_HUB_ID = r"[\w.-]+/[\w.-]+"


def expand(inputs: Sequence[str], output: str | None) -> list[Path]:
    """The files that are meant, where a folder stands for the videos and pictures in it, by their names.

    Args:
        output: where they are to go, as it was typed.

    Raises:
        ConfigError: a folder holds neither, or is to be its own output.
    """
    found: list[Path] = []
    for each in map(Path, inputs):
        if not each.is_dir():
            found.append(each)
            continue
        if output is None or _is_same(each, Path(output)):
            raise ConfigError(f"{each}: is a folder; give another one for the outputs with -o FOLDER")
        inside = sorted(path for path in each.iterdir() if path.suffix.lower() in _VIDEOS | STILLS | STILLS_READ)
        found += [path for path in inside if path.is_file() and not path.name.startswith(".")]
        if not inside:
            raise ConfigError(f"{each}: is a folder without videos or pictures")
    return found


def folder_of(inputs: Sequence[str], output: str | None) -> Path | None:
    """The folder that many inputs go to; None where the output is a file or stands beside its input."""
    many = len(inputs) > 1 or any(Path(each).is_dir() for each in inputs)
    if output is None or not (many or output.endswith(("/", "\\")) or Path(output).is_dir()):
        return None
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; many inputs need a folder as output")
    if not folder.exists() and folder.suffix.lower() in _VIDEOS | STILLS:
        raise ConfigError(f"{folder}: is the name of a file; many inputs need a folder as output")
    return folder


def check(sources: Sequence[Path], output: Path | None, settings: Settings, overwrite: bool) -> None:
    """See that what was named is there, before anything is loaded.

    Args:
        output: a file; None where the outputs are named after the inputs.

    Raises:
        ConfigError, MediaError, EngineError: a file, a folder or a model is not there or cannot be what it is to be.
    """
    first, *others = sources
    if output is None and len(others) == 1 and first.exists() and not others[0].exists():
        raise ConfigError(
            f"{others[0]}: there is no such file; if the output is to have that name, write -o {others[0]}"
        )
    for source in sources:
        if not source.exists():
            raise MediaError(f"{source}: there is no such file")
    if output is not None:
        check_pair(first, output, overwrite or output.with_name(f"{output.name}.vidup").exists())
        check_ending(first, output)
    check_settings(settings)


def check_settings(settings: Settings) -> None:
    """See that the models and folders that the settings name are there, or may be.

    Raises:
        ConfigError, EngineError: one is not.
    """
    check_model(settings.model)
    for name in ("vae", "tokenizer"):
        value = getattr(settings, name)
        if value is not None and not Path(value).exists() and (name == "tokenizer" or not re.fullmatch(_HUB_ID, value)):
            raise ConfigError(f"{name} = {value!r}: there is no such folder")


def check_pair(source: Path, target: Path, overwrite: bool) -> None:
    """See that an input is there and its output can be.

    Raises:
        ConfigError: the output is a folder, a device, the input, or there already, or its folder is not there.
        MediaError: the input is not there, or the output's folder cannot be written to.
        OSError: a name that is too long, a folder that must not be entered.
    """
    if not source.exists():
        raise MediaError(f"{source}: there is no such file")
    if target.is_dir():
        raise ConfigError(f"{target}: is a folder; give a file name for the output")
    if target.exists() and target.samefile(source):
        raise ConfigError(f"{target}: is the input; give the output another name")
    if target.exists() and not target.is_file():
        raise ConfigError(f"{target}: is a pipe or a device; give a file name for the output")
    if target.exists() and not overwrite:
        raise ConfigError(f"{target}: exists; add -y (overwrite) to replace it, or give another name")
    if not target.parent.is_dir():
        raise ConfigError(f"{target.parent}: there is no such folder for the output; make it first")
    if not os.access(target.parent, os.W_OK):
        raise MediaError(f"{target.parent}: cannot be written to; choose another folder for the output")


def check_model(model: str) -> None:
    """See that a model is one of vidup's, a file, a folder, or may be a hub id.

    Raises:
        EngineError: it is none of them.
    """
    if model in MODELS or Path(model).exists():
        return
    if Path(model).suffix.lower() in WEIGHTS:
        raise EngineError(f"model = {model!r}: there is no such file")
    if not re.fullmatch(_HUB_ID, model):
        near = difflib.get_close_matches(model, MODELS, 1)
        raise EngineError(
            f"model = {model!r}: is no engine of vidup's, no file or folder and no hub id (owner/name);"
            + (f" did you mean {near[0]}?" if near else " vidup list shows the engines")
        )


def _is_same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)
