"""Models that spandrel loads, from files that the tests make with its own classes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import enlarge, loaded
from safetensors.torch import save_file
from torch.nn import functional

from vidup.config import Runtime, Settings
from vidup.engines import Choice, Place, anchor_rounds, checkpoint, compiling, native_scale
from vidup.engines.checkpoint import Checkpoint
from vidup.engines.memory import LiveBytes
from vidup.errors import EngineError
from vidup.job.describe import describe
from vidup.job.plan import plan as plan_job
from vidup.picture.footage import held
from vidup.picture.resample import anchor, resize
from vidup.picture.tiling import cover
from vidup.picture.tiling import weights as weights_of

spandrel = pytest.importorskip("spandrel")
CPU = Runtime(device="cpu")


def picture(height: int, width: int, count: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, max(2, height // 5), max(2, width // 5), generator=generator)
    return functional.interpolate(coarse, (height, width), mode="bilinear")


def compact(**options: Any) -> Any:
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    return Compact(**{"num_feat": 8, "num_conv": 3, "upscale": 4, **options})


def write(model: Any, path: Path, wrap: str | None = None) -> Path:
    weights = model.state_dict()
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({wrap: weights} if wrap else weights, path)
    return path


def make(path: Path, runtime: Runtime = CPU, **options: Any) -> Any:
    upscaler = loaded(Settings(model=str(path), **options), runtime)
    assert isinstance(upscaler.engine, Checkpoint)
    return upscaler


@pytest.mark.parametrize("name", ["m.safetensors", "m.pth", "m.pt", "m.ckpt", "M.PTH"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_equals_spandrels_own_call(tmp_path: Path, name: str, scale: int) -> None:
    path = write(compact(upscale=scale), tmp_path / name, wrap="params_ema")
    engine, source = make(path), picture(21, 34)
    result = enlarge(engine, source, Place(height=21, width=34))
    assert engine.engine.scale == scale and result.shape[-2:] == (21 * scale, 34 * scale)
    expected = spandrel.ModelLoader().load_from_state_dict(torch.nn.Module.state_dict(compact(upscale=scale)))(source)
    assert expected.std() > 0.01
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("given", "rounds"), [("auto", 1), (0, 0), (3, 3)])
def test_one_round_of_the_anchor_where_nothing_is_said(
    tmp_path: Path, make_clip: Callable[..., Path], given: int | str, rounds: int
) -> None:
    path, source, place = write(compact(), tmp_path / "m.pth"), picture(20, 24), Place(height=20, width=24)
    upscaler = make(path, anchor=given)
    raw = enlarge(make(path), source, place)
    hold = partial(held, steps=[0.0]) if given == "auto" else anchor
    assert torch.equal(upscaler._enlarge(source), hold(raw, source, rounds))
    lines = describe(plan_job(make_clip(), tmp_path / "out.mp4", upscaler.settings))
    assert any(f"by {rounds} round" in line if rounds else "the anchor is off" in line for line in lines)


def test_rounds_of_the_anchor_by_what_the_model_is(tmp_path: Path) -> None:
    assert [anchor_rounds(Settings(model=name)) for name in ("x4", "mini", "x2", "bicubic")] == [5, 5, 5, 0]
    assert anchor_rounds(Settings(model=str(write(compact(upscale=1), tmp_path / "one.pth")), anchor=4)) == 0


def test_the_anchor_leaves_restoration_alone(tmp_path: Path) -> None:
    """At the input's own size it would give the input back."""
    assert not make(write(compact(upscale=1), tmp_path / "one.pth")).engine.invents
    assert make(write(compact(upscale=2), tmp_path / "two.pth")).engine.invents


@pytest.mark.parametrize("overlap", [32, 40])
def test_tiles_equal_the_whole_frame_beyond_the_models_reach(tmp_path: Path, overlap: int) -> None:
    """Five convolutions of 3x3 reach 5 pixels; a quarter of the overlap is left out at every cut."""
    path, source, place = write(compact(), tmp_path / "m.pth"), picture(100, 150), Place(height=100, width=150)
    whole = enlarge(make(path), source, place)
    tiled = make(path, tile=81, tile_overlap=overlap)
    assert len(tiled.planner.cut(tiled.choose(100, 150), 100, 150).origins) >= 6
    torch.testing.assert_close(enlarge(tiled, source, place), whole, atol=2e-6, rtol=0)


def test_a_far_reaching_model_has_no_seams(tmp_path: Path) -> None:
    path = write(compact(num_conv=30), tmp_path / "m.pth")  # reaches 32 pixels
    source, place = picture(48, 200), Place(height=48, width=200)
    whole, tiled = enlarge(make(path), source, place), enlarge(make(path, tile=90), source, place)
    error = (whole - tiled).abs()
    assert 0 < error.max() < 1 / 255


def test_shifted_windows_keep_to_the_whole_frame(checkpoints: dict[str, Path]) -> None:
    source, place = picture(64, 200), Place(height=64, width=200)
    whole, tiled = (enlarge(make(checkpoints["swin"], tile=tile), source, place) for tile in (0, 96))
    assert (tiled - whole).abs().max() < 2 / 255


@pytest.mark.parametrize(("height", "width", "overlap"), [(100, 150, 32), (270, 480, 32), (81, 81, 40), (64, 1000, 33)])
def test_weights_of_tiles_sum_to_one_and_leave_out_the_cuts(height: int, width: int, overlap: int) -> None:
    tiles = cover(height, width, 2 * overlap + 8, overlap, 1)
    weights, total = weights_of(tiles, overlap, overlap // 4), torch.zeros(1, height, width)
    for (top, left), weight in zip(tiles.origins, weights, strict=True):
        total[:, top : top + tiles.tile_height, left : left + tiles.tile_width] += weight
        cut = weight[..., : overlap // 4] if left else weight[..., :0]
        assert (weight >= 0).all() and (cut == 0).all()
    torch.testing.assert_close(total, torch.ones_like(total))


def test_memory_decides_the_tiles(tmp_path: Path) -> None:
    path = write(compact(), tmp_path / "m.pth")
    roomy = make(path, Runtime(device="cpu", max_memory="64G", batch=1))
    assert roomy.choose(1080, 1920) == Choice(1, 0)
    need = roomy.planner.memory(Choice(1, 0), 1080, 1920)
    tight = make(path, Runtime(device="cpu", max_memory=str(need * 3 // 4)))
    choice = tight.choose(1080, 1920)
    assert 128 <= choice.tile < 1920
    assert tight.planner.memory(choice, 1080, 1920) <= need * 3 // 4
    assert make(path, Runtime(device="cpu", max_memory="1M"), tile=512).choose(1080, 1920) == Choice(1, 512)


def test_the_memory_is_what_the_tensors_take() -> None:
    """Two layers of 64 channels are alive at once in a chain of convolutions."""
    layers = [torch.nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(4)]
    source = torch.zeros(1, 64, 32, 32)
    with torch.no_grad(), LiveBytes() as live:
        torch.nn.Sequential(*layers)(source)
    assert live.peak == 2 * source.nbytes and live.now == 0


def test_a_job_reads_the_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scale is asked for before the model is loaded; a second model is one of its own."""
    read, path, plain = list[Path](), write(compact(), tmp_path / "m.pth"), checkpoint._describe
    monkeypatch.setattr(checkpoint, "_describe", lambda path: [read.append(path), plain(path)][1])
    settings = Settings(model=str(path))
    with torch.inference_mode():  # where the model that is read must not stay
        assert [native_scale(settings), native_scale(settings)] == [4, 4]
    upscaler = make(path)
    first = upscaler.engine
    assert upscaler(picture(8, 9)).shape == (1, 3, 32, 36)
    assert read == [path] and native_scale(settings) == 4
    second = make(path).engine
    assert second.model is not first.model and read == [path, path]
    os.utime(write(compact(upscale=2), path), ns=(1, 1))
    assert make(path).engine.scale == 2 and native_scale(settings) == 2, "what is there now"
    assert read == [path] * 3


def test_on_the_cpu_it_works_in_channels_last(tmp_path: Path) -> None:
    engine = make(write(compact(), tmp_path / "m.pth")).engine
    seen = []
    engine.model.model.body[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    engine(picture(12, 16, count=2), Place(height=12, width=16), Choice(2, 0))
    for tensor in (engine.model.model.body[0].weight, *seen):
        assert tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def test_the_memory_is_counted_without_torchs_compiler() -> None:
    """torch would import it to keep it out of what counts."""
    assert not hasattr(LiveBytes.__torch_dispatch__, "__wrapped__")


def test_what_is_in_proportion_is_measured_on_small_pictures(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    def sides(path: Path) -> list[int]:
        engine, seen = make(path).engine, list[int]()
        engine.model.model.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-1]))
        assert engine.needs.window > 0
        return seen

    assert max(sides(write(compact(), tmp_path / "m.pth"))) < 32
    assert max(sides(checkpoints["swin"])) >= 64, "in windows, which small pictures do not fill"


def test_a_smaller_batch_of_larger_frames_gives_the_same(tmp_path: Path) -> None:
    path, clip, place = write(compact(), tmp_path / "m.pth"), picture(40, 90, count=3), Place(height=40, width=90)
    one = enlarge(make(path, tile=65), clip, place)
    for batch in (2, 4):
        many = enlarge(make(path, Runtime(device="cpu", batch=batch), tile=65), clip, place)
        assert (one - many).abs().max() < 1e-6


class TestErrors:
    def test_a_malicious_pickle_is_not_run(self, tmp_path: Path) -> None:
        trace = tmp_path / "trace"

        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(trace),)

        torch.save({"params": compact().state_dict(), "more": Evil()}, tmp_path / "evil.pth")
        with pytest.raises(EngineError, match="objects beside weights"):
            make(tmp_path / "evil.pth")
        assert not trace.exists()

    def test_torchscript_is_not_run(self, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its age
            torch.jit.script(torch.nn.Conv2d(3, 3, 1)).save(str(tmp_path / "script.pt"))
        with pytest.raises(EngineError, match="cannot be read as plain weights"):
            make(tmp_path / "script.pt")

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match="no such file"):
            make(tmp_path / "none.pth")

    @pytest.mark.parametrize("name", ["m.safetensors", "m.pth", "m.ckpt"])
    @pytest.mark.parametrize("content", [b"", b"no weights", b"\xff" * 100])
    def test_damaged(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EngineError, match="cannot be read"):
            make(tmp_path / name)

    def test_an_unknown_architecture(self, tmp_path: Path) -> None:
        path = write(torch.nn.Linear(2, 2), tmp_path / "linear.pth")
        with pytest.raises(EngineError, match="no architecture"):
            make(path)

    def test_a_table_of_something_else(self, tmp_path: Path) -> None:
        torch.save([1, 2], tmp_path / "list.pth")
        with pytest.raises(EngineError, match="no table of weights"):
            make(tmp_path / "list.pth")

    @pytest.mark.parametrize("channels", [1, 4])
    def test_other_channels(self, tmp_path: Path, channels: int) -> None:
        path = write(compact(num_in_ch=channels, num_out_ch=channels), tmp_path / "m.pth")
        with pytest.raises(EngineError, match=f"takes {channels} channels"):
            make(path)

    @pytest.mark.parametrize(("kind", "words"), [("Inpainting", "fills holes"), ("FaceSR", "faces alone")])
    def test_other_purposes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, words: str) -> None:
        described = spandrel.ModelLoader().load_from_state_dict(compact().state_dict())
        if kind == "FaceSR":
            described._purpose = kind
        else:
            common = {"supports_half": True, "supports_bfloat16": True, "input_channels": 3, "output_channels": 3}
            described = spandrel.MaskedImageModelDescriptor(
                compact(), compact().state_dict(), described.architecture, kind, [], **common
            )
        monkeypatch.setattr(spandrel.ModelLoader, "load_from_state_dict", lambda *_: described)
        with pytest.raises(EngineError, match=words):
            make(write(compact(), tmp_path / "m.pth"))

    def test_a_diffusion_pickle_names_the_way(self, tmp_path: Path) -> None:
        torch.save({"state_dict": {"model.diffusion_model.out.0.weight": torch.zeros(1)}}, tmp_path / "sd.ckpt")
        with pytest.raises(EngineError, match="safetensors"):
            make(tmp_path / "sd.ckpt")

    def test_what_a_model_does_not_have(self, tmp_path: Path) -> None:
        path = write(compact(), tmp_path / "m.pth")
        for name in ("revision", "vae", "tokenizer"):
            with pytest.raises(EngineError, match=name):
                make(path, **{name: "x"})

    def test_a_precision_that_it_does_not_hold_in(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        described = spandrel.ModelLoader().load_from_state_dict(compact().state_dict())
        described.supports_half = False
        monkeypatch.setattr(spandrel.ModelLoader, "load_from_state_dict", lambda *_: described)
        path = write(compact(), tmp_path / "m.pth")
        with pytest.raises(EngineError, match="float32"):
            make(path, dtype="float16")
        assert make(path, dtype="bfloat16").engine.dtype == torch.bfloat16

    def test_flops_are_those_of_a_run(self, tmp_path: Path) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        engine = make(write(compact(), tmp_path / "m.pth"), tile=90)
        enlarge(engine, picture(48, 200), Place(height=48, width=200))  # measures what a pixel takes
        with FlopCounterMode(display=False) as counter:
            enlarge(engine, picture(48, 200), Place(height=48, width=200))
        counted = counter.get_total_flops()
        assert engine.engine.flops(48, 200, engine.choose(48, 200)) == (counted, 0.0) and counted > 0

    def test_a_precision_that_it_only_says_it_holds_in(self, checkpoints: dict[str, Path]) -> None:
        engine = make(checkpoints["swin"], dtype="bfloat16")
        with pytest.raises(EngineError, match=r"SwinIR failed .*, in bfloat16; take --dtype float32$"):
            enlarge(engine, picture(16, 16), Place(height=16, width=16))

    def test_what_fails_in_a_model_is_told_and_want_of_memory_is_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(text: str) -> None:
            raise RuntimeError(text)

        engine = make(write(compact(), tmp_path / "m.pth"), tile=65)
        place = Place(height=8, width=9)
        engine.choose(8, 9)
        monkeypatch.setattr(type(engine.engine.model), "__call__", lambda *_: fail("shape is invalid"))
        with pytest.raises(EngineError, match=r"Compact failed on a picture of 9x8: shape is invalid"):
            enlarge(engine, picture(8, 9), place)
        monkeypatch.setattr(type(engine.engine.model), "__call__", lambda *_: fail("CUDA out of memory"))
        with pytest.raises(RuntimeError, match="out of memory"):
            enlarge(engine, picture(8, 9), place)

    def test_spandrel_is_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "spandrel", None)
        with pytest.raises(EngineError, match=r'pip install "vidup\[checkpoint\]"'):
            make(write(compact(), tmp_path / "m.pth"))


def test_a_model_that_draws_noise_gives_equal_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(write(compact(), tmp_path / "m.pth"))
    one, plain = engine.engine, engine.engine.model
    source, place = picture(8, 8), Place(height=8, width=8)
    engine.choose(8, 8)
    one._draws = True
    monkeypatch.setattr(one.run, "function", lambda batch: plain(batch) * torch.rand(1))
    before = torch.get_rng_state()
    assert torch.equal(enlarge(engine, source, place), enlarge(engine, source, place))
    assert torch.equal(before, torch.get_rng_state())


def test_identity_is_that_of_the_file(tmp_path: Path) -> None:
    one = write(compact(), tmp_path / "m.pth")
    (tmp_path / "elsewhere").mkdir()
    same = write(compact(), tmp_path / "elsewhere" / "m.pth")
    other = compact()
    with torch.no_grad():
        other.body[0].bias[0] += 1e-3
    (tmp_path / "third").mkdir()
    third = write(other, tmp_path / "third" / "m.pth")
    identities = [make(path).engine.identity for path in (one, same, third)]
    assert identities[0] == identities[1] != identities[2]


def test_brightness_is_kept_by_the_public_way(tmp_path: Path) -> None:
    """Through the Upscaler a model of random weights is pulled back to its input by the anchor."""
    from vidup.upscaler import Upscaler

    path, source = write(compact(), tmp_path / "m.pth"), picture(24, 32)
    with Upscaler(Settings(model=str(path)), CPU) as upscaler:
        result = upscaler(source)
    assert result.shape == (1, 3, 96, 128)
    assert (resize(result, (24, 32)) - source).square().mean() < 1e-3


def test_compiled_it_gives_the_same_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        compiling, "compiler", lambda whole=True: {"backend": "eager", "fullgraph": True, "dynamic": False}
    )
    torch._dynamo.reset()
    path, place = write(compact(), tmp_path / "compact.pth"), Place(height=40, width=56)
    expected = enlarge(make(path), picture(40, 56), place)
    engine = make(path, Runtime(device="cpu", compile="on"))
    assert engine.compiles and not make(path).compiles
    torch.testing.assert_close(enlarge(engine, picture(40, 56), place), expected, atol=1e-5, rtol=0)


def test_offload_without_effect_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(write(compact(), tmp_path / "compact.pth"), Runtime(device="cpu", offload=True))
    assert "offload: has no effect with compact.pth" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_takes_half_precision_and_keeps_the_picture(tmp_path: Path) -> None:
    path, source, place = write(compact(), tmp_path / "m.pth"), picture(100, 150), Place(height=100, width=150)
    expected = enlarge(make(path), source, place)
    engine = make(path, Runtime(device="cuda"))
    assert engine.engine.dtype == torch.float16
    assert (enlarge(engine, source.cuda(), place).cpu() - expected).abs().max() < 0.01
