"""How coarsely each frame was quantised when it was encoded, which is what compression did to it."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from io import BytesIO
from math import exp, fsum, log
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from PIL import Image

from vidup.media.side_data import ENC_PARAMS

_HEAD = struct.Struct("@IQQii")
"""The beginning of FFmpeg's AVVideoEncParams: blocks, where they begin, bytes of each, kind, quantiser of the frame."""
_VP9, _H264 = 0, 1
OVERLAPPING = ("h264", "mpeg4")
"""Decoders that export a frame's quantiser from another thread than the one that may still be decoding it."""
_BLOCKS = 1024
"""Up to twice as many blocks of a frame are looked at."""
_WIDTH = 12**-0.5
"""Of the error that rounding leaves, against the step that is rounded to (Bennett 1948)."""
_FINEST, _COARSEST = 0.1, 200.0
"""Beyond what encoders use: an estimate from the bits of an empty frame can be anything."""

_COARSER, _RATE, _APART = 1.7, 0.2, 1.35
"""How much coarser frames are than the key frame that they repeat, for the same error; the weight of a frame in the
mean of them; and by how much that has to differ from the step to replace it. Fitted on photographs over which a camera
moves, through x264, libvpx-vp9, MPEG-2 and MPEG-4, with and without a constant rate."""


class _Noted(NamedTuple):
    """What is noted of a packet with a key frame."""

    pts: int | None
    size: int
    step: float | None
    """Where the packet itself states it."""


class _Told(NamedTuple):
    """PyAV keeps what is attached to a frame by its identity: each frame needs an object of its own."""

    step: float | None


def told(frame: Any) -> float | None:
    """The step that was attached to a frame."""
    return frame.opaque.step if isinstance(frame.opaque, _Told) else None


def tell(frame: Any, step: float | None) -> None:
    """Attach a step to a frame."""
    frame.opaque = _Told(step)


class Quantisers:
    """Follows the step of the quantiser through the frames of a stream, in the order in which they are shown.

    What a frame shows is mostly what its key frame does, however coarsely it was itself encoded, so the step of a key
    frame is that of the frames after it, unless theirs say for long that it no longer can be: after a fade from black,
    or once an encoder has found its rate. It depends on nothing before the last key frame, wherever decoding begins.
    """

    def __init__(self, context: Any) -> None:
        self._codec, self._is_lossless = context.name, is_lossless(context.codec)
        self._keys: deque[_Noted] = deque()
        self._step: float | None = None
        self._expected = 0.0
        self._before: Any = None

    def note(self, packet: Any) -> None:
        """Note what tells the step of a key frame in its packet, before it is decoded."""
        if packet.is_keyframe:
            step = _of_jpeg(bytes(packet)) if self._codec == "mjpeg" else None
            self._keys.append(_Noted(packet.pts, packet.size, step))

    def __call__(self, frame: Any) -> float | None:
        """The step of the next frame, in codes of 0 to 255; None of a codec that loses nothing."""
        if self._is_lossless:
            return None
        noted = self._noted(frame)
        before, self._before = self._before, frame
        own = frame_quantiser_step(frame, self._codec)
        if frame.key_frame or noted is not None:
            if own is None and noted is not None:
                own = noted.step or _from_bits(frame, noted.size)
            self._step = None
        if own is not None:
            self._follow(min(max(own, _FINEST), _COARSEST), before, frame)
        return self._step

    def _noted(self, frame: Any) -> _Noted | None:
        """What was noted of a frame's packet: the one of its time, or the next one where times are missing."""
        while self._keys:
            pts = self._keys[0].pts
            is_timed = pts is not None and frame.pts is not None
            if (pts == frame.pts) if is_timed else frame.key_frame:
                return self._keys.popleft()
            if not is_timed or pts > frame.pts:
                return None
            self._keys.popleft()  # its frame could not be decoded
        return None

    def _follow(self, own: float, before: Any, frame: Any) -> None:
        if self._step is None:
            self._step = self._expected = round(own, 2)
            return
        self._expected *= (own / _COARSER / self._expected) ** _RATE
        if not 1 / _APART < self._expected / self._step < _APART and not _are_equal(before, frame):
            self._step = round(self._expected, 2)


def is_lossless(codec: av.Codec) -> bool:
    """Whether a codec always loses nothing, so that it does not tell what was lost before."""
    return codec.lossless and not codec.lossy


def frame_quantiser_step(frame: Any, codec: str) -> float | None:
    """Step of the quantiser of a decoded frame, in codes of 0 to 255; None where its decoder does not export it.

    Of the decoders here those of H.264, VP9, H.263 and MPEG-1 to 4 do. H.263 and MPEG-4 state half of the step; VP9's
    table is nearly exponential, and the numbers of MPEG-1 and 2 are weighted by a matrix: those two are fitted to what
    x264 leaves at the same error.
    """
    try:
        found = next((memoryview(one) for one in frame.side_data if one.type.name == ENC_PARAMS), b"")
    except ValueError:  # PyAV has no name for a kind beside it
        return None
    if len(found) < _HEAD.size:
        return None
    blocks, begin, size, kind, quantiser = _HEAD.unpack_from(found)
    if blocks and size >= 20 and size % 4 == 0 and begin + blocks * size <= len(found):
        table = np.frombuffer(found, np.int32, blocks * size // 4, begin).reshape(blocks, -1)
        quantiser += float(table[:: 1 + blocks // _BLOCKS, 4].mean())
    quantiser = min(max(quantiser, 0), 255)  # a damaged file says anything
    if kind == _H264:
        return qp_quantiser_step(quantiser)
    if kind == _VP9:
        return float(2 ** (1.71 + 0.0195 * quantiser))
    return float((1.5 if codec in ("mpeg1video", "mpeg2video") else 2.0) * quantiser)


def _of_jpeg(data: bytes) -> float | None:
    with suppress(Exception), Image.open(BytesIO(data), formats=("JPEG",)) as image:  # Pillow raises anything
        return jpeg_quantiser_step(getattr(image, "quantization", {}).values())
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


def luma_of(frame: Any) -> torch.Tensor:
    """A frame's brightness, float32 (h, w) in codes."""
    return torch.from_numpy(frame.reformat(format="gray").to_ndarray().astype(np.float32))


def _from_bits(frame: Any, size: int) -> float:
    """Estimate the step of a key frame from the bits that its pixels take, and from how lively it is.

    Fitted on photographs through x264, x265 and SVT-AV1; right within a third.
    """
    gray = luma_of(frame)
    bits = 8 * size / gray.numel()
    rows = gray[: len(gray) // 4 * 4].unfold(0, 2, 4)  # a half of all tell enough
    lively = float((rows[..., 1] - rows[..., 0]).abs().mean() + rows[..., 0].diff(dim=1).abs().mean()) / 2
    return float(0.62 * lively**0.9 / bits**0.95 / _WIDTH) if gray.numel() and rows.numel() else 0.0


def _are_equal(one: Any, other: Any) -> bool:
    """Whether two frames, of planar formats, show the same: then they are treated alike."""
    if one is None or (one.format.name, one.width, one.height) != (other.format.name, other.width, other.height):
        return False
    pairs = zip(one.planes, other.planes, strict=True)
    return all(np.array_equal(np.from_dlpack(a), np.from_dlpack(b)) for a, b in pairs)
