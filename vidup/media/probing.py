"""What is in a file: `probe` reads its headers, the times of its packets and its first frames."""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, Literal, cast

import av

from vidup.errors import MediaError
from vidup.frame import Color, MediaInfo, StreamInfo
from vidup.media import cropping, hdr, interlace, side_data
from vidup.media.containers import family
from vidup.media.decoding import decode_stream, rising
from vidup.media.opening import MOST_PIXELS, channels, clock, codec_name, open_input, tolerant_demux
from vidup.picture.color import UNSPECIFIED

# Containers that state a duration in their header, so that a file cut short can be told.
_STATE_DURATION = {"matroska", "webm", "mov", "mp4", "avi", "flv", "asf"}
_SHORT_SECONDS = Fraction(1, 2)  # how far streams may end before the stated duration

_LOOKED_AT = 8  # frames that are decoded to see that their times are those of the packets


def probe(path: str | Path, tolerate_errors: bool = False) -> MediaInfo:
    """Read a file's headers, the times of its packets, and its first frames.

    All of the file is read once, which takes seconds for a film; only where packets do not tell the times of frames
    is it decoded as well.

    Args:
        tolerate_errors: make the best of a damaged file; what is wrong with it is told in `MediaInfo.notes`.

    Raises:
        MediaError: no media file, no video stream, a codec that cannot be decoded, a file that is damaged or cut short.
    """
    with open_input(path) as container:
        stream = _video_stream(container, path)
        index, unit, rate = stream.index, stream.time_base, stream.average_rate or stream.guessed_rate
        if stream.width * stream.height > MOST_PIXELS:
            raise MediaError(f"{path}: claims frames of {stream.width}x{stream.height}: more than {MOST_PIXELS} pixels")
        packets = _Packets(Path(path), unit, tolerate_errors)
        packets.read(container, stream)
    with open_input(path) as container:
        stream = container.streams[index]
        decoded = decode_stream(container, stream, packets.damaged, tolerate_errors)
        frames = list(islice(decoded, _LOOKED_AT))
        if not frames:
            why = f"cannot be decoded ({packets.notes[-1]})" if packets.notes else "gives no frame"
            raise MediaError(f"{path}: its {codec_name(stream)} video {why}")
        first, notes = frames[0], packets.notes
        if packets.timing == "packets" and not _agree(frames, packets.pts):
            packets.decode(index)
        elif packets.timing == "packets" and (lost := bisect_left(packets.pts, first.pts)):
            notes.append(f"its first {lost} frames (to {clock(first.pts, unit)}) cannot be decoded: they are left out")
            del packets.pts[:lost]
        packets.settle(Fraction(rate or 25))
        if packets.timing == "made":
            notes.append(f"the stream bears no times: taken as {float(packets.rate):.3f} frames a second")
        matrix = side_data.side_data(first).get("DISPLAYMATRIX")
        shown = cropping.shown_size(Path(path), family(container.format.name), stream.id, (first.width, first.height))
        if shown is not None:
            notes.append(
                f"the file says that only {shown[0]}x{shown[1]} of {first.width}x{first.height} pixels are to be shown"
                " (clean aperture): that is lost, all will be shown"
            )
        color = Color(
            int(first.colorspace), int(first.color_primaries), int(first.color_trc), int(first.color_range) == 2
        )
        return MediaInfo(
            path=str(path),
            container=container.format.name,
            video_index=index,
            codec=stream.codec_context.name,
            width=first.width,
            height=first.height,
            pix_fmt=first.format.name,
            color=color,
            color_tagged=color.matrix != UNSPECIFIED,
            sample_aspect_ratio=Fraction(stream.sample_aspect_ratio or 1),
            rotation=first.rotation,
            display_matrix=struct.unpack("<9i", matrix) if matrix else None,
            field_order=interlace.detect(stream, chain(frames, decoded)),
            hdr=hdr.read_hdr(first),
            dynamic_hdr=tuple(hdr.dynamic_hdr(first, stream)),
            time_base=unit,
            pts=tuple(packets.pts),
            timing=packets.timing,
            begin=Fraction(container.start_time or 0, 1_000_000),
            end=packets.end,
            frames=len(packets.pts),
            rate=packets.rate.limit_denominator(100_000),  # encoders take 32 bits on either side
            variable_rate=packets.variable_rate,
            streams=tuple(_stream_info(s) for s in container.streams),
            chapters=len(container.chapters()),
            side_data=side_data.kinds(frames, stream),
            stereo_mode=side_data.stereo_mode(first),
            notes=tuple(notes),
            tolerant=tolerate_errors,
        )


@dataclass
class _Packets:
    """What the packets of a file tell of its frames."""

    path: Path
    unit: Fraction
    tolerate_errors: bool
    pts: list[int] = field(default_factory=list)
    timing: Literal["packets", "order", "made"] = "packets"
    end: int = 0
    length: int | None = None
    """Of every packet, where all say the same."""
    rate: Fraction = Fraction(0)
    variable_rate: bool = False
    notes: list[str] = field(default_factory=list)

    def read(self, container: Any, stream: Any) -> None:
        """Read all packets; fill `pts` from their times, as far as they have any."""
        shown: dict[int, int] = {}
        decoded: list[int] = []
        total = seen = 0
        last = Fraction(0)
        for packet in tolerant_demux(container, None, self.damaged):
            if packet.size == 0 or packet.time_base is None:
                continue  # a flush packet
            begins = packet.pts if packet.pts is not None else packet.dts
            if begins is not None:
                last = max(last, (begins + (packet.duration or 0)) * packet.time_base)
            if packet.stream is not stream:
                continue
            total += 1
            if packet.is_corrupt:
                self.damaged(f"is damaged or cut short at {clock(begins, packet.time_base)}")
            if packet.is_discard:
                continue
            seen += 1
            if packet.pts is not None:
                shown[packet.pts] = packet.duration or 0
            if packet.dts is not None:
                decoded.append(packet.dts)
        if total == 0:
            raise MediaError(f"{self.path}: its video stream holds no frames")
        self._check_whole(container, stream, total, last)
        if shown:
            self.pts = sorted(shown)
            self.end = self.pts[-1] + shown[self.pts[-1]]
            self.length = shown[self.pts[-1]] if len(set(shown.values())) == 1 else None
            if len(shown) < seen:  # fields or parts of frames, some without a time: only the frames themselves tell
                self.decode(stream.index)
        elif codec_name(stream) == "mpeg4":  # its packets may hold two frames, or none
            self.decode(stream.index)
        elif len(set(decoded)) == seen:
            self.pts, self.timing = sorted(decoded), "order"
        else:
            self.pts, self.timing = list(range(seen)), "made"

    def decode(self, index: int) -> None:
        """Take the times from the frames themselves: decodes the whole file."""
        self.pts, last_duration = [], 0
        with open_input(self.path) as container:
            frames = decode_stream(container, container.streams[index], self.damaged, self.tolerate_errors)
            for frame in rising(frames, self.unit, self.damaged):
                self.pts.append(frame.pts)
                last_duration = frame.duration
        if not self.pts:
            raise MediaError(f"{self.path}: its video stream gives no frames with times")
        self.timing = "packets"
        self.end = self.pts[-1] + (last_duration or 0)

    def settle(self, rate: Fraction) -> None:
        """Find the rate, and where the last frame ends."""
        if self.timing == "made":
            step = max(1, round(1 / rate / self.unit))
            self.pts = [index * step for index in range(len(self.pts))]
        steps = Counter(b - a for a, b in pairwise(self.pts))
        usual = steps.most_common(1)[0][0] if steps else max(1, round(1 / rate / self.unit))
        is_made_up = self.length is not None and 2 * self.length < usual  # some programs write 1 for all
        if self.end <= self.pts[-1] or is_made_up:
            self.end = self.pts[-1] + usual
        # Times that are rounded to the container's tick differ by one unit.
        self.variable_rate = any(abs(step - usual) > 1 for step in steps)
        span = self.pts[-1] - self.pts[0]
        self.rate = (len(self.pts) - 1) / (span * self.unit) if span else Fraction(rate)

    def _check_whole(self, container: Any, stream: Any, total: int, last: Fraction) -> None:
        formats = set(container.format.name.split(","))
        end = f"{float(last):.3f} s"
        if "mov" in formats and total < (held := self._indexed(container, stream)):
            self.damaged(f"is cut short: it says {held} frames and holds {total}; what is there ends at {end}")
            return
        if "matroska" in formats and (missing := _missing(self.path)):
            self.damaged(f"is cut short: its last {missing} bytes are missing; what is there ends at {end}")
            return
        if container.duration and formats & _STATE_DURATION:
            stated = Fraction(container.duration, 1_000_000)  # with or without the time before the first frame
            if last < stated * Fraction(99, 100) - _SHORT_SECONDS:
                self.damaged(f"is cut short: it says {float(stated):.3f} s and ends at {end}")

    def _indexed(self, container: Any, stream: Any) -> int:
        """How many frames the index of a mov or mp4 says that there are; without those that an edit list leaves out."""
        indexed = len(stream.index_entries)
        if indexed < stream.frames:
            with open_input(self.path, {"ignore_editlist": "1"}) as unedited:
                if len(unedited.streams[stream.index].index_entries) < stream.frames:
                    return cast(int, stream.frames)
        return indexed

    def damaged(self, what: str) -> None:
        if not self.tolerate_errors:
            raise MediaError(f"{self.path}: {what}; --tolerate-errors upscales what can be decoded")
        if (note := f"damaged: {what}") not in self.notes:
            self.notes.append(note)


def _missing(path: Path) -> int:
    """By how many bytes a Matroska file is shorter than its segment says; 0 where that says nothing."""
    place, size = 0, path.stat().st_size
    with path.open("rb") as file:
        for name in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # EBML, Segment
            file.seek(place)
            head = file.read(12)
            if head[:4] != name or len(head) < 12 or head[4] == 0:
                return 0
            # The first bit that is set tells how many bytes hold the length; all others set: not known (RFC 8794, 4).
            count = 9 - head[4].bit_length()
            mask = (1 << 7 * count) - 1
            length = int.from_bytes(head[4 : 4 + count], "big") & mask
            if length == mask:
                return 0
            place += 4 + count + length
    return max(0, place - size)


def _video_stream(container: Any, path: str | Path) -> Any:
    attached = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & attached]
    if not streams:
        kinds = ", ".join(f"{s.type} {codec_name(s)}" for s in container.streams) or "nothing"
        raise MediaError(f"{path}: has no video stream (it holds {kinds})")
    preferred = [s for s in streams if s.disposition & av.stream.Disposition.default]
    stream = (preferred or streams)[0]
    if stream.codec_context is None:
        raise MediaError(f"{path}: its video codec cannot be decoded")
    return stream


def _agree(frames: list[Any], pts: list[int]) -> bool:
    """Whether the first frames come at the times that the packets say, and none is left out between them."""
    times = [frame.pts for frame in frames]
    if None in times or times[0] not in pts:
        return False
    begin = bisect_left(pts, times[0])
    return list(islice(pts, begin, begin + len(times))) == times


def _stream_info(stream: Any) -> StreamInfo:
    context = stream.codec_context
    detail = ""
    if stream.type == "video" and context is not None:
        detail = f"{context.width}x{context.height} {context.pix_fmt or ''}".strip()
    elif stream.type == "audio" and context is not None:
        detail = f"{context.sample_rate} Hz {channels(context).layout}"
    return StreamInfo(stream.index, stream.type, codec_name(stream), detail, stream.metadata.get("language", ""))
