"""Fault injection: damage a delivery and see that it is told; and no false alarm over what is whole."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import pattern
from material import MILLISECOND, Material, Sound, Text, packets_of

import vidup
from vidup import MediaError, Runtime, Settings, VerifyError, cli
from vidup.media import joining, segment
from vidup.media.probing import probe
from vidup.proof import pictures

FAST = Settings(model="nearest", scale=2, crf=12, encoder_options={"preset": "ultrafast"})
Packets = dict[int, list[Any]]
GERMAN = ((200, 300, "eins"), (600, 200, "zwei"), (900, 400, "drei"))
RICH = Material(
    sounds=(Sound("aac", "eng", default=True), Sound("pcm_s16le", "fin")),
    texts=(Text("subrip", "eng"), Text("subrip", "deu", forced=True, texts=GERMAN)),
    chapters=((0, 500, "First"), (500, 1520, "Second")),
    tags={"title": "A harbour"},
    size=(64, 48),
)


@pytest.fixture(scope="module", params=["mp4", "mkv"])
def delivered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source with streams of every kind, and its delivery, which verifies."""
    folder = tmp_path_factory.mktemp("delivered")
    ending = request.param
    if ending == "mp4":
        sounds = (Sound("aac", "eng", default=True), Sound("alac", "fin"))
        rich = replace(
            RICH, sounds=sounds, texts=(Text("mov_text", "eng"), Text("mov_text", "deu", texts=GERMAN)), cover="png"
        )
    else:
        rich = replace(RICH, attachment=True, cover="png")
    source = rich.write(folder / f"source.{ending}")
    output = vidup.upscale(source, folder / f"output.{ending}", FAST).output
    receipt = vidup.verify(source, output)
    assert (receipt.frames, receipt.compared, receipt.size, receipt.chapters) == (38, 38, (96, 128), 2)
    assert receipt.least_likeness > 0.97
    return source, output


def remux(
    path: Path,
    change: Callable[[Packets], None] = lambda packets: None,
    told: Callable[[Any, dict[int, Any]], None] = lambda target, streams: None,
    without: tuple[int, ...] = (),
    chapters: Callable[[list[Any]], list[Any]] = lambda found: found,
    tags: bool = True,
) -> Path:
    """A copy of a file in which some packets are changed, or streams, or facts."""
    damaged = path.with_name(f"damaged{path.suffix}")
    kind = {".mkv": "matroska"}.get(path.suffix, path.suffix[1:])
    options = {"avoid_negative_ts": "disabled"} if kind == "matroska" else {"movie_timescale": "48000"}
    with av.open(str(path)) as source, av.open(str(damaged), "w", format=kind, container_options=options) as target:
        streams = {}
        for stream in source.streams:
            cover = bool(stream.disposition & av.stream.Disposition.attached_pic)
            if stream.index in without or (stream.type == "data"):
                continue
            if cover and kind == "matroska":
                target.add_attachment("cover.png", "image/png", packets_of(path)[stream.index][0][2])
                continue
            streams[stream.index] = target.add_stream_from_template(stream, opaque=True)
            streams[stream.index].metadata.update(stream.metadata)
            if stream.type != "attachment":
                streams[stream.index].disposition = stream.disposition
        target.metadata.update(source.metadata if tags else {})
        target.set_chapters(chapters(source.chapters()))
        told(target, streams)
        packets: Packets = {}
        for packet in source.demux():
            if packet.size and packet.stream.index in streams:
                packets.setdefault(packet.stream.index, []).append(packet)
        gaps = packets.get(3, []) if kind == "mp4" else []
        packets |= {3: [packet for packet in gaps if packet.size > 2]} if gaps else {}
        change(packets)
        whole = [(index, packet) for index, found in packets.items() for packet in found]
        for index, packet in sorted(whole, key=lambda pair: (pair[1].dts or 0) * pair[1].time_base):
            packet.stream = streams[index]
            target.mux(packet)
    return damaged


def reencode(path: Path, change: Callable[[list[np.ndarray]], list[np.ndarray]], crf: int = 12, **tags: int) -> Path:
    """A copy of a file with other pictures at the same times; without its other streams."""
    with av.open(str(path)) as source:
        frames = [(f.pts, f.time_base, f.to_ndarray(format="yuv420p")) for f in source.decode(video=0)]
        before = source.streams.video[0].codec_context
        tag = {name: int(getattr(before, name)) for name in ("colorspace", "color_primaries", "color_trc")}
    pictures = change([picture for *_, picture in frames])
    damaged = path.with_name(f"pictures{path.suffix}")
    with av.open(str(damaged), "w") as target:
        stream = target.add_stream("libx264", rate=25)
        context = stream.codec_context
        height, context.width = pictures[0].shape[0] * 2 // 3, pictures[0].shape[1]
        context.height, context.pix_fmt, context.time_base = height, "yuv420p", frames[0][1]
        stream.time_base = frames[0][1]
        for name, value in {**tag, "color_range": 1, **tags}.items():
            setattr(context, name, value)
        context.options = {"preset": "ultrafast", "crf": str(crf)}
        for (pts, unit, _), picture in zip(frames, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="yuv420p")
            frame.pts, frame.time_base = pts, unit
            for packet in stream.encode(frame):
                target.mux(packet)
        for packet in stream.encode(None):
            target.mux(packet)
    return damaged


def fault(source: Path, damaged: Path, **kwargs: Any) -> str:
    with pytest.raises(VerifyError) as caught:
        vidup.verify(source, damaged, **kwargs)
    message = str(caught.value)
    assert message.startswith(str(damaged)) and "\n" not in message
    return message


def later(index: int, place: int, ticks: int) -> Callable[[Packets], None]:
    def change(packets: Packets) -> None:
        packet = packets[index][place]
        packet.pts += ticks
        if index:  # of pictures only the time at which they are shown
            packet.dts += ticks

    return change


def without_packet(index: int, place: int) -> Callable[[Packets], None]:
    return lambda packets: packets[index].__delitem__(place)


def replaced(index: int, place: int, data: Callable[[bytes], bytes]) -> Callable[[Packets], None]:
    def change(packets: Packets) -> None:
        old = packets[index][place]
        new = av.Packet(data(bytes(old)))
        new.pts, new.dts, new.duration, new.time_base = old.pts, old.dts, old.duration, old.time_base
        packets[index][place] = new

    return change


def swapped(index: int, place: int) -> Callable[[Packets], None]:
    def change(packets: Packets) -> None:
        one, two = packets[index][place : place + 2]
        data = bytes(one), bytes(two)
        replaced(index, place, lambda _: data[1])(packets)
        replaced(index, place + 1, lambda _: data[0])(packets)

    return change


def flipped(data: bytes) -> bytes:
    return data[:10] + bytes([data[10] ^ 1]) + data[11:]


def indices(path: Path, kind: str) -> list[int]:
    with av.open(str(path)) as opened:
        return [stream.index for stream in opened.streams if stream.type == kind]


def test_a_copy_without_a_fault_verifies(delivered: tuple[Path, Path]):
    source, output = delivered
    damaged = remux(output)
    assert vidup.verify(source, damaged).frames == 38
    assert vidup.verify(source, damaged, fast=True).sha256 == vidup.verify(source, damaged).sha256


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_packet(0, 20), "holds 37 frames, expected 38; the first that differs should be at 0.8"),
        (without_packet(0, 37), "holds 37 frames, expected 38; the first that differs should be at 1.48"),
        (later(0, 20, 1), "frame 20 is at 0.8"),
        (swapped(1, 5), r"stream 1 \(audio aac.*packet 5 differs from the input's$"),
        (without_packet(1, 5), r"stream 1 \(audio aac.*packet 5 differs"),
        (without_packet(1, -1), r"stream 1 .*packet \d+ differs from the input's \(it holds \d+ packets, expected \d+"),
        (replaced(1, 5, flipped), r"stream 1 \(audio aac.*packet 5 differs"),
        (replaced(2, 5, flipped), r"stream 2 .*(differs|differ) from the input's"),
        (replaced(3, 1, lambda data: data[:-1] + b"O"), r"stream 3 \(subtitle .*packet 1 differs"),
        (without_packet(3, 1), r"stream 3 \(subtitle .*packet 1 differs"),
        (later(3, 1, 100), r"stream 3 \(subtitle .*packet 1 is 0.1000 s late"),
    ],
)
def test_packets(delivered: tuple[Path, Path], change: Callable[[Packets], None], says: str):
    source, output = delivered
    damaged = remux(output, change)
    message = fault(source, damaged)
    assert re.search(says, message), message
    assert fault(source, damaged, fast=True)[:40] == message[:40]


def test_facts(delivered: tuple[Path, Path]):
    source, output = delivered
    german = 2 if output.suffix == ".mp4" else 3
    assert "holds 1 chapters, expected 2" in fault(source, remux(output, chapters=lambda found: found[:1]))

    def renamed(found: list[Any]) -> list[Any]:
        found[1]["metadata"]["title"] = "Last"
        return found

    def moved(found: list[Any]) -> list[Any]:
        found[1]["start"] += round(Fraction(1, 50) / found[1]["time_base"])
        return found

    assert "chapter 1 is 'Last', 0.0000 s late, expected 'Second'" in fault(source, remux(output, chapters=renamed))
    assert "chapter 1 is 'Second', 0.0200 s late" in fault(source, remux(output, chapters=moved))
    assert "the tag title of the file is None, expected 'A harbour'" in fault(source, remux(output, tags=False))

    def other_language(target: Any, streams: dict[int, Any]) -> None:
        streams[german].metadata["language"] = "fra"

    assert f"the tag language of stream {german}" in fault(source, remux(output, told=other_language))


def test_streams_that_are_missing(delivered: tuple[Path, Path]):
    source, output = delivered
    for index, name in ((1, "audio aac"), (2, "audio"), (3, "subtitle"), (4, "subtitle")):
        assert re.search(rf"stream {index} \({name}.* is missing", fault(source, remux(output, without=(index,))))
    for kind in ("attachment", "video"):
        for index in indices(output, kind)[kind == "video" :]:
            assert re.search(r"is missing", fault(source, remux(output, without=(index,))))
    with av.open(str(output)) as opened:
        kinds = [stream.type for stream in opened.streams]
    assert kinds.count("video") == 2 and ("attachment" in kinds) == (output.suffix == ".mkv")


def test_a_truncated_file(delivered: tuple[Path, Path]):
    source, output = delivered
    damaged = output.with_name("short" + output.suffix)
    for share in (0.5, 0.95):
        damaged.write_bytes(output.read_bytes()[: int(output.stat().st_size * share)])
        fault(source, damaged)
    damaged.write_bytes(b"")
    assert "cannot be read back" in fault(source, damaged)


def twice(place: int) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    return lambda found: [*found[:place], found[place - 1], *found[place + 1 :]]


def as_it_is(found: list[np.ndarray]) -> list[np.ndarray]:
    return found


@pytest.fixture(scope="module", params=["mp4", "mkv"])
def film(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source of pictures alone, and its delivery; one that is compressed harder verifies, too."""
    folder = tmp_path_factory.mktemp("film")
    plain = replace(RICH, sounds=(), texts=(), chapters=(), tags={})
    source = plain.write(folder / f"source.{request.param}")
    output = vidup.upscale(source, folder / f"output.{request.param}", FAST).output
    assert vidup.verify(source, reencode(output, as_it_is, crf=28)).compared == 38
    return source, output


def black(picture: np.ndarray) -> np.ndarray:
    return np.concatenate([np.full_like(picture[: 2 * len(picture) // 3], 16), np.full_like(picture[::3], 128)])


SWAP = [*range(20), 21, 20, *range(22, 38)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (twice(20), "frame 20 .at 0.800000 s. shows what frame 19 of the source shows"),
        (lambda found: [found[place] for place in SWAP], "frame 20 .* shows what frame 21 of the source shows"),
        (
            lambda found: [found[0], *found[:-1]],
            "frame 1 .* shows what frame 0 |frames 1 to 8 show .* 1 frames earlier",
        ),
        (lambda found: [*found[1:], found[-1]], "frame 0 .* shows what frame 1 |frames 0 to 7 show .* 1 frames later"),
        (lambda found: [*found[:20], black(found[20]), *found[21:]], "frame 20 .* does not show what the source shows"),
        (lambda found: [*found[:20], found[20][::-1].copy(), *found[21:]], "frame 20 .* does not show"),
        (lambda found: [black(picture) for picture in found], "frame 0 .* does not show"),
        (lambda found: [*found[:10], *found[:-10]], "frame 1[01] .* (does not show|shows what)"),
    ],
)
def test_pictures(film: tuple[Path, Path], change: Callable[[list[np.ndarray]], list[np.ndarray]], says: str):
    source, output = film
    for crf in (12, 28):
        damaged = reencode(output, change, crf)
        message = fault(source, damaged)
        assert re.search(says, message), message
        assert fault(source, damaged, fast=True) == message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"color_trc": 16}, "its colour transfer is 16 .of ITU-T H.273., expected 6"),
        ({"colorspace": 9}, "its colour matrix is 9"),
        ({"color_primaries": 9}, "its colour primaries is 9"),
        ({"color_range": 2}, "its colour range is full, expected limited"),
    ],
)
def test_colour_tags(tmp_path: Path, change: dict[str, int], says: str):
    source = Material(size=(64, 48), frames=4).write(tmp_path / "source.mp4")
    output = vidup.upscale(source, tmp_path / "output.mp4", FAST).output
    assert re.search(says, fault(source, reencode(output, as_it_is, **change)))


def test_size_rotation_and_aspect(make_clip: Callable[..., Path]):
    source = make_clip(times=(0, 512, 1024), rotate=90, aspect=Fraction(16, 11))
    output = vidup.upscale(source, source.with_name("output.mp4"), FAST).output
    plain = make_clip("plain.mp4", times=(0, 512, 1024), size=(128, 96), aspect=Fraction(16, 11))
    assert "its rotation is None, expected" in fault(source, plain)
    square = make_clip("square.mp4", times=(0, 512, 1024), size=(128, 96), rotate=90)
    assert "its pixel aspect is 1, expected 16/11" in fault(source, square)
    for size in ((96, 96), (32, 24)):
        wrong = make_clip("wrong.mp4", times=(0, 512, 1024), size=size, rotate=90, aspect=Fraction(16, 11))
        assert f"is {size[0]}x{size[1]}, which is no enlargement of 64x48" in fault(source, wrong)
    assert vidup.verify(source, output).size == (96, 128)


def test_the_fast_way_sees_what_lies_in_its_samples(make_clip: Callable[..., Path]):
    source = make_clip(times=tuple(range(0, 120 * 40, 40)), time_base=MILLISECOND, size=(32, 32), sound=False)
    output = vidup.upscale(source, source.with_name("output.mp4"), FAST).output
    assert vidup.verify(source, output, fast=True).compared == 24 * 4 and vidup.verify(source, output).compared == 120
    first, second = (low for low, _ in list(pictures._runs(120, True))[5:7])
    for place in (first, first + 3, 119):
        damaged = reencode(output, lambda found, place=place: [*found[:place], black(found[0]), *found[place + 1 :]])
        assert f"frame {place} " in fault(source, damaged, fast=True)
    between = (first + 3 + second) // 2
    damaged = reencode(output, lambda found: [*found[:between], black(found[0]), *found[between + 1 :]])
    vidup.verify(source, damaged, fast=True)
    assert f"frame {between} " in fault(source, damaged)


GRAIN = np.random.default_rng(3).normal(0, 1, (24, 96, 128, 1))


def steady(index: int, width: int, height: int) -> np.ndarray:
    return pattern(0, width, height)


def light(level: Callable[[int], float], grain: float = 0) -> Callable[[int, int, int], np.ndarray]:
    """The steady picture, its light by the frame's number, with grain."""

    def draw(index: int, width: int, height: int) -> np.ndarray:
        noise = grain * GRAIN[index, :height, :width]
        return (level(index) * steady(0, width, height) + noise).clip(0, 255).astype(np.uint8)

    return draw


LEGITIMATE: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "moving": pattern,
    "still": steady,
    "grain": light(lambda index: 0.8, 15),
    "much grain": light(lambda index: 0.5, 30),
    "dark": lambda index, width, height: (pattern(index, width, height) * 0.08).astype(np.uint8),
    "dark grain": light(lambda index: 0.05, 4),
    "black": light(lambda index: 0),
    "fade": light(lambda index: max(0.0, 1 - index / 18)),
    "slow fade": lambda index, width, height: np.full((height, width, 3), 60 + index, np.uint8),
    "steps of light": lambda index, width, height: np.full((height, width, 3), 20 + 5 * index, np.uint8),
    "flash": light(lambda index: 8 if index in (7, 15) else 0.4),
    "cuts": lambda index, width, height: np.roll(pattern(7 * (index // 5), width, height), 13 * (index // 5), 0),
    "twos": lambda index, width, height: pattern(index // 2, width, height),
    "after black": lambda index, width, height: (index >= 14) * light(lambda _: 1, 10)(index, width, height),
}


@pytest.mark.parametrize("crf", [18, pytest.param(28, marks=pytest.mark.slow), 40])
@pytest.mark.parametrize("kind", LEGITIMATE)
def test_no_false_alarm(make_clip: Callable[..., Path], kind: str, crf: int):
    """A false alarm after days of work would be worse than a fault that is not seen."""
    source = make_clip("clip.mkv", range(0, 24 * 40, 40), (128, 96), MILLISECOND, sound=False, draw=LEGITIMATE[kind])
    for model, preset in (("nearest", "ultrafast"), ("bicubic", "medium"))[: 1 if crf == 18 else 2]:
        settings = Settings(model=model, scale=2, crf=crf, encoder_options={"preset": preset})
        output = vidup.upscale(source, source.with_name(f"{model}.mp4"), settings).output
        assert vidup.verify(source, output, fast=True).frames == 24


@pytest.mark.parametrize(
    ("clip", "settings"),
    [
        ({"times": (0,)}, {}),
        ({"times": (0, 40, 41, 300, 1000), "time_base": MILLISECOND}, {}),
        ({"pix_fmt": "gray"}, {}),
        ({"pix_fmt": "yuv420p10le"}, {}),
        ({"pix_fmt": "yuv420p10le", "tags": (9, 9, 16, 1)}, {}),
        ({"pix_fmt": "yuv444p", "tags": (2, 2, 2, 0)}, {}),
        ({"rotate": 90}, {"bake_rotation": True}),
        ({"rotate": 180}, {}),
        ({"aspect": Fraction(16, 11)}, {}),
        ({}, {"start": 0.1, "duration": 0.2}),
        ({"size": (16, 16)}, {"model": "mini", "scale": None, "steps": 1}),
        ({"size": (2, 2)}, {"scale": 8.0}),
        ({"size": (640, 16)}, {}),
    ],
)
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_no_false_alarm_over_what_is_unusual(make_clip: Callable[..., Path], clip: dict, settings: dict, ending: str):
    source = make_clip(f"clip.{ending}", **clip)
    chosen = replace(FAST, **settings)
    output = vidup.upscale(source, source.with_name(f"output.{ending}"), chosen).output
    vidup.verify(source, output, chosen)


@pytest.mark.parametrize("sample", ["film.mp4", "game.mkv"])
def test_the_samples(tmp_path: Path, sample: str):
    source = Path(__file__).resolve().parent.parent / "samples" / sample
    settings = Settings.preset("mini", duration=0.06, start=0.5, steps=1)
    output = vidup.upscale(source, tmp_path / sample, settings).output
    assert vidup.verify(source, output, settings).least_likeness > 0.9


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_result_that_is_wrong_does_not_take_its_place(
    make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, overwrite: bool
):
    source = make_clip(bframes=0)
    output = source.with_name("output.mp4")
    if overwrite:
        output.write_bytes(b"what was there before")
    whole = segment.read_segment
    join = joining.join

    def lossy(path: Path) -> Any:
        return (packet for packet in whole(path) if packet.pts != 5 * 512)

    def wrong(*args: Any) -> list[int]:
        with monkeypatch.context() as patch:
            for module in ("joining", "segment"):
                patch.setattr(f"vidup.media.{module}.read_segment", lossy)
            join(*args)
        return [index * 512 for index in range(12)]

    monkeypatch.setattr("vidup.media.joining.join", wrong)
    says = r"holds 11 frames, expected 12; the first that differs should be at 0.2000"
    with pytest.raises(VerifyError, match=says) as caught:
        vidup.upscale(source, output, FAST, runtime=Runtime(overwrite=overwrite))
    assert (output.read_bytes() == b"what was there before") if overwrite else not output.exists()
    unproved = output.with_name("output.mp4.vidup") / "unproved.mp4"  # to be looked at
    assert probe(unproved).frames == 11 and f"what was joined is kept as {unproved}" in str(caught.value)
    monkeypatch.undo()
    vidup.upscale(source, output, FAST, runtime=Runtime(overwrite=overwrite))  # goes on from what was kept
    assert vidup.verify(source, output).frames == 12 and not unproved.parent.exists()


def test_the_command_line(make_clip: Callable[..., Path], capsys: pytest.CaptureFixture[str]):
    source = make_clip()
    output = vidup.upscale(source, source.with_name("output.mp4"), FAST).output
    assert cli.main(["verify", str(source), str(output)]) == 0
    told = capsys.readouterr().out
    for words in (f"{output}: verified against {source}", "frames    12, each at its time, 128x96", "12 compared",
                  "audio aac (und): ", " packets equal", "chapters  0", "sha256    "):  # fmt: skip
        assert words in told
    assert cli.main(["verify", "--json", "--fast", str(source), str(output)]) == 0
    receipt = json.loads(capsys.readouterr().out)
    assert receipt["verified"] is True and receipt["frames"] == receipt["compared"] == 12
    assert receipt["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    damaged = remux(output, without_packet(0, 5))
    assert cli.main(["verify", str(source), str(damaged)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "holds 11 frames, expected 12" in captured.err
    assert cli.main(["verify", "--json", str(source), str(damaged)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["verified"] is False and "holds 11 frames" in told["error"]
    assert cli.main(["verify", str(source), str(source.with_name("missing.mp4"))]) == 1
    assert "there is no such file" in capsys.readouterr().err
    with pytest.raises(MediaError, match="there is no such file"):
        vidup.verify(source.with_name("missing.mp4"), output)
