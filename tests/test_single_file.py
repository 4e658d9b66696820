"""The x4 upscaler from one file, in its authors' names, against the same weights in the hub's layout."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vidup.config import Runtime, Settings
from vidup.engines import Choice, Place, architecture, claims, enlarge, load, prompts, single_file
from vidup.engines.x4 import DiffusionX4
from vidup.errors import EngineError

CPU = Runtime(device="cpu")
LAYERS = 2  # of each of the UNet's blocks
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "class_embedding": "label_emb", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
TEXT = {
    "embeddings.position_embedding.weight": "positional_embedding", "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final", "encoder.layers": "transformer.resblocks", "layer_norm": "ln_", "fc1": "c_fc",
    "fc2": "c_proj", "self_attn": "attn",
}  # fmt: skip


def rename(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def unet_name(name: str, has_attention: list[bool]) -> str:
    """A name of diffusers' UNet in its authors' words."""
    if (end := name.rpartition(".")[0]) in UNET_ENDS:
        return name.replace(end, UNET_ENDS[end])
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)", name):
        place = 1 if match[1] == "attentions" else 2 * int(match[2])
        return rename(name.replace(match[0], f"middle_block.{place}"), RESNET if match[1] == "resnets" else {})
    match = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)(\.conv)?", name)
    assert match, name
    down, block, kind, layer = match[1] == "down", int(match[2]), match[3], int(match[4])
    if kind == "resnets":
        match = re.match(r"\w+\.\d\.\w+\.\d", name)
        assert match
    place = block * (LAYERS + 1) + layer + down
    inner = {"resnets": "0", "attentions": "1"}.get(kind)
    if kind == "downsamplers":
        place, inner = place + LAYERS, "0.op"
    if kind == "upsamplers":
        place, inner = place + LAYERS, "2.conv" if has_attention[block] else "1.conv"
    new = f"{'input' if down else 'output'}_blocks.{place}.{inner}"
    return rename(name.replace(match[0], new), RESNET if kind == "resnets" else {})


def vae_name(name: str, levels: int) -> str:
    name = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    attention = {
        "mid_block.attentions.0": "mid.attn_1", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
        "to_out.0": "proj_out",
    }  # fmt: skip
    table = {
        "down_blocks": "down", "resnets": "block", "downsamplers.0": "downsample", "upsamplers.0": "upsample",
        "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", **attention,
    }  # fmt: skip
    return rename(name, table)


def authors_weights(unet: Any, vae: Any, text: Any) -> dict[str, torch.Tensor]:
    """All weights as the authors' file has them, with what else is in it."""
    has_attention = ["Attn" in kind for kind in unet.config.up_block_types]
    weights = {
        "model.diffusion_model." + unet_name(name, has_attention): value for name, value in unet.state_dict().items()
    }
    for name, value in vae.state_dict().items():
        new = vae_name(name, len(vae.config.block_out_channels))
        conv = "attn_1" in new and value.ndim == 2  # there a convolution of 1x1
        weights["first_stage_model." + new] = value[:, :, None, None] if conv else value
    prefix, states = "cond_stage_model.model.", text.state_dict()
    for name, value in states.items():
        new = prefix + rename(name.removeprefix("text_model."), TEXT)
        if match := re.search(r"(.*)\.q_proj\.(weight|bias)", new):
            parts = [states[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            weights[f"{match[1]}.in_proj_{match[2]}"] = torch.cat(parts)
        elif ".k_proj" not in new and ".v_proj" not in new:
            weights[new] = value
    last = f"{prefix}transformer.resblocks.{text.config.num_hidden_layers}"
    first = f"{prefix}transformer.resblocks.0"
    weights |= {key.replace(first + ".", last + "."): value for key, value in weights.items() if first + "." in key}
    width = text.config.hidden_size
    more = {f"{prefix}text_projection": (width, width), f"{prefix}logit_scale": (), "low_scale_model.betas": (1000,)}
    device = unet.device
    weights |= {key: torch.zeros(shape, device=device) for key, shape in {**more, "betas": (1000,)}.items()}
    return {key: value.clone().contiguous() for key, value in weights.items()}


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Any:
    """The true architecture at a sixteenth of its width."""
    patch = pytest.MonkeyPatch()
    for name in ("unet_config", "vae_config", "text_config"):
        original = getattr(architecture, name)
        patch.setattr(architecture, name, lambda original=original: original(16))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def pair(narrow: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same random weights as a folder and as a file."""
    from conftest import save_layout
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(**architecture.unet_config())
    vae = AutoencoderKL(**architecture.vae_config())
    text = CLIPTextModel(CLIPTextConfig(**architecture.text_config())).eval()
    folder: Path = tmp_path_factory.mktemp("model")
    save_layout(folder, unet, vae, width=16)
    text.save_pretrained(folder / "text_encoder")
    give_clips_ids(folder / "tokenizer")
    file = folder / "x4-upscaler-ema.safetensors"
    save_file(authors_weights(unet, vae, text), file)
    return folder, file


def give_clips_ids(tokenizer: Path) -> None:
    vocabulary = json.loads((tokenizer / "vocab.json").read_text())
    words = [word for word in vocabulary if not word.startswith("<|")]
    numbered = {word: index for index, word in enumerate(words)}
    assert words[0] == "!"  # the padding of Stable Diffusion 2
    numbered |= {"<|startoftext|>": single_file.START, "<|endoftext|>": single_file.END}
    (tokenizer / "vocab.json").write_text(json.dumps(numbered))
    path = tokenizer / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "!"}))


def make(model: Path, **options: Any) -> DiffusionX4:
    settings: dict[str, Any] = {"model": str(model), "steps": 2, "guidance_scale": 5.0, **options}
    engine = load(Settings(**settings), CPU)
    assert isinstance(engine, DiffusionX4)
    return engine


def enlarged(engine: DiffusionX4) -> torch.Tensor:
    picture = torch.rand(1, 3, 24, 16, generator=torch.Generator().manual_seed(1))
    result = enlarge(engine, picture, Place(height=24, width=16), Choice(1, 0))
    assert result.std() > 0.01
    return result


def test_equals_the_folder_to_the_bit_without_a_tokenizer(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = pair
    expected = enlarged(make(folder))
    monkeypatch.setattr(prompts, "CLIPTokenizer", None)
    assert torch.equal(enlarged(make(file)), expected)


def test_every_weight_is_that_of_the_folder(pair: tuple[Path, Path]) -> None:
    folder, file = pair
    loaded = single_file.load(file, torch.device("cpu"), torch.float32, torch.float32)
    modules = dict(zip(("unet", "vae", "text_encoder"), loaded, strict=True))
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        saved, found = load_file(folder / part / f"{name}.safetensors"), modules[part].state_dict()
        saved = {key.removeprefix("text_model."): value for key, value in saved.items()}
        assert found.keys() == saved.keys()
        assert all(torch.equal(found[key], value) for key, value in saved.items())


def test_a_prompt_takes_the_tokenizer_given(pair: tuple[Path, Path]) -> None:
    folder, file = pair
    texts = {"prompt": "a boat!", "negative_prompt": "fog"}
    result = enlarged(make(file, tokenizer=str(folder / "tokenizer"), **texts))
    assert torch.equal(result, enlarged(make(folder, **texts)))
    assert not torch.equal(result, enlarged(make(file)))


def test_the_padding_is_the_models_whatever_the_tokenizers_is(pair: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    folder, _ = pair
    shutil.copytree(folder / "tokenizer", tmp_path / "other")
    path = tmp_path / "other" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<|endoftext|>"}))
    ids, mask = prompts.single_file_tokens(str(tmp_path / "other"))("a boat")
    assert ids.shape == mask.shape == (1, 77) and ids[0, 0] == single_file.START
    length = int(mask.sum())
    assert ids[0, length - 1] == single_file.END and (ids[0, length:] == 0).all()
    assert torch.equal(
        prompts.single_file_tokens(None)("")[0], torch.tensor([[single_file.START, single_file.END] + 75 * [0]])
    )


def test_a_long_prompt_is_cut_and_told_of(pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    folder, _ = pair
    ids, _ = prompts.single_file_tokens(str(folder / "tokenizer"))("a " * 100)
    assert ids.shape == (1, 77) and ids[0, -1] == single_file.END
    assert "left out" in caplog.text


@pytest.mark.parametrize("folder", [None, "some/id"])
def test_a_prompt_without_a_tokenizer_says_what_to_do(
    pair: tuple[Path, Path], folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "hf_hub_download", functools.partial(prompts.hf_hub_download, cache_dir=tmp_path))
    with pytest.raises(EngineError, match=r"cannot be loaded .*--tokenizer FOLDER"):
        make(pair[1], prompt="a boat", tokenizer=folder)


def test_another_tokenizer_is_refused(pair: tuple[Path, Path], tiny_x4: Path, tmp_path: Path) -> None:
    for folder in (tiny_x4 / "tokenizer", tmp_path):
        with pytest.raises(EngineError, match="tokenizer = "):
            make(pair[1], prompt="a boat", tokenizer=str(folder))


def test_half_precision_is_that_of_the_folder(pair: tuple[Path, Path]) -> None:
    folder, file = pair
    assert torch.equal(enlarged(make(file, dtype="bfloat16")), enlarged(make(folder, dtype="bfloat16")))


def test_it_is_told_by_its_header(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert claims.is_stable_diffusion(pair[1])
    save_file({"body.0.weight": torch.zeros(1)}, tmp_path / "net.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    (tmp_path / "huge.safetensors").write_bytes(b"\xff" * 64)
    for name in ("net", "cut", "huge", "none"):
        assert not claims.is_stable_diffusion(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("key", "part"), [("label_emb", "unet"), ("decoder.conv_in", "vae"), ("ln_final", "text encoder")]
)
def test_another_model_is_refused(pair: tuple[Path, Path], tmp_path: Path, key: str, part: str) -> None:
    """Stable Diffusion itself has no noise level, others have other text encoders."""
    weights = {name: value for name, value in load_file(pair[1]).items() if key not in name}
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(EngineError, match=f"is no x4 upscaler: .* {part}"):
        make(tmp_path / "other.safetensors")


def test_a_cut_file_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(pair[1].read_bytes()[:-1000])
    with pytest.raises(EngineError, match=r"cut\.safetensors"):
        make(tmp_path / "cut.safetensors")


def test_a_revision_makes_no_sense(pair: tuple[Path, Path]) -> None:
    with pytest.raises(EngineError, match="revision"):
        make(pair[1], revision="abc")


def test_identity_is_that_of_the_content(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = pair
    one = make(file).identity
    assert one == make(file, steps=1, seed=3).identity != make(folder).identity
    weights = load_file(file)
    changed = {name: value * (1.01 if name.startswith("first_stage_model") else 1) for name, value in weights.items()}
    save_file(changed, tmp_path / file.name)
    assert make(tmp_path / file.name).identity != one


@pytest.mark.slow
def test_the_true_files_names_cover_every_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device: all 473,398,020 + 55,325,927 parameters, and those of the text encoder."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    monkeypatch.undo()
    for name in ("unet_config", "vae_config", "text_config"):
        narrowed = getattr(architecture, name)
        monkeypatch.setattr(architecture, name, narrowed.__defaults__[0])
    with torch.device("meta"):
        unet = UNet2DConditionModel(**architecture.unet_config())
        vae = AutoencoderKL(**architecture.vae_config())
        text = CLIPTextModel(CLIPTextConfig(**architecture.text_config()))
    weights = authors_weights(unet, vae, text)
    # The file on the hub has 3,531,269,371 bytes: in float32, and besides the names and a few tables of the schedule.
    assert 0 < 3_531_269_371 - 4 * sum(value.numel() for value in weights.values()) < 300_000

    class File:
        def __enter__(self) -> File:
            return self

        def __exit__(self, *_: object) -> None: ...

        def keys(self) -> list[str]:
            return list(weights)

        def get_tensor(self, name: str) -> torch.Tensor:
            return weights[name]

    monkeypatch.setattr(single_file, "safe_open", lambda *_, **__: File())
    modules = single_file.load(Path("x4"), torch.device("meta"), torch.float16, torch.bfloat16)
    counts = [sum(one.numel() for one in part.parameters()) for part in modules]
    assert counts == [473_398_020, 55_325_927, 340_387_840]
    assert next(modules[0].parameters()).dtype == torch.float16
