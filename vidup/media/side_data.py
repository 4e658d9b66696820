"""FFmpeg's side data of frames: read it, and name the kinds that an output does not keep."""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from typing import Any

from vidup.frame import MediaInfo
from vidup.media import vp9_alpha

CAPTIONS = "A53_CC"
ENC_PARAMS = "VIDEO_ENC_PARAMS"
"""What `quantiser` reads, large, and not part of the file."""
STEREO = "STEREO3D"
ALPHA = "VP9_ALPHA"
"""Not one of FFmpeg's kinds: transparency that its decoder ignores, see `vp9_alpha`."""

_WORDS = {
    CAPTIONS: "closed captions (CEA-608/708)",
    "SPHERICAL": "the projection of 360 degree video (spherical)",
    STEREO: "the arrangement of stereo 3D",
    "PANSCAN": "pan and scan",
    "AFD": "the active format description (AFD)",
    "ICC_PROFILE": "the ICC profile",
    "FILM_GRAIN_PARAMS": "parameters of film grain",
    "AMBIENT_VIEWING_ENVIRONMENT": "the ambient viewing environment",
    "S12M_TIMECODE": "timecodes of frames (SMPTE ST 12-1)",
    "GOP_TIMECODE": "timecodes of groups of pictures",
    "SEI_UNREGISTERED": "user data in SEI messages",
}
"""The kinds that are reported where the output lacks them. The display matrix and HDR are reported elsewhere."""

_ENCODERS = (
    bytes.fromhex("dc45e9bde6d948b7962cd820d923eeef"),  # under which x264 and x265 write their options
    bytes.fromhex("2ca2de09b51747dbbb55a4fe7fc2fc4e"),
)
_PANSCAN = struct.Struct("=3i6h")  # id, width and height in 1/16 pixel, positions
_MARKER = 1 << 12  # of a group's timecode (ISO/IEC 13818-2, 6.3.8), always set
_STEREO = struct.Struct("=2i")  # type, flags
FRAME_PACKING = {"left_right": 3, "top_bottom": 4}
"""Matroska's words for stereo 3D, and the number of the same in H.264's message, of those that x264 writes."""
_STEREO_MODES = {1: ("left_right", "right_left"), 2: ("top_bottom", "bottom_top")}


def side_data(frame: Any) -> dict[str, bytes]:
    """The side data of a decoded PyAV frame, by FFmpeg's names; empty where PyAV has no name for one of its kinds."""
    try:
        return {kind: bytes(item) for item in frame.side_data if (kind := item.type.name) != ENC_PARAMS}
    except ValueError:
        return {}


def kinds(frames: Sequence[Any], stream: Any) -> tuple[str, ...]:
    """The kinds of side data, by FFmpeg's names, that the first frames of a stream have and that mean something."""
    found = {kind for frame in frames for kind, data in side_data(frame).items() if _is_meant(kind, data, frame)}
    if not _is_meant("GOP_TIMECODE", side_data(frames[0]).get("GOP_TIMECODE", b""), frames[0]):
        found -= {"GOP_TIMECODE"}  # it counts from 0
    if vp9_alpha.is_tagged(stream) and not frames[0].format.components[-1].is_alpha:
        found.add(ALPHA)
    return tuple(kind for kind in (*_WORDS, ALPHA) if kind in found)


def _is_meant(kind: str, data: bytes, frame: Any) -> bool:
    """Whether side data holds more than the default values that every file of some formats has."""
    if kind == "SEI_UNREGISTERED":
        return not data.startswith(_ENCODERS)
    if kind == "GOP_TIMECODE":
        return bool(int.from_bytes(data, "little") & ~_MARKER)
    if kind == "PANSCAN" and len(data) >= _PANSCAN.size:
        _, width, height, *positions = _PANSCAN.unpack_from(data)
        return (width > 0 and (width // 16, height // 16) != (frame.width, frame.height)) or any(positions)
    return True


def stereo_mode(frame: Any) -> str:
    """How a frame holds the two views of stereo 3D, in Matroska's words; empty where it holds only one."""
    kind, flags = _STEREO.unpack(side_data(frame).get(STEREO, b"")[: _STEREO.size].ljust(_STEREO.size, b"\0"))
    return _STEREO_MODES.get(kind, ("", ""))[flags & 1]


def lost(info: MediaInfo, carried: Collection[str]) -> list[str]:
    """Names of the kinds of side data that an output which keeps those `carried` lacks."""
    return [_WORDS[kind] for kind in info.side_data if kind in _WORDS and kind not in carried]
