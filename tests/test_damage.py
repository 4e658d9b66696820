"""Damaged and hostile input: one clear line, at once; what can be decoded of it where that is asked for."""

import itertools
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import mutants
import mutate
import numpy as np
import pytest

import vidup
from vidup import MediaError, Progress, Settings, VidupError
from vidup.cli import main
from vidup.media import decoding, probing
from vidup.media.encoder import same_priority
from vidup.media.probing import probe

NEAREST = Settings(model="nearest", scale=2, codec="libx264", encoder_options={"preset": "ultrafast"})
BASELINE = ["--model", "nearest", "--scale", "2", "--codec", "libx264", "-e", "preset=ultrafast", "--progress", "none"]


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    with same_priority():  # SVT-AV1 writes one of them
        return {path.name: path for path in mutants.make_clips(tmp_path_factory.mktemp("clips"))}


def refusal(path: Path, settings: Settings = NEAREST) -> str:
    """The one line with which a file is refused, and nothing is left behind."""
    before = set(path.parent.iterdir())
    output = path.parent / "out.mkv"
    with pytest.raises(MediaError) as caught:
        vidup.upscale(path, output, settings)
    assert set(path.parent.iterdir()) <= before
    message = str(caught.value)
    assert message.isprintable() and message
    return message


# Mutants


def test_mutants(clips: dict[str, Path], tmp_path: Path):
    """Whatever is wrong with a clip, a picture, a model or a stopped job: a verified delivery, or one line."""
    kinds = {
        "model": mutants.make_models(tmp_path),
        "job": mutants.make_jobs(tmp_path),
        "picture": mutants.make_pictures(tmp_path),
        "clip": list(clips.values()),
    }
    sources = [source for some in kinds.values() for source in some]
    results = list(mutate.try_all(range(len(sources)), 5, sources, seconds=60))
    assert [result for result in results if result.wrong] == []
    assert len(results) == 2 * len(sources)
    for kind, some in kinds.items():
        mine = [results.pop(0) for _ in range(2 * len(some))]
        assert [result.clip for result in mine] == [source.name for source in some for _ in range(2)]
        assert "delivered" in {result.outcome for result in mine}, kind
        outcomes = {mode: Counter(one.outcome for one in mine if one.tolerate is mode) for mode in (False, True)}
    # Of the clips, the last:
    assert outcomes[True]["delivered"] > outcomes[False]["delivered"] > 10


def test_a_mutant_follows_from_its_number(clips: dict[str, Path]):
    paths = list(clips.values())
    first, again = ([mutants.mutant(number, 3, paths) for number in range(40)] for _ in range(2))
    assert first == again
    assert sum(one.data != one.source.read_bytes() for one in first) > 35
    assert {name for one in first for name in one.change.split("+")} >= {"bits", "cut", "field", "number"}


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGSTOP")
def test_mutants_are_watched(clips: dict[str, Path]):
    """A worker that does not answer, or dies, is found."""
    paths = [clips["h264.mp4"]]
    worker = mutate.Worker(0, paths, 4096)
    worker._process.send_signal(signal.SIGSTOP)
    assert worker.try_one(0, False, 0.2).outcome == "hang"
    assert worker._process.poll() is not None  # ended
    worker = mutate.Worker(0, paths, 4096)
    worker._process.kill()
    result = worker.try_one(0, False, 60)
    assert (result.outcome, result.message) == ("crash", "SIGKILL")


# What is no video


_M3U8 = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.5,\n{}\n#EXT-X-ENDLIST\n"
_MPD = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S"'
    ' profiles="urn:mpeg:dash:profile:full:2011"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1"'
    ' bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>'
)
_SDP = (
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)


@pytest.mark.parametrize("ending", ["mp4", "m3u8", "mkv"])
@pytest.mark.parametrize(
    "text",
    [_M3U8, "ffconcat version 1.0\nfile '{}'\n", _MPD, _SDP, "RTSPtext\nrtsp://127.0.0.1/{}\n", ";FFMETADATA1\n"],
)
def test_what_names_other_files_is_not_followed(clips: dict[str, Path], tmp_path: Path, text: str, ending: str):
    (tmp_path / "other.ts").write_bytes(clips["h264.ts"].read_bytes())
    path = tmp_path / f"list.{ending}"
    path.write_text(text.format("other.ts"))
    begin = time.monotonic()
    assert refusal(path) in (
        f"{path}: is damaged, or is a list of other files, which is not followed: give vidup the video itself",
        f"{path}: is no video, or is damaged at its head (no known format was found in it)",
    )
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.mp4", b"", "is empty"),
        ("text.mkv", b"This is a letter, not a film.\n" * 50, "is no video, or is damaged at its head"),
        ("zeros.mp4", bytes(20000), "is no video, or is damaged at its head"),
        ("noise.avi", random.Random(1).randbytes(30000), "is no video, or is damaged at its head"),
        ("one.ts", b"\x47", "is no video, or is damaged at its head"),
        (
            "subtitles.mkv",
            b"1\n00:00:01,000 --> 00:00:02,000\nHello\n",
            "has no video stream (it holds subtitle srt)",
        ),
    ],
)
def test_what_is_no_video(tmp_path: Path, name: str, content: bytes, message: str):
    path = tmp_path / name
    path.write_bytes(content)
    assert message in refusal(path)


def test_what_is_no_regular_file(tmp_path: Path):
    folder = tmp_path / "folder.mp4"
    folder.mkdir()
    assert refusal(folder).endswith("is a folder, expected a file")
    assert "there are no such pictures" in refusal(tmp_path / "frame_%03d.png")
    assert refusal(tmp_path / "missing.mp4").endswith("there is no such file")
    if sys.platform != "win32":
        for name in ("pipe.mp4", "pipe.png"):
            os.mkfifo(tmp_path / name)
            assert "is a pipe or a device" in refusal(tmp_path / name)
            with pytest.raises(MediaError, match="is a pipe or a device"):
                vidup.upscale(tmp_path / name, tmp_path / f"out_{name}", NEAREST)
        for device in ("/dev/zero", "/dev/null"):
            with pytest.raises(MediaError, match="is a pipe or a device"):
                vidup.upscale(device, tmp_path / "out.mkv", NEAREST)
        (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
        assert "loop.mp4" in refusal(tmp_path / "loop.mp4")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_what_must_not_be_read(clips: dict[str, Path], tmp_path: Path):
    path = tmp_path / "secret.mp4"
    path.write_bytes(clips["h264.mp4"].read_bytes())
    path.chmod(0)
    assert refusal(path) == f"{path}: cannot be read: Permission denied"


# More than there is


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size; what would be its first rows is there, and little of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(2000))) + chunk(b"IEND", b"")
    )


def huge_mp4(data: bytes) -> bytes:
    """An mp4 whose header claims the largest size that it can."""
    size = data.index(b"avc1", data.index(b"stsd")) + 28
    return data[:size] + b"\xff" * 4 + data[size + 4 :]


def huge_mkv(data: bytes) -> bytes:
    """A Matroska file whose track claims 2,147,450,879 pixels a side; what is in the way becomes void."""
    begin = data.index(b"\xe0\x8a\xb0\x81\x40\xba\x81\x20")  # the track's video: 64 x 32, and two bytes more
    end = data.index(b"\xec\x01" + bytes(6) + b"\x02", begin) + 11
    claim = b"\xe0\x8c\xb0\x84\x7f\xff\x7f\xff\xba\x84\x7f\xff\x7f\xff"
    rest = end - begin - len(claim) - 2
    return data[:begin] + claim + b"\xec" + bytes([0x80 | rest]) + bytes(rest) + data[end:]


MEASURE = """
import json, resource, sys, time
import vidup, vidup.job
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
settings, told = vidup.Settings(model="nearest", scale=2), []
vidup.upscale(sys.argv[1], sys.argv[2], settings)
for path in sys.argv[4:]:
    before, begin, outcome = peak(), time.monotonic(), "delivered"
    try:
        vidup.upscale(path, sys.argv[3], settings, runtime=vidup.Runtime(overwrite=True))
    except vidup.VidupError as error:
        outcome = str(error)
    told.append([outcome, peak() - before, time.monotonic() - begin])
print(json.dumps(told))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no ru_maxrss")
def test_gigantic_claims_do_not_take_memory(clips: dict[str, Path], tmp_path: Path):
    claims = {
        "huge.png": huge_png(50_000, 50_000),
        "huge.mp4": huge_mp4(clips["h264.mp4"].read_bytes()),
        "huge.mkv": huge_mkv(clips["h264.mkv"].read_bytes()),
    }
    for name, data in claims.items():
        (tmp_path / name).write_bytes(data)
    paths = [clips["h264.mp4"], tmp_path / "small.mkv", tmp_path / "out.mkv", *(tmp_path / name for name in claims)]
    done = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert len(told) == len(claims)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    assert sum(grown for _, grown, _ in told) * unit < 200 * 2**20  # of the peak, by all of them
    for outcome, _, seconds in told:
        assert re.search("delivered|pixels|cannot be|damaged at its head", outcome) and seconds < 10


# Names


@pytest.mark.parametrize(
    "name",
    [
        *("with spaces.mp4", "größe-мир-映画.mp4", "a:b.mp4", "http:film.mp4", "-dash.mp4", "100%d_%s.mp4"),
        *("new\nline.mp4", "x" * 200 + ".mp4", "'quote\".mp4", "#hash?.mp4", "back\\slash.mp4"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="such names are not allowed there")
def test_file_names(
    clips: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(clips["h264.mp4"].read_bytes())
    assert vidup.upscale(name, f"out {name}", NEAREST).output == Path(f"out {name}")
    assert probing.probe(f"out {name}").frames == 12
    assert main(["probe", "--model", "nearest", "--", name]) == 0
    Path(name).write_bytes(b"nothing")
    with pytest.raises(MediaError) as caught:
        vidup.upscale(name, f"again {name}", NEAREST)
    assert len(str(caught.value).splitlines()) == 1
    capsys.readouterr()
    assert main(["upscale", *BASELINE, "-o", "third.mp4", "--", name]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_name_that_is_too_long(tmp_path: Path):
    assert "File name too long" in refusal(tmp_path / ("x" * 300 + ".mp4"))


# Files that change meanwhile


@pytest.mark.parametrize("change", ["deleted", "emptied", "overwritten"])
@pytest.mark.parametrize("state", ["upscaling", "joining"])
def test_an_input_that_changes_meanwhile(clips: dict[str, Path], tmp_path: Path, change: str, state: str):
    path, output = tmp_path / "clip.mkv", tmp_path / "out.mkv"
    path.write_bytes(clips["h264.mkv"].read_bytes())

    def meddle(event: Progress) -> None:
        if event.state == state and path.exists():
            if change == "deleted":
                path.unlink()
            else:
                path.write_bytes(b"" if change == "emptied" else random.Random(2).randbytes(path.stat().st_size))

    with pytest.raises(VidupError) as caught:
        vidup.upscale(path, output, NEAREST, on_progress=meddle)
    assert str(caught.value).isprintable() and not output.exists()


# Damage: an error by default, the rest of the film where that is asked for


def place(path: Path, index: int) -> tuple[int, int]:
    """Where a packet of the video begins in a file, and its size."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packet = next(itertools.islice((p for p in container.demux(stream) if p.size), index, None))
        found = path.read_bytes().find(bytes(packet))
        if found < 0:  # it is scattered over the packets of a transport stream
            assert packet.pos is not None
            found = packet.pos
        return found, packet.size


def cut(path: Path, index: int, more: int = 5) -> bytes:
    """The file up to a packet of its video and a little of it."""
    return path.read_bytes()[: place(path, index)[0] + more]


def spoilt(path: Path, index: int, begin: int = 0, length: int = 10_000) -> bytes:
    """The file with bytes of a packet of its video replaced by random ones."""
    data, (first, size) = bytearray(path.read_bytes()), place(path, index)
    length = min(length, size - begin)
    data[first + begin : first + begin + length] = random.Random(index).randbytes(length)
    return bytes(data)


def without(path: Path, index: int, length: int) -> bytes:
    """The file without some bytes, from a multiple of as many on, where a packet of its video begins."""
    data, (first, _) = path.read_bytes(), place(path, index)
    first -= first % length
    return data[:first] + data[first + length :]


DAMAGE: dict[str, Callable[[Path], bytes]] = {
    "faststart.mp4": lambda path: cut(path, 9),
    "h264.mkv": lambda path: cut(path, 9),
    "h264.ts": lambda path: without(path, 7, 188),  # a packet of the transport stream: they are counted
    "fragments.mp4": lambda path: spoilt(path, 6),
    "h264.mp4": lambda path: spoilt(path, 7, 10),
    "hevc.mp4": lambda path: spoilt(path, 7),
    "mpeg2.ts": lambda path: spoilt(path, 5, 30, 100),
    "ffv1.mkv": lambda path: spoilt(path, 5, 300, 3),
    "ffv1.nut": lambda path: spoilt(path, 5, 300, 3),
    "prores.mov": lambda path: spoilt(path, 5),
    "av1.mp4": lambda path: spoilt(path, 6),
    "mjpeg.avi": lambda path: spoilt(path, 6),
}


# Every frame is there, though in one the decoder has to conceal something: that is told, and delivered.
CONCEALED = ("h264.mp4", "mpeg2.ts", "ffv1.mkv", "ffv1.nut")


def test_a_damaged_tail_of_slow_pictures(make_clip: Callable[..., Path]):
    """Whoever looks for a frame before the tail goes back by seconds, which are less than a tick here."""
    source = make_clip("slow.avi", range(12), time_base=Fraction(2), codec="png", pix_fmt="rgb24", sound=False)
    assert probe(source).time_base == 2
    for index in (11, 10, 9, 8):
        source.write_bytes(spoilt(source, index))
    settings = Settings(model="nearest", scale=2, codec="ffv1", segment_frames=4, tolerate_errors=True)
    output = vidup.upscale(source, source.with_name("out.mkv"), settings).output
    assert len(probe(output).pts) == 8


@pytest.mark.parametrize("name", DAMAGE)
def test_tolerating_errors(clips: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str):
    source = tmp_path / name
    source.write_bytes(DAMAGE[name](clips[name]))
    kept = source.suffix in (".mp4", ".mov", ".mkv")
    output = tmp_path / f"out{source.suffix if kept else '.mkv'}"

    concealed = name in CONCEALED
    assert main(["upscale", str(source), "-o", str(output), *BASELINE]) == (0 if concealed else 1)
    told = capsys.readouterr().err.splitlines()
    if concealed:
        assert any(re.search(r"damaged.* \d\.\d{3} s|\d\.\d{3} s is damaged", line) for line in told)
        assert len(probe(output).pts) == len(probe(clips[name]).pts)
        assert main(["verify", str(source), str(output)]) == 0
        output.unlink()
    else:
        assert not output.exists() and sorted(tmp_path.iterdir()) == [source]
        assert re.search(r"damaged|cut short|cannot be decoded", told[-1]) and "--tolerate-errors" in told[-1]
        assert re.search(r"\d\.\d{3} s", told[-1])

    assert main(["upscale", str(source), "-o", str(output), "--tolerate-errors", *BASELINE]) == 0
    told = capsys.readouterr().err.splitlines()
    assert any(re.search(r"damaged|cut short|cannot be decoded", line) for line in told)
    healthy, made = probe(clips[name]), probe(output)
    tick = Fraction(1, 1000) if output.suffix == ".mkv" else Fraction(0)
    expected = [pts * healthy.time_base for pts in healthy.pts]
    found = [pts * made.time_base for pts in made.pts]
    shift = min(found) - min(expected, key=lambda wanted: abs(wanted - min(found)))
    assert len(found) >= len(expected) // 2 and abs(shift) <= tick
    for time_ in found:
        assert min(abs(time_ - wanted) for wanted in expected) <= tick
    assert sorted(tmp_path.iterdir()) == sorted([source, output])

    assert main(["verify", str(source), str(output), "--tolerate-errors"]) == 0


def test_tolerance_changes_nothing_of_a_healthy_file(clips: dict[str, Path], tmp_path: Path):
    for name in ("h264.mp4", "h264.mkv", "mpeg2.mpg", "mpeg4.avi", "vp8.ogg"):
        source, ending = clips[name], Path(name).suffix if name.endswith(("mp4", "mkv")) else ".mkv"
        outputs = []
        for tolerate in (False, True):
            settings = Settings(**vars(NEAREST) | {"tolerate_errors": tolerate})
            outputs.append(vidup.upscale(source, tmp_path / f"{tolerate}{ending}", settings).output.read_bytes())
            (tmp_path / f"{tolerate}{ending}").unlink()
        assert outputs[0] == outputs[1]


def test_a_damaged_frame_is_told_with_its_time(clips: dict[str, Path], tmp_path: Path, caplog):
    """FFV1 bears checksums: the one frame that is damaged is known, and all others are kept as they are."""
    path = tmp_path / "clip.mkv"
    path.write_bytes(spoilt(clips["ffv1.mkv"], 9, 300, 3))
    delivered = list(decoding.decode(probing.probe(path)))
    assert "its frame at 0.360 s is damaged" in caplog.text
    healthy = {frame.pts: frame for frame in decoding.decode(probing.probe(clips["ffv1.mkv"]))}
    tolerated = list(decoding.decode(probing.probe(path, True), settings=Settings(tolerate_errors=True)))
    assert [frame.pts for frame in tolerated] == [frame.pts for frame in delivered] == list(healthy)
    same = [all(map(np.array_equal, frame.planes, healthy[frame.pts].planes)) for frame in tolerated]
    assert same[:9] == [True] * 9 and same[9] is False


# Healthy, though it looks unusual


@pytest.mark.parametrize("name", ["clip.mov", "clip.mp4"])
def test_frames_that_an_edit_list_leaves_out_are_not_missed(make_clip: Callable[..., Path], name: str):
    """More than a group of pictures lies before 0, where the edit list begins: demuxers leave it out."""
    info = probing.probe(make_clip(name, times=tuple(range(-8 * 512, 16 * 512, 512)), sound=False))
    assert info.pts == tuple(range(0, 16 * 512, 512)) and info.notes == ()
    assert [frame.pts for frame in decoding.decode(info)] == list(info.pts)


def test_parts_equal_the_whole(clips: dict[str, Path]):
    for name, path in clips.items():
        info = probing.probe(path)
        frames = list(decoding.decode(info))
        assert [frame.pts for frame in frames] == list(info.pts), name
        for low, high in itertools.combinations((0, 3, 4, 7, len(frames) - 1), 2):
            part = list(decoding.decode(info, info.pts[low], info.pts[high]))
            assert [frame.pts for frame in part] == list(info.pts[low:high]), name
            assert all(
                np.array_equal(a, b)
                for one, other in zip(part, frames[low:high], strict=True)
                for a, b in zip(one.planes, other.planes, strict=True)
            ), name
