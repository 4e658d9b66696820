"""What makes the x4 engine quick and small, and that it changes no picture."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import enlarge, pictures
from diffusers import AutoencoderTiny, UNet2DConditionModel

import vidup
from vidup.config import Runtime, Settings
from vidup.engines import Choice, Place, compiling, hub
from vidup.engines.compiling import Compiled
from vidup.engines.memory import is_out_of_memory
from vidup.engines.solver import interval
from vidup.engines.tiny import _FILES, load_tiny
from vidup.engines.tracing import unet_flops
from vidup.engines.unet import FixedText, Moved, Unet, fix_texts
from vidup.engines.vae import Limits, scale_shift_silu
from vidup.errors import EngineError

CPU = torch.device("cpu")
PLACE = Place(height=24, width=40)
EAGER = {"backend": "eager", "fullgraph": True, "dynamic": False}
"""For torch.compile: one graph, which is run as it is."""


def picture(count: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 24, 40, generator=torch.Generator().manual_seed(0))


class Counted(torch.nn.Module):
    """Stands for a module and counts the pictures that it is asked for."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module, self.batches = module, []

    def forward(self, batch: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        self.batches.append(len(batch))
        return self.module(batch, *arguments, **keywords)


class TestGuidance:
    @pytest.mark.parametrize(
        ("start", "end", "guided"),
        [(0.0, 1.0, "1111"), (0.0, 0.5, "1100"), (0.25, 0.75, "0110"), (0.3, 1.0, "0011"), (0.5, 0.5, "0000")],
    )
    def test_outside_the_interval_an_evaluation_costs_half(
        self, engine: Any, start: float, end: float, guided: str
    ) -> None:
        one = engine(guidance_start=start, guidance_end=end)
        counted = one.engine.unet.run.function = Counted(one.engine.unet.module)
        enlarge(one, picture(), PLACE)
        assert counted.batches == [1 + int(step) for step in guided]
        assert one.engine.guided is ("1" in guided)

    def test_all_steps_are_as_without_an_interval_and_none_as_without_guidance(self, engine: Any) -> None:
        whole, none, part = ({}, {"guidance_start": 0.4, "guidance_end": 0.4}, {"guidance_end": 0.5})
        usual, off, some = (enlarge(engine(**options), picture(), PLACE) for options in (whole, none, part))
        assert torch.equal(off, enlarge(engine(guidance_scale=1.0), picture(), PLACE))
        assert not torch.equal(usual, off) and not torch.equal(usual, some) and not torch.equal(off, some)

    def test_shares_count_steps(self) -> None:
        assert sum(interval(Settings(guidance_start=0.1, guidance_end=0.6), 20)) == 10


class TestFixedTexts:
    def test_the_answer_is_that_of_the_unet_with_its_text(self, tiny_x4: Path) -> None:
        load = UNet2DConditionModel.from_pretrained
        plain, fixed = (load(tiny_x4 / "unet").eval().requires_grad_(False) for _ in range(2))
        texts = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(0))
        before = sum(parameter.numel() for parameter in fixed.parameters())
        asked = Unet(fixed, texts, 3.0, CPU)
        assert asked.texts is None
        assert sum(parameter.numel() for parameter in fixed.parameters()) < before
        # Every reader of text: two of the levels that only cross-attend read it twice.
        assert sum(isinstance(one, FixedText) for one in fixed.modules()) >= 4
        batch = torch.randn(3, 7, 16, 24, generator=torch.Generator().manual_seed(1))
        time, level = torch.tensor(500), torch.full((6,), 20)
        with torch.inference_mode():
            negative, positive = plain(
                torch.cat([batch, batch]), time, texts.repeat_interleave(3, 0), class_labels=level
            ).sample.chunk(2)
            guided = asked(batch, time, True, class_labels=level)
            torch.testing.assert_close(guided, negative + 3 * (positive - negative))
            torch.testing.assert_close(asked(batch, time, False, class_labels=level[:3]), positive)
        assert not torch.allclose(negative, positive, atol=1e-3)

    def test_a_unet_that_uses_text_otherwise_is_left_alone(self, tiny_x4: Path) -> None:
        one = UNet2DConditionModel.from_pretrained(tiny_x4 / "unet")
        next(module for module in one.modules() if hasattr(module, "norm_cross")).norm_cross = True
        names = [name for name, _ in one.named_parameters()]
        reader = next(module for module in one.modules() if getattr(module, "is_cross_attention", False))
        reader.norm_cross = True
        assert not fix_texts(one, torch.zeros(2, 7, 24))
        assert names == [name for name, _ in one.named_parameters()]


class TestCompiling:
    @pytest.fixture(autouse=True)
    def _fresh(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
        torch._dynamo.reset()
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
        yield
        torch._dynamo.reset()

    def test_one_graph_a_shape_and_the_same_picture(
        self, engine: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """With a backend that only runs the graph: what is checked is how many there are, and how they are called."""
        graphs: list[Any] = []

        def counted(graph: Any, inputs: Any) -> Any:
            graphs.append(inputs)
            return graph

        monkeypatch.setattr(
            compiling, "compiler", lambda whole=True: {**EAGER, "backend": counted, "dynamic": not whole}
        )
        monkeypatch.setattr("vidup.engines.vae.compiled_or_not", lambda function: function)
        usual, one = engine(steps=1), engine(Runtime(device="cpu", compile="on"), steps=1)
        large, small = picture(2), picture()[..., :16, :24]
        windows = [(large[..., 8:, :32], 8, 0), (large[:1, :, :16], 0, 0), (large[:1, :, 8:, 16:], 8, 16)]
        work = [(large, 0, 0), (large, 0, 0), *windows, (large, 0, 0), (small, 0, 0)]
        with caplog.at_level(logging.INFO, "vidup"):
            made = []
            for clip, top, left in work:
                place = Place(top, left, *(small.shape[-2:] if clip is small else (24, 40)))
                torch.testing.assert_close(enlarge(one, clip, place), enlarge(usual, clip, place), atol=1e-4, rtol=0)
                made.append(len(graphs))
        assert made == [1, 1, 2, 2, 2, 2, 3]  # one for each size of frame, and one for all windows
        assert one.engine.unet.run.active
        told = [line.partition(",")[0] for line in caplog.messages if "compiling" in line]
        assert told == [
            "compiling the model for batches of 2x7x24x40",
            "compiling the model for windows of any shape",
            "compiling the model for batches of 2x7x16x24",
        ]

    @pytest.mark.parametrize("wish", ["auto", "on"])
    def test_what_cannot_be_compiled_is_told(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wish: str
    ) -> None:
        def broken(*_: Any) -> Any:
            raise RuntimeError("no compiler here")

        monkeypatch.setattr(compiling, "compiler", lambda whole=True: {**EAGER, "backend": broken})
        run, x = Compiled(lambda x: x + 1, wish, CPU), torch.zeros(1, 3, 4, 4)
        run.expect(compiling.WORTH)
        assert run.active
        if wish == "on":
            with pytest.raises(EngineError, match=r"compile = 'on'.*no compiler here"):
                run(x)
        else:
            assert torch.equal(run(x), x + 1) and not run.active
            assert "no compiler here" in caplog.text
            assert not run.expect(compiling.WORTH)

    def test_what_was_compiled_is_let_go(self, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compiling, "compiler", lambda whole=True: EAGER)
        reset, resets = torch.compiler.reset, []
        monkeypatch.setattr(torch.compiler, "reset", lambda: (resets.append(1), reset()))
        run, x = Compiled(lambda x: x + 1, "on", CPU), torch.zeros(1, 3, 4, 4)
        one = engine(steps=1)
        one.engine.unet.run = run
        first = run(x)
        assert one.compiles and run.active
        one.engine.close()
        assert resets == [1]
        one.engine.close()  # nothing was made since
        assert resets == [1]
        assert torch.equal(run(x), first) and run.active

    def test_want_of_memory_is_none_of_the_compilers_failures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(compiling, "compiler", lambda whole=True: {**EAGER, "backend": broken})
        run = Compiled(lambda x: x + 1, "on", CPU)
        with pytest.raises(Exception) as caught:  # torch wraps it
            run(torch.zeros(1, 3, 4, 4))
        assert is_out_of_memory(caught.value) and run.active

    def test_a_job_is_weighed(self, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compiling, "compiler", lambda whole=True: EAGER)
        one = engine(Runtime(device="cpu", compile="off"), steps=3, guidance_end=0.5)
        run = one.engine.unet.run
        one.expect(2**62)
        assert not one.compiles  # it is off
        run.weighs = True  # as with auto on CUDA
        flops = 5 * unet_flops(one.engine.unet.module, 77, 64, 64) / 64**2
        for pixels, pays in ((int(compiling.WORTH / flops), False), (int(compiling.WORTH / flops) + 2, True)):
            one.expect(pixels)
            assert one.compiles is one.planner.needs.compiled is pays
        assert one.engine.vae.functions.activate is not scale_shift_silu
        assert pytest.approx(500) == compiling.WORTH / (20 * compiling.X4_FLOPS * 480 * 270)

    def test_the_same_job_has_the_same_kernels(self) -> None:
        """Where torch chooses them by what is faster at the moment, a job that goes on has other bits."""
        found = compiling.compiler()
        assert found["options"].get("deterministic", True) is True and found["fullgraph"]
        torch.compile(lambda x: x, **found)  # refuses an option that it does not know

    def test_small_functions_are_compiled_by_the_calls_that_count(
        self, engine: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        graphs: list[Any] = []

        def counted(graph: Any, inputs: Any) -> Any:
            graphs.append(inputs)
            return graph

        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counted))
        one = engine(steps=1).engine
        latents = torch.randn(1, 4, 24, 40, generator=torch.Generator().manual_seed(0))
        for size, bands in ((latents, 2**30), (latents, 2**13), (latents[..., :16, :24], 2**14)):
            one.vae.functions = type(one.vae.functions)()
            expected = one.vae(size, CPU, Limits(bands, bands))
            one.vae.compile()
            assert torch.equal(one.vae(size, CPU, Limits(bands, bands)), expected)
            before = len(graphs)
            one.vae(size + 1, CPU, Limits(bands, bands))
            assert 0 < before == len(graphs) <= 16

    def test_a_small_function_that_cannot_be_compiled_is_left_as_it_is(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(*_: Any) -> Any:
            raise RuntimeError("no compiler here")

        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
        kernel = compiling.compiled_or_not(scale_shift_silu)
        x, one = torch.ones(1, 2, 3, 4), torch.ones(1, 2, 1, 1)
        for _ in range(2):
            assert torch.equal(kernel(x, one, one), scale_shift_silu(x, one, one))
        (told,) = (one.message for one in caplog.records if one.name.startswith("vidup"))
        assert "scale_shift_silu" in told and "no compiler here" in told

    def test_graphs_of_another_size_are_let_go(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compiling, "compiler", lambda whole=True: EAGER)
        resets: list[int] = []
        monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
        run = Compiled(lambda x: x + 1, "on", torch.device("cuda"))
        for size in ((48, 64), (48, 64), (24, 32)):
            run.begin(clip := torch.zeros(1, 3, *size), Place(0, 0, *size))
            run(clip)
        assert len(resets) == 1

    def test_the_code_is_kept_between_runs(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
            monkeypatch.setenv(name, str(tmp_path))
        compiling.keep_compiled_code()
        kept = compiling.os.environ["TORCHINDUCTOR_CACHE_DIR"]
        assert Path(kept).is_relative_to(tmp_path) and "vidup" in kept
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
        compiling.keep_compiled_code()
        assert compiling.os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"

    @pytest.mark.slow
    def test_inductor_gives_the_same_picture(
        self, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        expected = enlarge(engine(steps=2), picture(), PLACE)
        result = enlarge(engine(Runtime(device="cpu", compile="on"), steps=2), picture(), PLACE)
        torch.testing.assert_close(result, expected, atol=1e-3, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_compiled_job_of_several_segments(
    make_clip: Any, tiny_x4: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """CUDA graphs belong to a thread: the second segment must find those of the first."""
    settings = Settings(model=str(tiny_x4), prompt="a harbour", steps=3, segment_frames=4)
    runtime = Runtime(device="cuda", compile="on", batch=2)
    with caplog.at_level(logging.INFO, "vidup"):
        output = vidup.upscale(make_clip(), tmp_path / "out.mp4", settings, runtime=runtime).output
    assert len(pictures(output)) == 12
    assert len([line for line in caplog.messages if line.startswith("compiling")]) == 1
    torch._dynamo.reset()


def test_windowed_attention_is_a_setting(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidup.engines.attention.WINDOW", 8)
    full, windowed = (enlarge(engine(vae_attention=kind), picture(), PLACE) for kind in ("full", "windowed"))
    assert 0 < (full - windowed).abs().mean() < 0.05


class TestOffload:
    def test_the_picture_is_the_same_and_the_weights_stay_where_they_were(self, engine: Any) -> None:
        expected = enlarge(engine(), picture(2), PLACE)
        one = engine(Runtime(device="cpu", offload=True))
        before = [parameter.data_ptr() for parameter in one.engine.vae.module.parameters()]
        assert torch.equal(enlarge(one, picture(2), PLACE), expected)
        assert torch.equal(enlarge(one, picture(2), PLACE), expected)
        assert [parameter.data_ptr() for parameter in one.engine.vae.module.parameters()] == before

    def test_weights_come_only_for_the_work_and_in_inference_mode_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Moved, "bring", lambda self, kept: kept.clone())  # as on another device
        module = torch.nn.Linear(3, 4)
        home = module.weight.data_ptr()
        moves, x = Moved(module, CPU, offload=True), torch.ones(1, 3)
        expected = module(x).detach()
        for _ in range(2):
            with torch.inference_mode(), moves.at_work():
                assert module.weight.data_ptr() != home
                assert torch.equal(module(x), expected)
            assert module.weight.data_ptr() == home
        with pytest.raises(RuntimeError, match="stop"), moves.at_work():
            raise RuntimeError("stop")
        assert module.weight.data_ptr() == home

    def test_it_takes_less(self, engine: Any) -> None:
        together, apart = engine(), engine(Runtime(device="cpu", offload=True))
        choice = Choice(1, 0)
        assert apart.planner.memory(choice, 64, 64) < together.planner.memory(choice, 64, 64)


class TestTinyDecoder:
    @staticmethod
    def save(folder: Path, **options: Any) -> Path:
        torch.manual_seed(0)
        stages = {f"{side}_block_out_channels": (8, 8, 8) for side in ("encoder", "decoder")}
        blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
        AutoencoderTiny(**{**stages, **blocks, **options}).save_pretrained(folder)
        return folder

    def test_it_decodes_instead_of_the_models_own(self, engine: Any, tmp_path: Path) -> None:
        folder = self.save(tmp_path / "tiny")
        usual, other = engine(), engine(vae=str(folder))
        result = enlarge(other, picture(2), PLACE)
        assert result.shape == (2, 3, 96, 160) and not torch.equal(result, enlarge(usual, picture(2), PLACE))
        assert other.engine.identity != usual.engine.identity

        latents = torch.randn(1, 4, 24, 40, generator=torch.Generator().manual_seed(0))
        vae = AutoencoderTiny.from_pretrained(folder)
        with torch.inference_mode():
            expected = vae.decode(latents).sample
        from vidup.engines.vae import limits

        torch.testing.assert_close(other.engine.vae(latents, CPU, limits(CPU)), expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"latent_channels": 16}, "16 channels by 4"),
            ({"num_decoder_blocks": (1, 1), "decoder_block_out_channels": (8, 8)}, "4 channels by 2"),
        ],
    )
    def test_one_that_does_not_fit_is_refused(self, tmp_path: Path, options: dict[str, Any], said: str) -> None:
        with pytest.raises(EngineError, match=said):
            load_tiny(str(self.save(tmp_path / "tiny", **options)), 4, 4, CPU, torch.float32)

    def test_what_cannot_be_had_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_x4: Path) -> None:
        def offline(*_: Any, local_files_only: bool = False, **__: Any) -> str:
            if local_files_only:
                raise hub.LocalEntryNotFoundError("not in the cache")
            raise OSError("no route to host")

        monkeypatch.setattr("vidup.engines.hub.snapshot_download", offline)
        monkeypatch.setattr("vidup.engines.hub.files_on_hub", lambda repository, revision: _FILES)
        with pytest.raises(EngineError, match=r"vae = 'someone/tiny'.*no route to host"):
            load_tiny("someone/tiny", 4, 4, CPU, torch.float32)
        with pytest.raises(EngineError, match=r"lacks config\.json"):
            load_tiny(str(tmp_path), 4, 4, CPU, torch.float32)
        with pytest.raises(EngineError, match="no AutoencoderTiny"):
            load_tiny(str(tiny_x4 / "unet"), 4, 4, CPU, torch.float32)


def test_a_job_says_how_much_is_to_come(make_clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[int] = []
    monkeypatch.setattr("vidup.engines.interpolate.Interpolation.expect", lambda self, pixels: said.append(pixels))
    clips = [(make_clip(f"{name}.mp4", sound=False), tmp_path / f"{name}_x2.mp4") for name in ("one", "two")]
    done = vidup.upscale_files(clips, Settings(model="nearest", scale=2), runtime=Runtime(device="cpu"))
    assert all(one.error is None for one in done) and said == [2 * 12 * 64 * 48]
