"""What is decided of a device, for devices that are not here: every decision is a function of a few facts."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import loaded

from vidup.config import Runtime, Settings
from vidup.engines import Choice, memory
from vidup.engines.card import (
    ALLOCATOR,
    Card,
    allocator,
    card,
    choose_device,
    memory_format,
    precisions,
    wider,
)
from vidup.engines.compiling import compiles
from vidup.engines.memory import keep_to_limit, memory_limit, reserved
from vidup.engines.planner import Planner
from vidup.engines.vae import Vae, check
from vidup.errors import EngineError

GIGA = 2**30
HOPPER = Card("cuda", 80 * GIGA, True, True)
TURING = Card("cuda", 8 * GIGA, False, True)
WINDOWS = Card("cuda", 24 * GIGA, True, False)
MPS = Card("mps", 16 * GIGA, False, False)
CPU = Card("cpu", 16 * GIGA, True, True)
AMX = replace(CPU, matrix_units=True)
ALL = (HOPPER, TURING, WINDOWS, MPS, CPU)

full, half, brain = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("facts", "automatic", "bfloat16"),
    [
        (HOPPER, (half, half), (brain, brain)),
        (TURING, (half, half), (brain, full)),
        (WINDOWS, (half, half), (brain, brain)),
        (MPS, (full, full), (brain, full)),
        (CPU, (full, full), (brain, brain)),
    ],
)
def test_precisions(facts: Card, automatic: tuple[Any, Any], bfloat16: tuple[Any, Any]) -> None:
    assert precisions("auto", facts) == automatic
    assert precisions("bfloat16", facts) == bfloat16
    assert precisions("float16", facts) == (half, half)
    assert precisions("float32", facts) == (full, full)


def test_detail_takes_bfloat16_where_a_cpu_has_units_for_it() -> None:
    assert precisions("auto", AMX, detail=True) == (brain, brain)
    assert precisions("auto", AMX) == precisions("auto", CPU, detail=True) == (full, full)
    assert precisions("float32", AMX, detail=True) == (full, full)


def test_what_overflows_in_float16_has_another_precision() -> None:
    assert [wider(half, facts) for facts in ALL] == ["bfloat16", "float32", "bfloat16", "float32", "float32"]
    assert {wider(dtype, facts) for dtype in (full, brain) for facts in ALL} == {None}


def test_how_pictures_lie_in_memory() -> None:
    last, plain = torch.channels_last, torch.contiguous_format
    assert [memory_format(facts.kind, False) for facts in ALL] == [plain, plain, plain, plain, last]
    assert [memory_format(facts.kind, True) for facts in ALL] == [last, last, last, plain, last]


def test_what_is_compiled() -> None:
    found = [compiles("auto", facts, False) for facts in ALL]
    assert found == ["auto", "auto", "off", "off", "off"]
    assert {compiles("auto", facts, True) for facts in ALL} == {compiles("off", HOPPER, False)} == {"off"}
    assert {compiles("on", facts, False) for facts in ALL} == {"on"}
    with pytest.raises(EngineError, match="offload"):
        compiles("on", HOPPER, True)


def test_what_the_allocator_holds_is_planned_and_kept_low() -> None:
    assert allocator("linux", {}) == {ALLOCATOR: "expandable_segments:True"}
    assert not allocator("win32", {}) and not allocator("darwin", {})
    for name in (ALLOCATOR, "PYTORCH_ALLOC_CONF"):
        assert not allocator("linux", {name: "max_split_size_mb:64"})
    assert reserved("cpu", True) == reserved("mps", False) == 1
    assert 1 < reserved("cuda", False, "linux") < reserved("cuda", True, "linux") < reserved("cuda", False, "win32") < 2


def test_the_allocator_is_set_before_a_device_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr("sys.platform", "linux")
    for name in (ALLOCATOR, "PYTORCH_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    seen: list[str | None] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(seen.append(os.environ.get(ALLOCATOR))))
    choose_device("auto")
    assert seen[0] == "expandable_segments:True"


def test_what_may_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "card", lambda device: {"cuda": TURING, "cpu": CPU}[device.type])
    cuda, mps, cpu = (torch.device(kind) for kind in ("cuda", "mps", "cpu"))
    free, given = Runtime(), Runtime(max_memory="6G")
    assert memory_limit(free, cuda) == int(0.9 * 8 * GIGA) - 512 * 2**20
    assert memory_limit(given, cuda) == 6 * GIGA - 512 * 2**20
    assert memory_limit(free, cpu) == int(0.6 * 16 * GIGA) and memory_limit(given, mps) == 6 * GIGA


def test_a_card_of_8_gb_takes_the_true_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the architecture alone: a frame of 854x480 fits, compiled as well, and what is reserved is in the plan."""
    from vidup.engines import x4

    monkeypatch.setattr(x4, "card", lambda device: TURING)
    monkeypatch.setattr(memory, "card", lambda device: TURING)
    settings = Settings(temporal="off")
    device = torch.device("cuda")
    runtime = Runtime(compile="on")
    foreseen = x4.foresee(settings, runtime, device, 0)
    assert foreseen is not None and foreseen.compiled
    for compiled in (False, True):
        needs = replace(foreseen, compiled=compiled)
        planner = Planner(needs, settings, runtime)
        choice = planner.choose(480, 854)
        assert planner.memory(choice, 480, 854) <= memory_limit(runtime, device) < 8 * GIGA
        assert planner.choose(270, 480).batch == 1  # which fills a card
        tensors = Planner(replace(needs, device=torch.device("cpu"), compiled=False), settings, runtime)
        whole = Choice(1, 0, 4)
        weights = sum(needs.weights)
        more = (planner.memory(whole, 270, 480) - weights) / (tensors.memory(whole, 270, 480) - weights)
        assert more >= 1.1 - 1e-6


def test_a_limit_does_not_outlive_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    device, fractions = torch.device("cuda"), list[float]()
    monkeypatch.setattr(memory, "card", lambda device: TURING)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: fractions.append(round(share, 3))
    )
    first = keep_to_limit(Runtime(max_memory="6G"), device)
    second = keep_to_limit(Runtime(max_memory="4G"), device)
    keep_to_limit(Runtime(), device)()
    first()
    second()
    assert fractions == [0.75, 0.5, 0.5, 1.0]
    monkeypatch.setattr("vidup.engines.keep_to_limit", lambda runtime, device: lambda: fractions.append(2.0))
    upscaler = loaded(Settings(model="nearest"))
    upscaler.close()
    gc.collect()
    assert fractions[-1] == 2.0


@pytest.mark.parametrize(
    "words",
    [
        "GET was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    ],
)
def test_a_library_without_room_for_its_workspace_is_out_of_memory(words: str) -> None:
    assert memory.is_out_of_memory(RuntimeError(words))


def test_a_device_that_decodes_wrongly_is_found_at_load(tiny_x4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, host = loaded(Settings(model=str(tiny_x4), steps=1)).engine.vae, torch.device("cpu")
    assert isinstance(vae, Vae)
    check(vae, host)
    convolve, wrong = torch.nn.functional.conv2d, iter((True,))

    def once_wrong(x: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        answer = convolve(x, *arguments, **keywords)
        return answer.flip(-1) if x.shape[-1] == 32 and next(wrong, False) else answer

    monkeypatch.setattr(torch.nn.functional, "conv2d", once_wrong)
    with pytest.raises(EngineError, match=r"^device = 'cpu': decodes a small picture wrongly .*--device cpu$"):
        check(vae, host)


def test_the_facts_of_this_machine() -> None:
    found = card(torch.device("cpu"))
    assert found.kind == "cpu" and found.bfloat16 and found.memory > 2**28
