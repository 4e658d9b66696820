"""Re-read what was written and see that nothing is missing, before it takes its place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from vidup.errors import VerifyError
from vidup.frame import MediaInfo
from vidup.reader import open_input
from vidup.writer import StreamPlan, Trim, kept_packets

_SYNC = Fraction(2, 1000)
"""How far sound may move against the picture: the ticks of two containers, in seconds."""
_TICK = {"mp4": Fraction(0), "mov": Fraction(0), "matroska": Fraction(1, 1000), "webm": Fraction(1, 1000)}


def check_output(
    output: Path,
    container: str,
    times: Sequence[Fraction],
    size: tuple[int, int],
    info: MediaInfo,
    plans: Sequence[StreamPlan],
    trim: Trim | None = None,
) -> None:
    """Compare a written file with what it must hold.

    Args:
        times: when each frame is shown, in seconds, rising.
        size: (height, width) of the frames.

    Raises:
        VerifyError: a frame or a packet is missing, changed or at another time; names the first difference.
    """
    copies = [plan for plan in plans if plan.action == "copy" and info.streams[plan.index].kind == "audio"]
    with open_input(info.path) as source:
        expected = _tracks(kept_packets(source, [plan.index for plan in copies], trim), [p.index for p in copies])
    with open_input(output) as written:
        indices = [stream.index for stream in written.streams.audio]
        found = _tracks((p for p in written.demux(*written.streams.audio) if p.size) if indices else (), indices)
        if len(found) != len(expected):
            raise VerifyError(f"{output}: holds {len(found)} audio streams, expected {len(expected)}")
    for plan, before, after in zip(copies, expected, found, strict=True):
        if (before.packets, before.digest.digest()) != (after.packets, after.digest.digest()):
            raise VerifyError(f"{output}: the packets of stream {plan.index} ({plan.name}) differ from the input's")
    # Matroska cannot begin below 0: its muxer moves all streams by the same time, but where a codec's own delay allows.
    shift = Fraction(0)
    if container in ("matroska", "webm"):
        begins = [(a.begins, b.begins) for a, b in zip(expected, found, strict=True)]
        shift = max(Fraction(0), -min([times[0], *(before for before, _ in begins if before is not None)]))
        moved = [after - before for before, after in begins if before is not None and after is not None]
        shift = min(shift, max(Fraction(0), *moved)) if moved else shift
    for plan, before, after in zip(copies, expected, found, strict=True):
        if before.begins is not None and after.begins is not None:
            late = after.begins - before.begins - shift
            if abs(late) > _SYNC:
                raise VerifyError(f"{output}: stream {plan.index} ({plan.name}) is {float(late):.4f} s late")
    _check_frames(output, times, shift, _TICK[container], size)


def _check_frames(
    output: Path, times: Sequence[Fraction], shift: Fraction, tick: Fraction, size: tuple[int, int]
) -> None:
    with open_input(output) as written:
        video = next(
            (s for s in written.streams.video if (s.codec_context.height, s.codec_context.width) == size), None
        )
        if video is None:
            raise VerifyError(f"{output}: holds no video of {size[1]}x{size[0]}")
        found = sorted(packet.pts * packet.time_base for packet in written.demux(video) if packet.size)
    if len(found) != len(times):
        raise VerifyError(f"{output}: holds {len(found)} frames, expected {len(times)}")
    for index, (got, expected) in enumerate(zip(found, times, strict=True)):
        # a shift and a time may each be rounded to the tick
        if abs(got - shift - expected) > (tick if shift else tick / 2):
            raise VerifyError(
                f"{output}: frame {index} is at {float(got):.6f} s, expected {float(expected + shift):.6f} s"
            )


class _Track:
    """Fingerprint of a stream's packets."""

    def __init__(self) -> None:
        self.packets, self.digest = 0, hashlib.sha256()
        self.begins: Fraction | None = None

    def add(self, packet: Any) -> None:
        if self.begins is None and packet.pts is not None:
            self.begins = packet.pts * packet.time_base
        self.packets += 1
        self.digest.update(_payload(packet))


def _payload(packet: Any) -> bytes:
    """The packet without the ADTS header that AAC has in a transport stream and must not have elsewhere."""
    data = bytes(packet)
    if packet.stream.codec_context.name == "aac" and data[:1] == b"\xff" and data[1] & 0xF6 == 0xF0:
        return data[7 if data[1] & 1 else 9 :]
    return data


def _tracks(packets: Iterable[Any], indices: Sequence[int]) -> list[_Track]:
    tracks = {index: _Track() for index in indices}
    for packet in packets:
        tracks[packet.stream.index].add(packet)
    return list(tracks.values())
