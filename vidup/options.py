"""The command line's options, made from the fields of `Settings` and `Runtime`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vidup.config import Config, Settings, layered, scalar


def add_options(parser: argparse.ArgumentParser, config: type[Config], only: tuple[str, ...] | None = None) -> None:
    """Add one option for each field of `config`, or for some; only those that are typed appear in the namespace."""
    hints = get_type_hints(config)
    group = parser.add_argument_group(config.__name__.lower())
    for spec in fields(config):
        if only is not None and spec.name not in only:
            continue
        hint, many = scalar(hints[spec.name]), spec.metadata
        shown = "" if _default(spec) in (None, "", {}, False) else f" (default: {_default(spec)})"
        keywords: dict[str, Any] = {
            "dest": spec.name,
            "default": argparse.SUPPRESS,
            "help": (many["help"] + shown).replace("%", "%%"),
        }
        if hint is bool:
            keywords["action"] = "store_true"
        elif get_origin(hint) is Literal:
            keywords["choices"] = get_args(hint)
        elif get_origin(hint) is dict:
            keywords |= {"action": _KeyValue, "metavar": many["metavar"]}
        else:
            keywords |= {"type": hint, "metavar": hint.__name__.upper()}
        names = ["--" + spec.name.replace("_", "-")]
        group.add_argument(*many["flags"], *names, **keywords)


class _KeyValue(argparse.Action):
    """Collects ``-e KEY=VALUE`` into one dictionary."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        key, equals, value = str(values).partition("=")
        if not key or not equals:
            parser.error(f"{option_string} {values}: expected KEY=VALUE")
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), key: value})


def from_options(config: type[Config], typed: Mapping[str, Any], preset: str | None = None) -> Config:
    """Defaults, then the preset that the model brings along, then the one that was given, then what was typed."""
    names = {spec.name for spec in fields(config)}
    given = {key: value for key, value in typed.items() if key in names}
    if config is Settings:
        given = layered(preset, given)
    return config(**given)


def _default(spec: Field[Any]) -> Any:
    return {} if spec.default_factory is not None and spec.metadata["metavar"] == "KEY=VALUE" else spec.default
