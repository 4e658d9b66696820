"""`vidup bench`: every stage is there, the sums agree, and the estimate follows from them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from vidup import bench
from vidup.bench import subjects
from vidup.bench.stopwatch import Measured, describe
from vidup.config import Runtime, Settings
from vidup.engines import Choice, Place, architecture, load, tracing
from vidup.engines.vae import Vae, limits
from vidup.errors import ConfigError

MODEL = {"to RGB", "UNet", "VAE", "the engine's rest, anchor, size", "to planes", "encode"}


@pytest.fixture
def run() -> Callable[..., Any]:
    """The command, and what it prints."""
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)

    def call(*words: str) -> Any:
        arguments = parser.parse_args(["--device", "cpu", *words])
        text = bench.report(arguments)
        return json.loads(text) if "--json" in words else text

    return call


def test_every_stage_is_timed(run: Callable[..., Any]) -> None:
    found = run("--preset", "mini", "--frame-size", "48x32", "--frames", "3", "--json")
    assert found["size"] == [48, 32] and found["output"] == [192, 128] and found["frames"] == 3
    assert set(found["stages"]) == MODEL and all(seconds >= 0 for seconds in found["stages"].values())
    assert found["seconds"] == pytest.approx(sum(found["stages"].values()))
    assert found["frames_per_second"] == pytest.approx(1 / found["seconds"])
    assert found["evaluations"] == 1 and found["device_bytes"] is None
    assert 0 < found["planned_bytes"] < found["host_bytes"]
    assert found["share"] == pytest.approx(found["flops_a_second"] / found["device_flops_a_second"])
    assert found["encoded_bytes"] > 0


def test_an_engine_without_a_model(run: Callable[..., Any]) -> None:
    found = run("--model", "bicubic", "--scale", "2", "--frame-size", "48x32", "--frames", "1", "--json")
    assert found["output"] == [96, 64] and found["flops"] is None and found["share"] is None
    assert "engine, anchor, size" in found["stages"] and "UNet" not in found["stages"]
    assert "FLOP" not in run("--model", "bicubic", "--frame-size", "48x32", "--frames", "1")


def test_random_weights_need_no_model(run: Callable[..., Any]) -> None:
    size = ("--frame-size", "16x16", "--frames", "2", "--batch", "2", "--steps", "2")
    words = ("--random-weights", "--narrower", "8", *size, "--json")
    plain = run(*words)
    assert plain["evaluations"] == 2 and plain["batch"] == 2
    guided = run(*words, "--prompt", "a harbour", "--guidance-end", "0.5", "--tile", "0")
    assert guided["evaluations"] == 3 and guided["flops"] > plain["flops"]  # one of the two steps is guided
    assert "TFLOP/s" in "\n".join(describe(measured(guided)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--random-weights", "--model", "bicubic"), "bicubic"),
        (("--random-weights", "--preset", "x2"), "x2"),
        (("--workers", "4"), "workers"),
        (("--ray", "auto"), "ray"),
        (("--frame-size", "99999x99999"), "99999x99999"),
    ],
)
def test_what_bench_does_not_do_is_refused(run: Callable[..., Any], words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(*words)


def test_a_file_that_is_turned_or_odd(run: Callable[..., Any], make_clip: Callable[..., Path]) -> None:
    clip = make_clip(rotate=90)
    words = "--model", "bicubic", "--input", str(clip), "--frames", "1", "--json"
    found = run(*words, "--scale", "2.3")
    assert found["output"] == [148, 110]  # of 147.2 x 110.4
    found = run(*words, "--scale", "2", "--bake-rotation")
    assert found["size"] == [48, 64] and found["output"] == [96, 128]


def test_flops_of_the_x2_upscaler_are_those_of_a_run(tiny_x2: Path) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    engine = load(Settings(model=str(tiny_x2), steps=3, prompt="a", tile=128), Runtime(device="cpu"))
    choice = Choice(1, 128)
    flops, evaluations = engine.flops(100, 250, choice)
    assert evaluations == 3 * 2 * 3  # steps, texts, tiles
    clip = torch.zeros(1, 3, 128, 256)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        engine(clip, Place(height=128, width=256), choice)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as encoder:
        for _ in range(3):
            engine.vae.module.encode(clip[..., :128])  # type: ignore[attr-defined]
    assert flops == pytest.approx(counter.get_total_flops() - encoder.get_total_flops(), rel=0.02)


def measured(table: dict[str, Any]) -> Measured:
    return Measured(**{field.name: table[field.name] for field in fields(Measured)})


def test_a_file_is_estimated(run: Callable[..., Any], make_clip: Callable[..., Path]) -> None:
    clip = make_clip()
    found = run("--preset", "mini", "--input", str(clip), "--frames", "3", "--json")
    whole = found["estimate"]
    assert whole["frames"] == 12 and found["frames"] == 3
    assert set(found["stages"]) == MODEL | {"decode"}
    # The first frame is computed whole, of the others that share; all else is of every frame.
    assert 0 < whole["computed"] <= 1 and whole["planning_seconds"] > 0
    model = found["stages"]["UNet"] + found["stages"]["VAE"]
    else_ = found["seconds"] - model + whole["planning_seconds"]
    assert whole["seconds"] == pytest.approx(12 * else_ + (1 + 11 * whole["computed"]) * model)
    assert 0 < whole["seconds_overlapped"] <= whole["seconds"]
    assert whole["output_bytes"] == round(12 * found["encoded_bytes"])
    assert whole["disk_bytes"] == 2 * whole["output_bytes"] + clip.stat().st_size
    told = run("--preset", "mini", "--input", str(clip), "--frames", "1")
    assert "12 frames" in told and f"about {100 * whole['computed']:.0f} % of the pixels will be computed" in told


@pytest.mark.parametrize("size", ["48", "axb", "4x4"])
def test_a_size_that_is_none_is_refused(run: Callable[..., Any], size: str) -> None:
    with pytest.raises(ConfigError, match=size):
        run("--model", "bicubic", "--frame-size", size)


def test_flops_are_those_of_a_run() -> None:
    """Counted on the meta device as in a true forward, and by hand for one convolution."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    engine = subjects.random_engine(Settings(prompt="a", steps=1), Runtime(device="cpu"), narrower=8)
    counted = tracing.unet_flops(engine.unet.module, architecture.TOKENS, 24, 32)
    batch = torch.zeros(1, 7, 24, 32)
    # By matrix products: torch up to 2.13 does not count the CPU's fused attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        engine.unet(batch, torch.tensor(1), False, class_labels=torch.tensor([20]))
    # The first and the last convolution alone are known by hand: 32 channels at this width.
    assert counted > 2 * 9 * 24 * 32 * (7 * 32 + 32 * 4)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)

    vae = architecture.random_vae(torch.device("cpu"), torch.float32, 8)
    decode = Vae(vae)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        decode(torch.zeros(1, 4, 24, 32), torch.device("cpu"), limits(torch.device("meta")))
    assert tracing.vae_flops(decode, 24, 32, limits(torch.device("meta"))) == counter.get_total_flops()


def test_made_up_frames_move_and_repeat() -> None:
    one, two = subjects.synthetic(40, 24, 2), subjects.synthetic(40, 24, 2)
    assert [plane.shape for plane in one[0].planes] == [(24, 40), (12, 20), (12, 20)]
    assert (one[0].planes[0] != one[1].planes[0]).any()
    assert all((a == b).all() for a, b in zip(one[1].planes, two[1].planes, strict=True))
