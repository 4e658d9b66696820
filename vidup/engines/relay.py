"""Frame after frame, the state: results carried along the motion, so that only what is new is computed.

How a frame comes about is decided on the host from the low-resolution frames alone (`Follower`), ahead in a thread of
its own; `Relay` holds the results that are carried: the last one, and one that is kept from before a cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch.nn import functional

from vidup.engines import LEAD_IN, Place, anchoring, flow
from vidup.picture import footage, resample, temporal
from vidup.picture.temporal import CELL, CUT, Box, Motion

HALO = 8
"""Low-resolution pixels around a window that are computed with it and not used."""

_AROUND = 32  # low-resolution pixels around what changed, from where something may have come
_KEPT = 12  # frames for which the picture from before a cut is kept: a flash is over by then
_BACK = 0.5  # mean trust from which it is taken again
_WHOLE = 0.7  # of a frame: where windows would take more, all of it is computed
_FRESH = 0.3  # weight of what is computed anew where a cell is refreshed
_BESIDE = 0.2  # and where it was computed for what is beside it
_STEADY = 0.9  # weight of what is carried where every frame is computed
_FEATHER = 2  # low-resolution pixels over which a window fades into what is around it
_ROUNDS = 2  # of the anchor on what was carried, which was anchored before


@dataclass(frozen=True)
class Decision:
    """How one frame comes about."""

    motion: Motion | None
    """From the source of what is carried; None where nothing is: the whole frame is computed."""
    kept: bool = False
    """What is carried is the picture from before the last cut."""
    equal: bool = False
    """The frame is the one before: so is its result."""
    keep: bool = False
    """A cut: the result before it is kept for a while."""
    boxes: tuple[Box, ...] = ()
    """What is computed, in low-resolution pixels with the halo: top, left, bottom, right."""
    fresh: torch.Tensor | None = None
    """bool, (rows, columns): the cells whose turn it is to be refreshed."""
    opens: bool = False
    """The segment that comes after this one is led in from here: all of the frame is computed."""
    fade: float = 0.0
    """How far the picture has gone over into that of the segment that comes after this one."""
    quantiser: float = 0.0
    """The quantiser step of the frame, see `Place.quantisers`."""
    known: footage.Known | None = None
    """What the anchor needs of the frame, where that was estimated ahead."""

    def windows(self, height: int, width: int, steady: bool = False) -> tuple[Box, ...]:
        """What is computed of a frame of this size, in pixels with the halo; with `steady` all, if it is not equal."""
        whole = self.opens or (not self.equal and (self.motion is None or steady))
        return ((0, 0, height, width),) if whole else self.boxes


class Follower:
    """Decides how frames that follow each other come about, from what is in them alone; runs on the host, ahead.

    Args:
        number: of the first frame in its file, on which the turns of refreshing depend.
        tolerance: see `temporal.judge`.
        refresh: frames within which all of a picture has its turn to be refreshed; 0: never.
        span: numbers of the first frame of the segment, and of the first of the one that comes after it.
        knows: what the anchor needs of a frame is estimated here, too.
    """

    def __init__(
        self, number: int, tolerance: float, refresh: int, span: tuple[int, int] | None = None, knows: bool = False
    ) -> None:
        self._number, self._tolerance, self._refresh, self._span = number, tolerance, refresh, span
        self._knows = knows
        self._frame: torch.Tensor | None = None
        self._kept: torch.Tensor | None = None
        self._age, self._last = 0, number - 1

    @torch.inference_mode()
    def __call__(self, frame: torch.Tensor, quantiser: float = 0.0) -> Decision:
        """How the next frame comes about.

        Args:
            frame: RGB in [0, 1] on the host, (3, h, w), of the size of all others; the same tensor again where a frame
                is equal to the one before.
            quantiser: see `Decision`.
        """
        number = self._number
        self._number += 1
        if frame is self._frame:
            decision = Decision(None, equal=True)
        else:
            decision = self._changed(frame, number)
            self._last = number
        known = footage.know(frame[None], [quantiser]) if self._knows and decision.motion is not None else None
        decision = replace(decision, quantiser=quantiser, known=known)
        if self._span is None:
            return decision
        begin, end = self._span
        first = max(begin, end - LEAD_IN)
        return replace(decision, opens=number == end - LEAD_IN, fade=max(0.0, (number + 1 - first) / (end - first)))

    def _changed(self, frame: torch.Tensor, number: int) -> Decision:
        before, self._frame = self._frame, frame
        self._age += 1
        if before is None:
            return Decision(None)
        motion, trust = self._from(before, frame)
        if trust >= CUT:
            return self._windows(motion, frame, number)
        if self._kept is not None and self._age <= _KEPT:
            motion, trust = self._from(self._kept, frame)
            if trust > _BACK:
                self._kept = None
                return self._windows(motion, frame, number, kept=True)
        self._kept, self._age = before, 0
        return Decision(None, keep=True)

    def _from(self, before: torch.Tensor, frame: torch.Tensor) -> tuple[Motion, float]:
        """How a frame follows from another; flows are found where something changed, and what is around it."""
        there, back = torch.zeros(2, 2, *frame.shape[-2:], dtype=torch.float32)
        codes = before * 255, frame * 255
        stood = temporal.error(*codes)
        box = temporal.changed(stood)
        if box is not None:
            top, left, bottom, right = box
            part = (
                slice(None),
                slice(max(0, top - _AROUND), bottom + _AROUND),
                slice(max(0, left - _AROUND), right + _AROUND),
            )
            there[part], back[part] = flow.both_ways(before[part], frame[part])
        return temporal.judge(*codes, stood, there, back, self._tolerance)

    def _windows(self, motion: Motion, frame: torch.Tensor, number: int, kept: bool = False) -> Decision:
        height, width = frame.shape[-2:]
        rows, columns = motion.cells.shape
        fresh = temporal.refreshed(rows, columns, number, self._refresh, self._last)
        boxes = tuple(_grown(box, height, width) for box in temporal.cover(motion.cells | fresh, HALO / CELL))
        if sum((bottom - top) * (right - left) for top, left, bottom, right in boxes) > _WHOLE * height * width:
            boxes = ((0, 0, height, width),)
        return Decision(motion, kept, boxes=boxes, fresh=fresh)


def _grown(box: Box, height: int, width: int) -> Box:
    """Cells as pixels, with the halo, inside the frame."""
    top, left, bottom, right = box
    return (
        max(0, top * CELL - HALO),
        max(0, left * CELL - HALO),
        min(height, bottom * CELL + HALO),
        min(width, right * CELL + HALO),
    )


_NAMES = ("last", "kept")


Fit = Callable[[Box, int, int], Box]
"""Grows a box of a frame of (height, width), such as `windows.fixed`."""


def fitted(boxes: Sequence[Box], height: int, width: int, fit: Fit | None) -> Sequence[Box]:
    """The window that is computed for each box of a frame; the whole frame where windows would cover most of it."""
    if fit is None:
        return boxes
    windows = [fit(box, height, width) for box in boxes]
    if sum((bottom - top) * (right - left) for top, left, bottom, right in {*windows}) > _WHOLE * height * width:
        return [(0, 0, height, width)] * len(boxes)
    return windows


class _Results:
    """What is carried: the last result, and the one from before the last cut; (3, H, W) each."""

    last: torch.Tensor | None = None
    kept: torch.Tensor | None = None


class Carried(NamedTuple):
    """All that is carried, on the host: what a stopped job goes on from."""

    frames: int
    """How many were made."""
    results: dict[str, torch.Tensor]
    computed: int
    total: int


class Relay:
    """Carries pictures from frame to frame. One thread at a time.

    Args:
        compute: makes the results of windows of frames, anchored: RGB (T, 3, h, w) and the place that all have, to
            (T, 3, scale * h, scale * w).
        scale: of the results.
        rounds: of the anchor.
        steady: every frame is computed, and what was carried is blended in.
        anchor: what holds a picture to its frame.
        home: where what is carried waits while the model works; the device of the frames where not given.
        fit: see `fitted`; what is computed around a box is not used.
    """

    def __init__(
        self,
        compute: Callable[[torch.Tensor, Place], torch.Tensor],
        scale: float,
        rounds: int,
        steady: bool = False,
        anchor: anchoring.Anchor = anchoring.anchor,
        home: torch.device | None = None,
        fit: Fit | None = None,
    ) -> None:
        self._compute, self._scale, self._steady = compute, scale, steady
        self._anchor, self._rounds, self._home, self._fit = anchor, min(rounds, _ROUNDS), home, fit
        self._own = _Results()
        self._next: _Results | None = None
        self.computed = self.total = 0
        """Low-resolution pixels that were computed, halos counted, and that there were."""
        self._count, self._settled = 0, True

    def carried(self) -> Carried | None:
        """What is carried now; None in the midst of a frame."""
        names = {f"{which}.{name}": getattr(one, name, None) for which, one in self._both() for name in _NAMES}
        results = {name: one.detach().to("cpu", copy=True) for name, one in names.items() if one is not None}
        return Carried(self._count, results, self.computed, self.total) if self._settled else None

    def restore(self, carried: Carried, device: torch.device) -> None:
        """Go on from what was carried once."""
        self._count, _, self.computed, self.total = carried
        if any(name.startswith("next.") for name in carried.results):
            self._next = _Results()
        for which, one in self._both():
            for name in _NAMES if one is not None else ():
                result = carried.results.get(f"{which}.{name}")
                setattr(one, name, None if result is None else result.to(self._home or device))

    def _both(self) -> tuple[tuple[str, _Results | None], ...]:
        return ("own", self._own), ("next", self._next)

    def remember(self) -> Callable[[], None]:
        """A function that makes all that is carried what it is now."""
        own, following, counts = copy(self._own), copy(self._next), (self.computed, self.total, self._count)

        def restore() -> None:
            self._own, self._next = copy(own), copy(following)
            self.computed, self.total, self._count = counts

        return restore

    def __call__(self, frames: torch.Tensor, decisions: Sequence[Decision]) -> Iterator[torch.Tensor]:
        """The results of frames that follow those before.

        What is computed does not depend on what is carried, so that it is computed for all of these frames at once.

        Args:
            frames: RGB (T, 3, h, w) on the engine's device.
            decisions: of each.

        Yields:
            (3, scale * h, scale * w) each.
        """
        fresh = self._computed(frames, decisions)
        for frame, decision, pieces in zip(frames, decisions, fresh, strict=True):
            self._settled = False
            self.total += frame.shape[-2] * frame.shape[-1]
            self._advance(self._own, frame, decision, pieces)
            if decision.opens:  # as the next segment begins, which knows nothing of what was before
                self._next = _Results()
                self._next.last = self._waiting(pieces[0][1])
            elif self._next is not None:
                self._advance(self._next, frame, decision, pieces)
            assert self._own.last is not None
            picture = self._own.last.to(frame.device)
            if decision.fade and self._next is not None and self._next.last is not None:
                picture = torch.lerp(picture, self._next.last.to(frame.device), decision.fade)
            self._count, self._settled = self._count + 1, True
            yield picture

    def _computed(self, frames: torch.Tensor, decisions: Sequence[Decision]) -> list[list[tuple[Box, torch.Tensor]]]:
        """Windows of one shape and place are computed together, whichever frame they are of."""
        height, width = frames.shape[-2:]
        pieces: list[list[tuple[Box, torch.Tensor]]] = [[] for _ in decisions]
        wanted: dict[Box, dict[int, list[Box]]] = {}
        for index, decision in enumerate(decisions):
            sought = decision.windows(height, width, self._steady)
            for box, window in zip(sought, fitted(sought, height, width, self._fit), strict=True):
                wanted.setdefault(window, {}).setdefault(index, []).append(box)
        for window, parts in wanted.items():
            top, left, bottom, right = window
            self.computed += (bottom - top) * (right - left) * len(parts)
            place = Place(top, left, height, width, tuple(decisions[index].quantiser for index in parts))
            results = self._compute(frames[[*parts], :, top:bottom, left:right], place)
            for (index, boxes), result in zip(parts.items(), results, strict=True):
                pieces[index] += [(box, self._part(result, window, box)) for box in boxes]
        return pieces

    def _part(self, result: torch.Tensor, window: Box, box: Box) -> torch.Tensor:
        """What a window's result shows of a box in it."""
        top, left = (round(side * self._scale) for side in window[:2])
        begins, ends = ([round(side * self._scale) for side in sides] for sides in (box[:2], box[2:]))
        return result[:, begins[0] - top : ends[0] - top, begins[1] - left : ends[1] - left]

    def _advance(
        self, results: _Results, frame: torch.Tensor, decision: Decision, pieces: list[tuple[Box, torch.Tensor]]
    ) -> None:
        if decision.equal:
            return
        source = results.kept if decision.kept else results.last
        if decision.keep:
            results.kept = results.last
        if decision.motion is None or source is None:  # none was kept, which is only known here: what there is is shown
            results.last = self._waiting(pieces[0][1]) if decision.motion is None else results.last
            return
        size = source.shape[-2:]
        carried = self._carried(source.to(frame.device), decision.motion)
        trust, fallback = functional.interpolate(
            torch.stack([decision.motion.trust, decision.motion.fallback])[:, None].to(frame.device),
            size,
            mode="bilinear",
            align_corners=False,
        )
        if self._steady:
            picture = torch.lerp(pieces[0][1], carried, _STEADY * trust)
        else:
            picture = self._patched(frame, decision, pieces, carried, trust, fallback)
        known = [decision.quantiser], decision.known
        results.last = self._waiting(self._anchor(picture[None], frame[None], self._rounds, *known)[0])

    def _waiting(self, result: torch.Tensor) -> torch.Tensor:
        return result if self._home is None else result.to(self._home)

    def _carried(self, source: torch.Tensor, motion: Motion) -> torch.Tensor:
        """The source along the motion, with the contrast that the frame has now."""
        size = (source.shape[-2], source.shape[-1])
        carried = temporal.warp(source, motion.flow.to(source.device))
        if motion.gain != 1:
            small = functional.interpolate(carried[None], tuple(motion.trust.shape), mode="area")[0]
            around = functional.interpolate(temporal.mean(small, 5)[None], size, mode="bilinear", align_corners=False)
            carried = torch.lerp(around[0], carried, motion.gain)
        return carried

    def _patched(
        self,
        frame: torch.Tensor,
        decision: Decision,
        pieces: list[tuple[Box, torch.Tensor]],
        carried: torch.Tensor,
        trust: torch.Tensor,
        fallback: torch.Tensor,
    ) -> torch.Tensor:
        """What is carried where it is trusted, what was computed elsewhere, and bicubic where neither is."""
        size = carried.shape[-2:]
        base = frame.clone() if frame.shape[-2:] == size else resample.resize(frame[None], size)[0]
        covered = frame.new_zeros(1, *frame.shape[-2:])
        for box, _ in pieces:
            covered[_inner(box, *frame.shape[-2:])] = 1
        weight = _feathered(covered, size)
        for (top, left, bottom, right), piece in pieces:
            rows = slice(round(top * self._scale), round(bottom * self._scale))
            columns = slice(round(left * self._scale), round(right * self._scale))
            base[:, rows, columns] = torch.lerp(base[:, rows, columns], piece, weight[:, rows, columns])
        trust = torch.lerp(fallback, (1 - _BESIDE) * trust, weight)
        if decision.fresh is not None and decision.fresh.any():
            turn = decision.fresh.to(frame).repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
            turn = turn[None, : frame.shape[-2], : frame.shape[-1]]
            trust = trust * (1 - _FRESH * _feathered(turn, size))
        return base.lerp_(carried, trust)


def _inner(box: Box, height: int, width: int) -> tuple[slice, slice, slice]:
    """A window without its halo, which it has not at the edges of the frame."""
    top, left, bottom, right = box
    return (
        slice(None),
        slice(top + HALO if top else 0, bottom - HALO if bottom < height else height),
        slice(left + HALO if left else 0, right - HALO if right < width else width),
    )


def _feathered(mask: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A mask, (1, h, w), enlarged to `size`, that falls to 0 inside the outer edges of what it covers."""
    eroded = -functional.max_pool2d(-mask[None], 2 * _FEATHER - 1, 1, _FEATHER - 1)[0]
    soft = temporal.mean(eroded, 2 * _FEATHER - 1)
    return functional.interpolate(soft[None], tuple(size), mode="bilinear", align_corners=False)[0]
