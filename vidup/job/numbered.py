"""Numbered pictures as an output: a file for each frame, from the segments of a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vidup.errors import VerifyError
from vidup.job.disk import beside, put_in_place
from vidup.job.plan import Job
from vidup.media.segment import read_segment
from vidup.media.sequences import name, numbers_of
from vidup.proof import Receipt, sha256
from vidup.proof.pictures import Compared


def deliver(job: Job, segments: Sequence[Path], overwrite: bool, compared: Compared) -> Receipt:
    """Write the pictures of proved segments, each atomically, and read them again.

    Without `overwrite`, an existing picture has to be equal. `compared` is the result of the proof of the segments.
    """
    source, size = Path(job.info.path), (job.encoding.height, job.encoding.width)
    numbers = iter(numbers_of(source, job.low, len(job.times)))
    for segment in segments:
        for packet in sorted(read_segment(segment), key=lambda packet: packet.pts):
            target = name(job.output, next(numbers))
            if target.is_file() and target.read_bytes() == packet.data:
                continue
            part = beside(target, ".part")
            part.write_bytes(packet.data)
            try:
                put_in_place(part, target, overwrite)
            finally:
                part.unlink(missing_ok=True)
            if target.read_bytes() != packet.data:
                raise VerifyError(f"{target}: is not what was written; is the disk sound?")
    return Receipt(
        source, job.output, len(job.times), compared.pictures, compared.least_likeness, size, (), 0, sha256(job.output)
    )
