"""Model folders and files of weights that claim what is not so: each is refused in one line, before it takes memory."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vidup.config import Runtime, Settings
from vidup.engines import Choice, Place, enlarge, load
from vidup.engines.checkpoint import Checkpoint
from vidup.engines.claims import is_stable_diffusion
from vidup.errors import EngineError

CPU = Runtime(device="cpu")
NAN = float("nan")


@pytest.fixture
def model(tiny_x4: Path, tmp_path: Path) -> Path:
    """A folder to be damaged."""
    return Path(shutil.copytree(tiny_x4, tmp_path / "model"))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A GiB more than what is mapped: what takes memory by a number fails at once (Linux)."""
    if sys.platform != "linux":
        yield
        return
    import resource

    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_the_folder_before_it_is_damaged_is_loaded(model: Path) -> None:
    load(Settings(model=str(model), steps=2, prompt="a boat"), CPU)


def refused(model: Path, **settings: Any) -> str:
    with pytest.raises(EngineError) as error:
        load(Settings(**{"model": str(model), "steps": 2, **settings}), CPU)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


FILES = [
    "model_index.json",
    *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
    *(f"{part}/scheduler_config.json" for part in ("scheduler", "low_res_scheduler")),
]
SHAPES = ["[1]", "null", "5", '"text"', "{", "", "[" * 5000, '{"a": ' * 5000, '{"a": NaN}', '{"a": 1e999}', "\x00"]


@pytest.mark.parametrize("file", FILES)
def test_what_is_no_table_of_settings(model: Path, file: str) -> None:
    for text in SHAPES:
        (model / file).write_text(text)
        assert file in refused(model), text


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("unet", {"layers_per_block": 10_000_000}),
        ("unet", {"layers_per_block": [10_000_000, 1]}),
        ("unet", {"norm_num_groups": 0}),
        ("unet", {"norm_num_groups": -8}),  # which divides the channels
        ("unet", {"attention_head_dim": -8}),
        ("unet", {"block_out_channels": [10**9, 32]}),
        ("unet", {"block_out_channels": [16] * 5000}),
        ("unet", {"down_block_types": ["DownBlock2D"] * 5000}),
        ("unet", {"transformer_layers_per_block": 10**8}),
        ("unet", {"sample_size": 10**12}),
        ("unet", {"act_fn": "none"}),
        ("unet", {"cross_attention_dim": None}),
        ("unet", {"in_channels": "seven"}),
        ("unet", {"num_class_embeds": -5}),
        ("vae", {"layers_per_block": 10_000_000}),
        ("vae", {"norm_num_groups": 0}),
        ("vae", {"norm_num_groups": -8}),
        ("vae", {"latent_channels": 10**9}),
        ("vae", {"scaling_factor": 0}),
        ("vae", {"scaling_factor": None}),
        ("vae", {"scaling_factor": "1"}),
        ("text_encoder", {"num_hidden_layers": 10**9}),
        ("text_encoder", {"max_position_embeddings": 10**9}),
        ("text_encoder", {"num_attention_heads": 0}),
        ("text_encoder", {"hidden_act": "none"}),
        ("text_encoder", {"hidden_size": 10**6}),
    ],
)
def test_impossible_claims_of_a_module(model: Path, part: str, values: dict[str, Any], little_memory: None) -> None:
    change(model / part / "config.json", **values)
    assert str(model) in refused(model)


@pytest.mark.parametrize(
    "values",
    [
        {"num_train_timesteps": 10**12},
        {"num_train_timesteps": -1},
        {"num_train_timesteps": "all"},
        {"beta_start": NAN},
        {"beta_start": "small"},
        {"beta_start": 1.0, "beta_end": 1.0},
        {"beta_schedule": "none"},
        {"trained_betas": [None] * 10},
        {"prediction_type": 5},
    ],
)
@pytest.mark.parametrize("part", ["scheduler", "low_res_scheduler"])
def test_impossible_schedules(model: Path, part: str, values: dict[str, Any], little_memory: None) -> None:
    if part == "low_res_scheduler" and "prediction_type" in values:
        values = {"beta_end": NAN}  # of this one only the levels are read
    change(model / part / "scheduler_config.json", **values)
    assert str(model) in refused(model)


@pytest.mark.parametrize("level", [None, "350", -1, 10**9, [350], 1000])
def test_impossible_noise_levels(model: Path, level: object) -> None:
    change(model / "model_index.json", max_noise_level=level)
    assert "max_noise_level" in refused(model)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_not_all_there_are_not_left_at_random(model: Path, part: str) -> None:
    (path,) = (model / part).glob("*.safetensors")
    weights = load_file(path)
    del weights[sorted(weights)[len(weights) // 2]]
    save_file(weights, path, metadata={"format": "pt"})
    refused(model)


def test_the_latent_upscaler_is_checked_alike(tiny_x2: Path, tmp_path: Path, little_memory: None) -> None:
    for file, values in (
        ("unet/config.json", {"layers_per_block": 10_000_000}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}),
        ("scheduler/scheduler_config.json", {"beta_end": NAN}),
    ):
        folder = Path(shutil.copytree(tiny_x2, tmp_path / "model", dirs_exist_ok=True))
        change(folder / file, **values)
        refused(folder)


def test_a_tiny_decoder_is_checked_alike(tiny_x4: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).save_pretrained(tmp_path / "tiny")  # fmt: skip
    for text in SHAPES:
        (tmp_path / "other").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "tiny" / "diffusion_pytorch_model.safetensors", tmp_path / "other")
        (tmp_path / "other" / "config.json").write_text(text)
        assert "config.json" in refused(tiny_x4, vae=str(tmp_path / "other")), text
    change(tmp_path / "tiny" / "config.json", num_decoder_blocks=[10_000_000, 1, 1])
    assert "num_decoder_blocks = 10000000" in refused(tiny_x4, vae=str(tmp_path / "tiny"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("sizes do not fit"), EngineError("the model failed on a picture of 9x8: sizes do not fit")),
        (RuntimeError("CUDA out of memory"), RuntimeError("CUDA out of memory")),
        (EngineError("in its own words"), EngineError("in its own words")),
    ],
)
def test_what_fails_in_a_model_is_one_line(error: Exception, expected: Exception) -> None:
    class Failing:
        scale, multiple = 2, 1

        def __call__(self, *_: object) -> torch.Tensor:
            raise error

    engine: Any = Failing()
    with pytest.raises(type(expected), match=f"^{expected}$"):
        enlarge(engine, torch.zeros(1, 3, 8, 9), Place(height=8, width=9), Choice(1, 0))


class TestTokenizer:
    @pytest.mark.parametrize("prompt", ["a boat", ""])
    def test_without_words(self, model: Path, prompt: str) -> None:
        """It would make the same of every text."""
        (model / "tokenizer" / "vocab.json").write_text("{}")
        assert "tokenizer" in refused(model, prompt=prompt)

    @pytest.mark.parametrize("text", ["[1]", "null", "{", '{"a": "b"}', '{"a": -1}'])
    def test_damaged(self, model: Path, text: str) -> None:
        (model / "tokenizer" / "vocab.json").write_text(text)
        refused(model, prompt="a boat")

    def test_of_another_model(self, model: Path) -> None:
        words = json.loads((model / "tokenizer" / "vocab.json").read_text())
        (model / "tokenizer" / "vocab.json").write_text(json.dumps({word: 7 * index for word, index in words.items()}))
        assert "the text encoder knows" in refused(model, prompt="a boat")

    @pytest.mark.parametrize("length", [None, 0, 10**30])
    def test_without_an_end(self, model: Path, length: int | None) -> None:
        change(model / "tokenizer" / "tokenizer_config.json", model_max_length=length)
        assert "model_max_length" in refused(model, prompt="a boat")

    def test_of_unknown_words_only(self, model: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert "knows no word of 'ééé'" in refused(model, prompt="ééé")
        load(Settings(model=str(model), steps=2, prompt="é boat"), CPU)
        assert "does not know all of 'é boat'" in caplog.text


HEADERS = [
    b"[1]",
    b"5",
    b"null",
    b'"text"',
    b"[" * 5000,
    b'{"a":' * 5000,
    b'{"a": 5}',
    b'{"a": {"shape": [-1]}}',
    b"\xff",
]


@pytest.mark.parametrize("header", HEADERS)
def test_headers_of_safetensors_that_are_no_tables(tmp_path: Path, tiny_x4: Path, header: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    assert not is_stable_diffusion(path)
    folder = Path(shutil.copytree(tiny_x4, tmp_path / "model"))
    (weights,) = (folder / "unet").glob("*.safetensors")
    shutil.copy(path, weights)
    refused(folder)


class TestPickles:
    """What torch's own reader, without code, would still do."""

    @pytest.fixture(autouse=True)
    def needs_spandrel(self) -> None:
        pytest.importorskip("spandrel")

    def archive(self, path: Path, pickle: bytes, compression: int = zipfile.ZIP_STORED, more: int = 0) -> Path:
        with zipfile.ZipFile(path, "w", compression) as file:
            file.writestr("archive/data.pkl", pickle)
            file.writestr("archive/version", "3\n")
            file.writestr("archive/byteorder", "little")
            if more:
                file.writestr("archive/data/0", bytes(more))
        return path

    @pytest.mark.parametrize("name", ["builtins\nbytearray", "__builtin__\nbytearray", "torch\nTensor"])
    def test_a_kilobyte_that_takes_gigabytes(self, tmp_path: Path, name: str, little_memory: None) -> None:
        number = struct.pack("<i", 2**31 - 1)
        pickle = b"\x80\x02}X\x01\x00\x00\x00a" + f"c{name}\n".encode() + b"J" + number + b"\x85Rs."
        assert "beside weights" in refused(self.archive(tmp_path / "m.pth", pickle))

    def test_a_bomb_of_zip(self, tmp_path: Path, little_memory: None) -> None:
        path = self.archive(tmp_path / "m.pth", b"\x80\x02}.", zipfile.ZIP_DEFLATED, 2**26)
        assert path.stat().st_size < 2**20 and "is compressed" in refused(path)

    @pytest.mark.parametrize(
        "wrap", [lambda weights: {5: weights}, lambda weights: weights, lambda weights: {"params": weights}]
    )
    def test_keys_that_are_no_texts(self, tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
        torch.save(wrap({5: torch.zeros(2), "body.0.weight": torch.zeros(2)}), tmp_path / "m.pth")
        assert "5 is no name of a weight" in refused(tmp_path / "m.pth")

    def test_tensors_that_are_larger_than_the_file(self, tmp_path: Path, little_memory: None) -> None:
        from spandrel.architectures.Compact import Compact

        weights = Compact(num_feat=8, num_conv=3, upscale=2).state_dict()
        weights["body.0.weight"] = torch.zeros(1).expand(2**20, 3, 3, 3)
        torch.save(weights, tmp_path / "m.pth")
        assert "claims 1048576x3x3x3 numbers" in refused(tmp_path / "m.pth")

    def test_layers_of_a_number_that_no_model_has(self, tmp_path: Path, little_memory: None) -> None:
        from spandrel.architectures.Compact import Compact

        weights = Compact(num_feat=8, num_conv=3, upscale=2).state_dict()
        weights["body.100000000.weight"] = torch.zeros(8, 8, 3, 3)
        torch.save(weights, tmp_path / "m.pth")
        assert "no name of a layer" in refused(tmp_path / "m.pth")

    def test_files_of_older_torch_are_read(self, tmp_path: Path) -> None:
        from spandrel.architectures.Compact import Compact

        weights = {"params": Compact(num_feat=8, num_conv=3, upscale=2).state_dict(), "iter": 5}
        torch.save(weights, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
        assert isinstance(load(Settings(model=str(tmp_path / "m.pth")), CPU), Checkpoint)
