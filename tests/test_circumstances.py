"""What happens to files and folders before and while a job runs: each is told in one line, and nothing is lost."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import pictures
from PIL import Image

import vidup
from vidup import Runtime, Settings, upscale_files
from vidup.errors import ConfigError, MediaError, ResumeError
from vidup.job import disk
from vidup.job import store as room

NEAREST = Settings(model="nearest", scale=1, crf=0, encoder_options={"preset": "ultrafast"}, segment_frames=3)
links = pytest.mark.skipif(sys.platform == "win32", reason="few may make links there")


def is_upscaled(output: Path, source: Path) -> bool:
    """Whether all pictures of a source are in the output, each in its place."""
    pairs = zip(pictures(output), pictures(source), strict=True)
    return all(np.abs(one.astype(int) - other).mean() < 3 for one, other in pairs)


def folder_of(output: Path) -> Path:
    return output.with_name(output.name + ".vidup")


def segments(output: Path) -> list[str]:
    return sorted(path.name for path in folder_of(output).glob("*.seg"))


def at(frame: int, act: Callable[[], object], state: str = "upscaling") -> Callable[[vidup.Progress], None]:
    """A sink that does something once, when so many frames are upscaled."""
    done = []

    def sink(event: vidup.Progress) -> None:
        if event.state == state and event.frame >= frame and not done:
            done.append(act())

    return sink


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def source(make_clip: Callable[..., Path]) -> Path:
    return make_clip()


@pytest.fixture
def output(source: Path) -> Path:
    return source.with_name("out.mp4")


class TestInput:
    """The input is another while the job runs."""

    @pytest.mark.parametrize(
        ("frame", "state", "kept"), [(9, "upscaling", 4), (12, "joining", 4), (12, "verifying", 4)]
    )
    def test_replaced(self, make_clip, source: Path, output: Path, frame: int, state: str, kept: int):
        other = make_clip("other.mp4", draw=lambda index, width, height: pictures(source)[11 - index])
        aside = source.with_name("aside.mp4")

        def replace() -> None:
            source.rename(aside)
            shutil.copyfile(other, source)

        with pytest.raises(MediaError, match=r"clip\.mp4: was replaced or written to while the job ran \(.*sha256"):
            vidup.upscale(source, output, NEAREST, on_progress=at(frame, replace, state))
        assert not output.exists() and 1 <= len(segments(output)) <= kept
        with pytest.raises(ResumeError, match="was begun differently"):
            vidup.upscale(source, output, NEAREST)
        aside.replace(source)
        vidup.upscale(source, output, NEAREST)
        assert is_upscaled(output, source)

    @pytest.mark.parametrize("act", [Path.unlink, lambda path: path.write_bytes(b"")])
    def test_gone_or_emptied(self, source: Path, output: Path, act: Callable[[Path], object]):
        with pytest.raises(MediaError, match=r"clip\.mp4: (was replaced|cannot be read: No such file)"):
            vidup.upscale(source, output, NEAREST, on_progress=at(9, lambda: act(source)))
        assert not output.exists() and segments(output)

    def test_touched(self, source: Path, output: Path, caplog: pytest.LogCaptureFixture):
        vidup.upscale(source, output, NEAREST, on_progress=at(4, lambda: os.utime(source, (1, 1))))
        assert is_upscaled(output, source)
        assert [r.message for r in caplog.records if "was touched" in r.message] == [
            f"{source}: was touched while the job ran; its size and content have not changed"
        ]


class TestRecord:
    @pytest.mark.parametrize(
        "choice",
        [
            {"batch": 0, "tile": 0},
            {"batch": -1, "tile": 0},
            {"batch": 1_000_000_000, "tile": 0},
            {"batch": "two", "tile": 0},
            {"batch": True, "tile": 0},
            {"batch": 2.5, "tile": 0},
            {"batch": 1, "tile": 64},  # no more than the overlaps on both sides
            {"batch": 1, "tile": 10**12},
            {"batch": 1, "tile": None},
            {"batch": 1, "keep": 1_000_000_000},
            {"batch": 1, "more": 1},
            [1, 0],
        ],
        ids=str,
    )
    def test_a_choice_that_cannot_have_been_made(self, source: Path, output: Path, choice: Any):
        with pytest.raises(KeyboardInterrupt):
            vidup.upscale(source, output, NEAREST, on_progress=at(9, interrupt))
        path = folder_of(output) / "job.json"
        record = json.loads(path.read_text())
        choice = record["choice"] | choice if isinstance(choice, dict) else choice
        path.write_text(json.dumps(record | {"choice": choice}))
        with pytest.raises(ResumeError, match=r"job\.json is missing or damaged, .* add --restart"):
            vidup.upscale(source, output, NEAREST)
        assert segments(output) and not output.exists()

    @pytest.mark.parametrize("text", ["[" * 50_000, '{"choice": ' + "9" * 5000 + "}"])
    def test_a_record_that_no_reader_takes(self, source: Path, output: Path, text: str):
        with pytest.raises(KeyboardInterrupt):
            vidup.upscale(source, output, NEAREST, on_progress=at(9, interrupt))
        (folder_of(output) / "job.json").write_text(text)
        with pytest.raises(ResumeError, match="missing or damaged"):
            vidup.upscale(source, output, NEAREST)


class TestOutput:
    @pytest.mark.parametrize("can_link", [True, False])
    def test_a_file_that_appears_is_left(self, source: Path, output: Path, monkeypatch, can_link: bool):
        if not can_link:

            def refuse(*_: object) -> None:
                raise PermissionError(errno.EPERM, "Operation not permitted")

            monkeypatch.setattr(os, "link", refuse)
        precious = at(12, lambda: output.write_bytes(b"precious"), "verifying")
        with pytest.raises(ConfigError, match=r"out\.mp4: has appeared while the job ran, and is left .* -y") as told:
            vidup.upscale(source, output, NEAREST, on_progress=precious)
        undelivered = folder_of(output) / "undelivered.mp4"
        assert is_upscaled(undelivered, source) and f"what was joined is kept as {undelivered}" in str(told.value)
        assert output.read_bytes() == b"precious" and len(segments(output)) == 4
        output.unlink()
        vidup.upscale(source, output, NEAREST)
        assert is_upscaled(output, source) and not folder_of(output).exists()

    @links
    @pytest.mark.parametrize("dangling", [True, False])
    def test_a_link_is_followed(self, source: Path, output: Path, dangling: bool, caplog: pytest.LogCaptureFixture):
        target = source.parent / "deep" / "film.mp4"
        target.parent.mkdir()
        if not dangling:
            target.write_bytes(b"old")
        output.symlink_to(target)
        with caplog.at_level("INFO", "vidup"):
            vidup.upscale(source, output, NEAREST, runtime=Runtime(overwrite=not dangling))
        assert output.is_symlink() and is_upscaled(target, source)
        assert f"{output}: is a link: {target} is written" in caplog.text
        assert [path.name for path in target.parent.iterdir()] == ["film.mp4"]

    @links
    def test_a_link_that_leads_to_the_input_or_in_a_circle(self, source: Path, output: Path):
        before = source.read_bytes()
        output.symlink_to(source)
        with pytest.raises(ConfigError, match="is the input"):
            vidup.upscale(source, output, NEAREST, runtime=Runtime(overwrite=True))
        output.unlink()
        output.symlink_to(output)
        with pytest.raises(ConfigError, match="is a link that leads nowhere"):
            vidup.upscale(source, output, NEAREST, runtime=Runtime(overwrite=True))
        assert source.read_bytes() == before and output.is_symlink()

    @links
    def test_a_pipe_is_not_replaced(self, source: Path, output: Path):
        os.mkfifo(output)
        with pytest.raises(ConfigError, match="is a pipe or a device"):
            vidup.upscale(source, output, NEAREST, runtime=Runtime(overwrite=True))
        assert output.is_fifo()

    @pytest.mark.parametrize("name", ["x" * 245, "x" * 246, "x" * 251, "é" * 125 + "x"])
    def test_a_name_as_long_as_can_be(self, source: Path, name: str):
        output = source.with_name(name + ".mp4")
        with pytest.raises(KeyboardInterrupt):
            vidup.upscale(source, output, NEAREST, on_progress=at(9, interrupt))
        folder = disk.beside(output, ".vidup")
        assert (folder / "00000.seg").is_file() and len(os.fsencode(folder.name)) <= 255
        vidup.upscale(source, output, NEAREST)
        assert is_upscaled(output, source) and not folder.exists()


class TestStill:
    """The same for a picture."""

    @pytest.fixture
    def photo(self, tmp_path: Path) -> Path:
        Image.new("RGB", (9, 7), (200, 30, 60)).save(tmp_path / "photo.png")
        return tmp_path / "photo.png"

    def test_a_file_that_appears_is_left(self, photo: Path, output: Path):
        output = output.with_suffix(".png")
        appear = at(0, lambda: output.write_bytes(b"precious"))
        with pytest.raises(ConfigError, match="has appeared while the job ran"):
            vidup.upscale(photo, output, NEAREST, on_progress=appear)
        assert output.read_bytes() == b"precious"

    @links
    def test_links(self, photo: Path, tmp_path: Path):
        text, target, output = tmp_path / "letter.txt", tmp_path / "deep.png", tmp_path / "out.png"
        text.write_text("precious")
        disk.beside(target, ".vidup.png").symlink_to(text)
        output.symlink_to(target)
        vidup.upscale(photo, output, NEAREST)
        with Image.open(target) as image:
            assert image.size == (9, 7)
        assert output.is_symlink() and text.read_text() == "precious"

    def test_a_name_as_long_as_can_be(self, photo: Path):
        with Image.open(vidup.upscale(photo, photo.with_name("x" * 251 + ".png"), NEAREST).output) as image:
            assert image.size == (9, 7)


class TestFolder:
    @links
    @pytest.mark.parametrize("name", ["lock", "job.json", "job.json.part", "00000.seg", "whole.mp4"])
    @pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
    @pytest.mark.parametrize("restart", [False, True])
    def test_what_is_no_file_of_the_job(self, source: Path, output: Path, name: str, kind: str, restart: bool):
        text = source.with_name("letter.txt")
        text.write_text("precious")
        folder_of(output).mkdir()
        (folder_of(output) / "job.json").write_text("{}")
        place = folder_of(output) / name
        place.unlink(missing_ok=True)
        {"link": lambda: place.symlink_to(text), "folder": place.mkdir, "pipe": lambda: os.mkfifo(place)}[kind]()
        with pytest.raises(ResumeError, match=rf"{name}: is a link, a folder or a pipe, expected a file of the job"):
            vidup.upscale(source, output, NEAREST, runtime=Runtime(restart=restart))
        assert text.read_text() == "precious" and place.lstat() and not output.exists()

    @links
    def test_a_link_or_a_file_in_its_place(self, source: Path, output: Path):
        folder_of(output).symlink_to(source.parent)
        with pytest.raises(ResumeError, match=r"out\.mp4\.vidup: is a link"):
            vidup.upscale(source, output, NEAREST)
        folder_of(output).unlink()
        folder_of(output).write_text("precious")
        with pytest.raises(MediaError, match=r"out\.mp4\.vidup: cannot be used: is no folder"):
            vidup.upscale(source, output, NEAREST)
        assert folder_of(output).read_text() == "precious"

    @pytest.mark.parametrize("what", ["folder", "segment"])
    def test_removed_while_the_job_runs(self, make_clip, source: Path, output: Path, what: str):
        """It is told, and the queue goes on."""
        other, end = make_clip("other.mp4"), source.with_name("end.mp4")
        place = folder_of(output) if what == "folder" else folder_of(output) / "00000.seg"

        def remove() -> None:
            while place.is_dir():  # an encoder may be creating a file in it
                shutil.rmtree(place, ignore_errors=True)
            place.unlink(missing_ok=True)

        sink = at(8, remove)
        outcomes = upscale_files([(source, output), (other, end)], NEAREST, on_progress=sink)
        assert isinstance(outcomes[0].error, MediaError) and str(place) in str(outcomes[0].error)
        assert outcomes[1].error is None and is_upscaled(end, other)
        vidup.upscale(source, output, NEAREST)
        assert is_upscaled(output, source)

    def test_an_error_of_the_system_is_that_of_one_file(self, make_clip, source: Path, output: Path, monkeypatch):
        join, calls = vidup.media.joining.join, []

        def fail(*arguments: object, **options: object) -> object:
            calls.append(arguments)
            if len(calls) == 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return join(*arguments, **options)

        monkeypatch.setattr("vidup.media.joining.join", fail)
        other, end = make_clip("other.mp4"), source.with_name("end.mp4")
        outcomes = upscale_files([(source, output), (other, end)], NEAREST)
        assert (type(outcomes[0].error), str(outcomes[0].error)) == (
            MediaError,
            f"{output}: Too many open files",
        )
        assert outcomes[1].error is None and is_upscaled(end, other)

    def test_an_error_of_the_sink_is_raised_as_it_is(self, source: Path, output: Path):
        error = ConnectionError("the page is gone")

        def fail() -> None:
            raise error

        for frame, state in ((0, "loading"), (4, "upscaling"), (12, "verifying")):
            with pytest.raises(ConnectionError) as caught:
                vidup.upscale(source, output, NEAREST, on_progress=at(frame, fail, state))
            assert caught.value is error

    def test_no_more_folders_are_open_than_are_worked_on(self, make_clip, source: Path):
        files = [
            (shutil.copyfile(source, source.with_name(f"{i}.mp4")), source.with_name(f"out{i}.mp4")) for i in range(4)
        ]
        held = []

        def look(event: vidup.Progress) -> None:
            held.append(sum(file.path.endswith(".vidup/lock") for file in psutil.Process().open_files()))

        outcomes = upscale_files(files, NEAREST, on_progress=look)
        assert [outcome.error for outcome in outcomes] == [None] * 4
        assert max(held) == 2  # the next one, while the end of one is encoded


class TestFinalMoments:
    """A kill between the delivery and the end of the folder."""

    def kill(self, source: Path, output: Path, monkeypatch: pytest.MonkeyPatch, removed: int) -> None:
        remove, calls = room._remove, []

        def stop(path: Path) -> None:
            if path.suffix != ".part":
                calls.append(path)
                if len(calls) > removed:
                    raise KeyboardInterrupt
            remove(path)

        with monkeypatch.context() as patched:
            patched.setattr(room, "_remove", stop)
            patched.setattr("vidup.job.queue._leave", room.Store.close)
            with pytest.raises(KeyboardInterrupt):
                vidup.upscale(source, output, NEAREST)
        assert output.is_file() and folder_of(output).is_dir()

    @pytest.mark.parametrize("removed", [0, 3, 4])
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_the_same_command_clears_the_folder(self, source, output, monkeypatch, removed, overwrite, caplog):
        self.kill(source, output, monkeypatch, removed)
        before = output.stat()
        with caplog.at_level("INFO", "vidup"):
            (outcome,) = upscale_files([(source, output)], NEAREST, runtime=Runtime(overwrite=overwrite))
        assert outcome.error is None and outcome.skipped
        assert "was delivered and verified before; only the job's folder is left" in caplog.text
        assert os.path.samestat(before, output.stat()) and not folder_of(output).exists()

    def test_when_only_the_lock_is_left(self, source, output, monkeypatch):
        self.kill(source, output, monkeypatch, removed=5)
        assert [path.name for path in folder_of(output).iterdir()] == ["lock"]
        with pytest.raises(ConfigError, match="exists; add -y"):
            vidup.upscale(source, output, NEAREST)
        assert not folder_of(output).exists()

    def test_another_file_is_not_taken_for_it(self, source, output, monkeypatch):
        self.kill(source, output, monkeypatch, removed=0)
        output.write_bytes(b"precious")
        with pytest.raises(ConfigError, match="exists; add -y"):
            vidup.upscale(source, output, NEAREST)
        assert output.read_bytes() == b"precious" and folder_of(output).exists()
        vidup.upscale(source, output, NEAREST, runtime=Runtime(overwrite=True))
        assert is_upscaled(output, source) and not folder_of(output).exists()
