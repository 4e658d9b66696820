"""torchvision whose compiled operators were built for another torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vidup.engines import operators


@pytest.fixture
def torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of that name, found before an installed one."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchvision"}
    for name in before:
        del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "torchvision").mkdir()
    yield tmp_path / "torchvision"
    sys.modules.pop("torchvision", None)
    sys.modules.update(before)


def test_a_library_for_another_torch_does_not_end_the_import(torchvision: Path) -> None:
    name = f"torchvision::of_{torchvision.parent.name}"
    (torchvision / "_C.so").write_bytes(b"built for another torch")
    (torchvision / "__init__.py").write_text(
        "import torch\n"
        + "".join(f"torch.library.register_fake('{name}_{which}', lambda boxes: boxes)\n" for which in (1, 2))
    )
    with pytest.raises(RuntimeError, match="does not exist"):
        __import__("torchvision")
    operators.declare()
    assert Path(sys.modules["torchvision"].__file__ or "").parent == torchvision
    operator = getattr(torch.ops.torchvision, name.removeprefix("torchvision::") + "_1")
    with pytest.raises(NotImplementedError):
        operator(torch.zeros(1))


@pytest.mark.parametrize("code", ["raise RuntimeError('of another kind')", "import no_such_module", None])
def test_what_else_is_wrong_is_left_to_whoever_needs_it(torchvision: Path, code: str | None) -> None:
    """Without a library that cannot be loaded nothing is imported."""
    (torchvision / "__init__.py").write_text(f"{code or 'raise AssertionError'}\n")
    if code is not None:
        (torchvision / "_C.so").write_bytes(b"")
    operators.declare()
    assert "torchvision" not in sys.modules


@pytest.mark.skipif("CI" not in os.environ, reason="elsewhere optional parts may be left out")
def test_no_test_is_skipped_for_want_of_a_package() -> None:
    for name in ("ray", "spandrel"):
        __import__(name)
