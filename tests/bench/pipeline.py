"""vidup against the tutorial's way, side by side in one run, from file to file.

    python tests/bench/pipeline.py [--frames N] [--size WxH] [--steps N] [--rounds N] [--only whole|tiles|mini] [--json]
    python tests/bench/pipeline.py --device cuda --width full --size 480x272 --tiled-size 856x480 \
        --frames 24 --batch 4 --steps 20 --rounds 1

The tutorial's way is what one writes after reading the model's page: decode with PyAV, one call of diffusers'
`StableDiffusionUpscalePipeline` a frame (or a 128 px tile, 16 px of overlap, pasted), encode with PyAV. Both sides
have the same weights, dtype, sampler (DDIM), steps, noise level, guidance 9 and encoder. vidup's anchor is on and is
paid for: without it vidup would not deliver what random weights make of the input.

Seconds are those of a whole job without loading the model: the tutorial's pipeline is loaded before the clock runs,
and of vidup's job the time between its events "loading" and "upscaling" is taken off (its one encoding of the prompt
goes with it). Where vidup compiles, its first clip, which does that, counts as the others do. Who goes first
alternates. A ratio is the tutorial's time over vidup's in the same round; that of CPU seconds, of all threads, is the
one to trust where other programs share the cores, and says nothing about a GPU.

That both sides do the same work is shown in the same run: a frame with the same noise on both, as PSNR of vidup's to
the pipeline's in float32.
The last lines tell what share of the device's measured FLOP/s vidup's UNet and VAE reach. The cases of `mini` are run
with the small model that ships with vidup, over eight times the frames; its VAE is vidup's own and comes to the
pipeline in the shape that the pipeline asks for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import diffusers
import material
import numpy as np
import report
import torch
import transformers
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_upscale as stock
from PIL import Image

import vidup
from vidup.bench import stopwatch, subjects
from vidup.engines.hub import MINI
from vidup.mini.model import load_checkpoint
from vidup.picture import noise

PROMPT = "a harbour at dusk, sharp"
TILE, OVERLAP = 128, 16
ENCODER = {"crf": "18", "preset": "medium", "x264-params": "mbtree=0:open-gop=0"}  # as vidup's


Taken = tuple[float, float]
"""Seconds that passed, and seconds of the CPU."""


@dataclass
class Case:
    """One comparison, and what a frame took in every round."""

    name: str
    model: Path
    frames: int
    steps: int
    size: tuple[int, int]
    prompt: str = ""
    tile: int = 0
    guidance: float = 9.0
    noise_level: int = 20
    vidup: list[Taken] = field(default_factory=list)
    tutorial: list[Taken] = field(default_factory=list)
    agreement: float | None = None
    """PSNR in dB between both sides' pictures from the same noise; of whole frames."""

    def ratios(self, which: int) -> list[float]:
        return [theirs[which] / ours[which] for theirs, ours in zip(self.tutorial, self.vidup, strict=True)]


def now() -> Taken:
    return time.perf_counter(), time.process_time()


def between(begin: Taken, end: Taken) -> Taken:
    return end[0] - begin[0], end[1] - begin[1]


class MiniVae(diffusers.ModelMixin):
    """The autoencoder of `mini` as diffusers' pipeline wants one. It adds the picture that its detail belongs to."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae, self.picture = vae, torch.empty(0)
        self.post_quant_conv = vae  # which the pipeline asks for its dtype
        # The pipeline takes its enlargement from the number of levels, and insists on this factor.
        self.config = SimpleNamespace(
            block_out_channels=(1, 1, 1), scaling_factor=0.08333, force_upcast=False,
            latent_channels=vae.config.latent_channels,
        )  # fmt: skip

    def decode(self, latents: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        (detail,) = self.vae.decode(latents * (self.config.scaling_factor / self.vae.config.scaling_factor))
        return (detail + self.vae.base(self.picture),)


def load_pipeline(model: Path, device: str, exact: bool = False) -> Any:
    """diffusers' pipeline over a model's folder: in half precision on CUDA, where `exact` does not forbid it."""
    dtype = torch.float16 if device.startswith("cuda") and model != MINI and not exact else torch.float32
    parts = {"vae": MiniVae(load_checkpoint(MINI)[1])} if model == MINI else {}
    pipeline = diffusers.StableDiffusionUpscalePipeline.from_pretrained(model, torch_dtype=dtype, **parts).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ask(pipeline: Any, case: Case, picture: Any, steps: int, **options: Any) -> Any:
    """One call of the pipeline, as the tutorial makes it."""
    if isinstance(pipeline.vae, MiniVae):
        given = picture if isinstance(picture, torch.Tensor) else torch.from_numpy(np.array(picture) / 255)
        given = given if given.ndim == 4 else given.permute(2, 0, 1)[None]
        pipeline.vae.picture = given.to(pipeline.device, torch.float32) * 2 - 1
    return pipeline(
        prompt=case.prompt, image=picture, num_inference_steps=steps, guidance_scale=case.guidance,
        noise_level=case.noise_level, **options,
    ).images[0]  # fmt: skip


def tutorial(pipeline: Any, source: Path, target: Path, case: Case, steps: int) -> Taken:
    """What the tutorial's way takes."""

    def enlarge(picture: Image.Image) -> Image.Image:
        return ask(pipeline, case, picture, steps)

    began = now()
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = None
        for frame in reader.decode(video=0):
            picture = frame.to_image()
            large = stitched(enlarge, picture) if case.tile else enlarge(picture)
            if stream is None:
                stream = writer.add_stream("libx264", rate=reader.streams.video[0].average_rate, options=ENCODER)
                stream.width, stream.height, stream.pix_fmt = large.width, large.height, "yuv420p"
            writer.mux(stream.encode(av.VideoFrame.from_image(large)))
        writer.mux(stream.encode(None))
    return between(began, now())


def stitched(enlarge: Callable[[Image.Image], Image.Image], picture: Image.Image) -> Image.Image:
    """Cut into tiles, enlarge each on its own, paste."""
    large = Image.new("RGB", (4 * picture.width, 4 * picture.height))
    for top in starts(picture.height):
        for left in starts(picture.width):
            box = (left, top, min(left + TILE, picture.width), min(top + TILE, picture.height))
            large.paste(enlarge(picture.crop(box)), (4 * left, 4 * top))
    return large


def starts(length: int) -> list[int]:
    """Where tiles begin; the last one is moved back to end with the picture."""
    step = TILE - OVERLAP
    return [*range(0, max(0, length - TILE), step), max(0, length - TILE)]


def ours(source: Path, target: Path, case: Case, steps: int, runtime: vidup.Runtime) -> Taken:
    """What vidup's job takes, without loading; and without compiling, where the first clip counts as the others do."""
    stamps: dict[tuple[str, int], Taken] = {}
    began = now()
    vidup.upscale(source, target, setting(case, steps), runtime=runtime,
                  on_progress=lambda event: stamps.setdefault((event.state, event.frame), now()))  # fmt: skip
    whole = between(began, now())
    compiling = stamps.get(("compiling", 0))
    loading = between(stamps["loading", 0], compiling or stamps["upscaling", 0])
    if compiling is None or case.frames <= runtime.batch:
        return between(loading, whole)
    first = stamps["upscaling", runtime.batch]
    others = between(first, stamps["upscaling", case.frames])
    share = runtime.batch / (case.frames - runtime.batch)
    excess = between((share * others[0], share * others[1]), between(compiling, first))
    return between(excess, between(loading, whole))


def measure(case: Case, folder: Path, pipeline: Any, arguments: argparse.Namespace) -> None:
    """Run the rounds of a case, after one step of each side over the same frames to warm up."""
    source = material.clip(folder / "in.mp4", case.frames, *case.size)
    targets = {"vidup": folder / "vidup.mp4", "tutorial": folder / "tutorial.mp4"}
    runtime = vidup.Runtime(
        device=arguments.device, overwrite=True, compile=arguments.compile, verify="fast", batch=arguments.batch
    )

    def run(side: str, steps: int) -> Taken:
        if side == "tutorial":
            return tutorial(pipeline, source, targets[side], case, steps)
        return ours(source, targets[side], case, steps, runtime)

    for side in targets:
        run(side, steps=1)
    if not case.tile:
        exact = pipeline if pipeline.unet.dtype == torch.float32 else load_pipeline(case.model, arguments.device, True)
        case.agreement = agreement(case, exact, arguments.device)
        del exact
    for number in range(arguments.rounds):
        for side in targets if number % 2 == 0 else reversed(targets):
            passed, cpu = (seconds / case.frames for seconds in run(side, case.steps))
            getattr(case, side).append((passed, cpu))
            print(f"{case.name}, round {number + 1}: {side} {passed:.2f} s a frame, CPU {cpu:.2f} s", file=sys.stderr)
    wanted = (case.frames, 4 * case.size[0], 4 * case.size[1])
    for side, target in targets.items():
        with av.open(str(target)) as result:
            pictures = [(frame.width, frame.height) for frame in result.decode(video=0)]
        if (len(pictures), *pictures[0]) != wanted:
            raise SystemExit(f"{side} gave {len(pictures)} frames of {pictures[0]}, expected {wanted}")


def agreement(case: Case, pipeline: Any, device: str) -> float:
    """PSNR in dB of vidup's picture against the pipeline's in float32, both from vidup's noise."""
    width, height = (side // 8 * 8 for side in case.size)
    latent = pipeline.vae.config.latent_channels
    fields = [noise.field(0, stream, channels, height, width)[None] for stream, channels in ((0, 3), (1, latent))]
    low_res, latents = (one.to(pipeline.device, pipeline.unet.dtype) for one in fields)
    picture = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.interpolate(picture, (height, width), mode="bilinear")
    drawn, stock.randn_tensor = stock.randn_tensor, lambda *_, **__: low_res
    try:
        theirs = ask(pipeline, case, picture, case.steps, latents=latents, output_type="np")
    finally:
        stock.randn_tensor = drawn
    settings = replace(setting(case, case.steps), anchor=0)
    with vidup.Upscaler(settings, vidup.Runtime(device=device)) as upscaler:
        ours = upscaler(picture)[0].permute(1, 2, 0).cpu().numpy()
    return float(-10 * np.log10(np.square(ours - theirs).mean()))


def setting(case: Case, steps: int) -> vidup.Settings:
    return vidup.Settings(
        model=str(case.model), prompt=case.prompt, guidance_scale=case.guidance, noise_level=case.noise_level,
        sampler="ddim", steps=steps, tile=case.tile, vae_attention="full",
        dtype="float32" if case.model == MINI else "auto",
    )  # fmt: skip


def reached(case: Case, arguments: argparse.Namespace) -> stopwatch.Measured:
    """What of the device's FLOP/s vidup's engine reaches on the whole frame."""
    settings = setting(case, case.steps)
    runtime = vidup.Runtime(device=arguments.device, compile=arguments.compile, batch=arguments.batch)
    with vidup.Upscaler(settings, runtime) as upscaler:
        frames, encoding = subjects.made_up("{}x{}".format(*case.size), case.frames, upscaler)
        return stopwatch.measure(upscaler, frames, encoding)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", choices=("narrow", "full"), default="narrow", help="an eighth of the widths, or all")
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument(
        "--size", type=material.size, default=(160, 96), metavar="WxH", help="of the frames taken whole"
    )
    parser.add_argument("--tiled-size", type=material.size, default=(224, 128), metavar="WxH",
                        help="of the frames taken in tiles; here both sides need two tiles of 128x128")  # fmt: skip
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("whole", "tiles", "mini"), help="leave the other cases out")
    parser.add_argument("--batch", type=int, default=1, help="vidup's, in frames or tiles")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = material.model(folder / "model", narrower=1 if arguments.width == "full" else 8)
        count, steps, size = arguments.frames, arguments.steps, arguments.size
        cases = [
            Case("whole, no prompt", model, count, steps, size),
            Case("whole, prompt", model, count, steps, size, PROMPT),
            Case("tiles, no prompt", model, count, steps, arguments.tiled_size, tile=TILE),
            Case("tiles, prompt", model, count, steps, arguments.tiled_size, PROMPT, TILE),
            Case("mini, no prompt", MINI, 8 * count, 3, size, noise_level=0),
            Case("mini, guidance 1", MINI, 8 * count, 3, size, noise_level=0, guidance=1.0),
        ]
        cases = [case for case in cases if case.name.startswith(arguments.only or "")]
        pipelines = {model: load_pipeline(model, arguments.device) for model in {case.model for case in cases}}
        for case in cases:
            measure(case, folder, pipelines[case.model], arguments)
        engines = [reached(case, arguments) for case in cases if not case.tile]

    known = report.facts(arguments.device) | {"threads": torch.get_num_threads()}
    if arguments.json:
        setting = {key: getattr(arguments, key) for key in ("width", "rounds")}
        found = [
            {**asdict(case), "model": case.model.name, "ratios": case.ratios(0),
             "ratio": statistics.median(case.ratios(0)), "cpu_ratio": statistics.median(case.ratios(1))}
            for case in cases
        ]  # fmt: skip
        print(
            json.dumps(
                {
                    "facts": known,
                    "settings": setting,
                    "cases": found,
                    "engine": [asdict(one) | {"share": one.share} for one in engines],
                },
                indent=2,
            )
        )
        return
    rows = []
    for case in cases:
        same = "" if case.agreement is None else f"{case.agreement:.1f}"
        sides = (statistics.median(taken[0] for taken in side) for side in (case.vidup, case.tutorial))
        numbers = (*sides, *case.ratios(0), *(statistics.median(case.ratios(which)) for which in (0, 1)))
        rows.append((case.name, "{}x{}".format(*case.size), *(f"{number:.2f}" for number in numbers), same))
    title = f"seconds a frame, {arguments.width} model, {arguments.steps} steps, {arguments.frames} frames"
    rounds = [f"round {number + 1}" for number in range(arguments.rounds)]
    report.show(title, ("case", "input", "vidup", "tutorial", *rounds, "ratio", "CPU ratio", "PSNR"), rows, known)
    for found in engines:
        print("\n".join(stopwatch.describe(found)))


if __name__ == "__main__":
    main()
