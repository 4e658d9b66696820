"""`verify`: prove any upscaled file against its source, whoever made it."""

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
    """Prove that an upscaled file, whoever made it, holds all that its source holds.

    What its container cannot say is no fault of the file: it is found by the rehearsal that a job begins with, and
    logged as there.

    Args:
        settings: where the output was made of a part, deinterlaced in another way, turned, or without some of the
            streams, the settings that say so; nothing else of them is used.
        fast: compare samples of the pictures instead of all.

    Raises:
        ConfigError: no frame of the source lies in the requested part.
        MediaError: a file cannot be read.
        VerifyError: names the first difference.
    """
    settings, output = settings_of(settings), Path(output)
    info = probing.at_rate(probing.probe(Path(source), settings.tolerate_errors), settings.fps)
    container = containers.MATROSKA
    if is_sequence(output) or output.suffix.lower() in containers.WRITTEN:
        container = containers.container_of(output)
    delivery, times = plan_delivery(info, container.with_options(settings.muxer_options), settings), None
    if settings.tolerate_errors:  # which frames can be decoded is known after decoding
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
        made = probing.probe(output)
        asked, codec = delivery.settings, encoder.encoder_of(made.codec)
        settings = Settings(matrix=asked.matrix, range=asked.range, codec=codec, pix_fmt=made.pix_fmt)
        return rehearse(job_of(delivery, output, settings, (made.height, made.width), {}), Path(folder))
    return None
