"""Decode the texts of subtitles, and encode them in another format."""

from __future__ import annotations

import logging
import re
from bisect import bisect
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import av

from vidup.media.opening import clock, reason
from vidup.media.packets import LONGEST_TEXT

log = logging.getLogger(__name__)

TICK = Fraction(1, 1000)
"""Seconds in one unit of the times of encoded texts."""

_MARKUP = re.compile(r"\{[^}]*\}|<[^>]*>|\\[Nnh]|\W")

_FIELDS = 8  # of a line of ASS, as ffmpeg's decoders give it, before its words


class Shown(NamedTuple):
    """A text, and when it is shown."""

    begin: Fraction
    """In seconds."""
    end: Fraction
    what: Any
    """Words, or lines of ASS as ffmpeg's decoders return them."""


def ended(shown: Iterable[Shown]) -> list[Shown]:
    """Texts in order of time, each with an end: one without is shown until the next, for 3 s at most."""
    texts = sorted(shown, key=lambda text: text.begin)
    begins = [*(text.begin for text in texts), Fraction(2**40)]
    return [
        text
        if text.end > text.begin
        else text._replace(end=min(text.begin + LONGEST_TEXT, begins[bisect(begins, text.begin)]))
        for text in texts
    ]


def readable(packet: Any) -> Any:
    """A packet whose text is UTF-8, which decoders require: other text is taken for Windows-1252, or Latin-1.

    Some programs put text files into Matroska or mp4 without regard to their encoding.
    """
    words, rest = bytes(packet), b""
    is_mov = packet.stream.codec_context.name == "mov_text"  # the length of the text in two bytes, the text, its style
    if is_mov:
        end = 2 + int.from_bytes(words[:2], "big")
        words, rest = words[2:end], words[end:]
    read = _utf8(words)
    if read == words:
        return packet
    result = av.Packet((len(read).to_bytes(2, "big") if is_mov else b"") + read + rest)
    result.stream, result.time_base = packet.stream, packet.time_base
    result.pts, result.dts, result.duration = packet.pts, packet.dts, packet.duration
    return result


def _utf8(words: bytes) -> bytes:
    for code in ("utf-8", "cp1252"):
        try:
            return words.decode(code).encode()
        except UnicodeDecodeError:
            continue
    return words.decode("latin-1").encode()


def words(packet: Any) -> str:
    """The text of a subtitle's packet without markup and spaces; empty where it is a picture, or empty."""
    context = packet.stream.codec_context
    if not context.codec.text_sub:
        return ""
    try:
        texts = context.decode2(readable(packet))
    except av.error.FFmpegError:
        return ""
    return "".join(_MARKUP.sub("", text.dialogue.decode(errors="replace")) for text in texts or ())


def decoded(packets: Iterable[Any], name: str) -> Iterator[Shown]:
    """The texts of the packets of a stream with this name; one that cannot be read is left out with a warning."""
    recoded = 0
    for packet in packets:
        time = packet.pts if packet.pts is not None else packet.dts
        where = f"its text at {clock(time, packet.time_base)}"
        if time is None:
            log.warning("%s: %s is left out", name, where)
            continue
        plain = readable(packet)
        recoded += plain is not packet
        try:
            texts = packet.stream.codec_context.decode2(plain)
        except av.error.FFmpegError as error:
            log.warning("%s: %s is left out: it cannot be read: %s", name, where, reason(error))
            continue
        lines = tuple(bytes(text.ass) for text in texts or ())
        if not lines:
            continue
        length = (packet.duration or 0) * packet.time_base or texts.end_display_time * TICK
        begin = time * packet.time_base
        yield Shown(begin, begin + length, lines)
    if recoded:
        log.warning("%s: %d texts are no UTF-8: read as Windows-1252", name, recoded)


def apart(texts: Iterable[Shown]) -> Iterator[Shown]:
    """Texts that do not overlap, as mp4 and mov require: texts that are shown at the same time become one."""
    coming, standing = deque(texts), list[Shown]()
    changes = sorted({time for text in coming for time in (text.begin, text.end)})
    for begin, end in pairwise(changes):
        while coming and coming[0].begin <= begin:
            standing.append(coming.popleft())
        standing = [text for text in standing if text.end > begin]
        if standing and end - begin >= TICK:
            yield Shown(begin, end, tuple(line for text in standing for line in text.what))


def encoded(text: Shown, context: Any) -> Any:
    """A packet of a text, its times in `TICK`; FFmpeg's error where the encoder refuses it."""
    head, first = _parted(text.what[0])
    line = head + first + b"".join(rb"\N{\r}" + _parted(other)[1] for other in text.what[1:])
    begin, end = round(text.begin / TICK), round(text.end / TICK)
    packet = context.encode_subtitle(av.subtitles.subtitle.SubtitleSet.create(line, 0, end - begin))
    packet.time_base = TICK
    packet.pts = packet.dts = begin
    packet.duration = end - begin
    return packet


def _parted(line: bytes) -> tuple[bytes, bytes]:
    parts = line.split(b",", _FIELDS)
    return b",".join(parts[:_FIELDS]) + b",", parts[-1]
