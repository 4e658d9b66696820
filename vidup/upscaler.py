"""Frames in, larger frames out: for editing tools, without files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch

from vidup import color, engines
from vidup.config import Runtime, Settings
from vidup.engines.resample import anchor, resize
from vidup.errors import ConfigError
from vidup.frame import Color, Frame
from vidup.prefetch import batched

if TYPE_CHECKING:
    from PIL.Image import Image


class Upscaler:
    """Holds an engine, which is loaded on first use and serves any number of files. One thread at a time.

    ::

        with Upscaler(Settings.preset("mini")) as upscaler:
            for frame in upscaler.frames(frames):
                ...

    Args:
        settings: what decides the picture; the encoder's settings have no effect here.
        runtime: device and batch.
    """

    def __init__(self, settings: Settings | None = None, runtime: Runtime | None = None) -> None:
        self.settings, self.runtime = settings or Settings(), runtime or Runtime()

    @cached_property
    def engine(self) -> engines.Engine:
        """The engine; it is loaded here.

        Raises:
            EngineError: the model, or a part of it, is not to be had, or the device is not there.
        """
        return engines.load(self.settings, self.runtime)

    def __enter__(self) -> Upscaler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the model and its memory go."""
        if "engine" in self.__dict__:
            del self.engine
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def reset(self) -> None:
        """Begin anew, after a seek or with another file: load the engine if it is not, forget earlier frames.

        No engine carries anything from frame to frame yet.

        Raises:
            EngineError: as `engine`.
        """
        _ = self.engine

    def frames(self, frames: Iterable[Frame], pix_fmt: str | None = None, tags: Color | None = None) -> Iterator[Frame]:
        """Upscale frames, which all have one size, in order, each keeping its time.

        Args:
            frames: planar frames; their colour's matrix must be resolved (`vidup.color.resolve`).
            pix_fmt: the planar format of the result, in ffmpeg's name; that of each frame where not given.
            tags: matrix and range of the result; those of each frame where not given.

        Returns:
            As many frames with the same times; width and height are even.

        Raises:
            MediaError: a pixel format that cannot be converted.
            EngineError: the model failed.
        """
        length, full = self.engine.clip_length, False
        for clip in batched(frames, length):
            # A model gives the same bits for a picture only in batches of one shape, so the last batch is filled up.
            filled = clip + clip[-1:] * (length - len(clip)) if full else clip
            full = True
            rgb = torch.stack([color.to_rgb(frame, self.engine.device) for frame in filled])
            times = tuple(frame.pts * frame.time_base for frame in filled)
            enlarged = self._enlarge(rgb, times, even=True)
            for frame, picture in zip(clip, enlarged, strict=False):
                target, meaning = pix_fmt or frame.pix_fmt, tags or frame.color
                planes = color.from_rgb(picture, target, meaning)
                yield replace(frame, planes=planes, pix_fmt=target, color=meaning)

    def image(self, image: Image) -> Image:
        """Upscale one Pillow image of any mode; transparency is enlarged by bicubic.

        Returns:
            An image of mode RGB, or RGBA where the input has transparency.
        """
        from PIL import Image as pillow

        if image.mode.startswith("I;16"):  # Pillow would clip all above 255 to white
            image = pillow.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
        transparent = "A" in image.getbands() or "transparency" in image.info
        source = image.convert("RGBA" if transparent else "RGB")
        pixels = torch.from_numpy(np.array(source)).permute(2, 0, 1).to(self.engine.device, torch.float32) / 255
        enlarged = self._enlarge(pixels[None, :3], (), even=False)[0]
        if transparent:
            alpha = resize(pixels[None, 3:], enlarged.shape[-2:])[0]
            enlarged = torch.cat([enlarged, alpha])
        codes = (enlarged * 255).round_().clamp_(0, 255).to(torch.uint8)
        return pillow.fromarray(codes.permute(1, 2, 0).cpu().numpy())

    def enlarge(self, rgb: torch.Tensor) -> torch.Tensor:
        """Upscale pictures that are tensors already.

        Args:
            rgb: float32 (T, 3, h, w), nominally in [0, 1]; any device.

        Returns:
            float32 (T, 3, H, W) on the engine's device.
        """
        return self._enlarge(rgb.to(self.engine.device), (), even=False)

    @torch.inference_mode()
    def _enlarge(self, rgb: torch.Tensor, times: tuple[object, ...], even: bool) -> torch.Tensor:
        height, width = rgb.shape[-2:]
        place = engines.Place(height=height, width=width, times=times)  # type: ignore[arg-type]
        enlarged = engines.enlarge(self.engine, rgb, place)
        if self.engine.invents:
            enlarged = anchor(enlarged, rgb, self.settings.anchor)
        size = output_size(self.settings, self.engine.scale, height, width, even)
        return enlarged if size == tuple(enlarged.shape[-2:]) else resize(enlarged, size)


def output_size(settings: Settings, engine_scale: float, height: int, width: int, even: bool) -> tuple[int, int]:
    """(height, width) of the result, in pixels.

    Args:
        even: round to even numbers, which video with subsampled colour needs.

    Raises:
        ConfigError: the result would be smaller than the input.
    """
    if settings.height is not None:
        if settings.height < height:
            raise ConfigError(f"height = {settings.height}: the input has {height} lines; vidup only enlarges")
        tall, wide = float(settings.height), width * settings.height / height
    else:
        scale = settings.scale if settings.scale is not None else engine_scale
        tall, wide = height * scale, width * scale
    if even:
        return max(2, 2 * round(tall / 2)), max(2, 2 * round(wide / 2))
    return round(tall), round(wide)
