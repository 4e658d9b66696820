"""Convert a stream once and keep the result until the join, in a file of its own in the output's container."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av

from vidup.errors import MediaError
from vidup.media import conversion, streams
from vidup.media.conversion import StreamPlan
from vidup.media.delivery import Delivery
from vidup.media.opening import open_input


def path_of(folder: Path, plan: StreamPlan) -> Path:
    """The path of a converted stream; its name contains the conversion."""
    return folder / ("-".join(filter(None, (f"stream{plan.index}", plan.encoder, plan.layout))) + ".kept")


def convert(delivery: Delivery, plan: StreamPlan, folder: Path) -> bool:
    """Convert a stream into its file, unless that exists; returns whether the stream holds anything.

    Raises:
        MediaError: it cannot be converted, or the file cannot be written.
    """
    path = path_of(folder, plan)
    if path.is_file():
        return True
    part = path.with_name(path.name + ".part")
    try:
        with open_input(delivery.info.path, whole=delivery.info.unlisted) as source:
            if not _convert(part, delivery, plan, source.streams[plan.index]):
                return False
        part.replace(path)
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(f"stream {plan.index} ({plan.name}) cannot be converted to {plan.encoder}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return True


def _convert(path: Path, delivery: Delivery, plan: StreamPlan, stream: Any) -> bool:
    container = delivery.container
    options = {"fflags": "+bitexact", **streams.start_options(container, [stream])}
    with av.open(f"file:{path}", "w", format=container.name, container_options=options) as target:
        added = conversion.encoder(target, stream, plan)
        with closing(conversion.converted(delivery.info, plan, added, delivery.trim)) as packets:
            first = next(packets, None)
            if first is None:
                return False
            late = 0
            if container.below_zero == "shifted":  # the join shifts all streams as one; until then this one is shifted
                late = max(0, math.ceil(-first.pts * first.time_base))
                target.metadata["title"] = str(late)  # where `packets` finds it
            target.start_encoding()
            streams.mux(target, chain([first], packets), Fraction(late))
    return True


def packets(kept: Any, stream: Any) -> Iterator[Any]:
    """The packets of an open file of `convert`, assigned to a stream of the output, at their original times."""
    late = int(kept.metadata.get("title", 0))
    for packet in kept.demux(kept.streams[0]):
        if packet.size <= (2 if packet.stream.type == "subtitle" else 0):
            continue  # a flush packet, or an empty text, with which mov fills gaps
        offset = round(late / packet.time_base)
        packet.pts -= offset
        packet.dts = None if packet.dts is None else packet.dts - offset
        packet.stream = stream
        yield packet
