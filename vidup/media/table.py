"""The table of a video's frames, the basis of all else: which there are, and when each is shown."""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal, cast

import av

from vidup.errors import MediaError
from vidup.media.boxes import missing_bytes
from vidup.media.containers import is_cover
from vidup.media.opening import MOST_PIXELS, clock, codec_name, find_origins, open_input, tolerant_demux
from vidup.media.reading import decode_stream
from vidup.media.timing import fill, usual_interval

# Codecs whose pictures change the picture before, so that decoding begins at the head, whatever the container states.
_BUILT_UP = ("apng", "gif")

# Containers that state a duration in their header, so that a file cut short is found.
_STATE_DURATION = {"matroska", "webm", "mov", "mp4", "avi", "flv", "asf"}
_SHORT_SECONDS = Fraction(1, 2)  # how far streams may end before the stated duration


@dataclass
class Table:
    """The frames of a file: when each is shown, from its packets, or else from the frames themselves."""

    path: Path
    tolerate_errors: bool
    index: int = 0
    codec: str = ""
    unit: Fraction = Fraction(1)
    pts: list[int] = field(default_factory=list)
    timing: Literal["packets", "order", "filled", "made"] = "packets"
    entries: dict[int, int] = field(default_factory=dict)
    """The packets of key frames: time -> CRC-32."""
    decode_times: list[int] = field(default_factory=list)
    end: int = 0
    length: int | None = None
    """The duration of every packet, where all have the same."""
    count: int = 0
    """The number of packets that are shown."""
    rate: Fraction = Fraction(0)
    variable_rate: bool = False
    faulty: bool = False
    without_times: bool = False
    """The container stores no times: those of its packets are guesses (an elementary stream)."""
    notes: list[str] = field(default_factory=list)

    def read(self) -> int:
        """Choose the video stream and read all packets; returns its index."""
        empty: set[int] = set()
        while True:
            with open_input(self.path) as container:
                stream = _video_stream(container, self.path, empty)
                if stream.width * stream.height > MOST_PIXELS:
                    size = f"{stream.width}x{stream.height}"
                    raise MediaError(f"{self.path}: claims frames of {size}: more than {MOST_PIXELS} pixels")
                self.index, self.unit, self.codec = stream.index, stream.time_base, codec_name(stream)
                if self._read(container, stream):
                    return self.index
                empty.add(stream.index)

    def _read(self, container: Any, stream: Any) -> bool:
        """Fill `pts` from the times of the packets, as far as they have any; False where there is no packet."""
        shown: dict[int, int] = {}
        corrupt: list[int] = []
        total = reached = 0
        ends: dict[int, tuple[int, Fraction]] = {}  # of each stream: when its last packet ends, and the unit of that
        is_rising = True
        for packet in tolerant_demux(container, None, self.damaged):
            unit = packet.time_base
            if packet.size == 0 or unit is None:
                continue  # a flush packet
            begins = packet.pts if packet.pts is not None else packet.dts
            if begins is not None:
                end = max(ends.get(packet.stream_index, (0,))[0], begins + (packet.duration or 0))
                ends[packet.stream_index] = end, unit
            if packet.stream is not stream:
                continue
            total += 1
            reached = max(reached, (packet.pos or 0) + packet.size)
            if packet.is_corrupt:
                self.note(f"its packet at {clock(begins, packet.time_base)} is damaged or cut short")
                corrupt += [begins] if begins is not None else []
            if packet.is_discard:
                continue
            self.count += 1
            if packet.pts is not None:
                shown[packet.pts] = packet.duration or 0
                if packet.is_keyframe:
                    self.entries[packet.pts] = zlib.crc32(packet)
            if packet.dts is not None:
                is_rising &= not self.decode_times or packet.dts >= self.decode_times[-1]
                self.decode_times.append(packet.dts)
        if total == 0:
            return False
        last = max((end * unit for end, unit in ends.values()), default=Fraction(0))
        if shown:
            self.pts = sorted(shown)
            self.end = self.pts[-1] + shown[self.pts[-1]]
            self.length = shown[self.pts[-1]] if len(set(shown.values())) == 1 else None
            if not shown[self.pts[-1]] and self.pts[-1] * self.unit >= last:  # the last frame's duration is not known
                last += max((b - a for a, b in pairwise(self.pts)), default=0) * self.unit
        self._check_whole(container, stream, total, last, reached)
        if parts := len(find_origins(container)):
            self.notes.append(f"its clock restarts {parts} times: what follows is moved so that there is no gap")
        # The packets may be fields or parts of frames: only decoded frames show it.
        self.without_times = bool(container.format.flags & av.format.Flags.no_timestamps.value)
        if len(shown) < self.count or not is_rising or parts or self.without_times:
            self.decode(moved=bool(parts))
        if not parts:
            self._check_gaps(corrupt)
        if self.timing == "packets" and self.codec in _BUILT_UP:
            self.timing = "order"
        return True

    def decode(self, moved: bool = False) -> None:
        """Decode the whole file, and take the times from the frames; if `moved`, frames cannot be sought by them."""
        troubles: list[str] = []
        frames = self._decoded(False, troubles)
        if len(frames) != self.count or troubles:
            troubles.clear()
            exact = self._decoded(True, troubles)
            self.faulty = len(exact) != len(frames) or bool(troubles)
            frames = exact
        if troubles and len(frames) < self.count:
            self.damaged(troubles[0])
        for what in dict.fromkeys(troubles):
            self.note(what)
        if not frames:
            raise MediaError(f"{self.path}: its video stream gives no frames")
        times, durations = [frame[0] for frame in frames], [frame[2] for frame in frames]
        found = [time for time in times if time is not None]
        if len(found) == len(times) and all(b > a for a, b in pairwise(found)) and not moved:
            self.pts, self.timing = found, "packets"
        elif self.without_times:
            self.pts, self.timing = self._lasting(durations), "made"
        elif not moved and not found and len(set(self.decode_times)) == len(times):
            self.pts, self.timing = sorted(self.decode_times), "order"
        elif not moved and len(found) == len(times) and _is_reordered(found):
            self.pts, self.timing = sorted(found), "order"  # some muxers write the times in the order of decoding
        elif found or any(frame[1] is not None for frame in frames):
            times = times if found else [frame[1] for frame in frames]
            self.pts, self.timing = fill(times, durations, usual_interval(times) or 1), "filled"
            self._note_filled(times)
        else:
            self.pts, self.timing = list(range(len(times))), "made"
        if len(times) != self.count:
            self.notes.append(f"its {self.count} packets of video give {len(times)} frames")
        self.end = self.pts[-1] + durations[-1]

    def _decoded(self, exact: bool, troubles: list[str]) -> list[tuple[int | None, int | None, int]]:
        """Each frame's time, decode time and duration."""
        with open_input(self.path) as container:
            stream = container.streams[self.index]
            return [
                (frame.pts, frame.dts, frame.duration or 0)
                for frame in decode_stream(container, stream, troubles.append, exact or self.tolerate_errors)
            ]

    def _lasting(self, durations: list[int]) -> list[int]:
        """Times of frames without gaps, from their durations where all are known; else their numbers."""
        if self.codec.startswith("mpeg") and all(durations):  # with telecine some last for three fields
            return [0, *accumulate(durations[:-1])]
        return list(range(len(durations)))

    def _note_filled(self, times: list[int | None]) -> None:
        changed = [filled for time, filled in zip(times, self.pts, strict=True) if time != filled]
        if changed:
            self.notes.append(
                f"{len(changed)} of its {len(times)} frames have no time, or an impossible one (the first at"
                f" {clock(changed[0], self.unit)}): filled in from the frames beside them"
            )

    def check(self, frames: list[Any]) -> None:
        """Compare the first decoded frames with the table: they must have its times, without a gap between them."""
        if self.timing != "packets":
            return
        times = [frame.pts for frame in frames]
        lost = 0 if times[0] is None else bisect_left(self.pts, times[0])
        if self.pts[lost : lost + len(times)] != times:
            self.decode()
        elif lost:
            self.notes.append(f"its first {lost} frames (to {clock(times[0], self.unit)}) cannot be decoded: left out")
            del self.pts[:lost]

    def settle(self, rate: Fraction) -> None:
        """Determine the rate, and when the last frame ends; without times, from the rate that the file states."""
        if self.timing == "made" and self.pts == list(range(len(self.pts))):
            interval = max(1, round(1 / rate / self.unit))
            self.pts = [index * interval for index in range(len(self.pts))]
        intervals = Counter(b - a for a, b in pairwise(self.pts))
        usual = intervals.most_common(1)[0][0] if intervals else max(1, round(1 / rate / self.unit))
        is_wrong = self.length is not None and 2 * self.length < usual  # some programs write 1 for all
        if self.end <= self.pts[-1] or is_wrong:
            self.end = self.pts[-1] + usual
        # Intervals between times that are rounded to the container's tick differ by one unit.
        self.variable_rate = any(abs(interval - usual) > 1 for interval in intervals)
        span = self.pts[-1] - self.pts[0]
        self.rate = (len(self.pts) - 1) / (span * self.unit) if span else Fraction(rate)
        if self.timing == "made":
            self.notes.append(f"the stream has no times: {float(self.rate):.3f} frames a second are assumed")

    def _check_whole(self, container: Any, stream: Any, total: int, last: Fraction, reached: int) -> None:
        formats = set(container.format.name.split(","))
        end = f"{float(last):.3f} s"
        if "mov" in formats and total < (indexed := self._indexed(container, stream)):
            self.damaged(f"is cut short: it states {indexed} frames and holds {total}; what is there ends at {end}")
            return
        if "yuv4mpegpipe" in formats and (rest := self.path.stat().st_size - reached) > 0:
            self.damaged(f"is cut short: its last {rest} bytes are no whole frame; what is there ends at {end}")
        missing = missing_bytes(self.path) if "matroska" in formats else None
        if missing:
            self.damaged(f"is cut short: its last {missing} bytes are missing; what is there ends at {end}")
        elif missing is None and container.duration and formats & _STATE_DURATION:
            stated = Fraction(container.duration, 1_000_000)  # with or without the time before the first frame
            if last < stated * Fraction(99, 100) - _SHORT_SECONDS:
                self.damaged(f"is cut short: it states {float(stated):.3f} s and ends at {end}")

    def _indexed(self, container: Any, stream: Any) -> int:
        """How many frames the index of a mov or mp4 lists, without those that an edit list leaves out."""
        indexed = len(stream.index_entries)
        if indexed < stream.frames:
            with open_input(self.path, {"ignore_editlist": "1"}) as unedited:
                if len(unedited.streams[stream.index].index_entries) < stream.frames:
                    return cast(int, stream.frames)
        return indexed

    def damaged(self, what: str) -> None:
        if not self.tolerate_errors:
            raise MediaError(f"{self.path}: {what}; --tolerate-errors upscales what can be decoded")
        self.note(what)

    def _check_gaps(self, corrupt: list[int]) -> None:
        """Check whether frames are missing where packets are damaged."""
        usual = usual_interval(self.pts)
        for time in corrupt:
            place = bisect_left(self.pts, time)
            beside = self.pts[max(0, place - 2) : place + 3]
            for before, after in pairwise(beside):
                if 2 * (after - before) > 3 * usual > 0:
                    self.damaged(f"is damaged: frames are missing after {clock(before, self.unit)}")

    def note(self, what: str) -> None:
        if (note := f"damaged: {what}") not in self.notes:
            self.notes.append(note)


def _video_stream(container: Any, path: str | Path, empty: set[int]) -> Any:
    """The stream that a player shows: by disposition, of those that can be decoded and are not `empty` of packets."""
    streams = [s for s in container.streams.video if not is_cover(s)]
    if not streams:
        kinds = ", ".join(f"{s.type} {codec_name(s)}" for s in container.streams) or "nothing"
        raise MediaError(f"{path}: has no video stream (it holds {kinds})")
    if len(empty) == len(streams):
        raise MediaError(f"{path}: its video stream holds no frames")
    is_moving = max(s.frames for s in streams) > 1  # an AVIF holds its animation beside a still of it
    stream = max(
        (s for s in streams if s.index not in empty),
        key=lambda s: (
            s.codec_context is not None,
            not (is_moving and s.frames == 1),
            bool(s.disposition & av.stream.Disposition.default),
            -s.index,
        ),
    )
    if stream.codec_context is None:
        raise MediaError(f"{path}: its video codec cannot be decoded")
    return stream


def _is_reordered(times: list[int]) -> bool:
    """Whether times are distinct, and each at most 16 places from its place in rising order, as reordering allows."""
    places = {time: place for place, time in enumerate(sorted(times))}
    return len(places) == len(times) and all(abs(places[time] - index) <= 16 for index, time in enumerate(times))
