"""Check the facts that an output states: size, pixel aspect, colour, rotation, chapters, tags, dispositions."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

from vidup.errors import VerifyError
from vidup.frame import Color, MediaInfo
from vidup.media import containers, joining, streams
from vidup.media.delivery import Delivery
from vidup.media.encoder import Encoding
from vidup.media.opening import open_input
from vidup.picture.color import UNSPECIFIED
from vidup.proof.findings import Findings


def check_size(output: Path, size: tuple[int, int], delivery: Delivery, encoding: Encoding | None) -> None:
    """Check (height, width) of the pictures; without an encoding, any enlargement of the source's is right."""
    height, width = delivery.input_size
    found, factor = f"{size[1]}x{size[0]}", max(size[0] / height, size[1] / width)
    if encoding is not None:
        if size != (encoding.height, encoding.width):
            raise VerifyError(f"{output}: its pictures are {found}, expected {encoding.width}x{encoding.height}")
    elif abs(height * factor - size[0]) > 2 or abs(width * factor - size[1]) > 2 or factor < 1:
        raise VerifyError(f"{output}: is {found}, which is no enlargement of {width}x{height}")


def check_picture(
    output: Path, made: MediaInfo, delivery: Delivery, encoding: Encoding | None, findings: Findings
) -> None:
    """Check rotation, pixel aspect and colour."""
    info = delivery.info
    aspect = 1 / info.sample_aspect_ratio if delivery.turn.transpose else info.sample_aspect_ratio
    color = info.color
    if encoding is not None:
        aspect, color = encoding.sample_aspect_ratio, encoding.color
    with findings.of("rotation"):
        turns = zip(_turning(made.display_matrix), _turning(delivery.display_matrix), strict=True)
        if any(abs(one - two) > 2 for one, two in turns):
            raise VerifyError(f"{output}: its rotation is {made.display_matrix}, expected {delivery.display_matrix}")
    with findings.of("pixel aspect"):
        if delivery.container.shows_aspect(made.codec) and made.sample_aspect_ratio != aspect:
            raise VerifyError(f"{output}: its pixel aspect is {made.sample_aspect_ratio}, expected {aspect}")
    with findings.of("colour"):
        _check_color(output, made, color, info)


def _turning(matrix: tuple[int, ...] | None) -> tuple[int, ...]:
    """The part of a display matrix that rotates and flips; None is the identity."""
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


def check_facts(
    output: Path, made: MediaInfo, delivery: Delivery, shift: Fraction, places: dict[int, int], findings: Findings
) -> int:
    """Check chapters, tags and flags of streams, index in the source -> output; returns the number of chapters."""
    with open_input(delivery.info.path, whole=delivery.info.unlisted) as source, open_input(output) as written:
        wanted = joining.chapters(source, delivery.trim)
        with findings.of("chapters"):
            _check_chapters(output, wanted, written.chapters(), shift)
        arriving = delivery.container.arriving(source.metadata)
        _check_tags(output, "the file", arriving, written.metadata, delivery, findings)
        video = written.streams[made.video_index]
        original = source.streams[delivery.info.video_index]
        expected = streams.tags(original, delivery.container, encoded=True)
        _check_tags(output, "the video", expected, video.metadata, delivery, findings)
        for index, place in places.items():
            original, stream, name = source.streams[index], written.streams[place], f"stream {index}"
            _check_tags(output, name, streams.tags(original, delivery.container), stream.metadata, delivery, findings)
            for flag in _flags(original, delivery):
                with findings.of(f"flag {flag.name} of {name}"):
                    if not stream.disposition & flag:
                        raise VerifyError(f"{output}: {name} is no longer marked as {flag.name}")
        return len(wanted)


def _check_chapters(output: Path, wanted: list[Any], found: list[Any], shift: Fraction) -> None:
    if len(found) == len(wanted) + 1 and wanted and wanted[0]["start"] > 0 and not found[0]["metadata"].get("title"):
        found = found[1:]  # mov needs one for the time before the first
    if len(found) != len(wanted):
        raise VerifyError(f"{output}: holds {len(found)} chapters, expected {len(wanted)}")
    for index, (mine, theirs) in enumerate(zip(wanted, found, strict=True)):
        gap = theirs["start"] * theirs["time_base"] - mine["start"] * mine["time_base"] - shift
        titles = [chapter["metadata"].get("title") or "" for chapter in (mine, theirs)]  # mov stores none as empty
        if abs(gap) > Fraction(2, 1000) or titles[0] != titles[1]:
            raise VerifyError(
                f"{output}: chapter {index} is {titles[1]!r:.80}, {float(gap):.4f} s late, expected {titles[0]!r:.80}"
            )


def _flags(stream: Any, delivery: Delivery) -> list[Any]:
    """The flags by which players choose. Mov's muxer may add one: where no track is the default, to the first."""
    if containers.family(delivery.info.container) != delivery.container.family:
        return []
    return [flag for flag in stream.disposition if flag.name in ("default", "forced")]


def _check_tags(
    output: Path, what: str, tags: dict[str, str], after: dict[str, str], delivery: Delivery, findings: Findings
) -> None:
    """Check the tags that both families of containers know, and languages that the output can store."""
    found = {key.lower(): value for key, value in after.items()}
    container, families = delivery.container, {containers.family(delivery.info.container), delivery.container.family}
    is_track = container.family == "mov" and what != "the file"  # of its tags mov stores the title, as name
    for key, value in tags.items():
        name = "name" if is_track and key.lower() == "title" else key.lower()
        if name.startswith(containers.OWN_TAGS) or value == "und":
            continue
        if name == "language":
            is_unsaid = bool(container.languages) and name not in found
            if "mov" in families and (is_unsaid or not re.fullmatch("[a-z]{3}", value)):
                continue
        elif len(families) > 1 or (is_track and name != "name"):
            continue
        with findings.of(f"tag {key} of {what}"):
            if found.get(name) != value:
                raise VerifyError(
                    f"{output}: the tag {key} of {what} is {found.get(name)!r:.80}, expected {value!r:.80}"
                )
