"""Fold a power of two into a VAE's weights, so that it does not overflow in float16.

The values on a VAE's residual path grow from block to block, beyond float16's limit of 65,504. Only group norms read
them, which remove any factor: so the weights and biases of all layers that add to the path are divided by 64, and the
epsilon of each norm by 64^2. In float32 the picture is the same to the bit; in float16 it is eight times as exact as in
bfloat16, which has three bits less.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from vidup.engines.structure import unknown_part

FACTOR = 2.0**-6

_BLOCKS = {UNetMidBlock2D, DownEncoderBlock2D, UpDecoderBlock2D}


@torch.no_grad()
def fold(vae: Any) -> bool:
    """Make the values between the layers of an `AutoencoderKL` smaller by `FACTOR`, without changing its results.

    Args:
        vae: its encoder and decoder are changed in place.

    Returns:
        False, and nothing is changed, where its structure is not supported.
    """
    if type(vae) is not AutoencoderKL or unknown_part(vae):
        return False
    both = [_taking(part) for part in (vae.encoder, vae.decoder)]
    if not all(known for _, _, known in both):
        return False
    for tensors, norms, _ in both:
        for tensor in tensors:
            tensor.mul_(FACTOR)
        for norm in norms:
            norm.eps *= FACTOR**2
    return True


def _taking(part: Any) -> tuple[list[nn.Parameter], list[nn.GroupNorm], bool]:
    """The parameters of an encoder or a decoder to multiply, the norms that follow, and whether all parts are known."""
    scaled, norms = [*part.conv_in.parameters()], list[nn.GroupNorm]()
    kept = [*part.conv_out.parameters()]  # after the last norm

    def passes_on(layer: Any) -> None:
        """The input of such a layer is scaled already, so only its bias is multiplied."""
        kept.append(layer.weight)
        scaled.extend([] if layer.bias is None else [layer.bias])

    for one in part.modules():
        if isinstance(one, ResnetBlock2D):
            scaled += [*one.conv1.parameters(), *one.conv2.parameters()]
            if one.conv_shortcut is not None:
                passes_on(one.conv_shortcut)
        elif isinstance(one, (Upsample2D, Downsample2D)):
            passes_on(one.conv)
        elif isinstance(one, Attention):
            scaled += one.to_out[0].parameters()
            kept += [each for line in (one.to_q, one.to_k, one.to_v) for each in line.parameters()]
        elif isinstance(one, nn.GroupNorm):
            norms.append(one)
            kept += one.parameters()
    blocks = [part.mid_block, *getattr(part, "down_blocks", ()), *getattr(part, "up_blocks", ())]
    known = type(part) in (Encoder, Decoder) and {type(one) for one in blocks} <= _BLOCKS
    return scaled, norms, known and {*map(id, part.parameters())} == {*map(id, scaled), *map(id, kept)}
