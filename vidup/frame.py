"""The data that all parts exchange: a frame with its planes, time and colour; the facts of a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from vidup.errors import MediaError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Color:
    """The meaning of sample values, by the codes of ITU-T H.273, as in ffmpeg."""

    matrix: int
    """1 BT.709, 5 and 6 BT.601, 9 BT.2020; 0 where the planes are RGB; 2 is unspecified."""
    primaries: int = 2
    """Kept, never converted; 2 is unspecified."""
    transfer: int = 2
    """Kept, never converted; 2 is unspecified."""
    full_range: bool = False
    """Whether 8-bit black and white are 0 and 255; else luma's are 16 and 235."""


_NAME = re.compile(r"(?P<family>yuva?j?|gray|gbra?p?)(?P<sampling>4\d\d|)p?(?P<bits>\d+|)(?:le|)$")
_SUBSAMPLING = {"444": (1, 1), "422": (2, 1), "420": (2, 2), "440": (1, 2), "411": (4, 1), "410": (4, 4)}


@dataclass(frozen=True)
class Layout:
    """The planes of a pixel format."""

    family: str
    """``yuv``, ``gray`` or ``gbr``."""
    bits: int
    """Significant bits of a sample, in the low bits of uint8 or uint16."""
    chroma_x: int
    """Luma columns for one chroma column."""
    chroma_y: int
    """Luma rows for one chroma row."""
    alpha: bool = False
    """Whether the last plane is transparency, which a frame may leave out."""

    @property
    def planes(self) -> int:
        """The number of planes without transparency."""
        return 1 if self.family == "gray" else 3


@cache
def layout(pix_fmt: str) -> Layout | None:
    """The layout of a planar format by its ffmpeg name; None for formats that a `Frame` cannot have."""
    match = _NAME.match(pix_fmt)
    if match is None or pix_fmt.endswith("be"):
        return None
    family, bits = match["family"].rstrip("ajp"), int(match["bits"] or 8)
    if (family == "yuv") != bool(match["sampling"]) or not 8 <= bits <= 16:
        return None
    chroma = _SUBSAMPLING.get(match["sampling"], (1, 1))
    return Layout(family, bits, *chroma, alpha=family != "gray" and "a" in match["family"])


@dataclass(frozen=True, eq=False, repr=False)
class Frame:
    """One picture with its planes as decoded, and its time.

    Raises:
        MediaError: the planes do not fit the pixel format in number, shape or dtype, or the format is not supported.
    """

    planes: tuple[NDArray[np.uint8] | NDArray[np.uint16], ...]
    """Y, U, V (or Y alone; or G, B, R), (height, width) each, uint8 or uint16."""
    pix_fmt: str
    """ffmpeg's name of the planar format: ``yuv420p``, ``yuv422p10le``, ``gray``, ``gbrp`` ..."""
    color: Color
    pts: int = 0
    """Presentation time in units of `time_base`."""
    duration: int = 0
    """In units of `time_base`; 0 where it is not known."""
    time_base: Fraction = Fraction(1, 1000)
    """Seconds in one unit of `pts`."""
    captions: bytes = b""
    """Closed captions from this frame on: constructs of three bytes (CEA-708)."""
    quantiser: float | None = None
    """How coarsely it was quantised when it was encoded: the step, in codes of 255; None where nobody tells it."""

    def __post_init__(self) -> None:
        kind = layout(self.pix_fmt)
        if kind is None:
            raise MediaError(f"frame: pixel format {self.pix_fmt!r} is not planar YUV, gray or RGB of 8 to 16 bits")
        count = len(self.planes)
        if count != kind.planes and count != kind.planes + kind.alpha:
            raise MediaError(f"frame: {self.pix_fmt} has planes to the number of {kind.planes}, not {count}")
        bytes_each = 1 if kind.bits == 8 else 2
        height, width = first = self.planes[0].shape if self.planes[0].ndim == 2 else (0, 0)
        chroma = -(-height // kind.chroma_y), -(-width // kind.chroma_x)
        for index, plane in enumerate(self.planes):
            if plane.dtype.kind != "u" or plane.dtype.itemsize != bytes_each:
                raise MediaError(
                    f"frame: plane {index} of {self.pix_fmt} is of uint{8 * bytes_each}, not {plane.dtype}"
                )
            expected = chroma if index in (1, 2) else first
            if plane.shape != expected or not plane.size:
                raise MediaError(
                    f"frame: plane {index} of {self.pix_fmt} is of shape {plane.shape}, expected"
                    f" {expected if all(expected) else '(height, width)'}"
                )

    def __repr__(self) -> str:
        height, width = self.planes[0].shape
        time = f"pts={self.pts}, duration={self.duration}, time_base={self.time_base}"
        return f"Frame({width}x{height} {self.pix_fmt}, {time}, {self.color})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frame):
            return NotImplemented
        mine, theirs = ((one.pts, one.duration, one.time_base, one.captions) for one in (self, other))
        return mine == theirs and self.shows(other)

    __hash__ = None  # type: ignore[assignment]  # planes can be written to

    def rgb(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """The picture as R, G, B: (height, width, 3), uint8 from 8 bits, else uint16 of which 65535 is white.

        Raises:
            MediaError: the colour matrix is not known.
        """
        from vidup.picture import color

        return color.to_array(self)

    @classmethod
    def from_rgb(
        cls,
        array: NDArray[Any],
        pix_fmt: str | None = None,
        color: Color | None = None,
        *,
        pts: int = 0,
        duration: int = 0,
        time_base: Fraction = Fraction(1, 1000),
    ) -> Frame:
        """Make a frame from an array: (height, width), (height, width, 3), or with transparency (height, width, 4).

        Args:
            array: uint8, uint16 or floats in [0, 1].
            pix_fmt: a planar format; None: gray or RGB of 8 bits, or of 16 where the array has more.
            color: matrix and range of the planes; None: full-range RGB or gray. It is required for YUV.

        Raises:
            MediaError: the array, the format or the matrix is not possible.
        """
        from vidup.picture import interop

        planes, pix_fmt, color = interop.to_planes(array, pix_fmt, color)
        return cls(planes, pix_fmt, color, pts, duration, time_base)

    @classmethod
    def from_av(cls, frame: Any) -> Frame:
        """Make a frame from an `av.VideoFrame` of PyAV, with its time; its planes are copied.

        Raises:
            MediaError: the pixel format cannot be converted.
        """
        from vidup.media import video

        return video.from_av(frame)

    def to_av(self) -> Any:
        """The frame as an `av.VideoFrame` of PyAV; its planes are copied."""
        from vidup.media import video

        return video.to_av(self)

    def shows(self, other: Frame) -> bool:
        """Whether another frame has the same picture, whatever its time."""
        if (self.pix_fmt, self.color, len(self.planes)) != (other.pix_fmt, other.color, len(other.planes)):
            return False
        return all(
            mine.shape == theirs.shape and mine.tobytes() == theirs.tobytes()
            for mine, theirs in zip(self.planes, other.planes, strict=True)
        )


@dataclass(frozen=True)
class HdrMetadata:
    """The static metadata of HDR10: the mastering display and the light level."""

    mastering: tuple[Fraction, ...] | None = None
    """CIE x and y of red, green, blue and white, then the least and the greatest luminance in cd/m2: ten numbers."""
    content_light: tuple[int, int] | None = None
    """MaxCLL and MaxFALL in cd/m2."""


@dataclass(frozen=True)
class StreamInfo:
    """One stream of a file."""

    index: int
    kind: str
    """``video``, ``audio``, ``subtitle``, ``data`` or ``attachment``."""
    codec: str
    detail: str
    """Facts for people, such as ``48000 Hz stereo``."""
    language: str = ""


@dataclass(frozen=True, repr=False)
class MediaInfo:
    """What is in a file, from its headers, its packets and its first frames."""

    path: str
    container: str
    """The demuxer's name, such as ``mov,mp4,m4a,3gp,3g2,mj2`` or ``matroska,webm``."""
    video_index: int
    """Index of the video stream that is upscaled."""
    codec: str
    width: int
    """Coded picture width in pixels, before rotation."""
    height: int
    pix_fmt: str
    color: Color
    """The file's tags; unspecified ones are 2."""
    color_tagged: bool
    """Whether the file states its colour matrix."""
    sample_aspect_ratio: Fraction
    """Width of a pixel divided by its height; 1 where the file does not state it."""
    rotation: int
    """Degrees counter-clockwise by which a player turns the picture."""
    display_matrix: tuple[int, ...] | None
    """The nine integers of the display matrix; None without one."""
    field_order: str
    """``progressive``, or which field is shown first: ``tt`` or ``bb``."""
    hdr: HdrMetadata | None
    dynamic_hdr: tuple[str, ...]
    """Kinds of HDR metadata that change from frame to frame, such as ``Dolby Vision``; they cannot be kept."""
    time_base: Fraction
    """Seconds in one unit of the video stream's times."""
    pts: tuple[int, ...]
    """The times of all frames that are shown, rising."""
    timing: Literal["packets", "order", "filled", "made"]
    """The origin of `pts`: the packets' times; the times of all packets, assigned to the frames in the order in which
    they are shown (AVI); the frames' times, filled in where they have none; or a constant rate, because the stream has
    no times (raw H.264). Only with the first can frames be sought in the file; else they are counted from its head.
    """
    begin: Fraction
    """The time in seconds that players show as 0."""
    end: int
    """When the last frame ends, in units of `time_base`."""
    frames: int
    """The number of frames that are shown."""
    rate: Fraction
    """Average frames a second."""
    variable_rate: bool
    streams: tuple[StreamInfo, ...]
    chapters: int
    side_data: tuple[str, ...] = ()
    """FFmpeg's names of the side data of the first frames, such as ``A53_CC`` for closed captions."""
    stereo_mode: str = ""
    """How a picture holds the two views of stereo 3D, in Matroska's words: ``left_right``, ``top_bottom`` ..."""
    notes: tuple[str, ...] = ()
    """What is unusual or damaged, one line each."""
    entries: tuple[tuple[int, int], ...] = ()
    """Where decoding can begin: the time and the CRC-32 of each packet with a key frame."""
    faulty: bool = False
    """Whether some packets cannot be decoded: with threads, frames of others would be lost, too."""
    tolerant: bool = False
    """Whether it was read with `tolerate_errors`: what cannot be read is left out."""
    unlisted: bool = False
    """Whether some streams begin late, and are found only by reading the whole file."""

    def __repr__(self) -> str:
        picture = f"{self.width}x{self.height} {self.pix_fmt} {self.codec}"
        count = f"{self.frames} frames, {float(self.rate):.5g} a second, {len(self.streams)} streams"
        return f"MediaInfo({self.path!r}, {picture}, {count})"
