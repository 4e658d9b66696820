"""Renders the two sample clips, `film.mp4` and `game.mkv`, next to this file.

Every frame is drawn at 640x360 (from 1280x720 rays) and made four times smaller for the sample, so what a
good upscaler should find is known: `--truth FOLDER` writes it too. All is made here, from fixed seeds.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import ModuleType

import av
import film
import game
import numpy as np
from PIL import Image

WIDTH, HEIGHT, SCALE, SUPERSAMPLING = 640, 360, 4, 2
SOUND_RATE = 48_000
SCENES = {"film.mp4": (film, "aac"), "game.mkv": (game, "libopus")}


def main() -> None:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=here, help="folder for the samples")
    parser.add_argument("--truth", type=Path, metavar="FOLDER", help="also write the 640x360 originals there")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that render")
    options = parser.parse_args()
    for folder in filter(None, (options.output, options.truth)):
        folder.mkdir(parents=True, exist_ok=True)
    for name, (scene, audio_codec) in SCENES.items():
        with ProcessPoolExecutor(options.jobs) as pool:
            frames = list(pool.map(partial(truth_frame, scene.__name__), range(scene.FRAMES)))
        samples = scene.sound(SOUND_RATE)
        small = (WIDTH // SCALE, HEIGHT // SCALE)
        reduced = [np.asarray(Image.fromarray(f).resize(small, Image.Resampling.BICUBIC)) for f in frames]
        write_clip(options.output / name, reduced, scene, samples, audio_codec, crf=14)
        if options.truth:
            write_clip(options.truth / name, frames, scene, samples, audio_codec, crf=8)


def truth_frame(scene_name: str, index: int) -> np.ndarray:
    """One finished frame, uint8 `(360, 640, 3)`. The scene goes by name: modules do not pickle."""
    scene: ModuleType = {"film": film, "game": game}[scene_name]
    fine = scene.render(index, (WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING))
    picture = fine.reshape(HEIGHT, SUPERSAMPLING, WIDTH, SUPERSAMPLING, 3).mean((1, 3))
    if hasattr(scene, "grain"):
        picture = picture + scene.grain(index, (WIDTH, HEIGHT))
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def yuv420(rgb: np.ndarray) -> list[np.ndarray]:
    """uint8 RGB to 4:2:0 planes, chroma sited left, by ITU-R BT.709-6 (items 3.2 to 3.5), limited range."""
    r, g, b = np.moveaxis(rgb.astype(np.float64) / 255, -1, 0)
    luma = 0.2126 * r + 0.7152 * g + 0.0722 * b
    planes = [16 + 219 * luma]
    for chroma in ((b - luma) / 1.8556, (r - luma) / 1.5748):
        rows = (chroma[0::2] + chroma[1::2]) / 2
        padded = np.pad(rows, ((0, 0), (1, 1)), mode="edge")
        planes.append(128 + 224 * (padded[:, 0:-2:2] + 2 * padded[:, 1:-1:2] + padded[:, 2::2]) / 4)
    return [np.rint(plane).clip(0, 255).astype(np.uint8) for plane in planes]


def write_clip(
    path: Path, frames: list[np.ndarray], scene: ModuleType, sound: np.ndarray, audio_codec: str, crf: int
) -> None:
    """Encodes RGB frames and stereo sound."""
    height, width = frames[0].shape[:2]
    with av.open(f"file:{path}", "w", container_options={"fflags": "+bitexact"}) as container:
        # mbtree off and one thread: the same bytes on every run.
        options = {"crf": str(crf), "preset": "slow", "x264-params": "mbtree=0"}
        video = container.add_stream("libx264", rate=scene.RATE, options=options)
        context = video.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = video.time_base = Fraction(1, scene.RATE)
        context.max_b_frames, context.thread_count = 3, 1
        tag(context)
        audio = container.add_stream(audio_codec, rate=SOUND_RATE, layout="stereo", bit_rate=128_000)
        audio.codec_context.time_base = Fraction(1, SOUND_RATE)
        packets = [p for frame in (*video_frames(frames, scene.RATE), None) for p in video.encode(frame)]
        packets += [p for frame in (*audio_frames(sound), None) for p in audio.encode(frame)]
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)


def tag(target: av.VideoFrame | av.VideoCodecContext) -> None:
    """Says that the colours are BT.709 (1) in the limited range (1)."""
    target.color_range = target.colorspace = target.color_primaries = target.color_trc = 1


def video_frames(frames: list[np.ndarray], rate: int) -> Iterable[av.VideoFrame]:
    for index, rgb in enumerate(frames):
        flat = np.concatenate([plane.ravel() for plane in yuv420(rgb)]).reshape(-1, rgb.shape[1])
        frame = av.VideoFrame.from_ndarray(flat, format="yuv420p")
        frame.pts, frame.duration, frame.time_base = index, 1, Fraction(1, rate)
        tag(frame)
        yield frame


def audio_frames(sound: np.ndarray) -> Iterable[av.AudioFrame]:
    """One frame with all samples: the encoder cuts it into its own size."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout="stereo")
    frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, 0, Fraction(1, SOUND_RATE)
    yield frame


if __name__ == "__main__":
    main()
