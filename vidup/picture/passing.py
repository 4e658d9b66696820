"""A picture on its way through: what it is before as RGB, and how its result becomes what it was."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from vidup.errors import MediaError
from vidup.frame import Color, Frame, layout
from vidup.picture import color, kinds
from vidup.picture.geometry import Turn
from vidup.picture.resample import resize


@dataclass(frozen=True)
class Wanted:
    """What frames become; pictures of other kinds stay what they are."""

    pix_fmt: str | None = None
    """The planar format, in ffmpeg's name; that of each frame where not given."""
    tags: Color | None = None
    """Matrix and range; those of each frame where not given."""
    turn: Turn = field(default_factory=Turn)


class Leaving(Protocol):
    """A result on its way from the device."""

    def arrived(self) -> Any:
        """The result, once it is there."""

    def again(self, picture: Passing) -> Leaving:
        """The same result for another picture: its own copy, or to write into one would change the other."""


class Passing(Protocol):
    """A picture on its way."""

    even: bool
    """Whether the sides of its result are to be even, as those of video."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as it is upscaled."""

    def shows(self, other: Any) -> bool:
        """Whether it is the same picture as another one of its kind."""

    def rgb(self, device: torch.device) -> torch.Tensor:
        """float32 (3, h, w), nominally in [0, 1]."""

    def leave(self, rgb: torch.Tensor) -> Leaving:
        """Take its result, float32 (3, H, W) on its device."""


def passing(picture: Any, wanted: Wanted) -> Passing:
    """A picture that comes.

    Raises:
        MediaError: it is of no kind that is known here, or holds what cannot be.
    """
    if isinstance(picture, Frame):
        return PassingFrame(picture, wanted)
    taken = kinds.take(picture)
    if len(taken.rgb) != 1:
        raise MediaError(f"picture: {len(taken.rgb)} pictures in one tensor: give each by itself")
    return PassingOther(taken)


class PassingFrame:
    """A frame; its transparency is enlarged by bicubic."""

    even = True

    def __init__(self, frame: Frame, wanted: Wanted) -> None:
        color.check_codes(frame)
        self.frame, self._turn = frame, wanted.turn
        self.pix_fmt, tags = wanted.pix_fmt or frame.pix_fmt, wanted.tags or frame.color
        kind = layout(self.pix_fmt)
        if kind is not None and kind.family == "gbr" and tags.matrix != color.RGB:
            tags = replace(tags, matrix=color.RGB)  # whatever the planes were: these have none
        self.tags = tags
        color.check_target(self.pix_fmt, tags)

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.frame.planes[0].shape
        return self._turn.size(height, width)

    def shows(self, other: Any) -> bool:
        return isinstance(other, PassingFrame) and self.frame.shows(other.frame)

    def rgb(self, device: torch.device) -> torch.Tensor:
        return self._turn(color.to_rgb(self.frame, device))

    def leave(self, rgb: torch.Tensor) -> Leaving:
        alpha = color.alpha_of(self.frame, rgb.device)
        if alpha is not None:
            alpha = resize(self._turn(alpha)[None], rgb.shape[-2:])[0]
        return _LeavingFrame(self, color.to_codes(rgb, self.pix_fmt, self.tags, alpha))


class _LeavingFrame:
    """Planes on their way from the device into pinned memory."""

    def __init__(self, picture: PassingFrame, codes: tuple[torch.Tensor, ...]) -> None:
        self.picture, self.codes, self.source = picture, codes, codes
        self.event: torch.cuda.Event | None = None
        if codes[0].device.type == "cuda":
            pinned = tuple(torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in codes)
            for target, source in zip(pinned, codes, strict=True):
                target.copy_(source, non_blocking=True)
            self.codes, self.event = pinned, torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record(torch.cuda.current_stream(codes[0].device))

    def again(self, picture: Passing) -> Leaving:
        assert isinstance(picture, PassingFrame)
        return _LeavingFrame(picture, tuple(plane.clone() for plane in self.source))

    def arrived(self) -> Frame:
        if self.event is not None:
            self.event.synchronize()
        # Copied, so that the pinned memory serves the next frame.
        planes = color.planes_of(self.codes)
        own = planes if self.event is None else tuple(plane.copy() for plane in planes)
        return replace(self.picture.frame, planes=own, pix_fmt=self.picture.pix_fmt, color=self.picture.tags)


class PassingOther:
    """A picture of another library; its transparency is enlarged by bicubic."""

    even = False

    def __init__(self, taken: kinds.Taken) -> None:
        self.taken = taken

    @property
    def size(self) -> tuple[int, int]:
        return self.taken.rgb.shape[-2], self.taken.rgb.shape[-1]

    def shows(self, other: Any) -> bool:
        return isinstance(other, PassingOther) and self.size == other.size and self.taken.shows(other.taken)

    def rgb(self, device: torch.device) -> torch.Tensor:
        return self.taken.rgb[0].to(device)

    def leave(self, rgb: torch.Tensor) -> Leaving:
        return _LeavingOther(self.taken, rgb)


class _LeavingOther:
    """A result that is brought back when it is taken."""

    def __init__(self, taken: kinds.Taken, rgb: torch.Tensor) -> None:
        self.taken, self.rgb = taken, rgb

    def again(self, picture: Passing) -> Leaving:
        assert isinstance(picture, PassingOther)
        return _LeavingOther(picture.taken, self.rgb)

    def arrived(self) -> Any:
        return give_back(self.taken, self.rgb[None])


def give_back(taken: kinds.Taken, rgb: torch.Tensor) -> Any:
    """Results, (T, 3, H, W), as what was given."""
    if taken.alpha is None:
        return taken.back(rgb, None)
    return taken.back(rgb, resize(taken.alpha.to(rgb.device), rgb.shape[-2:]).clamp_(0, 1))
