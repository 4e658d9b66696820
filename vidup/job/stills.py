"""Still images in and out, by Pillow."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from vidup.errors import ConfigError, MediaError
from vidup.job.progress import Tracker
from vidup.media.opening import check_file
from vidup.upscaler import Upscaler

log = logging.getLogger(__name__)

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}
"""Of the still images that go in and out."""


def upscale_still(upscaler: Upscaler, source: Path, target: Path, tracker: Tracker) -> None:
    """Upscale a still image into a new file; its colour profile, EXIF and resolution are kept.

    Raises:
        ConfigError: the file holds several pictures.
        MediaError: it is no image, or is damaged.
    """
    check_file(source)
    tracker.expect(1)
    try:
        with Image.open(source) as image:
            image.load()
            pictures = getattr(image, "n_frames", 1)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(f"{source}: is no image, or is damaged: {error}") from None
    if pictures > 1:
        raise ConfigError(f"{source}: holds {pictures} pictures; give an output that ends in .mp4 or .mkv")
    if image.mode.startswith("I"):
        log.info("note: 16 bits a sample become 8")
    options: dict[str, Any] = {key: image.info[key] for key in ("icc_profile", "exif", "dpi") if key in image.info}
    tracker.enter("upscaling", target)
    result = upscaler.image(image)
    if target.suffix.lower() in (".jpg", ".jpeg", ".bmp") and result.mode == "RGBA":
        log.warning("%s: has no transparency: the picture is made opaque", target)
        result = result.convert("RGB")
    if target.suffix.lower() in (".jpg", ".jpeg", ".webp"):
        options["quality"] = 95
    part = target.with_name(f"{target.name}.vidup{target.suffix}")
    try:
        result.save(part, **options)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise MediaError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    tracker.advance()
