"""What an output has to contain: which frames, when, and which of the other streams; for job and proof alike."""

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
_SOON = Fraction(1, 10)  # seconds: so short a rest of a frame is left out where a part begins or ends


@dataclass(frozen=True)
class Delivery:
    """What has to be in the output, independent of the size of its pictures."""

    info: MediaInfo
    container: Container
    settings: Settings
    streams: tuple[StreamPlan, ...]
    trim: Trim | None
    """The part of the input that is kept; None: all, at the input's times."""
    low: int
    high: int
    """The places in `info.pts` of the frames that are kept: low <= place < high."""
    unit: Fraction
    """Seconds in one unit of `times`."""
    times: tuple[int, ...]
    """When each frame of the output is shown, rising."""
    accepted: frozenset[str] = field(default=frozenset(), kw_only=True)
    """Subjects of the proof in which the output may differ, because its container cannot store them."""

    @property
    def offset(self) -> int:
        """What is subtracted from a frame's time, in `unit`, so that a part begins at 0."""
        return 0 if self.trim is None else round(self.trim.begin / self.unit)

    @property
    def frames_each(self) -> int:
        """How many frames of the output a frame of the input becomes: two where each of its fields is one."""
        return len(self.times) // (self.high - self.low)

    @property
    def span(self) -> tuple[int | None, int | None]:
        """Begin and end of the kept part in `info.time_base`, as arguments of `decoding.decode`."""
        return _ticks(self.info, self.trim)

    @property
    def display_matrix(self) -> tuple[int, ...] | None:
        """The nine integers of the output's display matrix."""
        matrix = self.info.display_matrix
        if matrix is None or self._baked:
            return None
        # Some programs write rounded sines, and Matroska stores quarter turns only.
        turns = (0, 65536, -65536)
        return tuple(next((turn for turn in turns if abs(turn - one) <= 2), one) for one in matrix)

    @property
    def turn(self) -> Turn:
        """How pictures are turned upright, where the rotation is baked in."""
        return Turn.of(self.info.display_matrix) if self._baked else Turn()

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the pictures that the upscaler gets: the input's, turned by `turn`."""
        return self.turn.size(self.info.height, self.info.width)

    @property
    def _baked(self) -> bool:
        return self.settings.bake_rotation or self.container.family == "pictures"


def plan_delivery(info: MediaInfo, container: Container, settings: Settings) -> Delivery:
    """Decide what has to be in an output.

    Raises:
        ConfigError: no frame begins in the requested part.
        MediaError: the colours are not known.
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
    """The tags of the file that the output's container cannot store."""
    with open_input(delivery.info.path) as source:
        tags = {key: value for key, value in source.metadata.items() if not key.lower().startswith(OWN_TAGS)}
    arriving = {key.lower() for key in delivery.container.arriving(tags)}
    return [key for key in tags if key.lower() not in arriving]


def _part(settings: Settings, info: MediaInfo) -> Trim:
    """The requested part: from frame to frame, or from or to a moment within a frame that is shown for long."""
    start = info.begin + Fraction(settings.start).limit_denominator(1_000_000)
    until = None
    if settings.until is not None:
        until = info.begin + Fraction(settings.until).limit_denominator(1_000_000)
    begin, end = _cut(info, start), _FOREVER if until is None else _cut(info, until)
    if begin >= min(end, info.end * info.time_base):
        raise ConfigError(
            f"start = {settings.start:g}: no frame begins there; the video lasts"
            f" {float(info.end * info.time_base - info.begin):.3f} s"
        )
    if until is not None and end >= info.end * info.time_base:
        end = max(end, until)  # all frames are kept: audio and subtitles may last longer
    return Trim(max(begin, info.pts[0] * info.time_base), end)


def _cut(info: MediaInfo, moment: Fraction) -> Fraction:
    """Where a part begins or ends: with the next frame, if that is near; else at the moment, within a frame."""
    place = bisect_left(info.pts, -(-moment // info.time_base))
    following = (info.pts[place] if place < len(info.pts) else info.end) * info.time_base
    if following - moment <= _SOON or moment < info.pts[0] * info.time_base:
        return following
    return -(-moment // info.time_base) * info.time_base


def _ticks(info: MediaInfo, trim: Trim | None) -> tuple[int | None, int | None]:
    """A part of the video in units of its time base, as arguments of `decoding.decode`."""
    if trim is None:
        return None, None
    begin, end = trim.begin / info.time_base, trim.end / info.time_base
    return max(info.pts[0], -(-begin // 1)), None if end >= info.end else int(end)
