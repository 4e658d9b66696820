"""The records of the containers: each holds what it says, and nothing else in the package knows one by its name."""

import ast
import io
from pathlib import Path

import av
import pytest
from material import Material, Sound

import vidup
from vidup import Settings
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
    inputs = {"probing.py", "opening.py", "table.py", "containers.py"}  # all but the last speak of what is read
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name in inputs or "mini" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in names:
                raise AssertionError(f"{path.name}:{node.lineno} knows {node.value!r} by its name")


FAST = {"preset": "ultrafast"}


def boxes(path: Path) -> list[str]:
    """The names of a file's outermost boxes (ISO/IEC 14496-12)."""
    found, data, place = [], path.read_bytes(), 0
    while place < len(data):
        found.append(data[place + 4 : place + 8].decode())
        place += int.from_bytes(data[place : place + 4], "big")
    return found


@pytest.mark.parametrize("ending", ["mp4", "mov", "m4v"])
def test_the_index_stands_at_the_front(ending: str, tmp_path: Path):
    source = Material(sounds=[Sound("aac")], tags={"com.apple.quicktime.make": "Camera"}).write(tmp_path / "in.mov")
    output = vidup.upscale(source, tmp_path / f"out.{ending}", Settings(model="nearest", encoder_options=FAST)).output
    assert boxes(output).index("moov") < boxes(output).index("mdat")


@pytest.mark.parametrize(
    ("ending", "options", "seen"),
    [
        ("mp4", {"movflags": "+frag_keyframe+empty_moov"}, b"moof"),
        ("mp4", {"brand": "iso6"}, b"ftypiso6"),
        ("mkv", {"cues_to_front": "1", "reserve_index_space": "2000"}, b"matroska"),
    ],
)
def test_a_muxer_is_given_options(ending: str, options: dict[str, str], seen: bytes, tmp_path: Path):
    source = Material().write(tmp_path / "in.mkv")
    chosen = Settings(model="nearest", encoder_options=FAST, muxer_options=options)
    assert seen in vidup.upscale(source, tmp_path / f"out.{ending}", chosen).output.read_bytes()


@pytest.mark.parametrize(
    ("container", "options", "message"),
    [
        (MP4, {"movflagz": "+faststart"}, "mp4 does not know all of them.*movflagz"),
        (MP4, {"crf": "3"}, "mp4 does not know all of them.*crf"),
        (MP4, {"movflags": "+fastest"}, "mp4 refuses"),
        (MATROSKA, {"movflags": "+faststart"}, "matroska does not know all of them.*movflags"),
    ],
)
def test_options_that_a_muxer_would_ignore_are_refused(container, options: dict[str, str], message: str):
    with pytest.raises(ConfigError, match=message):
        container.with_options(options)


def test_options_are_joined_to_ours_or_replace_them():
    assert MP4.with_options({"movflags": "+frag_keyframe"}).options["movflags"] == "+faststart+frag_keyframe"
    assert MP4.with_options({"movflags": "frag_keyframe"}).options["movflags"] == "frag_keyframe"
    assert MP4.with_options({}) is MP4


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("target", ["mp4", "mov", "mkv"])
def test_tags_that_are_no_utf_8_arrive(ending: str, target: str, tmp_path: Path):
    word, latin = b"Caf# No#l", "Café Noël".encode("latin-1")
    told = word.decode()
    source = Material(
        sounds=(Sound("aac"),), chapters=((0, 700, told),), tags={"title": told}, video_tags={"title": told}
    ).write(tmp_path / f"source.{ending}")
    data = source.read_bytes()
    assert data.count(word) >= 3
    source.write_bytes(data.replace(word, latin))
    output = tmp_path / f"output.{target}"
    vidup.upscale(source, output, Settings(model="nearest", scale=2, encoder_options={"preset": "ultrafast"}))
    assert output.read_bytes().count(latin) >= 3
    assert vidup.verify(source, output).chapters == 1
