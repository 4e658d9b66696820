"""A power of two folded into a VAE's weights, so that float16 holds what it computes.

What goes along a VAE's residual layers grows from block to block, beyond the 65,504 at which float16 ends. Nothing but
group norms reads it, to which a factor makes no difference: all that is added there is made 64 times smaller, by the
weights and biases of the layers that add, and each norm's epsilon 64^2 times. In float32 the picture is the same to the
bit; in float16 it is eight times as exact as in bfloat16, which has three bits less.
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
def fold(vae: Any, factor: float = FACTOR) -> bool:
    """Make what an `AutoencoderKL` holds between its layers smaller; its results stay what they are.

    Args:
        vae: changed in place, its encoder and its decoder.
        factor: a power of two.

    Returns:
        False, and nothing is changed, where it is built in another way than is known here.
    """
    if type(vae) is not AutoencoderKL or unknown_part(vae):
        return False
    both = [_taking(part) for part in (vae.encoder, vae.decoder)]
    if not all(known for _, _, known in both):
        return False
    for tensors, norms, _ in both:
        for tensor in tensors:
            tensor.mul_(factor)
        for norm in norms:
            norm.eps *= factor**2
    return True


def _taking(part: Any) -> tuple[list[nn.Parameter], list[nn.GroupNorm], bool]:
    """What of an encoder or a decoder takes the factor, the norms that read it, and whether that is all there is."""
    scaled, norms = [*part.conv_in.parameters()], list[nn.GroupNorm]()
    kept = [*part.conv_out.parameters()]  # behind the last norm

    def passes_on(layer: Any) -> None:
        """What it reads is scaled already: only what it adds takes the factor."""
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
