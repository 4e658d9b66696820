"""The choice of batch, tiles and what the VAE keeps, so that a frame fits the device's memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vidup.config import Runtime, Settings
from vidup.engines import Choice, Needs, Place, windows
from vidup.engines.memory import KEPT, keeps_freed, memory_limit, reserved
from vidup.errors import EngineError
from vidup.picture import tiling

log = logging.getLogger(__name__)

LADDER = (4096, 3072, 2048, 1536, 1024, 768, 640, 512, 448, 384, 320, 256, 192, 160, 128)
"""Sides of tiles in input pixels, from which the largest that fits is taken."""
SMALLEST = 128

_BATCHES = (8, 4, 2, 1)


@dataclass(frozen=True)
class Planner:
    """Decides how much is done at once. Every answer follows from the needs, the settings and the arguments alone.

    A tile or a batch that the settings or the runtime give is kept.
    """

    needs: Needs
    settings: Settings
    runtime: Runtime

    @property
    def limit(self) -> int:
        """Bytes of the device that may be taken."""
        return memory_limit(self.runtime, self.needs.device)

    def choose(self, height: int, width: int) -> Choice:
        """The whole frame, or else the largest tiles, with the largest batch that fits, decoded as fast as fits."""
        limit = self.limit
        for choice in self._choices(height, width):
            if self.memory(choice, height, width) <= limit:
                return choice
        log.warning(
            "%dx%d takes about %.1f GB at the least; %.1f GB are what it may take",
            width, height, self.memory(choice, height, width) / 1e9, limit / 1e9,
        )  # fmt: skip
        return choice

    def smaller(self, choice: Choice, height: int, width: int) -> Choice | None:
        """The next choice that takes less memory: half the batch, then less kept or smaller tiles; None at the end."""
        if choice.batch > 1:
            return replace(choice, batch=choice.batch // 2)
        now = self.memory(choice, height, width)
        for other in self._choices(height, width):
            less = replace(other, batch=1)
            larger = choice.tile and (less.tile == 0 or less.tile > choice.tile)
            if not larger and self.memory(less, height, width) < now:
                return less
        return None

    def back_off(self, before: Choice, height: int, width: int, failed: str) -> Choice:
        """The next smaller choice where memory ran out, with a line in the log.

        Args:
            failed: the words in which it did.

        Raises:
            EngineError: there is none.
        """
        choice = self.smaller(before, height, width)
        if choice is None:
            raise EngineError(
                f"memory ran out with one tile of {before.tile or max(height, width)} pixels at a time ({failed});"
                f" take a smaller model,{'' if self.runtime.offload else ' --offload,'} or another --device"
            )
        log.warning(
            "memory ran out: from here on %d at a time, %s%s",
            choice.batch,
            f"in tiles of {choice.tile}" if choice.tile else "whole frames",
            ", and the VAE keeps less" if choice.keep < before.keep else "",
        )
        return choice

    def allows(self, choice: Choice, height: int, width: int) -> bool:
        """Whether it could be this planner's choice, now or once memory ran out; a stored one may have been changed."""
        return (
            all(type(number) is int for number in (choice.batch, choice.tile, choice.keep))
            and 1 <= choice.batch <= max(*_BATCHES, self.runtime.batch)
            and choice.tile in self._tiles(height, width)
            and choice.keep in (Choice.keep, *self.needs.keeps)
        )

    def at_once(self, choice: Choice) -> int:
        """Pictures in one call. Of a model, but on CUDA, one keeps the device busy, and alone its bits are its own."""
        return choice.batch if self.needs.device.type == "cuda" or not self.needs.window else 1

    def fills(self, of_a_file: bool) -> bool:
        """Whether a call of fewer pictures than a batch is filled up to one.

        A compiled model would be recompiled for their number, which takes minutes. On a card the bits of a picture
        depend on how many are in its call: those of a file are the same wherever a stopped job goes on. All others cost
        what they are.

        Args:
            of_a_file: the pictures are frames of a file that is upscaled.
        """
        needs = self.needs
        return needs.device.type == "cuda" and needs.window > 0 and (needs.compiled or of_a_file)

    def portions(self, shape: tuple[int, ...], place: Place, choice: Choice, fill: bool) -> list[int]:
        """How many of some windows are in each call.

        Of a compiled model each number would be compiled, or recorded, by itself: where calls are not filled up, whole
        frames come in full calls, and what is left of them, and smaller windows, one by one.

        Args:
            shape: (T, 3, h, w) of the windows, all at `place`.
            fill: see `fills`.
        """
        pictures, count = shape[0], self.at_once(choice)
        if not self.needs.compiled or fill:
            return [min(count, pictures - first) for first in range(0, pictures, count)]
        full = pictures // count if shape[-2:] == (place.height, place.width) else 0
        return [count] * full + [1] * (pictures - full * count)

    def memory(self, choice: Choice, height: int, width: int) -> int:
        """Bytes on the device at the peak of loading, of working on windows or of decoding, weights included."""
        needs, tiles = self.needs, self.cut(choice, height, width)
        first, second = needs.weights
        carried = height * width * needs.carried
        beside = 0 if self.runtime.offload else carried  # or it waits on the host
        working, decoding = self._working(choice, tiles) + beside, self._decoding(choice, tiles) + beside
        kind = needs.device.type
        each = reserved(kind, graphs=False)
        if self.runtime.offload:
            return round(max(first + each * working, second + each * max(decoding, carried)))
        taken = each * max(working, decoding)
        if needs.compiled and kind == "cuda":  # graphs keep their memory while frames are decoded
            taken = reserved(kind, graphs=True) * (self._working(choice, tiles) + self._windows(height, width))
            taken += each * decoding
        return first + second + round(max(needs.loading, taken))

    def planned(self, choice: Choice, height: int, width: int) -> int:
        """Bytes that are taken of the device at the most: `memory`, and what is kept beside it."""
        return self.memory(choice, height, width) + self.kept(choice, height, width)

    def kept(self, choice: Choice, height: int, width: int) -> int:
        """Bytes of what is freed that the C library keeps beside `memory`; see `memory.keep_freed`.

        As much as is at work, to a bound; 0 where the limit has no room for it. (Measured with Compact, from 320x180 to
        1280x720: .65 to 1.1 of what is at work.)
        """
        taken = self.memory(choice, height, width)
        most = min(taken - sum(self.needs.weights), KEPT) if keeps_freed(self.needs.device) else 0
        return most if taken + most <= self.limit else 0

    def cut(self, choice: Choice, height: int, width: int) -> tiling.Tiles:
        """The windows of a frame."""
        return windows.cut(choice, height, width, self.settings.tile_overlap, self.needs.multiple)

    def _choices(self, height: int, width: int) -> Iterator[Choice]:
        """All that come into question, from the fastest to the smallest."""
        for tile in self._tiles(height, width):
            for batch in [self.runtime.batch] if self.runtime.batch else self._batches(height, width, tile):
                for keep in self._keeps(Choice(batch, tile), height, width):
                    yield Choice(batch, tile, keep)

    def _tiles(self, height: int, width: int) -> list[int]:
        """The whole frame, then sides that cut it, from large to small."""
        if not self.needs.window:
            return [0]
        if self.settings.tile:
            return [self.settings.tile]
        least = max(SMALLEST, 3 * self.settings.tile_overlap)
        return [0, *(side for side in LADDER if self.needs.tiles and least <= side < max(height, width))]

    def _batches(self, height: int, width: int, tile: int) -> list[int]:
        pixels = min(height, tile or height) * min(width, tile or width)
        most = max(1, min(self.needs.batch, self.needs.busy // pixels))
        return [size for size in _BATCHES if size <= most]

    def _keeps(self, choice: Choice, height: int, width: int) -> list[int]:
        """Scales that take less and less; where tiles had to be, decoding takes no more than they do."""
        tiles = self.cut(choice, height, width)
        taken = {keep: self._decoding(replace(choice, keep=keep), tiles) for keep in self.needs.keeps}
        falling = [keep for keep, size in taken.items() if size <= min(taken[k] for k in taken if k >= keep)]
        if choice.tile and not self.settings.tile:
            fits = [keep for keep in falling if taken[keep] <= self._working(choice, tiles)]
            return fits[:1] or falling[-1:]
        return falling

    def _working(self, choice: Choice, tiles: tiling.Tiles) -> float:
        window = tiles.tile_height * tiles.tile_width * self.needs.window
        return choice.batch * (tiles.height * tiles.width * self.needs.frame + window)

    def _windows(self, height: int, width: int) -> float:
        """What the graphs of the windows of few shapes keep of their own: what goes in, and what comes out."""
        pixels = sum(rows * columns for rows, columns in windows.shapes(height, width)[:-1])
        return pixels * self.needs.frame if self.needs.carried else 0.0

    def _decoding(self, choice: Choice, tiles: tiling.Tiles) -> float:
        pictures = choice.batch + (choice.batch > 1)  # the one that is being made is not yet among the others
        pictures_bytes = pictures * tiles.height * tiles.width * self.needs.decoded
        decode = self.needs.decoding
        return pictures_bytes + (decode(tiles.height, tiles.width, choice.keep) if decode else 0)
