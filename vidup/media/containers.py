"""The containers that are written, and what each of them holds."""

from __future__ import annotations

import io
import logging

import av

from vidup.errors import ConfigError
from vidup.media.encoder import Encoding, available

log = logging.getLogger(__name__)


CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""The formats that are written, by the ending of the output's name."""


def check_container(container: str, encoding: Encoding) -> None:
    """See by a dry run that the container takes the encoded video.

    Raises:
        ConfigError: it does not.
    """
    if not _holds(container, encoding.codec):
        held = ", ".join(name for name in available() if _holds(container, name))
        raise ConfigError(
            f"codec = {encoding.codec!r}: {container} does not hold it; take one of {held},"
            " or an output that ends in .mkv"
        )


def keeps_aspect(container: str, codec: str) -> bool:
    """Whether the shape of a pixel arrives: some codecs carry it themselves, for others the container must."""
    return container in ("mp4", "mov") or codec in ("libx264", "libx265", "h264_nvenc", "hevc_nvenc", "h264", "hevc")


def _holds(container: str, codec: str) -> bool:
    with io.BytesIO() as nowhere:
        try:
            av.open(nowhere, "w", format=container).add_stream(codec)
        except ValueError:
            return False
        return True
