"""What is done to a job's segments: decode, upscale, encode, prove."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from vidup.engines import Choice
from vidup.errors import MediaError, Stopped, VidupError, system_words
from vidup.frame import Frame
from vidup.job import made
from vidup.job.crew import Report
from vidup.job.disk import disk_full_named
from vidup.job.plan import QUEUE_BYTES, Job, span
from vidup.job.store import Segment
from vidup.job.watching import Watching
from vidup.media import decoding
from vidup.media.decoding import planar
from vidup.media.reading import Readers
from vidup.media.segment import encode_segment
from vidup.prefetch import Consumer, prefetch
from vidup.proof.pictures import Compared, check_segment
from vidup.upscaler import Upscaler


class Task(NamedTuple):
    """What a worker is given."""

    file: int
    segment: Segment
    choice: Choice | None
    """Of an earlier run or segment; None where the engine has yet to make one."""

    def __str__(self) -> str:
        return str(self.segment)


class Done(NamedTuple):
    """What became of a task whose segment stands."""

    choice: Choice
    """As the engine made it, or what it became when memory ran out."""
    computed: int
    """Pixels of the input that were computed, halos and the lead-in counted."""
    pixels: int
    """That there were."""
    compared: Compared | None = None
    """What came of the proof."""


class Worker:
    """Upscales segments, in this process or in one of its own; the engine is loaded once.

    The engine works in the thread that calls, as CUDA graphs want it, and does not wait while an encoder empties itself
    at the end of a segment, nor while the segment is proved: the next one is upscaled meanwhile, until that fails.
    """

    def __init__(self, jobs: list[Job], upscaler: Upscaler) -> None:
        self._jobs, self._upscaler = jobs, upscaler
        self._readers: dict[int, Readers] = {}  # of the file in hand
        self._choices: dict[int, Choice] = {}  # by the job: what it became when memory ran out is kept
        self._own: dict[int, Upscaler] = {}  # of the file in hand, see `_upscaler_of`

    def __call__(self, tasks: Iterator[Task], report: Report) -> Generator[tuple[Task, Done | VidupError], None, None]:
        """Each task with what became of it."""
        tail: _Tail | None = None
        try:
            for task in tasks:
                if tail is not None and tail.task.file != task.file:  # a whole file is delivered first
                    yield tail.task, self._end(tail)
                    tail = None
                if task.file not in self._readers:
                    self._close_readers()
                    self._readers[task.file] = Readers(self._jobs[task.file].info)
                try:
                    begun = self._upscale(task, report if tail is None else tail.watched(report))
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
            if tail is not None:  # its frames are upscaled: that is not thrown away
                tail.result()
            raise
        finally:
            if tail is not None:
                tail.encoder.close()
            self._close_readers()

    def _upscaler_of(self, file: int) -> Upscaler:
        """The upscaler for a file: how far its pictures are trusted is its own, all else is shared."""
        step = self._jobs[file].settings.quantiser
        if step == self._upscaler.settings.quantiser:
            return self._upscaler
        if file not in self._own:
            self._own = {file: self._upscaler.replace(quantiser=step)}
        return self._own[file]

    def _close_readers(self) -> None:
        while self._readers:
            self._readers.popitem()[1].close()

    def _upscale(self, task: Task, report: Report) -> _Tail:
        job, upscaler = self._jobs[task.file], self._upscaler_of(task.file)
        size = job.turn.size(job.info.height, job.info.width)
        upscaler.choose(*size, self._choices.get(task.file) or task.choice)
        with disk_full_named(task.segment.path.parent):
            encoder, proved = upscale_segment(job, task.segment, upscaler, report, self._readers[task.file])
        choice = self._choices[task.file] = upscaler.choose(*size)  # what it became
        return _Tail(task, Done(choice, *upscaler.computed), encoder, proved)

    def _end(self, tail: _Tail) -> Done | VidupError:
        result = tail.result()
        return self._truth(tail.task, result) if isinstance(result, VidupError) else result

    def _truth(self, task: Task, error: VidupError | OSError) -> VidupError:
        """What went wrong: where the input is another than it was, that, whatever came of it."""
        try:
            self._jobs[task.file].check_input()
        except VidupError as changed:
            return changed
        return error if isinstance(error, VidupError) else MediaError(system_words(error, task.segment.path))


@dataclass
class _Tail:
    """What is left of a task whose frames are upscaled: the encoder holds some of them yet, and then it is proved."""

    task: Task
    done: Done
    encoder: Consumer[Frame]
    proved: list[Compared]
    """What came of the proof, once it has ended."""
    error: VidupError | None = None

    def watched(self, report: Report) -> Report:
        """`report` that raises what this task fails with meanwhile: what follows in its file would be for nothing."""

        def watch(units: int) -> None:
            report(units)
            self._look(0)
            if self.error is not None:
                raise self.error

        return watch

    def result(self) -> Done | VidupError:
        """Wait for the encoder and the proof."""
        self._look(None)
        return self.error or self.done._replace(compared=self.proved[-1] if self.proved else None)

    def _look(self, seconds: float | None) -> None:
        try:
            with disk_full_named(self.task.segment.path.parent):
                self.encoder.wait(seconds)
        except VidupError as error:
            self.error = error


def upscale_segment(
    job: Job, segment: Segment, upscaler: Upscaler, report: Callable[[int], None], readers: Readers
) -> tuple[Consumer[Frame], list[Compared]]:
    """A frame's way: decode -> upscale -> encode -> prove. The same function on this machine and on a cluster.

    Returns:
        The encoder; once it is done the segment's file stands, and its pictures are those of the source. And what came
        of the proof, then.
    """
    watching = Watching(upscaler.runtime.watch, job)
    proved: list[Compared] = []
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
                watching.comes(frame)
            yield frame

    def prove(path: Path) -> None:
        # By the plan, not by what came: only damage that the user tolerates may cost frames.
        expected, places = (times, (0, len(times))) if job.settings.tolerate_errors else (job.times, span(job, segment))
        fast = upscaler.runtime.verify == "fast"
        proved.append(check_segment(job.output, path, job.encoding, job, expected, places, fast, readers))

    def encode(frames: Iterator[Frame]) -> None:
        for _ in encode_segment(frames, job.encoding, segment.path, prove):
            pass

    # Closed here, not when they are collected: the traceback of an error would keep their threads.
    decoded = prefetch(decode(), QUEUE_BYTES, _bytes)
    encoder = Consumer(encode, QUEUE_BYTES, _bytes)
    wanted = planar(job.encoding.pix_fmt), job.encoding.color, job.turn
    results = made.upscaled(upscaler, decoded, segment.path, _numbers(job, segment, begin), wanted)
    try:
        with closing(decoded), closing(results):
            for frame, is_new in results:
                if not leads_in(frame):
                    watching.is_made(frame, is_new)
                    encoder.put(replace(frame, pts=frame.pts - job.offset))
                    report(int(is_new))
        job.check_input()  # before the segment's file stands
        encoder.end()
        return encoder, proved
    except BaseException:
        encoder.close()
        raise


def _shown_already(job: Job, segment: Segment, begin: int) -> dict[int, tuple[int, int]]:
    """Times and durations in the job, by their own times, of what is shown already when the job's part begins.

    Decoding that begins before the part, to lead in, does not know of it.
    """
    low, first = job.info.pts[job.low], job.span[0]
    if first is None or first <= low or segment.begin != first or begin >= first:
        return {}
    following = job.info.pts[job.low + 1] if job.low + 1 < len(job.info.pts) else None
    end = segment.end if following is None or (segment.end is not None and segment.end < following) else following
    own, shown = (decoding.schedule(job.info, job.settings, one, end)[1] for one in (low, first))
    return dict(zip(own, shown.items(), strict=True))


def _numbers(job: Job, segment: Segment, begin: int) -> tuple[int, tuple[int, int] | None]:
    """For `Upscaler.reset`: the number of the frame at `begin`, and, where another segment follows, its span."""
    each, pts = len(job.times) // (job.high - job.low), job.info.pts
    number = bisect_right(pts, begin) - 1
    if segment.end is None or segment.lead_in is None or segment.end == job.span[1]:  # nothing follows
        return number * each, None
    assert segment.begin is not None
    return number * each, ((bisect_right(pts, segment.begin) - 1) * each, bisect_left(pts, segment.end) * each)


def _bytes(frame: Frame) -> int:
    return sum(plane.nbytes for plane in frame.planes)
