"""`upscale`: the main job, for one file or for many."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from vidup.config import Given, Runtime
from vidup.engines import stops
from vidup.job import crew as crews
from vidup.job import review
from vidup.job.plan import default_output as default_output
from vidup.job.progress import Outcome as Outcome
from vidup.job.progress import Sink, SinkFailed, Tracker, failing
from vidup.job.queue import begin, run
from vidup.proof import Receipt
from vidup.upscaler import Upscaler

Name = str | os.PathLike[str]


def upscale(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    settings: Given = None,
    *,
    runtime: Runtime | None = None,
    on_progress: Sink | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Receipt:
    """Upscale a video, or a still image, into a new file.

    The output path has the complete, verified result, or what it had before. Finished work is kept beside it, in
    ``OUTPUT.vidup``, until then: the same call resumes a job that was stopped or killed. `KeyboardInterrupt` and
    exceptions of `on_progress` stop the job as `stop` does.

    Args:
        input: a file that ffmpeg reads, or an image.
        output: the output path, whose ending chooses the container; None: beside the input, with ``_x4`` in its name.
        settings: what decides the result; a string or a path is a preset.
        runtime: where and how it runs; ``overwrite`` allows replacing the output.
        on_progress: called with each `Progress` event.
        stop: called repeatedly during the work; once it returns true, `Stopped` is raised.

    Returns:
        The receipt of the proof, which can be used as the output's path.

    Raises:
        ConfigError, MediaError, EngineError, ResumeError, VerifyError: each with one line that says what, which value,
            what to do.
        Stopped: `stop` returned true before the end.
    """
    with Upscaler(settings, runtime, stop=stop) as upscaler:
        return upscale_with(upscaler, input, output, on_progress)


def upscale_files(
    files: Sequence[tuple[Name, Name | None]],
    settings: Given = None,
    *,
    runtime: Runtime | None = None,
    on_progress: Sink | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Outcome]:
    """`upscale` for many files (pairs of input and output): one queue, and each worker loads the model once.

    Returns:
        The outcome of each: `input`, `output`, and its `receipt` or `error`. An error does not stop the other files.
    """
    with Upscaler(settings, runtime, stop=stop) as upscaler:
        return _upscale(upscaler, files, on_progress)


def upscale_with(upscaler: Upscaler, input: Name, output: Name | None, on_progress: Sink | None) -> Receipt:
    """`upscale` with an existing upscaler, whose model stays loaded."""
    (outcome,) = _upscale(upscaler, [(input, output)], on_progress)
    if outcome.error is not None:
        raise outcome.error
    assert outcome.receipt is not None
    return outcome.receipt


def _located(path: Name, runtime: Runtime) -> Path:
    """The path under which every worker finds a file: those of a cluster have other working directories."""
    return Path(path) if runtime.ray is None else Path(path).absolute()


def _upscale(upscaler: Upscaler, files: Sequence[tuple[Name, Name | None]], on_progress: Sink | None) -> list[Outcome]:
    settings, runtime, stop = upscaler.settings, upscaler.runtime, upscaler.stop
    tracker = Tracker(on_progress, len(files))
    outcomes, works = [], []
    taken: dict[Path, Path] = {}  # output -> its input
    try:
        with ExitStack() as stack:
            stack.enter_context(stops.watched(stops.Watch(tracker.beat, tracker.step)))
            crew = crews.choose(upscaler)
            begun = []
            for source, target in files:
                name = _located(source, runtime)
                output = default_output(name, settings) if target is None else _located(target, runtime)
                outcome = Outcome(name, output)
                outcomes.append(outcome)
                begun.append(begin(outcome, upscaler, crew, tracker, stack, taken))
                with failing(outcome, tracker):
                    next(begun[-1], None)
            for outcome, beginning in zip(outcomes, begun, strict=True):
                with failing(outcome, tracker):
                    work = next(beginning, None)
                    works += [work] if work is not None else []
            if works:
                run(works, runtime, crew, tracker, stop)
        for outcome in outcomes:
            review.write(outcome, settings, runtime, stop)
    except SinkFailed as failed:
        raise failed.args[0] from None
    return outcomes
