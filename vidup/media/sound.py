"""Decode audio, with every sample at its time, and convert it to the format of an encoder."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, groupby
from typing import Any

import av
import numpy as np

from vidup.frame import MediaInfo
from vidup.media.frames import pulled
from vidup.media.opening import channels, open_input, tolerant_demux
from vidup.media.packets import Trim

log = logging.getLogger(__name__)

# Seconds by which a packet's time may differ from the end of the audio before it: containers round, and players ignore
# so little.
_JITTER = Fraction(1, 10)
_AUDIBLE = 0.001  # of full scale: -60 dB


def decoded(source: Any, index: int, name: str, trim: Trim | None) -> Generator[Any, None, None]:
    """Decode an audio stream to frames with times in samples; only what is damaged is left out.

    Of a packet with several frames only the first gets a time from the decoder: the others follow it. Frames before the
    first known time are counted back from it.

    Args:
        name: of the stream, for messages.
        trim: frames outside of it are left out, and times are counted from its begin.
    """
    stream = source.streams[index]
    channels(stream.codec_context)  # sets a layout whose memory frames do not free
    untimed: list[Any] = []
    end: Fraction | None = None
    first: Fraction | None = None
    total = damaged = 0
    for packet in tolerant_demux(source, stream, log.debug):
        total += bool(packet.size)
        if first is None and packet.pts is not None:
            first = packet.pts * packet.time_base
        try:
            frames = stream.decode(packet)
        except av.error.FFmpegError as error:
            damaged += 1
            log.debug("%s", error)
            continue
        for frame in frames:
            time = None if frame.pts is None else frame.pts * frame.time_base
            if end is None and time is None:
                untimed.append(frame)
                continue
            if end is None and time is not None:
                end = max(time - sum(map(_length, untimed)), min(time, first or time))
            for ready in (*untimed, frame):
                end = _place(ready, time if ready is frame else None, end)
                if _shift(ready, trim):
                    yield ready
            untimed.clear()
    if untimed:  # the decoder gave no time at all
        end = first or Fraction(0)
    for frame in untimed:
        end = _place(frame, None, end)
        if _shift(frame, trim):
            yield frame
    if damaged and end is not None:
        log.warning("stream %d (%s): %d of %d packets cannot be decoded: silence there", index, name, damaged, total)


def _length(frame: Any) -> Fraction:
    """The seconds that a frame lasts."""
    return Fraction(frame.samples, frame.sample_rate)


def _place(frame: Any, time: Fraction | None, end: Fraction | None) -> Fraction:
    """Set a frame's time, to that of the decoder or to `end`, the end of the frame before; returns where it ends."""
    if time is None or (end is not None and abs(time - end) <= _JITTER):
        time = end
    assert time is not None
    frame.time_base = Fraction(1, frame.sample_rate)
    frame.pts = round(time * frame.sample_rate)
    return time + _length(frame)


def _shift(frame: Any, trim: Trim | None) -> bool:
    if trim is None:
        return True
    begin = frame.pts * frame.time_base
    if begin + _length(frame) <= trim.begin or begin >= trim.end:
        return False
    frame.pts -= round(trim.begin * frame.sample_rate)
    return True


def fitted(frames: Iterable[Any], context: Any, order: tuple[int, ...] | None, cut: bool) -> Generator[Any, None, None]:
    """Frames in the format and of the size that an encoder takes; gaps become silence.

    Args:
        context: the encoder.
        order: the place in the source of each channel of the encoder, where the orders differ.
        cut: leave out the samples before 0.
    """
    graph: Any = None
    for frame in _alike(frames):
        graph = graph or _graph(frame, context, order, cut)
        graph.push(frame)
        yield from pulled(graph)
    if graph is not None:
        graph.push(None)
        yield from pulled(graph)


def _alike(frames: Iterable[Any]) -> Iterator[Any]:
    """Convert all frames to the format of the first: broadcasts change rate and channels between programmes."""
    form: Any = None
    for its, group in groupby(frames, lambda frame: (frame.format.name, frame.layout.name, frame.sample_rate)):
        form = form or its
        if its == form:
            yield from group
        else:
            resampler = av.AudioResampler(*form)
            for frame in chain(group, [None]):
                yield from resampler.resample(frame)


def _graph(frame: Any, context: Any, order: tuple[int, ...] | None, cut: bool) -> Any:
    graph = av.filter.Graph()
    layout = frame.layout.name
    source = graph.add_abuffer(
        sample_rate=frame.sample_rate, format=frame.format.name, layout=layout, time_base=frame.time_base
    )
    filters = [
        source,
        *([graph.add("channelmap", f"map={'|'.join(map(str, order))}:channel_layout={layout}")] if order else []),
        *([graph.add("atrim", "start=0")] if cut else []),
        graph.add("aresample", "async=1"),
        graph.add(
            "aformat",
            f"sample_fmts={context.format.name}:sample_rates={context.sample_rate}"
            f":channel_layouts={context.layout.name}",
        ),
        *([graph.add("asetnsamples", f"n={context.frame_size}:p=0")] if context.frame_size else []),
        graph.add("abuffersink"),
    ]
    graph.link_nodes(*filters).configure()
    return graph


@dataclass(frozen=True)
class Heard:
    """The audible part of an audio stream, in seconds."""

    begin: Fraction
    end: Fraction
    audible: Fraction
    """How long it is louder than -60 dB of full scale."""
    frame: Fraction
    """The length of its longest frame."""


def heard(info: MediaInfo, index: int, name: str, trim: Trim | None) -> Heard | None:
    """Decode an audio stream and measure what can be heard; None where nothing can be decoded."""
    begin = end = None
    audible = frame_length = Fraction(0)
    with open_input(info.path, whole=info.unlisted) as source:
        for frame in decoded(source, index, name, trim):
            length, time = _length(frame), frame.pts * frame.time_base
            begin = time if begin is None else begin
            end = time + length
            audible += length * _audible(frame)
            frame_length = max(frame_length, length)
    if begin is None or end is None:
        return None
    return Heard(begin, end, audible, frame_length)


def _audible(frame: Any) -> Fraction:
    """The share of a frame's blocks of 10 ms that are louder than -60 dB."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    scale = 1.0 if samples.dtype.kind == "f" else 128.0 * 256.0 ** (samples.dtype.itemsize - 1)
    middle = 128.0 if samples.dtype == np.uint8 else 0.0
    peaks = np.abs(samples.astype(np.float32) - middle).max(axis=0) / scale
    starts = np.arange(0, max(1, peaks.size), max(1, frame.sample_rate // 100))
    if not peaks.size:
        return Fraction(0)
    loud = np.maximum.reduceat(peaks, starts) > _AUDIBLE
    return Fraction(int(loud.sum()), loud.size)
