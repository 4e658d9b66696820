"""torchvision that is built for another torch, or broken: no model of vidup's needs it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidup.engines import libraries
from vidup.errors import EngineError

BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')\n"


@pytest.fixture
def torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of that name, found before an installed one."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchvision"}
    for name in before:
        del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "torchvision").mkdir()
    yield tmp_path / "torchvision"
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules.update(before)


def test_what_is_built_for_another_torch_looks_as_if_it_were_not_installed(torchvision: Path) -> None:
    """Which is what diffusers and transformers go by."""
    (torchvision / "_C.so").write_bytes(b"built for another torch")
    (torchvision / "__init__.py").write_text(BROKEN)
    with pytest.raises(RuntimeError, match="does not exist"):
        __import__("torchvision")
    assert libraries.set_aside() and importlib.util.find_spec("torchvision") is None
    assert libraries.set_aside(), "and again"


def test_what_fits_is_left_as_it_is(torchvision: Path) -> None:
    (torchvision / "__init__.py").write_text("raise AssertionError\n")
    assert not libraries.set_aside() and "torchvision" not in sys.modules
    assert importlib.util.find_spec("torchvision") is not None


@pytest.mark.parametrize("built", [True, False])
def test_what_is_imported_deferred_is_imported_once_it_is_used(torchvision: Path, built: bool) -> None:
    if not built:
        (torchvision / "_C.so").write_bytes(b"built for another torch")
        assert libraries.set_aside()
    (torchvision / "__init__.py").write_text("")
    (torchvision / "functional.py").write_text("def turn(x, by=1): return x + by\nclass Mode: NEAREST = 5\n")
    with libraries.deferred():
        from torchvision.functional import Mode, turn  # type: ignore[import-not-found, unused-ignore]
    assert ("torchvision" in sys.modules) is not built and "torchvision.functional" not in sys.modules
    if built:
        assert turn(1, by=2) == 3 and Mode.NEAREST == 5 and "torchvision.functional" in sys.modules
        with libraries.deferred():  # it is there now: no stand-in
            from torchvision.functional import Mode as real
        assert isinstance(real, type)
    else:
        with pytest.raises(ImportError):
            turn(1)


def test_a_checkpoint_needs_no_torchvision(torchvision: Path, tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    from vidup.config import Settings
    from vidup.engines import checkpoint

    (torchvision / "__init__.py").write_text(BROKEN)
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "spandrel"}
    try:
        assert checkpoint.scale(Settings(model=str(checkpoints["compact"]))) > 1
        assert "torchvision" not in sys.modules
    finally:  # other tests have the classes of before
        for name in [name for name in sys.modules if name.partition(".")[0] == "spandrel"]:
            del sys.modules[name]
        sys.modules.update(before)


def test_a_library_that_cannot_be_imported_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises, and however deep: diffusers says of its own errors only that there was one."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "outer.py").write_text(
        "try:\n    import inner\nexcept ImportError as error:\n    raise RuntimeError('Failed:\\nlook up') from error\n"
    )
    (tmp_path / "inner.py").write_text("from os import no_such_thing\n")
    words = r"^outer: a library .*\(ImportError: cannot import name 'no_such_thing'.*doctor"
    with pytest.raises(EngineError, match=words) as raised:
        libraries.imported("outer")
    assert "\n" not in str(raised.value)


@pytest.mark.skipif("CI" not in os.environ, reason="elsewhere optional parts may be left out")
def test_no_test_is_skipped_for_want_of_a_package() -> None:
    for name in ("ray", "spandrel"):
        __import__(name)
