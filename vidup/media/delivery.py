"""What an output has to hold."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from fractions import Fraction

from vidup.config import Settings
from vidup.errors import ConfigError
from vidup.frame import MediaInfo
from vidup.media import decoding, streams
from vidup.media.containers import OWN_TAGS, Container
from vidup.media.conversion import StreamPlan
from vidup.media.opening import open_input
from vidup.media.packets import Trim
from vidup.picture.geometry import Turn

_FOREVER = Fraction(2**40)  # seconds


@dataclass(frozen=True)
class Delivery:
    """What has to be in the output, however large its pictures are."""

    info: MediaInfo
    container: Container
    settings: Settings
    streams: tuple[StreamPlan, ...]
    trim: Trim | None
    """The part of the input that is kept; None is all, at its own times."""
    low: int
    high: int
    """The places in `info.pts` of the frames that are kept: low <= place < high."""
    unit: Fraction
    """Seconds in one unit of `times`."""
    times: tuple[int, ...]
    """When each frame of the output is shown, rising."""
    accepted: frozenset[str] = field(default=frozenset(), kw_only=True)
    """What the output may say otherwise, because its container cannot say it: subjects of the proof."""

    @property
    def offset(self) -> int:
        """What is taken from a frame's time, in `unit`, so that a part begins at 0."""
        return 0 if self.trim is None else round(self.trim.begin / self.unit)

    @property
    def display_matrix(self) -> tuple[int, ...] | None:
        """The nine integers of the display matrix that the output has."""
        matrix = self.info.display_matrix
        if matrix is None or self.settings.bake_rotation:
            return None
        # Some programs turn by sines that they have rounded, and Matroska takes whole turns only.
        turns = (0, 65536, -65536)
        return tuple(next((turn for turn in turns if abs(turn - one) <= 2), one) for one in matrix)

    @property
    def turn(self) -> Turn:
        """How pictures are turned to stand upright, where the rotation is baked in."""
        return Turn.of(self.info.display_matrix) if self.settings.bake_rotation else Turn()


def deliver(info: MediaInfo, container: Container, settings: Settings) -> Delivery:
    """What has to be in an output.

    Raises:
        ConfigError: no frame lies in the part that is asked for.
    """
    low, high = _part(settings, info)
    unit, spans = decoding.schedule(info, settings, low, high)
    trim = None
    if settings.start > 0 or settings.duration is not None:
        trim = Trim(info.pts[low] * info.time_base, _end_of_part(settings, info, high))
    elif info.pts[0] < 0 and container.below_zero == "hidden":
        trim = Trim(min(info.begin, info.pts[0] * info.time_base), _FOREVER)
    offset = 0 if trim is None else round(trim.begin / unit)
    return Delivery(
        info=info,
        container=container,
        settings=settings,
        streams=tuple(streams.plan_streams(info, container, settings)),
        trim=trim,
        low=low,
        high=high,
        unit=unit,
        times=tuple(time - offset for time in spans),
    )


def lost_tags(delivery: Delivery) -> list[str]:
    """The tags of the file that its container has no place for."""
    with open_input(delivery.info.path) as source:
        tags = {key: value for key, value in source.metadata.items() if not key.lower().startswith(OWN_TAGS)}
    arriving = {key.lower() for key in delivery.container.arriving(tags)}
    return [key for key in tags if key.lower() not in arriving]


def _part(settings: Settings, info: MediaInfo) -> tuple[int, int]:
    """The places in `info.pts` of the frames that are asked for."""
    if settings.start == 0 and settings.duration is None:
        return 0, len(info.pts)
    first = info.begin + Fraction(settings.start).limit_denominator(1_000_000)
    low = _place(info, first)
    high = len(info.pts)
    if settings.duration is not None:
        high = _place(info, first + Fraction(settings.duration).limit_denominator(1_000_000))
    if low >= high:
        raise ConfigError(
            f"start = {settings.start:g}: no frame begins there; the video lasts"
            f" {float(info.end * info.time_base - info.begin):.3f} s"
        )
    return low, high


def _end_of_part(settings: Settings, info: MediaInfo, high: int) -> Fraction:
    """Where a part's sound and texts end, in seconds: with its last frame, or after it where nothing was cut there."""
    if high < len(info.pts):
        return info.pts[high] * info.time_base
    if settings.duration is None:
        return _FOREVER
    asked = info.begin + Fraction(settings.start + settings.duration).limit_denominator(1_000_000)
    return max(info.end * info.time_base, asked)


def _place(info: MediaInfo, second: Fraction) -> int:
    """The place of the first frame that does not begin before a moment."""
    return bisect_left(info.pts, -(-second // info.time_base))
