"""Clips and checkpoints that the tests make themselves."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from vidup.engines import libraries
from vidup.media.encoder import _FRAME_FLAGS

with suppress(ImportError), libraries.deferred():  # as vidup imports it: torchvision may be built for another torch
    import spandrel  # noqa: F401

torch.set_num_threads(1)  # the tests themselves run side by side

RATE = 44100


def pattern(index: int, width: int, height: int) -> np.ndarray:
    """An RGB picture with smooth light, an edge that moves and a texture: (height, width, 3) uint8."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    red = 128 + 90 * np.sin(x / 9 + index / 5)
    green = 128 + 90 * np.cos(y / 7 - index / 6)
    blue = np.where(x + 2 * index > width / 2, 200, 40) + 15 * np.sin(x * 1.3) * np.sin(y * 1.1)
    return np.stack([red, green, blue], -1).clip(0, 255).astype(np.uint8)


_frozen = 0
"""How many modules there were when what was in memory was last set aside."""


@pytest.fixture(autouse=True)
def libraries_are_no_garbage() -> None:
    """Each upscaler that is closed collects garbage, among all that torch and pytest hold, if it were not set aside:
    most of the time of a small job."""
    global _frozen
    if len(sys.modules) > _frozen + 30:  # some are imported by the first test that needs them
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


@pytest.fixture(autouse=True, scope="session")
def unflushed() -> Iterator[None]:
    """No test pulls the plug: what is written need not be on the disk before the next one, however slow that is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)  # of one that is open, as ever
        yield


@pytest.fixture(autouse=True)
def same_log() -> Iterator[None]:
    """The command line leaves a handler with the stream of its test, which is closed for those after it."""
    log = logging.getLogger("vidup")
    before = log.handlers, log.level, log.propagate
    yield
    log.handlers, log.propagate = before[0], before[2]
    log.setLevel(before[1])


@pytest.fixture(autouse=True)
def same_priority() -> Iterator[None]:
    """No test may make its process, and so all tests after it, a real-time one (see `encoder.same_priority`)."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
    yield
    found = os.sched_getscheduler(0)
    os.sched_setscheduler(0, policy, param)
    assert found == policy


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a clip: pictures at given times, with sound."""

    def make(
        name: str = "clip.mp4",
        times: Sequence[int] = tuple(range(0, 12 * 512, 512)),
        size: tuple[int, int] = (64, 48),
        time_base: Fraction = Fraction(1, 12800),
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        bframes: int = 2,
        sound: bool = True,
        tags: tuple[int, int, int, int] = (1, 1, 1, 1),
        audio_codec: str = "aac",
        sound_seconds: float | None = None,
        rotate: int = 0,
        subtitles: Sequence[str] = (),
        aspect: Fraction = Fraction(1),
        draw: Callable[[int, int, int], np.ndarray] = pattern,
    ) -> Path:
        path = tmp_path / name
        width, height = size
        kind = {"mkv": "matroska", "ts": "mpegts"}.get(path.suffix[1:], path.suffix[1:])
        options = {"movie_timescale": str(time_base.denominator)} if kind in ("mp4", "mov") else {}
        with av.open(str(path), "w", format=kind, container_options=options) as container:
            stream = container.add_stream(codec, rate=25)
            context = stream.codec_context
            context.width, context.height, context.pix_fmt = width, height, pix_fmt
            context.time_base = stream.time_base = time_base
            context.flags |= _FRAME_FLAGS & ~av.codec.context.Flags.global_header
            context.colorspace, context.color_primaries, context.color_trc, context.color_range = tags
            if aspect != 1:
                context.sample_aspect_ratio = aspect
            if codec == "libx264":
                context.max_b_frames = bframes
                context.options = {"crf": "12", "preset": "veryfast", "g": "6"}
            audio = container.add_stream(audio_codec, rate=RATE if audio_codec == "aac" else 48000) if sound else None
            texts = container.add_mux_stream("subrip") if subtitles else None
            if rotate:
                stream.set_display_rotation(rotate)
            steps = [b - a for a, b in zip(times, times[1:], strict=False)] or [512]
            for index, (time, step) in enumerate(zip(times, [*steps, steps[-1]], strict=False)):
                frame = av.VideoFrame.from_ndarray(draw(index, width, height)).reformat(
                    format=pix_fmt, dst_colorspace=tags[0] if tags[0] != 2 else None
                )
                frame.pts, frame.duration, frame.time_base = time, step, time_base
                for packet in stream.encode(frame):
                    container.mux(packet)
            for packet in stream.encode(None):
                container.mux(packet)
            for index, text in enumerate(subtitles):
                packet = av.Packet(text.encode())
                packet.stream, packet.time_base = texts, Fraction(1, 1000)
                packet.pts = packet.dts = 100 * index
                packet.duration = 90
                container.mux(packet)
            if audio is not None:
                _add_sound(container, audio, sound_seconds or float((times[-1] + steps[-1]) * time_base))
        return path

    return make


def _add_sound(container: Any, audio: Any, seconds: float) -> None:
    rate = audio.codec_context.sample_rate
    samples = np.sin(np.arange(int(seconds * rate)) * 0.06).astype(np.float32) * 0.3
    resampler = av.AudioResampler(audio.codec_context.format, audio.codec_context.layout, rate)
    size = 1024
    for start in range(0, len(samples), size):
        frame = av.AudioFrame.from_ndarray(samples[None, start : start + size], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        for part in resampler.resample(frame):
            for packet in audio.encode(part):
                container.mux(packet)
    for packet in audio.encode(None):
        container.mux(packet)


def video_times(path: Path) -> list[Fraction]:
    """When each frame is shown, in seconds, as PyAV decodes it."""
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(container.streams.video[0])]


def audio_packets(path: Path, index: int = 0) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.audio[index]) if packet.size]


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[0])]


def loaded(settings: Any, runtime: Any = None) -> Any:
    """An upscaler whose engine is there; on the CPU where not given."""
    from vidup import Runtime, Upscaler

    upscaler = Upscaler(settings, runtime or Runtime(device="cpu"))
    _ = upscaler.engine
    return upscaler


def enlarge(upscaler: Any, clip: torch.Tensor, place: Any = None) -> torch.Tensor:
    """What its engine makes of a clip with the choice for its size; the whole frame where no place is given."""
    from vidup import engines

    height, width = clip.shape[-2:]
    place = place or engines.Place(height=height, width=width)
    return engines.enlarge(upscaler.engine, clip, place, upscaler.choose(height, width))


@pytest.fixture
def engine(tiny_x4: Path) -> Callable[..., Any]:
    """Makes an upscaler with the x4 engine over `tiny_x4` on the CPU, with a prompt."""
    from vidup import Settings

    def make(runtime: Any = None, **options: Any) -> Any:
        return loaded(Settings(**{"model": str(tiny_x4), "steps": 4, "prompt": "a harbour", **options}), runtime)

    return make


@pytest.fixture(scope="session")
def tiny_x4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the hub's layout with the true classes, narrow and with random weights."""
    folder: Path = tmp_path_factory.mktemp("tiny_x4")
    narrow_x4(folder)
    return folder


def narrow_x4(folder: Path) -> None:
    """Write `tiny_x4` into a folder."""
    save_layout(folder, *narrow_nets(), width=24)


def narrow_nets() -> tuple[Any, Any]:
    """UNet and VAE of `tiny_x4`."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=7,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=4,
        only_cross_attention=(True, False),
        use_linear_projection=True,
        num_class_embeds=1000,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=0.08333,
    )
    return unet, vae


@pytest.fixture(scope="session")
def tiny_x2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The latent upscaler's true classes, narrow and with random weights, in the hub's layout."""
    folder: Path = tmp_path_factory.mktemp("tiny_x2")
    narrow_x2(folder)
    return folder


def narrow_x2(folder: Path) -> None:
    """Write `tiny_x2` into a folder."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        act_fn="gelu",
        attention_head_dim=8,
        norm_num_groups=None,
        block_out_channels=(32, 32, 64, 64),
        time_cond_proj_dim=128 + 24,
        conv_in_kernel=1,
        conv_out_kernel=1,
        cross_attention_dim=24,
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
        mid_block_type=None,
        in_channels=8,
        out_channels=5,
        layers_per_block=1,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
    )
    save_layout(folder, unet, vae, width=24)
    EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="sample"
    ).save_pretrained(folder / "scheduler")
    (folder / "low_res_scheduler" / "scheduler_config.json").unlink()
    (folder / "low_res_scheduler").rmdir()
    index = json.loads((folder / "model_index.json").read_text())
    for key in ("low_res_scheduler", "max_noise_level", "watermarker", "safety_checker", "feature_extractor"):
        del index[key]
    index |= {
        "_class_name": "StableDiffusionLatentUpscalePipeline",
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models of random weights of three architectures that spandrel knows, each saved in another way."""
    pytest.importorskip("spandrel")
    from safetensors.torch import save_file
    from spandrel.architectures.Compact import Compact
    from spandrel.architectures.ESRGAN import ESRGAN
    from spandrel.architectures.SwinIR import SwinIR

    torch.manual_seed(0)
    folder: Path = tmp_path_factory.mktemp("checkpoints")
    paths = {
        name: folder / file for name, file in (("compact", "c.safetensors"), ("esrgan", "e.pth"), ("swin", "s.pt"))
    }
    save_file(Compact(num_feat=8, num_conv=3, upscale=2).state_dict(), paths["compact"])
    torch.save({"params_ema": ESRGAN(num_filters=8, num_blocks=1, scale=4).state_dict()}, paths["esrgan"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.meshgrid")
        swin = SwinIR(
            img_size=16, window_size=8, embed_dim=16, depths=[2], num_heads=[2], mlp_ratio=2, upscale=4,
            upsampler="pixelshuffledirect",
        )  # fmt: skip
    torch.save(swin.state_dict(), paths["swin"])
    return paths


def save_layout(folder: Path, unet: Any, vae: Any, width: int, layers: int = 2, heads: int = 2) -> None:
    """Save modules as the hub has them, with a text encoder of random weights and a tokenizer of bytes."""
    from diffusers import DDIMScheduler, DDPMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel

    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    letters = [chr(code) for code in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": 77,
                "bos_token": words[0],
                "eos_token": words[1],
                "pad_token": words[1],
                "unk_token": words[1],
            }
        )
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=77,
            projection_dim=width,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    text.save_pretrained(folder / "text_encoder")
    betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
    DDIMScheduler(
        **betas, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    ).save_pretrained(folder / "scheduler")
    DDPMScheduler(**betas).save_pretrained(folder / "low_res_scheduler")
    index = {
        "_class_name": "StableDiffusionUpscalePipeline",
        "max_noise_level": 350,
        "watermarker": [None, None],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "low_res_scheduler": ["diffusers", "DDPMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
