"""Find the files that a command means, and check that they can be used, before torch or a model is loaded."""

from __future__ import annotations

import difflib
import glob
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from vidup.config import MODELS, WEIGHTS, Settings
from vidup.errors import ConfigError, EngineError, MediaError
from vidup.media.containers import ANIMATIONS, CONTAINERS, STILLS, STILLS_READ, check_ending
from vidup.media.sequences import READ, existing, find, is_sequence, name, pattern_of

log = logging.getLogger(__name__)

VIDEOS = {
    *CONTAINERS,
    *(".3gp", ".asf", ".avi", ".dv", ".f4v", ".flv", ".h264", ".hevc", ".m2ts", ".m2v", ".mpeg", ".mpg", ".mts"),
    *(".mxf", ".nut", ".ogg", ".ogv", ".ts", ".vob", ".wmv", ".y4m"),
}
"""Endings of the videos that are found in a folder; a file that is named may have any other."""

_TAKEN = VIDEOS | STILLS | STILLS_READ | ANIMATIONS | READ

_HUB_ID = r"[\w.-]+/[\w.-]+"


def expand(inputs: Sequence[str], output: str | None) -> list[Path]:
    """The files that are meant by inputs.

    A folder or a glob (``"frames/*.png"``) with only numbered pictures, without a gap, is one sequence; else it means
    the videos and pictures in it, in the order of their names.

    Args:
        output: the output as it was typed.

    Raises:
        ConfigError: a folder has no such files, or would be its own output.
        MediaError: a glob matches no file.
    """
    found: list[Path] = []
    for each in map(Path, inputs):
        if each.is_dir():
            inside = sorted(path for path in each.iterdir() if path.suffix.lower() in _TAKEN)
            inside = [path for path in inside if path.is_file() and not path.name.startswith(".")]
            pattern = pattern_of(inside)
            if pattern is None and (output is None or _is_same(each, Path(output))):
                raise ConfigError(f"{each}: is a folder; give another one for the outputs with -o FOLDER")
            if not inside:
                raise ConfigError(f"{each}: is a folder without videos or pictures")
        elif glob.has_magic(str(each)) and not each.exists():
            inside = sorted(map(Path, glob.glob(str(each))))  # noqa: PTH207  # of any folder
            pattern = pattern_of(inside)
            if not inside:
                raise MediaError(f"{each}: no file has such a name")
        else:
            inside, pattern = [each], None
        if pattern is not None:
            log.info("%s: %d numbered pictures, taken as one sequence: %s", each, len(inside), pattern)
        found += [pattern] if pattern is not None else inside
    return found


def folder_of(sources: Sequence[Path], output: str | None) -> Path | None:
    """The folder for outputs with default names; None where the output is a file, or none is given."""
    if output is None:
        return None
    folder = Path(output)
    to_pictures = len(sources) == 1 and is_sequence(sources[0]) and not folder.suffix
    if not (len(sources) > 1 or output.endswith(("/", "\\")) or folder.is_dir() or to_pictures):
        return None
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; many inputs need a folder as output")
    if not folder.exists() and folder.suffix.lower() in VIDEOS | STILLS:
        raise ConfigError(f"{folder}: is the name of a file; many inputs need a folder as output")
    return folder


def check(sources: Sequence[Path], output: Path | None, settings: Settings, overwrite: bool) -> None:
    """Check that all that is named exists, before anything is loaded; the output is None where it has a default name.

    Raises:
        ConfigError, MediaError, EngineError: a file, a folder or a model is missing or unsuitable.
    """
    first, *others = sources
    if output is None and len(others) == 1 and first.exists() and not others[0].exists():
        raise ConfigError(
            f"{others[0]}: there is no such file; if the output is to have that name, write -o {others[0]}"
        )
    check_there(*sources)
    if output is not None:
        check_pair(first, output, overwrite or output.with_name(f"{output.name}.vidup").exists())
        check_ending(first, output)
    check_settings(settings)


def check_there(*sources: str | Path) -> None:
    """Check that files exist, and of numbered pictures all; raises MediaError."""
    for source in map(Path, sources):
        if is_sequence(source):
            find(source)
        elif not source.exists():
            if match := re.match(r"(\w{2,}):/+", str(source)):
                raise MediaError(f"{source}: is an address ({match[1]}), and vidup reads files: download it first")
            raise MediaError(f"{source}: there is no such file")


def check_settings(settings: Settings) -> None:
    """Check that models and folders of settings exist, or can on the hub; raises ConfigError, EngineError."""
    _check_model(settings.model)
    for part in ("vae", "tokenizer"):
        value = getattr(settings, part)
        if value is not None and not Path(value).exists() and (part == "tokenizer" or not re.fullmatch(_HUB_ID, value)):
            raise ConfigError(f"{part} = {value!r}: there is no such folder")


def _check_model(model: str) -> None:
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


def check_pair(source: Path, target: Path, overwrite: bool) -> None:
    """Check that an input exists and its output can be written.

    Raises:
        ConfigError: the output is a folder, a device or the input, or exists, or its folder does not exist.
        MediaError: the input does not exist, or the output's folder cannot be written to.
        OSError: a name is too long, a folder is not accessible.
    """
    check_there(source)
    if is_sequence(target):
        _check_numbered(source, target, overwrite)
        return
    if target.is_dir():
        raise ConfigError(f"{target}: is a folder; give a file name for the output")
    if target.exists() and target.samefile(source):
        raise ConfigError(f"{target}: is the input; give the output another name")
    if target.exists() and not target.is_file():
        raise ConfigError(f"{target}: is a pipe or a device; give a file name for the output")
    if target.exists() and not overwrite:
        raise ConfigError(f"{target}: exists; add -y (overwrite) to replace it, or give another name")
    _check_folder(target.parent)


def _check_numbered(source: Path, target: Path, overwrite: bool) -> None:
    """Do what `check_pair` does for numbered pictures, whose folder will be created."""
    if source == target or (
        is_sequence(source) and source.name == target.name and _is_same(source.parent, target.parent)
    ):
        raise ConfigError(f"{target}: is the input; give the output another name")
    if (numbers := existing(target)) and not overwrite:
        raise ConfigError(
            f"{name(target, numbers[0])}: exists; add -y (overwrite) to replace it, or give another folder"
        )
    _check_folder(target.parent if target.parent.exists() else target.parent.parent)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder for the output; make it first")
    if not os.access(folder, os.W_OK):
        raise MediaError(f"{folder}: cannot be written to; choose another folder for the output")


def is_there(output: Path) -> bool:
    """Whether an output, or one of its pictures, exists."""
    return bool(existing(output)) if is_sequence(output) else output.is_file()


def _is_same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)
