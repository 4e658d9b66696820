"""Prove an output: read it again and compare it with its source, stream by stream and picture by picture."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from vidup.errors import VerifyError
from vidup.frame import MediaInfo, layout
from vidup.media import probing
from vidup.media.decoding import planar
from vidup.media.delivery import Delivery
from vidup.media.encoder import Encoding
from vidup.media.sequences import find, is_sequence
from vidup.proof import animation, facts, joined, packets, pictures
from vidup.proof.findings import Findings


@dataclass(frozen=True)
class Receipt(os.PathLike[str]):
    """The result of a proof without a difference. As a path it is that of the output."""

    source: Path
    output: Path
    frames: int
    compared: int
    """The number of pictures that were decoded and compared; of a resumed job, those made since."""
    least_likeness: float
    """The least likeness of a compared picture to its source: 1 is equal."""
    size: tuple[int, int]
    """(height, width) of the output's pictures."""
    streams: tuple[str, ...]
    """What was done with each other stream of the source, in words."""
    chapters: int
    sha256: str
    """The digest of the output file."""

    def __fspath__(self) -> str:
        return str(self.output)

    def lines(self) -> list[str]:
        """The same in words, as ``vidup verify`` prints it."""
        height, width = self.size
        like = f"; the least like its source is so to {self.least_likeness:.4f}" if self.compared else ""
        return [
            f"{self.output}: verified against {self.source}",
            f"  frames    {self.frames}, each at its time, {width}x{height}",
            f"  pictures  {self.compared} compared{like}",
            *(f"  stream    {line}" for line in self.streams),
            f"  chapters  {self.chapters}",
            f"  sha256    {self.sha256}",
        ]


class Kept(NamedTuple):
    """What an output holds beside the pictures."""

    streams: tuple[str, ...] = ()
    """What was done with each other stream of the source, in words."""
    chapters: int = 0
    shift: Fraction = Fraction(0)
    """The seconds by which all streams are later, because the container has no time below 0."""


def check(
    output: Path,
    delivery: Delivery,
    encoding: Encoding | None = None,
    times: Sequence[int] | None = None,
    fast: bool = False,
) -> Receipt:
    """Compare a written file with what it has to contain.

    Args:
        encoding: the size and colour of its pictures; None: any size of the source's shape, and the source's colour.
        times: when its frames are shown, in `delivery.unit`, where some of the source's could not be decoded.

    Raises:
        VerifyError: the first difference.
    """
    times = delivery.times if times is None else times
    made, kept = _all_but_pictures(output, delivery, encoding, times)
    compared = pictures.Compared(0, 1.0)
    # An animation shows equal pictures as one, and what is transparent has no colour in a GIF.
    kind = layout(planar(delivery.info.pix_fmt))
    if not delivery.container.is_animated or (len(made.pts) == len(times) and (kind is None or not kind.alpha)):
        compared = pictures.check_pictures(output, made, delivery, times, fast)
    return _receipt(output, (made.height, made.width), delivery, times, kept, compared)


def check_joined(
    output: Path,
    delivery: Delivery,
    encoding: Encoding,
    times: Sequence[int],
    segments: Sequence[Path],
    compared: pictures.Compared,
) -> Receipt:
    """Do what `check` does for a file joined from proved segments: packets are compared instead of pictures.

    Args:
        times: when its frames are shown, in `delivery.unit`.
        segments: the segments, in order.
        compared: the result of the proof of the segments.

    Raises:
        VerifyError: the first difference.
    """
    if delivery.container.is_animated:
        animation.check(output, delivery, encoding, times)
        animation.check_pictures(output, delivery, times, segments)
        return _receipt(output, (encoding.height, encoding.width), delivery, times, Kept(), compared)
    made, kept = _all_but_pictures(output, delivery, encoding, times)
    if not joined.has_packets_of(segments, output, made, encoding):
        compared = pictures.check_pictures(output, made, delivery, times, fast=False)
    return _receipt(output, (made.height, made.width), delivery, times, kept, compared)


def findings(
    output: Path, delivery: Delivery, encoding: Encoding | None, times: Sequence[int]
) -> tuple[MediaInfo, Findings, Kept]:
    """Do the part of `check` that decodes no pictures: times, streams, packets, chapters, tags.

    Returns:
        What is in the output, the differences, and what it holds beside the pictures.

    Raises:
        VerifyError: it cannot be read, or its frames do not have their times, on which all else depends.
    """
    try:
        made = probing.probe(output)
    except Exception as error:
        raise VerifyError(f"{output}: cannot be read back: {error}") from error
    found = Findings(delivery.accepted)
    if delivery.container.is_animated:
        animation.check(output, delivery, encoding, times)
        return made, found, Kept()
    facts.check_size(output, (made.height, made.width), delivery, encoding)
    facts.check_picture(output, made, delivery, encoding, found)
    if delivery.container.family == "pictures":  # which have no times, tags or other streams
        if len(made.pts) != len(times):
            raise VerifyError(f"{output}: there are {len(made.pts)} pictures, expected {len(times)}")
        return made, Findings(delivery.accepted), Kept()
    shift = packets.check_times(output, made, times, delivery)
    kept, places = packets.check_streams(output, made, delivery, shift, found)
    chapters = facts.check_facts(output, made, delivery, shift, places, found)
    return made, found, Kept(tuple(kept), chapters, shift)


def _all_but_pictures(
    output: Path, delivery: Delivery, encoding: Encoding | None, times: Sequence[int]
) -> tuple[MediaInfo, Kept]:
    """As `findings`, where the first difference is an error."""
    made, found, kept = findings(output, delivery, encoding, times)
    for fault in found.values():
        raise VerifyError(fault)
    return made, kept


def _receipt(
    output: Path,
    size: tuple[int, int],
    delivery: Delivery,
    times: Sequence[int],
    kept: Kept,
    compared: pictures.Compared,
) -> Receipt:
    return Receipt(
        source=Path(delivery.info.path),
        output=output,
        frames=len(times),
        compared=compared.pictures,
        least_likeness=compared.least_likeness,
        size=size,
        streams=kept.streams,
        chapters=kept.chapters,
        sha256=sha256(output),
    )


def sha256(path: Path) -> str:
    """The digest of a file; of numbered pictures, as in `sequences.Numbered.fingerprint`."""
    if is_sequence(path):
        return str(find(path).fingerprint()["sha256"])
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
