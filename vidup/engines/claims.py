"""Check what the files of a model claim, before a model is built and memory is allocated."""

from __future__ import annotations

import json
import math
import pickletools
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vidup.errors import EngineError, first_line

_LARGEST_TABLE = 2**24  # bytes; an index of shards has some 100 kB
_LARGEST_NUMBER = 8192  # in a configuration, that is no size of a weight, such as a picture's side
_MOST_TIMESTEPS = 100_000
_LARGEST_PICKLE = 2**26  # bytes, without the weights, which are separate
_MOST_UNPACKED = 2**24  # more bytes than the file has: torch compresses programs, but not weights
_LEGACY_PICKLES = 5  # magic, version, system, the table, the names of its storages: before torch 1.6
# Calls that weights do not need and torch's reader would make; both allocate memory of a given size.
_ALLOCATING = re.compile(r"(builtins|__builtin__) bytearray|torch(\._C|\.cuda)? \w*(Tensor|TensorBase)")
_NUMBERED = re.compile(r"\d{5,}")


def read_table(path: Path) -> dict[str, Any]:
    """Read a JSON file that has to contain a table.

    Raises:
        EngineError: it contains something else, NaN or an infinity, or is too large.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        text = file.read(_LARGEST_TABLE + 1)
    if len(text) > _LARGEST_TABLE:
        raise EngineError(f"{path}: is larger than {_LARGEST_TABLE >> 20} MiB, expected a table of settings")
    try:
        found = json.loads(text)
        numbers = list(_numbers(found))
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{path}: is damaged: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise EngineError(f"{path}: holds a {type(found).__name__}, expected a table of settings")
    for _, number in numbers:
        if not math.isfinite(number):
            raise EngineError(f"{path}: holds {number}, which is no number to work with")
    return found


def check_config(path: Path, weights: Iterable[Path]) -> dict[str, Any]:
    """Read the configuration of a module, and compare it with the weights.

    A module has at most as many layers as its weights have tensors, is no wider, and has no negative size.

    Raises:
        EngineError: it claims otherwise, or is no table.
        OSError, SafetensorError: a file cannot be read.
    """
    config, shapes = read_table(path), [shape for file in weights for shape in weight_shapes(file).values()]
    widest = max([_LARGEST_NUMBER, *(side for shape in shapes for side in shape)])
    for name, number in _numbers(config):
        if abs(number) > (max(1, len(shapes)) if "layers" in name or "blocks" in name else widest):
            raise EngineError(f"{path}: {name} = {number}: its weights have {len(shapes)} tensors of sides to {widest}")
        if isinstance(number, int) and number < 0 and not name.endswith("_id"):  # -1 stands for no token
            raise EngineError(f"{path}: {name} = {number}: cannot be negative")
    for name, value in config.items():
        if isinstance(value, list) and len(value) > max(1, len(shapes)):
            raise EngineError(f"{path}: {name} has {len(value)} entries; its weights have {len(shapes)} tensors")
    return config


def check_schedule(path: Path) -> dict[str, Any]:
    """Read the configuration of a scheduler.

    Raises:
        EngineError: it is no table, or has too many timesteps.
    """
    config = read_table(path)
    for name, number in _numbers(config):
        if abs(number) > _MOST_TIMESTEPS:
            raise EngineError(f"{path}: {name} = {number}: is beyond {_MOST_TIMESTEPS}")
    return config


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the weights in a safetensors file, from its header.

    Raises:
        OSError, SafetensorError: it cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def check_pickle(path: Path) -> None:
    """Check that reading a file of torch's takes no more memory than the file has bytes.

    Raises:
        EngineError: it is compressed, or has calls that allocate memory.
        Exception: of all kinds, where it is damaged.
    """
    for pickle in _pickles(path):
        for operation, argument, _ in pickletools.genops(pickle):
            if operation.name == "GLOBAL" and _ALLOCATING.fullmatch(argument or ""):
                raise EngineError(f"model = {str(path)!r}: holds {argument} beside weights")


def _pickles(path: Path) -> Iterator[Any]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(_LEGACY_PICKLES):
                yield file
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > path.stat().st_size + _MOST_UNPACKED:
            raise EngineError(f"model = {str(path)!r}: is compressed, unlike torch's own weights: {unpacked} bytes")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                if entry.file_size > _LARGEST_PICKLE:
                    raise EngineError(f"model = {str(path)!r}: {entry.filename} has {entry.file_size} bytes")
                yield archive.read(entry)


def check_weights(path: Path, weights: Mapping[Any, Any]) -> None:
    """Check that a table contains weights: names and plain tensors, none larger than the data that was read.

    Raises:
        EngineError: it does not.
    """
    for name, value in weights.items():
        if not isinstance(name, str):
            raise EngineError(f"model = {str(path)!r}: {name!r:.40} is no name of a weight")
        if isinstance(value, dict) and any(isinstance(inner, torch.Tensor) for inner in value.values()):
            check_weights(path, value)
        if not isinstance(value, torch.Tensor):
            continue
        if _NUMBERED.search(name):
            raise EngineError(f"model = {str(path)!r}: {name:.80} is no name of a layer that any model has")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise EngineError(f"model = {str(path)!r}: {name:.80} is no plain tensor")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            claim = "x".join(map(str, value.shape))
            raise EngineError(f"model = {str(path)!r}: {name:.80} claims {claim} numbers, more than the file holds")


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in a value from JSON, each with its key, or that of its list."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


DIFFUSION = "model.diffusion_model."
"""The prefix of the UNet's weights in Stable Diffusion's own files."""


def is_stable_diffusion(path: Path) -> bool:
    """Whether a safetensors file contains a Stable Diffusion model, by the names in its header."""
    if path.suffix.lower() != ".safetensors":
        return False
    try:
        names = weight_shapes(path)
    except (OSError, SafetensorError):
        return False  # loading it will raise a clear error
    return any(name.startswith(DIFFUSION) for name in names)
