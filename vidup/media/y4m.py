"""YUV4MPEG2 through pipes: a head, then the planes of every frame, at a constant rate.

It is not left to FFmpeg, which reads a megabyte before it returns what a pipe holds, silently drops a last frame that
is cut short, and needs an option to write more than 8 bits. The format is ``yuv4mpeg(5)`` of mjpegtools, with FFmpeg's
names for deep samples (``C420p10 XYSCSS=420P10``) and its ``XCOLORRANGE``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import BinaryIO

import numpy as np

from vidup.errors import ConfigError, MediaError
from vidup.frame import Color, Frame, layout
from vidup.media.opening import MOST_PIXELS

NAME = "standard input"
_MAGIC = "YUV4MPEG2"
_MOST_BYTES = 4096  # of a line
_DEPTHS = (9, 10, 12, 14, 16)
_FORMATS = {
    **{"420jpeg": "yuv420p", "420mpeg2": "yuv420p", "420paldv": "yuv420p", "420": "yuv420p"},
    **{"422": "yuv422p", "444": "yuv444p", "411": "yuv411p", "444alpha": "yuva444p", "mono": "gray"},
    **{f"{sampling}p{bits}": f"yuv{sampling}p{bits}le" for sampling in ("420", "422", "444") for bits in _DEPTHS},
    **{f"mono{bits}": f"gray{bits}le" for bits in (9, 10, 12, 16)},
}
"""The value of the head's ``C`` -> ffmpeg's name of the pixel format."""

FORMATS = tuple(dict.fromkeys(_FORMATS.values()))
"""The pixel formats that y4m supports."""


@dataclass(frozen=True)
class Head:
    """The first line of a stream."""

    width: int
    height: int
    rate: Fraction
    """Frames a second."""
    pix_fmt: str
    chroma: str
    """The value of the head's ``C``: ``420mpeg2`` is more precise than the pixel format."""
    full_range: bool = False
    aspect: Fraction = Fraction(0)
    """Width of a pixel divided by its height; 0 where it is not known."""
    interlaced: bool = False

    def line(self) -> bytes:
        """The line that is written."""
        deep = f" XYSCSS={self.chroma.upper()}" if self.chroma.startswith("4") else ""
        return (
            f"{_MAGIC} W{self.width} H{self.height} F{_ratio(self.rate)} Ip A{_ratio(self.aspect)}"
            f" C{self.chroma}{deep} XCOLORRANGE={'FULL' if self.full_range else 'LIMITED'}\n"
        ).encode()

    def enlarged(self, width: int, height: int, pix_fmt: str) -> Head:
        """The head of an upscaled stream; a ConfigError where y4m does not support the pixel format."""
        chroma = self.chroma if pix_fmt == self.pix_fmt else chroma_of(pix_fmt)
        return replace(self, width=width, height=height, pix_fmt=pix_fmt, chroma=chroma)


def chroma_of(pix_fmt: str) -> str:
    """The value of the head's ``C`` for a pixel format; a ConfigError where there is none."""
    found = next((chroma for chroma, name in _FORMATS.items() if name == pix_fmt), None)
    if found is None:
        raise ConfigError(f"pix_fmt = {pix_fmt!r}: y4m holds {', '.join(FORMATS)}")
    return found


def nearest(pix_fmt: str) -> str:
    """The supported pixel format nearest to a planar one: RGB becomes 4:4:4, of the same depth or more."""
    kind = layout(pix_fmt)
    if pix_fmt in FORMATS or kind is None:
        return pix_fmt
    deep = "" if kind.bits == 8 else f"{kind.bits}le"
    if kind.family == "gray":
        return f"gray{deep}"
    sampling = {(1, 1): "444", (2, 1): "422", (2, 2): "420", (4, 1): "411"}.get((kind.chroma_x, kind.chroma_y), "444")
    return f"yuv{sampling}p{deep}"


def read_head(stream: BinaryIO) -> Head:
    """Read the first line; a MediaError where it is no head of Y4M, or has impossible values."""
    line = stream.readline(_MOST_BYTES)
    words = line.decode("ascii", "replace").split()
    if not line.endswith(b"\n") or words[:1] != [_MAGIC]:
        what = "is empty" if not line else "is no y4m"
        raise MediaError(f"{NAME}: {what}; send it with ffmpeg -i FILE -f yuv4mpegpipe -strict -1 -")
    fields = {word[0]: word[1:] for word in words[1:] if word[0] != "X"}
    extra = [word for word in words[1:] if word[0] == "X"]
    try:
        width, height = int(fields["W"]), int(fields["H"])
        rate, aspect = _fraction(fields["F"]), _fraction(fields.get("A", "0:0"))
    except (KeyError, ValueError, ZeroDivisionError):
        raise MediaError(f"{NAME}: the head of its y4m is damaged: {' '.join(words)}") from None
    chroma = fields.get("C", "420")
    if chroma not in _FORMATS:
        raise MediaError(f"{NAME}: y4m of the kind C{chroma} is not known; the kinds are {', '.join(_FORMATS)}")
    if min(width, height) < 1 or width * height > MOST_PIXELS or rate <= 0:
        raise MediaError(f"{NAME}: claims {width}x{height} at {rate} frames a second")
    interlaced = fields.get("I", "p")[:1] in ("t", "b", "m")
    return Head(width, height, rate, _FORMATS[chroma], chroma, "XCOLORRANGE=FULL" in extra, aspect, interlaced)


def read_frames(stream: BinaryIO, head: Head, color: Color) -> Iterator[Frame]:
    """Read all frames; each lasts until the next. A MediaError where the stream ends within one, or is damaged."""
    kind = layout(head.pix_fmt)
    assert kind is not None
    dtype = np.dtype("u1" if kind.bits == 8 else "<u2")
    chroma = -(-head.height // kind.chroma_y), -(-head.width // kind.chroma_x)
    whole = head.height, head.width
    shapes = [whole, chroma, chroma][: kind.planes] + [whole] * kind.alpha
    number = 0
    while line := stream.readline(_MOST_BYTES):
        if not line.startswith(b"FRAME") or not line.endswith(b"\n"):
            raise MediaError(f"{NAME}: frame {number} is damaged: {line[:20]!r} stands where it should begin")
        planes = []
        for shape in shapes:
            plane = np.empty(shape, dtype)
            if stream.readinto(plane.data.cast("B")) != plane.nbytes:  # type: ignore[attr-defined]
                raise MediaError(f"{NAME}: is cut short within frame {number}; all before it are upscaled")
            planes.append(plane)
        yield Frame(tuple(planes), head.pix_fmt, color, number, 1, 1 / head.rate)
        number += 1


def write_frame(stream: BinaryIO, frame: Frame) -> None:
    """Write a frame of the head's size and format, and flush."""
    stream.write(b"FRAME\n")
    for plane in frame.planes:
        stream.write(np.ascontiguousarray(plane.astype(plane.dtype.newbyteorder("<"), copy=False)).data)
    stream.flush()


def _fraction(text: str) -> Fraction:
    above, _, below = text.partition(":")
    return Fraction(0) if (int(above), int(below)) == (0, 0) else Fraction(int(above), int(below))


def _ratio(value: Fraction) -> str:
    return f"{value.numerator}:{value.denominator if value else 0}"
