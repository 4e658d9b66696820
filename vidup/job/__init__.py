"""The main job: plan, upscale in segments, join, verify, deliver."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import vidup
from vidup import engines, proof
from vidup.config import Runtime, Settings
from vidup.engines import Choice
from vidup.engines.memory import memory_limit
from vidup.errors import ConfigError, MediaError, VerifyError, VidupError
from vidup.job import describe, plan, rehearse, stills
from vidup.job.execute import execute
from vidup.job.plan import Job
from vidup.job.progress import Sink, Tracker
from vidup.job.store import Segment, Store, disk_full_told, fingerprint_file, need_disk, open_store, plan_segments
from vidup.job.worker import Part, Worker
from vidup.media import containers, joining
from vidup.media.segment import read_segment
from vidup.upscaler import Upscaler

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What became of one input."""

    input: Path
    output: Path
    error: VidupError | None = None
    skipped: bool = False
    """It was delivered before."""


def upscale(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    settings: Settings | None = None,
    *,
    runtime: Runtime | None = None,
    on_progress: Sink | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Upscale a video, or a still image, into a new file.

    The output path holds the whole, verified result, or what it held before. What is done is kept beside it, in
    ``OUTPUT.vidup``, until then: the same call goes on where a stopped or killed one was. `KeyboardInterrupt`, and
    whatever `on_progress` raises, stop the job within a batch.

    Args:
        input: a file that ffmpeg reads, or an image.
        output: where to; its ending chooses the container. Beside the input with ``_x4`` in its name where not given.
        settings: what decides the result.
        runtime: where and how it runs; ``overwrite`` allows to replace the output.
        on_progress: is called with each `Progress` event.
        stop: is asked often; once true, the batch in hand is finished and `Stopped` is raised.

    Returns:
        The path of the output.

    Raises:
        ConfigError, MediaError, EngineError, ResumeError, VerifyError: each with one line that says what, which value,
            what to do.
        Stopped: `stop` was true before the end.
    """
    (outcome,) = upscale_files([(input, output)], settings, runtime=runtime, on_progress=on_progress, stop=stop)
    if outcome.error is not None:
        raise outcome.error
    return outcome.output


def upscale_files(
    files: Sequence[tuple[str | os.PathLike[str], str | os.PathLike[str] | None]],
    settings: Settings | None = None,
    *,
    runtime: Runtime | None = None,
    on_progress: Sink | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Outcome]:
    """`upscale` for many files (pairs of input and output): one queue, and the model is loaded once a worker.

    The failure of a file is in its `Outcome`, and the others go on.
    """
    settings, runtime = settings or Settings(), runtime or Runtime()
    if runtime.compile == "auto" and all(Path(source).suffix.lower() in stills.ENDINGS for source, _ in files):
        runtime = replace(runtime, compile="off")  # a picture is done before a model is compiled
    tracker = Tracker(on_progress)
    with ExitStack() as stack:
        upscaler = stack.enter_context(Upscaler(settings, runtime))
        outcomes, works = [], []
        taken: dict[Path, Path] = {}  # output -> the input that it is of
        for source, target in files:
            name = Path(source) if runtime.ray is None else Path(source).absolute()  # other machines stand elsewhere
            output = default_output(name, settings) if target is None else Path(target)
            outcome = Outcome(name, output if runtime.ray is None else output.absolute())
            outcomes.append(outcome)
            with _failing(outcome):
                work = _begin(outcome, upscaler, tracker, stack, taken)
                works += [work] if work is not None else []
        if works:
            _run(works, upscaler, tracker, stop)
    tracker.enter("done")
    return outcomes


@contextmanager
def _failing(outcome: Outcome) -> Iterator[None]:
    """An error of vidup's own is the outcome; all others pass."""
    try:
        yield
    except VidupError as error:
        outcome.error = error


@dataclass
class _Work:
    """A job on its way."""

    job: Job
    outcome: Outcome
    store: Store
    segments: list[Segment]
    left: set[int]
    """Indexes of the segments that are not done."""


def _begin(
    outcome: Outcome, upscaler: Upscaler, tracker: Tracker, stack: ExitStack, taken: dict[Path, Path]
) -> _Work | None:
    """Plan a job and open its folder; None where there is nothing to be queued."""
    source, target, runtime = outcome.input, outcome.output, upscaler.runtime
    if runtime.skip_done and target.is_file():
        _check_delivered(outcome, upscaler.settings)
        return None
    try:
        plan.check_paths(source, target, runtime.overwrite)
    except OSError as error:  # a name that is too long, a folder that must not be entered
        raise MediaError(f"{error.filename or source}: cannot be used: {error.strerror or error}") from None
    tracker.enter("loading", target)
    if stills.is_still(source, target):
        _take(target, source, taken)
        stills.upscale_still(upscaler, source, target, tracker)
        return None
    job = plan.plan(source, target, upscaler.settings)
    _take(target, source, taken)  # not before: what is no video, such as subtitles of the same name, takes none
    for line in describe.describe(job):
        log.info("%s", line)
    if runtime.strict and plan.lost(job):
        raise ConfigError(f"{source}: strict: {'; '.join(plan.lost(job))}")
    store = open_store(_folder(target), _fingerprint(job, upscaler), runtime.restart)
    stack.callback(_leave, store)
    parts = _segments(job, store.folder)
    done = store.finished(parts, partial(_is_whole, job))
    room = plan.disk(job, sum(part.frames for part in parts if part.index not in done))
    need_disk(store.folder, room)
    log.debug(
        "%s: about %.2f GiB of disk and %.2f GiB of memory for frames on their way",
        *(target, room / 2**30, plan.host_memory(job) / 2**30),
    )
    job = rehearse.rehearse(job, store.folder)
    if runtime.strict and plan.lost(job):
        raise ConfigError(f"{source}: strict: {'; '.join(plan.lost(job))}")
    if done:
        log.info("%s: %d of %d segments are done already", target, len(done), len(parts))
    frames = len(job.times) // (job.high - job.low)  # of the output for one of the input
    tracker.expect(len(job.times), sum(part.frames for part in parts if part.index in done) * frames)
    return _Work(job, outcome, store, parts, {part.index for part in parts} - done)


def _take(target: Path, source: Path, taken: dict[Path, Path]) -> None:
    """See that no output is that of two inputs."""
    first = taken.setdefault(target.resolve(), source)
    if first is not source:
        raise ConfigError(f"{source}: its output {target} is that of {first}, too; give it another with -o")


def _leave(store: Store) -> None:
    """Keep a folder only for what a later run can use."""
    if store.folder.is_dir() and not any(store.folder.glob("*.seg")):
        store.delete()
    store.close()


def _segments(job: Job, folder: Path) -> list[Segment]:
    begin, end = job.span
    times = list(job.info.pts[job.low : job.high])
    times[0] = times[0] if begin is None else max(times[0], begin)
    return plan_segments(times, job.settings.segment_frames, folder, end)


def _run(works: list[_Work], upscaler: Upscaler, tracker: Tracker, stop: Callable[[], bool]) -> None:
    """Upscale what is left of all jobs, and deliver each when its last segment stands."""
    settings, runtime = upscaler.settings, upscaler.runtime

    def finish(work: _Work) -> None:
        with _failing(work.outcome), disk_full_told(work.store.folder):
            _deliver(work, tracker, runtime)

    def on_result(part: Part, result: Choice | VidupError) -> None:
        work = works[part.file]
        if isinstance(result, VidupError):
            work.outcome.error = work.outcome.error or result  # the first says most
            return
        work.left.discard(part.segment.index)
        if work.store.choice != asdict(result):
            work.store.save_choice(asdict(result))
        if not work.left:
            finish(work)

    for work in works:
        if not work.left:
            finish(work)
    parts = [Part(file, each) for file, work in enumerate(works) for each in work.segments if each.index in work.left]
    here = runtime.workers == 1 and runtime.ray is None  # else each worker loads its own engine
    jobs = [work.job for work in works]
    choices = [work.store.choice for work in works]  # of earlier runs
    if here:  # before there is anything that follows from it
        for work in works:
            _choose(work, upscaler)

    def in_hand() -> Path | None:
        return next((work.job.output for work in works if work.left and work.outcome.error is None), None)

    tracker.enter("compiling" if here and parts and upscaler.compiles else "upscaling", in_hand())
    execute(
        partial(Worker, jobs, choices, settings, _shared(runtime), upscaler if here else None),
        parts,
        wanted=lambda part: works[part.file].outcome.error is None,
        on_result=on_result,
        on_progress=lambda frames: tracker.advance(frames, in_hand()),
        stop=stop,
        workers=runtime.workers,
        address=runtime.ray,
        gpus_per_worker=_gpus(runtime),
    )


def _choose(work: _Work, upscaler: Upscaler) -> None:
    """Settle and store what the engine decides by itself, so that a resumed job repeats it."""
    if work.left and not work.store.choice:
        size = work.job.turn.size(work.job.info.height, work.job.info.width)
        choice = upscaler.choose(*size)
        work.store.save_choice(asdict(choice))
        log.debug(
            "%s: about %.2f GiB on %s; %d at a time, %s",
            *(work.job.output, upscaler.planner.memory(choice, *size) / 2**30, upscaler.engine.device, choice.batch),
            f"tiles of {choice.tile}" if choice.tile else "whole frames",
        )


def _shared(runtime: Runtime) -> Runtime:
    """For one of several workers on this machine: its part of a device's memory."""
    part = _gpus(runtime) or 1 / runtime.workers
    if runtime.ray is not None or part == 1:
        return runtime
    limit = memory_limit(runtime, engines.choose_device(runtime.device))
    return replace(runtime, max_memory=str(int(limit * part)))


def _gpus(runtime: Runtime) -> float:
    """The share of a GPU that a worker of its own process is given; 0 where it is not for Ray to hand them out."""
    if runtime.ray is not None:  # whose machines may have what this one has not
        here = engines.devices()[0].startswith("cuda")
        return 1.0 if runtime.device == "cuda" or (runtime.device == "auto" and here) else 0.0
    count = sum(name.startswith("cuda") for name in engines.devices()) if runtime.device in ("auto", "cuda") else 0
    return 1 / math.ceil(runtime.workers / count) if count and runtime.workers > 1 else 0.0


def _is_whole(job: Job, segment: Segment) -> bool:
    """Whether a segment's file holds the pictures that belong there; a damaged input may have had fewer."""
    try:
        packets = [packet.pts for packet in read_segment(segment.path)]
    except (MediaError, OSError):
        return False
    found = sorted(int(time * job.encoding.time_base / job.unit) for time in packets)
    low, high = plan.span(job, segment)
    expected = job.times[low:high]
    return set(found) <= set(expected) if job.settings.tolerate_errors else found == list(expected)


def _deliver(work: _Work, tracker: Tracker, runtime: Runtime) -> None:
    """Join, verify, and move into place."""
    job, store = work.job, work.store
    tracker.enter("joining", job.output)
    paths = [segment.path for segment in work.segments]
    whole = store.folder / f"whole{job.output.suffix}"
    try:
        joined = joining.join(whole, job, job.encoding, paths, store.folder)
        tracker.enter("verifying", job.output)
        times: Sequence[int] = job.times
        if job.settings.tolerate_errors:  # each segment was proved to hold what was decoded for it
            times = [int(time * job.encoding.time_base / job.unit) for time in joined]
            if len(times) < len(job.times):
                log.warning("%s: %d frames of the input are lost", job.output, len(job.times) - len(times))
        with _kept(whole, "unproved"):
            proof.check_joined(whole, job, job.encoding, times, paths)
        with _kept(whole, "undelivered"):
            deliver(whole, job.output)
    finally:
        whole.unlink(missing_ok=True)
    log.info("%s: delivered and verified, %d frames", job.output, len(times))
    if not runtime.keep_work:
        store.delete()


@contextmanager
def _kept(whole: Path, name: str) -> Iterator[None]:
    """Where a file fails that took days, leave it in the job's folder, under a name that says how far it came."""
    kept = whole.with_stem(name)
    try:
        yield
    except (MediaError, VerifyError) as error:
        whole.replace(kept)
        raise type(error)(f"{error}; what was joined is kept as {kept}") from error


def deliver(whole: Path, output: Path) -> None:
    """Move a finished file into place, in one step.

    Raises:
        MediaError: it cannot be moved.
    """
    try:
        with whole.open("rb+") as file:
            os.fsync(file.fileno())
        whole.replace(output)
    except OSError as error:
        raise MediaError(f"{output}: cannot be written: {error.strerror or error}") from error


_OF_STREAMS = ("streams", "drop_streams", "no_audio", "no_subtitles", "muxer_options")


def _fingerprint(job: Job, upscaler: Upscaler) -> dict[str, object]:
    """All that decides the segments. What only decides the copied streams may change between two runs."""
    given = {key: value for key, value in asdict(job.settings).items() if key not in _OF_STREAMS}
    return {
        "input": fingerprint_file(Path(job.info.path)),
        "settings": given,
        "container": job.container.name,
        "engine": _identity(upscaler),
        "version": vidup.__version__,
    }


def _identity(upscaler: Upscaler) -> str:
    settings, runtime = upscaler.settings, upscaler.runtime
    if runtime.workers == 1 and runtime.ray is None:
        return upscaler.engine.identity
    # The workers have the engine, and no GPU may be here. The model's files depend on the precision.
    half = settings.dtype in ("float16", "bfloat16") or (settings.dtype == "auto" and _gpus(runtime) > 0)
    return engines.identify(settings, half)


def _check_delivered(outcome: Outcome, settings: Settings) -> None:
    try:
        proof.verify(outcome.input, outcome.output, settings, fast=True)
    except VidupError as error:
        raise ConfigError(
            f"{outcome.output}: exists, and is no whole delivery of {outcome.input} ({error}); add -y to replace it"
        ) from error
    outcome.skipped = True
    log.info("%s: was delivered before", outcome.output)


def default_output(source: Path, settings: Settings) -> Path:
    """The output's name where none is given: beside the input, in its family of containers, with the scale in it."""
    mark = f"_{settings.height}p" if settings.height else f"_x{settings.scale or engines.native_scale(settings):g}"
    ending = source.suffix.lower()
    kept = ending in {*containers.CONTAINERS, *stills.ENDINGS}
    return source.with_name(source.stem + mark + (ending if kept else containers.MATROSKA.endings[0]))


def _folder(output: Path) -> Path:
    """Beside the output, on the same disk, so that the result moves into place in one step."""
    return output.with_name(output.name + ".vidup")
