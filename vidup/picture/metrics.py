"""Measures of a picture's likeness to the truth. Pure functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def luma(rgb: torch.Tensor) -> torch.Tensor:
    """Luma by the weights of Rec. ITU-R BT.709.

    Args:
        rgb: float (..., 3, h, w) in [0, 1], non-linear as stored.

    Returns:
        (..., h, w) in [0, 1].
    """
    red, green, blue = rgb.unbind(-3)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def psnr(truth: torch.Tensor, other: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB, infinite for equal pictures.

    Args:
        truth, other: float of one shape, peak 1.
    """
    error = float(((truth.double() - other.double()) ** 2).mean())
    return -10 * float(torch.tensor(error, dtype=torch.float64).log10()) if error else float("inf")


def ssim(truth: torch.Tensor, other: torch.Tensor) -> float:
    """Structural similarity (Wang et al. 2004) as scikit-image computes it; 1 for equal pictures.

    Args:
        truth, other: float (h, w) in [0, 1], sides of 11 px or more.
    """
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            truth.double().cpu().numpy(),
            other.double().cpu().numpy(),
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def gmsd(truth: torch.Tensor, other: torch.Tensor) -> float:
    """Gradient magnitude similarity deviation (Xue, Zhang, Mou and Bovik 2014); 0 for equal pictures, lower is better.

    Args:
        truth, other: float (h, w) in [0, 1], sides of 6 px or more.
    """

    def magnitude(picture: torch.Tensor) -> torch.Tensor:
        # As in the paper: the picture is halved by the mean of 2x2 pixels; Prewitt's gradients.
        half = F.avg_pool2d(picture.double()[None, None], 2)
        across = torch.tensor([[1.0, 0.0, -1.0]] * 3, dtype=half.dtype, device=half.device) / 3
        kernels = torch.stack([across, across.T])[:, None]
        return F.conv2d(half, kernels).square().sum(1).sqrt()

    # 170 is the paper's constant for a range of 0..255.
    constant = 170 / 255**2
    one, two = magnitude(truth), magnitude(other)
    similarity = (2 * one * two + constant) / (one**2 + two**2 + constant)
    return float(similarity.std(correction=0))


def gradient_energy(picture: torch.Tensor) -> float:
    """Mean of the absolute differences between neighbours, across plus down.

    Args:
        picture: float (..., h, w).
    """
    across = (picture[..., :, 1:] - picture[..., :, :-1]).abs().mean()
    downward = (picture[..., 1:, :] - picture[..., :-1, :]).abs().mean()
    return float(across + downward)
