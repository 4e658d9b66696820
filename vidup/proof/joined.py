"""Check that the video packets of a joined file are those of its segments."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path

from vidup.errors import VerifyError
from vidup.frame import MediaInfo
from vidup.media import vp9_alpha
from vidup.media.codecs import DEFAULTS
from vidup.media.encoder import Encoding
from vidup.media.opening import open_input
from vidup.media.segment import read_segment
from vidup.proof.tracks import units_by_length, units_by_start_code

log = logging.getLogger(__name__)

_PARAMETER_SETS = (32, 33, 34)  # of H.265
_DROPPED_OBUS = (2, 8, 15)  # of AV1, by muxers: temporal delimiters, tile lists, padding


def has_packets_of(segments: Sequence[Path], output: Path, made: MediaInfo, encoding: Encoding) -> bool:
    """Whether a file's video packets are those of its segments, in order.

    Returns:
        False, after a warning, where they differ and a muxer may have changed the packets of this encoder.

    Raises:
        VerifyError: they differ, and no muxer is known to change them.
    """
    ours = chain.from_iterable(read_segment(segment) for segment in segments)
    with open_input(output) as container:
        stream = container.streams[made.video_index]
        extradata = bytes(stream.codec_context.extradata or b"")
        written = (packet for packet in container.demux(stream) if packet.size)
        for index, (packet, found) in enumerate(zip_longest(ours, written)):
            if packet is not None and found is not None:
                data, codec = bytes(found), made.codec
                same = data == packet.data or _units(codec, extradata, data) == _units(codec, b"", packet.data)
                if same and vp9_alpha.of(found) == packet.second:
                    continue
            words = f"packet {index} of its video is not its segment's"
            if encoding.codec in DEFAULTS:
                raise VerifyError(f"{output}: {words}")
            log.warning("%s: %s, as %s may be rewritten: all pictures are decoded again", output, words, encoding.codec)
            return False
    return True


def _units(codec: str, extradata: bytes, data: bytes) -> list[bytes]:
    """The units of a packet that muxers keep, in a file with this extradata."""
    if codec in ("av1", "libdav1d"):
        return _obus(data)
    if codec not in ("h264", "hevc"):
        return [data]
    # ISO/IEC 14496-15, 5.3.3.1 and 8.3.3.1: extradata that begin with a version mean that units have lengths.
    if extradata[:1] == b"\1":
        units = units_by_length(data, (extradata[4 if codec == "h264" else 21] & 3) + 1)
    else:
        units = units_by_start_code(data)
    if codec == "hevc":  # the muxer of mov and mp4 keeps parameter sets only in the extradata, as hvc1 requires
        units = [unit for unit in units if unit and unit[0] >> 1 & 63 not in _PARAMETER_SETS]
    return units


def _obus(data: bytes) -> list[bytes]:
    """The units of AV1 that muxers keep (AV1 specification, 5.3.2, and its binding to ISOBMFF, 2.4)."""
    units, place = [], 0
    while place < len(data):
        begin, head = place, data[place]
        place += 2 if head & 4 else 1
        size = len(data) - place
        if head & 2:
            size = shift = 0
            while True:
                byte = data[place]
                size, shift, place = size | (byte & 127) << shift, shift + 7, place + 1
                if byte < 128:
                    break
        if (head >> 3) & 15 not in _DROPPED_OBUS:
            units.append(data[begin : place + size])
        place += size
    return units
