"""torchvision where its compiled operators are built for another torch.

A registry's torchvision is built for CUDA; beside torch's CPU build its library cannot be loaded, and then its import
fails at the first operator that it describes. That would take diffusers, transformers and spandrel along, which import
it, and of which no model here calls an operator.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import torch

_MOST = 32  # operators; it describes two without asking whether they are there


def declare() -> None:
    """Make torchvision importable: operators that its import describes and that torch does not know get a name.

    To call one is an error as before. Nothing happens where torchvision is not installed or its library can be loaded.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations or _loads(Path(found.submodule_search_locations[0])):
        return
    for _ in range(_MOST):
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = re.match(r"operator (torchvision::\w+) does not exist", str(error))
            if missing is None:  # whoever needs it says what is wrong
                return
            torch.library.define(missing[1], "(Tensor boxes) -> Tensor")
        except ImportError:
            return


def _loads(folder: Path) -> bool:
    """Whether the library of its operators can be loaded; torchvision goes on without it where it is not there."""
    try:
        for library in (*folder.glob("_C*.so"), *folder.glob("_C*.pyd"), *folder.glob("_C*.dylib")):
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True
