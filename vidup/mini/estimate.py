"""Train the estimator of noise and compression (`vidup.picture.footage`) on the pictures that `mini` learns from.

    python -m vidup.mini.estimate --work ~/mini

The folder holds what `python -m vidup.mini.train` has put there. Every frame of footage has a clean twin, so the error
is known at each pixel; the estimator answers its width, and the loss is the Gaussian's negative log-likelihood.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch.nn import functional

from vidup.mini.degrade import Pixels, Rng
from vidup.picture.footage import CELL, WEIGHTS, Estimator

CROP = 64
LUMA = torch.tensor([0.2126, 0.7152, 0.0722]).view(1, 3, 1, 1)
NOISE = 0.25
"""Share of the crops that are clean but for Gaussian noise; as many are clean."""


Material = list[tuple[Pixels, Pixels, NDArray[np.float64]]]
"""For each picture its frames of footage, their clean twins, and the steps of their quantisers."""


def batch(rng: Rng, material: Material, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Luma of frames (N, 1, c, c) in [0, 1], steps (N,) that are not quite right, and the error of each pixel in codes.

    Where a frame is clean its step is often still one: the best parts of coarsely encoded footage are.
    """
    frames, cleans, steps = [], [], []
    for _ in range(count):
        stack, twin, own = material[int(rng.integers(len(material)))]
        version = int(rng.integers(len(stack)))
        top, left = (int(rng.integers((side - CROP) // 2 + 1)) * 2 for side in stack.shape[1:3])
        window = slice(top, top + CROP), slice(left, left + CROP)
        frame, clean = (torch.from_numpy(one[version][window].copy()).float() for one in (stack, twin))
        drawn, step = rng.random(), float(own[version] * np.exp(rng.normal(0, 0.15)))
        if drawn < 2 * NOISE:
            frame, step = clean, 0.0 if rng.random() < 0.8 else float(rng.uniform(0, 4))
        if drawn < NOISE:
            sigma = float(rng.uniform(0, 12))
            noise = rng.standard_normal((CROP, CROP, 1 if rng.random() < 0.5 else 3), np.float32)
            frame = (clean + sigma * torch.from_numpy(noise)).round().clamp(0, 255)
        if rng.random() < 0.5:
            frame, clean = frame.transpose(0, 1), clean.transpose(0, 1)
        frames.append(frame)
        cleans.append(clean)
        steps.append(step)
    one, other = ((torch.stack(side).permute(0, 3, 1, 2) * LUMA).sum(1, keepdim=True) for side in (frames, cleans))
    return one / 255, torch.tensor(steps), one - other


def likelihood(answer: torch.Tensor, wrong: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of errors under Gaussians of the answered widths; rounding alone gives .3 codes."""
    square = functional.avg_pool2d(wrong.square(), CELL) + 0.08
    return (0.5 * square * (-2 * answer).exp() + answer).mean()


def train(folder: Path, iterations: int, seed: int) -> Estimator:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    material: Material = []
    for path in sorted(folder.glob("*.npz")):
        held = np.load(path)
        if min(held["frames"].shape[1:3]) >= CROP:
            material.append((held["frames"], held["clean"], held["steps"]))
    estimator = Estimator()
    optimizer = torch.optim.AdamW(estimator.parameters(), 2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, iterations, pct_start=0.1)
    losses: list[float] = []
    for iteration in range(1, iterations + 1):
        frames, steps, wrong = batch(rng, material, 16)
        loss = likelihood(estimator(frames, steps), wrong)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(estimator.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if iteration % 250 == 0:
            print(f"iteration {iteration} loss {np.mean(losses[-250:]):.4f}", flush=True)
    return estimator


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m vidup.mini.estimate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--work", type=Path, required=True, help="the folder that `mini` was trained in")
    parser.add_argument("--iterations", type=int, default=6000, help="batches of 16 crops (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=WEIGHTS, help="where the weights go (default: into the package)")
    options = parser.parse_args(arguments)
    estimator = train(options.work / "pictures", options.iterations, options.seed)
    save_file({name: one.half().contiguous() for name, one in estimator.state_dict().items()}, options.to)
    print(f"{sum(one.numel() for one in estimator.parameters())} weights written to {options.to}")


if __name__ == "__main__":
    main()
