"""The encoders that vidup has defaults for: what they are given, what they hold, and the keys of their lists."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from vidup.errors import ConfigError


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


_NVENC = {"preset": "p5", "tune": "hq", "rc": "vbr", "b": "0", "spatial-aq": "1"}
_NV_PIX_FMTS = ("yuv420p", "p010le", "yuv444p", "yuv444p10msble")

# mbtree is off because x264 reads memory that it has not written where a row of macroblocks is no multiple of 8, so
# that two runs differ. Groups of pictures are closed, so that segments can be joined. Of NVIDIA's encoders only the
# formats are taken that every generation since Turing has; theirs of 16 bits keep ten.
DEFAULTS = {
    "libx264": Defaults(
        18, {"preset": "medium"}, ("x264-params", "mbtree=0:open-gop=0"), crf_range=(0, 51), largest=(16384, 16384)
    ),
    "libx265": Defaults(20, {"preset": "medium"}, ("x265-params", "log-level=error:open-gop=0"), crf_range=(0, 51)),
    "libsvtav1": Defaults(26, {"preset": "6"}, ("svtav1-params", ""), crf_range=(1, 63), largest=(16384, 8704)),
    "libvpx-vp9": Defaults(
        24,
        {"b": "0", "deadline": "good", "cpu-used": "2", "row-mt": "1"},
        matrices=frozenset({0, 1, 2, 5, 6, 7, 9}),
    ),
    "ffv1": Defaults(None, {"level": "3", "slices": "4", "slicecrc": "1", "g": "1"}),
    "prores_ks": Defaults(None, {"profile": "3"}, matrices=frozenset({1, 2, 6, 9})),
    "h264_nvenc": Defaults(
        19, _NVENC, quality="cq", crf_range=(1, 51), largest=(4096, 4096), pix_fmts=("yuv420p", "yuv444p")
    ),
    "hevc_nvenc": Defaults(21, _NVENC, quality="cq", crf_range=(1, 51), largest=(8192, 8192), pix_fmts=_NV_PIX_FMTS),
    "av1_nvenc": Defaults(26, _NVENC, quality="cq", crf_range=(1, 63), largest=(8192, 8192), pix_fmts=_NV_PIX_FMTS[:2]),
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


X264_KEYS = _words(
    """
8x8dct alternative-transfer analyse annexb aq-mode aq-strength asm aud avcintra-class avcintra-flavor b-adapt b-bias
b-pyramid bff bframes bitrate bluray-compat cabac cabac-idc chroma-me chroma-qp-offset chromaloc cll colormatrix
colorprim constrained-intra cplx-blur cplxblur cpu-independent cqm cqm4 cqm4i cqm4ic cqm4iy cqm4p cqm4pc cqm4py cqm8
cqm8i cqm8p cqmfile crf crf-max crop-rect dct-decimate deadzone-inter deadzone-intra deblock deterministic direct
direct-pred dpb-size dump-yuv fake-interlaced fast-pskip filler filter force-cfr fps frame-packing frameref fullrange
global-header interlaced intra-refresh ip-factor ipratio keyint keyint-min level level-idc log lookahead-threads
mastering-display mbtree me me-range merange min-keyint mixed-refs mv-range mv-range-thread mvrange mvrange-thread
n-deterministic nal-hrd nf nr open-gop opencl opencl-clbin opencl-device overscan partitions pass pb-factor pbratio
pic-struct psnr psy psy-rd qblur qcomp qp qp-max qp-min qp-step qpmax qpmin qpstep ratetol rc-lookahead ref
repeat-headers sar scenecut slice-max-mbs slice-max-size slice-min-mbs sliced-threads slices slices-max sps-id ssim
stats stitchable subme subq sync-lookahead tff threads transfer trellis vbv-bufsize vbv-init vbv-maxrate videoformat
weight-b weightb weightp zones
"""
)
"""Of x264 build 165, with its older names; ``no-`` before a key switches it off."""

X265_KEYS = _words(
    """
allow-non-conformance amp analysis-load analysis-load-reuse-level analysis-reuse-file analysis-reuse-level
analysis-reuse-mode analysis-save analysis-save-reuse-level analyze-src-pics annexb aom-film-grain aq-mode aq-motion
aq-strength asm atc-sei aud b-adapt b-intra b-pyramid bframe-bias bframes bitrate cbqpoffs chromaloc chunk-end
chunk-start cip cll colormatrix colorprim const-vbv constrained-intra copy-pic cplxblur cra-nal crf crf-max crf-min
crop-rect crqpoffs csv csv-log-level ctu ctu-info cu-lossless cu-stats cutree deblock dhdr10-info dhdr10-opt
display-window dolby-vision-profile dup-threshold dynamic-rd dynamic-refine early-skip eob eos fades fast-intra field
film-grain force-flush fps frame-dup frame-rc frame-threads gop-lookahead hash hdr hdr-opt hdr10 hdr10-opt hevc-aq
high-tier hist-scenecut hme hme-range hme-search hrd hrd-concat idr-recovery-sei info input-csp input-res interlace
intra-refresh ip-factor ipratio keyint lambda-file level level-idc lft limit-modes limit-refs limit-sao limit-tu log
log-level log2-max-poc-lsb lookahead-slices lookahead-threads lossless lowpass-dct masking-strength master-display
max-ausize-factor max-cll max-luma max-merge max-tu-size max-vbv-fullness mcstf me merange min-cu-size min-keyint
min-luma min-vbv-fullness multi-pass-opt-analysis multi-pass-opt-distortion multi-pass-opt-rps nalu-file nr-inter
nr-intra numa-pools open-gop opt-cu-delta-qp opt-qp-pps opt-ref-list-length-pps overscan pass pb-factor pbratio
pic-struct pme pmode pools psnr psy-rd psy-rdoq qblur qcomp qg-size qp qp-adaptation-range qpmax qpmin qpstep radl
range rc-grain rc-lookahead rd rd-refine rdoq rdoq-level rdpenalty rect ref refine-analysis-type refine-ctu-distortion
refine-inter refine-intra refine-mv repeat-headers rskip rskip-edge-threshold sao sao-non-deblock sar sbrc
scale-factor scaling-list scenecut scenecut-aware-qp scenecut-bias selective-sao signhide single-sei slices
slow-firstpass splitrd-skip ssim ssim-rd stats strict-cbr strong-intra-smoothing subme temporal-layers temporal-mvp
threaded-me total-frames transfer tskip tskip-fast tu-inter-depth tu-intra-depth uhd-bd vbv-bufsize vbv-end
vbv-end-fr-adj vbv-init vbv-live-multi-pass vbv-maxrate video-signal-type-preset videoformat vui-hrd-info
vui-timing-info weightb weightp wpp zones
"""
)
"""Of x265 4.2 (build 216); ``no-`` before a key switches it off."""

SVT_KEYS = _words(
    """
ac-bias adaptive-film-grain aq-mode asm avif buf-initial-sz buf-optimal-sz buf-sz chroma-qindex-offsets chroma-qm-max
chroma-qm-min chroma-sample-position chroma-u-ac-qindex-offset chroma-u-dc-qindex-offset chroma-v-ac-qindex-offset
chroma-v-dc-qindex-offset color-format color-primaries color-range content-light crf enable-cdef enable-dg enable-dlf
enable-force-key-frames enable-mfmv enable-overlays enable-qm enable-restoration enable-stat-report enable-tf
enable-variance-boost fast-decode film-grain film-grain-denoise forced-max-frame-height forced-max-frame-width
fps-denom fps-num frame-resz-denoms frame-resz-events frame-resz-kf-denoms gop-constraint-rc height
hierarchical-levels input-depth intra-period irefresh-type key-frame-chroma-qindex-offset key-frame-qindex-offset
keyint lambda-scale-factors level lookahead lossless lp luma-y-dc-qindex-offset luminance-qp-bias mastering-display
matrix-coefficients max-qp max-tx-size maxsection-pct mbr mbr-overshoot-pct min-qp minsection-pct overshoot-pct pass
pred-struct preset profile qindex-offsets qm-max qm-min qp qp-scale-compress-strength rc recode-loop resize-denom
resize-kf-denom resize-mode rtc scd scm sframe-dist sframe-mode sframe-posi sframe-qp sframe-qp-offset sharpness
startup-mg-size startup-qp-offset superres-denom superres-kf-denom superres-kf-qthres superres-mode superres-qthres
tbr tf-strength tier tile-columns tile-rows transfer-characteristics tune undershoot-pct use-fixed-qindex-offsets
use-q-file variance-boost-curve variance-boost-strength variance-octile width
"""
)
"""Of SVT-AV1 4.1."""

_KEYS = {
    "libx264": {"x264-params": X264_KEYS, "x264opts": X264_KEYS},
    "libx265": {"x265-params": X265_KEYS},
    "libsvtav1": {"svtav1-params": SVT_KEYS},
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

# Keys of x264 and x265 whose value is free text; all others take numbers or some of the words.
_FREE = _words(
    """
analysis-load analysis-reuse-file analysis-save analyse aom-film-grain cqm cqm4 cqm4i cqm4ic cqm4iy cqm4p cqm4pc cqm4py
cqm8 cqm8i cqm8p cqmfile csv dhdr10-info dump-yuv film-grain lambda-file log-level nalu-file opencl-clbin partitions
pools numa-pools scaling-list stats masking-strength video-signal-type-preset zones crop-rect
"""
)
_WORDS = _words(
    """
true false yes no on off auto none undef unknown infinite inf panasonic sony normal strict spatial temporal dia hex umh
esa tesa sea star full limited cbr vbr crop show component pal ntsc secam mac 1b reserved bt709 bt470m bt470bg film
bt2020 smpte170m smpte240m smpte428 smpte431 smpte432 smpte2084 smpte2085 bt1361e bt2020-10 bt2020-12 bt2020c bt2020nc
fcc gbr ycgco ictcp ipt-pq-c2 chroma-derived-c chroma-derived-nc arib-std-b67 iec61966-2-1 iec61966-2-4 linear
log100 log316 i400 i420 i422 i444 nv12 nv16 tff bff prog avc hevc avx512 avx2 avx sse2 ssse3 sse4 mmx2
"""
)
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)(x\d+)?")
_MASTERING = re.compile(r"G\(P\)B\(P\)R\(P\)WP\(P\)L\(P\)".replace("P", r"[\d.]+,[\d.]+"))
_LIGHT = re.compile(r"\d+,\d+")


def check_params(codec: str, options: Mapping[str, str]) -> None:
    """See that the lists of ``key=value`` in an encoder's options hold only what it knows.

    ffmpeg would write a warning at most and encode without them.

    Raises:
        ConfigError: an unknown key, with the nearest known one; a value that cannot be.
    """
    for name, keys in _KEYS.get(codec, {}).items():
        for item in re.findall(r"(?:\\.|'[^']*'|[^:\\'])+", options.get(name, "")):
            typed, equals, value = item.partition("=")
            key = typed.strip().replace("_", "-") if keys is not SVT_KEYS else typed.strip()
            if not equals:
                raise ConfigError(f"{name}: {item!r}: expected key=value")
            if keys is not SVT_KEYS and key not in keys:
                key = key.removeprefix("no-") if key.startswith("no-") else key.removeprefix("no")
            if key not in keys:
                near = difflib.get_close_matches(typed.strip().removeprefix("no-"), sorted(keys), 1, 0.5)
                hint = f"; did you mean {near[0]!r}?" if near else f" (see the documentation of {codec})"
                raise ConfigError(f"{name}: {codec} does not know {typed.strip()!r}{hint}")
            _check_value(name, key, value.replace("\\", "").strip("'"), keys is SVT_KEYS)


def _check_value(name: str, key: str, value: str, checked_later: bool) -> None:
    if key in ("master-display", "mastering-display"):
        if _MASTERING.fullmatch(value) is None and value != "undef":
            raise ConfigError(f"{name}: {key}={value}: expected G(x,y)B(x,y)R(x,y)WP(x,y)L(max,min)")
    elif key in ("max-cll", "content-light") or (key == "cll" and name.startswith("x264")):
        if _LIGHT.fullmatch(value) is None and value != "undef":
            raise ConfigError(f"{name}: {key}={value}: expected two numbers, MaxCLL,MaxFALL")
    elif (
        not checked_later
        and key not in _FREE
        and not all(part in _WORDS or _NUMBER.fullmatch(part) for part in re.split("[,:/|]", value))
    ):
        raise ConfigError(f"{name}: {key}={value}: the encoder would ignore it; expected a number or one of its words")
