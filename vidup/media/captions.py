"""Closed captions (CEA-608/708, as in ATSC A/53): read from decoded frames, put into encoded pictures.

PyAV gives encoders no side data, so the message that they would write is inserted before the picture's data here.
"""

from __future__ import annotations

from typing import Any

from vidup.media.containers import video_format
from vidup.media.side_data import CAPTIONS, side_data

_CARRIERS = ("h264", "hevc", "av1")
# ITU-T T.35: the United States, ATSC, "GA94", captions; ANSI/SCTE 128-1, table 9.
_HEAD = b"\xb5\x00\x31GA94\x03"
_SEI = {"h264": b"\x06", "hevc": b"\x4e\x01"}
"""The header of a NAL unit with an SEI message that stands before a picture."""
_CONSTRUCT, _MOST = 3, 31  # bytes of a caption data construct; how many a frame has at most


def carries(codec: str) -> bool:
    """Whether captions can be put into the pictures of an encoder."""
    return video_format(codec) in _CARRIERS


def read_captions(picture: Any) -> bytes:
    """The caption data constructs of a decoded PyAV frame, three bytes each; empty where it has none."""
    return side_data(picture).get(CAPTIONS, b"")


def with_captions(data: bytes, codec: str, constructs: bytes) -> bytes:
    """An encoded picture (H.264 and H.265 with start codes, AV1 as OBUs) with the message that holds its captions."""
    count = min(_MOST, len(constructs) // _CONSTRUCT)
    if not count:
        return data
    message = _HEAD + bytes([0x40 | count, 0xFF]) + constructs[: _CONSTRUCT * count] + b"\xff"
    form = video_format(codec)
    if form == "av1":
        return _in_obus(data, message)
    sei = bytes([4, len(message)]) + message + b"\x80"  # of type user_data_registered_itu_t_t35, shorter than 255
    place = 0
    while (place := data.find(b"\x00\x00\x01", place)) >= 0:
        if _is_picture(form, data[place + 3]):
            place -= data[place - 1 : place] == b"\x00"
            return data[:place] + b"\x00\x00\x00\x01" + _SEI[form] + _escaped(sei) + data[place:]
        place += 3
    return data


def _is_picture(form: str, first: int) -> bool:
    """Whether a NAL unit holds a part of a picture, by its first byte."""
    return 1 <= first & 31 <= 5 if form == "h264" else first >> 1 & 63 < 32


def _escaped(payload: bytes) -> bytes:
    """The payload with emulation prevention bytes, so that it holds no start code (Rec. ITU-T H.264, 7.3.1)."""
    result, zeros = bytearray(), 0
    for byte in payload:
        if zeros >= 2 and byte <= 3:
            result.append(3)
            zeros = 0
        zeros = zeros + 1 if byte == 0 else 0
        result.append(byte)
    return bytes(result)


def _in_obus(data: bytes, message: bytes) -> bytes:
    """Insert a message behind the delimiter and the sequence header of a temporal unit (AV1, 5.3, 5.8)."""
    place = 0
    while place < len(data) and data[place] >> 3 & 15 in (1, 2):
        size, length, at = 0, 0, place + 1 + (data[place] >> 2 & 1)
        while True:  # leb128
            size |= (data[at + length] & 0x7F) << 7 * length
            length += 1
            if not data[at + length - 1] & 0x80:
                break
        place = at + length + size
    payload = b"\x04" + message + b"\x80"  # of type METADATA_TYPE_ITUT_T35, shorter than 128
    return data[:place] + bytes([0x2A, len(payload)]) + payload + data[place:]
