"""`--report`: write the report of an output, by `vidup.report`, when its job is done."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from vidup import report
from vidup.config import Runtime, Settings
from vidup.errors import Stopped, VidupError
from vidup.job import plan
from vidup.job.disk import beside
from vidup.job.progress import Outcome
from vidup.media import containers, probing
from vidup.report.films import Film

log = logging.getLogger(__name__)

_ENDING = ".html"  # is appended to an output's name
_LATER = "vidup compare INPUT OUTPUT -o REPORT.html makes one"


def check(source: Path, target: Path, runtime: Runtime) -> None:
    """Raise a `ConfigError` if a requested report exists and must not be replaced, before anything is upscaled."""
    if runtime.report and not _is_picture(source, target) and target.parent.is_dir():
        report.check(beside(target, _ENDING), runtime.overwrite or runtime.skip_done)


def write(outcome: Outcome, settings: Settings, runtime: Runtime, stop: Callable[[], bool]) -> None:
    """Write the report of an output, if one is requested; an error is only a warning, as the output is complete.

    The report of an output that was complete before is written only if there is none.
    """
    page = beside(outcome.output, _ENDING)
    if not runtime.report or outcome.receipt is None or (outcome.skipped and page.exists()):
        return
    if _is_picture(outcome.input, outcome.output):
        log.warning("%s: no report is written of a still image or an animation; %s", outcome.output, _LATER)
        return
    log.info("%s: is measured for its report", outcome.output)
    try:
        source, result = _films(outcome, settings)
        report.write_of(page, source, result, runtime.overwrite or runtime.skip_done, stop)
    except (VidupError, OSError) as error:
        why = "it was stopped" if isinstance(error, Stopped) else error
        log.warning("%s: is delivered and verified, but has no report: %s; %s", outcome.output, why, _LATER)


def _is_picture(source: Path, target: Path) -> bool:
    """Whether the output is a still image, or an animation, whose equal pictures may have become one."""
    return containers.is_picture(source, target) or containers.container_of(target).is_animated


def _films(outcome: Outcome, settings: Settings) -> tuple[Film, Film]:
    """The upscaled part of an input, as it was read for that, and the result."""
    job = plan.plan(outcome.input, outcome.output, settings)
    source = Film(job.info, job.settings, *job.span)
    info = probing.at_rate(probing.probe(str(outcome.output)), settings.fps)
    # The source's times: pictures have none, and some containers round them. It is proved that the frames are the same.
    return source, Film(info, times=source.times)
