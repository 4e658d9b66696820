"""Still images in and out, by Pillow."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vidup import engines
from vidup.config import Settings
from vidup.errors import ConfigError, MediaError, VerifyError, first_line
from vidup.job import describe
from vidup.job.disk import beside, put_in_place
from vidup.job.progress import Tracker
from vidup.media.containers import ANIMATIONS
from vidup.media.opening import MOST_PIXELS, check_file
from vidup.media.quantiser import jpeg_quantiser_step
from vidup.picture import flaws, interop
from vidup.picture.geometry import output_size, size_notes
from vidup.picture.metrics import luma
from vidup.proof import Receipt, sha256
from vidup.upscaler import Upscaler

log = logging.getLogger(__name__)

# The formats that are read, whatever a file's name. Some of Pillow's others run a program: EPS runs Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
_MOST_PIXELS_A_SIDE = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}
_KEPT = {
    ".png": ("icc_profile", "exif", "dpi"),
    ".webp": ("icc_profile", "exif", "xmp"),
    ".bmp": ("dpi",),
    **dict.fromkeys((".tif", ".tiff"), ("icc_profile", "exif", "dpi")),
    **dict.fromkeys((".jpg", ".jpeg"), ("icc_profile", "exif", "dpi", "xmp")),
}
"""Ending -> the metadata that the format can store."""
_NAMES = {"icc_profile": "colour profile", "exif": "EXIF data", "dpi": "resolution", "xmp": "XMP data"}


@dataclass(frozen=True)
class Still:
    """A still image, turned upright."""

    image: Image.Image
    format: str
    """Pillow's name of the format."""
    about: dict[str, Any]
    """Its metadata, as far as it has them: ``icc_profile``, ``exif``, ``dpi``, ``xmp``."""
    quantiser: float | None
    """The quantiser step that it was encoded with, in codes of 0 to 255; None if neither file nor blocks tell."""
    notes: tuple[str, ...]
    """What is left out or damaged, in words."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.height, self.image.width


def read(path: Path) -> Still:
    """Read a still image, and turn it upright by its EXIF data.

    Raises:
        ConfigError: the file holds several pictures.
        MediaError: it is no image, is damaged, or the range of its samples is not known.
    """
    check_file(path)
    notes: list[str] = []
    reports: list[str] = []
    try:
        with _reports() as reports, Image.open(path, formats=_FORMATS) as image:
            _check_claims(path, image)
            if (count := getattr(image, "n_frames", 1)) > 1:  # phones add the other eye's picture, or a map of light
                notes.append(f"of its {count} pictures the first is taken")
            if ";16" in f"{image.tile}" and not image.mode.startswith("I;16"):  # Pillow reads it with 8 bits
                notes.append("16 bits a sample become 8")
            about = {key: image.info[key] for key in _NAMES if image.info.get(key)}
            kind = image.format or ""
            quantiser = jpeg_quantiser_step(getattr(image, "quantization", {}).values())
            image.load()
            upright = _upright(image, about, notes)
    except (ConfigError, MediaError):
        raise
    except UnidentifiedImageError:
        raise MediaError(f"{path}: is no {', '.join(_FORMATS)} picture, or is damaged at its head") from None
    except Image.DecompressionBombError as error:
        raise MediaError(f"{path}: claims more than {MOST_PIXELS} pixels: {first_line(error)}") from None
    except Exception as error:  # Pillow's readers raise all kinds
        detail = f" ({reports[0]})" if reports else ""
        raise MediaError(f"{path}: is no picture, or is damaged: {first_line(error)}{detail}") from None
    if reports:
        notes.append(f"is damaged, or not as its format demands: {reports[0]}")
    upright = _with_profile_applied(upright, about, notes)
    _drop_damaged_dpi(about, notes)
    if quantiser is None and kind != "GIF":  # what was compressed before it was saved shows blocks
        quantiser = flaws.step_of_blocks(*flaws.blocking(luma(interop.take(upright).rgb) * 255))
    return Still(upright, kind, about, quantiser, tuple(notes))


def facts(source: Path, target: Path, settings: Settings) -> dict[str, Any]:
    """The facts of a still image, and of its output, as values for JSON; raises as `read`."""
    scale, still = engines.native_scale(settings), read(source)
    (height, width), mode = still.size, still.image.mode
    result = output_size(settings, scale, height, width, even=False)
    return {
        "path": str(source),
        "format": still.format,
        "mode": mode,
        "words": f"a still image of {width}x{height} {mode} ({still.format})",
        "width": width,
        "height": height,
        "footage": describe.footage(still.quantiser, flaws.measure(interop.take(still.image).rgb)),
        "notes": [*still.notes, *size_notes(settings, scale, still.size, result)],
        "output": str(target),
        "output_width": result[1],
        "output_height": result[0],
    }


def upscale_still(upscaler: Upscaler, source: Path, target: Path, tracker: Tracker) -> Receipt:
    """Upscale a still image into a new file, whose format has to support the size; raises as `read`.

    Colour profile, EXIF and resolution are kept.
    """
    ending = target.suffix.lower()
    if ending in ANIMATIONS:
        raise ConfigError(f"{target}: is for what moves, and {source} is one picture; take .png")
    still = read(source)
    for note in still.notes:
        log.warning("%s: %s", source, note)
    height, width = upscaler.size(*still.size)
    if max(height, width) > (most := _MOST_PIXELS_A_SIDE.get(ending, max(height, width))):
        raise ConfigError(
            f"{target}: would be {width}x{height}; {ending} holds {most} pixels a side: take .png or .tif"
        )
    if lost := [_NAMES[key] for key in still.about if key not in _KEPT[ending]]:
        log.warning("%s: has no room for the %s of the input", target, " and the ".join(lost))
    for note in size_notes(upscaler.settings, upscaler.engine.scale, still.size, (height, width)):
        log.info("note: %s", note)
    tracker.enter("upscaling")
    image = still.image
    if image.mode in ("CMYK", "YCbCr", "HSV", "RGBX", "RGBa"):  # files hold RGB
        image = image.convert("RGBA" if image.mode == "RGBa" else "RGB")
    if upscaler.settings.quantiser == "auto" and still.quantiser is not None:
        upscaler = upscaler.replace(quantiser=still.quantiser)
    result = _savable(upscaler(image), target)
    quality: dict[str, Any] = {"quality": 95} if ending in (".jpg", ".jpeg", ".webp") else {}
    part = beside(target, f".vidup{target.suffix}")
    try:
        part.unlink(missing_ok=True)  # Pillow would write through a link
        try:
            result.save(part, **quality, **{key: still.about[key] for key in still.about if key in _KEPT[ending]})
        except OSError:
            raise
        except Exception as error:  # a damaged input may have metadata that cannot be written
            log.warning("%s: without colour profile, EXIF data and resolution: %s", target, first_line(error))
            result.save(part, **quality)
        put_in_place(part, target, upscaler.runtime.overwrite)
    except OSError as error:
        raise MediaError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    tracker.advance()
    log.info("%s: %dx%d -> %s: %dx%d", source, *still.image.size, target, *result.size)
    return Receipt(source, target, 1, 0, 1.0, (height, width), (), 0, sha256(target))


def verify(source: Path, target: Path, settings: Settings) -> Receipt:
    """Check that a file is readable, and has the size of the upscaled input; raises as `read`, or a `VerifyError`."""
    before, after = read(source).size, read(target).size
    size = output_size(settings, engines.native_scale(settings), *before, even=False)
    if after != size:
        raise VerifyError(f"{target}: is {after[1]}x{after[0]}, expected {size[1]}x{size[0]}")
    return Receipt(source, target, 1, 0, 1.0, size, (), 0, sha256(target))


def _savable(result: Image.Image, target: Path) -> Image.Image:
    """A result in a mode that the output's format supports, without the input's metadata."""
    result.info = {}
    ending = target.suffix.lower()
    if result.mode.startswith("I;16") and ending not in (".png", ".tif", ".tiff"):
        log.warning("%s: 16 bits a sample become 8, the most that %s supports", target, ending)
        result = Image.fromarray((np.asarray(result) / 257).round().astype(np.uint8))
    if "A" in result.mode and ending in (".jpg", ".jpeg", ".bmp"):
        log.warning("%s: has no transparency: the picture is made opaque", target)
        return result.convert(result.mode.removesuffix("A"))
    return result


def _check_claims(path: Path, image: Image.Image) -> None:
    """Check the head of a file before memory is allocated for its pixels."""
    pictures, kind = getattr(image, "n_frames", 1), image.format
    if image.width * image.height > MOST_PIXELS:
        raise MediaError(f"{path}: claims {image.width}x{image.height}: more than {MOST_PIXELS} pixels")
    if image.mode not in interop.MODES:
        raise MediaError(
            f"{path}: holds {image.mode} samples, of which it is not known what is white; save it as RGB, 8 or 16 bits"
        )
    if pictures > 1 and kind == "TIFF":
        raise ConfigError(f"{path}: holds {pictures} pages; give each as a file of its own")
    if pictures > 1 and kind != "MPO":
        raise ConfigError(f"{path}: holds {pictures} pictures; give an output that ends in .mp4 or .mkv")


def _upright(image: Image.Image, about: dict[str, Any], notes: list[str]) -> Image.Image:
    """The picture turned by its EXIF data, which not every format and program obeys."""
    try:
        turned = ImageOps.exif_transpose(image)
    except Exception as error:  # of all kinds, as in `read`
        if about.pop("exif", None):
            notes.append(f"its EXIF data are damaged and left out: {first_line(error)}")
        return image
    for key in ("exif", "xmp"):
        if key in about and key in turned.info:
            about[key] = turned.info[key]
    if image.format == "MPO":  # it describes the pictures that are left out
        about.pop("xmp", None)
    return turned


def _with_profile_applied(image: Image.Image, about: dict[str, Any], notes: list[str]) -> Image.Image:
    """The image, converted to sRGB if it has a profile of gray or CMYK, which would not fit the result."""
    profile = about.get("icc_profile", b"")
    space = profile[16:20]
    if image.mode == "CMYK":
        notes.append("CMYK becomes RGB" + ("" if space == b"CMYK" else ", without a profile that says how"))
    if space == b"RGB " and image.mode != "CMYK" and not image.mode.startswith("I;16"):
        gray = {"1": "RGB", "L": "RGB", "LA": "RGBA"}.get(image.mode)  # gray with a profile of RGB becomes RGB
        return image if gray is None else image.convert(gray)
    about.pop("icc_profile", None)
    if space != {"L": b"GRAY", "LA": b"GRAY", "CMYK": b"CMYK"}.get(image.mode):
        if profile:
            notes.append(f"its colour profile is damaged, or not for {image.mode}, and left out")
        return image
    try:
        from PIL import ImageCms

        given, wanted = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
        plain = image.convert("L") if image.mode == "LA" else image
        converted = ImageCms.profileToProfile(plain, given, wanted, outputMode="RGB")
    except (ImportError, OSError, ValueError, TypeError) as error:
        notes.append(f"its colour profile cannot be applied and is left out: {first_line(error)}")
        return image
    assert converted is not None
    if image.mode == "LA":
        converted.putalpha(image.getchannel("A"))
    return converted


def _drop_damaged_dpi(about: dict[str, Any], notes: list[str]) -> None:
    """Leave out a resolution that no format can store: zero, infinite, not a number."""
    if "dpi" in about:
        try:
            horizontal, vertical = (float(number) for number in about["dpi"])
            fits = 0.5 < horizontal < 65_535 and 0.5 < vertical < 65_535
        except (TypeError, ValueError, ArithmeticError):
            fits = False
        if not fits:
            notes.append("its resolution is damaged and left out")
            del about["dpi"]


@contextmanager
def _reports() -> Iterator[list[str]]:
    """Collect Pillow's warnings, and what libtiff writes to standard error, its only output."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught, tempfile.TemporaryFile() as file:
        warnings.simplefilter("always")
        try:
            sys.stderr.flush()
            before = os.dup(2)
        except (OSError, ValueError, AttributeError):  # there is no standard error
            before = None
        else:
            os.dup2(file.fileno(), 2)
        try:
            yield found
        finally:
            if before is not None:
                os.dup2(before, 2)
                os.close(before)
            file.seek(0)
            found += file.read().decode(errors="replace").splitlines()
            others = (each for each in caught if not issubclass(each.category, Image.DecompressionBombWarning))
            found += [str(warning.message) for warning in others]
