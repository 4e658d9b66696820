"""Small files and folders, and ways to damage them: the material of `mutate`.

Clips, pictures, files of weights, model folders, and jobs that were stopped half-way. Every mutant follows from its
number and the seed alone.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

# name, format, video encoder, pixel format, its options, sound, subtitles
_CLIPS: list[tuple[str, str, str, str, dict[str, str], str, str]] = [
    ("h264.mp4", "mp4", "libx264", "yuv420p", {"preset": "ultrafast", "bf": "2"}, "aac", "mov_text"),
    ("faststart.mp4", "mp4", "libx264", "yuv420p", {"preset": "ultrafast"}, "aac", ""),
    ("fragments.mp4", "mp4", "libx264", "yuv420p", {"preset": "ultrafast", "bf": "2"}, "aac", ""),
    ("hevc.mp4", "mp4", "libx265", "yuv420p10le", {"preset": "ultrafast", "x265-params": "log-level=none"}, "", ""),
    ("av1.mp4", "mp4", "libsvtav1", "yuv420p", {"preset": "10"}, "", ""),
    ("prores.mov", "mov", "prores_ks", "yuv422p10le", {}, "pcm_s16le", ""),
    ("mjpeg.mov", "mov", "mjpeg", "yuvj420p", {}, "", ""),
    ("h264.mkv", "matroska", "libx264", "yuv420p", {"preset": "ultrafast", "bf": "2"}, "flac", "subrip"),
    ("ffv1.mkv", "matroska", "ffv1", "yuv420p", {"level": "3", "slices": "4"}, "pcm_s16le", ""),
    ("hevc.mkv", "matroska", "libx265", "yuv420p", {"preset": "ultrafast", "x265-params": "log-level=none"}, "", ""),
    ("vp9.webm", "webm", "libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}, "libopus", "webvtt"),
    ("mpeg4.avi", "avi", "mpeg4", "yuv420p", {}, "mp2", ""),
    ("mjpeg.avi", "avi", "mjpeg", "yuvj420p", {}, "pcm_s16le", ""),
    ("h264.ts", "mpegts", "libx264", "yuv420p", {"preset": "ultrafast", "bf": "2"}, "mp2", ""),
    ("mpeg2.ts", "mpegts", "mpeg2video", "yuv420p", {"bf": "2"}, "aac", ""),
    ("mpeg2.mpg", "mpeg", "mpeg2video", "yuv420p", {"bf": "2"}, "mp2", ""),
    ("h264.flv", "flv", "libx264", "yuv420p", {"preset": "ultrafast"}, "aac", ""),
    ("moving.gif", "gif", "gif", "rgb8", {}, "", ""),
    ("vp8.ogg", "ogg", "libvpx", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}, "flac", ""),
    ("ffv1.nut", "nut", "ffv1", "yuv420p", {}, "pcm_s16le", ""),
    ("wmv2.asf", "asf", "wmv2", "yuv420p", {}, "mp2", ""),
    ("moving.apng", "apng", "apng", "rgb24", {}, "", ""),
    ("raw.h264", "h264", "libx264", "yuv420p", {"preset": "ultrafast"}, "", ""),
]
_MUXER_OPTIONS = {"fragments.mp4": {"movflags": "frag_keyframe+empty_moov"}, "faststart.mp4": {"movflags": "faststart"}}
_SIZE, _FRAMES = (64, 32), 12  # x265 spoils the heap where a picture is 48 wide

# Values at which fields of sizes, counts and times go wrong.
_ODD_NUMBERS = [0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF]
_ODD_NUMBERS += [2**62, 2**63 - 1, 2**63, 2**64 - 1]
_TAG = re.compile(rb"[A-Za-z][A-Za-z0-9 ]{3}")  # box, chunk and codec names
_EBML = re.compile(  # elements of Matroska: those with long ids, which hold others, and some with short ones
    rb"\x1a\x45\xdf\xa3|\x18\x53\x80\x67|\x15\x49\xa9\x66|\x16\x54\xae\x6b|\x1f\x43\xb6\x75|\x11\x4d\x9b\x74"
)
_EBML_SHORT = re.compile(
    rb"[\xae\xe0\xe1\xd7\x83\x86\xb0\xba\xa3\xa0\xa1\xe7\x9b]|\x2a\xd7\xb1|\x44\x89|\x63\xa2|\x23\xe3\x83"
)


def make_clips(folder: Path, only: Iterable[str] = ()) -> list[Path]:
    """Write the clips that are damaged, each a few kB; those that the encoders at hand cannot write are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted, clips = set(only), []
    for name, kind, codec, pix_fmt, options, sound, texts in _CLIPS:
        if wanted and name not in wanted:
            continue
        path = folder / name
        if not path.exists():
            try:
                _write(path, kind, codec, pix_fmt, options, sound, texts)
            except (av.error.FFmpegError, ValueError) as error:
                print(f"{name} cannot be made: {error}", file=sys.stderr)
                path.unlink(missing_ok=True)
                continue
        clips.append(path)
    return clips


def _write(path: Path, kind: str, codec: str, pix_fmt: str, options: dict[str, str], sound: str, texts: str) -> None:
    width, height = _SIZE
    muxing = {"fflags": "+bitexact"} | _MUXER_OPTIONS.get(path.name, {})
    with av.open(str(path), "w", format=kind, container_options=muxing) as container:
        video = container.add_stream(codec, rate=25)
        context = video.codec_context
        context.width, context.height, context.pix_fmt, context.thread_count = width, height, pix_fmt, 1
        context.options = {"g": "5"} | options if codec.startswith(("lib", "mpeg", "wmv")) else options
        audio = container.add_stream(sound, rate=48000) if sound else None
        titles = container.add_mux_stream(texts) if texts in ("subrip", "webvtt") else None
        if kind in ("mp4", "mov", "matroska"):
            container.metadata["title"] = "A title, with \u00e4 in it"
            container.set_chapters(
                [
                    {"id": n, "start": 200 * n, "end": 200 * n + 200, "time_base": Fraction(1, 1000), "metadata": {}}
                    for n in range(2)
                ]
            )
        if kind == "matroska":
            container.add_attachment("note.txt", "text/plain", b"a file within")
        for packet in _encoded(video, audio):
            container.mux(packet)
        for index in range(3 if titles is not None else 0):
            packet = av.Packet(f"text {index}".encode())
            packet.stream, packet.time_base = titles, Fraction(1, 1000)
            packet.pts = packet.dts = 100 * index
            packet.duration = 90
            container.mux(packet)


def _encoded(video: Any, audio: Any) -> Iterator[Any]:
    width, height = _SIZE
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for index in range(_FRAMES):
        light = 128 + 80 * np.sin(x / 7 + index / 3) + 30 * np.cos(y / 5 - index / 4)
        picture = np.stack([light, 255 - light, light * (x > 4 * index)], -1).clip(0, 255).astype(np.uint8)
        frame = av.VideoFrame.from_ndarray(picture).reformat(format=video.codec_context.pix_fmt)
        frame.pts, frame.time_base = index, Fraction(1, 25)
        yield from video.encode(frame)
        if audio is not None and index == 0:
            yield from _sound(audio)
    yield from video.encode(None)


def _sound(audio: Any) -> Iterator[Any]:
    context = audio.codec_context
    context.open(strict=False)
    samples = (np.sin(np.arange(int(_FRAMES / 25 * 48000)) * 0.06) * 0.3).astype(np.float32)[None]
    resampler = av.AudioResampler(context.format, context.layout, 48000, context.frame_size or 1024)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        yield from audio.encode(part)
    yield from audio.encode(None)


def mutate(data: bytes, chance: random.Random, tables: bool = False) -> tuple[bytes, str]:
    """Damage a file in one to three ways; returns it, and what was done in words.

    Args:
        tables: it is JSON, or begins with it: mostly its values are changed.
    """
    told = []
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        change = _values if tables and chance.random() < 0.8 else chance.choice(_CHANGES)
        damaged = bytearray(data)
        change(damaged, chance)
        data = bytes(damaged)
        told.append(change.__name__.strip("_"))
    return data, "+".join(told)


def _place(data: bytearray, chance: random.Random) -> int:
    """Anywhere; in the first or the last kB as often as in all the rest."""
    edge = min(len(data), 1024)
    low, high = chance.choice([(0, edge), (len(data) - edge, len(data)), (0, len(data)), (0, len(data))])
    return chance.randrange(low, max(high, low + 1))


def _range(data: bytearray, chance: random.Random) -> tuple[int, int]:
    begin = _place(data, chance)
    return begin, min(len(data), begin + 1 + int(2 ** chance.uniform(0, 12)))


def _bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(int(2 ** chance.uniform(0, 6))):
        if data:
            data[_place(data, chance) % len(data)] ^= 1 << chance.randrange(8)


def _head_bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randrange(1, 9)):
        if data:
            data[chance.randrange(min(len(data), 1024))] ^= 1 << chance.randrange(8)


def _zeros(data: bytearray, chance: random.Random) -> None:
    begin, end = _range(data, chance)
    data[begin:end] = bytes([chance.choice([0, 255])]) * (end - begin)


def _noise(data: bytearray, chance: random.Random) -> None:
    begin, end = _range(data, chance)
    data[begin:end] = chance.randbytes(end - begin)


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[_place(data, chance) :]


def _doubled(data: bytearray, chance: random.Random) -> None:
    begin, end = _range(data, chance)
    data[begin:begin] = data[begin:end]


def _deleted(data: bytearray, chance: random.Random) -> None:
    begin, end = _range(data, chance)
    del data[begin:end]


def _swapped(data: bytearray, chance: random.Random) -> None:
    (a, b), (c, d) = sorted([_range(data, chance), _range(data, chance)])
    if b <= c:
        data[a:d] = data[c:d] + data[b:c] + data[a:b]


def _number(data: bytearray, chance: random.Random) -> None:
    """An odd number somewhere."""
    _put(data, _place(data, chance), chance.choice([1, 2, 4, 4, 8]), chance)


def _field(data: bytearray, chance: random.Random) -> None:
    """An odd number beside the name of a box or a chunk: its size, or the first of what it holds."""
    if names := [match.start() for match in _TAG.finditer(data)]:
        place = chance.choice(names[:200])
        _put(data, place + chance.choice([-4, -4, 4, 8, 12, 16, 20, 24]), chance.choice([4, 4, 4, 8]), chance)


def _element(data: bytearray, chance: random.Random) -> None:
    """An odd size, or an odd number, after the id of a Matroska element."""
    pattern = chance.choice([_EBML, _EBML_SHORT])
    if ids := [match.end() for match in pattern.finditer(data)]:
        place = chance.choice(ids[:300])
        if chance.random() < 0.5:
            sizes = [b"\x01\xff\xff\xff\xff\xff\xff\xff", b"\x01" + bytes(7), b"\x08\x7f\xff\xff\xff", b"\xff", b"\x80"]
            data[place : place + 1] = chance.choice(sizes)
        else:
            _put(data, place + 1, chance.choice([1, 2, 4, 8]), chance)


def _put(data: bytearray, place: int, size: int, chance: random.Random) -> None:
    number = chance.choice(_ODD_NUMBERS) & ((1 << 8 * size) - 1)
    if 0 <= place <= len(data) - size:
        data[place : place + size] = number.to_bytes(size, chance.choice(["big", "big", "little"]))


_CHANGES: list[Callable[[bytearray, random.Random], None]] = [
    *(_bits, _bits, _head_bits, _zeros, _noise, _cut, _doubled, _deleted, _swapped),
    *(_number, _number, _field, _field, _field, _element),
]

_ODD_VALUES: list[Any] = [
    None, True, 0, 1, -1, 2, 7, 0.5, -0.0, 10**6, 10**9, 2**31, 10**30, float("nan"), float("inf"), "", "x", "1", [],
    {}, [1], [None], ["x"] * 3, [0] * 1000, {"a": 1}, "\ud800", "../..",
]  # fmt: skip


def _values(data: bytearray, chance: random.Random) -> None:
    """An odd value somewhere in JSON, or a name that is not there; the header of safetensors is JSON, too."""
    size = int.from_bytes(data[:8], "little")
    begin, end = (8, 8 + size) if 0 < size <= len(data) - 8 else (0, len(data))
    try:
        table = json.loads(bytes(data[begin:end]))
    except (ValueError, RecursionError):
        return
    holder, key, value = None, None, table
    while isinstance(value, dict | list) and value and (holder is None or chance.random() < 0.6):
        holder, key = value, chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        value = holder[key]
    if holder is None or chance.random() < 0.05:
        table = chance.choice(_ODD_VALUES)
    elif chance.random() < 0.2:
        del holder[key]
    elif isinstance(value, int | float) and chance.random() < 0.4:
        holder[key] = value * chance.choice([2, 10, 1000, -1, 0.5])
    else:
        holder[key] = chance.choice(_ODD_VALUES)
    text = json.dumps(table).encode()
    if chance.random() < 0.03:
        text = b"[" * 4000
    data[:] = (struct.pack("<Q", len(text)) if begin else b"") + text + bytes(data[end:])


Kind = Literal["clip", "picture", "weights", "model", "job"]


def kind(source: Path) -> Kind:
    """What a file or folder of the material is."""
    if source.is_dir():
        return "model" if (source / "model_index.json").exists() else "job"
    if source.suffix in (".pth", ".safetensors"):
        return "weights"
    return "picture" if source.parent.name == "pictures" else "clip"


@dataclass(frozen=True)
class Mutant:
    """One thing that is to be upscaled, damaged."""

    source: Path
    file: str
    """Of a folder, the file that is damaged."""
    data: bytes
    change: str


def mutant(number: int, seed: int, sources: list[Path]) -> Mutant:
    """The mutant of a number: one of the sources in turn, damaged by chance."""
    chance = random.Random(f"{seed}/{number}")
    source = sources[number % len(sources)]
    if not source.is_dir():
        return Mutant(source, "", *mutate(source.read_bytes(), chance, kind(source) == "weights"))
    files = sorted(path for path in source.rglob("*") if path.is_file() and path.name not in ("in.mkv", "expected"))
    path = chance.choice([path for path in files if path.stat().st_size])
    name = path.relative_to(source).as_posix()
    if chance.random() < 0.05:
        return Mutant(source, name, b"", chance.choice(["gone", "a folder"]))
    return Mutant(source, name, *mutate(path.read_bytes(), chance, path.suffix in (".json", ".safetensors")))


def place(made: Mutant, target: Path) -> None:
    """Put a mutant where it is to be upscaled from."""
    if not made.source.is_dir():
        target.write_bytes(made.data)
        return
    shutil.copytree(made.source, target)
    (target / made.file).unlink()
    if made.change == "a folder":
        (target / made.file).mkdir()
    elif made.change != "gone":
        (target / made.file).write_bytes(made.data)


def make_pictures(folder: Path) -> list[Path]:
    """Write a still image of each kind that goes in, and of some that do not."""
    from PIL import Image, features

    folder = folder / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (18, 26, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    common: dict[str, Any] = {"exif": exif, "icc_profile": bytes(200)}
    kinds: list[tuple[str, str, str, dict[str, Any]]] = [
        *((f"{mode}.png", "PNG", mode, common) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *((f"{mode}.jpg", "JPEG", mode, {**common, "dpi": (72, 72)}) for mode in ("L", "RGB", "CMYK")),
        *((f"{mode}.webp", "WEBP", mode, common) for mode in ("RGB", "RGBA")),
        *((f"{way}.tif", "TIFF", "RGB", {"compression": way, "dpi": (72, 72)})
          for way in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
        ("gray16.tif", "TIFF", "I;16", {}), ("fax.tif", "TIFF", "1", {"compression": "group4"}),
        ("CMYK.tif", "TIFF", "CMYK", {"compression": "tiff_lzw"}), ("LAB.tif", "TIFF", "LAB", {}),
        ("RGB.bmp", "BMP", "RGB", {}), ("P.gif", "GIF", "P", {}), ("moves.png", "PNG", "RGB", {"save_all": True}),
        ("moves.webp", "WEBP", "RGB", {"save_all": True}), ("pages.tif", "TIFF", "RGB", {"save_all": True}),
        ("phone.jpg", "MPO", "RGB", {"save_all": True}), ("drawn.png", "EPS", "RGB", {}),
        *([("RGB.avif", "AVIF", "RGB", {})] if features.check("avif") else []),
    ]  # fmt: skip
    for name, form, mode, options in kinds:
        made = picture.convert(mode) if mode not in ("I;16", "LAB") else Image.new(mode, picture.size, 7000)
        if options.get("save_all"):
            options = {**options, "append_images": [picture.rotate(180)]}
        made.save(folder / name, form, **options)
    return sorted(folder.iterdir())


def make_models(folder: Path) -> list[Path]:
    """Write narrow models of random weights: two in the hub's layout, and files of weights where spandrel is there."""
    import torch
    from conftest import narrow_x2, narrow_x4

    made = []
    for name, save in (("x4", narrow_x4), ("x2", narrow_x2)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        if not (folder / name / "model_index.json").exists():
            save(folder / name)
        made.append(folder / name)
    try:
        from spandrel.architectures.Compact import Compact
    except ImportError:
        return made
    from safetensors.torch import save_file

    weights = Compact(num_feat=8, num_conv=2, upscale=2).state_dict()
    save_file(weights, folder / "m.safetensors")
    torch.save({"params": weights}, folder / "m.pth")
    torch.save(weights, folder / "old.pth", _use_new_zipfile_serialization=False)
    return [*made, *(folder / name for name in ("m.safetensors", "m.pth", "old.pth"))]


JOB: dict[str, Any] = {
    "model": "nearest", "scale": 2, "segment_frames": 4, "codec": "libx264", "encoder_options": {"preset": "ultrafast"},
}  # fmt: skip
"""Settings of the jobs."""


def make_jobs(folder: Path) -> list[Path]:
    """Write jobs that were stopped after two of three segments, beside what they have to give."""
    import vidup

    class Interrupted(Exception):  # what is upscaled is stored first, which Ctrl-C's own exception does not wait for
        pass

    def stopping(progress: vidup.Progress) -> None:
        if progress.frame >= 9:
            raise Interrupted

    made = []
    for clip in make_clips(folder / "clips", ["h264.mkv", "ffv1.mkv"]):
        home = folder / "jobs" / clip.stem
        home.mkdir(parents=True, exist_ok=True)
        made.append(home)
        if (home / "expected").exists():
            continue
        shutil.copy2(clip, home / "in.mkv")
        settings = vidup.Settings(**JOB)
        (home / "expected").write_text(pictures_of(vidup.upscale(home / "in.mkv", home / "whole.mkv", settings).output))
        (home / "whole.mkv").unlink()
        try:
            vidup.upscale(home / "in.mkv", home / "out.mkv", settings, on_progress=stopping)
        except Interrupted:
            assert len(list((home / "out.mkv.vidup").glob("*.seg"))) == 2
    return made


def pictures_of(path: Path) -> str:
    """A hash of all pictures and their times."""
    digest = hashlib.sha256()
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            digest.update(f"{frame.pts}".encode() + frame.to_ndarray().tobytes())
    return digest.hexdigest()
