"""The files of presets."""

from __future__ import annotations

import functools
import os
import stat
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from vidup.errors import ConfigError, first_line

_MOST_BYTES = 1 << 20  # of a preset


def folder() -> Path:
    """The folder of the presets that ship with vidup."""
    packaged = Path(str(resources.files("vidup"))) / "configs"  # in a wheel
    return packaged if packaged.is_dir() else Path(__file__).resolve().parent.parent / "configs"  # in a checkout


def preset_names() -> list[str]:
    """The names of the presets that ship with vidup."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def read_table(path: Path) -> dict[str, Any]:
    """The table in a TOML file, unchecked; raises ConfigError."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _MOST_BYTES:  # opening a pipe would wait for its writer
            raise ConfigError(f"preset {path}: cannot be read: is no file, or one of more than {_MOST_BYTES} bytes")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"preset {path}: cannot be read: {first_line(error)}") from None


def brought(model: Any) -> dict[str, Any]:
    """The values of the preset for a model, see `_models`."""
    return _models().get(os.fspath(model), {}) if isinstance(model, (str, os.PathLike)) else {}


@functools.cache
def _models() -> dict[str, dict[str, Any]]:
    """Name of a model -> the values of the shipped preset whose key ``models`` contains it."""
    found = {}
    for name in preset_names():
        table = read_table(folder() / f"{name}.toml")
        found.update(dict.fromkeys(table.pop("models", []), table))
    return found
