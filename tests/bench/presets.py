"""What each preset costs, and how near it comes to `reference`.

    python tests/bench/presets.py                                    mini's weights, on the samples
    python tests/bench/presets.py --model FOLDER --device cuda       the x4 upscaler that you have, on the samples
    python tests/bench/presets.py --prompt "a harbour" --clips CLIP ...

Every preset's sampler, steps, guidance and decoder with one model and one seed. Figures are PSNR and SSIM of luma
against what `reference` gives, and against the truth: each frame is reduced by 4 to make the input. Evaluations are of
the UNet, a text and a window each; seconds are the engine's, a frame.

Mini is not the x4 upscaler: it was trained for few steps, predicts the sample and reads no text, so that on it guidance
changes nothing, a tiny decoder does not fit and is left out, and the figures rank samplers, not pictures. What the
presets are worth on the x4 upscaler only its weights can tell: give them with --model.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import quality
import report
import torch

from vidup import Runtime, Settings, Upscaler
from vidup.comparison import BORDER
from vidup.errors import VidupError
from vidup.picture.metrics import luma, psnr, ssim
from vidup.picture.resample import resize
from vidup.presets import preset_names

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
NAMES = ("steps", "sampler", "guidance_scale", "guidance_start", "guidance_end", "noise_level", "vae", "vae_attention")


def likeness(one: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
    """PSNR in dB and SSIM of luma, without the border."""
    first, second = (luma(x.clamp(0, 1))[0, BORDER:-BORDER, BORDER:-BORDER] for x in (one, other))
    return psnr(first, second), ssim(first, second)


def settings_of(name: str, arguments: argparse.Namespace) -> Settings:
    """A preset's way of sampling with the model that is asked for, and with mini its own noise level."""
    preset = Settings.preset(name)
    options: dict[str, Any] = {key: getattr(preset, key) for key in NAMES}
    if arguments.model == "mini":
        options |= {"vae": None, "noise_level": 0}
    return Settings(model=arguments.model, prompt=arguments.prompt, **options)


def run(settings: Settings, arguments: argparse.Namespace, inputs: list[torch.Tensor]) -> dict[str, Any]:
    """Pictures of all inputs, what they took a frame, and how often the UNet was asked."""
    with Upscaler(settings, Runtime(device=arguments.device)) as upscaler:
        upscaler(inputs[0])  # loads, compiles, warms up
        began = time.perf_counter()
        pictures = [upscaler(one).cpu() for one in inputs]
        seconds = (time.perf_counter() - began) / len(inputs)
        height, width = inputs[0].shape[-2:]
        flops, evaluations = upscaler.engine.flops(height, width, upscaler.choose(height, width))
    return {"pictures": pictures, "seconds": seconds, "evaluations": evaluations, "flops": flops}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="a folder, a file or a hub id of the x4 upscaler")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompt", default="")
    parser.add_argument("--frames", type=int, default=1, help="of each clip")
    parser.add_argument("--clips", nargs="+", type=Path, default=[SAMPLES / "film.mp4", SAMPLES / "game.mkv"])
    parser.add_argument("--presets", nargs="+", default=[n for n in preset_names() if n not in ("mini", "x2")])
    arguments = parser.parse_args()
    truths = [frame for clip in arguments.clips for frame in quality.spread(clip, arguments.frames)]
    inputs = [quality.quantised(resize(truth, (truth.shape[-2] // 4, truth.shape[-1] // 4))) for truth in truths]
    names = ["reference", *(name for name in arguments.presets if name != "reference")]
    rows: list[tuple[object, ...]] = []
    reference: list[torch.Tensor] = []
    for name in names:
        settings = settings_of(name, arguments)
        try:
            found = run(settings, arguments, inputs)
        except VidupError as error:
            rows.append((name, *[""] * 7, f"not run: {error}"))
            continue
        reference = reference or found["pictures"]
        near = [likeness(*pair) for pair in zip(reference, found["pictures"], strict=True)]
        true = [likeness(*pair) for pair in zip(truths, found["pictures"], strict=True)]
        to_reference = ("", "") if name == "reference" else (f"{fmean(p for p, _ in near):.2f}",
                                                             f"{fmean(s for _, s in near):.4f}")  # fmt: skip
        rows.append((name, settings.steps, settings.sampler, f"{found['evaluations']:g}",
                     f"{found['flops'] / 1e12:.3g}", f"{found['seconds']:.2f}", *to_reference,
                     f"{fmean(p for p, _ in true):.2f}", f"{fmean(s for _, s in true):.4f}"))  # fmt: skip
    heads = ("preset", "steps", "sampler", "evaluations", "TFLOP", "seconds",
             "PSNR to reference", "SSIM", "PSNR to truth", "SSIM")  # fmt: skip
    title = f"{arguments.model}, {len(inputs)} frames of {inputs[0].shape[-1]}x{inputs[0].shape[-2]}"
    report.show(title, heads, [(*row, *[""] * (len(heads) - len(row))) for row in rows], report.facts(arguments.device))


if __name__ == "__main__":
    main()
