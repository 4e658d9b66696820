"""Find out what is in a file: `probe` reads its headers, the times of its packets and its first frames."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn

import av

from vidup.errors import ConfigError, MediaError
from vidup.frame import Color, MediaInfo, StreamInfo
from vidup.media import animation_input, boxes, hdr, interlace, side_data
from vidup.media.containers import family
from vidup.media.decoding import planar
from vidup.media.opening import channels, codec_name, open_input
from vidup.media.reading import decode_stream
from vidup.media.table import Table
from vidup.picture.color import UNSPECIFIED

log = logging.getLogger(__name__)

_CHECKED = 8  # frames that are decoded to check that they have the times of the packets


def probe(path: str | Path, tolerate_errors: bool = False) -> MediaInfo:
    """Read a file's headers, the times of its packets, and its first frames.

    The whole file is read once, which takes seconds for a film, and once more where its streams are not listed at its
    head; it is decoded only where its packets do not have the times of frames.

    Args:
        tolerate_errors: read a damaged file as far as possible; `MediaInfo.notes` describes the damage.

    Raises:
        MediaError: no media file, no video stream, a codec that cannot be decoded, a file that is damaged or cut short.
    """
    table = Table(Path(path), tolerate_errors)
    index = table.read()
    with open_input(path, whole=True) as container:
        streams = tuple(_stream_info(s) for s in container.streams)
    with open_input(path) as container:
        stream = container.streams[index]
        rate, troubles = stream.average_rate or stream.guessed_rate, list[str]()
        decoded = decode_stream(container, stream, troubles.append, tolerate_errors)
        frames = list(islice(decoded, _CHECKED)) or _no_frame(path, stream, troubles)
        first = frames[0]
        table.check(frames)
        table.settle(Fraction(rate or 25))
        matrix = side_data.side_data(first).get("DISPLAYMATRIX")
        return MediaInfo(
            path=str(path),
            container=animation_input.kind_of(Path(path)) or container.format.name,
            video_index=index,
            codec=stream.codec_context.name,
            width=first.width,
            height=first.height,
            pix_fmt=first.format.name,
            color=color_of(first),
            color_tagged=int(first.colorspace) != UNSPECIFIED,
            sample_aspect_ratio=Fraction(stream.sample_aspect_ratio or 1),
            rotation=first.rotation,
            display_matrix=struct.unpack("<9i", matrix) if matrix else None,
            field_order=interlace.detect(stream, chain(frames, decoded), partial(_elsewhere, path, index, table.pts)),
            hdr=hdr.read_hdr(first),
            dynamic_hdr=tuple(hdr.dynamic_hdr(first, stream)),
            time_base=table.unit,
            pts=tuple(table.pts),
            timing=table.timing,
            entries=tuple(sorted(table.entries.items())) if table.timing == "packets" else (),
            begin=Fraction(container.start_time or 0, 1_000_000),
            end=table.end,
            frames=len(table.pts),
            rate=table.rate.limit_denominator(100_000),  # encoders take 32 bits on either side
            variable_rate=table.variable_rate,
            streams=streams,
            chapters=len(container.chapters()),
            side_data=side_data.kinds(frames, stream),
            stereo_mode=side_data.stereo_mode(first),
            notes=(*table.notes, *_cropped(path, container, stream, first)),
            tolerant=tolerate_errors,
            faulty=table.faulty,
            unlisted=streams != tuple(_stream_info(s) for s in container.streams),
        )


def _no_frame(path: str | Path, stream: Any, troubles: list[str]) -> NoReturn:
    why = f"cannot be decoded ({troubles[-1]})" if troubles else "gives no frame"
    raise MediaError(f"{path}: its {codec_name(stream)} video {why}")


def _cropped(path: str | Path, container: Any, stream: Any, first: Any) -> list[str]:
    """A note where the file states that only a part of its pictures is shown."""
    coded = first.width, first.height
    shown = boxes.shown_size(Path(path), family(container.format.name), stream.id, coded)
    if shown is None:
        return []
    return [
        f"the file states that only {shown[0]}x{shown[1]} of {coded[0]}x{coded[1]} pixels are to be shown (clean"
        " aperture): that is lost, all will be shown"
    ]


def color_of(frame: Any) -> Color:
    """The colour tags of a PyAV frame."""
    matrix, primaries, transfer = int(frame.colorspace), int(frame.color_primaries), int(frame.color_trc)
    # ffmpeg writes and reads gray without a tag as full range.
    is_full = frame.color_range == 2 or (frame.color_range == 0 and planar(frame.format.name).startswith("gray"))
    return Color(matrix, primaries, transfer, is_full)


def _elsewhere(path: str | Path, index: int, pts: list[int]) -> Iterator[Iterator[Any]]:
    """The frames of a video from a third and from two thirds of its length on."""
    for share in (1, 2):
        with open_input(path) as container, suppress(av.error.FFmpegError):
            stream = container.streams[index]
            container.seek(pts[len(pts) * share // 3], stream=stream, backward=True)
            yield decode_stream(container, stream, log.debug)


def _stream_info(stream: Any) -> StreamInfo:
    context = stream.codec_context
    detail = ""
    if stream.type == "video" and context is not None:
        detail = f"{context.width}x{context.height} {context.pix_fmt or ''}".strip()
    elif stream.type == "audio" and context is not None:
        detail = f"{context.sample_rate} Hz {channels(context).layout}"
    return StreamInfo(stream.index, stream.type, codec_name(stream), detail, stream.metadata.get("language", ""))


def at_rate(info: MediaInfo, fps: float | None) -> MediaInfo:
    """The facts of a file whose frames are shown at a given rate; a ConfigError where it states their times itself."""
    if fps is None:
        return info
    if info.container != "image2" and info.timing != "made":
        raise ConfigError(f"fps = {fps:g}: {info.path} states when each frame is shown; leave it out")
    rate = next(
        (Fraction(whole * 1000, 1001) for whole in (24, 30, 48, 60, 120) if abs(fps - whole / 1.001) < 0.005),
        Fraction(fps).limit_denominator(1001),
    )
    count = len(info.pts)
    notes = tuple(note for note in info.notes if not note.startswith("the stream has no times"))
    return replace(
        info, time_base=1 / rate, pts=tuple(range(count)), end=count, rate=rate, variable_rate=False, notes=notes,
        entries=info.entries if info.container == "image2" else (),
    )  # fmt: skip
