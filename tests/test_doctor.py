"""``vidup doctor``: what is wrong with a machine, in lines, in JSON and in the exit code."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vidup import doctor
from vidup.cli import main
from vidup.doctor import Finding, fits


@pytest.mark.parametrize(
    ("version", "bounds", "expected"),
    [
        ("2.13.0+cpu", ">=2.6", True),
        ("2.5.1", ">=2.6", False),
        ("18.1.0", ">=18.1,<19", True),
        ("19.0.0", ">=18.1,<19", False),
        ("5.24.0", ">=4.56", True),
        ("4.56.0.dev0", ">=4.56", True),
        ("4.9", ">=4.56", False),
        ("1.0", "!=1", False),
        ("1.0", "", True),
    ],
)
def test_versions_and_bounds(version: str, bounds: str, expected: bool) -> None:
    assert fits(version, bounds) is expected


def test_this_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the import of diffusion's libraries, which other tests have done."""
    monkeypatch.setattr("vidup.engines.libraries.imported", lambda name: importlib.import_module("vidup.engines"))
    code = main(["doctor", "--json"])
    table = json.loads(capsys.readouterr().out)
    by_name = {one["name"]: one for one in table["findings"]}
    assert table["ready"] is (code == 0) and (code == 0) is all(one["state"] != "problem" for one in by_name.values())
    assert by_name["torch"]["found"].startswith(torch.__version__) and "libx264" in by_name["encoders"]["found"]
    assert "float32" in by_name["cpu"]["found"] and by_name["mini"]["state"] == "ok"


def test_what_is_wrong_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Iterator[Finding]:
        raise ImportError("no such thing\nand more")

    monkeypatch.setattr(doctor, "_LOOKS", (doctor._python, missing))
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[-1] == "not ready: 1 problem"
    assert lines[1].split(maxsplit=2) == ["problem", "missing", "ImportError: no such thing; mend what this names"]
    monkeypatch.setattr(doctor, "_LOOKS", (doctor._python,))
    assert main(["doctor"]) == 0 and capsys.readouterr().out.endswith("\nready\n")


def test_packages_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"old": "1.4", "new": "2.0", "opencv-python": "5", "opencv-python-headless": "5"}
    wanted = ["old>=1.5", "new>=1.5", "gone (>=3)", "more>=1; extra == 'checkpoint'", "lint>=9; extra == 'dev'"]

    def version(name: str) -> str:
        if name not in versions:
            raise doctor.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: wanted)
    found = {one.name: one for one in doctor._packages()}
    assert {name: one.state for name, one in found.items()} == {
        **{"old": "problem", "gone": "problem", "more": "note", "packages": "ok", "opencv": "note"}
    }
    assert found["old"].todo == 'pip install "old>=1.5"' and found["packages"].found == "new 2.0"


def test_a_card_that_torch_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [one.state for one in doctor._torch() if one.name == "nvidia"] == ["problem"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [one.state for one in doctor._torch() if one.name == "nvidia"] == ["note"]


def test_too_little_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    usage = type("Usage", (), {"free": 10**8})()
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert "problem" in {one.state for one in doctor._disk()}
