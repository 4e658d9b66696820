"""The video encoders (x264, x265, SVT-AV1, VP9, FFV1, ProRes, NVENC ...): a record for each with defaults, limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Level:
    """The limits of the highest level of a video format."""

    name: str
    samples: int
    """Luma samples in a picture."""
    width: int
    height: int
    rate: int
    """Luma samples in a second."""
    block: int = 1
    """Width and height are rounded up to multiples of this."""


# Rec. ITU-T H.264 table A-1, H.265 table A.8, the AV1 specification annex A.3, VP9's levels of the WebM project.
_AVC = Level("H.264's largest level (6.2)", 139_264 * 256, 16_880, 16_880, 16_711_680 * 256, 16)
_HEVC = Level("H.265's level 6.2", 35_651_584, 16_888, 16_888, 4_278_190_080)
_AV1 = Level("AV1's largest level (6.3)", 35_651_584, 16_384, 8_704, 4_706_009_088)
_VP9 = Level("VP9's largest level (6.2)", 35_651_584, 16_384, 16_384, 4_706_009_088)


@dataclass(frozen=True)
class Defaults:
    """The options of an encoder where the user gives none, and its limits."""

    crf: float | None
    """Constant quality; None for encoders that have none."""
    options: dict[str, str] = field(default_factory=dict)
    params: tuple[str, str] | None = None
    """The option that is a list of ``key=value`` joined by colons, and our entries; the user's follow them."""
    level: Level | None = None
    """The highest level of its format; None for formats without levels."""
    quality: str = "crf"
    """The encoder's own name for constant quality."""
    crf_range: tuple[float, float] = (0, 63)
    """The values that it accepts; it would clamp others silently, or (0 in some) choose the quality itself."""
    largest: tuple[int, int] = (65535, 65535)
    """The largest width and height in pixels that the encoder or its format supports."""
    pix_fmts: tuple[str, ...] = ()
    """The pixel formats to choose from where the user names none; empty: all that the encoder supports."""
    matrices: frozenset[int] | None = None
    """The colour matrices that its streams can be tagged with; None: any, or the container has the tag."""
    rates: tuple[str, ...] = ("b", "qp")
    """Its options that choose another rate control; it would ignore them next to constant quality."""
    cap: tuple[str, ...] = ("maxrate", "bufsize")
    """Its options, in bits a second and in bits, that keep constant quality below a bitrate."""
    ignored: tuple[str, ...] = ("global_quality",)
    """Options of rate control that ffmpeg has for all encoders, and that this one ignores."""
    narrowest: int = 1
    """The least width of a picture; with less it writes past its memory, which can end the process."""
    alpha: bool = False
    """Whether pictures with transparency keep it, in one of the encoder's formats that have it."""
    profiles: Mapping[str, str] = field(default_factory=dict)
    """Profile -> a part of the names of the pixel formats that it is for."""


def _picture(*pix_fmts: str, **options: str) -> Defaults:
    """The record of a lossless encoder of single pictures."""
    return Defaults(None, options, pix_fmts=pix_fmts, rates=(), ignored=("b", "global_quality"), alpha=True)


def _nvenc(crf: float, highest: float, side: int, level: Level, *pix_fmts: str) -> Defaults:
    """The record of an encoder of NVIDIA's, with the highest value and the largest side that it accepts."""
    return Defaults(
        crf, {"preset": "p5", "tune": "hq", "rc": "vbr", "b": "0", "spatial-aq": "1"}, quality="cq",
        crf_range=(1, highest), largest=(side, side), level=level, rates=("b", "qp", "rc"), pix_fmts=pix_fmts,
    )  # fmt: skip


# mbtree is off because x264 reads uninitialised memory where a row of macroblocks is no multiple of 8, so that two runs
# differ. Groups of pictures are closed, so that segments can be joined. NVENC: the formats that every generation since
# Turing supports; those of 16 bits keep ten.
DEFAULTS = {
    "libx264": Defaults(
        18,
        {"preset": "medium"},
        ("x264-params", "mbtree=0:open-gop=0"),
        _AVC,
        crf_range=(0, 51),
        largest=(2**14, 2**14),
    ),
    "libx265": Defaults(
        20, {"preset": "medium"}, ("x265-params", "log-level=error:open-gop=0"), _HEVC, crf_range=(0, 51), narrowest=64
    ),
    "libsvtav1": Defaults(
        26, {"preset": "6"}, ("svtav1-params", ""), _AV1, crf_range=(1, 63), largest=(16384, 8704), cap=("maxrate",)
    ),
    "libvpx-vp9": Defaults(
        24,
        {"b": "0", "deadline": "good", "cpu-used": "2", "row-mt": "1"},
        level=_VP9,
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
    "h264_nvenc": _nvenc(19, 51, 4096, _AVC, "yuv420p", "yuv444p"),
    "hevc_nvenc": _nvenc(21, 51, 8192, _HEVC, "yuv420p", "p010le", "yuv444p", "yuv444p10msble"),
    "av1_nvenc": _nvenc(26, 63, 8192, _AV1, "yuv420p", "p010le"),
}

PICTURES = ("png", "tiff", "dpx", "exr")
"""Encoders of single pictures, which are RGB or gray in full range, however the input is tagged."""
