"""The report of a delivery: its result beside its input, as a page."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from vidup import report
from vidup.config import Runtime, Settings
from vidup.errors import Stopped, VidupError
from vidup.job import plan
from vidup.job.disk import beside
from vidup.job.outcome import Outcome
from vidup.media import containers, probing
from vidup.report.films import Film

log = logging.getLogger(__name__)

ENDING = ".html"
"""What a report's name has more than that of the output, beside which it lies."""

_LATER = "vidup compare INPUT OUTPUT -o REPORT.html makes one"


def check(source: Path, target: Path, runtime: Runtime) -> None:
    """See that a requested report can be written, before anything is upscaled.

    Raises:
        ConfigError: it is there already, and may not be replaced.
    """
    if runtime.report and not _is_picture(source, target) and target.parent.is_dir():
        report.check(beside(target, ENDING), runtime.overwrite or runtime.skip_done)


def write(outcome: Outcome, settings: Settings, runtime: Runtime, stop: Callable[[], bool]) -> None:
    """Write the report of a delivery, where one is wanted; what keeps it from that is a warning, as the result stands.

    Of what was delivered before it is written only where there is none.
    """
    page = beside(outcome.output, ENDING)
    if not runtime.report or outcome.receipt is None or (outcome.skipped and page.exists()):
        return
    if _is_picture(outcome.input, outcome.output):
        log.warning("%s: no report is written of a still image or an animation; %s", outcome.output, _LATER)
        return
    log.info("%s: is measured for its report", outcome.output)
    try:
        source, result = films(outcome, settings)
        report.write_of(page, source, result, runtime.overwrite or runtime.skip_done, stop)
    except (VidupError, OSError) as error:
        why = "it was stopped" if isinstance(error, Stopped) else error
        log.warning("%s: is delivered and verified, but has no report: %s; %s", outcome.output, why, _LATER)


def _is_picture(source: Path, target: Path) -> bool:
    """Whether the output is a still image, or an animation, whose equal pictures may have become one."""
    return containers.is_picture(source, target) or containers.container_of(target).moves


def films(outcome: Outcome, settings: Settings) -> tuple[Film, Film]:
    """The part of an input that was upscaled, as it was read for that, and its result."""
    job = plan.plan(outcome.input, outcome.output, settings)
    source = Film(job.info, job.settings, *job.span)
    info = probing.at_rate(probing.probe(str(outcome.output)), settings.fps)
    # Pictures bear no times, and some containers round them: there are as many, in order, which is proved.
    return source, Film(info, times=source.times)
