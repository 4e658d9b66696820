"""What an output has to hold: which frames, when, and which of the other streams; for maker and prover alike."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from fractions import Fraction

from vidup.config import Settings
from vidup.errors import ConfigError, MediaError
from vidup.frame import MediaInfo
from vidup.media import decoding, streams
from vidup.media.containers import OWN_TAGS, Container
from vidup.media.conversion import StreamPlan
from vidup.media.opening import open_input
from vidup.media.packets import Trim
from vidup.picture.geometry import Turn

_FOREVER = Fraction(2**40)  # seconds
_SOON = Fraction(1, 10)  # seconds: the rest of a frame that nobody misses at the edge of a part


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
    def span(self) -> tuple[int | None, int | None]:
        """From when to when the source's frames are kept, in `info.time_base`, as `decoding.decode` takes it."""
        return _ticks(self.info, self.trim)

    @property
    def display_matrix(self) -> tuple[int, ...] | None:
        """The nine integers of the display matrix that the output has."""
        matrix = self.info.display_matrix
        if matrix is None or self._baked:
            return None
        # Some programs turn by sines that they have rounded, and Matroska takes whole turns only.
        turns = (0, 65536, -65536)
        return tuple(next((turn for turn in turns if abs(turn - one) <= 2), one) for one in matrix)

    @property
    def turn(self) -> Turn:
        """How pictures are turned to stand upright, where the rotation is baked in."""
        return Turn.of(self.info.display_matrix) if self._baked else Turn()

    @property
    def _baked(self) -> bool:
        return self.settings.bake_rotation or self.container.family == "pictures"


def plan_delivery(info: MediaInfo, container: Container, settings: Settings) -> Delivery:
    """What has to be in an output.

    Raises:
        ConfigError: no frame lies in the requested part.
        MediaError: its colours are not known.
    """
    if "Dolby Vision" in info.dynamic_hdr and not info.color_tagged and settings.matrix == "auto":
        raise MediaError(
            f"{info.path}: its colours are Dolby Vision's own (profile 5), and would come out green and purple: convert"
            " it to HDR10 or BT.709 first, as ffmpeg's libplacebo filter does, or say with --matrix what it truly is"
        )
    trim = None
    if settings.start > 0 or settings.until is not None:
        trim = _part(settings, info)
    elif info.pts[0] < 0 and container.below_zero == "hidden":
        trim = Trim(min(info.begin, info.pts[0] * info.time_base), _FOREVER)
    begin, end = _ticks(info, trim)
    low, high = decoding.places(info, begin, end)
    unit, spans = decoding.schedule(info, settings, begin, end)
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


def _part(settings: Settings, info: MediaInfo) -> Trim:
    """The requested part: from a frame to a frame; or to a moment, where a frame is shown for long."""
    asked = info.begin + Fraction(settings.start).limit_denominator(1_000_000)
    until = None
    if settings.until is not None:
        until = info.begin + Fraction(settings.until).limit_denominator(1_000_000)
    begin, end = _cut(info, asked), _FOREVER if until is None else _cut(info, until)
    if begin >= min(end, info.end * info.time_base):
        raise ConfigError(
            f"start = {settings.start:g}: no frame begins there; the video lasts"
            f" {float(info.end * info.time_base - info.begin):.3f} s"
        )
    if until is not None and end >= info.end * info.time_base:
        end = max(end, until)  # nothing was cut: sound and texts may go on
    return Trim(max(begin, info.pts[0] * info.time_base), end)


def _cut(info: MediaInfo, moment: Fraction) -> Fraction:
    """Where a part begins or ends: with the next frame, if that is near; else at the moment, within a frame."""
    following = _next(info, moment)
    if following - moment <= _SOON or moment < info.pts[0] * info.time_base:
        return following
    return -(-moment // info.time_base) * info.time_base


def _next(info: MediaInfo, moment: Fraction) -> Fraction:
    """When the first frame begins that does not begin before a moment; else the video's end."""
    place = bisect_left(info.pts, -(-moment // info.time_base))
    return (info.pts[place] if place < len(info.pts) else info.end) * info.time_base


def _ticks(info: MediaInfo, trim: Trim | None) -> tuple[int | None, int | None]:
    """A part of the video in units of its times, as `decoding.decode` takes it."""
    if trim is None:
        return None, None
    begin, end = trim.begin / info.time_base, trim.end / info.time_base
    return max(info.pts[0], -(-begin // 1)), None if end >= info.end else int(end)
