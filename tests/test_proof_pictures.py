"""Pictures are proved segment by segment, by the input alone, and not through the reader's own conversion."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import pattern

import vidup
from vidup import Color, Frame, Settings, Upscaler, VerifyError
from vidup.media import joining, opening, segment
from vidup.media.thumbnails import thumbnails
from vidup.picture import color
from vidup.prefetch import prefetch
from vidup.proof.faults import faults
from vidup.proof.likeness import REACH, measure

FAST = Settings(model="nearest", scale=2, crf=12, encoder_options={"preset": "ultrafast"}, segment_frames=12)
TIMES = tuple(range(0, 36 * 512, 512))


def upscaled(monkeypatch: pytest.MonkeyPatch, change: Callable[[Iterator[Frame]], Iterator[Frame]]) -> None:
    """Let an engine's frames be changed before they are encoded."""
    whole = Upscaler.frames

    def frames(self: Upscaler, *args: Any) -> Iterator[Frame]:
        yield from change(whole(self, *args))

    monkeypatch.setattr(Upscaler, "frames", frames)


def without_one_in_six(frames: Iterable[Frame]) -> Iterator[Frame]:
    return (frame for index, frame in enumerate(frames) if index % 6 != 4)


def black(frames: Iterable[Frame]) -> Iterator[Frame]:
    for frame in frames:
        luma, *chroma = frame.planes
        planes = (np.full_like(luma, 16), *(np.full_like(plane, 128) for plane in chroma))
        yield replace(frame, planes=planes) if frame.pts == 5 * 512 else frame


def swapped(frames: Iterable[Frame]) -> Iterator[Frame]:
    """The picture of each frame under the time of the one before or after."""
    frames = iter(frames)
    while pair := list(islice(frames, 2)):
        planes = [frame.planes for frame in pair][::-1]
        yield from (replace(frame, planes=other) for frame, other in zip(pair, planes, strict=True))


def first_six(frames: Iterator[Frame]) -> Iterator[Frame]:
    yield from islice(frames, 6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_one_in_six, r"the segment from 0.000 s on holds 10 frames, expected 12; .* at 0.160000 s"),
        (first_six, r"the segment from 0.000 s on holds 6 frames, expected 12; .* at 0.240000"),
        (black, r"frame 5 .at 0.200000 s. does not show"),
        (swapped, r"frame 0 .* shows what frame 1 of the source"),
    ],
)
def test_a_fault_is_found_at_the_first_segment(make_clip: Callable[..., Path], monkeypatch, change: Any, says: str):
    source = make_clip(times=TIMES, sound=False, draw=lambda index, *size: pattern(4 * index, *size))
    upscaled(monkeypatch, change)
    monkeypatch.setattr("vidup.job.queue._deliver", None)  # it never comes to that
    with pytest.raises(VerifyError, match=says) as caught:
        vidup.upscale(source, source.with_name("output.mp4"), FAST)
    assert str(caught.value).startswith(str(source.with_name("output.mp4")))
    assert not list(source.parent.glob("*.vidup/00000.seg*"))


@pytest.mark.parametrize("small", [True, False])
def test_small_frames_are_handed_to_no_threads(make_clip: Callable[..., Path], monkeypatch, small: bool):
    """Of tiny frames that took as long as all else of their proof; what is found is the same."""
    source = make_clip(times=TIMES, sound=False)
    monkeypatch.setattr("vidup.media.opening._SMALL", 128 * 96 if small else 64 * 48 - 1)
    ahead, kinds = [], set()
    monkeypatch.setattr("vidup.proof.pictures.prefetch", lambda items: ahead.append(1) or prefetch(items))
    opened = opening.set_threads

    def watched(context: Any, exact: bool = False) -> None:
        opened(context, exact)
        kinds.add(context.thread_type.name)

    for module in ("reading", "segment"):
        monkeypatch.setattr(f"vidup.media.{module}.set_threads", watched)
    assert vidup.verify(source, vidup.upscale(source, source.with_name("output.mp4"), FAST)).compared == 36
    assert (not ahead, kinds == {"SLICE"}) == (small, small)
    upscaled(monkeypatch, black)
    with pytest.raises(VerifyError, match=r"frame 5 .* does not show"):
        vidup.upscale(source, source.with_name("other.mp4"), FAST)


def test_what_follows_a_fault_is_not_upscaled_to_its_end(make_clip: Callable[..., Path], monkeypatch):
    """With a slow engine a fault is known long before the next segment is done."""
    source = make_clip(times=TIMES, sound=False)
    done: list[int] = []
    proved = []
    whole = segment.encode_segment

    def slow(frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in black(frames):
            done.append(frame.pts)
            if len(done) > 13:
                proved[0].join(5)
            yield frame

    def watched(*args: Any) -> Iterator[Frame]:
        proved.append(threading.current_thread())
        return whole(*args)

    monkeypatch.setattr("vidup.job.worker.encode_segment", watched)
    upscaled(monkeypatch, slow)
    with pytest.raises(VerifyError, match="frame 5 "):
        vidup.upscale(source, source.with_name("output.mp4"), FAST)
    assert len(done) <= 15


def test_a_segment_that_was_not_proved_is_made_again(make_clip: Callable[..., Path], monkeypatch):
    source = make_clip(times=TIMES, sound=False)
    output = source.with_name("output.mp4")
    with monkeypatch.context() as patch:
        patch.setattr("vidup.job.worker.check_segment", lambda *args: (_ for _ in ()).throw(VerifyError("no")))
        with pytest.raises(VerifyError, match=r"^no$"):
            vidup.upscale(source, output, FAST)
    folder = output.with_name("output.mp4.vidup")
    assert not list(folder.glob("*.seg"))
    assert vidup.verify(source, vidup.upscale(source, output, FAST).output).compared == 36


def test_only_tolerated_damage_may_cost_frames(make_clip: Callable[..., Path], monkeypatch, caplog):
    source = make_clip(times=TIMES, sound=False)
    output = source.with_name("output.mp4")
    tolerant = replace(FAST, tolerate_errors=True)
    upscaled(monkeypatch, without_one_in_six)
    with pytest.raises(VerifyError, match="holds 10 frames, expected 12"):
        vidup.upscale(source, output, tolerant)
    monkeypatch.undo()
    from vidup.media import decoding

    whole = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda *args: without_one_in_six(whole(*args)))
    with caplog.at_level(logging.WARNING):
        vidup.upscale(source, output, tolerant)
    assert "6 frames of the input are lost" in caplog.text


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "libvpx-vp9", "ffv1"])
def test_a_joined_file_holds_the_packets_of_its_segments(make_clip: Callable[..., Path], monkeypatch, codec: str):
    source = make_clip(times=TIMES[:8], sound=False)
    settings = Settings(model="nearest", scale=2, codec=codec, segment_frames=4)
    vidup.upscale(source, source.with_name("right.mkv"), settings)
    whole = segment.av_packets

    def other(path: Path, encoding: Any) -> Iterator[av.Packet]:
        for index, packet in enumerate(whole(path, encoding)):
            if index == 1 and path.name == "00000.seg":
                data = bytes(packet)
                packet.update(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
            yield packet

    monkeypatch.setattr(joining, "av_packets", other)
    with pytest.raises(VerifyError, match=r"packet 1 of its video is not its segment's|cannot be read back"):
        vidup.upscale(source, source.with_name("wrong.mkv"), settings)


def write_pal8(path: Path, frames: int = 12) -> Path:
    """A film of a few colours, whose light alone says little, in frames that bear a palette."""
    with av.open(str(path), "w", format="mov") as container:
        stream = container.add_stream("png", rate=25)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = 64, 48, "pal8"
        palette = np.zeros((256, 4), np.uint8)
        palette[:4] = [(255, 220, 40, 40), (255, 40, 110, 40), (255, 60, 60, 230), (255, 200, 200, 30)]
        for index in range(frames):
            y, x = np.mgrid[:48, :64]
            codes = ((x + 2 * index) // 16 + y // 12).astype(np.uint8) % 4
            frame = av.VideoFrame(64, 48, "pal8")
            lines = np.frombuffer(frame.planes[0], np.uint8).reshape(48, -1)
            lines[:, :64] = codes
            np.frombuffer(frame.planes[1], np.uint8)[:1024] = palette[:, ::-1].reshape(-1)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def test_colour_that_the_reader_loses_is_missed(tmp_path: Path, monkeypatch):
    """The proof does not look through the reader's eyes."""
    source = write_pal8(tmp_path / "palette.mov")
    with av.open(str(source)) as opened:
        assert next(opened.decode(video=0)).format.name == "pal8"
    from vidup.media import decoding

    whole = decoding.decode

    def gray(*args: Any) -> Iterator[Frame]:
        for frame in whole(*args):
            luma = color.to_rgb(frame).mean(0, keepdim=True).expand(3, -1, -1)
            yield replace(frame, planes=color.from_rgb(luma, frame.pix_fmt, frame.color))

    monkeypatch.setattr(decoding, "decode", gray)
    monkeypatch.setattr(
        decoding, "planar", lambda name, whole=decoding.planar: "gbrp" if name == "pal8" else whole(name)
    )
    with pytest.raises(VerifyError, match=r"frame 0 .* (does not show|has lost the source's colour)"):
        vidup.upscale(source, tmp_path / "output.mkv", FAST)


FORMATS = [
    *(
        "yuv420p",
        "yuvj420p",
        "yuv422p",
        "yuv444p",
        "yuv440p",
        "yuv411p",
        "yuv410p",
        "yuva420p",
        "gbrp",
        "gbrap",
        "gray",
    ),
    *("yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p12le", "yuv444p16le", "gbrp10le", "gray10le", "gray16le"),
]


@pytest.mark.parametrize("pix_fmt", FORMATS)
@pytest.mark.parametrize("full_range", [False, True])
def test_thumbnails_agree_with_the_formulas(pix_fmt: str, full_range: bool):
    """FFmpeg's scaler and vidup's conversion, which know nothing of each other: within 1.5 %, coarser colour 4.5 %."""
    rgb = torch.from_numpy(pattern(0, 64, 48).transpose(2, 0, 1) / np.float32(255))
    is_rgb, is_gray = pix_fmt.startswith("gb"), pix_fmt.startswith("gray")
    for matrix in (0,) if is_rgb else (1,) if is_gray else (1, 4, 5, 6, 7, 8, 9):
        meaning = Color(matrix, 2, 2, full_range or is_rgb)
        planes = color.from_rgb(rgb, pix_fmt, meaning)
        frame = av.VideoFrame(64, 48, pix_fmt)
        for plane, codes in zip(frame.planes, planes, strict=False):
            lines = np.frombuffer(plane, np.uint8).reshape(plane.height, -1)
            lines[:, : codes.shape[1] * codes.itemsize] = codes.view(np.uint8)
        frame.colorspace, frame.color_range = matrix, 2 if meaning.full_range else 1
        ((_, small),) = thumbnails([frame], meaning, 12, 16)
        seen = torch.from_numpy(small / np.float32(65535))
        meant = color.to_rgb(Frame(planes, pix_fmt, meaning))
        blocks = torch.nn.functional.avg_pool2d(meant.clamp(0, 1), 4)
        difference = (seen - blocks).square().mean().sqrt()
        assert difference < (0.045 if "41" in pix_fmt else 0.015), matrix
        assert (seen - blocks).mean((1, 2)).abs().max() < 0.015


@pytest.mark.parametrize("pix_fmt", ["rgb24", "bgr0", "pal8", "monob", "nv12", "uyvy422", "p010le", "rgb565le", "ya8"])
def test_thumbnails_of_what_is_not_planar(pix_fmt: str):
    picture = av.VideoFrame.from_ndarray(pattern(0, 64, 48)).reformat(format="rgb8" if pix_fmt == "pal8" else pix_fmt)
    frame = picture
    if pix_fmt == "pal8":
        frame = av.VideoFrame(64, 48, "pal8")
        np.frombuffer(frame.planes[0], np.uint8).reshape(48, -1)[:, :64] = picture.to_ndarray()
        codes = np.arange(256)
        parts = [(codes >> 5) * 255 // 7, (codes >> 2 & 7) * 255 // 7, (codes & 3) * 85, np.full(256, 255)]
        np.frombuffer(frame.planes[1], np.uint8)[:1024] = np.stack(parts, 1)[:, [2, 1, 0, 3]].astype(np.uint8).ravel()
    full = pix_fmt in ("monob", "ya8")
    ((_, small),) = thumbnails([frame], Color(6, 2, 2, full), 48, 64)
    wanted = picture.to_ndarray(format="rgb24").transpose(2, 0, 1).astype(np.float32) / 255
    assert np.abs(small / 65535 - wanted).mean() < 0.02


def sheet(count: int, draw: Callable[[int], np.ndarray]) -> np.ndarray:
    return np.stack([draw(index).transpose(2, 0, 1).astype(np.uint16) * 257 for index in range(count)])


def found(change: Callable[[np.ndarray], np.ndarray], draw: Callable[[int], np.ndarray]) -> list[tuple[str, bool]]:
    """The faults of 12 pictures that are the source's but for one change."""
    source = sheet(12 + 2 * REACH, draw)
    pictures = source[REACH:-REACH].copy()
    pictures[6] = change(pictures[6].astype(np.float32)).clip(0, 65535).astype(np.uint16)
    likeness = measure(pictures, source, np.ones(len(source), bool))
    return [tuple(fault) for fault in faults(likeness, 0, np.arange(12) / 25)]


def moving(index: int) -> np.ndarray:
    return pattern(3 * index, 64, 48)


def test_what_only_looks_unlike_is_a_warning():
    y = np.linspace(0, 1, 48, dtype=np.float32)[None, :, None]
    ((words, is_error),) = found(lambda picture: picture + 24000 * y, moving)
    assert not is_error and words.startswith("frame 6 (at 0.240000 s) looks unlike the source's (likeness 8")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda picture: 0 * picture, "frame 6 .*does not show"),
        (lambda picture: 0 * picture + 30000, "frame 6 .*does not show"),
        (lambda picture: 65535 - picture, "frame 6 .*does not show"),
        (lambda picture: picture[:, ::-1], "frame 6 .*does not show"),
        (lambda picture: picture.mean(0, keepdims=True) + 0 * picture, "frame 6 .*has lost the source's colour"),
        (lambda picture: picture[[2, 1, 0]], "frame 6 .*(does not show|has lost the source's colour)"),
    ],
)
def test_what_is_broken_is_an_error(change: Callable[[np.ndarray], np.ndarray], says: str):
    (first, *_) = found(change, moving)
    assert first[1] and re.search(says, first[0]), first


def test_a_picture_where_the_source_has_none():
    noise = np.random.default_rng(1).integers(0, 65535, (3, 12, 16)).repeat(4, 1).repeat(4, 2)
    for level in (0, 128):
        flat = np.full((48, 64, 3), level, np.uint8)
        (first, *_) = found(lambda picture: noise, lambda index, flat=flat: flat)
        assert first[1] and "does not show" in first[0]


def test_a_warning_loses_no_job(make_clip: Callable[..., Path], monkeypatch, caplog):
    """A picture that looks unlike is delivered, and named with its time and likeness."""
    source = make_clip(times=TIMES[:12], sound=False)

    def lighter(frames: Iterable[Frame]) -> Iterator[Frame]:
        for frame in frames:
            luma = frame.planes[0].astype(np.float32)
            luma += np.linspace(0, 60, len(luma), dtype=np.float32)[:, None]
            planes = (luma.clip(16, 235).astype(np.uint8), *frame.planes[1:])
            yield replace(frame, planes=planes) if frame.pts == 5 * 512 else frame

    upscaled(monkeypatch, lighter)
    with caplog.at_level(logging.WARNING):
        output = vidup.upscale(source, source.with_name("output.mp4"), FAST).output
    assert re.search(r"frame 5 .at 0.200000 s. looks unlike the source's .likeness 8\d.\d %.", caplog.text)
    assert vidup.verify(source, output).least_likeness < 0.9
