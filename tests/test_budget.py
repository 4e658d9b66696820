"""What the planner says of memory, against what is truly alive; and that a frame's way stays on its device."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from conftest import enlarge, narrow_nets
from torch.utils._python_dispatch import TorchDispatchMode

import vidup
from vidup import Color, Frame, Upscaler
from vidup.bench.subjects import random_engine
from vidup.config import Runtime, Settings
from vidup.engines import Choice, Needs, Place, memory
from vidup.engines import planner as planning
from vidup.engines.hub import Parts
from vidup.engines.interpolate import Interpolation
from vidup.engines.memory import (
    KEPT,
    LiveBytes,
    is_out_of_memory,
    keep_freed,
    keep_to_limit,
    keeps_freed,
    memory_limit,
    release_freed,
    reserved,
)
from vidup.engines.planner import Planner
from vidup.engines.tracing import trace_unet
from vidup.engines.vae import Limits, Vae
from vidup.engines.x4 import DiffusionX4, random_parts
from vidup.job.crew import OnRay
from vidup.picture import color, footage, temporal

META = torch.device("meta")
PLACE = Place(height=24, width=40)


def picture(count: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 24, 40, generator=torch.Generator().manual_seed(0))


class Uploads(TorchDispatchMode):
    """Notes what is copied from the host to a device."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" != answer.device.type:
            self.sizes.append(answer.numel())
        return answer


def parts(unet_dtype: torch.dtype, vae_dtype: torch.dtype, narrower: int = 1) -> Parts:
    """The x4 upscaler on the meta device."""
    return random_parts(META, unet_dtype, vae_dtype, narrower)


class TestDevices:
    """The meta device stands for a GPU: an operation over two devices fails there, and so does reading a number back,
    which on a GPU would be a wait in the loop."""

    @pytest.mark.parametrize(
        ("settings", "batch"),
        [({}, 2), ({"guidance_scale": 1.0}, 1), ({"tile": 128}, 2), ({"vae_attention": "windowed"}, 1)],
    )
    def test_a_frames_way_neither_waits_nor_leaves_the_device(
        self, settings: dict[str, Any], batch: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch, "equal", lambda one, other: False)  # of the prompts, once a job
        monkeypatch.setattr("vidup.engines.finite.is_finite", lambda pictures: True)  # once a clip, when it is awaited
        runtime = Runtime(compile="off", max_memory="64G", batch=batch)
        options = {"prompt": "a", "steps": 2, "dtype": "float16", **settings}
        with META:
            unet, vae = narrow_nets()
        model = parts(torch.float16, torch.bfloat16, 8)
        model = replace(model, unet=unet.half().eval(), vae=vae.bfloat16().eval(), texts=model.texts[..., :24])
        engine = DiffusionX4(Settings(**options), runtime, META, model)
        upscaler = Upscaler(engine.settings, runtime)
        upscaler.__dict__["engine"] = engine
        planes = (np.zeros((134, 200), np.uint8), *(np.zeros((67, 100), np.uint8),) * 2)
        frame = Frame(planes, "yuv420p", Color(1, 1, 1, False), 0, 1, Fraction(1, 25))
        upscaler.choose(134, 200)
        for _ in range(2):  # what is needed for all frames comes with the first
            with Uploads() as uploads:
                rgb = torch.stack([color.to_rgb(frame, META)] * batch)
                picture = upscaler._enlarge(rgb)
                codes = color.to_codes(picture[0], "yuv420p", frame.color)
        assert picture.shape == (batch, 3, 536, 800) and picture.device == META
        assert all(plane.device == META for plane in codes)
        assert uploads.sizes == [one.size for one in planes]
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # as any wait would
            picture.cpu()

    def test_what_is_carried_and_estimated_copies_no_numbers_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A tensor that is made of numbers on a device is a copy, which waits for it; dispatch does not see it."""

        def refuse(*arguments: Any, **keywords: Any) -> NoReturn:
            raise AssertionError("numbers are copied to the device")

        low_res, picture = torch.empty(2, 3, 36, 50, device=META), torch.empty(2, 3, 144, 200, device=META)
        footage.error(low_res, [])  # loads the estimator
        monkeypatch.setattr(torch, "tensor", refuse)
        monkeypatch.setattr(torch.Tensor, "new_tensor", refuse)
        assert footage.held(picture, low_res, 2, [9.0, 4.0]).shape == picture.shape
        assert footage.distance(low_res, [9.0, 4.0]).shape == (2,)
        assert temporal.warp(picture[0], torch.empty(2, 36, 50, device=META)).shape == picture[0].shape


class TestBudget:
    """The planner against the bytes that are truly alive."""

    @pytest.mark.parametrize(("batch", "tile"), [(1, 0), (2, 0), (2, 104)])
    @pytest.mark.parametrize("guided", [False, True])
    def test_it_is_within_15_percent_of_a_run(self, engine: Any, batch: int, tile: int, guided: bool) -> None:
        one = engine(steps=2, guidance_scale=5.0 if guided else 1.0, temporal="off")
        choice = one.choose(40, 160, Choice(batch, tile))
        planned = one.planner.memory(choice, 40, 160)  # first: the planner's own tracing would be counted, too
        clip = torch.rand(batch, 3, 40, 160)
        with LiveBytes() as live:
            enlarge(one, clip, Place(height=40, width=160))
        assert planned == pytest.approx(live.peak + sum(one.engine.needs.weights) + clip.nbytes, rel=0.15)

    def test_it_is_within_15_percent_at_full_size(self) -> None:
        model = parts(torch.bfloat16, torch.bfloat16)
        assert sum(parameter.numel() for parameter in model.unet.parameters()) == 473_398_020
        assert sum(parameter.numel() for parameter in model.vae.parameters()) == 55_325_927
        settings = Settings(prompt="a", steps=1, dtype="bfloat16", guidance_scale=1.0, temporal="off")
        one = Upscaler(settings, Runtime(compile="off", max_memory="999G"))
        one.__dict__["engine"] = DiffusionX4(settings, one.runtime, META, model)
        planned = one.planner.memory(one.choose(272, 480, Choice(1, 0)), 272, 480)
        clip = torch.empty(1, 3, 272, 480, device=META)
        with LiveBytes() as live:
            enlarge(one, clip, Place(height=272, width=480))
        assert planned == pytest.approx(live.peak + sum(one.engine.needs.weights) + clip.nbytes, rel=0.15)

    def test_activations_are_proportional_to_pixels(self, engine: Any) -> None:
        one = engine()
        single, both = (trace_unet(one.engine.unet.module, 77, guided) for guided in (False, True))
        assert both == pytest.approx(2 * single, rel=0.05)
        batch = torch.rand(1, 7, 96, 160)
        with torch.inference_mode(), LiveBytes() as live:
            one.engine.unet(batch, torch.tensor(1), True, class_labels=torch.tensor([20, 20]))
        assert live.peak == pytest.approx(both * 96 * 160, rel=0.05)

    def test_graphs_keep_their_memory_while_the_decoder_works(self, engine: Any) -> None:
        plain, choice = engine(temporal="off").planner, Choice(1, 0)

        def taken(**changes: Any) -> int:
            needs = replace(plain.needs, device=torch.device("cuda"), weights=(0, 0), loading=0, **changes)
            runtime = Runtime(device="cpu", max_memory="8G")
            return Planner(needs, plain.settings, runtime).memory(choice, 64, 64)

        working, decoding = taken(decoded=0.0, decoding=None), taken(frame=0.0, window=0.0)
        assert taken() == max(working, decoding) > min(working, decoding) > 0
        graphs = reserved("cuda", graphs=True) / reserved("cuda", graphs=False)
        assert taken(compiled=True) == pytest.approx(graphs * working + decoding, rel=1e-6)

    def test_the_limit_is_kept_and_what_is_given_too(self, engine: Any) -> None:
        free = engine(Runtime(device="cpu", max_memory="999G"), temporal="off")
        whole = free.choose(1080, 1920)
        assert whole == Choice(1, 0, 4)
        need = free.planner.memory(whole, 1080, 1920)
        for share in (0.8, 0.5, 0.35):
            tight = engine(Runtime(device="cpu", max_memory=str(int(share * need))), temporal="off")
            choice = tight.choose(1080, 1920)
            assert tight.planner.memory(choice, 1080, 1920) <= share * need
        assert choice.tile > 0
        given = engine(Runtime(device="cpu", max_memory=str(int(0.35 * need)), batch=3))
        assert given.choose(1080, 1920).batch == 3
        small = engine(Runtime(device="cpu", max_memory="1M"), tile=200).choose(1080, 1920)
        assert (small.batch, small.tile) == (1, 200)
        planner = engine(tile=200).planner
        assert planner.smaller(Choice(4, 200), 1080, 1920) == Choice(2, 200)
        less = Choice(1, 200)
        while (smaller := planner.smaller(less, 1080, 1920)) is not None:
            assert smaller.tile == 200 and smaller.keep < less.keep  # the decoder may still keep less
            less = smaller

    def test_the_decoder_works_frugally_where_it_must(self, engine: Any) -> None:
        free = engine(Runtime(device="cpu", max_memory="999G"))
        tight = engine(Runtime(device="cpu", max_memory=str(free.planner.memory(Choice(1, 0, 2), 1080, 1920))))
        assert tight.choose(1080, 1920).keep < free.choose(1080, 1920).keep == 4
        tight.choose(24, 40, Choice(1, 0, 1))
        torch.testing.assert_close(enlarge(tight, picture(), PLACE), enlarge(free, picture(), PLACE), atol=1e-4, rtol=0)


def test_the_decoder_keeps_less_before_a_frame_is_cut(
    engine: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for home in ("x4", "diffusion"):
        monkeypatch.setattr(f"vidup.engines.{home}.limits", lambda device, keep=8: Limits(2**16, 2**16, keep))
    one, clip = engine(steps=1), torch.rand(1, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    expected = one(clip)
    assert one.choose(48, 80) == Choice(1, 0, 4)
    decode = Vae.__call__

    def short(self: Vae, latents: torch.Tensor, device: torch.device, limits: Limits) -> torch.Tensor:
        if limits.keep > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(self, latents, device, limits)

    monkeypatch.setattr(Vae, "__call__", short)
    torch.testing.assert_close(one(clip), expected, atol=1e-4, rtol=0)
    assert one.choose(48, 80) == Choice(1, 0, 2)
    assert "memory ran out: from here on 1 at a time, whole frames, and the VAE keeps less" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_the_planner_against_the_device(compiled: str) -> None:
    """The true architecture with random weights: what CUDA's allocator counts is within 15 % of the plan."""
    engine = Upscaler(Settings(prompt="a", steps=2), Runtime(device="cuda", compile=compiled))
    engine.__dict__["engine"] = random_engine(engine.settings, engine.runtime)
    choice = engine.choose(272, 480, Choice(1, 0))
    clip = torch.rand(1, 3, 272, 480, device="cuda")
    enlarge(engine, clip, Place(height=272, width=480))  # workspaces, code
    torch.cuda.reset_peak_memory_stats()
    enlarge(engine, clip, Place(height=272, width=480))
    taken = torch.cuda.max_memory_reserved()
    assert engine.planner.memory(choice, 272, 480) == pytest.approx(taken, rel=0.15)
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "options", [{"max_memory": "8G", "compile": "off"}, {"max_memory": "8G", "compile": "on"},
                {"max_memory": "4G", "offload": True}],
)  # fmt: skip
def test_a_small_card_is_enough(options: dict[str, Any]) -> None:
    """854x480 at full width with the allocator held to what a small card has: it neither fails nor backs off."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    runtime = Runtime(device="cuda", **options)
    lift = keep_to_limit(runtime, torch.device("cuda", torch.cuda.current_device()))
    upscaler = Upscaler(Settings(prompt="a", steps=2), runtime)
    try:
        upscaler.__dict__["engine"] = random_engine(upscaler.settings, runtime)
        choice = upscaler.choose(480, 854)
        for _ in range(3):
            upscaler(torch.rand(choice.batch, 3, 480, 854))
        assert upscaler.choose(480, 854) == choice
        assert torch.cuda.max_memory_reserved() <= (runtime.memory_limit or 0)
    finally:
        upscaler.close()
        lift()
        torch._dynamo.reset()


class TestMemory:
    @pytest.mark.parametrize(
        ("error", "is_want"),
        [
            (torch.OutOfMemoryError("CUDA out of memory"), True),
            (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
            (RuntimeError("Invalid buffer size: 9.75 GB"), True),
            (MemoryError(), True),
            (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        ],
    )
    def test_want_of_memory_is_known_by_type_words_and_cause(self, error: Exception, is_want: bool) -> None:
        assert is_out_of_memory(error) is is_want
        wrapped = RuntimeError("backend failed")
        wrapped.__cause__ = error
        assert is_out_of_memory(wrapped) is is_want

    def test_workers_share_what_a_device_has(self) -> None:
        runtime = Runtime(device="cpu", max_memory="8G", workers=2)
        plain, cpu = Settings(model="nearest"), torch.device("cpu")
        shared, alone = (memory_limit(one, cpu) for one in (OnRay(plain, runtime)._of_worker(), runtime))
        assert shared == alone // 2
        for one in (replace(runtime, workers=1), replace(runtime, ray="auto")):  # a cluster's machines have their own
            assert OnRay(plain, one)._of_worker() is one


_FREED = """
import resource
import torch
from vidup.engines.memory import keep_freed, release_freed

def faults() -> int:
    "Of 16,384 pages: 64 MiB, more than glibc keeps by itself."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed(torch.device("cpu"), 2**28)
faults()
print(min(faults() for _ in range(3)))
release_freed(torch.device("cpu"))
print(faults())
"""


class TestWhatTheProcessorKeeps:
    """glibc keeps what is freed, so that the system does not clear the same memory for every layer of a model."""

    CPU = torch.device("cpu")

    @pytest.mark.skipif(not keeps_freed(torch.device("cpu")), reason="needs glibc")
    def test_what_is_freed_is_taken_again(self) -> None:
        """In a process of its own: what else a process allocated decides where glibc takes memory from."""
        done = subprocess.run([sys.executable, "-c", _FREED], capture_output=True, text=True, check=True, timeout=120)
        kept, released = (int(word) for word in done.stdout.split())
        assert kept < 1000 and released > 10_000

    def test_elsewhere_nothing_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert not keeps_freed(META)

        def unknown(_: str) -> str:
            raise ValueError("unrecognized configuration name")

        for answer in (unknown, lambda _: None, lambda _: "musl"):
            monkeypatch.setattr(memory.os, "confstr", answer, raising=False)
            assert not keeps_freed(self.CPU)
            keep_freed(self.CPU, 2**30)
            release_freed(self.CPU)

    def test_the_plan_has_it_where_there_is_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As much as is at work, to a bound; what is at work is chosen without it."""
        monkeypatch.setattr(planning, "keeps_freed", lambda device: device.type == "cpu")
        settings, choice = Settings(model="bicubic"), Choice(1, 0)
        needs = Needs(self.CPU, frame=100.0, window=1000.0, weights=(5000, 0))

        def planned(limit: str, needs: Needs = needs) -> int:
            planner = Planner(needs, settings, Runtime(device="cpu", max_memory=limit))
            assert planner.memory(choice, 100, 100) == 11_005_000
            return planner.planned(choice, 100, 100)

        assert planned("99M") == 2 * 11_000_000 + 5000 and planned("15M") == 11_005_000
        assert planned("99M", replace(needs, device=META)) == 11_005_000
        large = Planner(needs, settings, Runtime(device="cpu", max_memory="999G"))
        assert large.kept(choice, 10_000, 10_000) == KEPT

    def test_the_upscaler_goes_by_the_plan(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[int] = []
        monkeypatch.setattr("vidup.upscaler.keep_freed", lambda _, size: told.append(size))
        with Upscaler(Settings(model="bicubic", scale=2), Runtime(device="cpu")) as upscaler:
            choice = upscaler.choose(30, 40)
            assert upscaler.choose(30, 40) is choice
            assert told == [upscaler.planner.kept(choice, 30, 40)]


def test_what_is_chosen_for_one_size_is_not_for_another(
    make_clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory runs out over the first of two files: that is kept for it, and the second has its own choice."""
    enlarged = Interpolation.__call__

    def short(self: Interpolation, clip: torch.Tensor, place: Place, choice: Choice) -> torch.Tensor:
        if clip.shape[-2] == 48 and choice.batch > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return enlarged(self, clip, place, choice)

    monkeypatch.setattr(Interpolation, "__call__", short)
    sizes = {"large": (64, 48), "small": (32, 24)}
    files = [
        (make_clip(f"{name}.mp4", size=size, sound=False), tmp_path / f"{name}_x2.mp4") for name, size in sizes.items()
    ]
    runtime = Runtime(device="cpu", keep_work=True)
    done = vidup.upscale_files(files, Settings(model="nearest", scale=2), runtime=runtime)
    assert [one.error for one in done] == [None, None] and caplog.text.count("memory ran out") == 2
    kept = [json.loads((tmp_path / f"{name}_x2.mp4.vidup" / "job.json").read_text())["choice"] for name in sizes]
    assert [one["batch"] for one in kept] == [1, 4]
