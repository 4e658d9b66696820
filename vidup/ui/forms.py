"""Settings as form fields, form values as settings, and the equal command line."""

from __future__ import annotations

import json
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import vidup
from vidup import options
from vidup.errors import ConfigError, MediaError, VidupError
from vidup.ui.safety import Folders
from vidup.values import changes, hints, scalar, words

_CONFIGS = (vidup.Settings, vidup.Runtime)
_NOT_HERE = ("overwrite", "watch")
"""Not set in the form."""
_MOST_PRESETS = 50
_FILES = ("model", "vae", "tokenizer")
"""Settings that may be paths."""


def described() -> Iterator[dict[str, Any]]:
    """Each field, for the page."""
    groups = {name: title for title, names in options.GROUPS.items() if names is not options.FIRST for name in names}
    for config in _CONFIGS:
        for spec in fields(config):
            if spec.name in _NOT_HERE:
                continue
            hint = hints(config)[spec.name]
            kind = scalar(hint)
            is_choice = get_origin(kind) is Literal
            yield {
                "name": spec.name, "help": spec.metadata["help"],
                "kind": "choice" if is_choice else _KINDS.get(kind, "text"),
                "choices": get_args(kind) if is_choice else words(hint),
                "default": {} if get_origin(kind) is dict else spec.default,
                "first": spec.name in options.FIRST, "group": groups[spec.name],
            }  # fmt: skip


_KINDS: dict[Any, str] = {bool: "flag", int: "integer", float: "number"}


def presets(folders: Folders) -> Iterator[dict[str, Any]]:
    """The presets that ship with vidup, and those in the first folder, each with a summary and its settings."""
    for name, settings in vidup.Settings.presets().items():
        yield _preset(name, settings)
    for path in sorted(folders.roots[0].glob("*.toml"))[:_MOST_PRESETS]:
        with suppress(VidupError):  # another program's file, or a link to the outside
            yield _preset(str(path), vidup.Settings.preset(folders.file(str(path))))


def _preset(name: str, settings: vidup.Settings) -> dict[str, Any]:
    return {"name": name, "line": options.preset_line(settings), "settings": _changes(settings, vidup.Settings())}


def _changes(settings: vidup.Settings, plain: vidup.Settings) -> dict[str, Any]:
    return {name: value for name, value in changes(settings, plain).items() if value is not None}


def save(name: str, form: Form, folders: Folders, replace: bool) -> Path:
    """Write settings, with those of their own preset, as a preset into the first folder.

    Raises ConfigError if the name is taken or invalid, or the file would not be read as it was meant; MediaError.
    """
    if not re.fullmatch(r"[\w][\w .+-]{0,60}", name) or name in vidup.Settings.presets():
        raise ConfigError(
            f"name = {name[:80]!r}: expected letters, digits, spaces, . + - and _, and none of vidup's own"
        )
    path = folders.within(f"{name.removesuffix('.toml')}.toml")
    if path.exists() and not replace:
        raise ConfigError(f"{path}: exists; replace it, or give another name")
    model = form.settings.model
    values = {"model": model, **_changes(form.settings, vidup.Settings(model=model))}
    lines = [f"{key} = {_toml(value)}\n" for key, value in values.items()]
    part = path.with_name(f".{secrets.token_hex(8)}.toml")
    try:
        part.write_text("".join(lines), encoding="utf-8")
        if vidup.Settings.preset(part) != form.settings:
            raise ConfigError(f"{path}: would not be read as it was meant; give these settings on the command line")
        part.replace(path)
    except OSError as error:
        raise MediaError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    return path


def _toml(value: Any) -> str:
    """A value in TOML, whose strings, numbers and booleans are JSON's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(text)}" for key, text in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@dataclass(frozen=True)
class Form:
    """The values of a form."""

    settings: vidup.Settings
    runtime: vidup.Runtime
    values: Mapping[str, Any]
    """The given values, without the preset."""
    preset: str | None = None

    def arguments(self, source: Path, output: Path, overwrite: bool = False) -> list[str]:
        """The equal command line, as arguments of ``vidup``."""
        preset = ["--preset", self.preset] if self.preset else []
        given = {**self.values, **({"overwrite": True} if overwrite else {})}
        return ["upscale", str(source), "-o", str(output), *preset, *options.as_options(given)]


def read(given: Any, folders: Folders) -> Form:
    """Parse the values of a form, by the names of their fields, and ``preset``; raises ConfigError, Refused.

    Strings are read as on the command line; None and an empty string mean that it is not given.
    """
    if not isinstance(given, Mapping):
        raise ConfigError("settings: expected an object of names and values")
    known = {spec.name: config for config in _CONFIGS for spec in fields(config) if spec.name not in _NOT_HERE}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name != "preset" and name not in known:
            raise ConfigError(f"settings: unknown name {str(name)[:80]!r}")
        if name != "preset" and value is not None and value != "":
            values[name] = options.read_option(known[name], name, value) if isinstance(value, str) else value
        if name in _FILES and isinstance(values.get(name), str):
            values[name] = _located(values[name], folders)
    preset = given.get("preset") or None
    if preset is not None and not isinstance(preset, str):
        raise ConfigError(f"preset = {preset!r}: expected a text")
    if preset is not None and preset not in vidup.Settings.presets():
        preset = str(folders.file(preset)) if preset.endswith(".toml") else preset
    settings = options.from_options(vidup.Settings, values, preset)
    for name in _FILES:  # a preset may set them
        if isinstance(getattr(settings, name), str):
            _located(getattr(settings, name), folders)
    for name in ("encoder_options", "muxer_options"):
        _check_pairs(name, getattr(settings, name))
    return Form(settings, options.from_options(vidup.Runtime, values), values, preset)


def _located(value: str, folders: Folders) -> str:
    """A model's name or hub id unchanged, or the absolute path of a file or folder; raises Refused."""
    if value in vidup.Settings.models():
        return value
    path, inside = Path(value), folders.roots[0] / value
    is_path = "\0" in value or value[0] in "~." or path.is_absolute() or ".." in path.parts
    if is_path or path.exists() or inside.exists():  # the first: relative to the current folder
        return str(folders.within(value))
    return value


def _check_pairs(name: str, pairs: Mapping[str, str]) -> None:
    """Refuse options of encoders and muxers that may name files."""
    for key, value in pairs.items():
        if any(mark in value for mark in "/\\"):
            raise ConfigError(f"{name}: {key}={value[:80]!r}: may name a file; give it on the command line")


def shown(arguments: Sequence[str]) -> str:
    """The command line, quoted for a shell."""
    words_typed = ["vidup", *arguments]
    return subprocess.list2cmdline(words_typed) if sys.platform == "win32" else shlex.join(words_typed)
