"""What the checkpoint does to pictures whose truth is known, beside bicubic enlargement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel

from vidup.engines.detail import DetailAutoencoder, down, up
from vidup.engines.solver import Step, solve, variance_preserving
from vidup.mini.degrade import reduced
from vidup.mini.model import TEXT_WIDTH, make_low_res_scheduler, make_scheduler
from vidup.mini.pictures import picture
from vidup.picture.metrics import gmsd, gradient_energy, luma, psnr, ssim
from vidup.picture.noise import field
from vidup.picture.resample import anchor

ANCHOR = 5
"""Rounds of the anchor, as the preset has them."""
BORDER = 8
"""Pixels at every side that figures leave out."""
HELD_OUT = 10_000_000
"""Seeds of validation pictures begin here; training's are below."""
LOW_RES, LATENTS = 0, 1
"""Streams of noise, as the engine numbers them."""
Way = tuple[str, int]
"""A sampler and its number of steps."""
WAYS: tuple[Way, ...] = (
    ("ddim", 1), ("ddim", 2), ("ddim", 3), ("ddim", 4),
    ("dpmpp_2m", 2), ("dpmpp_2m", 3), ("dpmpp_2m", 4),
)  # fmt: skip


@dataclass
class Figures:
    """Of one picture, or the mean of several; all but `fidelity` on luma, without the border."""

    psnr: float
    """dB"""
    ssim: float
    gmsd: float
    energy: float
    """Gradient energy, as a share of the truth's."""
    fidelity: float
    """PSNR in dB of the result reduced by 4 against the input."""


@torch.inference_mode()
def enlarged(
    unet: UNet2DConditionModel,
    vae: DetailAutoencoder,
    low: torch.Tensor,
    way: Way,
    noise_level: int = 0,
    seed: int = 0,
) -> torch.Tensor:
    """Sample the detail and add it to the bicubic enlargement, without the anchor.

    Args:
        low: float32 (N, 3, h, w) in [0, 1]; all N see the same noise.
        way: sampler and steps.

    Returns:
        (N, 3, 4h, 4w) in [0, 1].
    """
    count, _, height, width = low.shape
    tall, wide = -height % 8, -width % 8
    padded = F.pad(low * 2 - 1, (0, wide, 0, tall), mode="reflect")
    shape = padded.shape[2:]
    level = torch.full((count,), noise_level)
    noise = field(seed, LOW_RES, 3, *shape).expand(count, -1, -1, -1).to(low.device)
    condition = make_low_res_scheduler().add_noise(padded, noise, level)
    text = torch.zeros(count, 77, TEXT_WIDTH, device=low.device)

    def model(latents: torch.Tensor, step: Step) -> torch.Tensor:
        both = torch.cat([latents, condition], 1)
        answer: torch.Tensor = unet(both, step.time, text, class_labels=level.to(low.device)).sample
        return answer

    latents = field(seed, LATENTS, 48, *shape).expand(count, -1, -1, -1).to(low.device)
    latents = solve(model, latents, variance_preserving(make_scheduler().config, *way))
    detail = vae.decode(latents / vae.config.scaling_factor)[0][..., : 4 * height, : 4 * width]
    return (up(low) + detail / 2).clamp(0, 1)


def figures(truth: torch.Tensor, other: torch.Tensor, low: torch.Tensor) -> Figures:
    """Compare one picture with the truth.

    Args:
        truth, other: (1, 3, 4h, 4w) in [0, 1].
        low: (1, 3, h, w) in [0, 1].
    """
    other = (other.clamp(0, 1) * 255).round() / 255
    a, b = (luma(x)[0, BORDER:-BORDER, BORDER:-BORDER] for x in (truth, other))
    energy = gradient_energy(b) / max(gradient_energy(a), 1e-9)
    return Figures(psnr(a, b), ssim(a, b), gmsd(a, b), energy, psnr(low, down(other)))


def mean(several: list[Figures]) -> Figures:
    values = np.array([[f.psnr, f.ssim, f.gmsd, f.energy, f.fidelity] for f in several])
    return Figures(*(float(v) for v in values.mean(0)))


def measure(
    unet: UNet2DConditionModel, vae: DetailAutoencoder, truths: list[torch.Tensor], ways: tuple[Way, ...]
) -> dict[str, Figures]:
    """Mean figures of bicubic, of anchored bicubic and of every way of sampling, anchored.

    Args:
        truths: uint8 (3, 4h, 4w) each.
    """
    device = next(unet.parameters()).device
    rows: dict[str, list[Figures]] = {}
    for truth in truths:
        pixels = truth.permute(1, 2, 0).numpy()
        low = torch.from_numpy(reduced(pixels)).permute(2, 0, 1)[None].float() / 255
        exact = truth[None].float() / 255
        results = {"bicubic": up(low), "bicubic + anchor": anchor(up(low), low, ANCHOR)}
        for sampler, steps in ways:
            raw = enlarged(unet, vae, low.to(device), (sampler, steps)).cpu()
            results[f"mini, {sampler} {steps}"] = anchor(raw, low, ANCHOR)
        for name, result in results.items():
            rows.setdefault(name, []).append(figures(exact, result, low))
    return {name: mean(several) for name, several in rows.items()}


GAINS = (1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.4)


def detail_gain(unet: UNet2DConditionModel, vae: DetailAutoencoder, truths: list[torch.Tensor], way: Way) -> float:
    """How much to amplify the detail that the UNet answers with.

    An answer in doubt is a cautious one: too faint. The gain is the one with the best PSNR.

    Args:
        vae: its scaling factor is 1.
        truths: uint8 (3, 4h, 4w) each, pictures that training does not see.
    """
    device = next(unet.parameters()).device
    tried: list[list[Figures]] = [[] for _ in GAINS]
    for truth in truths:
        low = torch.from_numpy(reduced(truth.permute(1, 2, 0).numpy())).permute(2, 0, 1)[None].float() / 255
        result = enlarged(unet, vae, low.to(device), way).cpu()
        for several, gain in zip(tried, GAINS, strict=True):
            amplified = up(low) + gain * (result - up(low))
            several.append(figures(truth[None].float() / 255, anchor(amplified, low, ANCHOR), low))
    means = [mean(several) for several in tried]
    return max(zip((f.psnr for f in means), GAINS, strict=True))[1]


def made_pictures(count: int = 14, size: int = 192) -> list[torch.Tensor]:
    """Pictures that training never sees, uint8 (3, size, size)."""
    made = (picture(HELD_OUT + index, 2 * size) for index in range(count))
    corner = size // 2
    windows = (p[corner : corner + size, corner : corner + size] for p in made)
    return [torch.from_numpy(np.ascontiguousarray(window.transpose(2, 0, 1))) for window in windows]


def frames(path: Path, count: int) -> list[torch.Tensor]:
    """Evenly spaced frames of a clip, uint8 (3, 4h, 4w), cropped to multiples of 4."""
    import av

    with av.open(str(path)) as container:
        total = sum(1 for _ in container.decode(video=0))
        wanted = {int((index + 0.5) * total / count) for index in range(count)}
        container.seek(0)
        chosen = [f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(video=0)) if i in wanted]
    cropped = [c[: c.shape[0] // 4 * 4, : c.shape[1] // 4 * 4] for c in chosen]
    return [torch.from_numpy(np.ascontiguousarray(c.transpose(2, 0, 1))) for c in cropped]


def clips(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in {".mkv", ".mp4", ".mov", ".webm"})


def table(measured: dict[str, dict[str, Figures]]) -> Iterator[str]:
    """Lines of a Markdown table: one row a picture source and way."""
    yield "| pictures | enlarged by | PSNR dB | SSIM | GMSD | gradient energy | downscaled, against the input, dB |"
    yield "|---|---|---|---|---|---|---|"
    for source, rows in measured.items():
        for name, f in rows.items():
            numbers = f"{f.psnr:.2f} | {f.ssim:.4f} | {f.gmsd:.4f} | {f.energy:.2f} | {f.fidelity:.1f}"
            yield f"| {source} | {name} | {numbers} |"
