"""How near the truth: bicubic, bicubic with the anchor, mini, and a model of yours, on clips of yours.

    python tests/bench/quality.py CLIP [CLIP ...] [--frames 3]
    python tests/bench/quality.py CLIP ... --degrade clean crf=23 crf=28 crf=33 grain=5 [--model PEER.pth] [--vmaf]

Frames spread over each clip are reduced by 4 (antialiased bicubic, 8 bit) to make the input; the clip is the truth.
With crf=N the input is the middle one of five frames that follow each other, after x264 at that quality; with grain=N
it has Gaussian noise of N codes. Luma (BT.709), 8 px border left out. GMSD: lower is better. Energy: gradient energy
against the truth's, 1 is best. Back: PSNR of the result, reduced by 4, against the input. VMAF and VMAF-NEG: from an
ffmpeg that has libvmaf (that of the package imageio-ffmpeg has), of each frame alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from vidup import Runtime, Settings, Upscaler
from vidup.comparison import BORDER
from vidup.media.decoding import decode
from vidup.media.probing import probe
from vidup.mini.degrade import compressed
from vidup.picture import color
from vidup.picture.metrics import gmsd, gradient_energy, luma, psnr, ssim
from vidup.picture.resample import anchor, resize

AROUND = 2
Way = Callable[[torch.Tensor, float], torch.Tensor]


def spread(path: Path, count: int) -> list[torch.Tensor]:
    """Frames spread evenly over a clip, with two before and after each: (5, 3, height, width) in [0, 1], sides cut to
    multiples of 8."""
    info = probe(path)
    middles = [max(AROUND, min(info.frames - 1 - AROUND, int((i + 0.5) * info.frames / count))) for i in range(count)]
    runs: dict[int, list[torch.Tensor]] = {middle: [] for middle in middles}
    for index, frame in enumerate(decode(info)):
        for middle, run in runs.items():
            if abs(index - middle) <= AROUND:
                rgb = color.to_rgb(frame).clamp(0, 1)
                run.append(rgb[:, : rgb.shape[-2] // 8 * 8, : rgb.shape[-1] // 8 * 8])
    return [torch.stack(run) for run in runs.values()]


def quantised(rgb: torch.Tensor) -> torch.Tensor:
    return (rgb.clamp(0, 1) * 255).round() / 255


def degraded(run: torch.Tensor, how: str) -> tuple[torch.Tensor, float]:
    """The low resolution of a run's middle frame, (1, 3, h, w), and the step of its quantiser."""
    small = quantised(resize(run, (run.shape[-2] // 4, run.shape[-1] // 4)))
    kind, _, value = how.partition("=")
    if kind == "crf":
        pixels = [(one.permute(1, 2, 0) * 255).round().byte().numpy() for one in small]
        made, step = compressed([np.ascontiguousarray(one) for one in pixels], "libx264", int(value))
        return torch.from_numpy(made[AROUND]).permute(2, 0, 1)[None].float() / 255, step
    middle = small[AROUND : AROUND + 1]
    if kind == "grain":
        noise = torch.randn(1, 1, *middle.shape[-2:], generator=torch.Generator().manual_seed(0))
        return quantised(middle + float(value) / 255 * noise), 0.0
    if kind != "clean":
        raise SystemExit(f"--degrade {how}: expected clean, crf=N or grain=N")
    return middle, 0.0


def row(truth: torch.Tensor, low_res: torch.Tensor, result: torch.Tensor) -> list[float]:
    result = quantised(result)
    one, other = (luma(x)[0, BORDER:-BORDER, BORDER:-BORDER] for x in (truth, result))
    energy = gradient_energy(other) / gradient_energy(one)
    back = psnr(low_res, resize(result, low_res.shape[-2:]))
    return [psnr(one, other), ssim(one, other), gmsd(one, other), energy, back]


def ffmpeg() -> str:
    """An ffmpeg that has libvmaf."""
    found = [shutil.which("ffmpeg")]
    try:
        import imageio_ffmpeg

        found.append(imageio_ffmpeg.get_ffmpeg_exe())
    except ImportError:
        pass
    for one in filter(None, found):
        if "libvmaf" in subprocess.run([one, "-hide_banner", "-filters"], capture_output=True, text=True).stdout:
            return one
    raise SystemExit("--vmaf: no ffmpeg with libvmaf here; pip install imageio-ffmpeg")


def vmaf(program: str, truth: torch.Tensor, result: torch.Tensor) -> list[float]:
    """VMAF and VMAF-NEG of one frame."""
    height, width = truth.shape[-2:]
    with tempfile.TemporaryDirectory() as folder:
        inputs: list[str] = []
        for name, rgb in (("result", result), ("truth", truth)):
            path = Path(folder) / name
            path.write_bytes((quantised(rgb)[0].permute(1, 2, 0) * 255).round().byte().numpy().tobytes())
            inputs += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-i", str(path)]
        log, yuv = Path(folder) / "log", "scale=out_color_matrix=bt709,format=yuv420p"
        models = "version=vmaf_v0.6.1\\:name=vmaf|version=vmaf_v0.6.1neg\\:name=neg"
        graph = f"[0:v]{yuv}[a];[1:v]{yuv}[b];[a][b]libvmaf=model='{models}':log_fmt=json:log_path={log}"
        subprocess.run([program, "-v", "error", *inputs, "-lavfi", graph, "-f", "null", "-"], check=True)
        means = json.loads(log.read_text())["pooled_metrics"]
        return [means["vmaf"]["mean"], means["neg"]["mean"]]


def ways(model: str | None) -> dict[str, Way]:
    """What is compared, by name."""
    runtime = Runtime(device="cpu")

    def upscaling(settings: Settings) -> Way:
        upscaler = Upscaler(replace(settings, temporal="off"), runtime)

        def way(low: torch.Tensor, step: float) -> torch.Tensor:
            return upscaler.replace(quantiser=step)(low)

        return way

    bicubic = upscaling(Settings(model="bicubic"))
    found = {
        "bicubic": bicubic,
        "bicubic + anchor": lambda low, step: anchor(bicubic(low, step), low, 5),
        "mini": upscaling(Settings.preset("mini")),
        "mini, 5 rounds": upscaling(Settings.preset("mini", anchor=5, noise_level=0)),
    }
    if model is not None:
        found["model"] = upscaling(Settings(model=model))
        found |= {f"model, {n} rounds": upscaling(Settings(model=model, anchor=n)) for n in (0, 1, 5)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--frames", type=int, default=3, help="of each clip (default: 3)")
    parser.add_argument("--degrade", nargs="+", default=["clean"], metavar="HOW", help="clean, crf=N, grain=N")
    parser.add_argument("--model", help="another model beside mini, with the anchor as it is and by 0, 1 and 5 rounds")
    parser.add_argument("--crop", metavar="WxH", help="of the middle, in pixels of the truth, to save time")
    parser.add_argument("--vmaf", action="store_true")
    arguments = parser.parse_args()
    program = ffmpeg() if arguments.vmaf else None
    compared = ways(arguments.model)
    means: dict[tuple[str, str], list[list[float]]] = {}
    print(
        f"{'input':10} {'clip':22} {'':17} {'PSNR':>7} {'SSIM':>7} {'GMSD':>7} {'energy':>7} {'back':>6} {'CPU s':>6}"
    )
    for path in arguments.clips:
        runs = [cropped(run, arguments.crop) for run in spread(path, arguments.frames)]
        for how in arguments.degrade:
            lows = [degraded(run, how) for run in runs]
            for name, way in compared.items():
                rows = []
                for run, (low_res, step) in zip(runs, lows, strict=True):
                    truth, began = run[AROUND : AROUND + 1], time.process_time()
                    result = way(low_res, step)
                    seconds = time.process_time() - began
                    rows.append([*row(truth, low_res, result), seconds])
                    if program is not None:
                        rows[-1] += vmaf(program, truth, result)
                figures = [fmean(column) for column in zip(*rows, strict=True)]
                means.setdefault((how, name), []).append(figures)
                print(line(how, path.stem[:22], name, figures), flush=True)
    for (how, name), several in means.items():
        print(line(how, "mean", name, [fmean(column) for column in zip(*several, strict=True)]))


def cropped(run: torch.Tensor, size: str | None) -> torch.Tensor:
    if size is None:
        return run
    width, height = (int(side) // 8 * 8 for side in size.split("x"))
    top, left = max(0, run.shape[-2] - height) // 2, max(0, run.shape[-1] - width) // 2
    return run[..., top : top + height, left : left + width]


def line(how: str, clip: str, name: str, figures: list[float]) -> str:
    likeness, similarity, deviation, energy, back, seconds, *perceived = figures
    text = f"{how:10} {clip:22} {name:17} {likeness:7.2f} {similarity:7.4f} {deviation:7.4f} {energy:7.3f} {back:6.1f}"
    return f"{text} {seconds:6.2f}" + "".join(f" {one:6.2f}" for one in perceived)


if __name__ == "__main__":
    main()
