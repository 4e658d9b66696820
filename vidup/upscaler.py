"""Frames in, larger frames out: for editing tools, without files."""

from __future__ import annotations

import gc
import logging
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch

from vidup import engines
from vidup.config import Runtime, Settings
from vidup.engines import Choice
from vidup.engines.memory import is_out_of_memory
from vidup.engines.planner import Planner
from vidup.engines.relay import Follower, Relay, Step
from vidup.errors import EngineError, MediaError
from vidup.frame import Color, Frame
from vidup.picture import color
from vidup.picture.resample import anchor, resize
from vidup.prefetch import batched, prefetch

if TYPE_CHECKING:
    from PIL.Image import Image

from vidup.picture.geometry import Turn, output_size

log = logging.getLogger(__name__)

_Read = tuple[Frame, torch.Tensor, Step | None]
"""A frame, its RGB, and how it comes about where pictures are carried."""

_HOST = torch.device("cpu")
_AHEAD = 8  # frames whose steps are planned before the engine needs them

MODES = {
    *("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"),
    *("I;16", "I;16L", "I;16B", "I;16N"),
}
"""Pillow's modes whose samples have a range that is known, so that they can be made RGB."""


class Upscaler:
    """Holds an engine, which is loaded on first use and serves any number of files.

    One thread at a time; compiled on CUDA always the same one, to which CUDA graphs belong.

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
        self._choices: dict[tuple[int, int], Choice] = {}
        self._number = self._pixels = 0
        self._span: tuple[int, int] | None = None
        self._size = (0, 0)
        self._carried: tuple[Follower, Relay] | None = None

    @cached_property
    def engine(self) -> engines.Engine:
        """The engine; it is loaded here.

        Raises:
            EngineError: the model, or a part of it, is not to be had, or the device is not there.
        """
        engine = engines.load(self.settings, self.runtime)
        if self._pixels:
            engine.expect(self._pixels)
        return engine

    @cached_property
    def planner(self) -> Planner:
        """What decides how much is done at once; the engine is loaded for it."""
        needs = engines.with_carried(self.engine.needs, self.settings, self.engine.scale)
        return Planner(needs, self.settings, self.runtime)

    def expect(self, pixels: int) -> None:
        """Say how many pixels are to come in all: where `compile` is auto, the model is compiled if that pays."""
        self._pixels = pixels
        if "engine" in self.__dict__:
            self.engine.expect(pixels)
            self.__dict__.pop("planner", None)

    @property
    def compiles(self) -> bool:
        """Whether the first clip will take the time that compiling the model takes."""
        return self.engine.needs.compiled

    def __enter__(self) -> Upscaler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the model and its memory go."""
        if "engine" in self.__dict__:
            self.engine.close()
            self.__dict__.pop("planner", None)
            del self.engine
            gc.collect()  # an engine's caches hold on to it in a circle
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def reset(self, number: int = 0, span: tuple[int, int] | None = None) -> None:
        """Begin anew, after a seek or with another file: load the engine if it is not, forget what was carried.

        Args:
            number: of the frame in its file that comes next.
            span: of a segment that another one follows, the numbers of its first frame and of the first that is the
                other's: what comes now goes over into that, which begins with what it sees of the last frames alone.

        Raises:
            EngineError: as `engine`.
        """
        _ = self.engine
        self._number, self._span, self._carried = number, span, None

    @property
    def computed(self) -> tuple[int, int]:
        """Pixels of the input that were computed since `reset`, halos counted, and that there were.

        (0, 0) where nothing is carried.
        """
        return (0, 0) if self._carried is None else (self._carried[1].computed, self._carried[1].total)

    def choose(self, height: int, width: int, choice: Choice | None = None) -> Choice:
        """How much is done at once for frames of this size: settled once, as given or as the planner finds best.

        Where memory ran out meanwhile, it is what that became.
        """
        size = height, width
        if choice is not None:
            self._choices[size] = choice
        elif size not in self._choices:
            self._choices[size] = self.planner.choose(*size)
        return self._choices[size]

    def frames(
        self,
        frames: Iterable[Frame],
        pix_fmt: str | None = None,
        tags: Color | None = None,
        turn: Turn | None = None,
    ) -> Iterator[Frame]:
        """Upscale frames, which all have one size, in order, each keeping its time.

        Args:
            frames: planar frames; their colour's matrix must be resolved (`vidup.color.resolve`).
            pix_fmt: the planar format of the result, in ffmpeg's name; that of each frame where not given.
            tags: matrix and range of the result; those of each frame where not given.
            turn: how the results are turned.

        Returns:
            As many frames with the same times; width and height are even.

        Raises:
            MediaError: a pixel format that cannot be converted.
            EngineError: the model failed, or the memory is too small for the smallest plan.
        """
        turn = turn or Turn()
        leaving: list[_Leaving] = []
        coming = iter(frames)
        first = next(coming, None)
        if first is None:
            return
        size = turn.size(*first.planes[0].shape)
        length = self.choose(*size).batch
        if size != self._size:
            self._size, self._carried = size, None
        with closing(self._read(chain([first], coming), turn)) as read:
            del first, coming
            last: torch.Tensor | None = None
            codes: tuple[torch.Tensor, ...] = ()
            for clip in batched(read, length):
                before, leaving = leaving, []
                for (frame, _, _), picture in zip(clip, self._pictures(clip), strict=True):
                    target, meaning = pix_fmt or frame.pix_fmt, tags or frame.color
                    if picture is last:  # an equal frame: its own copy, or to write into one would change the other
                        codes = tuple(plane.clone() for plane in codes)
                    else:
                        last, codes = picture, color.to_codes(self._sized(picture, size, even=True), target, meaning)
                    leaving.append(_Leaving(frame, target, meaning, codes))
                del picture, clip  # or a whole clip would be alive beside the next one
                # A GPU works on this clip while the one before it is fetched and given away.
                yield from (one.arrived() for one in before)
                if self.engine.device.type != "cuda":
                    yield from (one.arrived() for one in leaving)
                    leaving = []
        yield from (one.arrived() for one in leaving)

    def _read(self, frames: Iterable[Frame], turn: Turn) -> Generator[_Read, None, None]:
        """Each frame as RGB; where pictures are carried with its step, which is planned on the host, ahead."""
        if not (self.engine.invents and engines.carries(self.settings)):
            for frame in frames:
                yield frame, turn(color.to_rgb(frame, self.engine.device)), None
            return
        follower = self._begin()

        def followed() -> Iterator[_Read]:
            last: tuple[Frame, torch.Tensor] | None = None
            for frame in frames:
                rgb = last[1] if last is not None and frame.shows(last[0]) else turn(color.to_rgb(frame, _HOST))
                last = frame, rgb
                yield frame, rgb, follower(rgb)

        whole = False
        try:
            yield from prefetch(followed(), _AHEAD)
            whole = True
        finally:
            if not whole:  # steps are planned ahead of what was made: the two no longer stand at one frame
                self._carried = None

    def _begin(self) -> Follower:
        """What plans the steps of the frames that come now, and the relay that makes them, where none stands."""
        if self._carried is None:
            settings = self.settings
            follower = Follower(self._number, settings.trust, settings.refresh, self._span)
            relay = Relay(self._window, self.engine.scale, settings.anchor, settings.temporal == "steady")
            self._carried = follower, relay
        return self._carried[0]

    def _pictures(self, clip: list[_Read]) -> Iterator[torch.Tensor]:
        """The results of frames that follow each other, (3, scale * h, scale * w) each."""
        rgb = torch.stack([picture for _, picture, _ in clip]).to(self.engine.device)
        if self._carried is None:
            yield from self._enlarge(rgb, fill=True)
            return
        steps = [step for _, _, step in clip if step is not None]
        with torch.inference_mode(), engines.current(self.engine.device):
            yield from self._carried[1](rgb, steps)

    def image(self, image: Image) -> Image:
        """Upscale one Pillow image; transparency is enlarged by bicubic.

        Args:
            image: of a mode in `MODES`; 16 bits become 8.

        Returns:
            An image of mode RGB, or RGBA where the input has transparency.

        Raises:
            MediaError: another mode, such as F: of its samples it is not known what is white.
        """
        from PIL import Image as pillow

        if image.mode not in MODES:
            raise MediaError(f"image: of mode {image.mode}, whose white is not known; make it RGB, RGBA, L or I;16")
        if image.mode.startswith("I;16"):  # Pillow would clip all above 255 to white
            image = pillow.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
        transparent = "A" in image.getbands() or "transparency" in image.info
        source = image.convert("RGBA" if transparent else "RGB")
        pixels = torch.from_numpy(np.array(source)).permute(2, 0, 1).to(self.engine.device, torch.float32) / 255
        enlarged = self._sized(self._enlarge(pixels[None, :3])[0], pixels.shape[-2:], even=False)
        if transparent:
            alpha = resize(pixels[None, 3:], enlarged.shape[-2:])[0]
            enlarged = torch.cat([enlarged, alpha])
        codes = (enlarged * 255).round_().clamp_(0, 255).to(torch.uint8)
        return pillow.fromarray(codes.permute(1, 2, 0).cpu().numpy())

    def enlarge(self, rgb: torch.Tensor, even: bool = False) -> torch.Tensor:
        """Upscale pictures that are tensors already.

        Args:
            rgb: float32 (T, 3, h, w), nominally in [0, 1]; any device.
            even: make the sides even, as those of video.

        Returns:
            float32 (T, 3, H, W) on the engine's device.
        """
        return self._sized(self._enlarge(rgb.to(self.engine.device)), rgb.shape[-2:], even)

    def _enlarge(self, rgb: torch.Tensor, fill: bool = False) -> torch.Tensor:
        """Pictures of any number, each alone; with `fill` each call of the engine has as many as any other."""
        return self._window(rgb, engines.Place(height=rgb.shape[-2], width=rgb.shape[-1]), fill)

    def _window(self, rgb: torch.Tensor, place: engines.Place, fill: bool = False) -> torch.Tensor:
        """Windows of frames, all at one place, with what is done when memory runs out."""
        size = place.height, place.width
        while True:
            choice = self.choose(*size)
            try:
                with engines.current(self.engine.device):
                    clips = [
                        self._enlarge_clip(rgb[first : first + choice.batch], place, choice, fill)
                        for first in range(0, len(rgb), choice.batch)
                    ]
                return clips[0] if len(clips) == 1 else torch.cat(clips)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failed = str(error).splitlines()[0]
            # Outside of the handler, so that the traceback, which holds tensors, is gone.
            self._back_off(choice, *size, failed)

    def _back_off(self, before: Choice, height: int, width: int, failed: str) -> None:
        choice = self.planner.smaller(before, height, width)
        if choice is None:
            raise EngineError(
                f"memory ran out with one tile of {before.tile or max(height, width)} pixels at a time ({failed});"
                f" take a smaller model,{'' if self.runtime.offload else ' --offload,'} or another --device"
            )
        self.engine.close()
        self.choose(height, width, choice)
        gc.collect()
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning(
            "memory ran out: from here on %d at a time, %s%s",
            choice.batch,
            f"in tiles of {choice.tile}" if choice.tile else "whole frames",
            ", and the decoder keeps less" if choice.keep < before.keep else "",
        )

    @torch.inference_mode()
    def _enlarge_clip(self, rgb: torch.Tensor, place: engines.Place, choice: Choice, fill: bool) -> torch.Tensor:
        count, clip = len(rgb), rgb
        if fill and count < choice.batch:  # a model gives the same bits for a picture only in batches of one shape
            clip = torch.cat([rgb, rgb[-1:].expand(choice.batch - count, -1, -1, -1)])
        enlarged = engines.enlarge(self.engine, clip, place, choice)[:count]
        return anchor(enlarged, rgb, self.settings.anchor) if self.engine.invents else enlarged

    @torch.inference_mode()
    def _sized(self, pictures: torch.Tensor, frame: tuple[int, ...], even: bool) -> torch.Tensor:
        """Results, (..., H, W), of frames of this (height, width), brought to the size that is asked for."""
        size = output_size(self.settings, self.engine.scale, frame[0], frame[1], even)
        if size == tuple(pictures.shape[-2:]):
            return pictures
        return resize(pictures[None], size)[0] if pictures.dim() == 3 else resize(pictures, size)


class _Leaving:
    """A frame whose planes are on their way from the device into pinned memory."""

    def __init__(self, frame: Frame, pix_fmt: str, color: Color, codes: tuple[torch.Tensor, ...]) -> None:
        self.frame, self.pix_fmt, self.color, self.codes = frame, pix_fmt, color, codes
        self.event: torch.cuda.Event | None = None
        if codes[0].device.type == "cuda":
            pinned = tuple(torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in codes)
            for target, source in zip(pinned, codes, strict=True):
                target.copy_(source, non_blocking=True)
            self.codes, self.event = pinned, torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record(torch.cuda.current_stream(codes[0].device))

    def arrived(self) -> Frame:
        """The frame with its planes, once they are there."""
        if self.event is not None:
            self.event.synchronize()
        # Copied, so that the pinned memory serves the next frame.
        planes = color.planes_of(self.codes)
        own = planes if self.event is None else tuple(plane.copy() for plane in planes)
        return replace(self.frame, planes=own, pix_fmt=self.pix_fmt, color=self.color)
