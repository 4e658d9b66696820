"""Read a video's decoded frames from anywhere in it, the same as when all is decoded from the head."""

from __future__ import annotations

import logging
import zlib
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from threading import Lock
from typing import Any, cast

import av

from vidup.frame import MediaInfo
from vidup.media import beside
from vidup.media.opening import _UNREADABLE, clock, open_input, reason, set_threads, tolerant_demux, video_context

log = logging.getLogger(__name__)

_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_ABOVE = 2**32  # more than any CRC-32

KEPT, KEPT_BYTES = 16, 2**27
"""Frames that an open decoder's last ones are kept of, at the most, and how much memory they may take: by so much the
parts of a job overlap, with what leads in and what a proof looks at beside."""


def decode_stream(container: Any, stream: Any, damaged: Callable[[str], None], exact: bool = False) -> Iterator[Any]:
    """The frames of a video stream as its decoder gives them; an error is told to `damaged`, as by `tolerant_demux`.

    Args:
        exact: an error costs no frame but its own: frames are not decoded side by side.
    """
    yield from decode_packets(stream, tolerant_demux(container, stream, damaged), damaged, exact)


def decode_packets(
    stream: Any, packets: Iterable[Any], damaged: Callable[[str], None], exact: bool = False
) -> Iterator[Any]:
    """`decode_stream` of some of its packets."""
    context, unit = video_context(stream), stream.time_base
    if not context.is_open:
        set_threads(context, exact)
    checked = context.name == "ffv1"
    last: int | None = None
    for packet in chain(packets, [None]):
        if packet is not None and packet.size == 0:
            continue  # would end the decoding
        if packet is not None and checked and _checksums_hold(bytes(packet)) is False:
            damaged(f"its frame at {clock(packet.pts, stream.time_base)} is damaged")
        try:
            frames = context.decode(packet)
        except EOFError:
            continue
        except _UNREADABLE as error:
            if last is None and packet is not None:
                last = packet.pts if packet.pts is not None else packet.dts
            # Where frames are decoded side by side, an error comes with a later packet, but after the frames before it.
            where = "at its head" if last is None else f"after {clock(last, stream.time_base)}"
            damaged(f"is damaged {where}: {reason(error)}")
            continue
        for frame in frames:
            frame.time_base = unit  # the last ones, which come without a packet, have none
            time = own_time(frame)
            last = last if time is None else time
            yield frame


def _checksums_hold(data: bytes) -> bool | None:
    """Whether the slices of an FFV1 frame are whole; None where they bear no checksums. FFmpeg only logs that.

    A slice ends with its size in 3 bytes, a byte of status, and a CRC-32 (RFC 9043, 4.9), which counts the highest bit
    first; that of zlib counts the lowest.
    """
    end, whole = len(data), True
    while end >= 8:
        begin = end - 8 - int.from_bytes(data[end - 8 : end - 5], "big")
        if begin < 0:
            return None
        whole &= zlib.crc32(data[begin:end].translate(_MIRRORED), 0xFFFFFFFF) == 0xFFFFFFFF
        end = begin
    return whole if end == 0 else None


def own_time(frame: Any) -> int | None:
    """The time at which a frame is shown, or, where the packets have none, at which it was decoded."""
    return cast("int | None", frame.pts if frame.pts is not None else frame.dts)


class Readers:
    """Decoders of one file that stay open from one part of it to the next.

    Whoever reads part after part finds the decoder where it stopped: it is not opened and sought again, and frames that
    are counted from the head are not decoded again for each part. Threads may read at once, a decoder each.
    """

    def __init__(self, info: MediaInfo) -> None:
        self._info, self._lock = info, Lock()
        self._idle: list[_Reader] = []

    def frames(self, low: int, tell: Callable[[str], None], exact: bool) -> Generator[Any, None, None]:
        """The same as `timed_frames`; what is read is given back when the generator is closed."""
        with self._lock:
            reader = next((one for one in self._idle if one.reaches(low, exact)), None)
            if reader is not None:
                self._idle.remove(reader)
        reader = reader or _Reader(self._info, low, exact)
        try:
            yield from reader.frames(self._info.pts[low], tell)
        except GeneratorExit:
            with self._lock:
                left, self._idle = self._idle[:-1], [*self._idle[-1:], reader]
            reader = left[0] if left else None
            raise
        finally:
            if reader is not None:
                reader.close()

    def close(self) -> None:
        """Close what nobody reads from."""
        with self._lock:
            idle, self._idle = self._idle, []
        for reader in idle:
            reader.close()


class _Reader:
    """A decoder, and the last frames that came of it: parts overlap."""

    def __init__(self, info: MediaInfo, low: int, exact: bool) -> None:
        self._info, self._exact = info, exact
        self._kept: deque[tuple[int, Any]] = deque()
        self._tell: Callable[[str], None] = log.debug
        self._decoded = timed_frames(info, low, lambda what: self._tell(what), exact)

    def reaches(self, low: int, exact: bool) -> bool:
        """Whether it is the way to a place: the frames there are kept or follow, and no seek is shorter."""
        if exact != self._exact or not self._kept or self._kept[0][0] > self._info.pts[low]:
            return False
        return self._info.timing != "packets" or self._kept[-1][0] >= self._info.pts[max(0, low - 1)]

    def frames(self, begin: int, tell: Callable[[str], None]) -> Iterator[Any]:
        self._tell = tell
        for pts, frame in list(self._kept):
            if pts >= begin:
                frame.pts, frame.time_base = pts, self._info.time_base  # whoever had it before may have changed them
                yield frame
        for frame in self._decoded:
            self._keep(frame)
            yield frame

    def _keep(self, frame: Any) -> None:
        if not self._kept:  # the first one tells how large they are
            size = sum(plane.buffer_size for plane in frame.planes)
            self._kept = deque(maxlen=max(1, min(KEPT, KEPT_BYTES // size)))
        self._kept.append((frame.pts, frame))

    def close(self) -> None:
        self._kept.clear()
        self._decoded.close()


def timed_frames(info: MediaInfo, low: int, tell: Callable[[str], None], exact: bool) -> Generator[Any, None, None]:
    """Decoded frames from the place `low` in `info.pts` on or a little before it, each with its time.

    Args:
        tell: is told what cannot be read or decoded.
        exact: as for `decode_stream`.
    """
    if info.timing == "packets":
        yield from _sought(info, low, tell, exact)
        return
    # Only counted from the head can frames be told that bear no times of their own.
    with open_input(info.path) as container:
        for pts, frame in zip(info.pts, _decoded(container, info, tell, exact), strict=False):
            frame.pts, frame.time_base = pts, info.time_base
            yield frame


def _sought(info: MediaInfo, low: int, tell: Callable[[str], None], exact: bool) -> Iterator[Any]:
    """The frames of a decoder that began at the head, from the place `low` on, without decoding all before them.

    Indexes of containers can be wrong or coarse, and the first frames behind an entry can need others before it. So
    decoding begins at a packet that is known from when the whole file was read; and where frames are missing or
    flagged so near behind it that this may be why, it begins again, further back and at last at the head.
    """
    place: int | None = low
    tries = 0
    while place is not None:
        before = bisect_right(info.entries, (info.pts[place], _ABOVE)) - 2**tries
        if before <= 0:
            if tries > 1:
                _tell_slow(info.path)
            yield from _from_head(info, place, tell, exact)
            return
        place = yield from _from_entry(info, before, place, tell, exact or tries > 0)
        tries += 1


def _from_head(info: MediaInfo, place: int, tell: Callable[[str], None], exact: bool) -> Generator[Any, None, None]:
    with open_input(info.path) as container:
        for frame in _decoded(container, info, tell, exact):
            if frame.pts is not None and frame.pts >= info.pts[place]:
                yield frame


def _from_entry(
    info: MediaInfo, entry: int, place: int, tell: Callable[[str], None], exact: bool
) -> Generator[Any, None, int | None]:
    """Frames from `place` on, decoded from an entry on.

    Returns:
        The place at which reading has to begin again, further back; None at the end.
    """
    told: list[str] = []  # passed on once it is clear that it is not because of where decoding began
    with open_input(info.path) as container:
        stream = container.streams[info.video_index]
        try:
            container.seek(info.entries[entry][0], stream=stream, backward=True)
        except av.error.FFmpegError:  # no index, and none can be made
            return place
        packets = _known(tolerant_demux(container, stream, told.append), info)
        first = next(packets, None)
        if first is None or first.pts > info.pts[place]:
            return place
        clean_from = first.pts
        expected = begin = bisect_left(info.pts, clean_from)
        for frame in decode_packets(stream, chain([first], packets), told.append, exact or info.faulty):
            if frame.pts is None or frame.pts < first.pts:
                continue
            if expected == begin and not frame.key_frame and not beside.has(stream):  # whatever the container says
                return place
            is_trouble = frame.is_corrupt or frame.pts != info.pts[expected]
            if is_trouble and _is_fresh(info, clean_from, frame.pts):
                if frame.pts >= info.pts[place]:
                    return place
                clean_from = frame.pts
            expected = bisect_right(info.pts, frame.pts)
            if frame.pts >= info.pts[place]:
                place = expected
                while told:
                    tell(told.pop(0))
                yield frame
                if place == len(info.pts):
                    return None
        if _is_fresh(info, clean_from, info.pts[place]):
            return place
        for what in told:
            tell(what)
        return None


def _is_fresh(info: MediaInfo, clean_from: int, time: int) -> bool:
    """Whether trouble may come from where decoding began: until two entries later no frame needs what was before."""
    passed = bisect_right(info.entries, (time, _ABOVE)) - bisect_right(info.entries, (clean_from, _ABOVE))
    return passed < 2


def _known(packets: Iterator[Any], info: MediaInfo) -> Iterator[Any]:
    """Packets from the first entry on; none where that is not what was there when the whole file was read."""
    for packet in packets:
        if packet.size and packet.is_keyframe:
            if packet.pts is not None and _has(info.entries, (packet.pts, zlib.crc32(packet))):
                yield packet
                yield from packets
            return


def _has(rising: Sequence[tuple[int, int]], one: tuple[int, int]) -> bool:
    place = bisect_left(rising, one)
    return place < len(rising) and rising[place] == one


@cache
def _tell_slow(path: str) -> None:
    log.warning("%s: cannot be read rightly from its midst: parts of it are decoded from the file's head", path)


def _decoded(container: Any, info: MediaInfo, tell: Callable[[str], None], exact: bool) -> Iterator[Any]:
    return decode_stream(container, container.streams[info.video_index], tell, exact or info.faulty)
