"""The records of the containers: each holds what it says, and nothing else in the package knows one by its name."""

import ast
import io
from pathlib import Path

import av
import pytest

from vidup.errors import ConfigError
from vidup.media.containers import CONTAINERS, MATROSKA, MOV, MP4, WEBM, container_of, family, video_format

PACKAGE = Path(__file__).resolve().parent.parent / "vidup"
ALL = (MP4, MOV, MATROSKA, WEBM)


@pytest.mark.parametrize("container", ALL, ids=str)
def test_a_container_holds_what_it_converts_to(container):
    assert container.holds(container.codec)
    for codec in (container.text, container.sound, container.lossless_sound):
        assert av.codec.Codec(codec, "w").type in ("audio", "subtitle")
        av.open(io.BytesIO(), "w", format=container.name).add_stream(codec)  # raises where it does not fit


def test_a_container_is_known_by_an_ending():
    assert container_of(Path("a.MP4")) is container_of(Path("a.m4v")) is MP4
    assert {container.name for container in CONTAINERS.values()} == {"mp4", "mov", "matroska", "webm"}
    with pytest.raises(ConfigError, match=r"cannot write .avi; choose a name that ends in .mp4"):
        container_of(Path("a.avi"))


def test_an_input_has_a_family():
    assert family("mov,mp4,m4a,3gp,3g2,mj2") == "mov" and family("matroska,webm") == "matroska"
    assert family("mpegts") == "mpegts"


def test_formats_are_known_by_any_name():
    assert {video_format(name) for name in ("libx265", "hevc_nvenc", "hevc")} == {"hevc"}
    assert not MATROSKA.shows_aspect("libvpx-vp9") and MATROSKA.shows_aspect("h264") and MP4.shows_aspect("ffv1")


def test_no_other_file_knows_a_container_by_its_name():
    names = {"mp4", "webm", *CONTAINERS}  # the two others are the names of families, too
    inputs = {"probing.py", "opening.py", "containers.py"}  # the first two speak of what is read
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name in inputs or "mini" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in names:
                raise AssertionError(f"{path.name}:{node.lineno} knows {node.value!r} by its name")
