"""The finished frames of an unfinished segment: kept beside its file where frames are slow, to be resumed from.

``NNNNN.planes`` has the planes of the frames, one after the other; ``NNNNN.made`` the number of valid frames, and what
is carried from the last. Planes after those are ignored, and overwritten.
"""

from __future__ import annotations

import logging
import os
import time
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from itertools import chain
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors.torch import load, save

from vidup.engines.relay import Carried
from vidup.errors import first_line
from vidup.frame import Color, Frame
from vidup.job.disk import open_plain, write_atomically
from vidup.job.plan import Job, frame_bytes
from vidup.job.store import Segment
from vidup.picture.geometry import Turn
from vidup.upscaler import Upscaler

log = logging.getLogger(__name__)

_SLOW = 1.0  # frames are kept where the first one takes so many seconds
_EVERY = 30.0  # seconds between two writes of what is carried
_PLANES, _MADE = ".planes", ".made"

_Form = list[list[int]]
"""The height, the width and the bytes of a sample of each plane."""


def kept(job: Job, segment: Segment) -> int:
    """How many finished frames of the output are kept of an unfinished segment."""
    found, pts = _read(segment.path), job.info.pts
    lead = 0 if segment.lead_in is None else bisect_right(pts, segment.begin) - bisect_right(pts, segment.lead_in)
    return 0 if found is None else max(0, found[0].frames - lead * job.frames_each)


def forget(segment: Path) -> None:
    """Delete the kept frames of a segment."""
    for ending in (_MADE, _PLANES):
        with suppress(OSError):
            segment.with_suffix(ending).unlink(missing_ok=True)


def upscaled(
    upscaler: Upscaler,
    frames: Iterable[Frame],
    segment: Path,
    begin: tuple[int, tuple[int, int] | None],
    wanted: tuple[str, Color, Turn],
) -> Generator[tuple[Frame, bool], None, None]:
    """The upscaled frames of a segment's file, and whether each is new; kept frames are read instead.

    `begin` are arguments of `Upscaler.reset`, `wanted` of `Upscaler.frames`.
    """
    carried, form = _read(segment) or (None, [])
    done, sources = carried.frames if carried else 0, list[Frame]()

    def remembered() -> Iterator[Frame]:
        for frame in frames:
            if len(sources) < done:
                sources.append(frame)
            yield frame

    upscaler.reset(*begin, carried)
    began = time.monotonic()
    with closing(upscaler.frames(remembered(), *wanted)) as results:
        first = next(results, None)
        if done:
            log.info("%s: %d frames of it are done already", segment, len(sources))
            yield from ((frame, False) for frame in _planes(segment, sources, form, wanted))
        if first is None:
            return
        is_slow = upscaler.engine.invents and time.monotonic() - began > _SLOW
        keeper = _Keeper(segment, upscaler, done, bool(done) or is_slow)
        try:
            for frame in chain([first], results):
                keeper.add(frame)
                yield frame, True
        except BaseException:
            keeper.save()
            raise
        finally:
            keeper.close()


class _Keeper:
    """Writes finished frames if that is worth it, until an error such as a full disk, which is only logged."""

    def __init__(self, segment: Path, upscaler: Upscaler, done: int, worth: bool) -> None:
        self._segment, self._upscaler, self._count, self._done = segment, upscaler, done, done
        self._file: BinaryIO | None = None
        self._form: _Form = []
        self._taken: Carried | None = None  # what is to be written once all its frames have been added
        self._written, self._is_off = time.monotonic(), not worth

    def add(self, frame: Frame) -> None:
        """Write the planes of a finished frame."""
        if self._is_off:
            return
        self._form = [[*plane.shape, plane.itemsize] for plane in frame.planes]
        try:
            if self._file is None:
                self._file = open_plain(self._segment.with_suffix(_PLANES), "r+b" if self._done else "wb")
                self._file.seek(self._done * frame_bytes(frame))
            for plane in frame.planes:
                self._file.write(np.ascontiguousarray(plane).data)
            self._count += 1
            if self._taken is None and time.monotonic() - self._written > _EVERY:
                self._taken = self._carried()
            if self._taken is not None and self._taken.frames <= self._count:
                self._write(self._taken)
        except OSError as error:
            self._give_up(error)

    def save(self) -> None:
        """Make all added frames valid, if what is carried is that of the last one."""
        carried = None if self._is_off else self._carried()
        if carried is not None and carried.frames == self._count > self._done:
            try:
                self._write(carried)
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _carried(self) -> Carried | None:
        return self._upscaler.carried() if self._upscaler.computed[1] else Carried(self._count, {}, 0, 0)

    def _write(self, carried: Carried) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        counts = torch.tensor([carried.frames, carried.computed, carried.total])
        data = save({**carried.results, "counts": counts, "form": torch.tensor(self._form)})
        write_atomically(self._segment.with_suffix(_MADE), data)
        self._taken, self._written = None, time.monotonic()

    def _give_up(self, error: OSError) -> None:
        log.warning("%s: its finished frames cannot be kept: %s", self._segment, first_line(error))
        self._is_off = True
        self.close()
        forget(self._segment)


def _read(segment: Path) -> tuple[Carried, _Form] | None:
    """The state after the kept frames of a segment, and the form of their planes; None without, or if damaged."""
    path, planes = segment.with_suffix(_MADE), segment.with_suffix(_PLANES)
    if not path.is_file() or not planes.is_file():
        return None
    try:
        tensors = load(path.read_bytes())
        form: _Form = tensors.pop("form").tolist()
        count, computed, total = tensors.pop("counts").tolist()
        whole = planes.stat().st_size >= count * sum(map(prod, form))
    except Exception as error:  # the readers raise all kinds for a damaged file
        log.warning("%s: is damaged: its segment is recomputed: %s", path, first_line(error))
        return None
    return (Carried(count, tensors, computed, total), form) if whole and count > 0 else None


def _planes(segment: Path, sources: Iterable[Frame], form: _Form, wanted: tuple[str, Color, Turn]) -> Iterator[Frame]:
    """The kept frames, each with the time of its source."""
    with open_plain(segment.with_suffix(_PLANES), "rb") as file:
        for source in sources:
            planes = tuple(
                np.frombuffer(file.read(height * width * size), f"u{size}").reshape(height, width)
                for height, width, size in form
            )
            yield replace(source, planes=planes, pix_fmt=wanted[0], color=wanted[1])
