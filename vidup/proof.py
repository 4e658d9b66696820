"""Prove a delivery: re-read the output and compare it with its source, stream by stream and picture by picture."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from typing import Any

from vidup import likeness, probing, streams, writer
from vidup.color import UNSPECIFIED
from vidup.config import Settings
from vidup.encoder import Encoding
from vidup.errors import VerifyError
from vidup.frame import Color, MediaInfo
from vidup.planning import Delivery, deliver
from vidup.reader import open_input
from vidup.streams import StreamPlan

_TICKS = {"mp4": Fraction(0), "mov": Fraction(0), "matroska": Fraction(1, 1000), "webm": Fraction(1, 1000)}
_CONVERTED = Fraction(1, 10)  # seconds by which sound that was encoded anew may begin or end elsewhere

# Tags that muxers write themselves, or that tell of the old encoding.
_OWN_TAGS = ("major_brand", "minor_version", "compatible_brands", "encoder", "duration", "creation_time", "vendor_id")
# Of the tags of a file in mp4 and mov, those that their table has.
_MOV_TAGS = ("title", "artist", "album", "album_artist", "composer", "comment", "date", "genre", "copyright")
_MOV_TAGS += ("description", "synopsis", "show", "episode_id", "network", "language", "com.")
_OWN_TAGS += ("handler_name", "bps", "number_of_", "_statistics_", "source_id", "filename", "mimetype", "timecode")


@dataclass(frozen=True)
class Receipt:
    """What was found equal."""

    source: str
    output: str
    frames: int
    compared: int
    """Pictures that were decoded and compared with the source's."""
    least_likeness: float
    """Of the picture that is least like its source: 1 is equal."""
    size: tuple[int, int]
    """(height, width) of the output's pictures."""
    streams: tuple[str, ...]
    """What became of each other stream of the source, in words."""
    chapters: int
    sha256: str
    """Of the output file."""


def verify(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    fast: bool = False,
) -> Receipt:
    """Prove that an upscaled file, whoever made it, holds all that its source holds.

    Args:
        settings: where the output was made of a part, deinterlaced in another way, turned, or without sound or
            subtitles, the settings that say so; nothing else of them is used.
        fast: compare samples of the pictures instead of all.

    Raises:
        MediaError: a file cannot be read.
        VerifyError: names the first difference.
    """
    settings, output = settings or Settings(), Path(output)
    info = probing.probe(source, settings.tolerate_errors)
    container = writer.CONTAINERS.get(output.suffix.lower(), "matroska")
    return check(output, deliver(info, container, settings), fast=fast)


def check(
    output: Path,
    delivery: Delivery,
    encoding: Encoding | None = None,
    times: Sequence[int] | None = None,
    fast: bool = False,
) -> Receipt:
    """Compare a written file with what it must hold.

    Args:
        encoding: what its pictures must be; where it is not known, any size of the source's shape, and its colour.
        times: when its frames are shown, in `delivery.unit`, where some of the source's could not be decoded.

    Raises:
        VerifyError: names the first difference.
    """
    try:
        made = probing.probe(output)
    except Exception as error:
        raise VerifyError(f"{output}: cannot be read back: {error}") from error
    _check_picture(output, made, delivery, encoding)
    expected = delivery.times if times is None else times
    shift = _check_times(output, made, expected, delivery)
    told = _check_streams(output, made, delivery, shift)
    chapters = _check_facts(output, made, delivery, shift)
    compared, least = likeness.check_pictures(output, made, delivery, expected, fast)
    return Receipt(
        source=delivery.info.path,
        output=str(output),
        frames=len(made.pts),
        compared=compared,
        least_likeness=least,
        size=(made.height, made.width),
        streams=tuple(told),
        chapters=chapters,
        sha256=_sha256(output),
    )


def _check_picture(output: Path, made: MediaInfo, delivery: Delivery, encoding: Encoding | None) -> None:
    info, turn = delivery.info, delivery.turn
    if encoding is not None:
        size, aspect, color = (encoding.height, encoding.width), encoding.sample_aspect_ratio, encoding.color
    else:
        height, width = turn.size(info.height, info.width)
        factor = max(made.height / height, made.width / width)
        size = (made.height, made.width)
        if abs(height * factor - made.height) > 2 or abs(width * factor - made.width) > 2 or factor < 1:
            raise VerifyError(f"{output}: is {made.width}x{made.height}, which is no enlargement of {width}x{height}")
        aspect = 1 / info.sample_aspect_ratio if turn.transpose else info.sample_aspect_ratio
        color = info.color
    if (made.height, made.width) != size:
        raise VerifyError(f"{output}: its pictures are {made.width}x{made.height}, expected {size[1]}x{size[0]}")
    matrix = None if delivery.settings.bake_rotation else info.display_matrix
    if _turning(made.display_matrix) != _turning(matrix):
        raise VerifyError(f"{output}: its rotation is {made.display_matrix}, expected {matrix}")
    if writer.keeps_aspect(delivery.container, made.codec) and made.sample_aspect_ratio != aspect:
        raise VerifyError(f"{output}: its pixel aspect is {made.sample_aspect_ratio}, expected {aspect}")
    _check_color(output, made, color, info)


def _turning(matrix: tuple[int, ...] | None) -> tuple[int, ...]:
    """The part of a display matrix that turns; what is no rotation is as none."""
    return (65536, 0, 0, 65536) if matrix is None else (matrix[0], matrix[1], matrix[3], matrix[4])


def _check_color(output: Path, made: MediaInfo, color: Color, info: MediaInfo) -> None:
    for name in ("matrix", "primaries", "transfer"):
        expected, found = getattr(color, name), getattr(made.color, name)
        rgb = name == "matrix" and 0 in (expected, found)  # RGB may become Y'CbCr
        if expected != UNSPECIFIED and expected != found and not rgb and not {expected, found} == {5, 6}:
            raise VerifyError(f"{output}: its colour {name} is {found} (of ITU-T H.273), expected {expected}")
    if color.full_range != made.color.full_range and not info.pix_fmt.startswith(("gbr", "rgb", "bgr", "pal", "gray")):
        words = {True: "full", False: "limited"}
        found, expected = words[made.color.full_range], words[color.full_range]
        raise VerifyError(f"{output}: its colour range is {found}, expected {expected}")


def _check_times(output: Path, made: MediaInfo, expected: Sequence[int], delivery: Delivery) -> Fraction:
    """Every frame at its time; returns by how much the container moved all streams, in seconds."""
    tick, unit = _TICKS[delivery.container], delivery.unit
    found = [time * made.time_base for time in made.pts]
    if len(found) != len(expected):
        where = _first_gap(found, expected, unit)
        raise VerifyError(f"{output}: holds {len(found)} frames, expected {len(expected)}{where}")
    shift = Fraction(0)
    if tick and found[0] - expected[0] * unit > tick / 2:
        # Matroska cannot begin below 0: its muxer moves all streams by the time of the first packet that does.
        shift = found[0] - expected[0] * unit
        if shift > _below_zero(delivery) + tick:
            raise VerifyError(f"{output}: all frames are {float(shift):.4f} s late")
    for index, (got, wanted) in enumerate(zip(found, expected, strict=True)):
        # a shift and a time may each be rounded to the tick
        if abs(got - shift - wanted * unit) > (tick if shift else tick / 2):
            raise VerifyError(
                f"{output}: frame {index} is at {float(got):.6f} s, expected {float(wanted * unit + shift):.6f} s"
            )
    return shift


def _first_gap(found: Sequence[Fraction], expected: Sequence[int], unit: Fraction) -> str:
    for got, wanted in zip_longest(found, expected):
        if got is None or wanted is None or abs(got - wanted * unit) > unit + Fraction(1, 1000):
            return "" if wanted is None else f"; the first that differs should be at {float(wanted * unit):.6f} s"
    return ""


def _below_zero(delivery: Delivery) -> Fraction:
    """How far before 0 the first packet lies that is copied."""
    copies = [plan.index for plan in delivery.streams if plan.action in ("copy", "convert")]
    earliest = min(Fraction(0), delivery.times[0] * delivery.unit)
    with open_input(delivery.info.path) as source:
        seen = set()
        for packet in streams.kept_packets(source, copies, delivery.trim):
            if packet.pts is not None:
                earliest = min(earliest, packet.pts * packet.time_base)
            seen.add(packet.stream.index)
            if len(seen) == len(copies):
                break
    # Sound that is encoded anew begins with its encoder's delay: at most 2,112 samples (AAC).
    encoded = any(plan.action == "convert" and plan.kind == "audio" for plan in delivery.streams)
    return -earliest + (Fraction(1, 20) if encoded else 0)


@dataclass
class _Track:
    """Fingerprint of a stream's packets."""

    unit: Fraction
    codec: str
    pts: array[int] = field(default_factory=lambda: array("q"))
    end: Fraction = Fraction(0)
    digests: list[bytes] = field(default_factory=list)
    whole: Any = field(default_factory=hashlib.sha256)

    def add(self, packet: Any) -> None:
        payload = _payload(packet)
        if self.codec == "mov_text" and len(payload) <= 2:
            return  # an empty text, with which mov fills gaps
        time = packet.pts if packet.pts is not None else packet.dts or 0
        self.pts.append(time)
        self.end = (time + (packet.duration or 0)) * self.unit
        self.digests.append(hashlib.blake2b(payload, digest_size=8).digest())
        self.whole.update(payload)

    def begin(self) -> Fraction:
        return self.pts[0] * self.unit


def _payload(packet: Any) -> bytes:
    """The packet without the ADTS header that AAC has in a transport stream and must not have elsewhere."""
    data = bytes(packet)
    if packet.stream.codec_context.name == "aac" and data[:1] == b"\xff" and data[1] & 0xF6 == 0xF0:
        return data[7 if data[1] & 1 else 9 :]
    return data


def _tracks(path: str | Path, indices: Sequence[int], trim: streams.Trim | None) -> dict[int, _Track]:
    with open_input(path) as container:
        tracks = {}
        for index in indices:
            stream = container.streams[index]
            tracks[index] = _Track(stream.time_base, stream.codec_context.name if stream.codec_context else "")
        for packet in streams.kept_packets(container, indices, trim):
            tracks[packet.stream.index].add(packet)
    return tracks


def _check_streams(output: Path, made: MediaInfo, delivery: Delivery, shift: Fraction) -> list[str]:
    """Every stream that must be there, with its packets at their times; returns what became of each, in words."""
    plans = [plan for plan in delivery.streams if plan.action in ("copy", "convert") and plan.kind != "attachment"]
    here = _tracks(delivery.info.path, [plan.index for plan in plans], delivery.trim)
    others = [s.index for s in made.streams if s.index != made.video_index and s.kind != "attachment"]
    there = _tracks(output, others, None)
    left = {index: made.streams[index].kind for index in there}
    told = []
    for plan in delivery.streams:
        if plan in plans:
            if not here[plan.index].pts:
                continue  # without a packet in this part; muxers may leave such a stream out
            found = _counterpart(plan, here[plan.index], there, left)
            if found is None:
                raise VerifyError(f"{output}: stream {plan.index} ({plan.name}) is missing")
            del left[found]
            compare = _check_converted if plan.action == "convert" else _check_copy
            compare(output, plan, here[plan.index], there[found], shift)
            packets = len(here[plan.index].pts)
            told.append(f"{plan.name}: " + (f"{packets} packets equal" if plan.action == "copy" else "converted"))
        elif plan.action == "drop":
            told.append(f"{plan.name}: left out: {plan.reason}")
    _check_attachments(output, delivery)
    return told


def _counterpart(plan: StreamPlan, track: _Track, there: dict[int, _Track], left: dict[int, str]) -> int | None:
    """The output's stream that is this one: the first of its kind with the same packets, else the first of its kind."""
    same_kind = [index for index, kind in left.items() if kind == plan.kind]
    equal = [index for index in same_kind if there[index].whole.digest() == track.whole.digest()]
    return next(iter(equal or same_kind), None)


def _check_copy(output: Path, plan: StreamPlan, before: _Track, after: _Track, shift: Fraction) -> None:
    name = f"{output}: stream {plan.index} ({plan.name})"
    tolerance = 2 * max(before.unit, after.unit, Fraction(1, 100_000))
    reframed = before.codec.startswith("pcm_")  # mov stores samples, not packets
    if not reframed:
        for index, (mine, theirs) in enumerate(zip_longest(before.digests, after.digests)):
            if mine != theirs:
                count = f" (it holds {len(after.digests)} packets, expected {len(before.digests)})"
                where = "" if mine and theirs else count
                raise VerifyError(f"{name}: packet {index} differs from the input's{where}")
        for index, (mine, theirs) in enumerate(zip(before.pts, after.pts, strict=True)):
            late = theirs * after.unit - mine * before.unit - shift
            if abs(late) > tolerance:
                raise VerifyError(f"{name}: packet {index} is {float(late):.4f} s late")
        return
    if before.whole.digest() != after.whole.digest():
        raise VerifyError(f"{name}: its samples differ from the input's")
    late = after.begin() - before.begin() - shift
    if abs(late) > tolerance:
        raise VerifyError(f"{name}: is {float(late):.4f} s late")


def _check_converted(output: Path, plan: StreamPlan, before: _Track, after: _Track, shift: Fraction) -> None:
    name = f"{output}: stream {plan.index} ({plan.name}), converted to {plan.encoder},"
    if not after.pts:
        raise VerifyError(f"{name} is empty")
    if plan.kind == "subtitle" and len(after.pts) != len(before.pts):
        raise VerifyError(f"{name} holds {len(after.pts)} texts, expected {len(before.pts)}")
    for what, mine, theirs in (("begins", before.begin(), after.begin()), ("ends", before.end, after.end)):
        late = theirs - mine - shift
        if abs(late) > _CONVERTED:
            raise VerifyError(f"{name} {what} {float(late):.4f} s late")


def _check_attachments(output: Path, delivery: Delivery) -> None:
    with open_input(delivery.info.path) as source, open_input(output) as written:
        found = [stream for stream in written.streams if stream.type == "attachment"]
        covers = [stream for stream in written.streams if streams.is_cover(stream)]
        data = {bytes(stream.data) for stream in found}
        for plan in delivery.streams:
            stream, name = source.streams[plan.index], f"{output}: stream {plan.index} ({plan.name})"
            if plan.action == "copy" and plan.kind == "attachment" and bytes(stream.data) not in data:
                raise VerifyError(f"{name} is missing, or differs from the input's")
            if streams.is_cover(stream) and plan.action in ("copy", "attach") and not covers:
                raise VerifyError(f"{name} is missing")


def _check_facts(output: Path, made: MediaInfo, delivery: Delivery, shift: Fraction) -> int:
    """Chapters, tags and dispositions; returns how many chapters there are."""
    with open_input(delivery.info.path) as source, open_input(output) as written:
        wanted = writer.chapters(source, delivery.trim)
        found = written.chapters()
        if len(found) != len(wanted):
            raise VerifyError(f"{output}: holds {len(found)} chapters, expected {len(wanted)}")
        for index, (mine, theirs) in enumerate(zip(wanted, found, strict=True)):
            gap = theirs["start"] * theirs["time_base"] - mine["start"] * mine["time_base"] - shift
            titles = mine["metadata"].get("title"), theirs["metadata"].get("title")
            if abs(gap) > Fraction(2, 1000) or titles[0] != titles[1]:
                raise VerifyError(
                    f"{output}: chapter {index} is {titles[1]!r}, {float(gap):.4f} s late, expected {titles[0]!r}"
                )
        _check_tags(output, "the file", source.metadata, written.metadata, delivery)
        video = written.streams[made.video_index]
        _check_tags(output, "the video", source.streams[delivery.info.video_index].metadata, video.metadata, delivery)
        kept = [p for p in delivery.streams if p.action in ("copy", "convert") and p.kind in ("audio", "subtitle")]
        for kind in ("audio", "subtitle"):
            theirs = [s for s in written.streams if s.type == kind]
            for plan, stream in zip([p for p in kept if p.kind == kind], theirs, strict=False):
                original = source.streams[plan.index]
                name = f"stream {plan.index} ({plan.name})"
                _check_tags(output, name, original.metadata, stream.metadata, delivery)
                same = _family(delivery.info.container) == _family(delivery.container)
                if same and original.disposition != stream.disposition:
                    raise VerifyError(f"{output}: {name} is {stream.disposition!r}, expected {original.disposition!r}")
        return len(found)


def _check_tags(output: Path, what: str, before: dict[str, str], after: dict[str, str], delivery: Delivery) -> None:
    """Each tag of the source that both families of containers know."""
    lower = {key.lower(): value for key, value in after.items()}
    families = {_family(delivery.info.container), _family(delivery.container)}
    for key, value in before.items():
        name = key.lower()
        if name.startswith(_OWN_TAGS) or value == "und":
            continue
        known = families == {"matroska"} or (families == {"mov"} and name.startswith(_MOV_TAGS)) or name == "language"
        if known and lower.get(name) != value:
            raise VerifyError(f"{output}: the tag {key} of {what} is {lower.get(name)!r}, expected {value!r}")


def _family(container: str) -> str:
    names = set(container.split(","))
    return "mov" if names & {"mov", "mp4"} else "matroska" if names & {"matroska", "webm"} else container


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
