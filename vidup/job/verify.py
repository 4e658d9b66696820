"""`verify`: prove any upscaled file against its source, also one of another program."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from vidup import proof
from vidup.config import Given, Settings, settings_of
from vidup.errors import VerifyError, VidupError
from vidup.job.plan import Job, job_of
from vidup.job.rehearse import rehearse
from vidup.media import containers, decoding, encoder, probing
from vidup.media.delivery import Delivery, plan_delivery
from vidup.media.sequences import is_sequence
from vidup.proof import Receipt


def verify(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: Given = None,
    *,
    fast: bool = False,
) -> Receipt:
    """Prove that an upscaled file, of whatever program, contains all that its source contains.

    What the file's container cannot store is no fault: a rehearsal as at the begin of a job finds it, and logs it.

    Args:
        settings: the settings of the output for part, deinterlacing, rotation and streams; others are ignored.
        fast: compare samples of the pictures instead of all.

    Raises:
        ConfigError: no frame of the source begins in the requested part.
        MediaError: a file cannot be read.
        VerifyError: the first difference.
    """
    settings, output = settings_of(settings), Path(output)
    info = probing.at_rate(probing.probe(Path(source), settings.tolerate_errors), settings.fps)
    container = containers.MATROSKA
    if is_sequence(output) or output.suffix.lower() in containers.WRITTEN:
        container = containers.container_of(output)
    delivery, times = plan_delivery(info, container.with_options(settings.muxer_options), settings), None
    if settings.tolerate_errors:  # only decoding shows which frames there are
        decoded = decoding.decode(info, *delivery.span, settings)
        times = [frame.pts - delivery.offset for frame in decoded]
    try:
        return proof.check(output, delivery, times=times, fast=fast)
    except VerifyError:
        job = _rehearsed(delivery, output)
        if job is None or (job.streams, job.accepted) == (delivery.streams, delivery.accepted):
            raise
    return proof.check(output, job, job.encoding, times, fast)


def _rehearsed(delivery: Delivery, output: Path) -> Job | None:
    """The job that makes such an output, rehearsed; None where there is none."""
    with suppress(VidupError, OSError), TemporaryDirectory() as folder:
        made, given = probing.probe(output), delivery.settings
        codec = encoder.encoder_of(made.codec)
        settings = Settings(matrix=given.matrix, range=given.range, codec=codec, pix_fmt=made.pix_fmt)
        return rehearse(job_of(delivery, output, settings, (made.height, made.width), {}), Path(folder))
    return None
