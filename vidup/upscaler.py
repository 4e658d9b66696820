"""`Upscaler`: pictures in, larger pictures out, with a model that stays loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import cached_property, partial
from itertools import chain, islice
from threading import RLock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast
from weakref import ref

import torch

from vidup import engines
from vidup.config import Given, Runtime, settings_of
from vidup.engines import Choice, anchoring, finite, stops, windows
from vidup.engines.memory import is_out_of_memory, keep_freed, release_freed
from vidup.engines.planner import Planner
from vidup.engines.relay import Carried, Decision, Follower, Relay
from vidup.errors import MediaError, Stopped
from vidup.frame import Color, Frame
from vidup.picture import interop
from vidup.picture.geometry import Turn, output_size
from vidup.picture.resample import resize
from vidup.picture.roundtrip import Leaving, Passing, Wanted, give_back, passing
from vidup.prefetch import OwnThread, batched, prefetch

if TYPE_CHECKING:
    from vidup.job.progress import Sink
    from vidup.proof import Receipt

Picture = TypeVar("Picture")
Result = TypeVar("Result")

_AHEAD = 8  # frames that are decided on before the engine needs them


class _Read(NamedTuple):
    """A picture, its RGB, the step of its quantiser, and how it comes about where pictures are carried."""

    picture: Passing
    rgb: torch.Tensor
    quantiser: float
    decision: Decision | None = None


class Upscaler:
    """Upscales any number of pictures and files with a model, which is loaded on first use.

    Any thread may call; one works at a time. Pictures are display-referred: floats are in [0, 1], and models clip
    others. The caller has to encode linear light before and decode it afterwards, as by ``x ** (1 / 2.4)`` and
    ``y ** 2.4``.

    Args:
        settings: what decides the picture; a string or a path is a preset. Settings of encoders are only for files.
        runtime: device and batch.
        stop: called before every call of the model and every band of its decoder; once it returns true, `Stopped` is
            raised. The upscaler can be used again.
    """

    def __init__(
        self, settings: Given = None, runtime: Runtime | None = None, *, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self.settings, self.runtime, self.stop = settings_of(settings), runtime or Runtime(), stop
        self._choices, self._pixels = dict[tuple[int, int], Choice](), 0
        self._begin: tuple[int, tuple[int, int] | None, Carried | None] | None = None  # of a file
        self._relay: Relay | None = None
        self._lender: Upscaler | None = None
        self._working: engines.Engine | None = None  # used instead of the engine, see `_redone`
        self._lock, self._thread = RLock(), OwnThread()

    @cached_property
    def engine(self) -> engines.Engine:
        """The model, loaded on first access. Raises EngineError: it or the device is missing."""
        with self._lock:
            if "engine" not in self.__dict__:  # another thread may have loaded it
                lent = self._lender and engines.lend(self._lender.engine, self._lender.settings, self.settings)
                self.__dict__["engine"] = lent or engines.load(self.settings, self.runtime)
                self._lender = None
                self.expect(self._pixels)
            return cast(engines.Engine, self.__dict__["engine"])

    @cached_property
    def planner(self) -> Planner:
        """Chooses batch and tiles; the engine is loaded for it."""
        needs = engines.with_carried(self.engine.needs, self.settings, self.engine.scale)
        return Planner(needs, self.settings, self.runtime)

    def expect(self, pixels: int) -> None:
        """Announce the pixels of all coming pictures: where `compile` is auto, the model is compiled if that pays."""
        self._pixels = pixels
        if pixels and "engine" in self.__dict__:
            self.engine.expect(pixels)
            self.__dict__.pop("planner", None)

    @property
    def compiles(self) -> bool:
        """Whether the first clip will compile the model."""
        return self.engine.needs.compiled

    def __repr__(self) -> str:
        return f"Upscaler({self.settings!r}, {self.runtime!r})"

    def __enter__(self) -> Upscaler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unload the model and free its memory; another call loads it again."""
        with self._lock:
            if "engine" in self.__dict__:
                device = self.engine.device
                self._in_its_thread(self.engine.close)
                self.__dict__.pop("planner", None)
                del self.engine
                release_freed(device)
        self._thread.close()

    def replace(self, **changes: Any) -> Upscaler:
        """An upscaler with other settings, which shares the loaded model; this one does not change.

        Args:
            changes: settings such as ``prompt``, ``seed``, ``noise_level``, ``steps``. Another model, or another
                precision, is loaded separately.

        Raises:
            ConfigError: a key is unknown, a value is out of range.
        """
        other = Upscaler(self.settings.replace(**changes), self.runtime, stop=self.stop)
        other._lock, other._thread, other._lender = self._lock, self._thread, self
        return other

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the result for a picture of this size; the sides of a `Frame` are rounded to even numbers.

        No model is loaded.
        """
        scale = self.engine.scale if "engine" in self.__dict__ else engines.native_scale(self.settings)
        return output_size(self.settings, scale, height, width, even=False)

    def upscale(
        self,
        input: str | os.PathLike[str],
        output: str | os.PathLike[str] | None = None,
        *,
        on_progress: Sink | None = None,
    ) -> Receipt:
        """Upscale a file as `vidup.upscale` does, with the loaded model."""
        from vidup import job

        return job.upscale_with(self, input, output, on_progress)

    def __call__(self, picture: Picture) -> Picture:
        """Upscale one picture, or several in one tensor, independently of each other.

        Args:
            picture: a NumPy array, (height, width) or (height, width, channels); a tensor on any device, (channels,
                height, width) or (T, channels, height, width); a Pillow image; a `Frame`. Arrays and tensors are uint8,
                uint16 or floats in [0, 1]; one channel is gray, three are R, G, B, a second or fourth one is
                transparency, which is enlarged by bicubic. ``[..., ::-1]`` converts the order of OpenCV.

        Returns:
            The same kind, depth and device; it may be written to.

        Raises:
            MediaError: the kind, shape, depth or values are not supported.
            EngineError: the model failed, or the memory is too small for the smallest tiles.
            Stopped: `stop` returned true.
        """
        if isinstance(picture, Frame):
            return next(self.frames([picture]))
        taken = interop.take(picture)
        make = partial(self._enlarge, taken.rgb.to(self.engine.device))
        large = make()
        large = large if finite.is_finite([large]) else torch.stack(self._redone(make))
        rgb = self._sized(large, tuple(taken.rgb.shape[-2:]), even=False)
        return cast(Picture, give_back(taken, rgb))

    def frames(
        self,
        pictures: Iterable[Picture],
        pix_fmt: str | None = None,
        tags: Color | None = None,
        turn: Turn | None = None,
    ) -> Generator[Picture, None, None]:
        """Upscale consecutive pictures of one size, carrying from one to the next.

        Args:
            pictures: of one kind, as for `__call__`. Frames of YUV must have a known matrix. Only frames tell how
                coarsely they were compressed; see ``Settings.quantiser``.
            pix_fmt: for frames, the planar format of the results, by ffmpeg's name; None: that of each frame.
            tags: matrix and range of the results; None: those of each frame.
            turn: how frames are turned before they are upscaled.

        Yields:
            The results, in order. Frames keep their times; their width and height are even.

        Raises:
            MediaError, EngineError, Stopped: as `__call__`; also where the size changes.
        """
        of_a_file, self._begin = self._begin, None
        number, span, carried = of_a_file or (0, None, None)
        wanted, leaving = Wanted(pix_fmt, tags, turn or Turn()), list[Leaving]()
        coming = (passing(picture, wanted) for picture in pictures)
        first = next(coming, None)
        if first is None:
            return
        size, even = first.size, first.even
        on_cuda = self.engine.device.type == "cuda"
        length = self.planner.at_once(self.choose(*size))
        follower, relay = self._follow(number, span), self._relay
        make = partial(self._pictures, relay=relay, fill=self.planner.fills(of_a_file is not None))
        if relay is not None and carried is not None:
            relay.restore(carried, self.engine.device)
        with closing(self._read(chain([first], coming), follower)) as read:
            del first, coming
            last: ref[torch.Tensor] | None = None  # weak, so that it is freed before the next clip
            made: Leaving | None = None
            for clip in batched(islice(read, carried.frames if carried else 0, None), length):
                before, leaving = leaving, []
                restore = relay.remember() if relay else None
                results = list(make(clip))
                # A GPU works on this clip while the results of the one before are copied and yielded.
                yield from (one.arrived() for one in before)
                if not finite.is_finite(results):
                    results = self._redone(partial(make, clip), restore)
                for one, large in zip(clip, results, strict=True):
                    if last is not None and large is last() and made is not None:  # an equal picture
                        made = made.again(one.picture)
                    else:
                        last, made = ref(large), one.picture.leave(self._sized(large, size, even))
                    leaving.append(made)
                del large, results, clip, one, restore  # so that they are freed before the next clip
                if not on_cuda or self.runtime.batch == 1:  # waiting for the next clip would gain nothing
                    yield from (one.arrived() for one in leaving)
                    leaving = []
        yield from (one.arrived() for one in leaving)

    def reset(self, number: int = 0, span: tuple[int, int] | None = None, carried: Carried | None = None) -> None:
        """Load the engine, and set which frames of a file the next call of `frames` gets.

        Args:
            number: the number of the first frame in its file.
            span: of a segment that another one follows, the numbers of its first frame and of the other's first: its
                last frames are blended into those that the other segment will start from.
            carried: the state after the first frames, which were upscaled before and are skipped.
        """
        _ = self.engine
        self._begin, self._relay = (number, span, carried), None

    def carried(self) -> Carried | None:
        """The state of the last call of `frames`, for `reset`; None where nothing is carried, or within a frame."""
        return None if self._relay is None else self._relay.carried()

    @property
    def computed(self) -> tuple[int, int]:
        """The pixels that the last call of `frames` computed, with halos, and all; (0, 0) if nothing is carried."""
        return (0, 0) if self._relay is None else (self._relay.computed, self._relay.total)

    def choose(self, height: int, width: int, choice: Choice | None = None) -> Choice:
        """The choice of batch and tiles for frames of this size: as given, else the planner's, which is kept.

        It becomes smaller where memory runs out.
        """
        size = height, width
        with self._lock:
            if choice is not None or size not in self._choices:
                chosen = self._choices[size] = choice or self.planner.choose(*size)
                keep_freed(self.engine.device, self.planner.kept(chosen, *size))
            return self._choices[size]

    @cached_property
    def _anchoring(self) -> tuple[anchoring.Anchor, int]:
        return anchoring.choose_anchor(self.settings)

    def _follow(self, number: int, span: tuple[int, int] | None) -> Follower | None:
        """Create the relay, and what decides ahead of it, where results are carried."""
        self._relay, settings = None, self.settings
        if not (self.engine.invents and engines.carries(settings)):
            return None
        anchor, rounds = self._anchoring
        home, fit = torch.device("cpu") if self.runtime.offload else None, windows.fixed if self.compiles else None
        self._relay = Relay(self._window, self.engine.scale, rounds, settings.temporal == "steady", anchor, home, fit)
        knows = settings.anchor == "auto" and self.engine.device.type == "cpu"  # another device is faster by itself
        return Follower(number, settings.trust, settings.refresh, span, knows)

    def _read(self, pictures: Iterable[Passing], follower: Follower | None) -> Generator[_Read, None, None]:
        """Convert pictures to RGB; where results are carried, also decide ahead how each comes about."""
        device = self.engine.device if follower is None else torch.device("cpu")

        def read() -> Iterator[_Read]:
            last: _Read | None = None
            for picture in pictures:
                if last is not None and picture.size != last.picture.size:
                    sizes = [f"{width}x{height}" for height, width in (picture.size, last.picture.size)]
                    raise MediaError(f"frames: a picture of {sizes[0]} after one of {sizes[1]}: give a call one size")
                same = follower is not None and last is not None and picture.shows(last.picture)
                rgb = last.rgb if same and last is not None else picture.rgb(device)
                quantiser = anchoring.quantiser(self.settings, picture.quantiser)
                decision = None if follower is None else follower(rgb, quantiser)
                last = _Read(picture, rgb, quantiser, decision)
                yield last

        yield from read() if follower is None else prefetch(read(), _AHEAD)

    def _pictures(self, clip: list[_Read], relay: Relay | None, fill: bool) -> Iterator[torch.Tensor]:
        """The results of consecutive pictures, (3, scale * h, scale * w) each."""
        rgb = torch.stack([one.rgb for one in clip]).to(self.engine.device)
        if relay is None:
            yield from self._enlarge(rgb, tuple(one.quantiser for one in clip), fill)
            return
        decisions = [one.decision for one in clip if one.decision is not None]
        with torch.inference_mode(), engines.current(self.engine.device):
            yield from relay(rgb, decisions)

    def _enlarge(self, rgb: torch.Tensor, quantisers: tuple[float, ...] = (), fill: bool = False) -> torch.Tensor:
        """Upscale whole pictures; with `fill`, every call of the engine has the same batch."""
        quantisers = quantisers or (anchoring.quantiser(self.settings),) * len(rgb)
        height, width = rgb.shape[-2:]
        return self._window(rgb, engines.Place(0, 0, height, width, quantisers), fill)

    def _redone(
        self, make: Callable[[], Iterable[torch.Tensor]], restore: Callable[[], None] | None = None
    ) -> list[torch.Tensor]:
        """Recompute pictures that were not finite in a precision with more range."""
        with self._lock:
            if restore is not None:
                restore()
            self._working = finite.wider(self.engine, self.settings.model)
            try:
                return finite.checked(list(make()), self._working, self.settings.model)
            finally:
                self._working = None

    def _window(self, rgb: torch.Tensor, place: engines.Place, fill: bool = False) -> torch.Tensor:
        """Upscale windows of frames, all at one place; falls back to smaller tiles when memory runs out."""
        with self._lock:
            while True:
                choice = self.choose(place.height, place.width)
                count = self.planner.at_once(choice) if fill else 0
                try:
                    portions = self.planner.portions(tuple(rgb.shape), place, choice, fill)
                    clips = [
                        self._at_engine(partial(self._enlarge_clip, *clip, choice, count))
                        for clip in windows.split(rgb, place, portions)
                    ]
                    return clips[0] if len(clips) == 1 else torch.cat(clips)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    failed = str(error).splitlines()[0]
                # Outside of the handler, so that the traceback, which keeps tensors alive, is freed.
                self._back_off(choice, place.height, place.width, failed)

    def _at_engine(self, function: Callable[[], Result]) -> Result:
        """Call a function that uses the engine, with checks whether to stop."""

        def check() -> None:
            if self.stop() or self._thread.abandoned:
                raise Stopped

        def work() -> Result:
            with engines.current(self.engine.device), stops.watched(stops.Watch(check)):
                stops.check()
                return function()

        try:
            return self._in_its_thread(work)
        except stops.Raised as raised:
            raise raised.error from None

    def _in_its_thread(self, function: Callable[[], Result]) -> Result:
        """Call a function: in a thread of its own if CUDA graphs are used, which belong to a thread; else directly."""
        graphs = self.engine.device.type == "cuda" and self.compiles
        return self._thread.run(function) if graphs else function()

    def _back_off(self, before: Choice, height: int, width: int, failed: str) -> None:
        choice = self.planner.back_off(before, height, width, failed)
        self._in_its_thread(self.engine.close)
        self.choose(height, width, choice)
        release_freed(self.engine.device)

    @torch.inference_mode()
    def _enlarge_clip(self, rgb: torch.Tensor, place: engines.Place, choice: Choice, fill: int) -> torch.Tensor:
        """Upscale and anchor a clip, which is filled up to `fill` pictures."""
        # A model's result is the same to the bit only in batches of one shape.
        enlarged = engines.enlarge(self._working or self.engine, *windows.filled(rgb, place, fill), choice)[: len(rgb)]
        anchor, rounds = self._anchoring
        return anchor(enlarged, rgb, rounds, place.quantisers, None)

    @torch.inference_mode()
    def _sized(self, pictures: torch.Tensor, frame: tuple[int, ...], even: bool) -> torch.Tensor:
        """Resize results, (..., H, W), of frames of this (height, width) to the requested size."""
        size = output_size(self.settings, self.engine.scale, frame[0], frame[1], even)
        return resize(pictures[None], size)[0] if pictures.dim() == 3 else resize(pictures, size)
