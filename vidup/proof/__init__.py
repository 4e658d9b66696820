"""Prove a delivery: re-read the output and compare it with its source, stream by stream and picture by picture."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

from vidup.config import Settings
from vidup.errors import VerifyError
from vidup.frame import Color, MediaInfo
from vidup.media import containers, conversion, decoding, joining, probing, streams
from vidup.media.conversion import StreamPlan
from vidup.media.delivery import Delivery, deliver
from vidup.media.encoder import Encoding
from vidup.media.opening import open_input
from vidup.media.packets import Track, tracks
from vidup.picture.color import UNSPECIFIED
from vidup.proof import pictures

_TICKS = {"mp4": Fraction(0), "mov": Fraction(0), "matroska": Fraction(1, 1000), "webm": Fraction(1, 1000)}
_CONVERTED = Fraction(1, 10)  # seconds by which sound that was encoded anew may begin or end elsewhere

# Tags that muxers write themselves, or that tell of the old encoding.
_OWN_TAGS = (
    *("major_brand", "minor_version", "compatible_brands", "encoder", "duration", "creation_time", "vendor_id"),
    *("handler_name", "bps", "number_of_", "_statistics_", "source_id", "filename", "mimetype", "timecode"),
)
# Of the tags of a file in mp4 and mov, those that their table has.
_MOV_TAGS = (
    *("title", "artist", "album", "album_artist", "composer", "comment", "date", "genre", "copyright", "name"),
    *("description", "synopsis", "show", "episode_id", "network", "language", "com."),
)


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
    info = probing.probe(Path(source), settings.tolerate_errors)
    container = containers.CONTAINERS.get(output.suffix.lower(), "matroska")
    delivery, times = deliver(info, container, settings), None
    if settings.tolerate_errors:  # which frames can be decoded only decoding tells
        last = info.pts[delivery.high] if delivery.high < len(info.pts) else None
        decoded = decoding.decode(info, info.pts[delivery.low], last, settings)
        times = [frame.pts - delivery.offset for frame in decoded]
    return check(output, delivery, times=times, fast=fast)


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
    told, places = _check_streams(output, made, delivery, shift)
    chapters = _check_facts(output, made, delivery, shift, places)
    compared, least = pictures.check_pictures(output, made, delivery, expected, fast)
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
    if containers.keeps_aspect(delivery.container, made.codec) and made.sample_aspect_ratio != aspect:
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
    shift = Fraction(0)
    if tick and found[0] - expected[0] * unit > tick / 2:
        # Matroska cannot begin below 0: all streams are moved by the time of the first packet that would.
        # Each time is rounded on its own: the usual distance is nearer to the truth than the first.
        usual = median(got - wanted * unit for got, wanted in zip(found[:1000], expected, strict=False))
        shift = round(usual / tick) * tick
        if shift > _below_zero(delivery) + tick:
            shift = Fraction(0)
    if len(found) != len(expected):
        where = _first_gap(found, expected, unit, shift)
        raise VerifyError(f"{output}: holds {len(found)} frames, expected {len(expected)}{where}")
    # Other programs move streams by parts of a tick, and then round again what does not lie on it.
    exact = shift == 0 or (tick and unit % tick == 0)
    for index, (got, wanted) in enumerate(zip(found, expected, strict=True)):
        if abs(got - shift - wanted * unit) > (tick / 2 if exact else tick):
            raise VerifyError(
                f"{output}: frame {index} is at {float(got):.6f} s, expected {float(wanted * unit + shift):.6f} s"
            )
    return shift


def _first_gap(found: Sequence[Fraction], expected: Sequence[int], unit: Fraction, shift: Fraction) -> str:
    for got, wanted in zip_longest(found, expected):
        if got is None or wanted is None or abs(got - shift - wanted * unit) > Fraction(1, 1000):
            return "" if wanted is None else f"; the first that differs should be at {float(wanted * unit):.6f} s"
    return ""


def _below_zero(delivery: Delivery) -> Fraction:
    """How far before 0 the first packet may lie, in seconds."""
    plans = [plan for plan in delivery.streams if plan.action in ("copy", "convert") and plan.kind != "attachment"]
    copied = streams.below_zero(delivery.info, plans, delivery.trim)
    # Sound that is encoded anew begins with its encoder's delay: at most 2,112 samples (AAC).
    encoded = any(plan.action == "convert" and plan.kind == "audio" for plan in delivery.streams)
    return max(copied, -delivery.times[0] * delivery.unit) + (Fraction(1, 20) if encoded else 0)


def _check_streams(
    output: Path, made: MediaInfo, delivery: Delivery, shift: Fraction
) -> tuple[list[str], dict[int, int]]:
    """Every stream that must be there, with its packets at their times.

    Returns:
        What became of each, in words, and its index in the source -> in the output.
    """
    plans = [plan for plan in delivery.streams if plan.action in ("copy", "convert") and plan.kind != "attachment"]
    here = tracks(delivery.info, [plan.index for plan in plans], delivery.trim)
    others = [s.index for s in made.streams if s.index != made.video_index and s.kind != "attachment"]
    there = tracks(made, others, None)
    kinds = {index: made.streams[index].kind for index in there}
    told = []
    # Without a packet in this part a stream may be left out by a muxer.
    places = _counterparts([plan for plan in plans if here[plan.index].pts], here, there, kinds)
    for plan in delivery.streams:
        if plan in plans:
            if not here[plan.index].pts:
                continue
            found = places.get(plan.index)
            if found is None:
                raise VerifyError(f"{output}: stream {plan.index} ({plan.name}) is missing")
            compare = _check_converted if plan.action == "convert" else _check_copy
            compare(output, plan, here[plan.index], there[found], shift)
            packets = len(here[plan.index].pts)
            told.append(f"{plan.name}: " + (f"{packets} packets equal" if plan.action == "copy" else "converted"))
        elif plan.action == "drop":
            told.append(f"{plan.name}: left out: {plan.reason}")
    _check_attachments(output, delivery)
    return told, places


def _counterparts(
    plans: Sequence[StreamPlan], here: dict[int, Track], there: dict[int, Track], kinds: dict[int, str]
) -> dict[int, int]:
    """Index in the source -> in the output: by order within a kind, or, where that holds something else, by what it
    holds; what is left goes to the first that is left.
    """
    found: dict[int, int] = {}

    def equal(plan: StreamPlan, index: int) -> bool:
        return bool(there[index].whole.digest() == here[plan.index].whole.digest())

    for kind in set(kinds.values()):
        wanted = [plan for plan in plans if plan.kind == kind]
        given = [index for index, other in kinds.items() if other == kind]
        for plan, index in zip(wanted, given, strict=False):
            if equal(plan, index) or (plan.action == "convert" and len(wanted) == len(given)):
                found[plan.index] = index
        for same in (True, False):
            for plan in wanted:
                free = [i for i in given if i not in found.values() and (not same or equal(plan, i))]
                if plan.index not in found and free:
                    found[plan.index] = free[0]
    return found


def _check_copy(output: Path, plan: StreamPlan, before: Track, after: Track, shift: Fraction) -> None:
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


def _check_converted(output: Path, plan: StreamPlan, before: Track, after: Track, shift: Fraction) -> None:
    name = f"{output}: stream {plan.index} ({plan.name}), converted to {plan.encoder},"
    if not after.pts:
        raise VerifyError(f"{name} is empty")
    if plan.kind == "subtitle":
        _check_texts(name, before, after, shift)
        return
    for what, mine, theirs in (("begins", before.begin(), after.begin()), ("ends", before.end, after.end)):
        late = theirs - mine - shift
        if abs(late) > _CONVERTED:
            raise VerifyError(f"{name} {what} {float(late):.4f} s late")


def _check_texts(name: str, before: Track, after: Track, shift: Fraction) -> None:
    """Each text at its time; what shows nothing, such as a drawing, need not arrive."""
    if len(after.texts) != len(before.texts):
        raise VerifyError(f"{name} holds {len(after.texts)} texts, expected {len(before.texts)}")
    for index, ((begin, mine), (late, theirs)) in enumerate(zip(before.texts, after.texts, strict=True)):
        if mine != theirs:
            raise VerifyError(f"{name} says {theirs!r} in text {index}, expected {mine!r}")
        if abs(late - begin - shift) > Fraction(2, 1000):
            raise VerifyError(f"{name} shows text {index} {float(late - begin - shift):.4f} s late")


def _check_attachments(output: Path, delivery: Delivery) -> None:
    with open_input(delivery.info.path) as source, open_input(output) as written:
        found = [stream for stream in written.streams if stream.type == "attachment"]
        covers = [stream for stream in written.streams if conversion.is_cover(stream)]
        data = {bytes(stream.data) for stream in found}
        for plan in delivery.streams:
            stream, name = source.streams[plan.index], f"{output}: stream {plan.index} ({plan.name})"
            if plan.action == "copy" and plan.kind == "attachment" and bytes(stream.data) not in data:
                raise VerifyError(f"{name} is missing, or differs from the input's")
            if conversion.is_cover(stream) and plan.action in ("copy", "attach") and not covers:
                raise VerifyError(f"{name} is missing")


def _check_facts(output: Path, made: MediaInfo, delivery: Delivery, shift: Fraction, places: dict[int, int]) -> int:
    """Chapters, tags and dispositions; returns how many chapters there are."""
    with open_input(delivery.info.path) as source, open_input(output) as written:
        wanted = joining.chapters(source, delivery.trim)
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
        original = source.streams[delivery.info.video_index]
        expected = streams.tags(original, delivery.container, encoded=True)
        _check_tags(output, "the video", expected, video.metadata, delivery)
        for index, place in places.items():
            original, stream, name = source.streams[index], written.streams[place], f"stream {index}"
            _check_tags(output, name, streams.tags(original, delivery.container), stream.metadata, delivery)
            _check_disposition(output, name, original, stream, delivery)
        return len(found)


def _check_disposition(output: Path, name: str, original: Any, stream: Any, delivery: Delivery) -> None:
    """What players choose by. Where mov has no first choice of a kind, its muxer makes the first track that."""
    if _family(delivery.info.container) != _family(delivery.container):
        return
    kept = [flag for flag in original.disposition if flag.name in ("default", "forced")]
    lost = [flag.name for flag in kept if not stream.disposition & flag]
    if lost:
        raise VerifyError(f"{output}: {name} is no longer marked as {', '.join(lost)}")


def _check_tags(output: Path, what: str, before: dict[str, str], after: dict[str, str], delivery: Delivery) -> None:
    """Each tag of the source that both families of containers know; of languages those that the output can say."""
    lower = {key.lower(): value for key, value in after.items()}
    families = {_family(delivery.info.container), _family(delivery.container)}
    for key, value in before.items():
        name = key.lower()
        if name == "title" and _family(delivery.container) == "mov" and what != "the file":
            name = "name"
        if name.startswith(_OWN_TAGS) or value == "und":
            continue
        unsaid = delivery.container == "mov" and name not in lower
        if name == "language" and "mov" in families and (unsaid or not re.fullmatch("[a-z]{3}", value)):
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
