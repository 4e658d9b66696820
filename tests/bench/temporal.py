"""What carrying finished pictures gives: `off`, `steady`, `relay` and bicubic side by side, in one run.

    python tests/bench/temporal.py CLIP ... --frames 12 --crop 512x320     clips of yours are the truth
    python tests/bench/temporal.py CLIP --crf 28                           the input compressed by x264, or --grain 4
    python tests/bench/temporal.py CLIP --settings sampler=dpmpp_2m steps=8 noise_level=40
    python tests/bench/temporal.py --made                                  clips that are made, one of each kind

The truth, reduced by 4 (antialiased bicubic, 8 bit), is the input. Figures are those of `vidup compare`, means over the
frames: PSNR, SSIM, GMSD (lower is better), gradient energy (1 is the truth's), E*warp in squared codes of 255 along the
truth's motion (flicker; lower is better, the truth's own is the flow's error), tOF in pixels, the deviation over time
where the input stands still; the share of the input's pixels that the model worked on, halos counted; seconds a
frame, and of processors. PSNR's worst: of the frame where a mode is furthest below `off`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from statistics import fmean

import av
import material
import report
import torch
from quality import quantised

from vidup import Color, Frame, Runtime, Settings, Upscaler
from vidup.comparison import FrameFigures, Measured, measure
from vidup.media.decoding import decode
from vidup.media.probing import probe
from vidup.picture import color
from vidup.picture.resample import resize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import motions

MODES = ("off", "steady", "relay")
FULL = Color(0, full_range=True)


@dataclass(frozen=True)
class Result:
    figures: list[FrameFigures]
    share: float
    seconds: float
    work: float
    """Seconds of processors, which other programs do not lengthen."""


def truths(path: Path, count: int, skip: int, crop: tuple[int, int] | None) -> list[torch.Tensor]:
    """Frames of a clip one after another, (3, height, width), the middle cut out; sides are multiples of 8."""
    frames = []
    for frame in islice(decode(probe(path)), skip, skip + count):
        rgb = color.to_rgb(frame).clamp(0, 1)
        width, height = crop or (rgb.shape[-1], rgb.shape[-2])
        height, width = (min(a, b) // 8 * 8 for a, b in zip((height, width), rgb.shape[-2:], strict=True))
        top, left = (rgb.shape[-2] - height) // 2, (rgb.shape[-1] - width) // 2
        frames.append(rgb[:, top : top + height, left : left + width].contiguous())
    return frames


def grainy(frames: list[torch.Tensor], sigma: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [quantised(f + sigma / 255 * torch.randn(f.shape, generator=generator)) for f in frames]


def compressed(frames: list[torch.Tensor], crf: float) -> tuple[list[torch.Tensor], list[float]]:
    """What x264 (preset medium) leaves of frames, and the step of each one's quantiser."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": str(crf)})
            stream.height, stream.width, stream.pix_fmt = frames[0].shape[-2], frames[0].shape[-1], "yuv420p"
            for frame in frames:
                codes = (frame * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
                container.mux(stream.encode(av.VideoFrame.from_ndarray(codes)))
            container.mux(stream.encode(None))
        found = list(decode(probe(path), settings=Settings()))
        return [quantised(color.to_rgb(frame)) for frame in found], [frame.quantiser for frame in found]


def video(frames: list[torch.Tensor], steps: list[float]) -> Iterator[Frame]:
    for index, (frame, step) in enumerate(zip(frames, steps, strict=True)):
        red, green, blue = (frame * 255).round().to(torch.uint8).numpy()
        yield Frame((green, blue, red), "gbrp", FULL, pts=index, time_base=Fraction(1, 25), quantiser=step)


def run(upscaler: Upscaler, frames: list[torch.Tensor], steps: list[float], truth: list[torch.Tensor]) -> Result:
    upscaler.reset()
    began, worked = time.perf_counter(), time.process_time()
    results = [color.to_rgb(frame) for frame in upscaler.frames(video(frames, steps))]
    seconds, work = ((now - then) / len(frames) for now, then in ((time.perf_counter(), began),
                                                                    (time.process_time(), worked)))  # fmt: skip
    computed, total = upscaler.computed
    share = computed / total if total else float(upscaler.engine.invents)
    figures, before = [], None
    for index, pair in enumerate(zip(truth, results, strict=True)):
        figures.append(measure(index / 25, *pair, before))
        before = pair
    return Result(figures, share, seconds, work)


def cells(name: str, result: Result, off: Result | None) -> list[str]:
    one = Measured(tuple(result.figures), 0).mean()
    pairs = zip(result.figures, off.figures, strict=True) if off else ()
    worst = min((mine.psnr - theirs.psnr for mine, theirs in pairs if theirs.psnr < 99), default=None)
    told = [f"{one.psnr:.2f}", "" if worst is None else f"{worst:+.2f}", f"{one.ssim:.4f}", f"{one.gmsd:.4f}"]
    told.append(f"{one.gradient_energy:.3f}")
    told += ["-" if x is None else f"{x:.2f}" for x in (one.warp_error, one.flow_distance, one.still_deviation)]
    return [name, *told, f"{result.share:.2f}", f"{result.seconds:.2f}", f"{result.work:.2f}"]


def averaged(results: list[Result]) -> Result:
    """The mean over clips, each counted alike."""
    return Result(
        [Measured(tuple(result.figures), 0).mean() for result in results],
        fmean(result.share for result in results),
        fmean(result.seconds for result in results),
        fmean(result.work for result in results),
    )


def value(text: str) -> tuple[str, str | int | float]:
    name, _, given = text.partition("=")
    for kind in (int, float):
        try:
            return name, kind(given)
        except ValueError:
            continue
    return name, given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", type=Path, help="the truth: files of any size")
    parser.add_argument("--made", nargs="*", choices=motions.CLASSES, metavar="KIND", help=", ".join(motions.CLASSES))
    parser.add_argument("--frames", type=int, default=12, help="of each clip (default: 12)")
    parser.add_argument("--skip", type=int, default=0, help="frames at a clip's beginning that are left out")
    parser.add_argument("--crop", type=material.size, help="512x320: the middle of the truth")
    parser.add_argument("--crf", type=float, help="compress the input by x264")
    parser.add_argument("--grain", type=float, help="codes of noise in the input, before it is compressed")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--settings", nargs="*", type=value, default=[], metavar="NAME=VALUE")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    runtime, options = Runtime(device=arguments.device), dict(arguments.settings)
    ways = {mode: Upscaler(Settings.preset(arguments.preset, temporal=mode, **options), runtime)
            for mode in arguments.modes}  # fmt: skip
    ways |= {"bicubic": Upscaler(Settings(model="bicubic"), runtime)}
    for way in ways.values():
        way.reset()
    made = list(motions.CLASSES) if arguments.made == [] else arguments.made or []
    width, height = arguments.crop or (384, 256)
    sources = {path.stem[:20]: lambda path=path: truths(path, arguments.frames, arguments.skip, arguments.crop)
               for path in arguments.clips}  # fmt: skip
    sources |= {name: lambda name=name: motions.clip(name, (height, width), arguments.frames) for name in made}
    rows, found = [], {name: [] for name in ways}
    for clip, frames_of in sources.items():
        truth = [quantised(frame) for frame in frames_of()]
        frames = [quantised(resize(f[None], (f.shape[-2] // 4, f.shape[-1] // 4))[0]) for f in truth]
        frames = grainy(frames, arguments.grain) if arguments.grain else frames
        steps = [0.0] * len(frames)
        if arguments.crf is not None:
            frames, steps = compressed(frames, arguments.crf)
        for name, way in ways.items():
            found[name].append(run(way, frames, steps, truth))
            off = found["off"][-1] if name != "off" and "off" in found and found["off"] else None
            rows.append([clip, *cells(name, found[name][-1], off)])
            print(".", end="", file=sys.stderr, flush=True)
        floor = Measured(tuple(found[name][-1].figures), 0).mean().warp_error_truth
        rows.append([clip, "truth", *[""] * 5, "-" if floor is None else f"{floor:.2f}"])
    for name, results in found.items() if len(sources) > 1 else ():
        rows.append(["mean", *cells(name, averaged(results), None)])
    heads = (
        "clip",
        "mode",
        "PSNR",
        "worst",
        "SSIM",
        "GMSD",
        "energy",
        "E*warp",
        "tOF",
        "still",
        "share",
        "s/frame",
        "CPU s",
    )
    title = " ".join(["temporal.py", *sys.argv[1:]])
    print(file=sys.stderr)
    report.show(title, heads, [[*row, *[""] * (len(heads) - len(row))] for row in rows], report.facts(arguments.device))


if __name__ == "__main__":
    main()
