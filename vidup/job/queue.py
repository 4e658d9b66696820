"""A queue of jobs: each is planned, upscaled in segments when its turn comes, joined, verified and delivered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import vidup
from vidup import engines, proof
from vidup.config import Runtime
from vidup.engines import Choice
from vidup.engines.planner import LADDER
from vidup.errors import ConfigError, MediaError, VerifyError, VidupError
from vidup.job import describe, numbered, pace, plan, rehearse, review, stills, unfinished
from vidup.job.crew import Crew
from vidup.job.disk import beside, disk_full_named, followed, need_disk, put_in_place
from vidup.job.plan import Job
from vidup.job.progress import Outcome, Tracker, fail, failing
from vidup.job.store import Segment, Store, plan_segments, was_delivered
from vidup.job.verify import verify
from vidup.job.worker import Done, Task, Worker
from vidup.media import containers, joining
from vidup.media.segment import read_segment
from vidup.media.sequences import is_sequence
from vidup.paths import check_pair, is_there
from vidup.proof.pictures import Compared
from vidup.upscaler import Upscaler

log = logging.getLogger(__name__)

FOLDER = ".vidup"
"""The ending of a job's folder. It is beside the output, so that the result can be moved into place atomically."""


@dataclass
class Work:
    """The state of a job in the queue."""

    job: Job
    outcome: Outcome
    store: Store
    segments: list[Segment]
    left: set[int]
    """The indexes of the segments that are not done."""
    in_work: int = 0
    """How many of them workers have."""
    results: list[Done] = field(default_factory=list)
    """Those of the segments of this run."""


def begin(
    outcome: Outcome, upscaler: Upscaler, crew: Crew, tracker: Tracker, stack: ExitStack, taken: dict[Path, Path]
) -> Iterator[Work | None]:
    """Plan a job and open its folder.

    Yields:
        None, once the job is planned: all files are planned before a model is loaded for the first. Then the job, if it
        has to be queued.
    """
    source, target, runtime = outcome.input, followed(outcome.output), upscaler.runtime
    folder = beside(target, FOLDER)
    if runtime.skip_done and is_there(target) and _is_delivered(outcome, upscaler):
        tracker.end(outcome.output, receipt=outcome.receipt)
        return
    delivered = not runtime.restart and target.is_file() and was_delivered(folder, target)
    begun = is_sequence(target) and folder.is_dir()  # existing pictures may be those of a job that was stopped
    try:
        check_pair(source, target, runtime.overwrite or delivered or begun)
    except OSError as error:  # a name that is too long, a folder without permission
        raise MediaError(f"{error.filename or source}: cannot be used: {error.strerror or error}") from None
    review.check(source, outcome.output, runtime)
    if containers.is_picture(source, target):
        _take(target, source, taken)
        tracker.expect(1, 0, outcome.output)
        yield None
        tracker.enter("loading", outcome.output)
        outcome.receipt = stills.upscale_still(upscaler, source, target, tracker)
        tracker.end(outcome.output, receipt=outcome.receipt)
        return
    job = plan.plan(source, target, upscaler.settings)
    if is_sequence(target):
        target.parent.mkdir(exist_ok=True)
    _take(target, source, taken)  # not before: a file that is no video, such as subtitles, has no output
    for line in describe.describe(job):
        log.info("%s", line)
    if runtime.strict:
        plan.refuse_losses(job)
    tracker.expect(len(job.times), 0, outcome.output)
    yield None
    tracker.enter("loading", outcome.output)
    store = Store(folder, _made_from(job, crew), runtime.restart, partial(_allowed, job, crew))
    stack.callback(_leave, store)
    if not delivered:
        yield _prepared(job, outcome, store, crew, runtime)
        return
    log.info("%s: was delivered and verified before; only the job's folder is left", target)
    outcome.skipped = True
    outcome.receipt = proof.check(target, job, job.encoding, fast=True)
    if not runtime.keep_work:
        store.delete()
    tracker.advance(len(job.times), outcome.output)
    tracker.end(outcome.output, receipt=outcome.receipt)


def _prepared(job: Job, outcome: Outcome, store: Store, crew: Crew, runtime: Runtime) -> Work:
    """A job whose model, disk space and join have been checked."""
    _ = crew.planner  # a missing model is an error here, and not after the join has been rehearsed
    segments = _segments(job, store.folder)
    size = plan.disk(job, sum(segment.frames for segment in segments if not segment.path.is_file()))
    need_disk(store.folder, size)
    log.debug(
        "%s: about %.2f GiB of disk and %.2f GiB of memory for frames",
        *(job.output, size / 2**30, plan.host_memory(job) / 2**30),
    )
    job = rehearse.rehearse(job, store.folder)
    if runtime.strict:
        plan.refuse_losses(job)
    store.close()  # until its turn: the number of a process's open files is limited
    return Work(job, outcome, store, segments, {segment.index for segment in segments})


def _allowed(job: Job, crew: Crew, stored: dict[str, Any]) -> bool:
    """Whether the planner can have made a stored choice, with this runtime or another."""
    names = [one.name for one in fields(Choice)]
    if sorted(stored) != sorted(names) or any(type(number) is not int for number in stored.values()):
        return False
    choice = Choice(**stored)
    try:
        Runtime(batch=choice.batch)
    except ConfigError:
        return False
    planner = crew.planner
    if planner is None:  # only the workers know the model's memory
        tiles = (job.settings.tile,) if job.settings.tile else (0, *LADDER)
        return choice.batch > 0 and choice.tile in tiles and 1 <= choice.keep <= Choice.keep
    return choice.batch > 0 and planner.allows(replace(choice, batch=1), *job.input_size)


def _open(work: Work, crew: Crew, tracker: Tracker) -> None:
    """Lock a job's folder, and find out which segments are done."""
    job, store = work.job, work.store
    store.open()
    done = store.finished(work.segments, partial(_is_whole, job))
    if done:
        log.info("%s: %d of %d segments are done already", job.output, len(done), len(work.segments))
    work.left -= done
    kept = sum(unfinished.kept(job, segment) for segment in work.segments if segment.index in work.left)
    ended = sum(segment.frames for segment in work.segments if segment.index in done)
    tracker.expect(0, ended * job.frames_each + kept, work.outcome.output)
    _choose(work, crew)


def _take(target: Path, source: Path, taken: dict[Path, Path]) -> None:
    """Check that no two inputs have the same output."""
    first = taken.setdefault(target.resolve(), source)
    if first is not source:
        raise ConfigError(f"{source}: its output {target} is that of {first}, too; give them outputs of two names")


def _leave(store: Store) -> None:
    """Delete a job's folder if it has nothing that a later run can use."""
    try:
        if store.folder.is_dir() and not any(store.folder.glob("*.seg")) and not any(store.folder.glob("*.made")):
            with suppress(VidupError):  # another process may have locked it
                store.open()
                store.delete()
    finally:
        store.close()


def _segments(job: Job, folder: Path) -> list[Segment]:
    begin, end = job.span
    times = list(job.info.pts[: job.high])
    if begin is not None:
        times[job.low] = max(times[job.low], begin)
    lead = engines.LEAD_IN if engines.carries(job.settings) else 0
    return plan_segments(times, job.settings.segment_frames, folder, end, job.low, lead)


def run(works: list[Work], runtime: Runtime, crew: Crew, tracker: Tracker, stop: Callable[[], bool]) -> None:
    """Upscale the remaining segments of all jobs, and deliver each after its last segment."""
    is_begun = False
    crew.expect(sum(plan.pixels(work.job) for work in works))

    def tasks() -> Iterator[Task]:
        """The remaining segments of one job after another; a job is opened when a worker is free for it."""
        nonlocal is_begun
        for file, work in enumerate(works):
            with failing(work.outcome, tracker):
                _open(work, crew, tracker)
                if not work.left:
                    _deliver(work, tracker, runtime)
                else:
                    if not is_begun:
                        _enter(work, crew, tracker, runtime)
                        is_begun = True
                    _log_estimate(work, crew, tracker)
            for segment in work.segments:
                if segment.index in work.left and work.outcome.error is None:
                    work.in_work += 1
                    choice = work.store.choice
                    yield Task(file, segment, Choice(**choice) if choice else None)
            _close_if_ended(work)

    def advance(frames: int) -> None:
        outputs = (work.outcome.output for work in works if work.left and work.outcome.error is None)
        tracker.advance(frames, next(outputs, None))

    make = partial(Worker, [work.job for work in works])
    with closing(crew.run(make, tasks(), advance, stop)) as results:
        for task, result in results:
            _take_result(works[task.file], task, result, tracker, runtime)
            _close_if_ended(works[task.file])


def _take_result(work: Work, task: Task, result: Done | VidupError, tracker: Tracker, runtime: Runtime) -> None:
    """Count a segment's result, and deliver the job after its last."""
    work.in_work -= 1
    if isinstance(result, VidupError):
        fail(work.outcome, result, tracker)
        return
    work.left.discard(task.segment.index)
    unfinished.forget(task.segment.path)
    work.results.append(result)
    tracker.count(result.computed, result.pixels)
    with failing(work.outcome, tracker):
        work.store.save_choice(asdict(result.choice))
        if not work.left:
            _deliver(work, tracker, runtime)


def _close_if_ended(work: Work) -> None:
    if not work.in_work and (work.outcome.error is not None or not work.left):
        work.store.close()


def _enter(work: Work, crew: Crew, tracker: Tracker, runtime: Runtime) -> None:
    """Enter the state of the first frames, of which some are slow: workers load models, or compile, with them."""
    compiles = crew.planner is not None and crew.planner.needs.compiled
    calls = runtime.workers if crew.upscaler is None else int(compiles)
    slow = calls * (work.store.choice or {}).get("batch", 1)
    tracker.enter("compiling" if compiles else "upscaling", work.outcome.output, slow)


def _log_estimate(work: Work, crew: Crew, tracker: Tracker) -> None:
    """Time a batch and log how long the job will take, where this process upscales."""
    if crew.upscaler is None:
        return
    frames = sum(segment.frames for segment in work.segments if segment.index in work.left)
    seconds = pace.seconds_left(work.job, crew.upscaler, frames)
    if seconds is not None:
        at_most = "at most " if engines.carries(work.job.settings) else ""
        what = f"{at_most}about {pace.in_words(seconds)} for {frames} frames, as the first take"
        log.info("%s: %s", work.job.output, what)
        tracker.enter("upscaling", work.outcome.output)  # timing has compiled the model


def _choose(work: Work, crew: Crew) -> None:
    """Choose batch and tiles and store them, so that all workers and a resumed job use the same.

    Where that needs the loaded model, it is the choice of the first worker that finishes a segment.
    """
    size, planner = work.job.input_size, crew.planner
    if not work.left or work.store.choice or planner is None:
        return
    choice = (crew.upscaler or planner).choose(*size)  # an upscaler's is smaller where it ran out of memory before
    work.store.save_choice(asdict(choice))
    log.debug(
        "%s: about %.2f GiB on %s; %d at a time, %s",
        *(work.job.output, planner.planned(choice, *size) / 2**30, crew.device, choice.batch),
        f"tiles of {choice.tile}" if choice.tile else "whole frames",
    )


def _is_whole(job: Job, segment: Segment) -> bool:
    """Whether a segment's file has its pictures; with a damaged input some may be missing."""
    try:
        packets = [packet.pts for packet in read_segment(segment.path)]
    except (MediaError, OSError):
        return False
    found = sorted(int(time * job.encoding.time_base / job.unit) for time in packets)
    low, high = plan.span(job, segment)
    expected = job.times[low:high]
    return set(found) <= set(expected) if job.settings.tolerate_errors else found == list(expected)


def _deliver(work: Work, tracker: Tracker, runtime: Runtime) -> None:
    """Join the segments, verify the result, and move it into place."""
    job = work.job
    tracker.enter("joining", work.outcome.output)
    job.check_input()
    paths = [segment.path for segment in work.segments]
    if gone := [path for path in paths if not path.is_file()]:
        raise MediaError(f"{gone[0]}: was removed while the job ran; the same command upscales it again")
    compared = sum((done.compared for done in work.results), Compared(0, 1.0))
    try:
        with disk_full_named(work.store.folder):
            if job.container.family == "pictures" and not job.container.is_animated:
                tracker.enter("verifying")
                receipt = numbered.deliver(job, paths, runtime.overwrite, compared)
            else:
                receipt = _joined(work, paths, compared, tracker, runtime.overwrite)
    except VidupError:
        job.check_input()  # if that has changed, it is the cause
        raise
    work.outcome.receipt = receipt
    pixels = sum(done.pixels for done in work.results)
    share = f", {sum(done.computed for done in work.results) / pixels:.0%} of the pixels computed" if pixels else ""
    log.info("%s: delivered and verified, %d frames%s", job.output, receipt.frames, share)
    if not runtime.keep_work:
        work.store.delete()
    tracker.end(work.outcome.output, receipt=receipt)


def _joined(work: Work, paths: list[Path], compared: Compared, tracker: Tracker, overwrite: bool) -> proof.Receipt:
    """Join the segments in the job's folder, verify the result, and move it into place."""
    job, folder = work.job, work.store.folder
    whole = folder / f"whole{job.output.suffix}"
    try:
        joined = joining.join(whole, job, job.encoding, paths, folder)
        tracker.enter("verifying")
        times: Sequence[int] = job.times
        if job.settings.tolerate_errors:  # each segment was proved to have the frames that could be decoded
            times = [int(time * job.encoding.time_base / job.unit) for time in joined]
            if len(times) < len(job.times):
                log.warning("%s: %d frames of the input are lost", job.output, len(job.times) - len(times))
        with _kept(whole, "unproved"):
            receipt = proof.check_joined(whole, job, job.encoding, times, paths, compared)
        job.check_input()
        work.store.save_result(whole)
        with _kept(whole, "undelivered"):
            put_in_place(whole, job.output, overwrite)
        return replace(receipt, output=job.output)
    finally:
        whole.unlink(missing_ok=True)


@contextmanager
def _kept(whole: Path, name: str) -> Iterator[None]:
    """If the block fails, keep the joined file, which took days, in the job's folder under another name."""
    kept = whole.with_stem(name)
    try:
        yield
    except (ConfigError, MediaError, VerifyError) as error:
        whole.replace(kept)
        raise type(error)(f"{error}; what was joined is kept as {kept}") from error


_OF_STREAMS = ("streams", "drop_streams", "no_audio", "no_subtitles", "muxer_options")


def _made_from(job: Job, crew: Crew) -> dict[str, object]:
    """All that decides the segments; settings that only concern copied streams may change between two runs."""
    given = {key: value for key, value in asdict(job.settings).items() if key not in _OF_STREAMS}
    return {
        "input": job.facts,
        "settings": given,
        "container": job.container.name,
        "engine": engines.identify(job.settings, crew.device),
        "version": vidup.__version__,
    }


def _is_delivered(outcome: Outcome, upscaler: Upscaler) -> bool:
    """Whether the existing output is a complete upscaled version of the input; if not, it has to be replaceable."""
    try:
        if containers.is_picture(outcome.input, outcome.output):
            outcome.receipt = stills.verify(outcome.input, outcome.output, upscaler.settings)
        else:
            outcome.receipt = verify(outcome.input, outcome.output, upscaler.settings, fast=True)
    except VidupError as error:
        fault = f"{outcome.output}: exists, and is no complete upscaled version of {outcome.input} ({error})"
        if upscaler.runtime.overwrite:
            log.warning("%s; it is upscaled again", fault)
            return False
        raise ConfigError(f"{fault}; add -y to replace it") from error
    outcome.skipped = True
    log.info("%s: is complete already", outcome.output)
    return True
