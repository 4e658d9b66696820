"""The libraries that models stand on: imported late, and without torchvision where that is not needed or does not fit.

No model here calls anything of torchvision. spandrel imports it for two models that vidup refuses, transformers
wherever it is installed. Its import takes as long as torch's, and fails where its library is built for another torch,
as a registry's is beside torch's CPU build.
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
    """A module, with all that it stands on.

    Raises:
        EngineError: something of that cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except VidupError:
        raise
    except Exception as error:  # a library that does not fit another one fails in its own way
        root: BaseException = error
        while (cause := root.__cause__ or root.__context__) is not None:
            root = cause
        raise EngineError(
            f"{name.rpartition('.')[2]}: a library that it needs cannot be imported ({type(root).__name__}:"
            f" {first_line(root)}); vidup doctor says which versions do not fit"
        ) from error


def set_aside() -> bool:
    """Have torchvision look as if it were not installed where it is built for another torch.

    diffusers and transformers then do without it, instead of failing.

    Returns:
        Whether it was set aside, now or before.
    """
    if _NAME not in sys.modules:
        found = importlib.util.find_spec(_NAME)
        if found is not None and found.submodule_search_locations and not _loads(found.submodule_search_locations[0]):
            sys.modules[_NAME] = None  # type: ignore[assignment]  # Python's own mark of what is not to be imported
    return _NAME in sys.modules and sys.modules[_NAME] is None


def _loads(folder: str) -> bool:
    """Whether the library of its operators can be loaded; torchvision goes on without it where it is not there."""
    try:
        for ending in ("so", "pyd", "dylib"):
            for library in Path(folder).glob(f"_C*.{ending}"):
                torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True


@contextmanager
def deferred() -> Iterator[None]:
    """What is imported of torchvision in here is imported for good once it is used."""
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
    """Finds torchvision, and whatever is imported of it, as modules that hold any name."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == _NAME else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to be run."""


class _Deferred(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Later(self.__name__, name)


class _Later:
    """A function or a class of a module that is imported once this is called, or asked for something."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._real()(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def _real(self) -> Any:
        return getattr(importlib.import_module(self._module), self._name)
