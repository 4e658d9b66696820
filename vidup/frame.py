"""What flows: a frame with its time and its colour, and what a file holds. No behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Color:
    """How sample values stand for light. The codes are those of ITU-T H.273, as in ffmpeg."""

    matrix: int
    """1 BT.709, 5 and 6 BT.601, 9 BT.2020; 0 where the planes are RGB; 2 is unspecified."""
    primaries: int = 2
    """Carried, never converted; 2 is unspecified."""
    transfer: int = 2
    """Carried, never converted; 2 is unspecified."""
    full_range: bool = False
    """True where 8-bit black and white are 0 and 255, False where luma has 16 and 235."""


@dataclass(frozen=True)
class Frame:
    """One picture, its planes as decoded, and the time at which it is shown."""

    planes: tuple[NDArray[np.uint8] | NDArray[np.uint16], ...]
    """Y, U, V (or Y alone; or G, B, R), each (height, width) of its own size, uint8 or uint16."""
    pix_fmt: str
    """The planar format in ffmpeg's name: ``yuv420p``, ``yuv422p10le``, ``gray``, ``gbrp`` ..."""
    color: Color
    pts: int = 0
    """Presentation time in units of `time_base`."""
    duration: int = 0
    """In units of `time_base`; 0 where it is not known."""
    time_base: Fraction = Fraction(1, 1000)
    """Seconds in one unit of `pts`."""
    captions: bytes = b""
    """Closed captions that begin with it: constructs of three bytes (CEA-708)."""

    def shows(self, other: Frame) -> bool:
        """Whether it is the same picture as another frame, whatever their times."""
        if (self.pix_fmt, self.color, len(self.planes)) != (other.pix_fmt, other.color, len(other.planes)):
            return False
        return all(
            mine.shape == theirs.shape and mine.tobytes() == theirs.tobytes()
            for mine, theirs in zip(self.planes, other.planes, strict=True)
        )


@dataclass(frozen=True)
class HdrMetadata:
    """The static data of HDR10: of the display that the film was graded on, and of its light."""

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
    """What a person wants to know of it, such as ``48000 Hz stereo``."""
    language: str = ""


@dataclass(frozen=True)
class MediaInfo:
    """What is in a file, from its headers and its packets; nothing is decoded."""

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
    """As tagged in the file; unspecified parts are 2."""
    color_tagged: bool
    """False where the file does not say its matrix."""
    sample_aspect_ratio: Fraction
    """Width of a pixel by its height; 1 where the file does not say."""
    rotation: int
    """Degrees counter-clockwise by which a player turns the picture."""
    display_matrix: tuple[int, ...] | None
    """The nine integers of the display matrix, where there is one."""
    field_order: str
    """``progressive``, or which field is shown first: ``tt`` and ``bb`` (also ``tb``, ``bt``, as in ffmpeg)."""
    hdr: HdrMetadata | None
    dynamic_hdr: tuple[str, ...]
    """Kinds of HDR that change from frame to frame, such as ``Dolby Vision``, which cannot be carried."""
    time_base: Fraction
    """Seconds in one unit of the video stream's times."""
    pts: tuple[int, ...]
    """Time of every frame that will be shown, in rising order."""
    timing: Literal["packets", "order", "filled", "made"]
    """Where `pts` is from: the packets' own times; those of all packets, given to the frames in the order in which they
    are shown (AVI); the frames' own times, filled in where they have none; or counted at a constant rate, because the
    stream bears no times (raw H.264). Only the first can be sought in the file; else frames are counted from its head.
    """
    begin: Fraction
    """When the file begins, in seconds; a player shows this moment as 0."""
    end: int
    """Where the last frame ends, in units of `time_base`."""
    frames: int
    """Number of frames that will be shown."""
    rate: Fraction
    """Frames a second on average."""
    variable_rate: bool
    streams: tuple[StreamInfo, ...]
    chapters: int
    side_data: tuple[str, ...] = ()
    """Kinds of data that stand with the first pictures, in FFmpeg's names, such as ``A53_CC`` for closed captions."""
    stereo_mode: str = ""
    """How the two views of stereo 3D lie in a picture, in Matroska's words: ``left_right``, ``top_bottom`` ..."""
    notes: tuple[str, ...] = ()
    """What is unusual or damaged, a line each."""
    entries: tuple[tuple[int, int], ...] = ()
    """Where decoding can begin: the time of a packet that needs no other, and the CRC-32 of its data."""
    faulty: bool = False
    """Some packets give no frame: only decoded one by one do the others give all of theirs."""
    tolerant: bool = False
    """It was read with `tolerate_errors`: what cannot be read of it is left out."""
    unlisted: bool = False
    """Some of its streams are not known at its head: they are found by reading all of it."""
