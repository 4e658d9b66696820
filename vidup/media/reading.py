"""Read a video's decoded frames from anywhere in it, the same as when all is decoded from the head."""

from __future__ import annotations

import logging
import zlib
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import cache
from itertools import chain
from threading import Lock
from typing import Any

import av

from vidup.frame import MediaInfo
from vidup.media import vp9_alpha
from vidup.media.opening import UNREADABLE, clock, open_input, reason, set_threads, tolerant_demux, video_context
from vidup.media.quantiser import OVERLAPPING, Quantisers, tell

log = logging.getLogger(__name__)

_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_ABOVE = 2**32  # more than any CRC-32

KEPT, KEPT_BYTES = 16, 2**27
"""How many of an open decoder's last frames are kept at most, and their bytes: so far the parts of a job overlap."""


def decode_stream(
    container: Any, stream: Any, damaged: Callable[[str], None], exact: bool = False, tells: bool = False
) -> Iterator[Any]:
    """Decode a video stream; an error is passed to `damaged`, as by `tolerant_demux`; `exact` as for `set_threads`."""
    yield from decode_packets(stream, tolerant_demux(container, stream, damaged), damaged, exact, tells)


def decode_packets(
    stream: Any, packets: Iterable[Any], damaged: Callable[[str], None], exact: bool = False, tells: bool = False
) -> Iterator[Any]:
    """Decode some packets of a video stream, as `decode_stream`.

    Args:
        tells: `quantiser.told` tells the step of each frame.
    """
    options = {"export_side_data": "venc_params"} if tells else {}
    context, unit = video_context(stream, **options), stream.time_base
    if not context.is_open:
        set_threads(context, exact or (tells and context.name in OVERLAPPING))
    quantisers = Quantisers(context) if tells else None
    last: int | None = None
    for packet in chain(packets, [None]):
        if packet is not None and packet.size == 0:
            continue  # would end the decoding
        if packet is not None and context.name == "ffv1" and not _checksums_match(bytes(packet)):
            damaged(f"its frame at {clock(packet.pts, unit)} is damaged")
        if packet is not None and quantisers is not None:
            quantisers.note(packet)
        try:
            frames = context.decode(packet)
        except EOFError:
            continue
        except UNREADABLE as error:
            if last is None and packet is not None:
                last = packet.pts if packet.pts is not None else packet.dts
            # With threads an error is raised at a later packet, but after the frames before it.
            where = "at its head" if last is None else f"after {clock(last, unit)}"
            damaged(f"is damaged {where}: {reason(error)}")
            continue
        for frame in frames:
            frame.time_base = unit  # the last ones, which come without a packet, have none
            time = frame.pts if frame.pts is not None else frame.dts
            last = last if time is None else time
            if quantisers is not None:
                tell(frame, quantisers(frame))
            yield frame


def _checksums_match(data: bytes) -> bool:
    """False where a slice of an FFV1 frame has a wrong checksum, which FFmpeg only logs; true where there are none.

    A slice ends with its size in 3 bytes, a byte of status, and a CRC-32 (RFC 9043, 4.9) over the bytes with their
    highest bit first; that of zlib takes the lowest first.
    """
    end, matching = len(data), True
    while end >= 8:
        begin = end - 8 - int.from_bytes(data[end - 8 : end - 5], "big")
        if begin < 0:
            return True
        matching &= zlib.crc32(data[begin:end].translate(_MIRRORED), 0xFFFFFFFF) == 0xFFFFFFFF
        end = begin
    return matching or end > 0


class Readers:
    """Decoders of one file that stay open from one part of it to the next.

    The next part goes on where a decoder stopped, without opening and seeking, or decoding from the head where frames
    can only be counted from there. Threads may read at the same time, each with a decoder of its own.

    Args:
        tells: as for `decode_packets`.
    """

    def __init__(self, info: MediaInfo, tells: bool = True) -> None:
        self._info, self._tells, self._lock = info, tells, Lock()
        self._idle: list[_Reader] = []

    def frames(self, low: int, warn: Callable[[str], None], exact: bool) -> Generator[Any, None, None]:
        """As `timed_frames`; closing the generator keeps the decoder for the next part."""
        with self._lock:
            reader = next((one for one in self._idle if one.reaches(low, exact)), None)
            if reader is not None:
                self._idle.remove(reader)
        reader = reader or _Reader(self._info, low, exact, self._tells)
        try:
            yield from reader.frames(self._info.pts[low], warn)
        except GeneratorExit:
            with self._lock:
                left, self._idle = self._idle[:-1], [*self._idle[-1:], reader]
            reader = left[0] if left else None
            raise
        finally:
            if reader is not None:
                reader.close()

    def close(self) -> None:
        """Close the decoders that are not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for reader in idle:
            reader.close()


class _Reader:
    """A decoder and its last frames, which the next part may begin with."""

    def __init__(self, info: MediaInfo, low: int, exact: bool, tells: bool) -> None:
        self._info, self._exact = info, exact
        self._kept: deque[tuple[int, Any]] = deque()
        self._warn: Callable[[str], None] = log.debug
        self._decoded = timed_frames(info, low, lambda what: self._warn(what), exact, tells)

    def reaches(self, low: int, exact: bool) -> bool:
        """Whether the frame at a place is kept or can be reached by reading on, and no seek is shorter."""
        if exact != self._exact or not self._kept or self._kept[0][0] > self._info.pts[low]:
            return False
        return self._info.timing != "packets" or self._kept[-1][0] >= self._info.pts[max(0, low - 1)]

    def frames(self, begin: int, warn: Callable[[str], None]) -> Iterator[Any]:
        self._warn = warn
        for pts, frame in list(self._kept):
            if pts >= begin:
                frame.pts, frame.time_base = pts, self._info.time_base  # the reader of the last part may change them
                yield frame
        for frame in self._decoded:
            self._keep(frame)
            yield frame

    def _keep(self, frame: Any) -> None:
        if not self._kept:  # the size of the first one is that of all
            size = sum(plane.buffer_size for plane in frame.planes)
            self._kept = deque(maxlen=max(1, min(KEPT, KEPT_BYTES // size)))
        self._kept.append((frame.pts, frame))

    def close(self) -> None:
        self._kept.clear()
        self._decoded.close()


def timed_frames(
    info: MediaInfo, low: int, warn: Callable[[str], None], exact: bool, tells: bool
) -> Generator[Any, None, None]:
    """Decoded frames from the place `low` in `info.pts` on or a little before it, each with its time.

    What cannot be read or decoded is described to `warn`; `exact` as for `set_threads`, `tells` as for
    `decode_packets`.
    """
    if info.timing == "packets":
        yield from _sought(info, low, warn, exact, tells)
        return
    # Frames without times can only be identified by counting from the head.
    with open_input(info.path) as container:
        for pts, frame in zip(info.pts, _decoded(container, info, warn, exact, tells), strict=False):
            frame.pts, frame.time_base = pts, info.time_base
            yield frame


def _sought(info: MediaInfo, low: int, warn: Callable[[str], None], exact: bool, tells: bool) -> Iterator[Any]:
    """The frames from the place `low` on, the same as when all is decoded from the head.

    Indexes of containers can be wrong or coarse, and the first frames after a key frame can need others before it. So
    decoding begins at a packet that was seen when the whole file was read; and if frames are missing or flagged so soon
    after it that this may be the cause, decoding begins again, further back and finally at the head.
    """
    place: int | None = low
    tries = 0
    while place is not None:
        before = bisect_right(info.entries, (info.pts[place], _ABOVE)) - 2**tries
        if before <= 0:
            if tries > 1:
                _warn_slow(info.path)
            with open_input(info.path) as container:
                for frame in _decoded(container, info, warn, exact, tells):
                    if frame.pts is not None and frame.pts >= info.pts[place]:
                        yield frame
            return
        place = yield from _from_entry(info, before, place, warn, exact or tries > 0, tells)
        tries += 1


def _from_entry(
    info: MediaInfo, entry: int, place: int, warn: Callable[[str], None], exact: bool, tells: bool
) -> Generator[Any, None, int | None]:
    """Decode from an entry on, and yield frames from `place` on; returns for which place to try again, or None."""
    troubles: list[str] = []  # reported once it is clear that the place where decoding began is not the cause
    with open_input(info.path) as container:
        stream = container.streams[info.video_index]
        try:
            container.seek(info.entries[entry][0], stream=stream, backward=True)
        except av.error.FFmpegError:  # no index, and none can be made
            return place
        packets = _known(tolerant_demux(container, stream, troubles.append), info)
        first = next(packets, None)
        if first is None or first.pts > info.pts[place]:
            return place
        is_vpx = vp9_alpha.decoder_for(stream) is not None  # libvpx does not flag key frames
        clean_from = first.pts
        expected = begin = bisect_left(info.pts, clean_from)
        exact = exact or info.faulty
        for frame in decode_packets(stream, chain([first], packets), troubles.append, exact, tells):
            if frame.pts is None or frame.pts < first.pts:
                continue
            if expected == begin and not frame.key_frame and not is_vpx:  # whatever the container states
                return place
            is_trouble = frame.is_corrupt or frame.pts != info.pts[expected]
            if is_trouble and _is_fresh(info, clean_from, frame.pts):
                if frame.pts >= info.pts[place]:
                    return place
                clean_from = frame.pts
            expected = bisect_right(info.pts, frame.pts)
            if frame.pts >= info.pts[place]:
                place = expected
                while troubles:
                    warn(troubles.pop(0))
                yield frame
                if place == len(info.pts):
                    return None
        if _is_fresh(info, clean_from, info.pts[place]):
            return place
        for what in troubles:
            warn(what)
        return None


def _is_fresh(info: MediaInfo, clean_from: int, time: int) -> bool:
    """Whether decoding began so near before a time that this may cause trouble: less than two key frames before."""
    passed = bisect_right(info.entries, (time, _ABOVE)) - bisect_right(info.entries, (clean_from, _ABOVE))
    return passed < 2


def _known(packets: Iterator[Any], info: MediaInfo) -> Iterator[Any]:
    """Packets from the first key frame on; none where that differs from what was there when the file was probed."""
    for packet in packets:
        if packet.size and packet.is_keyframe:
            if packet.pts is not None and (packet.pts, zlib.crc32(packet)) in info.entries:
                yield packet
                yield from packets
            return


@cache
def _warn_slow(path: str) -> None:
    log.warning("%s: cannot be decoded from its middle: parts of it are decoded from the file's head", path)


def _decoded(container: Any, info: MediaInfo, warn: Callable[[str], None], exact: bool, tells: bool) -> Iterator[Any]:
    return decode_stream(container, container.streams[info.video_index], warn, exact or info.faulty, tells)
