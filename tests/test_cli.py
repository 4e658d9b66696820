"""The command line: what it prints where, its exit codes, and one clear line for every kind of bad input."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from conftest import pictures, video_times
from PIL import Image

import vidup
from vidup.cli import main

BASELINE = ["--model", "nearest", "--scale", "2", "-e", "preset=ultrafast"]


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"vidup {vidup.__version__}\n"


@pytest.mark.parametrize("command", ["upscale", "probe", "verify", "compare", "list"])
def test_help(capsys: pytest.CaptureFixture[str], command: str):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0 and f"vidup {command}" in text
    if command == "upscale":
        for option in ("--noise-level", "--guidance-scale", "--encoder-option", "--device", "--overwrite", "-y", "-s"):
            assert option in text


def test_list(capsys: pytest.CaptureFixture[str]):
    assert main(["list", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert list(table) == ["engines", "presets", "encoders", "devices"]
    assert set(table["presets"]) == {"balanced", "fast", "mini", "preview", "reference", "x2"}
    assert {"x4", "mini", "nearest", "lanczos"} <= set(table["engines"])
    assert "libx264" in table["encoders"] and "cpu" in table["devices"]
    assert main(["list", "presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "presets" and len(lines) == 7


def test_probe(make_clip: Callable[..., Path], capsys: pytest.CaptureFixture[str]):
    source = make_clip()
    assert main(["probe", str(source), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert (table["width"], table["height"], table["frames"], table["codec"]) == (64, 48, 12, "h264")
    assert [stream["action"] for stream in table["plan"]] == ["upscale", "copy"]
    assert table["output"] == str(source.with_name("clip_x4.mp4"))
    assert table["device_bytes"] > 2 * 473_398_020 and table["host_bytes"] > 0 and table["disk_bytes"] > 0
    assert main(["probe", str(source), "--offload", "--batch", "1"]) == 0
    text = capsys.readouterr().out
    assert "64x48" in text and "256x192" in text and "12 frames" in text
    told = re.search(r"GiB of disk, .* GiB of memory for frames, and for the model (\d+\.\d+) GiB", text)
    assert told and 0 < float(told[1]) * 2**30 < table["device_bytes"]
    assert sorted(path.name for path in source.parent.iterdir()) == ["clip.mp4"]


def test_upscale(make_clip: Callable[..., Path], capsys: pytest.CaptureFixture[str]):
    source = make_clip()
    assert main(["upscale", str(source), *BASELINE]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "clip_x2.mp4: delivered and verified, 12 frames" in captured.err
    assert pictures(source.with_name("clip_x2.mp4"))[0].shape == (96, 128, 3)


def test_progress_as_json_lines(make_clip: Callable[..., Path], capsys: pytest.CaptureFixture[str]):
    source = make_clip()
    output = source.with_name("out.mp4")
    assert main(["upscale", str(source), "-o", str(output), "--progress", "json", *BASELINE]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(set(event) == {field.name for field in fields(vidup.Progress)} for event in events)
    assert sorted({event["frame"] for event in events if event["state"] == "upscaling"}) == list(range(13))
    assert (events[0]["state"], events[-1]["state"], events[-1]["output"]) == ("loading", "done", str(output))
    proved = vidup.Receipt(**{**events[-1]["receipt"], "source": source, "output": output})
    assert proved.frames == 12 and f"  sha256    {hashlib.sha256(output.read_bytes()).hexdigest()}" in proved.lines()
    assert all(event["receipt"] is None for event in events[:-1])


def test_many_files_into_a_folder(make_clip: Callable[..., Path], capsys: pytest.CaptureFixture[str]):
    one, two = make_clip("one.mp4"), make_clip("two.mkv", time_base=Fraction(1, 1000), times=(0, 40, 80))
    bad = one.with_name("bad.mp4")
    bad.write_text("this is text")
    folder = one.parent / "upscaled"
    arguments = ["upscale", str(one), str(bad), str(two), "-o", str(folder), "--progress", "none", *BASELINE]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sorted(path.name for path in folder.iterdir()) == ["one_x2.mp4", "two_x2.mkv"]
    assert [line for line in captured.err.splitlines() if "bad.mp4" in line and "is no video" in line]
    assert captured.err.splitlines()[-1] == "vidup: 1 of 3 files failed; the others are done"
    assert video_times(folder / "one_x2.mp4") == video_times(one)


def test_presets_and_what_is_typed_over_them(make_clip: Callable[..., Path]):
    source = make_clip(times=(0, 512), sound=False)
    own = source.with_name("own.toml")
    own.write_text('model = "nearest"\nscale = 3\n[encoder_options]\npreset = "ultrafast"\n')
    for options, scale in (([], 3), (["--scale", "2"], 2)):
        output = source.with_name(f"out{scale}.mp4")
        assert main(["upscale", str(source), "-o", str(output), "-p", str(own), *options]) == 0
        assert pictures(output)[0].shape == (48 * scale, 64 * scale, 3)


def test_a_still_image(tmp_path: Path):
    Image.new("RGB", (9, 7), (200, 30, 60)).save(tmp_path / "photo.png")
    assert main(["upscale", str(tmp_path / "photo.png"), "-o", str(tmp_path / "big.png"), *BASELINE]) == 0
    with Image.open(tmp_path / "big.png") as big:
        assert big.size == (18, 14) and big.getpixel((5, 5)) == (200, 30, 60)


def test_interrupted(make_clip: Callable[..., Path], monkeypatch, capsys: pytest.CaptureFixture[str]):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vidup.proof.check_joined", interrupt)
    source = make_clip()
    assert main(["upscale", str(source), *BASELINE]) == 130
    assert "interrupted; what is done is kept" in capsys.readouterr().err
    assert sorted(path.name for path in source.parent.iterdir()) == ["clip.mp4", "clip_x2.mp4.vidup"]


def test_verbose_shows_where_it_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["upscale", str(tmp_path / "none.mp4"), "-v", *BASELINE]) == 1
    assert "Traceback" in capsys.readouterr().err


class Bad:
    """Builds the bad inputs in a folder, each as (arguments, what the line names)."""

    def __init__(self, folder: Path, make_clip: Callable[..., Path]) -> None:
        self.folder, self.make_clip = folder, make_clip
        self.output = folder / "out.mp4"

    def clip(self, name: str = "clip.mp4", seconds: int = 0) -> Path:
        times = range(0, seconds * 12800, 512) if seconds else (0, 512, 1024)
        return self.make_clip(name, times=tuple(times))

    def upscale(self, source: Path, *options: str, output: Path | None = None) -> list[str]:
        return ["upscale", str(source), "-o", str(output or self.output), *BASELINE, *options]

    def missing(self):
        return self.upscale(self.folder / "none.mp4"), "none.mp4"

    def a_folder(self):
        return self.upscale(self.folder), str(self.folder)

    def empty(self):
        path = self.folder / "empty.mp4"
        path.touch()
        return self.upscale(path), "empty.mp4"

    def text(self):
        path = self.folder / "text.mp4"
        path.write_text("this is no video\n" * 100)
        return self.upscale(path), "text.mp4"

    def audio_only(self):
        path = self.folder / "sound.mp4"
        with av.open(str(path), "w") as container, av.open(str(self.clip())) as source:
            stream = container.add_stream_from_template(source.streams.audio[0])
            for packet in source.demux(source.streams.audio[0]):
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
        return self.upscale(path), "no video stream (it holds audio aac)"

    def truncated(self, name: str, share: float):
        path = self.clip(name, seconds=3)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        return self.upscale(path), name

    def truncated_mp4(self):
        return self.truncated("clip.mp4", 0.6)

    def truncated_mp4_with_its_index_in_front(self):
        source, path = self.clip("whole.mp4", seconds=3), self.folder / "front.mp4"
        with av.open(str(source)) as whole, av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            streams = {s.index: container.add_stream_from_template(s) for s in whole.streams}
            for packet in whole.demux():
                if packet.size:
                    packet.stream = streams[packet.stream.index]
                    container.mux(packet)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
        return self.upscale(path), "front.mp4"

    def truncated_mkv(self):
        return self.truncated("clip.mkv", 0.5)

    def output_is_the_input(self):
        path = self.clip()
        return self.upscale(path, "-y", output=path), "clip.mp4: is the input"

    def output_exists(self):
        self.output.write_bytes(b"precious")
        return self.upscale(self.clip()), "out.mp4: exists; add -y"

    def output_folder_is_missing(self):
        return self.upscale(self.clip(), output=self.folder / "none" / "out.mp4"), str(self.folder / "none")

    def output_folder_cannot_be_written(self):
        locked = self.folder / "locked"
        locked.mkdir(mode=0o500)
        if os.access(locked, os.W_OK):
            pytest.skip("this user may write everywhere")
        return self.upscale(self.clip(), output=locked / "out.mp4"), "locked: cannot be written"

    def output_ending_is_unknown(self):
        return self.upscale(self.clip(), output=self.folder / "out.xyz"), "cannot write .xyz"

    def output_without_an_ending(self):
        return self.upscale(self.clip(), output=self.folder / "out"), ".mp4, .m4v, .mov, .mkv, .webm"

    def unknown_preset(self):
        return self.upscale(self.clip(), "-p", "best"), "preset 'best'"

    def unknown_key(self):
        path = self.folder / "own.toml"
        path.write_text("nois_level = 3\n")
        return self.upscale(self.clip(), "-p", str(path)), "'nois_level'; did you mean 'noise_level'"

    def missing_preset_file(self):
        return self.upscale(self.clip(), "-p", "none.toml"), "none.toml"

    def preset(self, text: str, named: str):
        path = self.folder / "own.toml"
        path.write_text(text)
        return self.upscale(self.clip(), "-p", str(path)), named

    def preset_with_a_number_of_5000_digits(self):
        return self.preset("steps = " + "9" * 5000, "own.toml: cannot be read: Exceeds the limit")

    def preset_with_a_hexadecimal_number_of_9000_digits(self):
        return self.preset("seed = 0x" + "f" * 9000, "own.toml: seed = a number of thousands of digits: expected 0 to")

    def preset_with_a_time_that_no_float_holds(self):
        return self.preset("start = 1" + "0" * 400, "own.toml: start = 1")

    def preset_of_lists_in_lists(self):
        return self.preset("steps = " + "[" * 20_000, "own.toml: cannot be read: ")

    def preset_that_is_large(self):
        return self.preset("# " + "x" * (1 << 20), "own.toml: cannot be read: is no file, or one of more than")

    def preset_that_is_a_pipe(self):
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no pipes with a name")
        os.mkfifo(self.folder / "pipe.toml")
        return self.upscale(self.clip(), "-p", str(self.folder / "pipe.toml")), "pipe.toml: cannot be read: is no file"

    def memory_that_no_machine_has(self):
        return self.upscale(self.clip(), "--max-memory", "9" * 400 + "G"), "max_memory = '999"

    def subtitles_in_two_files(self):
        path = self.clip().with_suffix(".idx")
        path.write_text("# VobSub index file, v7\nsize: 720x576\n")
        path.with_suffix(".sub").write_bytes(self.clip("other.mp4").read_bytes())
        return self.upscale(path), "clip.idx: is damaged, or is a list of other files, which is not followed"

    def unknown_codec(self):
        return self.upscale(self.clip(), "--codec", "libx999"), "codec = 'libx999'"

    def audio_codec(self):
        return self.upscale(self.clip(), "--codec", "aac"), "codec = 'aac'"

    def codec_that_the_container_cannot_hold(self):
        arguments = [
            "upscale",
            str(self.clip()),
            "-o",
            str(self.folder / "out.mov"),
            "--model",
            "nearest",
            "-c",
            "ffv1",
        ]
        return arguments, "codec = 'ffv1': mov"

    def codec_that_webm_cannot_hold(self):
        return self.upscale(self.make_clip(sound=False), "-c", "libx264", output=self.folder / "out.webm"), "'libx264'"

    def unknown_encoder_option(self):
        return self.upscale(self.clip(), "-e", "presset=fast"), "presset"

    def encoder_option_out_of_range(self):
        return self.upscale(self.clip(), "-e", "preset=quickest"), "preset=quickest"

    def pixel_format(self):
        return self.upscale(self.clip(), "--pix-fmt", "yuv999p"), "yuv999p"

    def scale_is_no_number(self):
        return self.upscale(self.clip(), "--scale", "nan"), "scale = nan"

    def scale_is_0(self):
        return self.upscale(self.clip(), "--scale", "0"), "scale = 0"

    def scale_is_negative(self):
        return self.upscale(self.clip(), "--scale", "-1"), "scale = -1"

    def crf_out_of_range(self):
        return self.upscale(self.clip(), "--crf", "99"), "crf = 99"

    def duration_is_0(self):
        return self.upscale(self.clip(), "--duration", "0"), "duration = 0"

    def start_past_the_end(self):
        return self.upscale(self.clip(), "--start", "77"), "start = 77"

    def device_that_is_not_there(self):
        if torch.cuda.is_available():
            pytest.skip("this machine has the device")
        return self.upscale(self.clip(), "--device", "cuda"), "device = 'cuda'"

    def nonsense_device(self):
        return self.upscale(self.clip(), "--device", "abacus"), "device = 'abacus'"

    def unknown_model(self):
        return self.upscale(self.clip(), "--model", "x5"), "model = 'x5'"

    def model_that_is_a_pipe(self):
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no pipes with a name")
        os.mkfifo(self.folder / "weights.safetensors")
        model = str(self.folder / "weights.safetensors")
        return self.upscale(self.clip(), "--model", model), "weights.safetensors': is a pipe or a device"

    def model_folder_that_lacks_a_part(self):
        folder = self.folder / "model"
        shutil.copytree(Path(vidup.__file__).parent / "mini" / "checkpoint", folder)
        shutil.rmtree(folder / "vae")
        return self.upscale(self.clip(), "--model", str(folder)), "the folder lacks vae"


MAKERS = ("clip", "upscale", "truncated", "preset")
KINDS = [name for name in vars(Bad) if name not in MAKERS and not name.startswith("_")]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input(kind: str, make_clip: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bad = Bad(tmp_path, make_clip)
    arguments, named = getattr(bad, kind)()
    before = {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}
    capsys.readouterr()  # what the encoders of the clips printed
    assert main(arguments) in (1, 2)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    # The line that tells what will be done comes before the model is loaded.
    told = [line for line in lines if line.startswith((f"vidup: {tmp_path / 'clip.mp4'}: 64x48 ", "vidup: note: "))]
    assert [line for line in lines if line not in told] == lines[-1:]
    assert lines[-1].startswith("vidup: ") and named in lines[-1]
    assert captured.out == ""
    assert {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    "options", [["--scale", "wide"], ["--steps", "2.5"], ["--sampler", "euler"], ["--nonsense"], ["-e", "preset"], []]
)
def test_options_that_cannot_be_parsed(options: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as done:
        main(["upscale", *(["in.mp4", *options] if options else [])])
    assert done.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(("vidup upscale: ", "vidup: ")) and line.endswith("--help lists the options")
    assert (options[-1] if options else "INPUT") in line


def test_options_that_nearly_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["upscale", "in.mp4", "--modle", "mini"])
    assert capsys.readouterr().err == "vidup: unrecognized arguments: --modle mini; did you mean --model?\n"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-dash.mp4").touch()
    monkeypatch.setattr("sys.argv", ["vidup", "upscale", "-dash.mp4"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.endswith("; a file whose name begins with - is given as ./-NAME\n")
