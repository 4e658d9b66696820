"""A picture on its way through the upscaler: to RGB before, and its result back to the kind of the input."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vidup.errors import MediaError
from vidup.frame import Color, Frame, layout
from vidup.picture import color, interop
from vidup.picture.geometry import Turn
from vidup.picture.resample import resize


@dataclass(frozen=True)
class Wanted:
    """The format of the results of frames; results of other pictures have the format of the input."""

    pix_fmt: str | None = None
    """The planar format, by ffmpeg's name; None: that of each frame."""
    tags: Color | None = None
    """Matrix and range; None: those of each frame."""
    turn: Turn = field(default_factory=Turn)
    """How frames are turned before they are upscaled."""


def passing(picture: Any, wanted: Wanted) -> Passing:
    """Take a picture in.

    Raises:
        MediaError: it is of an unknown kind, or has impossible values.
    """
    if isinstance(picture, Frame):
        return PassingFrame(picture, wanted)
    taken = interop.take(picture)
    if len(taken.rgb) != 1:
        raise MediaError(f"picture: {len(taken.rgb)} pictures in one tensor: give each by itself")
    return PassingOther(taken)


class PassingFrame:
    """A frame; its transparency is enlarged by bicubic."""

    even = True
    """Whether the sides of its result have to be even, as those of video."""

    def __init__(self, frame: Frame, wanted: Wanted) -> None:
        color.check_codes(frame)
        self.frame, self._turn = frame, wanted.turn
        self.pix_fmt, tags = wanted.pix_fmt or frame.pix_fmt, wanted.tags or frame.color
        kind = layout(self.pix_fmt)
        if kind is not None and kind.family == "gbr" and tags.matrix != color.RGB:
            tags = replace(tags, matrix=color.RGB)
        self.tags, self.quantiser = tags, frame.quantiser
        color.check_target(self.pix_fmt, tags)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture that is upscaled."""
        height, width = self.frame.planes[0].shape
        return self._turn.size(height, width)

    def shows(self, other: Passing) -> bool:
        """Whether another one is the same picture."""
        return isinstance(other, PassingFrame) and self.frame.shows(other.frame)

    def rgb(self, device: torch.device) -> torch.Tensor:
        """float32 (3, h, w), nominally in [0, 1]."""
        return self._turn(color.to_rgb(self.frame, device))

    def leave(self, rgb: torch.Tensor) -> LeavingFrame:
        """Begin to convert its result, float32 (3, H, W) on its device."""
        alpha = color.alpha_of(self.frame, rgb.device)
        if alpha is not None:
            alpha = resize(self._turn(alpha)[None], rgb.shape[-2:])[0]
        return LeavingFrame(self, color.to_codes(rgb, self.pix_fmt, self.tags, alpha))


class LeavingFrame:
    """A result whose planes are being copied from the device to pinned memory."""

    def __init__(self, picture: PassingFrame, codes: tuple[torch.Tensor, ...]) -> None:
        self.picture, self.codes, self.source = picture, codes, codes
        self.event: torch.cuda.Event | None = None
        if codes[0].device.type == "cuda":
            pinned = tuple(torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in codes)
            for target, source in zip(pinned, codes, strict=True):
                target.copy_(source, non_blocking=True)
            self.codes, self.event = pinned, torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record(torch.cuda.current_stream(codes[0].device))

    def again(self, picture: Passing) -> LeavingFrame:
        """A copy of the result, for another picture."""
        assert isinstance(picture, PassingFrame)
        return LeavingFrame(picture, tuple(plane.clone() for plane in self.source))

    def arrived(self) -> Any:
        """The result, a frame; waits for the copy."""
        if self.event is not None:
            self.event.synchronize()
        # Copied, so that the pinned memory can be used for the next frame.
        planes = color.planes_of(self.codes)
        own = planes if self.event is None else tuple(plane.copy() for plane in planes)
        frame, form = self.picture.frame, (self.picture.pix_fmt, self.picture.tags)
        return replace(frame, planes=own, pix_fmt=form[0], color=form[1], quantiser=None)


class PassingOther:
    """A picture of another library, as `PassingFrame`."""

    even, quantiser = False, None

    def __init__(self, taken: interop.Taken) -> None:
        self.taken = taken

    @property
    def size(self) -> tuple[int, int]:
        return self.taken.rgb.shape[-2], self.taken.rgb.shape[-1]

    def shows(self, other: Passing) -> bool:
        return isinstance(other, PassingOther) and self.size == other.size and self.taken.shows(other.taken)

    def rgb(self, device: torch.device) -> torch.Tensor:
        return self.taken.rgb[0].to(device)

    def leave(self, rgb: torch.Tensor) -> LeavingOther:
        return LeavingOther(self.taken, rgb)


@dataclass(frozen=True)
class LeavingOther:
    """A result that is converted by `arrived`."""

    taken: interop.Taken
    rgb: torch.Tensor

    def again(self, picture: Passing) -> LeavingOther:
        assert isinstance(picture, PassingOther)
        return LeavingOther(picture.taken, self.rgb)

    def arrived(self) -> Any:
        return give_back(self.taken, self.rgb[None])


Passing = PassingFrame | PassingOther
"""A picture on its way through the upscaler."""

Leaving = LeavingFrame | LeavingOther
"""A result on its way out."""


def give_back(taken: interop.Taken, rgb: torch.Tensor) -> Any:
    """Convert results, (T, 3, H, W), to the kind of the input, with its transparency."""
    if taken.alpha is None:
        return taken.back(rgb, None)
    return taken.back(rgb, resize(taken.alpha.to(rgb.device), rgb.shape[-2:]).clamp_(0, 1))
