"""Notes, in words: what an encoding does not keep of the pictures, and which limits of players it exceeds."""

from __future__ import annotations

from vidup.frame import MediaInfo, layout
from vidup.media import side_data
from vidup.media.codecs import DEFAULTS, Defaults
from vidup.media.decoding import planar
from vidup.media.encoder import Encoding
from vidup.media.hdr import hdr_params
from vidup.picture import color


def loses(info: MediaInfo, encoding: Encoding) -> list[str]:
    """The properties of the pictures that the encoding does not keep, in words."""
    source, target = layout(planar(info.pix_fmt)), layout(planar(encoding.pix_fmt))
    assert source is not None and target is not None
    lost = []
    if (source.alpha and not target.alpha) or side_data.ALPHA in info.side_data:
        lost.append(
            "transparency is dropped: the picture is made opaque; prores_ks (mov, mkv), ffv1 (mkv), libvpx-vp9 (webm,"
            " mkv), .apng, .webp and pictures (%05d.png) keep it"
        )
    if target.bits < source.bits:
        lost.append(
            f"{source.bits} bits become {target.bits}: no deeper format of {encoding.codec} is to be had there"
            f" ({encoding.pix_fmt})"
        )
    if source.family == "gbr" and target.family == "yuv":
        lost.append(f"RGB becomes {encoding.pix_fmt}")
    elif source.family == "yuv" and (target.chroma_x > source.chroma_x or target.chroma_y > source.chroma_y):
        lost.append(f"{info.pix_fmt} becomes {encoding.pix_fmt}: colour at a lower resolution")
    tagged, written = (color.MATRIX_NAMES.get(code) for code in (info.color.matrix, encoding.color.matrix))
    matrices = DEFAULTS.get(encoding.codec, Defaults(None)).matrices
    if matrices is not None and info.color.matrix not in matrices and tagged != written and source.family == "yuv":
        lost.append(f"the colour matrix {tagged} becomes {written}: {encoding.codec} has no tag for the first")
    if info.hdr is not None and hdr_params(encoding.codec, info.hdr) is None:
        lost.append(f"HDR10 mastering data is not kept by {encoding.codec}: take libx265, libsvtav1 or libx264")
    return lost


def limits(encoding: Encoding) -> list[str]:
    """The limits of its format's highest level that the encoding exceeds, in words."""
    level = DEFAULTS.get(encoding.codec, Defaults(None)).level
    if level is None:
        return []
    width, height = (-(-side // level.block) * level.block for side in (encoding.width, encoding.height))
    size = f"{encoding.width}x{encoding.height}"
    if width * height > level.samples or width > level.width or height > level.height:
        return [f"{size} is beyond {level.name}: many players will refuse it"]
    if width * height * encoding.rate > level.rate:
        return [
            f"{size} at {float(encoding.rate):g} frames a second is beyond {level.name}: many players will refuse it"
        ]
    return []
