"""Import the libraries of models late, and without torchvision where that is not needed or does not fit.

No model here uses torchvision, but spandrel imports it for two models that vidup refuses, and transformers wherever it
is installed. Its import takes as long as torch's, and fails if it was built for another torch, as the one on PyPI is
beside torch's CPU build.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from vidup.errors import EngineError, VidupError, first_line

_NAME = "torchvision"


def imported(name: str) -> Any:
    """Import a module.

    Raises:
        EngineError: it, or a library that it needs, cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except VidupError:
        raise
    except Exception as error:  # libraries that do not fit each other raise all kinds
        root: BaseException = error
        while (cause := root.__cause__ or root.__context__) is not None:
            root = cause
        raise EngineError(
            f"{name.rpartition('.')[2]}: a library that it needs cannot be imported ({type(root).__name__}:"
            f" {first_line(root)}); vidup doctor says which versions do not fit"
        ) from error


@contextmanager
def told(before: str, after: str = "") -> Iterator[None]:
    """Turn errors of libraries, which are of all kinds, into an EngineError: their first line between these words."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"{before}{first_line(error)}{after}") from error


def set_aside() -> bool:
    """Hide torchvision from other libraries if it was built for another torch: they then do without it.

    Returns:
        Whether it is hidden.
    """
    if _NAME not in sys.modules:
        found = importlib.util.find_spec(_NAME)
        if found is not None and found.submodule_search_locations and not _loads(found.submodule_search_locations[0]):
            sys.modules[_NAME] = None  # type: ignore[assignment]  # makes Python refuse the import
    return _NAME in sys.modules and sys.modules[_NAME] is None


def _loads(folder: str) -> bool:
    """Whether torchvision's library of operators can be loaded, or is missing, which torchvision tolerates."""
    try:
        for ending in ("so", "pyd", "dylib"):
            for library in Path(folder).glob(f"_C*.{ending}"):
                torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True


@contextmanager
def deferred() -> Iterator[None]:
    """Defer imports of torchvision in the block until its names are used."""
    if sys.modules.get(_NAME) is not None:
        yield
        return
    before, finder = {name: sys.modules.pop(name) for name in list(sys.modules) if name == _NAME}, _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == _NAME]:
            del sys.modules[name]
        sys.modules.update(before)


class _Finder:
    """Finds torchvision and its submodules as modules that have any name."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == _NAME else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing; importlib requires the method."""


class _Deferred(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Later(self.__name__, name)


class _Later:
    """Stands for a function or class of a module, which is imported when this is called or an attribute is used."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._real()(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def _real(self) -> Any:
        return getattr(importlib.import_module(self._module), self._name)
