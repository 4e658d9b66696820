"""Static HDR metadata (SMPTE ST 2086, CTA-861.3): read from decoded frames, written as options of encoders."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any

from vidup.frame import HdrMetadata
from vidup.media.side_data import side_data

# FFmpeg's AVMasteringDisplayMetadata: ten rationals (x and y of red, green, blue and white, least and greatest
# luminance), then whether the chromaticities and the luminances are given. AVContentLightMetadata: two numbers.
_MASTERING = struct.Struct("=20i2i")
_LIGHT = struct.Struct("=2I")

# Of x264 and x265: chromaticities in 1/50000, luminances in 1/10000 cd/m2, as in the messages of H.264 and H.265.
_CHROMATICITY, _LUMINANCE = 50_000, 10_000

_DYNAMIC = {
    "DOVI_METADATA": "Dolby Vision",
    "DOVI_RPU_BUFFER": "Dolby Vision",
    "DYNAMIC_HDR_PLUS": "HDR10+",
    "DYNAMIC_HDR_VIVID": "HDR Vivid",
}
_DOLBY_TAGS = ("dvh1", "dvhe", "dva1", "dvav", "dav1")
_KEYS = {
    "libx264": ("mastering-display", "cll"),
    "libx265": ("master-display", "max-cll"),
    "libsvtav1": ("mastering-display", "content-light"),
}


def read_hdr(frame: Any) -> HdrMetadata | None:
    """The mastering display and light level of a decoded PyAV frame; None where it has neither."""
    data = side_data(frame)
    mastering = light = None
    if len(data.get("MASTERING_DISPLAY_METADATA", b"")) >= _MASTERING.size:
        *pairs, has_primaries, has_luminance = _MASTERING.unpack_from(data["MASTERING_DISPLAY_METADATA"])
        if has_primaries and has_luminance and all(pairs[1::2]):
            mastering = tuple(Fraction(num, den) for num, den in zip(pairs[::2], pairs[1::2], strict=True))
    if len(data.get("CONTENT_LIGHT_LEVEL", b"")) >= _LIGHT.size:
        light = _LIGHT.unpack_from(data["CONTENT_LIGHT_LEVEL"])
    if light == (0, 0):  # means that neither is known
        light = None
    return HdrMetadata(mastering, light) if mastering or light else None


def dynamic_hdr(frame: Any, stream: Any) -> list[str]:
    """The names of HDR metadata that change from frame to frame, which PyAV cannot pass to encoders."""
    kinds = [_DYNAMIC[name] for name in side_data(frame) if name in _DYNAMIC]
    if stream.codec_context.codec_tag in _DOLBY_TAGS:
        kinds.append("Dolby Vision")
    return sorted(set(kinds))


def hdr_params(codec: str, hdr: HdrMetadata) -> list[str] | None:
    """The metadata as ``key=value`` for the encoder's list of parameters; None where it cannot write them."""
    keys = _KEYS.get(codec)
    if keys is None:
        return None
    display, light = keys
    found = ["hdr10=1", "repeat-headers=1"] if codec == "libx265" else []
    if hdr.mastering is not None:
        if codec == "libsvtav1":
            values = [f"{float(value):.7f}".rstrip("0").rstrip(".") for value in hdr.mastering]
        else:
            units = [_CHROMATICITY] * 8 + [_LUMINANCE] * 2
            values = [str(round(value * unit)) for value, unit in zip(hdr.mastering, units, strict=True)]
        red, green, blue, white = (",".join(values[place : place + 2]) for place in (0, 2, 4, 6))
        found.append(f"{display}=G({green})B({blue})R({red})WP({white})L({values[9]},{values[8]})")
    if hdr.content_light is not None:
        found.append(f"{light}={hdr.content_light[0]},{hdr.content_light[1]}")
    return found
