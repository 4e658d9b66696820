"""Choose and open a video encoder: its options, its pixel format, its colour tags."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np

from vidup import color
from vidup.config import Settings
from vidup.errors import ConfigError
from vidup.frame import Color, Frame, MediaInfo
from vidup.reader import planar

os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 writes its banner to standard error otherwise: errors only

THREADS = 8
"""Fixed, because x264's result depends on it: the same job gives the same file on every machine."""

_FINEST = 1_000_000
"""Units of a second that encoders and muxers count in without overflow."""

_FRAME_FLAGS = (
    av.codec.context.Flags.frame_duration | av.codec.context.Flags.global_header | av.codec.context.Flags.closed_gop
)


@dataclass(frozen=True)
class Defaults:
    """What an encoder is given unless the user says otherwise."""

    crf: float | None
    """Constant quality; None for encoders that have none."""
    options: dict[str, str] = field(default_factory=dict)
    params: tuple[str, str] | None = None
    """An option that is a list of ``key=value`` joined by colons: ours come first, then the user's."""


# mbtree is off because x264 reads memory that it has not written where a row of macroblocks is no multiple of 8, so
# that two runs differ. Groups of pictures are closed, so that segments can be joined.
DEFAULTS = {
    "libx264": Defaults(18, {"preset": "medium"}, ("x264-params", "mbtree=0:open-gop=0")),
    "libx265": Defaults(20, {"preset": "medium"}, ("x265-params", "log-level=error:open-gop=0")),
    "libsvtav1": Defaults(26, {"preset": "6"}),
    "libvpx-vp9": Defaults(24, {"b": "0", "deadline": "good", "cpu-used": "2", "row-mt": "1"}),
    "ffv1": Defaults(None, {"level": "3", "slices": "4", "slicecrc": "1", "g": "1"}),
    "prores_ks": Defaults(None, {"profile": "3"}),
}

_MASTERING = ("ffv1",)  # encoders whose files are for further work: RGB and gray stay what they are


@dataclass(frozen=True)
class Encoding:
    """All that decides how frames are encoded."""

    codec: str
    width: int
    height: int
    pix_fmt: str
    options: dict[str, str]
    time_base: Fraction
    rate: Fraction
    """Frames a second on average: for the encoder's rate control, never for timing."""
    color: Color
    sample_aspect_ratio: Fraction


def default_codec(container: str) -> str:
    return "libvpx-vp9" if container == "webm" else "libx264"


def choose(settings: Settings, info: MediaInfo, width: int, height: int, container: str) -> Encoding:
    """The encoding of `info`'s frames at a new size.

    Args:
        container: the output's format, ``mp4``, ``mov``, ``matroska`` or ``webm``.

    Raises:
        ConfigError: the encoder is not there, or cannot take the pixel format, the size or an option.
    """
    codec = settings.codec or default_codec(container)
    try:
        encoder = av.Codec(codec, "w")
    except ValueError:
        raise ConfigError(
            f"codec = {codec!r}: this build of ffmpeg has no such encoder; take one of {', '.join(DEFAULTS)}"
        ) from None
    if encoder.type != "video":
        raise ConfigError(f"codec = {codec!r}: is no video encoder; take one of {', '.join(DEFAULTS)}")
    source = planar(info.pix_fmt)
    offered = [form.name for form in encoder.video_formats or []]
    if settings.pix_fmt is not None and offered and settings.pix_fmt not in offered:
        raise ConfigError(f"pix_fmt = {settings.pix_fmt!r}: {codec} takes {', '.join(offered)}")
    pix_fmt = settings.pix_fmt or _nearest(source, offered, codec)
    encoding = Encoding(
        codec=codec,
        width=width,
        height=height,
        pix_fmt=pix_fmt,
        options=_options(codec, settings),
        time_base=_time_base(info),
        rate=info.rate,
        color=_output_color(info, source, planar(pix_fmt)),
        sample_aspect_ratio=info.sample_aspect_ratio,
    )
    context = open_context(av.CodecContext.create(codec, "w"), encoding)
    if context.options:
        unknown = ", ".join(sorted(context.options))
        raise ConfigError(f"encoder option {unknown}: {codec} does not know it (see ffmpeg -h encoder={codec})")
    return encoding


def open_context(context: Any, encoding: Encoding) -> Any:
    """Set up and open a PyAV codec context.

    Raises:
        ConfigError: the encoder refuses.
    """
    context.width, context.height, context.pix_fmt = encoding.width, encoding.height, encoding.pix_fmt
    context.time_base, context.framerate = encoding.time_base, encoding.rate
    context.flags |= _FRAME_FLAGS
    context.thread_count = THREADS
    context.sample_aspect_ratio = encoding.sample_aspect_ratio
    context.colorspace, context.color_primaries = encoding.color.matrix, encoding.color.primaries
    context.color_trc, context.color_range = encoding.color.transfer, 2 if encoding.color.full_range else 1
    context.options = dict(encoding.options)
    try:
        context.open()
    except (av.error.FFmpegError, ValueError) as error:
        raise ConfigError(
            f"{encoding.codec} refuses {encoding.width}x{encoding.height} {encoding.pix_fmt} with"
            f" {_shown(encoding.options)}: {_cause(error)}; choose another --codec, --pix-fmt or size"
        ) from None
    return context


def to_av(frame: Frame, encoding: Encoding) -> Any:
    """A PyAV frame, its planes copied, its times in the encoding's time base."""
    height, width = frame.planes[0].shape
    result = av.VideoFrame(width, height, frame.pix_fmt)
    for plane, source in zip(result.planes, frame.planes, strict=True):
        target = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        target[:, : source.shape[1] * source.itemsize] = np.ascontiguousarray(source).view(np.uint8)
    if frame.pix_fmt != encoding.pix_fmt:
        result = result.reformat(format=encoding.pix_fmt)
    unit = frame.time_base / encoding.time_base
    result.pts, result.duration, result.time_base = (
        int(frame.pts * unit),
        round(frame.duration * unit),
        encoding.time_base,
    )
    result.colorspace, result.color_primaries = encoding.color.matrix, encoding.color.primaries
    result.color_trc, result.color_range = encoding.color.transfer, 2 if encoding.color.full_range else 1
    result.pict_type = 0  # the encoder decides: a decoded frame's type would force it
    return result


def loses(info: MediaInfo, encoding: Encoding) -> list[str]:
    """What of the picture's format the encoding does not keep, in words."""
    source, target = color.layout(planar(info.pix_fmt)), color.layout(planar(encoding.pix_fmt))
    assert source is not None and target is not None
    lost = []
    if av.VideoFormat(info.pix_fmt).components[-1].is_alpha and len(av.VideoFormat(info.pix_fmt).components) in (2, 4):
        lost.append("transparency is dropped: the picture is made opaque")
    if target.bits < source.bits:
        lost.append(
            f"{source.bits} bits become {target.bits}: {encoding.codec} has no deeper format ({encoding.pix_fmt})"
        )
    if source.family == "gbr" and target.family == "yuv":
        lost.append(f"RGB becomes {encoding.pix_fmt}")
    elif target.chroma_x > source.chroma_x or target.chroma_y > source.chroma_y:
        lost.append(f"{info.pix_fmt} becomes {encoding.pix_fmt}: colour at a lower resolution")
    return lost


def _options(codec: str, settings: Settings) -> dict[str, str]:
    defaults = DEFAULTS.get(codec, Defaults(None))
    options = dict(defaults.options)
    crf = settings.crf if settings.crf is not None else defaults.crf
    if settings.crf is not None and defaults.crf is None and codec in DEFAULTS:
        raise ConfigError(f"crf = {settings.crf}: {codec} has no constant quality; leave it out")
    if crf is not None:
        options["crf"] = f"{crf:g}"
    options |= settings.encoder_options
    if defaults.params is not None:
        name, ours = defaults.params
        theirs = settings.encoder_options.get(name)
        options[name] = f"{ours}:{theirs}" if theirs else ours
    return options


def _nearest(source: str, offered: list[str], codec: str) -> str:
    """The offered format that loses least of `source`, and among those the one that adds least."""
    wanted = color.layout(source)
    assert wanted is not None
    kept = codec in _MASTERING or wanted.family == "yuv"
    if not kept:  # RGB and gray are delivered as what players play: 4:2:0
        wanted = color.Layout("yuv", wanted.bits, 2, 2)

    def loss(name: str) -> tuple[bool, int, int, int, int]:
        have = color.layout(planar(name))
        assert have is not None
        fewer = max(0, wanted.bits - have.bits)
        coarser = max(0, have.chroma_x - wanted.chroma_x) + max(0, have.chroma_y - wanted.chroma_y)
        more = max(0, have.bits - wanted.bits)
        finer = max(0, wanted.chroma_x - have.chroma_x) + max(0, wanted.chroma_y - have.chroma_y)
        return have.family != wanted.family, fewer, coarser, more, finer

    usable = [name for name in offered if not name.startswith("yuvj") and "f16" not in name and "f32" not in name]
    return min(usable, key=loss) if usable else "yuv420p"


def _output_color(info: MediaInfo, source: str, target: str) -> Color:
    tags = color.resolve(info.color, source, info.width, info.height)
    kind = color.layout(target)
    assert kind is not None
    if kind.family == "gbr":
        return Color(color.RGB, tags.primaries, tags.transfer, True)
    if tags.matrix == color.RGB:
        return Color(color.BT709, tags.primaries, tags.transfer, False)
    return tags


def _time_base(info: MediaInfo) -> Fraction:
    """One that holds every time exactly: the file's own, or a coarser one where the file's is finer than it needs."""
    unit = info.time_base
    if unit.denominator > _FINEST and info.pts:
        unit *= math.gcd(*(pts for pts in info.pts), info.pts[0]) or 1
    # Track time scales are whole numbers, so 1001/30000 is written as 1/30000.
    return Fraction(1, unit.denominator)


def _shown(options: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items()) or "no options"


def _cause(error: Exception) -> str:
    log = getattr(error, "log", None)
    return str(log[2]).strip() if log else str(getattr(error, "strerror", None) or error)


def available() -> dict[str, str]:
    """The encoders of this machine that vidup has defaults for, and what the defaults are."""
    found = {}
    for name, defaults in DEFAULTS.items():
        try:
            av.Codec(name, "w")
        except ValueError:
            continue
        options = {**defaults.options, **({"crf": f"{defaults.crf:g}"} if defaults.crf is not None else {})}
        found[name] = _shown(options)
    return found
