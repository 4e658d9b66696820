"""From a picture to the small one that a viewer has: reduced by 4, and compressed, noisy, scaled as footage is."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vidup.engines.detail import FACTOR, down
from vidup.errors import MediaError
from vidup.frame import Color, Frame
from vidup.media.quantiser import told
from vidup.media.reading import decode_stream

Rng = np.random.Generator
Pixels = NDArray[np.uint8]

CODECS: dict[str, tuple[str, tuple[int, int], dict[str, str]]] = {
    "libx264": ("crf", (17, 37), {"preset": "veryfast"}),
    "libx265": ("crf", (17, 36), {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:frame-threads=1"}),
    "libvpx-vp9": ("crf", (20, 52), {"b": "0", "deadline": "realtime", "cpu-used": "7"}),
    "mpeg2video": ("qmin qmax", (2, 14), {}),
    "mpeg4": ("qmin qmax", (2, 14), {}),
    "mjpeg": ("qmin qmax", (2, 12), {}),
}
"""For each encoder its keys of quality, their range from good to bad, and what else it is given."""
SHARES = (0.5, 0.12, 0.1, 0.1, 0.08, 0.1)
LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
MARGIN = 48
"""Pixels that a picture gives up on both axes, so that a camera can move over it."""


def reduced(pixels: Pixels, kernel: str = "bicubic") -> Pixels:
    """Reduce by 4.

    Args:
        pixels: (4h, 4w, 3) uint8.
        kernel: ``bicubic`` (torch's antialiased one), ``area`` or ``lanczos`` (Pillow's).

    Returns:
        (h, w, 3) uint8, rounded.
    """
    if kernel == "bicubic":
        small = down(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())
        return small.round().clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()
    resample = Image.Resampling.BOX if kernel == "area" else Image.Resampling.LANCZOS
    size = (pixels.shape[1] // FACTOR, pixels.shape[0] // FACTOR)
    return np.asarray(Image.fromarray(pixels).resize(size, resample))


def drawn_kernel(rng: Rng) -> str:
    """A kernel of `reduced`."""
    return str(rng.choice(["bicubic", "area", "lanczos"], p=[0.6, 0.2, 0.2]))


def degraded(rng: Rng, pixels: Pixels) -> tuple[Pixels, float]:
    """A random reduction, now and then with a little noise or JPEG compression: (4h, 4w, 3) to (h, w, 3), uint8.

    Returns:
        The picture, and its `distance` from what it would be without noise and compression.
    """
    clean = small = reduced(pixels, drawn_kernel(rng))
    if rng.random() < 0.12:
        small = _noisy(rng, small, rng.uniform(0.3, 2.5))
    if rng.random() < 0.15:
        small = _as_jpeg(small, int(rng.integers(65, 97)))
    return small, distance(small, clean)


def distance(one: Pixels, other: Pixels) -> float:
    """Root mean square difference of two pictures' luma (BT.709), in codes."""
    return float(np.sqrt(np.mean(((one.astype(np.float32) - other) @ LUMA) ** 2)))


@dataclass(frozen=True)
class Footage:
    """One frame of a clip, uint8 (h, w, 3) each, and where in a larger picture it was taken."""

    frame: Pixels
    clean: Pixels
    """What it would be without noise and compression."""
    place: tuple[int, int]
    """Row and column at which it begins, in the pixels of the larger picture."""
    step: float
    """Of the encoder's quantiser, in codes; 0 where nothing was encoded."""


def as_footage(rng: Rng, pixels: Pixels) -> Footage:
    """One frame of a short clip for which a camera moves over the picture: reduced, noisy, compressed.

    Args:
        pixels: (4h, 4w, 3) uint8, sides above `MARGIN` by 64 or more.
    """
    count = int(rng.integers(2, 8))
    height, width = ((side - MARGIN) // (2 * FACTOR) * (2 * FACTOR) for side in pixels.shape[:2])
    speed = rng.normal(0, 3, 2) * (rng.random() < 0.75)
    start = rng.uniform(0, MARGIN, 2)
    places = [np.clip(start + speed * i, 0, MARGIN).astype(int) for i in range(count)]
    kernel = drawn_kernel(rng)
    clean = [reduced(np.ascontiguousarray(pixels[y : y + height, x : x + width]), kernel) for y, x in places]
    made, step = clean, 0.0
    if rng.random() < 0.12:  # scaled twice on its way
        made = [_rescaled(frame, size) for size in [rng.uniform(0.7, 1.6)] for frame in made]
    if rng.random() < 0.35:
        sigma, coarse = 10 * rng.random() ** 2 + 0.3, rng.random() < 0.5
        made = [_noisy(rng, frame, sigma, coarse) for frame in made]
    if rng.random() < 0.85:
        name = str(rng.choice(list(CODECS), p=SHARES))
        if name == "libx265" and max(height, width) < 64 * FACTOR:
            name = "libx264"  # x265 spoils memory with smaller ones
        good, bad = CODECS[name][1]
        made, step = compressed(made, name, round(good + rng.random() ** 0.8 * (bad - good)))
    last = int(rng.integers(len(made)))
    return Footage(made[last], clean[last], (int(places[last][0]), int(places[last][1])), step)


def compressed(frames: list[Pixels], name: str, quality: int) -> tuple[list[Pixels], float]:
    """Frames through an encoder and back, in yuv420p, converted as a job does: FFmpeg's scaler would add a code.

    Args:
        frames: uint8 (h, w, 3) of even sides.
        name: a key of `CODECS`.
        quality: such as its range there has.

    Returns:
        As many frames, and the mean step of the quantiser in codes.
    """
    key, _, options = CODECS[name]
    stream = io.BytesIO()
    with av.open(stream, "w", format="matroska") as container:
        video = container.add_stream(name, rate=25, options=options | dict.fromkeys(key.split(), str(quality)))
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "yuvj420p" if name == "mjpeg" else "yuv420p"
        video.time_base = Fraction(1, 25)
        video.thread_count = 1
        tags = Color(1, full_range=name == "mjpeg")
        for index, frame in enumerate(frames):
            planes = Frame.from_rgb(frame, video.pix_fmt, tags, pts=index, time_base=Fraction(1, 25))
            container.mux(video.encode(planes.to_av()))
        container.mux(video.encode())
    stream.seek(0)
    with av.open(stream) as container:
        decoded = list(decode_stream(container, container.streams.video[0], _fail, tells=True))
    step = float(np.mean([told(frame) or 0.0 for frame in decoded]))
    return [replace(Frame.from_av(frame), color=tags).rgb().astype(np.uint8) for frame in decoded], step


def _fail(what: str) -> None:
    raise MediaError(f"what was just encoded {what}")


def _noisy(rng: Rng, small: Pixels, sigma: float, coarse: bool = False) -> Pixels:
    """With Gaussian noise of `sigma` codes; `coarse` as film grain is: wider than a pixel, alike in all channels."""
    noise = rng.standard_normal(small.shape).astype(np.float32)
    if coarse:
        grain = noise[..., :1]
        grain = grain + np.roll(grain, 1, 0) * 0.6 + np.roll(grain, 1, 1) * 0.6
        noise = 0.9 * grain / grain.std() + 0.4 * noise
    return np.clip(np.round(small + sigma * noise), 0, 255).astype(np.uint8)


def _rescaled(small: Pixels, factor: float) -> Pixels:
    image = Image.fromarray(small)
    between = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    return np.asarray(between.resize(image.size, Image.Resampling.BICUBIC))


def _as_jpeg(small: Pixels, quality: int) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(small).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))
