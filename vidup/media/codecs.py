"""The video encoders (x264, x265, SVT-AV1, VP9, FFV1, ProRes, NVENC ...): a record each, with defaults and limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Defaults:
    """What an encoder is given unless the user says otherwise, and what it holds."""

    crf: float | None
    """Constant quality; None for encoders that have none."""
    options: dict[str, str] = field(default_factory=dict)
    params: tuple[str, str] | None = None
    """An option that is a list of ``key=value`` joined by colons: ours come first, then the user's."""
    quality: str = "crf"
    """The encoder's own name for constant quality."""
    crf_range: tuple[float, float] = (0, 63)
    """What it takes: beyond, it would be cut off in silence, or (0 in some) mean that the encoder chooses."""
    largest: tuple[int, int] = (65535, 65535)
    """Width and height in pixels that its format, or it, can hold at all."""
    pix_fmts: tuple[str, ...] = ()
    """Chosen from these where the user does not say; all that the encoder offers where empty."""
    matrices: frozenset[int] | None = None
    """Colour matrices that its streams can name; None where the container names them, or any can be."""
    rates: tuple[str, ...] = ("b", "qp")
    """Its options that choose another rate control than constant quality; it would not go by them beside that."""
    cap: tuple[str, ...] = ("maxrate", "bufsize")
    """Its options, of bits a second and of bits, that hold constant quality below a bitrate."""
    ignored: tuple[str, ...] = ("global_quality",)
    """Options of every encoder in ffmpeg that would decide its rate, and that it does not go by."""
    narrowest: int = 1
    """Width of a picture below which it writes past its memory, which can end the process."""
    alpha: bool = False
    """Whether its formats with transparency are taken for pictures that have it."""
    profiles: Mapping[str, str] = field(default_factory=dict)
    """Of its profiles, what stands in the names of the pixel formats that each is for."""


def _picture(*pix_fmts: str, **options: str) -> Defaults:
    """Of an encoder of single pictures, without loss."""
    return Defaults(None, options, pix_fmts=pix_fmts, rates=(), ignored=("b", "global_quality"), alpha=True)


_NVENC = {"preset": "p5", "tune": "hq", "rc": "vbr", "b": "0", "spatial-aq": "1"}
_NV_RATES = ("b", "qp", "rc")
_NV_PIX_FMTS = ("yuv420p", "p010le", "yuv444p", "yuv444p10msble")

# mbtree is off because x264 reads memory that it has not written where a row of macroblocks is no multiple of 8, so
# that two runs differ. Groups of pictures are closed, so that segments can be joined. Of NVIDIA's encoders only the
# formats are taken that every generation since Turing has; theirs of 16 bits keep ten.
DEFAULTS = {
    "libx264": Defaults(
        18, {"preset": "medium"}, ("x264-params", "mbtree=0:open-gop=0"), crf_range=(0, 51), largest=(16384, 16384)
    ),
    "libx265": Defaults(
        20, {"preset": "medium"}, ("x265-params", "log-level=error:open-gop=0"), crf_range=(0, 51), narrowest=64
    ),
    "libsvtav1": Defaults(
        26, {"preset": "6"}, ("svtav1-params", ""), crf_range=(1, 63), largest=(16384, 8704), cap=("maxrate",)
    ),
    "libvpx-vp9": Defaults(
        24,
        {"b": "0", "deadline": "good", "cpu-used": "2", "row-mt": "1"},
        alpha=True,
        matrices=frozenset({0, 1, 2, 5, 6, 7, 9}),
        rates=("b", "lossless"),
        cap=("b",),
    ),
    "ffv1": Defaults(
        None,
        {"level": "3", "slices": "4", "slicecrc": "1", "g": "1"},
        rates=(),
        ignored=("b", "global_quality"),
        alpha=True,
    ),
    "prores_ks": Defaults(
        None,
        {"profile": "auto"},
        alpha=True,
        matrices=frozenset({1, 2, 6, 9}),
        rates=(),
        ignored=("b",),
        profiles={
            **dict.fromkeys(("proxy", "lt", "standard", "hq", "0", "1", "2", "3"), "422"),
            **dict.fromkeys(("4444", "4444xq", "4", "5"), "444"),
        },
    ),
    "png": _picture("rgb24", "rgb48be", "gray", "gray16be", "rgba", "rgba64be"),
    "tiff": _picture("rgb24", "rgb48le", "gray", "gray16le", "rgba", "rgba64le", compression_algo="deflate"),
    "dpx": _picture("rgb24", "gbrp10le", "gbrp12le", "rgb48le", "rgba", "rgba64le"),
    "exr": _picture("gbrpf32le", "gbrapf32le", format="half", compression="zip16"),
    "h264_nvenc": Defaults(
        19,
        _NVENC,
        quality="cq",
        crf_range=(1, 51),
        largest=(4096, 4096),
        rates=_NV_RATES,
        pix_fmts=("yuv420p", "yuv444p"),
    ),
    "hevc_nvenc": Defaults(
        21, _NVENC, quality="cq", crf_range=(1, 51), largest=(8192, 8192), rates=_NV_RATES, pix_fmts=_NV_PIX_FMTS
    ),
    "av1_nvenc": Defaults(
        26, _NVENC, quality="cq", crf_range=(1, 63), largest=(8192, 8192), rates=_NV_RATES, pix_fmts=_NV_PIX_FMTS[:2]
    ),
}


@dataclass(frozen=True)
class Level:
    """The highest level of a video format that players know: how much it allows."""

    name: str
    samples: int
    """Luma samples in a picture."""
    width: int
    height: int
    rate: int
    """Luma samples in a second."""
    block: int = 1
    """A picture is counted in whole blocks of this side."""


# Rec. ITU-T H.264 table A-1, H.265 table A.8, the AV1 specification annex A.3, VP9's levels of the WebM project.
_AVC = Level("H.264's largest level (6.2)", 139_264 * 256, 16_880, 16_880, 16_711_680 * 256, 16)
_HEVC = Level("H.265's level 6.2", 35_651_584, 16_888, 16_888, 4_278_190_080)
_AV1 = Level("AV1's largest level (6.3)", 35_651_584, 16_384, 8_704, 4_706_009_088)
_VP9 = Level("VP9's largest level (6.2)", 35_651_584, 16_384, 16_384, 4_706_009_088)

LEVELS = {
    "libx264": _AVC,
    "h264_nvenc": _AVC,
    "libx265": _HEVC,
    "hevc_nvenc": _HEVC,
    "libsvtav1": _AV1,
    "av1_nvenc": _AV1,
    "libvpx-vp9": _VP9,
}
PICTURES = ("png", "tiff", "dpx", "exr")
"""Encoders of single pictures: RGB or gray of full range, whatever video says."""
