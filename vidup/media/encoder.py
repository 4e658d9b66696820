"""Choose and open a video encoder: its options, its pixel format, its colour tags."""

from __future__ import annotations

import difflib
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av

from vidup.config import Settings
from vidup.errors import ConfigError
from vidup.frame import Color, Frame, Layout, MediaInfo, layout
from vidup.media import frames
from vidup.media.codecs import DEFAULTS, PICTURES, Defaults
from vidup.media.containers import Container, video_format
from vidup.media.decoding import planar
from vidup.media.opening import reason
from vidup.media.options import encoder_options
from vidup.media.trial import objections
from vidup.picture import color

os.environ.setdefault("SVT_LOG", "1")  # errors only: by default SVT-AV1 writes a banner to standard error

THREADS = 8
"""Threads of an encoder: fixed, because x264's result depends on the number."""

_FINEST = 1_000_000
"""The most units a second in which encoders and muxers count without overflow or rounding (libvpx uses 0.1 us)."""

_FRAME_FLAGS = (
    av.codec.context.Flags.frame_duration | av.codec.context.Flags.global_header | av.codec.context.Flags.closed_gop
)

_KEEP_RGB = ("ffv1", *PICTURES)  # encoders whose files are for further work: RGB and gray are not converted


@dataclass(frozen=True)
class Encoding:
    """How frames are encoded."""

    codec: str
    width: int
    height: int
    pix_fmt: str
    options: dict[str, str]
    time_base: Fraction
    rate: Fraction
    """Average frames a second: for the encoder's rate control, never for timing."""
    color: Color
    sample_aspect_ratio: Fraction

    @property
    def alpha_apart(self) -> bool:
        """Whether transparency is encoded as a second picture beside each; see `vp9_alpha`."""
        kind = layout(self.pix_fmt)
        return self.codec == "libvpx-vp9" and kind is not None and kind.alpha

    @property
    def encoder_time_base(self) -> Fraction:
        """Seconds in one unit of the times that the encoder gets; no encoder rounds these."""
        return max(self.time_base, Fraction(1, _FINEST))


def choose_encoding(settings: Settings, info: MediaInfo, width: int, height: int, container: Container) -> Encoding:
    """Choose the encoding of `info`'s frames at a new size, for a container.

    Raises:
        ConfigError: the encoder does not exist, does not support the pixel format, the size or an option, or the
            container cannot store its video.
    """
    source = planar(info.pix_fmt)
    encoder = _find(settings.codec or _default_codec(container, settings.pix_fmt or source))
    codec = encoder.name  # a format's name, such as hevc, stands for the encoder that ffmpeg uses for it
    defaults = DEFAULTS.get(codec, Defaults(None))
    if width > defaults.largest[0] or height > defaults.largest[1]:
        raise ConfigError(
            f"{codec} holds at most {defaults.largest[0]}x{defaults.largest[1]}, not {width}x{height}:"
            " choose another --codec, a smaller --scale or --height"
        )
    if width < defaults.narrowest:
        raise ConfigError(
            f"{codec} takes pictures of {defaults.narrowest} pixels in width and more, not {width}x{height}: choose"
            " another --codec"
        )
    offered = [form.name for form in encoder.video_formats or []]
    if container.is_animated:
        offered = [name for name in offered if av.VideoFormat(name).components[0].bits == 8]
    if settings.pix_fmt is not None and offered and settings.pix_fmt not in offered:
        raise ConfigError(f"pix_fmt = {settings.pix_fmt!r}: {codec} takes {', '.join(offered)}")
    family = defaults.profiles.get(settings.encoder_options.get("profile", ""), "")
    if family not in (settings.pix_fmt or family):
        raise ConfigError(
            f"pix_fmt = {settings.pix_fmt!r}: the profile {settings.encoder_options['profile']} of {codec} is for"
            f" {', '.join(name for name in offered if family in name)}; leave one of the two out"
        )
    preferred = [name for name in offered if family in name and (not defaults.pix_fmts or name in defaults.pix_fmts)]
    keeps_alpha = defaults.alpha and (codec != "libvpx-vp9" or container.family == "matroska")  # see `vp9_alpha`
    pix_fmt = settings.pix_fmt or _nearest(source, preferred, codec, keeps_alpha)
    encoding = Encoding(
        codec=codec,
        width=width,
        height=height,
        pix_fmt=pix_fmt,
        options=encoder_options(codec, settings, info.hdr, info.stereo_mode),
        time_base=_time_base(info),
        rate=info.rate,
        color=_output_color(info, settings, planar(pix_fmt), codec),
        sample_aspect_ratio=info.sample_aspect_ratio,
    )
    _check_options(encoding, settings.encoder_options)
    if not container.holds(codec):
        codecs = ", ".join(name for name in available() if container.holds(name))
        raise ConfigError(
            f"codec = {codec!r}: {container} does not hold it; take one of {codecs}, or an output that ends in .mkv"
        )
    return encoding


def encoder_of(codec: str) -> str:
    """The encoder with defaults that writes a format (or what a decoder of that name reads); else the format's name."""
    name = video_format(codec)
    return next((encoder for encoder in DEFAULTS if video_format(encoder) == name), name)


def _default_codec(container: Container, pix_fmt: str) -> str:
    deep = pix_fmt in av.video.format.names and av.VideoFormat(pix_fmt).components[0].bits > 8
    return container.deep_codec if deep else container.codec


def _check_options(encoding: Encoding, given: dict[str, str]) -> None:
    """Check that the encoder opens, and obeys each of the options that the user gave."""
    codec = encoding.codec
    picture = encoding.width, encoding.height, encoding.pix_fmt
    if given and (objected := objections(codec, tuple(encoding.options.items()), *picture)):
        raise ConfigError(
            f"{codec} refuses {encoding.width}x{encoding.height} {encoding.pix_fmt} with {_shown(given)}:"
            f" {'; '.join(objected)} (see ffmpeg -h encoder={codec})"
        )
    context = open_context(av.CodecContext.create(codec, "w"), encoding)
    if context.options:
        unknown = ", ".join(sorted(context.options))
        raise ConfigError(f"encoder option {unknown}: {codec} does not know it (see ffmpeg -h encoder={codec})")
    if _decided(context) != _decided(_set_up(av.CodecContext.create(codec, "w"), encoding)):
        raise ConfigError(
            f"encoder options {_shown(given)}: change what is decided elsewhere (size, format, flags, colour tags,"
            " pixel aspect, times); leave out those that do"
        )


def _decided(context: Any) -> tuple[Any, ...]:
    """The settings of a codec context that options must not change."""
    return (
        *(context.width, context.height, context.pix_fmt, context.flags & _FRAME_FLAGS, context.sample_aspect_ratio),
        *(context.time_base, context.framerate),
        *(context.colorspace, context.color_primaries, context.color_trc, context.color_range),
    )


def _find(codec: str) -> Any:
    """The PyAV codec of a video encoder, by its name; an error where this machine cannot open it."""
    try:
        encoder = av.Codec(codec, "w")
    except ValueError:
        near = difflib.get_close_matches(codec.lower(), available(), 1, 0.5)
        raise ConfigError(
            f"codec = {codec!r}: this build of ffmpeg has no such encoder; take one of {', '.join(available())}"
            f"{f'; did you mean {near[0]}?' if near else ''}"
        ) from None
    if encoder.type != "video":
        raise ConfigError(f"codec = {codec!r}: is no video encoder; take one of {', '.join(available())}")
    refusal = _hardware_refusal(codec)
    if refusal is not None:
        raise ConfigError(
            f"codec = {codec!r}: cannot be opened on this machine ({refusal}): it needs an NVIDIA GPU that encodes, and"
            f" its driver; take one of {', '.join(available())}"
        )
    return encoder


@cache
def _hardware_refusal(codec: str) -> str | None:
    """Why a hardware encoder cannot be opened here, found by trying; None where it can be, or is software."""
    if not codec.endswith("_nvenc"):
        return None
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt, context.time_base = 256, 256, "yuv420p", Fraction(1, 25)
    try:
        context.open()
    except (av.error.FFmpegError, ValueError) as error:
        return _cause(error)
    return None


def open_context(context: Any, encoding: Encoding) -> Any:
    """Set up and open a PyAV codec context; a ConfigError where the encoder refuses."""
    context = _set_up(context, encoding)
    context.options = dict(encoding.options)
    if encoding.codec == "libsvtav1":
        context.options |= {"err_detect": "explode"}  # a parameter that it cannot parse is an error, not a warning
    try:
        with same_priority():
            context.open()
    except (av.error.FFmpegError, ValueError) as error:
        raise ConfigError(
            f"{encoding.codec} refuses {encoding.width}x{encoding.height} {encoding.pix_fmt} with"
            f" {_shown(encoding.options)}: {_cause(error)}; choose another --codec, --pix-fmt or size"
        ) from None
    return context


def _set_up(context: Any, encoding: Encoding) -> Any:
    """Set all of a codec context but its options."""
    context.width, context.height, context.pix_fmt = encoding.width, encoding.height, encoding.pix_fmt
    context.time_base, context.framerate = encoding.encoder_time_base, encoding.rate
    context.flags |= _FRAME_FLAGS
    context.thread_count = THREADS
    context.sample_aspect_ratio = encoding.sample_aspect_ratio
    context.colorspace, context.color_primaries = encoding.color.matrix, encoding.color.primaries
    context.color_trc, context.color_range = encoding.color.transfer, 2 if encoding.color.full_range else 1
    return context


@contextmanager
def same_priority() -> Iterator[None]:
    """Restore the scheduling of threads after the block, for this thread and those that were started in it.

    As root, as in most containers, SVT-AV1 gives the thread that opens it and all its own threads real-time scheduling
    of the highest priority, and all else on the machine starves.
    """
    tasks = Path("/proc/self/task")
    try:
        policy, param, before = os.sched_getscheduler(0), os.sched_getparam(0), set(tasks.iterdir())
    except (AttributeError, OSError):  # not Linux, where SVT-AV1 does not do so; or the call is forbidden
        yield
        return
    try:
        yield
    finally:
        ours = tasks / str(threading.get_native_id())
        for task in {ours, *tasks.iterdir()} - (before - {ours}):
            with suppress(OSError):  # the thread has ended meanwhile
                if os.sched_getscheduler(int(task.name)) != policy:
                    os.sched_setscheduler(int(task.name), policy, param)


def to_av(frame: Frame, encoding: Encoding) -> Any:
    """A PyAV frame with copies of the planes, its times in the encoding's time base."""
    pix_fmt, unit = encoding.pix_fmt, frame.time_base / encoding.time_base
    result = frames.linear(frame, pix_fmt) if encoding.codec == "exr" else _in_format(frame, pix_fmt)
    result.pts, result.duration = int(frame.pts * unit), round(frame.duration * unit)
    result.time_base = encoding.time_base
    frames.tag(result, encoding.color)
    result.pict_type = 0  # the encoder decides: a decoded frame's type would force it
    return result


def _in_format(frame: Frame, pix_fmt: str) -> Any:
    # Samples in the high bits are shifted here: ffmpeg's own conversion of them is not exact for RGB.
    result = frames.filled(frame.planes, pix_fmt if pix_fmt.endswith("msble") else frame.pix_fmt)
    return result if result.format.name == pix_fmt else result.reformat(format=pix_fmt)


def _nearest(source: str, offered: list[str], codec: str, alpha: bool) -> str:
    """The offered pixel format that loses least of `source`; of equals that which adds least."""
    wanted = layout(source)
    assert wanted is not None
    transparent = wanted.alpha and alpha
    if codec not in _KEEP_RGB and wanted.family != "yuv":  # RGB and gray are delivered as what players play: 4:2:0
        wanted = Layout("yuv", wanted.bits, 2, 2)

    def loss(name: str) -> tuple[bool, bool, int, int, int, int]:
        have = layout(planar(name))
        assert have is not None
        fewer = max(0, wanted.bits - have.bits)
        coarser = max(0, have.chroma_x - wanted.chroma_x) + max(0, have.chroma_y - wanted.chroma_y)
        more = max(0, have.bits - wanted.bits)
        finer = max(0, wanted.chroma_x - have.chroma_x) + max(0, wanted.chroma_y - have.chroma_y)
        return transparent and not have.alpha, have.family != wanted.family, fewer, coarser, more, finer

    def is_usable(name: str) -> bool:
        components = av.VideoFormat(name).components
        is_plain = not (name.startswith("yuvj") or "f16" in name or "f32" in name)
        # Two components are gray with transparency, which is not planar.
        return is_plain and len(components) != 2 and (transparent or not components[-1].is_alpha)

    if codec == "exr":
        return "gbrapf32le" if transparent else "gbrpf32le"
    return min(filter(is_usable, offered), key=loss, default="yuv420p")


def _output_color(info: MediaInfo, settings: Settings, target: str, codec: str) -> Color:
    defaults = DEFAULTS.get(codec, Defaults(None))
    tags = color.resolve(info.color, planar(info.pix_fmt), info.width, info.height, settings.matrix, settings.range)
    kind = layout(target)
    assert kind is not None
    if kind.family == "gbr":
        return Color(color.RGB, tags.primaries, tags.transfer, True)
    matrix, full_range = (color.BT709, False) if tags.matrix == color.RGB else (tags.matrix, tags.full_range)
    if codec in PICTURES:
        full_range = True
    if defaults.matrices is not None and matrix not in defaults.matrices:
        matrix = color.BT601 if matrix == 5 else color.BT709  # 5 and 6 are two names of one matrix
    return Color(matrix, tags.primaries, tags.transfer, full_range)


def _time_base(info: MediaInfo) -> Fraction:
    """A time base in which every time is exact: the file's, or a coarser one where the file's is finer than needed."""
    unit = info.time_base
    if unit.denominator > _FINEST and info.pts:
        unit *= math.gcd(*info.pts) or 1
    # Track time scales are whole numbers, so 1001/30000 is written as 1/30000.
    return Fraction(1, unit.denominator)


def _shown(options: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items()) or "no options"


def _cause(error: Exception) -> str:
    """What the encoder wrote to FFmpeg's log, or else the error's message."""
    log = getattr(error, "log", None)
    return str(log[2]).strip() if log else reason(error)


def available() -> dict[str, str]:
    """The video encoders that vidup has defaults for and that open on this machine -> their default options."""
    found = {}
    for name, defaults in DEFAULTS.items():
        if name in PICTURES:
            continue
        try:
            av.Codec(name, "w")
        except ValueError:
            continue
        if _hardware_refusal(name) is None:
            quality = {defaults.quality: f"{defaults.crf:g}"} if defaults.crf is not None else {}
            found[name] = _shown({**defaults.options, **quality})
    return found
