"""What is learned from: made pictures and photographs, clean and as footage holds them, and batches cut from them."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vidup.mini.degrade import MARGIN, Pixels, Rng, as_footage, degraded, distance
from vidup.mini.pictures import picture

SCALES = (1.0, 0.75, 0.5)
"""A photograph is learned from at these sizes: reduced it is sharper, and its texture finer."""
VERSIONS = 16
"""Frames of footage made of each picture."""
PHOTOGRAPHS = 0.7
"""Share of the crops that are of photographs, where there are any."""
FOOTAGE = 0.55
"""Share of the crops whose low resolution is a frame of compressed or noisy footage."""


@dataclass(frozen=True)
class Batch:
    """Some crops; pictures are float32 in [-1, 1]."""

    truth: torch.Tensor
    """(N, 3, 4c, 4c)"""
    low: torch.Tensor
    """(N, 3, c, c)"""
    distances: NDArray[np.float64]
    """(N,) root mean square distance of each from what it would be without noise and compression, luma codes."""
    rng: Rng
    """For what is drawn next."""


def make_pictures(folder: Path, count: int, photographs: list[Path], processes: int) -> None:
    """Fill a folder with made pictures of seeds 0 to count - 1 and with photographs; those that exist are kept.

    Args:
        folder: gets one .npy each, and one .npz beside it that holds frames of footage made of it.
        photographs: files that Pillow reads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [partial(_make_picture, folder, seed) for seed in range(count) if not place(folder, seed).exists()]
    jobs += [partial(_take_photograph, folder, path) for path in photographs]
    start = time.monotonic()
    with ProcessPoolExecutor(processes) as pool:
        for done, _ in enumerate(pool.map(_run, jobs, chunksize=4), 1):
            if done % 100 == 0:
                print(f"pictures {done}/{len(jobs)}, {time.monotonic() - start:.0f} s", flush=True)


def _run(job: partial[None]) -> None:
    torch.set_num_threads(1)
    job()


def place(folder: Path, seed: int) -> Path:
    """Where the made picture of this seed lies."""
    return folder / f"{seed:06d}.npy"


def _make_picture(folder: Path, seed: int) -> None:
    _keep(place(folder, seed), picture(seed), seed)


def _take_photograph(folder: Path, path: Path) -> None:
    image = Image.open(path).convert("RGB")
    for index, scale in enumerate(SCALES):
        target = folder / f"photo-{path.stem}-{round(100 * scale)}.npy"
        size = round(image.width * scale), round(image.height * scale)
        if min(size) >= MARGIN + 160 and not target.exists():
            small = image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)
            _keep(target, np.asarray(small), index)


def _keep(path: Path, pixels: Pixels, seed: int) -> None:
    """The footage first: where the picture exists, so does it."""
    rng = np.random.default_rng((seed, *path.stem.encode()))
    made = [as_footage(rng, pixels) for _ in range(VERSIONS)]
    np.savez(
        path.with_suffix(".npz"),
        frames=np.stack([one.frame for one in made]),
        clean=np.stack([one.clean for one in made]),
        places=np.array([one.place for one in made]),
        steps=np.array([one.step for one in made]),
        distances=np.array([distance(one.frame, one.clean) for one in made]),
    )
    part = path.with_suffix(".part.npy")
    np.save(part, pixels)
    part.replace(path)


class Crops:
    """Batches cut from the pictures of a folder; iteration and seed decide one, so that a continued run sees the same.

    Args:
        folder: of pictures, each .npy alone or with its .npz.
        batch: crops in a batch.
        crop: side of a crop, in pixels of the low resolution.
    """

    def __init__(self, folder: Path, seed: int, batch: int, crop: int) -> None:
        self.seed, self.size, self.crop = seed, batch, crop
        paths = sorted(path for path in folder.glob("*.npy") if not path.name.endswith(".part.npy"))
        self.pictures: list[Pixels] = [np.load(path, mmap_mode="r") for path in paths]
        self.footage = [dict(np.load(p)) if (p := path.with_suffix(".npz")).exists() else None for path in paths]
        photographs = [index for index, path in enumerate(paths) if path.name.startswith("photo-")]
        made = [index for index, path in enumerate(paths) if not path.name.startswith("photo-")]
        self.kinds = [kind for kind in (photographs, made) if kind]
        # A photograph counts by its area, at all its sizes.
        areas = [np.array([self.pictures[index].size for index in kind], float) for kind in self.kinds]
        self.weights = [area / area.sum() for area in areas]

    def batch(self, iteration: int) -> Batch:
        """The batch of this iteration."""
        rng = np.random.default_rng((self.seed, iteration))
        truths, lows, distances = zip(*(self._pair(rng) for _ in range(self.size)), strict=True)
        truth, low = (torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2) for side in (truths, lows))
        return Batch(truth.float() / 127.5 - 1, low.float() / 127.5 - 1, np.array(distances), rng)

    def _pair(self, rng: Rng) -> tuple[Pixels, Pixels, float]:
        kind = int(len(self.kinds) > 1 and rng.random() >= PHOTOGRAPHS)
        index = int(rng.choice(self.kinds[kind], p=self.weights[kind]))
        truth, side, footage = self.pictures[index], 4 * self.crop, self.footage[index]
        if footage is None or rng.random() >= FOOTAGE:
            top, left = _liveliest(rng, truth, side, 1)
            window = _turned(rng, truth[top : top + side, left : left + side])
            return window, *degraded(rng, window)
        version = int(rng.integers(len(footage["frames"])))
        frame, (y, x) = footage["frames"][version], footage["places"][version]
        top, left = _liveliest(rng, truth[y : y + 4 * frame.shape[0], x : x + 4 * frame.shape[1]], side, 4)
        window = truth[y + top : y + top + side, x + left : x + left + side]
        small = frame[top // 4 : top // 4 + self.crop, left // 4 : left // 4 + self.crop]
        again = np.random.default_rng(int(rng.integers(2**62)))
        state = again.bit_generator.state
        window = _turned(again, window)
        again.bit_generator.state = state
        return window, _turned(again, small), float(footage["distances"][version])


def _liveliest(rng: Rng, picture: Pixels, side: int, grid: int) -> tuple[int, int]:
    """Of up to three places the one with most in it: most of a picture is smooth, and smooth is soon learned."""
    best, most = (0, 0), -1.0
    for _ in range(int(rng.integers(1, 4))):
        top, left = (int(rng.integers((length - side) // grid + 1)) * grid for length in picture.shape[:2])
        window = picture[top : top + side : 2, left : left + side, 1]
        life = float(np.abs(np.diff(window.astype(np.int16), axis=1)).mean())
        if life > most:
            best, most = (top, left), life
    return best


def _turned(rng: Rng, window: Pixels) -> Pixels:
    """Mirrored, transposed, with channels exchanged or negative, as drawn."""
    window = window[:, :: rng.choice([-1, 1])][:: rng.choice([-1, 1])]
    if rng.random() < 0.5:
        window = window.transpose(1, 0, 2)
    if rng.random() < 0.15:
        window = window[..., rng.permutation(3)]
    if rng.random() < 0.05:
        window = 255 - window
    return np.ascontiguousarray(window)
