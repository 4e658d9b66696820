"""Planning segments, and their store on disk: resuming, refusing, locking, and what is never deleted."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from vidup.config import Settings
from vidup.errors import MediaError, ResumeError
from vidup.job import store as room
from vidup.job.disk import disk_full_named, fingerprint_file, need_disk, write_atomically
from vidup.job.store import Segment, Store, plan_segments

TIMES = [0, 512, 1024, 1500, 2048, 9000, 9001, 9900]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mkv"
    path.write_bytes(bytes(range(256)) * 40)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out.mkv.vidup"


def fingerprint(source: Path, engine: str = "nearest", version: str = "1.0", **settings: Any) -> dict[str, Any]:
    return {
        "input": fingerprint_file(source),
        "settings": asdict(Settings(**settings)),
        "engine": engine,
        "version": version,
    }


def sound(segment: Segment) -> bool:
    return segment.path.read_bytes() == b"whole"


class TestPlan:
    @pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 1000])
    @pytest.mark.parametrize("times", [TIMES, TIMES[:1], [-700, -200, 5]])
    def test_every_time_is_in_one_segment(self, times: list[int], length: int):
        plan = plan_segments(times, length, Path("job"))
        assert [segment.index for segment in plan] == list(range(len(plan)))
        assert plan[0].begin == times[0]
        assert plan[-1].end is None
        assert [a.end for a in plan[:-1]] == [b.begin for b in plan[1:]]
        held = [[t for t in times if s.begin <= t and (s.end is None or t < s.end)] for s in plan]
        assert list(chain.from_iterable(held)) == times
        assert [len(each) for each in held] == [segment.frames for segment in plan]
        assert all(segment.frames == length for segment in plan[:-1])
        assert len({segment.path for segment in plan}) == len(plan)

    def test_names_and_words(self):
        last = plan_segments(TIMES, 3, Path("job"))[2]
        assert last == Segment(2, 9001, None, 2, Path("job/00002.seg"))
        assert str(last) == "segment 2"

    def test_the_end_of_a_part(self):
        assert [(s.begin, s.end) for s in plan_segments(TIMES[:5], 4, Path("job"), end=9000)] == [
            (0, 2048),
            (2048, 9000),
        ]

    def test_a_segment_is_led_in_by_the_frames_before_it(self):
        plan = plan_segments(TIMES, 2, Path("job"), low=4, lead=3)
        assert [(s.begin, s.lead_in) for s in plan] == [
            (TIMES[place], TIMES[place - 3]) for place in range(4, len(TIMES), 2)
        ]
        assert plan_segments(TIMES, 2, Path("job"), lead=3)[0].lead_in == TIMES[0]


class TestFingerprint:
    def test_a_small_file_is_hashed_whole(self, source: Path):
        known = fingerprint_file(source)
        assert known["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
        assert (known["size"], known["mtime_ns"]) == (source.stat().st_size, source.stat().st_mtime_ns)

    @pytest.mark.parametrize("place", [0, 1 << 20, (1 << 20) + 65_535, -(1 << 20), -(1 << 20) - 1, -1])
    def test_a_changed_byte_of_a_large_file(self, tmp_path: Path, place: int):
        path = tmp_path / "large"
        with path.open("wb") as file:
            file.truncate(9_000_001)  # sparse
        before = fingerprint_file(path)
        with path.open("rb+") as file:
            file.seek(place, os.SEEK_SET if place >= 0 else os.SEEK_END)
            file.write(b"x")
        after = fingerprint_file(path)
        assert before["size"] == after["size"]
        assert before["sha256"] != after["sha256"]

    def test_a_huge_file_is_not_read_whole(self, tmp_path: Path):
        path = tmp_path / "huge"
        with path.open("wb") as file:
            file.truncate(1 << 38)
        began = time.monotonic()
        assert fingerprint_file(path)["size"] == 1 << 38
        assert time.monotonic() - began < 2

    def test_what_cannot_be_read(self, tmp_path: Path):
        with pytest.raises(MediaError, match="cannot be read: No such file"):
            fingerprint_file(tmp_path / "none")
        with pytest.raises(MediaError, match="is no regular file"):
            fingerprint_file(tmp_path)
        if sys.platform != "win32":
            with pytest.raises(MediaError, match="is no regular file"):
                fingerprint_file(Path(os.devnull))


class TestStore:
    def test_begin_stop_and_go_on(self, folder: Path, source: Path):
        plan = plan_segments(TIMES, 3, folder)
        with closing(Store(folder, fingerprint(source))) as store:
            assert store.choice == {}
            assert store.finished(plan, sound) == set()
            store.save_choice({"batch": 4, "tile": 0})
            write_atomically(plan[1].path, b"whole")
        with closing(Store(folder, fingerprint(source))) as store:
            assert store.choice == {"batch": 4, "tile": 0}
            assert store.finished(plan, sound) == {1}

    def test_damaged_and_unfinished_files_go_and_are_told(
        self, folder: Path, source: Path, caplog: pytest.LogCaptureFixture
    ):
        plan = plan_segments(TIMES, 2, folder)

        def check(segment: Segment) -> bool:
            if segment.index == 2:
                raise MediaError("its checksum is wrong")
            return sound(segment)

        with closing(Store(folder, fingerprint(source))) as store:
            plan[0].path.write_bytes(b"whole")
            plan[1].path.write_bytes(b"who")
            plan[2].path.write_bytes(b"whole")
            (folder / "00003.seg.part").write_bytes(b"half")
            (folder / "00003.seg.4711.part").write_bytes(b"half")
            assert store.finished(plan, check) == {0}
            assert sorted(path.name for path in folder.iterdir()) == ["00000.seg", "job.json", "lock"]
        assert "segment 1 of" in caplog.text
        assert "is recomputed: its checksum is wrong" in caplog.text

    def test_an_error_of_the_check_is_no_damage(self, folder: Path, source: Path):
        plan = plan_segments(TIMES, 100, folder)
        with closing(Store(folder, fingerprint(source))) as store:
            plan[0].path.write_bytes(b"whole")
            with pytest.raises(PermissionError):
                store.finished(plan, lambda segment: (_ for _ in ()).throw(PermissionError()))
            assert plan[0].path.exists()

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"crf": 20}, "settings.crf: 18 -> 20"),
            ({"prompt": ""}, 'settings.prompt: a harbour -> ""'),
            ({"vae": "other"}, "settings.vae: not given -> other"),
            ({"encoder_options": {"preset": "slow"}}, "settings.encoder_options.preset: not given -> slow"),
            ({"no_audio": True}, "settings.no_audio: false -> true"),
            ({"engine": "bicubic"}, "engine: nearest -> bicubic"),
            ({"version": "1.1"}, "version: 1.0 -> 1.1"),
        ],
    )
    def test_what_changed_is_named_and_nothing_is_touched(
        self, folder: Path, source: Path, change: dict[str, Any], told: str
    ):
        first = {"crf": 18, "prompt": "a harbour"}
        Store(folder, fingerprint(source, **first)).close()
        (folder / "00000.seg").write_bytes(b"whole")
        before = (folder / "job.json").read_bytes()
        with pytest.raises(ResumeError) as caught:
            Store(folder, fingerprint(source, **{**first, **change}))
        assert str(caught.value) == (
            f"{folder}: was begun differently ({told});"
            " add --restart to start again, or give the command as it was"
        )  # fmt: skip
        assert (folder / "job.json").read_bytes() == before
        assert (folder / "00000.seg").exists()
        Store(folder, fingerprint(source, **first)).close()  # the lock is free again

    def test_another_input_of_the_same_size(self, folder: Path, source: Path):
        Store(folder, fingerprint(source)).close()
        source.write_bytes(source.read_bytes()[::-1])
        with pytest.raises(ResumeError, match=r"input\.sha256: \w+\.\.\. -> \w+\.\.\.") as caught:
            Store(folder, fingerprint(source))
        assert "input.size" not in str(caught.value)
        source.write_bytes(b"short")
        with pytest.raises(ResumeError, match=r"input\.size: 10240 -> 5"):
            Store(folder, fingerprint(source))

    def test_a_touched_or_copied_input_is_the_same(self, folder: Path, source: Path):
        Store(folder, fingerprint(source)).close()
        os.utime(source, ns=(1, 1))
        Store(folder, fingerprint(source)).close()
        copy = source.with_name("copy.mkv")
        shutil.copyfile(source, copy)
        Store(folder, fingerprint(copy)).close()

    def test_restart_forgets_all(self, folder: Path, source: Path):
        with closing(Store(folder, fingerprint(source))) as store:
            store.save_choice({"batch": 4})
        (folder / "00000.seg").write_bytes(b"whole")
        (folder / "notes.txt").write_text("mine")
        with closing(Store(folder, fingerprint(source, crf=20), restart=True)) as store:
            assert store.choice == {}
            assert not (folder / "00000.seg").exists()
            assert (folder / "notes.txt").read_text() == "mine"
        Store(folder, fingerprint(source, crf=20)).close()

    def test_a_record_that_is_a_folder(self, folder: Path, source: Path):
        (folder / "job.json").mkdir(parents=True)
        with pytest.raises(ResumeError, match="is a link, a folder or a pipe, expected a file of the job"):
            Store(folder, fingerprint(source), restart=True)

    @pytest.mark.parametrize(
        "record", [b"", b"{", b"[]", b'{"fingerprint": 1, "choice": {}}', b"\xff\xfe", b"[" * 5000, None]
    )
    def test_a_damaged_record(self, folder: Path, source: Path, record: bytes | None):
        Store(folder, fingerprint(source)).close()
        (folder / "job.json").unlink()
        if record is not None:
            (folder / "job.json").write_bytes(record)
        (folder / "00000.seg").write_bytes(b"whole")
        with pytest.raises(ResumeError, match=r"missing or damaged, .* 1 finished .* add --restart"):
            Store(folder, fingerprint(source))
        assert (folder / "00000.seg").exists()
        (folder / "00000.seg").unlink()
        Store(folder, fingerprint(source)).close()  # nothing to lose: begun anew
        assert json.loads((folder / "job.json").read_bytes())["fingerprint"]["version"] == "1.0"

    @pytest.mark.parametrize("restart", [False, True])
    @pytest.mark.parametrize("name", ["holiday.mp4", "film.part", "1.seg", "lock.txt"])
    def test_a_folder_of_somebody_else_is_left_alone(self, folder: Path, source: Path, name: str, restart: bool):
        folder.mkdir()
        (folder / name).write_text("precious")
        with pytest.raises(ResumeError, match=rf"is no folder of a job, and is not empty \({name}\)"):
            Store(folder, fingerprint(source), restart=restart)
        assert [path.name for path in folder.iterdir()] == [name]

    def test_delete_removes_what_is_its_own(self, folder: Path, source: Path):
        store = Store(folder, fingerprint(source))
        for name in ("00000.seg", "123456.seg", "whole.mkv", "00001.seg.part"):
            (folder / name).write_bytes(b"x")
        store.delete()
        assert not folder.exists()
        store = Store(folder, fingerprint(source))
        (folder / "mine.txt").touch()
        store.delete()
        assert [path.name for path in folder.iterdir()] == ["mine.txt"]

    def test_places_that_cannot_be_used(self, folder: Path, source: Path):
        with pytest.raises(MediaError, match="cannot be used"):
            Store(folder / "deeper", fingerprint(source))
        folder.write_text("a file")
        with pytest.raises(MediaError, match="cannot be used"):
            Store(folder, fingerprint(source))


HOLD = """
import sys, time
from pathlib import Path
from vidup.job.store import Store
store = Store(Path(sys.argv[1]), {})
print("locked", flush=True)
time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    return holder


class TestLock:
    def test_one_job_at_a_time_until_it_is_killed(self, folder: Path):
        with hold(folder) as holder:
            try:
                match = (
                    "another process works" if sys.platform == "win32" else rf"another process \({holder.pid}\) works"
                )
                for restart in (False, True):
                    with pytest.raises(ResumeError, match=match):
                        Store(folder, {}, restart=restart)
            finally:
                holder.kill()
        Store(folder, {}).close()  # what a killed process locked is free

    def test_also_within_a_process(self, folder: Path):
        with closing(Store(folder, {})), pytest.raises(ResumeError, match="another process"):
            Store(folder, {})
        Store(folder, {}).close()

    def test_an_error_while_opening_gives_the_lock_back(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        with monkeypatch.context() as patched:
            patched.setattr(room, "write_atomically", full)
            with pytest.raises(MediaError, match="the disk is full"):
                Store(folder, {})
        Store(folder, {}).close()


def full(path: Path, data: bytes) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class TestDisk:
    def test_need(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10 * 2**30, 0, 3 * 2**29))
        need_disk(tmp_path, 3 * 2**29)
        with pytest.raises(MediaError, match=r"about 2\.00 GiB are needed and 1\.50 GiB are free"):
            need_disk(tmp_path, 2 * 2**30)

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    def test_a_full_disk_says_how_to_go_on(self, tmp_path: Path, number: int):
        with (
            pytest.raises(MediaError, match=r"the disk is full; .* give the same command again"),
            disk_full_named(tmp_path),
        ):
            raise OSError(number, "full")

    def test_also_where_it_was_told_as_a_media_error(self, tmp_path: Path):
        with pytest.raises(MediaError, match="the disk is full"), disk_full_named(tmp_path):
            try:
                raise OSError(errno.ENOSPC, "full")
            except OSError as error:
                raise MediaError("cannot be written") from error

    @pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), MediaError("damaged"), KeyboardInterrupt()])
    def test_other_errors_pass(self, tmp_path: Path, error: BaseException):
        with pytest.raises(type(error)) as caught, disk_full_named(tmp_path):
            raise error
        assert caught.value is error

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_disk_that_is_full_for_true(self, tmp_path: Path):
        with (
            pytest.raises(MediaError, match="the disk is full"),
            disk_full_named(tmp_path),
            Path("/dev/full").open("w") as f,
        ):
            f.write("x")

    def test_an_interrupted_write_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        path = tmp_path / "job.json"
        write_atomically(path, b"old")
        monkeypatch.setattr(os, "fsync", lambda descriptor: full(path, b""))
        with pytest.raises(OSError, match="No space"):
            write_atomically(path, b"new")
        assert path.read_bytes() == b"old"


KILLED = """
import os, sys
from pathlib import Path
from vidup.job.store import Store
folder = Path(sys.argv[1])
for _ in sys.stdin:  # a process for each line, which needs not load anything
    if (child := os.fork()) == 0:
        store, number = Store(folder, {"version": "1"}), 0
        print(os.getpid(), flush=True)
        while True:
            number += 1
            store.save_choice({"number": number, "padding": "x" * 200_000})
            if number == 1:
                print("saved", flush=True)
    os.waitpid(child, 0)
    print("killed", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, and SIGKILL")
def test_the_record_survives_kills_at_any_time(folder: Path):
    """Whenever the process is killed, what is on disk is whole, and the next one goes on from there."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    seen, command = [], [sys.executable, "-c", KILLED, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, bufsize=1
    ) as writers:
        assert writers.stdin is not None and writers.stdout is not None
        for pause in (0.0, 0.013, 0.05, None):
            writers.stdin.write("\n")
            writer = int(writers.stdout.readline())
            if pause is None:
                assert writers.stdout.readline() == "saved\n"
            else:
                time.sleep(pause)
            os.kill(writer, signal.SIGKILL)
            while (line := writers.stdout.readline()) != "killed\n":
                assert line
            with closing(Store(folder, {"version": "1"})) as store:
                assert store.finished([], lambda segment: False) == set()
                assert not list(folder.glob("*.part"))
                choice = store.choice
                assert not choice or len(choice["padding"]) == 200_000
                seen.append(choice.get("number", 0))
    assert seen[-1] > 0
