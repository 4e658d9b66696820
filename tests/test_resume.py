"""Jobs that stop, and go on: killed, interrupted, out of memory or disk, damaged on disk, begun differently."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import audio_packets, pictures, save_layout, video_times

import vidup
from vidup import EngineError, MediaError, ResumeError, Runtime, Settings, Stopped
from vidup.cli import main
from vidup.engines.interpolate import Interpolation
from vidup.job import ray_cluster, upscale_files

TESTS = Path(__file__).parent
CPU = Runtime(device="cpu")
NEAREST = Settings(model="nearest", scale=2, encoder_options={"preset": "ultrafast"}, segment_frames=3)


class Interrupted(Exception):
    """What stops a job in these tests."""


def stop_after(frames: int) -> Callable[[vidup.Progress], None]:
    def look(event: vidup.Progress) -> None:
        if event.state == "upscaling" and event.frame >= frames:
            raise Interrupted

    return look


def begin(source: Path, output: Path, frames: int, settings: Settings = NEAREST, **runtime) -> Path:
    """Do a part of a job; returns its folder."""
    with pytest.raises(Interrupted):
        vidup.upscale(source, output, settings, runtime=Runtime(**runtime), on_progress=stop_after(frames))
    return output.with_name(output.name + ".vidup")


def segments(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.seg*"))


def content(path: Path) -> tuple:
    frames = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures(path)]
    return video_times(path), frames, audio_packets(path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures the baseline engine was given, call by call."""
    seen, enlarge = [], Interpolation.__call__

    def count(self, clip, place, choice):
        seen.append(len(clip))
        return enlarge(self, clip, place, choice)

    monkeypatch.setattr(Interpolation, "__call__", count)
    return seen


@pytest.mark.timeout(450)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="jobs are forked")
def test_killed_at_random_moments():
    done = subprocess.run(
        [sys.executable, TESTS / "kill.py", "--kills", "6", "--cases", "3"],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "6 kills"


def test_the_same_command_goes_on(make_clip: Callable[..., Path], calls: list[int]):
    source = make_clip()
    whole = vidup.upscale(source, source.with_name("whole.mp4"), NEAREST).output
    calls.clear()
    output = source.with_name("out.mp4")
    folder = begin(source, output, frames=7)
    assert segments(folder) == ["00000.seg", "00001.seg"] and not output.exists()
    before = len(calls)
    events = []
    vidup.upscale(source, output, NEAREST, on_progress=events.append)
    assert len(calls) - before == 2  # one call for each of the two segments that were left
    assert content(output) == content(whole) and not folder.exists()
    assert [event.frame for event in events if event.state == "upscaling"] == list(range(6, 13))


def test_another_runtime_goes_on(make_clip: Callable[..., Path]):
    source = make_clip()
    output = source.with_name("out.mp4")
    begin(source, output, frames=7, batch=1)
    assert len(pictures(vidup.upscale(source, output, NEAREST, runtime=Runtime(batch=3, verify="fast")).output)) == 12


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"crf": 30.0}, r"settings\.crf: not given -> 30\.0"),
        ({"model": "bicubic"}, r"settings\.model: nearest -> bicubic"),
        ({"segment_frames": 4}, r"settings\.segment_frames: 3 -> 4"),
        ({"encoder_options": {"preset": "slow"}}, r"settings\.encoder_options\.preset: ultrafast -> slow"),
    ],
)
def test_a_changed_setting_is_refused(make_clip: Callable[..., Path], change: dict, named: str):
    source = make_clip()
    output = source.with_name("out.mp4")
    folder = begin(source, output, frames=4)
    given = {"model": "nearest", "scale": 2, "encoder_options": {"preset": "ultrafast"}, "segment_frames": 3}
    with pytest.raises(ResumeError, match=rf"{named}.*--restart"):
        vidup.upscale(source, output, Settings(**{**given, **change}))
    assert segments(folder) == ["00000.seg"] and not output.exists()
    vidup.upscale(source, output, Settings(**{**given, **change}), runtime=Runtime(restart=True))
    assert len(pictures(output)) == 12 and not folder.exists()


def test_a_changed_input_is_refused(make_clip: Callable[..., Path]):
    source = make_clip()
    output = source.with_name("out.mp4")
    begin(source, output, frames=4)
    os.utime(source, (1, 1))  # touched only: it is the same
    begin(source, output, frames=7)
    source.write_bytes(make_clip("other.mp4", size=(48, 64)).read_bytes())
    with pytest.raises(ResumeError, match=r"input\.(size|sha256)"):
        vidup.upscale(source, output, NEAREST)


def test_another_checkpoint_is_refused(make_clip: Callable[..., Path], tiny_x4: Path, tmp_path: Path):
    from diffusers import AutoencoderKL, UNet2DConditionModel

    source, folder = make_clip(times=(0, 512, 1024, 1536), size=(16, 16), sound=False), tmp_path / "model"
    unet = UNet2DConditionModel.from_pretrained(tiny_x4, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(tiny_x4, subfolder="vae")
    save_layout(folder, unet, vae, width=24)
    settings = Settings(model=str(folder), steps=1, segment_frames=2, encoder_options={"preset": "ultrafast"})
    begin(source, tmp_path / "out.mp4", 3, settings)
    with torch.no_grad():
        unet.conv_out.bias += 0.1
    unet.save_pretrained(folder / "unet")
    with pytest.raises(ResumeError, match="engine: "):
        vidup.upscale(source, tmp_path / "out.mp4", settings)


@pytest.mark.parametrize("damage", ["truncated", "bit", "empty", "part", "another"])
def test_damaged_segments_are_made_again(make_clip: Callable[..., Path], calls: list[int], damage: str):
    source = make_clip()
    whole = vidup.upscale(source, source.with_name("whole.mp4"), NEAREST).output
    output = source.with_name("out.mp4")
    folder = begin(source, output, frames=10)
    segment = folder / "00001.seg"
    data = bytearray(segment.read_bytes())
    if damage == "truncated":
        segment.write_bytes(data[:-40])
    elif damage == "bit":
        data[len(data) // 2] ^= 16
        segment.write_bytes(data)
    elif damage == "empty":
        segment.write_bytes(b"")
    elif damage == "part":
        segment.rename(segment.with_name("00001.seg.0123abcd.part"))
    else:  # whole, but of other frames
        segment.write_bytes((folder / "00002.seg").read_bytes())
    calls.clear()
    vidup.upscale(source, output, NEAREST)
    assert len(calls) == 2  # the damaged one, and the one that was not done
    assert content(output) == content(whole)


def run_out_of_memory(monkeypatch: pytest.MonkeyPatch, at: set[int], largest: int) -> list[int]:
    """From these calls on, a batch of more than `largest` fails once as CUDA does."""
    seen, enlarge = [], Interpolation.__call__

    def fail(self, clip, place, choice):
        seen.append(len(clip))
        if len(seen) in at and len(clip) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return enlarge(self, clip, place, choice)

    monkeypatch.setattr(Interpolation, "__call__", fail)
    return seen


def test_out_of_memory_halves_the_batch(make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog):
    source = make_clip()
    settings = Settings(model="bicubic", scale=2, crf=0, encoder_options={"preset": "ultrafast"}, segment_frames=4)
    whole = vidup.upscale(source, source.with_name("whole.mp4"), settings).output
    output = source.with_name("out.mp4")
    seen = run_out_of_memory(monkeypatch, at={1, 2}, largest=1)
    folder = begin(source, output, 11, settings)
    assert seen[:3] == [4, 2, 1]
    told = [record.message for record in caplog.records if "memory ran out" in record.message]
    assert told == [f"memory ran out: from here on {batch} at a time, whole frames" for batch in (2, 1)]
    assert '"batch": 1' in (folder / "job.json").read_text()
    seen.clear()
    vidup.upscale(source, output, settings)
    assert set(seen) == {1}  # a resumed job keeps to it
    for one, other in zip(pictures(output), pictures(whole), strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_out_of_memory_at_the_smallest_plan(make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    source = make_clip()
    output = source.with_name("out.mp4")
    run_out_of_memory(monkeypatch, at=set(range(1, 100)), largest=0)
    with pytest.raises(EngineError, match=r"memory ran out with .*take a smaller model, --offload, or another"):
        vidup.upscale(source, output, NEAREST)
    assert sorted(path.name for path in source.parent.iterdir()) == ["clip.mp4"]


def test_a_choice_that_was_stored_is_adopted(make_clip: Callable[..., Path], calls: list[int]):
    source = make_clip()
    output = source.with_name("out.mp4")
    folder = begin(source, output, frames=4, batch=2)
    assert '"batch": 2' in (folder / "job.json").read_text()
    calls.clear()
    vidup.upscale(source, output, NEAREST, runtime=Runtime(batch=1))
    assert calls[:2] == [2, 1] and max(calls) == 2  # segments of three frames


@pytest.mark.parametrize("error", [EngineError("the model failed"), RuntimeError("a bug")])
def test_an_engine_that_fails_is_gone_on_from(make_clip: Callable[..., Path], monkeypatch, error: Exception):
    source = make_clip()
    whole = vidup.upscale(source, source.with_name("whole.mp4"), NEAREST).output
    output = source.with_name("out.mp4")
    with monkeypatch.context() as patch:
        enlarge, seen = Interpolation.__call__, []

        def fail(self, clip, place, choice):
            seen.append(clip)
            if len(seen) == 3:
                raise error
            return enlarge(self, clip, place, choice)

        patch.setattr(Interpolation, "__call__", fail)
        with pytest.raises(EngineError, match=str(error)):
            vidup.upscale(source, output, NEAREST)
    assert segments(output.with_name("out.mp4.vidup")) == ["00000.seg", "00001.seg"] and not output.exists()
    assert content(vidup.upscale(source, output, NEAREST).output) == content(whole)


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "the disk is full; what is done is kept"), (errno.EACCES, "denied")]
)
def test_a_disk_that_fails(make_clip: Callable[..., Path], monkeypatch, number: int, message: str):
    source = make_clip()
    output = source.with_name("out.mp4")
    with monkeypatch.context() as patch:
        sync, folder = os.fsync, output.with_name("out.mp4.vidup")

        def fail(descriptor: int) -> None:
            if any(folder.glob("*.seg")):
                raise OSError(number, os.strerror(number))
            sync(descriptor)

        patch.setattr(os, "fsync", fail)
        with pytest.raises(MediaError, match=message):
            vidup.upscale(source, output, NEAREST)
    assert segments(output.with_name("out.mp4.vidup")) and not output.exists()
    assert len(pictures(vidup.upscale(source, output, NEAREST).output)) == 12


def test_a_small_disk_that_fills(make_clip: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        source = make_clip(times=tuple(range(0, 40 * 512, 512)))
        settings = Settings(model="nearest", scale=4, codec="ffv1", segment_frames=3)
        monkeypatch.setattr("vidup.job.queue.need_disk", lambda *_: None)  # the estimate would refuse it at once
        with pytest.raises(MediaError, match="the disk is full; what is done is kept"):
            vidup.upscale(source, disk / "out.mkv", settings)
        assert segments(disk / "out.mkv.vidup") and not (disk / "out.mkv").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True, capture_output=True)
        assert len(pictures(vidup.upscale(source, disk / "out.mkv", settings).output)) == 40
    finally:
        subprocess.run(["umount", disk], check=True, capture_output=True)


def test_too_little_room_is_told_ahead(make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    source = make_clip()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(MediaError, match=r"GiB are needed and 0\.00 GiB are free"):
        vidup.upscale(source, source.with_name("out.mp4"), NEAREST)
    assert sorted(path.name for path in source.parent.iterdir()) == ["clip.mp4"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(make_clip: Callable[..., Path], number: signal.Signals):
    """The first stops at the next call of the model; the command then says how to go on, and does."""
    source = make_clip(times=tuple(range(0, 800 * 512, 512)), size=(32, 24), sound=False)
    output = source.with_name("out.mp4")
    words = ["upscale", str(source), "-o", str(output), "--model", "nearest", "-s", "1", "-e", "preset=ultrafast"]
    words += ["--segment-frames", "20", "--progress", "json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vidup", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if '"frame": 45,' in line:
            process.send_signal(number)
            break
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping; Ctrl-C again" in told and "the same command goes on from there" in told
    assert len(segments(output.with_name("out.mp4.vidup"))) >= 2 and not output.exists()
    assert main(words) == 0
    assert len(video_times(output)) == 800


def test_stop(make_clip: Callable[..., Path]):
    source, events = make_clip(), []
    output = source.with_name("out.mp4")
    with pytest.raises(Stopped):
        vidup.upscale(source, output, NEAREST, on_progress=events.append, stop=lambda: len(events) > 8)
    assert segments(output.with_name("out.mp4.vidup")) and not output.exists()
    assert len(pictures(vidup.upscale(source, output, NEAREST).output)) == 12


def test_many_files_in_one_queue(make_clip: Callable[..., Path], calls: list[int]):
    one, two = make_clip("one.mp4"), make_clip("two.mp4", times=tuple(range(0, 8 * 512, 512)))
    bad = one.with_name("bad.mp4")
    bad.write_text("this is text")
    folder = one.parent / "out"
    folder.mkdir()
    files = [(source, folder / source.name) for source in (one, bad, two)]
    outcomes = upscale_files(files, NEAREST)
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert [len(pictures(folder / name)) for name in ("one.mp4", "two.mp4")] == [12, 8]
    again = upscale_files(files, NEAREST, runtime=Runtime(skip_done=True))
    assert [outcome.skipped for outcome in again] == [True, False, True]
    (folder / "two.mp4").write_bytes((folder / "one.mp4").read_bytes())
    outcomes = upscale_files(files[2:], NEAREST, runtime=Runtime(skip_done=True))
    assert "is no complete upscaled version" in str(outcomes[0].error)


def test_what_else_a_glob_finds_does_not_end_the_queue(make_clip: Callable[..., Path]):
    """Subtitles beside their film, and two films that would have one output: each is told, the others are done."""
    film, other = make_clip("film.mp4"), make_clip("film.mkv", time_base=Fraction(1, 1000), times=(0, 40, 80))
    texts = film.with_name("film.ass")
    texts.write_text("[Script Info]\n\n[Events]\nDialogue: 0,0:00:00.00,0:00:01.00,Default,,0,0,0,,one\n")
    output = film.with_name("out.mkv")
    outcomes = upscale_files([(texts, output), (film, output), (other, output)], NEAREST)
    assert "film.ass: has no video stream" in str(outcomes[0].error)
    assert outcomes[1].error is None and len(pictures(output)) == 12
    assert f"film.mkv: its output {output} is that of {film}, too" in str(outcomes[2].error)


def test_the_folder_is_kept_if_asked_for(make_clip: Callable[..., Path]):
    source = make_clip()
    output = vidup.upscale(source, None, NEAREST, runtime=Runtime(keep_work=True)).output
    folder = output.with_name(output.name + ".vidup")
    assert segments(folder) == [f"{index:05}.seg" for index in range(4)]
    vidup.upscale(source, output, NEAREST, runtime=Runtime(overwrite=True))
    assert not folder.exists()


@pytest.fixture(scope="class")
def ray() -> Iterator[None]:
    """Started once for both."""
    pytest.importorskip("ray")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with ray_cluster.cluster(ray_cluster.Wanted("workers = 2", 2, None).for_items(2)):
        yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("ray")
class TestWorkers:
    """Processes of their own, by Ray."""

    pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="ray's workers are killed by POSIX signals")

    def test_two_workers_give_what_one_gives(self, make_clip: Callable[..., Path]):
        source = make_clip()
        one = vidup.upscale(source, source.with_name("one.mp4"), NEAREST, runtime=CPU).output
        events: list[vidup.Progress] = []
        runtime = Runtime(device="cpu", workers=2)
        two = vidup.upscale(
            source, source.with_name("two.mp4"), NEAREST, runtime=runtime, on_progress=events.append
        ).output
        assert content(one) == content(two)
        assert events[-1].frame == events[-1].frames == 12

    def test_also_where_one_is_killed_and_replaced(self, make_clip: Callable[..., Path], caplog):
        source = make_clip(size=(32, 24))
        settings = Settings.preset("mini", scale=2, segment_frames=3, encoder_options={"preset": "ultrafast"})
        one = vidup.upscale(source, source.with_name("one.mp4"), settings, runtime=CPU).output
        killed, events = [], list[vidup.Progress]()

        def kill(event: vidup.Progress) -> None:
            events.append(event)
            if event.frame >= 2 and not killed:
                for process in psutil.Process().children(recursive=True):
                    if process.name().startswith("ray::_Member"):
                        killed.append(process.pid)
                        process.kill()
                        return

        runtime = Runtime(device="cpu", workers=2)
        two = vidup.upscale(source, source.with_name("two.mp4"), settings, runtime=runtime, on_progress=kill).output
        assert len(killed) == 1 and any("another takes its place" in record.message for record in caplog.records)
        assert content(one) == content(two)
        assert events[-1].frame == events[-1].frames == 12


class TestWithinASegment:
    """Where frames are slow, what is done of a segment is kept before it ends, and what is carried with it."""

    SETTINGS = Settings(model="mini", steps=1, codec="ffv1", segment_frames=6, seed=3)

    @pytest.fixture
    def film(self, make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr("vidup.job.unfinished._SLOW", -1)
        return make_clip(
            "film.mkv", times=range(0, 9 * 40, 40), time_base=Fraction(1, 1000), size=(24, 16), sound=False
        )

    def stopped(self, film: Path, frames: int, settings: Settings = SETTINGS) -> Path:
        output = film.with_name("out.mkv")
        with pytest.raises(Interrupted):
            vidup.upscale(film, output, settings, runtime=Runtime(device="cpu"), on_progress=stop_after(frames))
        return output

    @pytest.mark.parametrize(("temporal", "after"), [("relay", 8), ("off", 4)])
    def test_a_stopped_job_goes_on_at_the_frame(
        self, film: Path, temporal: str, after: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = self.SETTINGS.replace(temporal=temporal)
        expected = pictures(vidup.upscale(film, film.with_name("whole.mkv"), settings, runtime=CPU).output)
        output = self.stopped(film, after, settings)
        names = [path.name for path in output.with_name("out.mkv.vidup").iterdir()]
        assert f"{after // 6:05}.made" in names and f"{after // 6:05}.planes" in names
        computed, events = [], list[vidup.Progress]()
        enlarge = vidup.Upscaler._enlarge_clip
        monkeypatch.setattr(
            vidup.Upscaler, "_enlarge_clip", lambda self, *given: computed.append(1) or enlarge(self, *given)
        )
        receipt = vidup.upscale(film, output, settings, runtime=CPU, on_progress=events.append)
        assert next(event.frame for event in events if event.state == "upscaling") == after
        assert max(event.frame for event in events) == 9
        assert all(np.array_equal(one, two) for one, two in zip(pictures(receipt.output), expected, strict=True))
        if temporal == "off":
            assert len(computed) == 9 - after
        assert not output.with_name("out.mkv.vidup").exists()

    def test_a_killed_one_at_what_was_written_last(self, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = pictures(vidup.upscale(film, film.with_name("whole.mkv"), self.SETTINGS, runtime=CPU).output)
        monkeypatch.setattr("vidup.job.unfinished._EVERY", -1)
        monkeypatch.setattr("vidup.job.unfinished._Keeper.save", lambda self: None)
        output = self.stopped(film, 4)
        events: list[vidup.Progress] = []
        receipt = vidup.upscale(film, output, self.SETTINGS, runtime=CPU, on_progress=events.append)
        assert next(event.frame for event in events if event.state == "upscaling") == 4
        assert all(np.array_equal(one, two) for one, two in zip(pictures(receipt.output), expected, strict=True))

    @pytest.mark.parametrize("how", ["planes", "made", "cut"])
    def test_what_is_damaged_is_made_again(self, film: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
        output = self.stopped(film, 4)
        kept = output.with_name("out.mkv.vidup") / f"00000.{'made' if how == 'cut' else how}"
        kept.write_bytes(kept.read_bytes()[: -40 if how == "cut" else 30])
        receipt = vidup.upscale(film, output, self.SETTINGS, runtime=CPU)
        assert receipt.frames == 9 and ("is damaged: its segment is recomputed" in caplog.text) == (how != "planes")

    def test_a_full_disk_ends_that_alone(
        self, film: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def full(*given: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("vidup.job.unfinished._EVERY", -1)
        monkeypatch.setattr("vidup.job.unfinished.write_atomically", full)
        receipt = vidup.upscale(film, None, self.SETTINGS, runtime=CPU)
        assert receipt.frames == 9 and "its finished frames cannot be kept: [Errno" in caplog.text
