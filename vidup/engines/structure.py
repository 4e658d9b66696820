"""Check whether a VAE has the structure that the decoder in bands supports."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock, UNetMidBlock2D, UpDecoderBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn


def unknown_part(vae: Any) -> str:
    """The first part of a VAE that `vae` and `tiny` do not support; empty where they support all."""
    return next((name for name, plain in _parts(vae) if not plain), "")


def _parts(vae: Any) -> Iterator[tuple[str, bool]]:
    """The parts in order, each with whether it is supported; those in a part follow it."""
    if type(vae) is AutoencoderTiny:
        for name, layer in vae.decoder.layers.named_children():
            yield f"decoder.layers.{name}", type(layer) in (nn.Conv2d, nn.Upsample, AutoencoderTinyBlock, nn.ReLU)
        return
    yield "type", type(vae) is AutoencoderKL
    decoder, convolution = vae.decoder, vae.post_quant_conv
    yield "decoder", type(decoder) is Decoder and type(decoder.mid_block) is UNetMidBlock2D
    yield "post_quant_conv", convolution is None or convolution.kernel_size == (1, 1)
    yield "decoder.conv_in", _plain_conv(decoder.conv_in)
    yield "decoder.conv_norm_out", _plain_norm(decoder.conv_norm_out)
    yield "decoder.conv_act", type(decoder.conv_act) is nn.SiLU
    yield "decoder.conv_out", _plain_conv(decoder.conv_out)
    middle = decoder.mid_block
    yield "decoder.mid_block", len(middle.resnets) == len(middle.attentions) + 1
    for i, resnet in enumerate(middle.resnets):
        yield f"decoder.mid_block.resnets.{i}", _plain_resnet(resnet)
    for i, attention in enumerate(middle.attentions):
        yield f"decoder.mid_block.attentions.{i}", attention is None or _plain_attention(attention)
    for i, block in enumerate(decoder.up_blocks):
        yield f"decoder.up_blocks.{i}", type(block) is UpDecoderBlock2D
        for j, resnet in enumerate(block.resnets):
            yield f"decoder.up_blocks.{i}.resnets.{j}", _plain_resnet(resnet)
        for upsampler in block.upsamplers or ():
            yield f"decoder.up_blocks.{i}.upsamplers", _plain_upsampler(upsampler)


def _is(part: Any, kind: type, **wanted: Any) -> bool:
    """Whether a part is of this class, with these attributes; one that it has not is None."""
    return type(part) is kind and all(getattr(part, name, None) == value for name, value in wanted.items())


def _plain_conv(conv: Any) -> bool:
    sides: dict[str, Any] = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    return _is(conv, nn.Conv2d, **sides, groups=1, padding_mode="zeros")


def _plain_norm(norm: Any) -> bool:
    return _is(norm, nn.GroupNorm, affine=True)


def _plain_resnet(resnet: Any) -> bool:
    return (
        _is(resnet, ResnetBlock2D, time_emb_proj=None, upsample=None, downsample=None)
        and resnet.time_embedding_norm != "scale_shift"
        and type(resnet.nonlinearity) is nn.SiLU
        and all(map(_plain_norm, (resnet.norm1, resnet.norm2)))
        and all(map(_plain_conv, (resnet.conv1, resnet.conv2)))
        and (resnet.conv_shortcut is None or resnet.conv_shortcut.kernel_size == (1, 1))
    )


def _plain_upsampler(upsampler: Any) -> bool:
    return (
        _is(upsampler, Upsample2D, norm=None, use_conv_transpose=False)
        and upsampler.interpolate
        and _plain_conv(getattr(upsampler, "conv", None))
    )


def _plain_attention(attention: Any) -> bool:
    return (
        _is(attention, Attention, spatial_norm=None, norm_cross=None, norm_q=None, norm_k=None)
        and _plain_norm(attention.group_norm)
        and not attention.is_cross_attention
        and attention.residual_connection
        and math.isclose(attention.scale, (attention.to_q.out_features // attention.heads) ** -0.5)
        and attention.to_k.out_features == attention.to_v.out_features == attention.to_q.out_features
        and type(attention.processor) in (AttnProcessor, AttnProcessor2_0)
    )
