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


def _plain_conv(conv: Any) -> bool:
    return (
        type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and conv.groups == 1
        and conv.padding_mode == "zeros"
    )


def _plain_norm(norm: Any) -> bool:
    return type(norm) is nn.GroupNorm and norm.affine


def _plain_resnet(resnet: Any) -> bool:
    return (
        type(resnet) is ResnetBlock2D
        and resnet.time_emb_proj is None
        and resnet.time_embedding_norm != "scale_shift"
        and resnet.upsample is None
        and resnet.downsample is None
        and type(resnet.nonlinearity) is nn.SiLU
        and all(map(_plain_norm, (resnet.norm1, resnet.norm2)))
        and all(map(_plain_conv, (resnet.conv1, resnet.conv2)))
        and (resnet.conv_shortcut is None or resnet.conv_shortcut.kernel_size == (1, 1))
    )


def _plain_upsampler(upsampler: Any) -> bool:
    return (
        type(upsampler) is Upsample2D
        and upsampler.norm is None
        and upsampler.interpolate
        and not upsampler.use_conv_transpose
        and _plain_conv(getattr(upsampler, "conv", None))
    )


def _plain_attention(attention: Any) -> bool:
    return (
        type(attention) is Attention
        and _plain_norm(attention.group_norm)
        and attention.spatial_norm is None
        and not attention.is_cross_attention
        and not attention.norm_cross
        and getattr(attention, "norm_q", None) is None
        and getattr(attention, "norm_k", None) is None
        and attention.residual_connection
        and math.isclose(attention.scale, (attention.to_q.out_features // attention.heads) ** -0.5)
        and attention.to_k.out_features == attention.to_v.out_features == attention.to_q.out_features
        and type(attention.processor) in (AttnProcessor, AttnProcessor2_0)
    )
