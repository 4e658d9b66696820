"""The autoencoder of the `mini` checkpoint: it is exact, and not learned by gradient.

A picture is the sum of `up(down(x))`, which its quarter-size version contains, and of the detail `x - up(down(x))`.
Only the detail is encoded: space to depth by 4, then principal component analysis of the 48 values, with every
component scaled to unit variance, so that the noise of a diffusion process affects all equally.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

FACTOR = 4
"""Side of the square of pixels of one latent position."""


def down(x: torch.Tensor) -> torch.Tensor:
    """Antialiased bicubic reduction by 4: (N, C, 4h, 4w) float to (N, C, h, w), same range."""
    return F.interpolate(x, scale_factor=1 / FACTOR, mode="bicubic", antialias=True)


def up(x: torch.Tensor) -> torch.Tensor:
    """Bicubic enlargement by 4: (N, C, h, w) float to (N, C, 4h, 4w), same range."""
    return F.interpolate(x, scale_factor=FACTOR, mode="bicubic")


_LEAST = 0.01  # standard deviation, so that components with little variance are not amplified


class DetailAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc, unused-ignore]
    """Whitened space-to-depth of the detail that a bicubic enlargement lacks.

    `config.residual` means that the engine has to add the bicubic enlargement of the input to the decoded picture. As
    everywhere in diffusers, latents are divided by `config.scaling_factor` before decoding: below 1 it amplifies the
    detail.
    """

    @register_to_config  # type: ignore[untyped-decorator, unused-ignore]
    def __init__(self, latent_channels: int = 48, scaling_factor: float = 1.0, residual: bool = True) -> None:
        super().__init__()
        # Parameters rather than buffers, so that loaders, `.dtype` and `.device` of diffusers see them.
        self.mean = torch.nn.Parameter(torch.zeros(latent_channels), requires_grad=False)
        self.basis = torch.nn.Parameter(torch.eye(latent_channels), requires_grad=False)
        self.std = torch.nn.Parameter(torch.ones(latent_channels), requires_grad=False)

    @torch.no_grad()
    def fit(self, pictures: torch.Tensor) -> None:
        """Set mean, principal axes and standard deviations from pictures, float32 (N, 3, 4h, 4w) in [-1, 1]."""
        values = F.pixel_unshuffle(pictures - up(down(pictures)), FACTOR).transpose(0, 1).flatten(1).double()
        mean = values.mean(1, keepdim=True)
        variances, basis = torch.linalg.eigh(torch.cov(values))
        self.mean.copy_(mean[:, 0])
        self.basis.copy_(basis)
        self.std.copy_(variances.clamp_min(_LEAST**2).sqrt())

    def encode(self, detail: torch.Tensor) -> torch.Tensor:
        """Latents of detail: (N, 3, 4h, 4w) to (N, 48, h, w), each channel of about zero mean and unit variance."""
        values = F.pixel_unshuffle(detail, FACTOR) - self.mean.view(-1, 1, 1)
        # The basis is orthonormal, so its transpose inverts it; a 1x1 convolution applies it at every place.
        return F.conv2d(values, (self.basis / self.std).T[:, :, None, None])

    def decode(self, z: torch.Tensor, return_dict: bool = False, **_: Any) -> tuple[torch.Tensor]:
        """Detail from latents, without the low frequencies.

        Args:
            z: float (N, 48, h, w).
            return_dict: ignored; part of diffusers' signature.

        Returns:
            One tensor (N, 3, 4h, 4w) around 0, for pictures in [-1, 1]: `x - up(down(x))`.
        """
        values = F.conv2d(z, (self.basis * self.std)[:, :, None, None]) + self.mean.view(-1, 1, 1)
        return (F.pixel_shuffle(values, FACTOR),)
