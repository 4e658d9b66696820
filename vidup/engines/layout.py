"""The files of a model: which are required, downloaded, and decide pixels, in the hub's layout; fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vidup.engines import DISTILLED, HOMES, X2, X4


@dataclass(frozen=True)
class Layout:
    """The parts of a kind of model."""

    example: str
    """A hub id with this layout."""
    schedulers: tuple[str, ...]
    weights: tuple[str, ...] = ("unet", "vae", "text_encoder")
    """The parts with weights that are used."""

    def missing(self, files: Iterable[str]) -> list[str]:
        """The names of the required files that are not among `files`."""
        found = set(files)
        needed = ["model_index.json", "tokenizer/vocab.json", "tokenizer/merges.txt"]
        needed += [f"{part}/config.json" for part in self.weights]
        needed += [f"{name}/scheduler_config.json" for name in self.schedulers]
        return [name for name in needed if name not in found] + [
            f"{part}/*.safetensors" for part in self.weights if not any(_is_weight(name, part) for name in found)
        ]

    def deciding(self, files: Iterable[str], half: bool) -> list[str]:
        """The files that decide pixels, sorted: all small ones, and weights, of the fp16 variant if `half`."""
        files = list(files)
        small = [name for name in files if self._is_small(name)]
        return sorted({*small, *(name for part in self.weights for name in weight_files(files, part, half))})

    def _is_small(self, name: str) -> bool:
        part, _, rest = name.rpartition("/")
        return (
            name == "model_index.json"
            or part in ("tokenizer", *self.schedulers)
            or (part in self.weights and rest == "config.json")
        )


LAYOUTS = {
    X4: Layout(HOMES["x4"], ("scheduler", "low_res_scheduler")),
    X2: Layout(HOMES["x2"], ("scheduler",)),
    # Its decoder and its ControlNet, which read the frame before, are not used.
    DISTILLED: Layout("Jamichsu/Stream-DiffVSR", ("scheduler",), ("unet", "text_encoder")),
}
"""Name of a pipeline -> layout."""


def files_of(folder: Path) -> list[str]:
    """The files of a folder and of the folders in it, as the hub names them."""
    paths = (*folder.glob("*"), *folder.glob("*/*"))
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


def weight_files(files: Iterable[str], part: str, half: bool) -> list[str]:
    """The files with a part's weights, of the requested variant or else the existing one."""
    files = list(files)
    mark = ".fp16." if variant(files, part, half) == "fp16" else None
    return [
        name
        for name in files
        if name.startswith(f"{part}/")
        and name.endswith((".safetensors", ".safetensors.index.json"))
        and (mark in name if mark else ".fp16." not in name)
    ]


def variant(files: Iterable[str], part: str, half: bool) -> str | None:
    """``fp16`` where a part's weights exist in half precision, and that is requested or all there is; else None."""
    weights = [name for name in files if _is_weight(name, part)]
    has_half = any(".fp16." in name or ".fp16-" in name for name in weights)
    has_full = any(".fp16" not in name for name in weights)
    return "fp16" if has_half and (half or not has_full) else None


def _is_weight(name: str, part: str) -> bool:
    return name.startswith(f"{part}/") and name.endswith(".safetensors")


_WHOLE = 4 * 2**20
_PIECE, _PIECES = 16 * 2**10, 256


def fingerprint(paths: Iterable[Path]) -> str:
    """A hash of the names, sizes and contents of files; large ones are sampled from head to tail.

    It takes milliseconds for gigabytes; a change of a few bytes between the samples is not detected.

    Args:
        paths: files, in an order that does not depend on the machine; their folders do not count.

    Returns:
        32 hexadecimal digits.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                digest.update(file.read())
                continue
            for index in range(_PIECES):
                file.seek((size - _PIECE) * index // (_PIECES - 1))
                digest.update(file.read(_PIECE))
    return digest.hexdigest()
