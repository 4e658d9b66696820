"""Still images: what they claim, what is lost of them, and what a file holds whose name says something else."""

from __future__ import annotations

import json
import os
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, PngImagePlugin, features

import vidup
from vidup import ConfigError, MediaError, Settings
from vidup.cli import main
from vidup.job import stills
from vidup.media.probing import probe

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)
SIX = Image.Exif()
SIX[0x0112] = 6  # to be turned clockwise by a quarter


def upscaled(source: Path, ending: str = ".png") -> Image.Image:
    output = source.with_name(f"big{ending}")
    vidup.upscale(source, output, Settings(model="nearest", scale=2), runtime=vidup.Runtime(overwrite=True))
    with Image.open(output) as big:
        big.load()
        return big


def png(path: Path, bits: int, colour: int, rows: bytes) -> Path:
    """A PNG of 2x1 pixels, written by hand (RFC 2083)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" + rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + data)
    return path


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.tif"])
def test_a_picture_runs_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Pillow has Ghostscript draw an EPS, whatever its name is."""
    trace, programs = tmp_path / "trace", tmp_path / "programs"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\n: > {trace}\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    PICTURE.save(tmp_path / name, "EPS")
    with pytest.raises(MediaError, match=r"is no PNG, JPEG, .* picture"):
        upscaled(tmp_path / name)
    assert not trace.exists()


def test_a_bomb_of_text_is_one_line(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * 3_000_000, zip=True)
    PICTURE.save(tmp_path / "bomb.png", pnginfo=text)
    with pytest.raises(MediaError, match=r"bomb\.png: .*too large"):
        upscaled(tmp_path / "bomb.png")


def test_a_head_that_claims_too_much(tmp_path: Path) -> None:
    data = bytearray(png(tmp_path / "huge.png", 8, 2, bytes(6)).read_bytes())
    for side in (12_000, 60_000):  # Pillow itself warns of the first and refuses the second
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        (tmp_path / "huge.png").write_bytes(data)
        with pytest.raises(MediaError, match=r"claims .*more than 134217728 pixels"):
            upscaled(tmp_path / "huge.png")


@pytest.mark.parametrize("resolution", [(0, 0), (1, 0), (2**32 - 1, 1)])
@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp", ".jpg"])
def test_a_resolution_that_is_no_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, resolution: tuple[int, int], ending: str
) -> None:
    source = tmp_path / "photo.tif"
    PICTURE.save(source, dpi=(72, 72))
    data = source.read_bytes()
    assert data.count(struct.pack("<II", 72, 1)) == 2
    source.write_bytes(data.replace(struct.pack("<II", 72, 1), struct.pack("<II", *resolution)))
    big = upscaled(source, ending)
    assert big.size == (40, 24) and "its resolution is damaged and left out" in caplog.text
    if ending != ".jpg":
        assert np.array_equal(np.asarray(big)[::2, ::2], PIXELS)


@pytest.mark.parametrize(("compression", "loss"), [("tiff_lzw", 60), ("tiff_adobe_deflate", 60), ("group4", 30)])
def test_other_libraries_are_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, compression: str, loss: int
) -> None:
    """libtiff writes to standard error; what it says is in our own line."""
    source = tmp_path / "photo.tif"
    picture = PICTURE.convert("1") if compression == "group4" else PICTURE
    picture.save(source, compression=compression)
    with Image.open(source) as saved:
        place = saved.tag_v2[273][0]  # of the only strip
    data = bytearray(source.read_bytes())
    data[place + 8 : place + loss] = (b"\xff" if compression == "tiff_lzw" else b"\0") * (loss - 8)
    source.write_bytes(data)
    try:
        upscaled(source)
        told = caplog.text
    except MediaError as error:
        told = str(error)
    assert "damaged" in told and "code" in told
    assert capfd.readouterr().err == ""


def test_a_directory_that_lies_warns_of_nothing_else(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Pillow warns of entries that lead beyond the end; the picture is read, or refused, in one line."""
    source = tmp_path / "photo.tif"
    PICTURE.save(source, dpi=(72, 72))
    data = bytearray(source.read_bytes())
    entry = data.index(struct.pack("<HHI", 282, 5, 1))
    data[entry + 8 : entry + 12] = struct.pack("<I", 2**31)
    source.write_bytes(data)
    assert np.array_equal(np.asarray(upscaled(source))[::2, ::2], PIXELS)
    assert not recwarn.list


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_gives_its_colours(tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "photo.tif"
    if mode == "I;16":
        made = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
        expected = Image.fromarray(PIXELS[..., 0]).convert("RGB")
    else:
        made = PICTURE.convert("P").convert(mode) if mode == "PA" else PICTURE.convert(mode)
        expected = made.convert("RGB")
    if mode == "PA":
        source = source.with_suffix(".png")
        made = made.convert("RGBA")
    made.save(source)
    big = upscaled(source)
    assert big.mode == {"1": "L", "P": "RGB", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB"}.get(mode, mode)
    assert "16 bits a sample become 8" not in caplog.text
    if mode == "I;16":
        assert np.array_equal(np.asarray(big)[::2, ::2], np.asarray(made))
        big = upscaled(source, ".jpg")
        assert big.mode == "L" and "16 bits a sample become 8, the most that .jpg supports" in caplog.text
        return
    assert np.array_equal(np.asarray(big.convert("RGB"))[::2, ::2], np.asarray(expected))
    assert ("CMYK becomes RGB, without a profile" in caplog.text) == (mode == "CMYK")


def test_transparency_by_palette_and_by_key(tmp_path: Path) -> None:
    palette = PICTURE.convert("P")
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((3, 4)))
    PICTURE.save(tmp_path / "key.png", transparency=tuple(int(code) for code in PIXELS[4, 3]))
    for name in ("palette.png", "key.png"):
        alpha = np.asarray(upscaled(tmp_path / name).getchannel("A"))
        assert alpha[8, 6] < 128 < alpha.max()


@pytest.mark.parametrize(("colour", "samples"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_that_become_eight_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, colour: int, samples: int
) -> None:
    rows = struct.pack(f">{2 * samples}H", *[0x8080] * samples, *[0xFFFF] * samples)
    big = upscaled(png(tmp_path / "deep.png", 16, colour, rows))
    if colour == 0:  # which Pillow reads whole
        assert big.getpixel((0, 0)) == 0x8080 and "16 bits" not in caplog.text
    else:
        assert big.convert("RGB").getpixel((0, 0)) == (128,) * 3 and "16 bits a sample become 8" in caplog.text
    caplog.clear()
    upscaled(png(tmp_path / "plain.png", 8, colour, bytes(2 * samples)))
    assert "16 bits" not in caplog.text


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_samples_without_a_known_white_are_refused(tmp_path: Path, mode: str) -> None:
    picture = Image.new(mode, (4, 4))
    picture.save(tmp_path / "photo.tif")
    with pytest.raises(MediaError, match=f"photo.tif: holds {mode} samples"):
        upscaled(tmp_path / "photo.tif")
    with vidup.Upscaler(Settings(model="nearest")) as upscaler, pytest.raises(MediaError, match=f"of mode {mode}"):
        upscaler(picture)


@pytest.mark.parametrize("source", ["photo.png", "photo.jpg", "photo.webp", "photo.tif"])
@pytest.mark.parametrize("ending", [".png", ".bmp", ".webp", ".tif", ".jpg"])
def test_it_is_upright_whatever_the_output_has_room_for(tmp_path: Path, source: str, ending: str) -> None:
    flat = np.zeros((12, 20, 3), np.uint8)
    flat[:, :10] = 255  # turned, the upper half
    more = {"exif": SIX} if source != "photo.tif" else {"tiffinfo": {274: 6}}
    Image.fromarray(flat).save(tmp_path / source, **more)
    big = upscaled(tmp_path / source, ending)
    shown = np.asarray(big)
    assert big.size == (24, 40) and shown[:15].min() > 200 and shown[25:].max() < 50
    assert big.getexif().get(0x0112, 1) == 1


def gray_profile(gamma: float) -> bytes:
    """The smallest that says how gray becomes light (ICC.1:2010): a curve of one number, and white."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * part) for part in (0.9642, 1.0, 0.8249)))
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(256 * gamma), 0)
    tags, place = b"", 128 + 4 + 2 * 12
    for name, data in ((b"wtpt", white), (b"kTRC", curve)):
        tags, place = tags + name + struct.pack(">II", place, len(data)), place + len(data)
    body = struct.pack(">I", 2) + tags + white + curve
    head = struct.pack(">I4xI4s4s4s", 128 + len(body), 0x02400000, b"mntr", b"GRAY", b"XYZ ").ljust(36, b"\0") + b"acsp"
    return head.ljust(68, b"\0") + white[8:] + bytes(48) + body


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_profile_of_gray_is_applied(tmp_path: Path, mode: str) -> None:
    """The result is RGB, in which such a profile has no place: linear light becomes sRGB."""
    picture = Image.new("L", (4, 4), 128)
    if mode == "LA":
        picture.putalpha(77)
    picture.save(tmp_path / "photo.png", icc_profile=gray_profile(1.0))
    big = upscaled(tmp_path / "photo.png")
    assert all(abs(code - 188) <= 1 for code in big.getpixel((3, 3))[:3]) and "icc_profile" not in big.info
    assert mode == "L" or big.getpixel((3, 3))[3] == 77


def test_a_profile_that_does_not_fit_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    PICTURE.convert("CMYK").save(tmp_path / "inks.tif", icc_profile=gray_profile(1.0))
    assert "icc_profile" not in upscaled(tmp_path / "inks.tif").info
    assert "its colour profile is damaged, or not for CMYK, and left out" in caplog.text
    PICTURE.convert("L").save(tmp_path / "gray.png", icc_profile=gray_profile(1.0)[:140])
    assert "icc_profile" not in upscaled(tmp_path / "gray.png").info
    assert "its colour profile cannot be applied and is left out" in caplog.text


def test_what_the_output_has_no_room_for_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    PICTURE.save(tmp_path / "photo.png", icc_profile=profile, dpi=(300, 300))
    assert upscaled(tmp_path / "photo.png", ".tif").info["icc_profile"] == profile and "room" not in caplog.text
    upscaled(tmp_path / "photo.png", ".bmp")
    assert "big.bmp: has no room for the colour profile of the input" in caplog.text


def test_exif_that_is_damaged_does_not_end_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    PICTURE.save(tmp_path / "photo.png", exif=b"Exif\0\0MM\0\x22\0\0\0\x08")
    for ending in (".png", ".tif", ".jpg", ".webp"):
        assert upscaled(tmp_path / "photo.png", ending).size == (40, 24)
    assert "EXIF data" in caplog.text


def moving(path: Path, kind: str) -> Path:
    PICTURE.save(path, kind, save_all=True, append_images=[PICTURE.rotate(180)], duration=100)
    return path


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.webp"])
def test_what_moves_does_not_become_a_still_image(tmp_path: Path, kind: str, name: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    source = moving(tmp_path / name, kind)
    with pytest.raises(ConfigError, match="holds one picture, and" if kind != "TIFF" else "holds 2 pages"):
        upscaled(source, ".tif")
    if kind != "TIFF":
        assert upscaled(source, ".webp").n_frames == 2


def test_an_animated_webp_is_no_damaged_file(tmp_path: Path) -> None:
    found = probe(moving(tmp_path / "a.webp", "WEBP"))
    assert (found.container, found.pts, found.end, found.time_base) == ("webp", (0, 100), 200, Fraction(1, 1000))
    PICTURE.save(tmp_path / "b.webp", lossless=True)
    assert probe(tmp_path / "b.webp").frames == 1


@pytest.mark.parametrize("kind", ["GIF", "AVIF"])
def test_a_still_picture_of_a_format_for_moving_ones(tmp_path: Path, kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    PICTURE.save(tmp_path / f"photo.{kind.lower()}")
    assert upscaled(tmp_path / f"photo.{kind.lower()}").size == (40, 24)


def test_of_a_phones_pictures_the_first_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    PICTURE.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert upscaled(tmp_path / "photo.jpg").size == (40, 24)
    assert "of its 2 pictures the first is taken" in caplog.text


def test_a_side_too_long_for_the_format_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8200, 1)).save(tmp_path / "long.png")
    monkeypatch.setattr(vidup.Upscaler, "__call__", lambda *_: pytest.fail("is upscaled"))
    with pytest.raises(ConfigError, match=r"would be 16400x2; \.webp holds 16383 pixels a side"):
        upscaled(tmp_path / "long.png", ".webp")


def test_a_large_jpeg_is_no_damaged_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ffmpeg would take one that is larger than what it looks at first for a row of numbered files."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
    noise.save(tmp_path / "photo.jpg", quality=95)
    assert main(["probe", str(tmp_path / "photo.jpg"), "--model", "nearest"]) == 0
    assert "photo.jpg: a still image of 300x200 RGB (JPEG)" in capsys.readouterr().out
    assert main(["probe", str(tmp_path / "photo.jpg"), "--model", "nearest", "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (facts["width"], facts["height"], facts["output_width"], facts["output_height"]) == (300, 200, 1200, 800)
    assert facts["output"] == str(tmp_path / "photo_x4.jpg") and facts["notes"] == []
    info = probe(tmp_path / "photo.jpg")
    assert (info.frames, info.width, info.height) == (1, 300, 200)


def test_standard_error_that_is_closed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PICTURE.save(tmp_path / "photo.tif")
    monkeypatch.setattr("sys.stderr", None)
    assert stills.read(tmp_path / "photo.tif").notes == ()
