"""What stands beside the pictures: captions arrive, the rest arrives or is told by its name."""

from __future__ import annotations

import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

import vidup
from vidup import Settings
from vidup.job.describe import describe
from vidup.job.plan import plan
from vidup.media.boxes import shown_size
from vidup.media.captions import carries, read_captions, with_captions
from vidup.media.probing import probe
from vidup.media.side_data import kinds

FAST = {
    "libx264": {"preset": "ultrafast", "bf": "2"},
    "libx265": {"preset": "ultrafast"},
    "libsvtav1": {"preset": "12"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}
FRAMES = 8
CONSTRUCTS = [bytes([0xFC, 0x94, 0x20 + index] * (index % 3)) + bytes([0xFD, 0, 0, 0, 0, 0]) for index in range(FRAMES)]
"""Two of them hold three zeros on end, which must not make a start code."""

TOP_BOTTOM = bytes.fromhex("0000000d") + b"st3d" + bytes(4) + b"\x01"
EQUIRECTANGULAR = (  # Google's Spherical Video V2: a source, a pose, no tiles
    b"\0\0\0\x45sv3d" + b"\0\0\0\x0dsvhd" + bytes(5)
    + b"\0\0\0\x30proj" + b"\0\0\0\x18prhd" + bytes(16) + b"\0\0\0\x10equi" + bytes(8)
)  # fmt: skip
APERTURE = b"\0\0\0\x28clap" + struct.pack(">8I", 60, 1, 44, 1, 0, 1, 0, 1)


def write(path: Path, captions: list[bytes] | None = None, codec: str = "libx264", tags: dict[str, str] | None = None):
    """Eight small pictures, with captions put into their packets."""
    with av.open(str(path), "w", container_options={"movflags": "-faststart"}) as target:
        stream = target.add_stream(codec, rate=25, options=dict(FAST[codec]))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.flags |= av.codec.context.Flags.global_header
        stream.time_base = stream.codec_context.time_base = Fraction(1, 25)
        stream.metadata.update(tags or {})
        packets = []
        for index in range(FRAMES):
            picture = np.full((48, 64), 40 + 20 * index, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "gray").reformat(format="yuv420p")
            frame.pts = index
            packets += stream.encode(frame)
        for packet in [*packets, *stream.encode(None)]:
            index = round(packet.pts * packet.time_base * 25)
            data = with_captions(bytes(packet), codec, captions[index]) if captions else bytes(packet)
            copy = av.Packet(data)
            copy.stream, copy.time_base, copy.pts, copy.dts = stream, packet.time_base, packet.pts, packet.dts
            copy.duration, copy.is_keyframe = packet.duration, packet.is_keyframe
            target.mux(copy)
    return path


def with_boxes(path: Path, *boxes: bytes) -> Path:
    """An mp4, its index at the end, with boxes added to what it says of its pictures."""
    data = bytearray(path.read_bytes())
    added = b"".join(boxes)
    place = begin = data.index(b"moov") - 4
    found = [place]
    for name in (b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        place = data.index(name, place) - 4
        found.append(place)
    end = place + struct.unpack_from(">I", data, place)[0]
    for place in found:
        struct.pack_into(">I", data, place, struct.unpack_from(">I", data, place)[0] + len(added))
    assert begin > data.index(b"mdat")  # else the places of the pictures would change
    path.write_bytes(data[:end] + added + data[end:])
    return path


def read(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [read_captions(frame) for frame in container.decode(video=0)]


def settings(codec: str | None = None, **given: Any) -> Settings:
    return Settings(model="nearest", scale=2, codec=codec, encoder_options=FAST.get(codec or "", {}), **given)


def lines(source: Path, output: str, codec: str | None = None) -> str:
    return "\n".join(describe(plan(source, source.with_name(output), settings(codec))))


@pytest.mark.parametrize(
    ("codec", "ending"), [("libx264", "mp4"), ("libx264", "mkv"), ("libx265", "mov"), ("libsvtav1", "webm")]
)
def test_captions_arrive_with_their_frames(codec: str, ending: str, tmp_path: Path):
    source = write(tmp_path / "in.mp4", CONSTRUCTS)
    assert read(source) == CONSTRUCTS
    output = tmp_path / f"out.{ending}"
    assert "lost" not in lines(source, output.name, codec)
    vidup.upscale(source, output, settings(codec, segment_frames=5))
    assert read(output) == CONSTRUCTS
    if shutil.which("ffprobe") and codec != "libsvtav1":  # of AV1 it reads them only since FFmpeg 7
        command = ["ffprobe", "-v", "error", "-show_frames", str(output)]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        assert told.count("Closed Captions") == FRAMES


def test_captions_of_a_frame_are_not_told_twice_where_its_fields_become_frames(tmp_path: Path):
    source = write(tmp_path / "in.mp4", CONSTRUCTS)
    info = probe(source)
    halves = [captions for captions in _fields(info) if captions]
    assert halves == CONSTRUCTS


def _fields(info: Any) -> list[bytes]:
    from dataclasses import replace

    from vidup.media.decoding import decode

    interlaced = replace(info, field_order="tt")
    return [frame.captions for frame in decode(interlaced, settings=Settings(deinterlace="field"))]


@pytest.mark.parametrize("codec", ["libvpx-vp9", "ffv1", "prores_ks"])
def test_captions_that_have_no_place_are_told(codec: str, tmp_path: Path):
    source = write(tmp_path / "in.mp4", CONSTRUCTS)
    assert not carries(codec)
    ending = "mov" if codec == "prores_ks" else "mkv"
    assert "note: closed captions (CEA-608/708): lost" in lines(source, f"out.{ending}", codec)


@pytest.mark.parametrize("data", [b"", b"\xfc\x94"])
def test_without_captions_a_picture_stays_as_it_is(data: bytes):
    assert with_captions(b"\0\0\1\x65abc", "libx264", data) == b"\0\0\1\x65abc"
    assert with_captions(b"\0\0\1\x09\x10", "libx264", b"\xfc\x94\x20") == b"\0\0\1\x09\x10"  # no picture in it


def test_captions_stand_before_the_picture_and_after_its_parameters():
    data = with_captions(b"\0\0\0\1\x67sps\0\0\1\x68pps\0\0\1\x65picture", "libx264", b"\xfc\0\0\0\0\0")
    head, rest = data.split(b"GA94")
    assert head == b"\0\0\0\1\x67sps\0\0\1\x68pps\0\0\0\1\x06\x04\x11\xb5\0\x31"
    assert rest == b"\x03\x42\xff\xfc\0\0\x03\0\0\x03\0\xff\x80\0\0\1\x65picture"


def test_360_degrees_and_stereo_are_told(tmp_path: Path):
    source = with_boxes(write(tmp_path / "in.mp4"), TOP_BOTTOM, EQUIRECTANGULAR)
    assert probe(source).stereo_mode == "top_bottom"
    assert "note: the projection of 360 degree video (spherical): lost" in lines(source, "out.mp4", "libx264")
    assert "note: the arrangement of stereo 3D: lost" in lines(source, "out.mp4", "libx265")
    assert "stereo 3D" not in lines(source, "out.mkv", "libx265") + lines(source, "out.mp4", "libx264")


@pytest.mark.parametrize(
    ("codec", "ending"), [("libx265", "mkv"), ("libvpx-vp9", "webm"), ("libx264", "mp4"), ("libx264", "mkv")]
)
def test_stereo_arrives_in_matroska_and_h264(codec: str, ending: str, tmp_path: Path):
    source = with_boxes(write(tmp_path / "in.mp4"), TOP_BOTTOM)
    output = vidup.upscale(source, tmp_path / f"out.{ending}", settings(codec)).output
    assert probe(output).stereo_mode == "top_bottom"
    again = vidup.upscale(output, tmp_path / f"again.{ending}", settings(codec)).output
    assert probe(again).stereo_mode == "top_bottom"


def test_a_clean_aperture_is_told(tmp_path: Path):
    plain = write(tmp_path / "plain.mp4")
    source = with_boxes(write(tmp_path / "in.mp4"), APERTURE)
    assert "clean aperture" not in lines(plain, "out.mp4", "libx264")
    assert "only 60x44 of 64x48 pixels are to be shown (clean aperture): that is lost" in lines(source, "out.mp4")


def element(name: str, data: bytes) -> bytes:
    """An EBML element with a size of eight bytes."""
    return bytes.fromhex(name) + (len(data) | 1 << 56).to_bytes(8, "big") + data


def track(number: int, **crop: int) -> bytes:
    names = {"bottom": "54aa", "top": "54bb", "left": "54cc", "right": "54dd"}
    video = b"".join(element(names[side], bytes([pixels])) for side, pixels in crop.items())
    return element("ae", element("d7", bytes([number])) + element("e0", element("b0", b"\x40") + video))


def test_pixels_that_matroska_cuts_off_are_known(tmp_path: Path):
    path = tmp_path / "a.mkv"
    tracks = element("1654ae6b", track(1) + track(2, top=2, bottom=4, left=6, right=8))
    path.write_bytes(element("1a45dfa3", b"") + element("18538067", element("ec", bytes(9)) + tracks))
    assert shown_size(path, "matroska", 2, (64, 48)) == (50, 42)
    assert shown_size(path, "matroska", 1, (64, 48)) is None
    path.write_bytes(path.read_bytes()[:-3])
    assert shown_size(path, "matroska", 1, (64, 48)) is None


@pytest.mark.parametrize("data", [b"", b"\0\0\0\x08moov", b"\0\0\0\x01moov", b"\xff" * 64, bytes(64)])
@pytest.mark.parametrize("family", ["mov", "matroska", "avi"])
def test_a_damaged_file_says_nothing_of_what_is_shown(data: bytes, family: str, tmp_path: Path):
    path = tmp_path / "damaged"
    path.write_bytes(data)
    assert shown_size(path, family, 1, (64, 48)) is None


def test_transparency_of_vp9_is_told_and_its_tag_dropped(tmp_path: Path):
    source = write(tmp_path / "in.webm", codec="libvpx-vp9", tags={"alpha_mode": "1"})
    assert probe(source).side_data == ("VP9_ALPHA",)
    assert "transparency is dropped" in lines(source, "out.webm")
    output = vidup.upscale(source, tmp_path / "out.webm", settings("libvpx-vp9")).output
    with av.open(str(output)) as container:
        assert "alpha_mode" not in {key.lower() for key in container.streams[0].metadata}


class _Data(bytes):
    def __new__(cls, kind: str, data: bytes) -> _Data:
        made = super().__new__(cls, data)
        made.type = SimpleNamespace(name=kind)  # type: ignore[attr-defined]
        return made


@pytest.mark.parametrize(
    ("kind", "data", "says"),
    [
        ("SPHERICAL", bytes(36), True),
        ("ICC_PROFILE", b"profile", True),
        ("AFD", b"\x08", True),
        ("SEI_UNREGISTERED", bytes.fromhex("dc45e9bde6d948b7962cd820d923eeef") + b"x264", False),
        ("SEI_UNREGISTERED", bytes(16) + b"a camera's", True),
        ("GOP_TIMECODE", struct.pack("=Q", 0x1000), False),
        ("GOP_TIMECODE", struct.pack("=Q", 0x81000), True),
        ("PANSCAN", bytes(24), False),
        ("PANSCAN", struct.pack("=3i6h", 0, 64 * 16, 48 * 16, *[0] * 6), False),
        ("PANSCAN", struct.pack("=3i6h", 0, 48 * 16, 48 * 16, *[0] * 6), True),
        ("DISPLAYMATRIX", bytes(36), False),
    ],
)
def test_kinds_that_say_something(kind: str, data: bytes, says: bool):
    frame = SimpleNamespace(side_data=[_Data(kind, data)], width=64, height=48)
    assert kinds([frame], SimpleNamespace(metadata={})) == ((kind,) if says else ())
