"""Train `mini`, on pictures that this package makes and on photographs, clean and as footage holds them.

    python -m vidup.mini.train --work ~/mini                       train; run it again to continue
    python -m vidup.mini.train --work ~/mini --photographs FOLDER  learn from photographs as well
    python -m vidup.mini.train --work ~/mini --begin               begin with the shipped weights
    python -m vidup.mini.train --work ~/mini --export              write the newest state as the checkpoint
    python -m vidup.mini.train --work ~/mini --measure FOLDER      measure it on the clips of a folder, for the card

The UNet learns the clean whitened detail z from its noisy version alpha * z + sigma * noise, at every noise level of
the schedule (Ho, Jain and Abbeel 2020), given the low-resolution picture with a little noise on it, whose level is the
class label: the further a frame of footage is from the clean picture, the higher (`vidup.picture.noise.levels_for`).
Without noise to start from there is nothing to see but that picture; the later steps refine a sample.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray

from vidup.engines.detail import FACTOR, DetailAutoencoder, up
from vidup.mini import CHECKPOINT
from vidup.mini.crops import Crops, make_pictures
from vidup.mini.measure import WAYS, Figures, clips, detail_gain, frames, made_pictures, measure, table
from vidup.mini.model import (
    MAX_NOISE_LEVEL,
    TEXT_WIDTH,
    load_checkpoint,
    make_low_res_scheduler,
    make_unet,
    save_checkpoint,
)
from vidup.mini.muon import Muon
from vidup.picture.noise import levels_for

FEW_STEPS = (749, 666, 499, 332, 249)
"""Timesteps of trailing schedules of two to four steps, besides the first, 999."""
LEVELS = make_low_res_scheduler().alphas_cumprod
ENERGY = 0.1
"""Weight of the error in gradient energy where the input is clean."""
MESH = 4
"""Side, in latents, of the neighbourhood over which a pattern that repeats is looked for."""
EMA = 0.999
CARD = CHECKPOINT.parent / "README.md"
FIGURES_BEGIN, FIGURES_END = "<!-- figures: begin -->", "<!-- figures: end -->"


@dataclass
class Recipe:
    """What decides the weights, together with the pictures."""

    iterations: int
    batch: int
    crop: int
    """Side of a crop in low-resolution pixels."""
    learning_rate: float
    cooldown: float
    """Share of the iterations, at the end, over which the learning rate falls to nothing."""
    seed: int


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies matrices of bfloat16 in its own units."""
    return device.type == "cuda" or torch.cpu._is_amx_tile_supported()


def pictures_of(path: Path) -> list[Path]:
    """The file itself, or the pictures in a folder."""
    return sorted(one for one in path.iterdir() if one.suffix in {".png", ".jpg", ".tif"}) if path.is_dir() else [path]


def draw_timesteps(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Most of them pure noise, where every sampling begins; then those of few steps, then any."""
    kind = rng.random(count)
    few = rng.choice(FEW_STEPS, count)
    anywhere = rng.integers(0, 1000, count)
    return np.where(kind < 0.7, 999, np.where(kind < 0.92, few, anywhere)).astype(np.int64)


def draw_levels(rng: np.random.Generator, distances: NDArray[np.float64]) -> NDArray[np.int64]:
    """Noise levels of the low-resolution pictures: as their distance from clean asks for, estimated badly; some any."""
    count = len(distances)
    estimated = distances * np.exp(rng.normal(0, 0.35, count))
    some = (MAX_NOISE_LEVEL * rng.random(count) ** 3).astype(np.int64)
    fitting = levels_for(torch.from_numpy(estimated), LEVELS).numpy()
    return np.where(rng.random(count) < 0.9, fitting, some)


@dataclass
class Training:
    """All that changes while training goes on."""

    unet: UNet2DConditionModel
    average: UNet2DConditionModel
    """Exponential moving average of the weights: what is measured and exported."""
    vae: DetailAutoencoder
    optimizers: list[torch.optim.Optimizer]
    """Muon for the convolutions inside, AdamW for the first and last layer, norms and biases."""
    iteration: int = 0

    @classmethod
    def begin(cls, recipe: Recipe, device: torch.device, shipped: bool = False) -> Training:
        """From nothing, or from the weights that are shipped, whose autoencoder stays."""
        torch.manual_seed(recipe.seed)
        unet, vae = load_checkpoint(CHECKPOINT) if shipped else (make_unet(), DetailAutoencoder())
        unet.requires_grad_(True).class_embedding.requires_grad_(False)
        vae.register_to_config(scaling_factor=1.0)  # found anew at export
        unet = unet.to(device, memory_format=torch.channels_last)  # a fifth faster on a CPU
        learned = {name: p for name, p in unet.named_parameters() if p.requires_grad}
        inner = [p for name, p in learned.items() if p.ndim > 1 and name not in ("conv_in.weight", "conv_out.weight")]
        others = [p for p in learned.values() if all(p is not i for i in inner)]
        optimizers: list[torch.optim.Optimizer] = [
            Muon(inner, recipe.learning_rate),
            torch.optim.AdamW(others, recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        return cls(unet, copy.deepcopy(unet).eval().requires_grad_(False), vae.to(device), optimizers)

    def save(self, path: Path) -> None:
        state = {
            "unet": self.unet.state_dict(),
            "average": self.average.state_dict(),
            "vae": self.vae.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "iteration": self.iteration,
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def load(self, path: Path, device: torch.device) -> None:
        state = torch.load(path, map_location=device, weights_only=True)
        self.unet.load_state_dict(state["unet"])
        self.average.load_state_dict(state["average"])
        self.vae.load_state_dict(state["vae"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.iteration = state["iteration"]


def learning_rate(recipe: Recipe, iteration: int) -> float:
    """Warm-up, a long level stretch, a straight fall at the end: a run can be made longer before the fall begins."""
    left = (recipe.iterations - iteration) / max(1, recipe.cooldown * recipe.iterations)
    return recipe.learning_rate * min(1.0, (iteration + 1) / 100, max(left, 0.01))


def loss_of(training: Training, crops: Crops) -> torch.Tensor:
    """The loss of the batch that belongs to the training's iteration."""
    device = next(training.unet.parameters()).device
    batch = crops.batch(training.iteration)
    clean, rng, count = batch.low, batch.rng, len(batch.low)
    timesteps = torch.from_numpy(draw_timesteps(rng, count))
    levels = torch.from_numpy(draw_levels(rng, batch.distances))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    low = make_low_res_scheduler().add_noise(clean, torch.randn(clean.shape, generator=generator), levels).to(device)
    truth, base = batch.truth.to(device), up(clean.to(device))
    z = training.vae.encode(truth - base)  # footage is wrong in what bicubic enlargement gives, too
    noise = torch.randn(z.shape, generator=generator).to(device)
    alpha = LEVELS[timesteps].sqrt().view(-1, 1, 1, 1).to(device)
    sigma = (1 - LEVELS[timesteps]).sqrt().view(-1, 1, 1, 1).to(device)
    inputs = torch.cat([alpha * z + sigma * noise, low], 1).contiguous(memory_format=torch.channels_last)
    text = torch.zeros(count, 77, TEXT_WIDTH, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device)):
        answer = training.unet(inputs, timesteps.to(device), text, class_labels=levels.to(device)).sample.float()
    error = answer - z
    scale = training.vae.std.square().mean().sqrt()  # the size that detail has
    wrong = F.conv2d(error, (training.vae.basis * training.vae.std)[:, :, None, None])
    pixels = wrong.abs().mean() / scale
    # What compression took away must not be made up: there the mean of what may be there is right.
    sharp = ENERGY / (1 + torch.from_numpy(batch.distances).float().to(device).square() / 8)
    energy = (sharp * _energy_error(truth, truth + F.pixel_shuffle(wrong, FACTOR))).mean() / scale
    # Where texture is in doubt, energy is cheapest as a mesh that repeats with the latents' squares: its mean over
    # several of them is not in the truth.
    mesh = F.avg_pool2d(wrong, MESH, 1).abs().mean() / scale
    # Whitened components weigh alike, though the eye sees the strong ones: so the error of the picture counts most.
    loss: torch.Tensor = 0.1 * error.abs().mean() + pixels + energy + 2 * mesh
    return loss


def _energy_error(truth: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """For each picture, (N,), the mean difference of the gradient energy of squares of 8 x 8 pixels.

    That is the absolute difference of neighbours.

    The absolute error alone is least for the median of what may be there, which is too smooth. How much detail a small
    region has can be told far better than where each bit of it lies.
    """

    def energy(x: torch.Tensor) -> torch.Tensor:
        across, downward = x.diff(dim=-1)[..., :-1, :].abs(), x.diff(dim=-2)[..., :-1].abs()
        return F.avg_pool2d(across + downward, 8, ceil_mode=True)

    return (energy(truth) - energy(other)).abs().mean((1, 2, 3))


def train(
    recipe: Recipe,
    work: Path,
    device: torch.device,
    save_every: int = 500,
    validate: bool = True,
    shipped: bool = False,
) -> Training:
    """Train up to the recipe's iterations, from the work folder's state where there is one.

    Args:
        work: holds `pictures/` (made before) and `state.pt`.
        validate: measure on held-out made pictures whenever the state is saved.
        shipped: begin with the shipped weights, where there is no state.
    """
    state = work / "state.pt"
    crops = Crops(work / "pictures", recipe.seed, recipe.batch, recipe.crop)
    training = Training.begin(recipe, device, shipped)
    if state.exists():
        training.load(state, device)
        print(f"continuing at iteration {training.iteration}", flush=True)
    elif not shipped:
        some = [crops.pictures[i] for i in range(0, len(crops.pictures), max(1, len(crops.pictures) // 100))]
        size = min(min(one.shape[:2]) for one in some) // FACTOR * FACTOR
        sample = torch.from_numpy(np.stack([one[:size, :size] for one in some])).permute(0, 3, 1, 2).float() / 127.5 - 1
        training.vae.fit(sample.to(device))
    held_out = made_pictures() if validate else []
    groups = [group for optimizer in training.optimizers for group in optimizer.param_groups]
    learned = [weight for group in groups for weight in group["params"]]
    training.unet.train()
    start, losses = time.monotonic(), []
    while training.iteration < recipe.iterations:
        for group in groups:
            group["lr"] = learning_rate(recipe, training.iteration)
        loss = loss_of(training, crops)
        for weight in learned:
            weight.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        for optimizer in training.optimizers:
            optimizer.step()
        training.iteration += 1
        decay = min(EMA, training.iteration / (training.iteration + 10))
        with torch.no_grad():
            for kept, new in zip(training.average.parameters(), training.unet.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        losses.append(float(loss.detach()))
        if training.iteration % 100 == 0:
            spent = time.monotonic() - start
            print(f"iteration {training.iteration} loss {np.mean(losses[-100:]):.4f} {spent:.0f} s", flush=True)
        if training.iteration % save_every == 0 or training.iteration == recipe.iterations:
            training.save(state)
            if validate:
                for line in summary(measure(training.average, training.vae, held_out, VALIDATED)):
                    print(line, flush=True)
    return training


PRESET = ("ddim", 1)
VALIDATED = (("ddim", 1), ("ddim", 2), ("ddim", 4))


def summary(rows: dict[str, Figures]) -> Iterator[str]:
    """One short line a way."""
    for name, f in rows.items():
        likeness = f"PSNR {f.psnr:.2f} SSIM {f.ssim:.4f} GMSD {f.gmsd:.4f}"
        yield f"  {name:18} {likeness} energy {f.energy:.3f} fidelity {f.fidelity:.1f}"


def measured_on(training: Training, folder: Path, count: int) -> dict[str, dict[str, Figures]]:
    """Figures of every clip of a folder, of `count` frames each."""
    return {path.stem: measure(training.average, training.vae, frames(path, count), WAYS) for path in clips(folder)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vidup.mini.train", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder of pictures and state, outside the source tree")
    add(
        "--iterations",
        type=int,
        default=20000,
        help="batches in all; more than before continues (default %(default)s)",
    )
    add("--pictures", type=int, default=1500, help="made and learned from (default %(default)s)")
    add("--photographs", type=Path, nargs="+", default=[], metavar="PATH", help="pictures, or folders of them")
    add("--begin", action="store_true", help="begin with the shipped weights")
    add("--batch", type=int, default=8, help="crops an iteration (default %(default)s)")
    add("--crop", type=int, default=32, help="side of a crop in low-resolution pixels (default %(default)s)")
    add("--learning-rate", type=float, default=2e-3, help="of Muon and AdamW (default %(default)s)")
    add(
        "--cooldown",
        type=float,
        default=0.3,
        help="share of the iterations over which it falls (default %(default)s)",
    )
    add("--seed", type=int, default=0, help="of weights, crops and noise (default %(default)s)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all)")
    add(
        "--save-every",
        type=int,
        default=500,
        help="iterations between saves and validations (default %(default)s)",
    )
    add("--export", action="store_true", help="only write the newest state as the checkpoint")
    add("--to", type=Path, default=CHECKPOINT, help="where the checkpoint goes (default: into the package)")
    add(
        "--measure",
        type=Path,
        metavar="FOLDER",
        help="only measure the newest state on the clips of a folder",
    )
    add("--card", type=Path, default=CARD, help="where the figures are written (default: the package's README.md)")
    add("--frames", type=int, default=3, help="frames measured of each clip (default %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    recipe = Recipe(
        options.iterations, options.batch, options.crop, options.learning_rate, options.cooldown, options.seed
    )
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    if options.export or options.measure:
        training = Training.begin(recipe, device)
        training.load(options.work / "state.pt", device)
    else:
        photographs = [found for given in options.photographs for found in pictures_of(given)]
        make_pictures(options.work / "pictures", options.pictures, photographs, options.threads)
        training = train(recipe, options.work, device, options.save_every, shipped=options.begin)
    gain = detail_gain(training.average, training.vae, made_pictures(), PRESET)
    training.vae.register_to_config(scaling_factor=round(1 / gain, 4))  # latents are divided by it before decoding
    if not options.measure:
        save_checkpoint(options.to, training.average, training.vae)
        print(f"iteration {training.iteration} written to {options.to}")
    if not options.export:
        folder = options.measure
        figures = {"made, held out": measure(training.average, training.vae, made_pictures(), WAYS)}
        figures |= measured_on(training, folder, options.frames) if folder else {}
        lines = [made_with(training, recipe), "", *table(figures)]
        print("\n".join(lines))
        write_card(options.card, lines)


def made_with(training: Training, recipe: Recipe) -> str:
    """One line for the card: what the figures below it belong to."""
    versions = f"torch {torch.__version__.split('+')[0]}, diffusers {diffusers.__version__}"
    return f"{training.iteration} iterations, seed {recipe.seed}, {versions}."


def write_card(card: Path, lines: list[str]) -> None:
    """Put lines between the two marks of the model card."""
    before, _, rest = card.read_text(encoding="utf-8").partition(FIGURES_BEGIN)
    _, _, after = rest.partition(FIGURES_END)
    text = "\n".join([before + FIGURES_BEGIN, "", *lines, "", FIGURES_END + after])
    card.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
