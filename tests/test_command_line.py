"""The command line as people type it: what they mean is taken, or refused at once in a line that says what to type."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import pytest
from conftest import pictures, video_times
from PIL import Image

from vidup import Runtime, Settings, cli, options, values
from vidup.arguments import parser
from vidup.cli import main
from vidup.config import MODELS
from vidup.engines import FAMILIES
from vidup.media import animation_input
from vidup.options import from_options

NEAREST = ["--model", "nearest", "-e", "preset=ultrafast"]
Clips = Callable[..., Path]
Output = pytest.CaptureFixture[str]


def refused(arguments: list[str], capsys: Output) -> str:
    """The one line with which a command ends."""
    capsys.readouterr()
    try:
        assert main(arguments) in (1, 2)
    except SystemExit as done:
        assert done.code == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    return line


def settings(*words: str) -> Settings:
    typed = vars(parser({"upscale": lambda _: 0}).parse_args(["upscale", "in.mp4", *words]))
    return from_options(Settings, typed, typed["preset"])


def test_an_output_without_its_option_is_refused_at_once(make_clip: Clips, capsys: Output):
    source = make_clip(times=(0, 512))
    output = source.with_name("out.mp4")
    line = refused(["upscale", str(source), str(output), *NEAREST], capsys)
    assert line.endswith(f"out.mp4: there is no such file; if the output is to have that name, write -o {output}")
    assert [path.name for path in source.parent.iterdir()] == ["clip.mp4"]


NOTHING_LOADED = """
import sys
from vidup.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules and "diffusers" not in sys.modules
sys.exit(code)
"""


def test_paths_and_models_are_checked_before_anything_is_loaded(
    make_clip: Clips, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
):
    source = str(make_clip(times=(0, 512)))
    done = subprocess.run([sys.executable, "-c", NOTHING_LOADED, "upscale", source, "-n", "mimi"], capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().endswith("did you mean mini?\n")
    none, big = str(tmp_path / "none.mp4"), str(tmp_path / "big.mp4")
    monkeypatch.delitem(sys.modules, "vidup.job", raising=False)
    for words, named in (
        ([none], "none.mp4: there is no such file"),
        ([source, none, "-o", str(tmp_path / "out")], "none.mp4: there is no such file"),
        ([source, "-o", str(tmp_path / "none" / "big.mp4")], "none: there is no such folder"),
        ([source, "-o", str(tmp_path / "big.xyz")], "cannot write .xyz"),
        ([source, "-o", big, "-n", "none.safetensors"], "'none.safetensors': there is no such file"),
        ([source, "-o", big, "--vae", "none"], "vae = 'none'"),
        ([source, "-o", big, "--tokenizer", "a/none"], "tokenizer = 'a/none'"),
        ([source, source, "-o", big], "big.mp4: is the name of a file; many inputs need a folder"),
    ):
        assert named in refused(["upscale", *words], capsys)
        assert "vidup.job" not in sys.modules
    for words in (["verify", source, none], ["compare", none, source], ["probe", none], ["bench", "--input", none]):
        assert "none.mp4: there is no such file" in refused(words, capsys)
        assert "vidup.job" not in sys.modules
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_the_names_of_models_are_those_of_the_catalogue():
    assert set(MODELS) == {name for family in FAMILIES for name in family.names}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("65.5", 65.5), ("65.5s", 65.5), ("1:05.5", 65.5), ("00:01:05.5", 65.5), ("500ms", 0.5), ("2min", 120.0)],
)
def test_times_as_people_write_them(text: str, seconds: float):
    assert settings("--start", text).start == seconds
    assert settings("--duration", text).until == seconds


@pytest.mark.parametrize("text", ["1:75", "-1:00", "five", "1:2:3:4", "5d", ""])
def test_times_that_are_none(text: str, capsys: Output):
    assert f"argument --start: {text!r} is no time" in refused(["upscale", "in.mp4", f"--start={text}"], capsys)


def test_an_end_is_taken_instead_of_a_duration(make_clip: Clips, tmp_path: Path, capsys: Output):
    source, output = make_clip(sound=False), tmp_path / "part.mp4"
    words = ["-o", str(output), *NEAREST, "--scale", "1", "--start", "00:00:00.08", "--end", "0.2s"]
    assert main(["upscale", str(source), *words]) == 0
    assert len(video_times(output)) == 3
    assert "give one of the two" in refused(["upscale", str(source), "--end", "1", "--duration", "1"], capsys)
    assert "must be after start" in refused(["upscale", str(source), "--end", "1", "--start", "1:00"], capsys)


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (["--height", "144p"], (144, 192)),
        (["--height", "144"], (144, 192)),
        (["--width", "192"], (144, 192)),
        (["--size", "192x144"], (144, 192)),
        (["--size", "500x144"], (144, 192)),
        (["--size", "192X900"], (144, 192)),
        (["--size", "192*144"], (144, 192)),
        (["--scale", "3x"], (144, 192)),
        (["--scale", "300%"], (144, 192)),
    ],
)
def test_sizes_as_people_write_them(make_clip: Clips, tmp_path: Path, capsys: Output, words: list[str], size):
    source, output = make_clip(times=(0,), sound=False), tmp_path / "big.mp4"
    assert main(["upscale", str(source), "-o", str(output), *NEAREST, *words]) == 0
    assert pictures(output)[0].shape[:2] == size
    noted = "the largest of the input's shape within" in capsys.readouterr().err
    assert noted == any(word in ("500x144", "192X900") for word in words)


def test_what_is_typed_puts_what_a_preset_says_otherwise_out_of_force(tmp_path: Path):
    own = tmp_path / "own.toml"
    own.write_text("scale = 2\nduration = 5\n")
    found = settings("-p", str(own), "--height", "720p", "--end", "9")
    assert (found.scale, found.height, found.duration, found.end) == (None, 720, None, 9)
    assert settings("-p", str(own)).scale == 2


def test_a_size_that_is_not_the_models_own_is_told(make_clip: Clips, capsys: Output):
    source = make_clip(times=(0, 512), sound=False)
    for words, told in (
        (["--height", "96"], "the model makes 256x192 (x4), which is reduced to 128x96"),
        (["--scale", "8"], "the model makes 256x192 (x4); from there to 512x384 is plain resampling"),
        (["--height", "191"], "height = 191: the result is 254x192"),
        (["--height", "192"], None),
        ([], None),
    ):
        assert main(["upscale", str(source), "-n", "mini", "--dry-run", *words]) == 0
        shown = capsys.readouterr().out
        assert (told in shown) if told else "the model makes" not in shown
    still = source.with_name("still.png")
    Image.new("RGB", (8, 6)).save(still)
    assert main(["probe", str(still), "-n", "mini", "--scale", "2"]) == 0
    assert "note: the model makes 32x24 (x4), which is reduced to 16x12" in capsys.readouterr().out


def test_a_folder_is_what_is_in_it(make_clip: Clips, tmp_path: Path, capsys: Output):
    folder = tmp_path / "rushes"
    (folder / "deeper").mkdir(parents=True)
    for name in ("b.mp4", "a.mkv"):
        make_clip(name, times=(0, 40), sound=False).rename(folder / name)
    for name in (".hidden.mp4", "notes.txt", "b.srt"):
        (folder / name).write_text("no video")
    output = tmp_path / "big"
    assert main(["upscale", str(folder), "-o", str(output), *NEAREST, "-s", "1"]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["a_x1.mkv", "b_x1.mp4"]
    assert "give another one for the outputs with -o" in refused(["upscale", str(folder)], capsys)
    assert "without videos or pictures" in refused(["upscale", str(folder / "deeper"), "-o", str(output)], capsys)


def test_hints_do_not_name_what_was_typed(make_clip: Clips, tmp_path: Path, capsys: Output):
    assert refused(["probe", "a.mp4", "--skip-done"], capsys).endswith("that is an option of vidup upscale and bench")
    assert refused(["upscale", "a.mp4", "--modle", "mini"], capsys).endswith("did you mean --model?")
    source = make_clip(times=(0, 512))
    assert refused([str(source)], capsys).endswith(f"did you mean vidup upscale {source}?")
    (tmp_path / "two").mkdir()
    twin = source.rename(tmp_path / "two" / "clip.mp4")
    source = make_clip(times=(0, 512))
    folder = tmp_path / "big"
    assert main(["upscale", str(source), str(twin), "-o", str(folder), "-q", *NEAREST, "-s", "1"]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if "its output" in line]
    assert len(told) == 1 and "-o" not in told[0].split()
    # What is no delivery of its input is made anew where that is allowed; else the line says how to allow it.
    big = folder / "clip_x1.mp4"
    big.write_bytes(b"something else")
    words = ["upscale", str(source), "-o", str(big), "--skip-done", *NEAREST, "-s", "1"]
    assert refused(words, capsys).endswith("add -y to replace it")
    assert main([*words, "-y"]) == 0 and len(video_times(big)) == 2


def test_help_begins_with_what_matters(capsys: Output):
    texts = []
    for words in (["help", "upscale"], ["upscale", "--help"]):
        with pytest.raises(SystemExit) as done:
            main(words)
        assert done.value.code == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    usage, heads = texts[0].splitlines()[0], [line for line in texts[0].splitlines() if line[:1].isalpha()]
    assert len(usage) < 80
    first = texts[0].split("options that matter first:")[1].split("\n\n")[0]
    assert sum(line.startswith("  -") for line in first.splitlines()) == 10
    assert len(heads) > 10 and texts[0].index("options that matter first:") < texts[0].index("size:")
    for spec in (*fields(Settings), *fields(Runtime)):
        assert "--" + spec.name.replace("_", "-") in texts[0]


def test_memory_in_bytes_is_asked_about(make_clip: Clips, capsys: Output):
    source = str(make_clip(times=(0, 512)))
    line = refused(["upscale", source, "--max-memory", "8"], capsys)
    assert line == "vidup: max_memory = '8': is 8 bytes; was 8G meant?"
    assert Runtime(max_memory="8000000000").memory_limit == 8_000_000_000


def test_a_dry_run_shows_and_does_nothing(make_clip: Clips, tmp_path: Path, capsys: Output):
    one, two = make_clip(), make_clip("two.mkv", times=(0, 40))
    before = sorted(tmp_path.rglob("*"))
    assert main(["upscale", str(one), str(two), "-o", str(tmp_path / "big"), "--dry-run", *NEAREST]) == 0
    captured = capsys.readouterr()
    assert sorted(tmp_path.rglob("*")) == before
    assert f"output    {tmp_path / 'big' / 'clip_x4.mp4'}: 256x192" in captured.out and "two_x4.mkv" in captured.out
    assert "exists; add -y" in refused(["upscale", str(one), "-o", str(two), "--dry-run", *NEAREST], capsys)


def test_quiet_says_what_is_wrong_alone(make_clip: Clips, tmp_path: Path, capsys: Output):
    source = make_clip(times=(0, 512))
    words = ["upscale", str(source), "-o", str(tmp_path / "big.mp4"), "-q", *NEAREST]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert "exists; add -y" in refused(words, capsys)


def test_a_still_says_a_line(tmp_path: Path, capsys: Output):
    Image.new("RGB", (8, 6)).save(tmp_path / "still.png")
    assert main(["upscale", str(tmp_path / "still.png"), "-n", "nearest"]) == 0
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"vidup: {tmp_path / 'still.png'}: 8x6 -> {tmp_path / 'still_x4.png'}: 32x24"
    assert main(["probe", str(tmp_path / "still.png"), "--json", "-n", "nearest"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []


def test_every_option_stands_under_a_head_of_the_help():
    grouped = {name for names in options.GROUPS.values() for name in names}
    assert grouped == {spec.name for config in (Settings, Runtime) for spec in fields(config)}


def test_the_types_of_options_are_read_once(monkeypatch: pytest.MonkeyPatch):
    """Which compiles each annotation; for each option of each command it took a third of a second."""
    read: list[object] = []
    monkeypatch.setattr("vidup.values.get_type_hints", lambda kind: read.append(kind) or get_type_hints(kind))
    values._hints.cache_clear()
    parser({name: lambda _: 0 for name in ("upscale", "probe", "verify", "compare", "list", "doctor", "ui")})
    assert len(read) == len(set(read)) == 2


def test_pillow_loads_no_reader_for_a_video(make_clip: Clips, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    for name in ("clip.mp4", "clip.mkv", "clip.avi"):
        assert not animation_input.is_animation(make_clip(name, times=(0, 512), sound=False))


def test_libraries_are_collected_in_no_process_of_the_commands_own(monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    names = ("disable", "enable", "freeze")
    monkeypatch.setattr(cli, "gc", SimpleNamespace(**{name: partial(said.append, name) for name in names}))
    monkeypatch.setattr(cli, "_main", lambda argv: 0)
    monkeypatch.setattr(cli.terminal, "open_streams", lambda: None)
    with cli._loading(Namespace(is_own_process=True)):
        assert said == ["disable"]
    assert said == ["disable", "freeze", "enable"]
    assert cli.main() == 0 and said.pop() == "freeze" and len(said) == 3
    with cli._loading(Namespace(is_own_process=False)):
        assert cli.main(["list"]) == 0
    assert len(said) == 3


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["upscle", "a.mp4"], "did you mean vidup upscale?"),
        (["help", "upscal"], "did you mean vidup upscale?"),
        (["version"], "did you mean vidup --version?"),
        (["frobnicate"], "vidup --help lists the commands"),
        (["-q", "upscale", "a.mp4"], "options stand behind the command: vidup upscale ... -q"),
        (["upscale", "a.mp4", "-m", "mini"], "did you mean --matrix or --max-memory or --model or --muxer-options?"),
        (["probe", "a.mp4", __file__], "vidup probe takes no further file"),
        (["upscale", "a.mp4", "-p", "Mini"], "did you mean mini?"),
        (
            ["upscale", "a.mp4", "--scale", "big"],
            "'big' is no scale: 4 or 4x is; vidup upscale --help lists the options",
        ),
        (["upscale", "a.mp4", "--device", "gpu"], "expected auto, cuda, cuda:1, mps or cpu"),
        (["upscale", "https://example.com/a.mp4"], "is an address (https), and vidup reads files: download it first"),
    ],
)
def test_what_is_meant_is_said(capsys: Output, words: list[str], hint: str):
    assert refused(words, capsys).endswith(hint)


def test_the_lines_of_4k_are_known():
    assert settings("--height", "4K").height == 2160 and settings("--height", "8k").height == 4320


def test_a_codec_by_another_name_is_hinted_at(make_clip: Clips, capsys: Output):
    source = make_clip(times=(0, 512))
    assert refused(["probe", str(source), "-c", "h265", *NEAREST], capsys).endswith("did you mean libx265?")


def test_nothing_typed_is_help(capsys: Output):
    with pytest.raises(SystemExit) as done:
        main([])
    assert done.value.code == 0 and "commands:" in capsys.readouterr().out
