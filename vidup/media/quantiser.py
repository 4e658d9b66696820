"""How coarsely a file's pictures were quantised when they were encoded, which is what compression did to them."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from itertools import islice
from math import exp, fsum, log
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from vidup.errors import MediaError
from vidup.frame import MediaInfo
from vidup.media.opening import open_input, tolerant_demux, video_context
from vidup.media.reading import decode_packets
from vidup.media.side_data import side_data
from vidup.picture import flaws

_PLACES, _FRAMES = (0.0, 0.35, 0.7), 8
_HEAD = struct.Struct("@IQQii")
"""The beginning of FFmpeg's AVVideoEncParams: blocks, where they begin, bytes of each, kind, quantiser of the frame."""
_VP9, _H264 = 0, 1  # kinds; the third is MPEG-1 to 4
_X265 = re.compile(rb"x265 \(build.{0,4000}? rc=(crf|cqp).{0,400}? (?:crf|qp)=(\d{1,2}(?:\.\d{1,2})?)", re.DOTALL)
"""The settings that x265 writes before the first picture."""
_QP_ABOVE_CRF = 4  # on average, in x265
_COARSEST = 200.0
"""Beyond what encoders use: an estimate from the bits of an empty frame can be anything."""
_WIDTH = 12**-0.5
"""Of the error that rounding leaves, against the step that is rounded to (Bennett 1948)."""


@lru_cache(maxsize=4)  # planned again for other settings, a file is not decoded again
def quantiser_step(info: MediaInfo) -> float | None:
    """Quantiser step over some frames at three places of a file, in codes of 0 to 255.

    Where neither the decoder nor the packets tell it, it is estimated from the bits that a pixel of a key frame takes
    and from how lively the frame is: fitted on photographs through x264 and SVT-AV1, right within a third. What a codec
    that loses nothing holds may have been compressed before: there the blocks that show tell it.

    Returns:
        The mean, in hundredths, at most 200; None where nothing could be read, or in most places no blocks show.
    """
    codec = av.codec.Codec(info.codec, "r")
    is_lossless = codec.lossless and not codec.lossy
    exported: list[float] = []
    written: list[float] = []
    estimated: list[float] = []
    seen: list[float] = []
    for share in _PLACES if info.timing == "packets" else _PLACES[:1]:
        with suppress(av.error.FFmpegError, ValueError, MediaError), open_input(info.path) as container:
            stream = container.streams[info.video_index]
            if share:
                container.seek(info.pts[int(share * len(info.pts))], stream=stream, backward=True)
            context = video_context(stream, export_side_data="venc_params")
            keys: list[Any] = []
            packets = _noted(tolerant_demux(container, stream, _ignore), keys)
            frames = list(islice(decode_packets(stream, packets, _ignore), 1 if is_lossless else _FRAMES))
            if is_lossless:
                seen += [flaws.step_of_blocks(*flaws.blocking(_gray(frame)[None])) or 0 for frame in frames]
                continue
            exported += [step for frame in frames if (step := frame_quantiser_step(frame)) is not None]
            if keys and not exported:
                data = bytes(context.extradata or b"") * (info.codec != "mjpeg") + bytes(keys[0])
                if (step := packet_quantiser_step(info.codec, data)) is not None:
                    written.append(step)
                if frames:
                    estimated.append(_from_bits(frames[0], keys[0].size))
    found = exported or written or estimated or ([float(np.median(seen))] if any(seen) else [])
    return min(round(float(np.mean(found)), 2), _COARSEST) if any(found) else None


def frame_quantiser_step(frame: av.VideoFrame) -> float | None:
    """Quantiser step of a decoded frame, in codes of 0 to 255; None where its decoder does not export it.

    Of the decoders here those of H.264, VP9 and MPEG-1 to 4 do. VP9's table is nearly exponential, and MPEG's numbers
    are weighted by a matrix: those two are fitted to what x264 leaves at the same error.
    """
    found = side_data(frame).get("VIDEO_ENC_PARAMS", b"")
    if len(found) < _HEAD.size:
        return None
    blocks, begin, size, kind, quantiser = _HEAD.unpack_from(found)
    if blocks and begin + blocks * size <= len(found) and size >= 20:
        table = np.frombuffer(found, np.uint8, blocks * size, begin).reshape(blocks, size)
        quantiser += float(np.ascontiguousarray(table[:, 16:20]).view(np.int32).mean())
    quantiser = min(max(quantiser, 0), 255)  # a damaged file says anything
    if kind == _H264:
        return qp_quantiser_step(quantiser)
    return float(2 ** (1.71 + 0.0195 * quantiser)) if kind == _VP9 else 2.0 * quantiser


def packet_quantiser_step(codec: str, data: bytes) -> float | None:
    """Quantiser step in codes of 0 to 255 that a packet, after the decoder's extradata, states; None if it does not."""
    if codec == "mjpeg":
        with suppress(Exception), Image.open(BytesIO(data), formats=("JPEG",)) as image:  # Pillow raises anything
            return jpeg_quantiser_step(getattr(image, "quantization", {}).values())
    if codec == "hevc" and (found := _X265.search(data)):
        return qp_quantiser_step(float(found[2]) + _QP_ABOVE_CRF * (found[1] == b"crf"))
    return None


def qp_quantiser_step(qp: float) -> float:
    """Quantiser step in codes for a QP of H.264 or H.265: it doubles with every 6 (ITU-T H.264, 8.5)."""
    return float(0.625 * 2 ** (qp / 6))


def jpeg_quantiser_step(tables: Iterable[Sequence[int]]) -> float | None:
    """Quantiser step of x264 that does equal damage, for the quantisation tables of a JPEG; None without tables.

    Only the finer half of the luma table counts: the coarser half is for high frequencies, which are mostly zero. The
    formula is fitted on photographs at qualities of 20 to 97.
    """
    table = sorted(next(iter(tables), ()))
    finer = table[: len(table) // 2]
    return 2 * exp(fsum(log(max(one, 1)) for one in finer) / len(finer)) ** 0.72 if finer else None


def _noted(packets: Iterable[Any], keys: list[Any]) -> Iterator[Any]:
    """Packets; the first of a key frame is added to `keys`, too."""
    for packet in packets:
        if packet.is_keyframe and packet.size and not keys:
            keys.append(packet)
        yield packet


def _ignore(_: str) -> None:
    """What is damaged is said by whoever reads the file for its pictures."""


def _gray(frame: av.VideoFrame) -> torch.Tensor:
    """Its brightness, float32 (h, w) in codes."""
    return torch.from_numpy(frame.reformat(format="gray").to_ndarray().astype(np.float32))


def _from_bits(frame: av.VideoFrame, size: int) -> float:
    gray = _gray(frame)
    lively = float(gray.diff(dim=0).abs().mean() + gray.diff(dim=1).abs().mean()) / 2
    bits = 8 * size / gray.numel()
    return float(0.85 * lively**0.9 / bits**0.95 / _WIDTH)
