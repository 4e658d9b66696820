"""Process a job's segments: decode, upscale, encode, prove."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from vidup.engines import Choice, family
from vidup.errors import MediaError, Stopped, VidupError, system_words
from vidup.frame import Frame
from vidup.job import unfinished
from vidup.job.crew import Report
from vidup.job.disk import disk_full_named
from vidup.job.newest_picture import NewestPicture
from vidup.job.plan import QUEUE_BYTES, Job, frame_bytes, span
from vidup.job.store import Segment
from vidup.media import decoding
from vidup.media.decoding import planar
from vidup.media.reading import Readers
from vidup.media.segment import encode_segment
from vidup.prefetch import Consumer, prefetch
from vidup.proof.pictures import Compared, check_segment
from vidup.upscaler import Upscaler


class Task(NamedTuple):
    """A segment to upscale."""

    file: int
    """The index of its job."""
    segment: Segment
    choice: Choice | None
    """The stored choice of batch and tiles; None where the worker has to choose."""

    def __str__(self) -> str:
        return str(self.segment)


class Done(NamedTuple):
    """The result of a task whose segment is written."""

    choice: Choice
    """The choice of batch and tiles, smaller where memory ran out."""
    computed: int
    """The pixels of the input that were computed, with halos and the lead-in."""
    pixels: int
    """All pixels of the input in the segment and its lead-in."""
    compared: Compared
    """The result of the proof."""


class Worker:
    """Upscales segments, in this process or in a worker's; the engine is loaded once.

    The engine runs in the calling thread, as CUDA graphs require. While an encoder finishes a segment, and while that
    is proved, the next one is already upscaled.
    """

    def __init__(self, jobs: list[Job], upscaler: Upscaler) -> None:
        self._jobs, self._upscaler = jobs, upscaler
        self._choices: dict[int, Choice] = {}  # by job: a choice that was made smaller is used again

    def __call__(self, tasks: Iterator[Task], report: Report) -> Generator[tuple[Task, Done | VidupError], None, None]:
        """Yield each task with its result or error; those of a file before the next file is begun."""
        for file, of_one in groupby(tasks, lambda task: task.file):
            tells = family(self._upscaler.settings).invents  # to others it does not matter, and takes time
            with closing(Readers(self._jobs[file].info, tells)) as readers:
                yield from self._upscaled(of_one, readers, report)

    def _upscaled(
        self, tasks: Iterator[Task], readers: Readers, report: Report
    ) -> Iterator[tuple[Task, Done | VidupError]]:
        tail: _Tail | None = None
        try:
            for task in tasks:
                try:
                    begun = self._upscale(task, readers, report if tail is None else tail.watched(report))
                except Stopped:
                    raise
                except (VidupError, OSError) as error:
                    yield task, self._truth(task, error)
                    continue
                ended, tail = tail, begun
                if ended is not None:
                    yield ended.task, self._end(ended)
            if tail is not None:
                yield tail.task, self._end(tail)
        except Exception:
            if tail is not None:  # so that its upscaled frames are not lost
                tail.wait()
            raise
        finally:
            if tail is not None:
                tail.encoder.close()

    def _upscale(self, task: Task, readers: Readers, report: Report) -> _Tail:
        job, upscaler = self._jobs[task.file], self._upscaler
        size = job.input_size
        upscaler.choose(*size, self._choices.get(task.file) or task.choice)
        with disk_full_named(task.segment.path.parent):
            encoder = upscale_segment(job, task.segment, upscaler, report, readers)
        choice = self._choices[task.file] = upscaler.choose(*size)  # smaller where memory ran out
        return _Tail(task, choice, upscaler.computed, encoder)

    def _end(self, tail: _Tail) -> Done | VidupError:
        tail.wait()
        if tail.error is not None:
            return self._truth(tail.task, tail.error)
        return Done(tail.choice, *tail.computed, tail.encoder.result)

    def _truth(self, task: Task, error: VidupError | OSError) -> VidupError:
        """The cause of an error: if the input has changed, that."""
        try:
            self._jobs[task.file].check_input()
        except VidupError as changed:
            return changed
        return error if isinstance(error, VidupError) else MediaError(system_words(error, task.segment.path))


@dataclass
class _Tail:
    """The end of a task whose frames are upscaled, but not all encoded and proved yet."""

    task: Task
    choice: Choice
    computed: tuple[int, int]
    encoder: Consumer[Frame]
    error: VidupError | None = None

    def watched(self, report: Report) -> Report:
        """`report` that also raises this task's error, as the rest of its file would be upscaled in vain."""

        def watch(units: int) -> None:
            report(units)
            self.wait(0)
            if self.error is not None:
                raise self.error

        return watch

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the encoder and the proof, at most so long, and keep their error."""
        try:
            with disk_full_named(self.task.segment.path.parent):
                self.encoder.wait(seconds)
        except VidupError as error:
            self.error = error


def upscale_segment(
    job: Job, segment: Segment, upscaler: Upscaler, report: Callable[[int], None], readers: Readers
) -> Consumer[Frame]:
    """Decode, upscale, encode and prove a segment, on this machine as on a cluster.

    Once the returned encoder has ended, the segment's file exists and is proved; its result is that of the proof.
    """
    newest = NewestPicture(upscaler.runtime.watch, job)
    times: list[int] = []  # of the frames that were decoded
    begin = segment.begin if segment.lead_in is None else segment.lead_in
    written = segment.begin * job.info.time_base

    def leads_in(frame: Frame) -> bool:
        return frame.pts * frame.time_base < written

    def decode() -> Iterator[Frame]:
        shown = _shown_already(job, segment, begin)
        for frame in decoding.decode(job.info, begin, segment.end, job.settings, readers):
            if frame.pts in shown:
                pts, duration = shown[frame.pts]
                frame = replace(frame, pts=pts, duration=duration)
            if not leads_in(frame):
                times.append(frame.pts - job.offset)
                newest.add_source(frame)
            yield frame

    def prove(path: Path) -> Compared:
        # The planned frames, not the decoded ones: frames may be missing only where the user tolerates damage.
        expected, places = (times, (0, len(times))) if job.settings.tolerate_errors else (job.times, span(job, segment))
        fast = upscaler.runtime.verify == "fast"
        return check_segment(job.output, path, job.encoding, job, expected, places, fast, readers)

    # Closed here, as the traceback of an error would keep them and their threads alive.
    decoded = prefetch(decode(), QUEUE_BYTES, frame_bytes)
    encoder = Consumer[Frame](
        lambda frames: encode_segment(frames, job.encoding, segment.path, prove), QUEUE_BYTES, frame_bytes
    )
    wanted = planar(job.encoding.pix_fmt), job.encoding.color, job.turn
    results = unfinished.upscaled(upscaler, decoded, segment.path, _numbers(job, segment, begin), wanted)
    try:
        with closing(decoded), closing(results):
            for frame, is_new in results:
                if not leads_in(frame):
                    newest.add_result(frame, is_new)
                    encoder.put(replace(frame, pts=frame.pts - job.offset))
                    report(int(is_new))
        job.check_input()  # before the segment's file is complete
        encoder.end()
        return encoder
    except BaseException:
        encoder.close()
        raise


def _shown_already(job: Job, segment: Segment, begin: int) -> dict[int, tuple[int, int]]:
    """The frame that is on screen when the job's part begins: its own time -> time and duration in the job.

    Decoding that begins before the part, for a lead-in, gives it its own time.
    """
    low, first = job.info.pts[job.low], job.span[0]
    if first is None or first <= low or segment.begin != first or begin >= first:
        return {}
    following = job.info.pts[job.low + 1] if job.low + 1 < len(job.info.pts) else None
    end = segment.end if following is None or (segment.end is not None and segment.end < following) else following
    own, shown = (decoding.schedule(job.info, job.settings, one, end)[1] for one in (low, first))
    return dict(zip(own, shown.items(), strict=True))


def _numbers(job: Job, segment: Segment, begin: int) -> tuple[int, tuple[int, int] | None]:
    """Arguments of `Upscaler.reset`: the number of the frame at `begin`; the segment's span if another one follows."""
    each, pts = job.frames_each, job.info.pts
    number = bisect_right(pts, begin) - 1
    if segment.end is None or segment.lead_in is None or segment.end == job.span[1]:  # nothing follows
        return number * each, None
    return number * each, ((bisect_right(pts, segment.begin) - 1) * each, bisect_left(pts, segment.end) * each)
