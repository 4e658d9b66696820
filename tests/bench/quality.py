"""How near the truth: bicubic, bicubic with the anchor, and mini, on clips of your own.

    python tests/bench/quality.py CLIP [CLIP ...] [--frames 3]

Frames spread over each clip are reduced by 4 (antialiased bicubic, 8 bit) to make the input; the clip is the truth.
Luma (BT.709), 8 px border left out. GMSD: lower is better. Energy: gradient energy against the truth's, 1 is best.
Back: PSNR of the result, reduced by 4, against the input.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch

from vidup import Runtime, Settings, Upscaler
from vidup.compare import BORDER
from vidup.media.decoding import decode
from vidup.media.probing import probe
from vidup.picture import color
from vidup.picture.metrics import gmsd, gradient_energy, luma, psnr, ssim
from vidup.picture.resample import anchor, resize


def spread(path: Path, count: int) -> list[torch.Tensor]:
    """Frames spread evenly over a clip, (1, 3, height, width) in [0, 1], sides cut to multiples of 4."""
    info = probe(path)
    wanted = {round((index + 0.5) * info.frames / count) for index in range(count)}
    frames = [color.to_rgb(f).clamp(0, 1)[None] for index, f in enumerate(decode(info)) if index in wanted]
    return [frame[..., : frame.shape[-2] // 4 * 4, : frame.shape[-1] // 4 * 4] for frame in frames]


def quantised(rgb: torch.Tensor) -> torch.Tensor:
    return (rgb.clamp(0, 1) * 255).round() / 255


def row(truth: torch.Tensor, low_res: torch.Tensor, result: torch.Tensor) -> list[float]:
    result = quantised(result)
    one, other = (luma(x)[0, BORDER:-BORDER, BORDER:-BORDER] for x in (truth, result))
    energy = gradient_energy(other) / gradient_energy(one)
    back = psnr(low_res, resize(result, low_res.shape[-2:]))
    return [psnr(one, other), ssim(one, other), gmsd(one, other), energy, back]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--frames", type=int, default=3, help="of each clip (default: 3)")
    arguments = parser.parse_args()
    runtime = Runtime(device="cpu")
    bicubic, mini = Upscaler(Settings(model="bicubic"), runtime), Upscaler(Settings.preset("mini"), runtime)
    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "bicubic": lambda low: bicubic(low),
        "bicubic + anchor": lambda low: anchor(bicubic(low), low, 5),
        "mini": lambda low: mini(low),
    }
    means: dict[str, list[list[float]]] = {name: [] for name in ways}
    print(f"{'clip':22} {'':17} {'PSNR':>7} {'SSIM':>7} {'GMSD':>7} {'energy':>7} {'back':>6} {'s/frame':>8}")
    for path in arguments.clips:
        truths = spread(path, arguments.frames)
        for name, way in ways.items():
            rows, began = [], time.perf_counter()
            for truth in truths:
                low_res = quantised(resize(truth, (truth.shape[-2] // 4, truth.shape[-1] // 4)))
                rows.append(row(truth, low_res, way(low_res)))
            seconds = (time.perf_counter() - began) / len(truths)
            figures = [fmean(column) for column in zip(*rows, strict=True)]
            means[name].append(figures)
            print(line(path.stem[:22], name, figures) + f" {seconds:8.2f}", flush=True)
    for name, several in means.items():
        print(line("mean", name, [fmean(column) for column in zip(*several, strict=True)]))


def line(clip: str, name: str, figures: list[float]) -> str:
    likeness, similarity, deviation, energy, back = figures
    return f"{clip:22} {name:17} {likeness:7.2f} {similarity:7.4f} {deviation:7.4f} {energy:7.3f} {back:6.1f}"


if __name__ == "__main__":
    main()
