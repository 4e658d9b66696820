"""Values of settings: the declaration of a field, and the check of a value."""

from __future__ import annotations

import numbers
import os
import types
from dataclasses import field, fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vidup.errors import ConfigError

_UNIONS = (Union, types.UnionType)


def option(
    default: Any,
    help: str,
    *,
    flags: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    metavar: str | None = None,
) -> Any:
    """A field of a dataclass with its default, help line, short flags and range."""
    metadata = {"help": help, "flags": flags, "low": low, "high": high, "metavar": metavar}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata, hash=False)
    return field(default=default, metadata=metadata)


def hints(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, by name; not to be changed."""
    return _hints(kind)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)  # cached, as it compiles each annotation, and a job creates hundreds of settings


def check(config: Any) -> None:
    """Check the types and ranges of a dataclass's fields; numbers and paths of other libraries become Python's.

    Raises:
        ConfigError: a value has the wrong type or is out of its range.
    """
    kind: Any = type(config)
    types = hints(kind)
    for spec in fields(config):
        hint = types[spec.name]
        value = _plain(getattr(config, spec.name), hint)
        object.__setattr__(config, spec.name, value)
        if not _fits(value, hint):
            raise ConfigError(f"{spec.name} = {shown(value)}: expected {_describe(hint)}")
        low, high = spec.metadata["low"], spec.metadata["high"]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and low is not None and not low <= value <= high:  # false for nan, too
            raise ConfigError(f"{spec.name} = {shown(value)}: expected {low} to {high}")


def changes(config: Any, plain: Any) -> dict[str, Any]:
    """The fields of a dataclass in which it differs from another."""
    given = {spec.name: getattr(config, spec.name) for spec in fields(config)}
    return {name: value for name, value in given.items() if value != getattr(plain, name)}


def differing(config: Any) -> str:
    """A dataclass as the call that makes it, without what has its default."""
    words = [f"{name}={value!r}" for name, value in changes(config, type(config)()).items()]
    return f"{type(config).__name__}({', '.join(words)})"


def shown(value: Any) -> str:
    """A value as text for a message, shortened where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write numbers of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in _UNIONS:
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items())
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) != float("inf")
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _plain(value: Any, hint: Any) -> Any:
    """The value as Python's type, if it is a number of NumPy, an integer written as 20.0, or a path."""
    kind = scalar(hint)
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__name__ in ("bool", "bool_") and kind is bool:  # NumPy's
        return bool(value)
    if kind not in (int, float) or isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    number = float(value)
    return int(number) if kind is int and number.is_integer() else number


def scalar(hint: Any) -> Any:
    """The first type of a union: `float` of ``float | None``."""
    return get_args(hint)[0] if get_origin(hint) in _UNIONS else hint


def words(hint: Any) -> tuple[str, ...]:
    """The words that are allowed instead of a number: ``auto`` of ``int | Literal["auto"]``."""
    others = get_args(hint)[1:] if get_origin(hint) in _UNIONS else ()
    return tuple(word for one in others if get_origin(one) is Literal for word in get_args(one))


def _describe(hint: Any) -> str:
    if words(hint):
        return f"{', '.join(words(hint))} or {_describe(scalar(hint))}"
    hint = scalar(hint)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    if get_origin(hint) is dict:
        return "a table of texts"
    return {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}[hint]
