"""What runs beside the engine: decoding ahead, encoding behind, a segment's end beside the next one's beginning."""

import queue
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pictures

import vidup
from vidup import Runtime, Settings, Upscaler
from vidup.engines import Choice
from vidup.engines.interpolate import Interpolation
from vidup.engines.planner import Planner
from vidup.media import segment
from vidup.prefetch import Consumer, batched, prefetch

NEAREST = Settings(model="nearest", scale=2, encoder_options={"preset": "ultrafast"}, segment_frames=4)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vidup")]


def test_prefetch_keeps_the_order_and_stays_within_its_depth():
    begun = []

    def items() -> Iterator[int]:
        for index in range(50):
            begun.append(index)
            yield index

    seen = []
    for item in prefetch(items(), depth=3):
        seen.append(item)
        assert len(begun) <= item + 1 + 3 + 1  # in hand, in the queue, and one that waits for room
    assert seen == list(range(50)) and threads() == []


def test_prefetch_runs_ahead():
    ahead = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        ahead.set()
        yield 1

    running = prefetch(items())
    assert next(running) == 0
    assert ahead.wait(5)
    assert list(running) == [1]


def test_prefetch_raises_the_error_after_the_good_items():
    def items() -> Iterator[int]:
        yield from range(3)
        raise ValueError("the fourth")

    seen = []
    with pytest.raises(ValueError, match="the fourth"):
        for item in prefetch(items(), depth=5):
            time.sleep(0.01)
            seen.append(item)
    assert seen == [0, 1, 2] and threads() == []


def test_prefetch_closed_early_closes_its_source_in_its_own_thread():
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append(threading.current_thread().name)

    running = prefetch(items())
    assert next(running) == 0
    running.close()
    assert closed == ["vidup-prefetch"] and threads() == []


def test_batched():
    assert list(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batched([], 3)) == []


class TestConsumer:
    def test_it_takes_all_in_order_and_no_more_than_its_depth_waits(self):
        taken, put = [], []

        def consume(items: Iterator[int]) -> None:
            for item in items:
                time.sleep(0.002)
                taken.append(item)

        consumer = Consumer(consume, depth=3)
        for item in range(30):
            consumer.put(item)
            put.append(item)
            assert len(put) <= len(taken) + 3 + 2  # in the queue, in hand, and the one that was just taken
        consumer.end()
        assert consumer.wait() and taken == put and threads() == []

    def test_the_producer_does_not_wait_for_the_end(self):
        gate = threading.Event()

        def consume(items: Iterator[int]) -> None:
            list(items)
            assert gate.wait(5)

        consumer = Consumer(consume)
        consumer.put(1)
        consumer.end()
        assert not consumer.wait(0.01)
        gate.set()
        assert consumer.wait()

    @pytest.mark.parametrize("at_the_end", [False, True])
    def test_its_error_is_the_producers(self, at_the_end: bool):
        def consume(items: Iterator[int]) -> None:
            for item in items:
                if item == 2 and not at_the_end:
                    raise ValueError("disk full")
            raise ValueError("disk full")

        consumer = Consumer(consume)
        with pytest.raises(ValueError, match="disk full"):
            for item in range(1 if at_the_end else 1000):
                consumer.put(item)
            consumer.end()
            consumer.wait()
        assert threads() == []

    def test_closed_early_it_ends_with_an_exception_and_makes_nothing(self):
        made, ended = [], []

        def consume(items: Iterator[int]) -> None:
            try:
                made.append(list(items))
            finally:
                ended.append(threading.current_thread().name)

        consumer = Consumer(consume, depth=10)
        consumer.put(1)
        consumer.close()
        assert made == [] and ended == ["vidup-consumer"] and threads() == []

    def test_closed_after_the_last_item_it_never_looks_whole(self, monkeypatch: pytest.MonkeyPatch):
        """Whoever looks between two steps of closing must not find a queue that is empty and ended."""
        closing, whole = threading.Event(), []

        class Slow:
            def __init__(self) -> None:
                self.queue: Any = queue.SimpleQueue()
                self.get, self.get_nowait = self.queue.get, self.queue.get_nowait

            def put(self, item: Any) -> None:
                self.queue.put(item)
                if closing.is_set() and threading.current_thread() is threading.main_thread():
                    time.sleep(0.2)

        def consume(items: Iterator[int]) -> None:
            count = 0
            for _ in items:
                count += 1
                time.sleep(0.02)
            whole.append(count)

        monkeypatch.setattr("vidup.prefetch.SimpleQueue", Slow)
        consumer = Consumer(consume, depth=1000)
        for item in range(50):
            consumer.put(item)
        consumer.end()
        closing.set()
        consumer.close()
        assert whole == [] and threads() == []


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="interrupts are sent by a timer")
@pytest.mark.parametrize("ahead", [True, False])
def test_an_interrupt_at_any_moment_leaves_nobody_waiting(ahead: bool):
    """Ctrl-C hits the thread that takes or puts anywhere, also between the steps of a lock."""

    class Interrupted(BaseException):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    before, chance, ended = signal.signal(signal.SIGALRM, interrupt), random.Random(0), 0
    try:
        for _ in range(1000):
            running = prefetch(iter(range(10**9))) if ahead else Consumer(lambda items: sum(items))
            try:
                next(running) if ahead else running.put(1)
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 1e-3))
                end = time.monotonic() + 1  # where a finalizer swallows it
                while time.monotonic() < end:
                    next(running) if ahead else running.put(1)
            except Interrupted:
                ended += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                running.close()
    finally:
        signal.signal(signal.SIGALRM, before)
    end = time.monotonic() + 10
    while threads() and time.monotonic() < end:  # one that was interrupted while it was joined ends by itself
        time.sleep(0.01)
    assert ended > 900 and threads() == []


def ends(monkeypatch: pytest.MonkeyPatch, at_the_end: Callable[[Path], None]) -> None:
    """Call a function with a segment's path when its encoder has all its frames and empties itself."""
    encode = segment.encode_segment

    def slow(frames: Any, encoding: Any, path: Path, *given_on: Any) -> Any:
        def given() -> Any:
            yield from frames
            at_the_end(path)

        return encode(given(), encoding, path, *given_on)

    monkeypatch.setattr("vidup.job.worker.encode_segment", slow)


class TestSegments:
    def test_the_engine_goes_on_while_an_encoder_empties_itself(
        self, make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ):
        calls, seen, both = [], [], threading.Event()
        enlarge = Interpolation.__call__

        def counted(self: Interpolation, clip: Any, place: Any, choice: Any) -> Any:
            calls.append(threading.get_ident())
            if len(calls) == 2:
                both.set()
            return enlarge(self, clip, place, choice)

        monkeypatch.setattr(Interpolation, "__call__", counted)
        ends(monkeypatch, lambda path: seen.append(both.wait(10)))
        source = make_clip()
        output = vidup.upscale(source, source.with_name("out.mp4"), NEAREST).output
        assert seen == [True] * 3  # the first segment's encoder saw the second one begin
        assert set(calls) == {threading.get_ident()}  # as CUDA graphs want it
        assert len(pictures(output)) == 12 and threads() == []

    def test_a_stopped_job_keeps_the_segment_whose_frames_are_upscaled(
        self, make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ):
        class Interrupted(Exception):
            pass

        def look(event: vidup.Progress) -> None:
            if event.frame == 5:
                raise Interrupted

        ends(monkeypatch, lambda path: time.sleep(0.3))
        source = make_clip()
        output = source.with_name("out.mp4")
        with pytest.raises(Interrupted):
            vidup.upscale(source, output, NEAREST, on_progress=look)
        assert [path.name for path in output.with_name("out.mp4.vidup").glob("*.seg*")] == ["00000.seg"]
        assert threads() == []

    def test_an_encoder_that_fails_at_its_end_fails_the_job(
        self, make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ):
        def full(path: Path) -> None:
            if "00001" in path.name:
                raise OSError(28, "No space left on device")

        ends(monkeypatch, full)
        source = make_clip()
        with pytest.raises(vidup.MediaError, match="the disk is full"):
            vidup.upscale(source, source.with_name("out.mp4"), NEAREST)
        assert threads() == [] and not source.with_name("out.mp4").exists()

    def test_what_the_engine_decides_is_stored_before_the_first_frame(self, make_clip: Callable[..., Path]):
        source, stored = make_clip(), []

        def look(event: vidup.Progress) -> None:
            if event.state == "upscaling" and event.frame == 0:
                stored.extend(path.read_text() for path in source.parent.glob("out.mp4.vidup/*.json"))

        vidup.upscale(source, source.with_name("out.mp4"), NEAREST, runtime=Runtime(batch=3), on_progress=look)
        assert len(stored) == 1 and '"batch": 3' in stored[0]


def test_a_queue_of_files_of_two_sizes_chooses_for_each():
    needs = Interpolation("nearest", 2, torch.device("cpu")).needs
    need = Planner(needs, NEAREST, Runtime()).memory(Choice(1, 0), 720, 1280)
    upscaler = Upscaler(NEAREST, Runtime(device="cpu", max_memory=str(need)))
    small, large = (90, 160), (720, 1280)
    assert [upscaler.choose(*size).batch for size in (small, large, small)] == [4, 1, 4]
    upscaler.choose(*small, Choice(2, 0))
    assert upscaler.choose(*large).batch == 1
    assert upscaler.choose(*small).batch == 2  # what it became for this size is kept
