"""Whole jobs from Python: progress, cancelling, failures, still images, the library's names, settings."""

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import pictures
from PIL import Image

import vidup
from vidup import Color, ConfigError, EngineError, Frame, MediaError, Progress, Runtime, Settings, Upscaler
from vidup.engines.interpolate import Interpolation
from vidup.job import default_output
from vidup.options import from_options
from vidup.presets import preset_names

NEAREST = Settings(model="nearest", scale=2, encoder_options={"preset": "ultrafast"})


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vidup")]


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if ".vidup" in path.name or path.suffix in (".part", ".seg"))


class Cancelled(Exception):
    """What a caller's own code raises."""


def test_progress(make_clip: Callable[..., Path]):
    source, events = make_clip(), []
    output = vidup.upscale(source, source.with_name("out.mp4"), NEAREST, on_progress=events.append).output
    assert all(isinstance(event, Progress) for event in events)
    states = [event.state for event in events]
    assert states == ["loading", *["upscaling"] * 13, "joining", "verifying", "done"]
    assert [event.frame for event in events] == [0, *range(13), 12, 12, 12]
    assert {event.frames for event in events} == {12} and {event.output for event in events} == {str(output)}
    assert events[0].eta is None and events[0].fps == 0
    assert all(event.eta is not None and event.eta >= 0 and event.fps > 0 for event in events[2:])
    assert events[-1].eta == 0 and output.is_file()
    assert left_over(source.parent) == [] and threads() == []


def test_a_queue_tells_the_file_in_hand(make_clip: Callable[..., Path], tmp_path: Path):
    sources, events = [make_clip("one.mp4"), make_clip("two.mp4")], []
    outputs = [tmp_path / "1.mp4", tmp_path / "2.mp4"]
    vidup.upscale_files(list(zip(sources, outputs, strict=True)), NEAREST, on_progress=events.append)
    told = [Path(event.output).name for event in events if event.state == "upscaling" and event.frame]
    assert told[0] == "1.mp4" and told[-1] == "2.mp4" and told == sorted(told) and len(told) == 24
    assert {(event.frames, event.file_frames) for event in events} == {(24, 12)}
    assert [event.file_frame for event in events if event.state == "upscaling" and event.frame] == [*range(1, 13)] * 2
    ended = [(Path(event.output).name, event.file_frame, event.left) for event in events if event.state == "done"]
    assert ended == [("1.mp4", 12, 1), ("2.mp4", 12, 0)]


def test_a_queue_tells_which_file_failed(make_clip: Callable[..., Path], tmp_path: Path):
    (tmp_path / "no.mp4").write_bytes(b"no video")
    sources, events = [tmp_path / "no.mp4", make_clip(), tmp_path / "none.mp4"], []
    outcomes = vidup.upscale_files(
        [(one, tmp_path / f"{index}.mp4") for index, one in enumerate(sources)], NEAREST, on_progress=events.append
    )
    ended = {Path(event.output).name: event for event in events if event.state in ("done", "failed")}
    assert {name: event.state for name, event in ended.items()} == {
        "0.mp4": "failed",
        "1.mp4": "done",
        "2.mp4": "failed",
    }
    assert [ended[f"{index}.mp4"].error for index in (0, 2)] == [str(outcomes[0].error), str(outcomes[2].error)]
    assert (events[-1].left, events[-1].frame, events[-1].frames) == (0, 12, 12)
    with pytest.raises(MediaError):
        vidup.upscale(sources[0], tmp_path / "out.mp4", NEAREST, on_progress=events.append)
    assert (events[-1].state, events[-1].left) == ("failed", 0)


def test_a_queue_does_not_name_a_file_that_failed(
    make_clip: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    enlarge, calls, events = Interpolation.__call__, [], []

    def fail_first(self, clip, place, choice):
        calls.append(clip)
        if len(calls) == 1:
            raise EngineError("no")
        return enlarge(self, clip, place, choice)

    monkeypatch.setattr(Interpolation, "__call__", fail_first)
    files = [(make_clip(f"{name}.mp4"), tmp_path / f"out{name}.mp4") for name in "12"]
    outcomes = vidup.upscale_files(files, NEAREST, on_progress=events.append)
    assert [outcome.error is None for outcome in outcomes] == [False, True]
    told = {Path(event.output).name for event in events if event.state == "upscaling" and event.frame}
    assert told == {"out2.mp4"}


def test_compiling_is_told(make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    needs = Interpolation.needs.fget
    assert needs is not None
    compiled = property(lambda self: dataclasses.replace(needs(self), compiled=True))
    monkeypatch.setattr(Interpolation, "needs", compiled)
    source, events = make_clip(), []
    output = source.with_name("out.mp4")
    vidup.upscale(source, output, NEAREST, runtime=Runtime(batch=4), on_progress=events.append)
    states = [event.state for event in events]
    assert states == ["loading", "compiling", *["upscaling"] * 12, "joining", "verifying", "done"]
    # The first batch, whose frames come at once, is no measure of speed.
    assert all(event.fps == 0 for event in events[:6]) and all(event.fps > 0 for event in events[6:])


def test_the_output_is_not_there_before_it_is_whole(make_clip: Callable[..., Path]):
    source = make_clip()
    output = source.with_name("out.mp4")
    seen = {}
    vidup.upscale(source, output, NEAREST, on_progress=lambda event: seen.setdefault(event.state, output.exists()))
    assert seen == {"loading": False, "upscaling": False, "joining": False, "verifying": False, "done": True}


@pytest.mark.parametrize("existing", [None, b"what was there before"])
@pytest.mark.parametrize(
    ("state", "frame"), [("loading", 0), ("upscaling", 0), ("upscaling", 5), ("joining", 12), ("verifying", 12)]
)
def test_cancelling(make_clip: Callable[..., Path], state: str, frame: int, existing: bytes | None):
    source = make_clip()
    output = source.with_name("out.mp4")
    if existing is not None:
        output.write_bytes(existing)
    seen = []

    def cancel(event: Progress) -> None:
        seen.append(event)
        if (event.state, event.frame) == (state, frame):
            raise Cancelled

    with pytest.raises(Cancelled) as _caught:  # held, with all that its traceback holds
        vidup.upscale(source, output, NEAREST, runtime=Runtime(overwrite=True), on_progress=cancel)
    assert (seen[-1].state, seen[-1].frame) == (state, frame)
    assert (output.read_bytes() if output.exists() else None) == existing
    kept = ["00000.seg", "out.mp4.vidup"] if frame == 12 else []  # what is done is kept, and nothing else
    assert left_over(source.parent) == kept and threads() == []


def test_ctrl_c(make_clip: Callable[..., Path]):
    def interrupt(event: Progress) -> None:
        if event.frame == 3:
            raise KeyboardInterrupt

    source = make_clip()
    with pytest.raises(KeyboardInterrupt):
        vidup.upscale(source, source.with_name("out.mp4"), NEAREST, on_progress=interrupt)
    assert sorted(path.name for path in source.parent.iterdir()) == ["clip.mp4"] and threads() == []


@pytest.mark.parametrize("error", [EngineError("out of memory"), RuntimeError("a bug")])
def test_an_engine_that_fails_midway(make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, error: Exception):
    """No frame is dropped, repeated or blanked instead: the job stops with what the engine said."""
    calls, enlarge = [], Interpolation.__call__

    def fail_in_the_second_clip(self, clip, place, choice):
        calls.append(place)
        if len(calls) == 2:
            raise error
        return enlarge(self, clip, place, choice)

    monkeypatch.setattr(Interpolation, "__call__", fail_in_the_second_clip)
    source = make_clip(times=tuple(range(0, 60 * 512, 512)))  # more frames than wait in queues
    with pytest.raises(EngineError, match=str(error)) as _caught:
        vidup.upscale(source, source.with_name("out.mp4"), NEAREST)
    assert len(calls) == 2
    assert sorted(path.name for path in source.parent.iterdir()) == ["clip.mp4"] and threads() == []


def test_overwrite(make_clip: Callable[..., Path]):
    source = make_clip()
    output = source.with_name("out.mp4")
    output.write_bytes(b"old")
    with pytest.raises(ConfigError, match=r"out\.mp4: exists.*-y"):
        vidup.upscale(source, output, NEAREST)
    assert output.read_bytes() == b"old"
    assert vidup.upscale(source, output, NEAREST, runtime=Runtime(overwrite=True)).output == output
    assert len(pictures(output)) == 12


def test_height_instead_of_a_scale(make_clip: Callable[..., Path]):
    source = make_clip(times=(0, 512), sound=False)
    settings = Settings(model="bilinear", height=120, encoder_options={"preset": "ultrafast"})
    assert pictures(vidup.upscale(source, None, settings).output)[0].shape == (120, 160, 3)
    assert source.with_name("clip_120p.mp4").is_file()
    with pytest.raises(ConfigError, match="height = 32"):
        vidup.upscale(source, source.with_name("small.mp4"), Settings(model="bilinear", height=32))


PIXELS = np.random.default_rng(0).integers(0, 256, (13, 21, 4), np.uint8)


@pytest.mark.parametrize("ending", [".png", ".tiff", ".bmp"])
def test_a_still_image(tmp_path: Path, ending: str):
    source, output = tmp_path / "photo.png", tmp_path / f"big{ending}"
    Image.fromarray(PIXELS[..., :3]).save(source, dpi=(300, 300))
    assert vidup.upscale(source, output, Settings(model="nearest", scale=3)).output == output
    with Image.open(output) as big:
        assert big.size == (63, 39) and big.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(big), PIXELS[..., :3].repeat(3, 0).repeat(3, 1))
        assert big.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    assert left_over(tmp_path) == []


def test_for_still_images_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said, source = [], tmp_path / "in.png"
    Image.new("RGB", (8, 8)).save(source)
    monkeypatch.setattr(Interpolation, "expect", lambda self, pixels: said.append(pixels))
    vidup.upscale(source, tmp_path / "out.png", NEAREST)
    assert not sum(said)  # and auto compiles for what is expected alone


@pytest.mark.parametrize("ending", [".png", ".webp"])
def test_transparency_is_kept(tmp_path: Path, ending: str):
    pixels = PIXELS.copy()
    pixels[..., 3] = np.where(np.arange(21) < 10, 255, 51)
    source, output = tmp_path / "photo.png", tmp_path / f"big{ending}"
    Image.fromarray(pixels).save(source)
    vidup.upscale(source, output, Settings(model="nearest"))
    with Image.open(output) as big:
        assert big.size == (84, 52) and big.mode == "RGBA"
        alpha = np.asarray(big)[..., 3]
    assert (alpha[:, :30] == 255).all() and (abs(alpha[:, 52:].astype(int) - 51) <= 1).all()


def test_jpeg_in_and_out(tmp_path: Path):
    y, x = np.mgrid[:30, :41]
    smooth = np.stack([5 * x, 8 * y, 3 * (x + y)], -1).astype(np.uint8)
    source = tmp_path / "photo.jpg"
    Image.fromarray(smooth).save(source, quality=95)
    with Image.open(vidup.upscale(source, None, Settings(model="nearest", scale=2)).output) as big:
        assert (big.size, big.format, big.filename) == ((82, 60), "JPEG", str(tmp_path / "photo_x2.jpg"))
        assert np.abs(np.asarray(big)[::2, ::2].astype(int) - smooth).mean() < 6


def test_images_that_are_refused(tmp_path: Path):
    damaged, moving = tmp_path / "damaged.png", tmp_path / "moving.webp"
    Image.fromarray(PIXELS).save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:200])
    frames = [Image.fromarray(PIXELS[..., :3]), Image.fromarray(255 - PIXELS[..., :3])]
    frames[0].save(moving, save_all=True, append_images=frames[1:], lossless=True)
    with pytest.raises(MediaError, match=r"damaged\.png"):
        vidup.upscale(damaged, tmp_path / "out.png", NEAREST)
    with pytest.raises(ConfigError, match=r"out\.jpg: holds one picture, and .*moving\.webp has several"):
        vidup.upscale(moving, tmp_path / "out.jpg", NEAREST)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


def made_by_hand(count: int) -> list[Frame]:
    rng = np.random.default_rng(1)
    return [
        Frame(
            tuple(rng.integers(40, 200, shape, np.uint8) for shape in ((6, 10), (3, 5), (3, 5))),
            "yuv420p", Color(1), pts=7 * index, duration=7, time_base=Fraction(1, 90),
        )
        for index in range(count)
    ]  # fmt: skip


def test_frames_as_a_library():
    frames = made_by_hand(5)
    with Upscaler(Settings(model="nearest", scale=2)) as upscaler:
        large = list(upscaler.frames(iter(frames)))
        again = list(upscaler.frames(frames))
        deep = next(upscaler.frames(frames, "yuv444p10le", Color(9, full_range=True)))
    assert [(f.pts, f.duration, f.time_base) for f in large] == [(f.pts, f.duration, f.time_base) for f in frames]
    for before, after, repeated in zip(frames, large, again, strict=True):
        assert (after.pix_fmt, after.color) == ("yuv420p", Color(1))
        assert [plane.shape for plane in after.planes] == [(12, 20), (6, 10), (6, 10)]
        # Nearest neighbour of RGB whose chroma was interpolated: luma is repeated to the code.
        assert np.abs(after.planes[0].astype(int) - before.planes[0].repeat(2, 0).repeat(2, 1)).max() <= 1
        assert all(np.array_equal(a, b) for a, b in zip(after.planes, repeated.planes, strict=True))
    assert (deep.pix_fmt, deep.color, deep.planes[1].shape) == ("yuv444p10le", Color(9, full_range=True), (12, 20))
    assert deep.planes[0].dtype == np.uint16 and deep.planes[0].max() > 255


def test_frames_are_taken_one_clip_at_a_time():
    taken, made = [], made_by_hand(40)
    size = made[0].planes[0].shape

    def counted() -> Iterator[Frame]:
        for frame in made:
            taken.append(frame.pts)
            yield frame

    with Upscaler(Settings(model="nearest", scale=2)) as upscaler:
        larger = upscaler.frames(counted())
        assert taken == []
        next(larger)
        assert len(taken) == upscaler.choose(*size).batch < 40


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1", "RGBA", "LA", "YCbCr", "RGBX"])
def test_images_of_any_mode(mode: str):
    small = Image.fromarray(PIXELS).convert("RGB").convert(mode)
    expected = {"P": "RGB", "1": "L"}.get(mode, mode)
    with Upscaler(Settings(model="nearest", scale=2)) as upscaler:
        big = upscaler(small)
    assert (big.mode, big.size) == (expected, (42, 26))
    tolerance = 2 if mode == "YCbCr" else 0  # to RGB and back
    np.testing.assert_allclose(
        np.asarray(big)[::2, ::2].astype(int), np.asarray(small.convert(expected)).astype(int), atol=tolerance
    )


def test_an_image_of_16_bits_keeps_its_light():
    ramp = np.linspace(0, 65535, 32).astype(np.uint16)[None].repeat(4, 0)
    with Upscaler(Settings(model="nearest", scale=2)) as upscaler:
        big = np.asarray(upscaler(Image.fromarray(ramp)))
    assert big.dtype == np.uint16 and np.array_equal(big[::2, ::2], ramp)


@pytest.mark.parametrize(
    ("source", "settings", "expected"),
    [
        ("a/clip.mp4", {}, "a/clip_x4.mp4"),
        ("clip.mov", {}, "clip_x4.mov"),
        ("clip.MKV", {"scale": 2}, "clip_x2.mkv"),
        ("clip.webm", {"scale": 1.5}, "clip_x1.5.webm"),
        ("clip.avi", {}, "clip_x4.mkv"),
        ("clip", {}, "clip_x4.mkv"),
        ("a.b.ts", {"height": 1080}, "a.b_1080p.mkv"),
        ("photo.png", {}, "photo_x4.png"),
    ],
)
def test_default_output(source: str, settings: dict, expected: str):
    assert default_output(Path(source), Settings(**settings)) == Path(expected)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Settings, {"model": 3}, r"model = 3: expected a text"),
        (Settings, {"steps": 0}, r"steps = 0: expected 1 to 1000"),
        (Settings, {"steps": 2.5}, r"steps = 2\.5: expected a whole number"),
        (Settings, {"steps": True}, r"steps = True"),
        (Settings, {"noise_level": -1}, r"noise_level = -1"),
        (Settings, {"seed": -1}, r"seed = -1"),
        (Settings, {"guidance_scale": float("nan")}, r"guidance_scale = nan"),
        (Settings, {"guidance_scale": float("inf")}, r"guidance_scale = inf"),
        (Settings, {"guidance_scale": "9"}, r"guidance_scale = '9': expected a number"),
        (Settings, {"sampler": "euler"}, r"sampler = 'euler': expected one of dpmpp_2m, unipc, ddim"),
        (Settings, {"dtype": "int8"}, r"dtype = 'int8'"),
        (Settings, {"scale": 0}, r"scale = 0: expected 1 to 16"),
        (Settings, {"scale": 17}, r"scale = 17"),
        (Settings, {"height": 1}, r"height = 1"),
        (Settings, {"scale": 2, "height": 100}, r"scale = 2 and height = 100"),
        (Settings, {"tile": 64}, r"tile = 64: must be more than twice tile_overlap"),
        (Settings, {"tile_overlap": 8}, r"tile_overlap = 8"),
        (Settings, {"crf": 99}, r"crf = 99"),
        (Settings, {"encoder_options": {"preset": 3}}, r"encoder_options = .*: expected a table of texts"),
        (Settings, {"start": -1.0}, r"start = -1\.0"),
        (Settings, {"duration": 0}, r"duration = 0"),
        (Runtime, {"device": 0}, r"device = 0: expected a text"),
        (Runtime, {"batch": -1}, r"batch = -1"),
        (Runtime, {"overwrite": "yes"}, r"overwrite = 'yes': expected true or false"),
    ],
)
def test_values_that_are_refused(kind: type, values: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        kind(**values)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("x2", ("ddim", 20, 0.0)),
        ("stabilityai/sd-x2-latent-upscaler", ("ddim", 20, 0.0)),
        ("mini", ("ddim", 1, 1.0)),
    ],
)
def test_a_model_brings_its_preset_along(model: str, expected: tuple[str, int, float], tmp_path: Path):
    found = from_options(Settings, {"model": model})
    assert (found.sampler, found.steps, found.guidance_scale) == expected
    assert from_options(Settings, {"model": model, "steps": 7}).steps == 7
    assert from_options(Settings, {"model": model}, "fast").steps == 10
    (tmp_path / "own.toml").write_text('codec = "ffv1"')
    with_codec = from_options(Settings, {"model": model}, str(tmp_path / "own.toml"))
    assert (with_codec.steps, with_codec.codec) == (found.steps, "ffv1")
    (tmp_path / "own.toml").write_text(f'model = "{model}"')
    assert Settings.preset(tmp_path / "own.toml") == found
    with pytest.raises(ConfigError, match="model"):
        Settings.preset("mini", model=[model])
    (tmp_path / "own.toml").write_text(f'models = ["{model}"]')  # those that ship alone are brought along
    with pytest.raises(ConfigError, match="unknown key 'models'"):
        Settings.preset(tmp_path / "own.toml")


def test_presets(tmp_path: Path):
    assert preset_names() == ["balanced", "fast", "mini", "preview", "reference", "x2"]
    assert Settings.preset("balanced") == Settings()
    assert Settings.preset("mini").model == "mini"
    reference = Settings.preset("reference", prompt="a harbour")
    assert (reference.sampler, reference.steps, reference.guidance_scale, reference.noise_level) == ("ddim", 75, 9, 20)
    assert reference.prompt == "a harbour" and Settings.preset("reference", steps=3).steps == 3
    own = tmp_path / "own.toml"
    own.write_text('model = "bicubic"\nscale = 3\n[encoder_options]\npreset = "slow"\n')
    assert Settings.preset(own) == Settings(model="bicubic", scale=3, encoder_options={"preset": "slow"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("promt = 'x'", r"own\.toml: unknown key 'promt'; did you mean 'prompt'"),
        ("xyzzy = 1", r"unknown key 'xyzzy'; the keys are model, "),
        ("steps = 0", r"own\.toml: steps = 0"),
        ("steps = 'many'", r"steps = 'many': expected a whole number"),
        ("steps =", r"own\.toml: cannot be read"),
    ],
)
def test_presets_that_are_refused(tmp_path: Path, text: str, message: str):
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Settings.preset(own)


def test_overrides_that_no_one_knows():
    with pytest.raises(ConfigError, match=r"unknown key 'noise_lvl'; did you mean 'noise_level'"):
        Settings.preset("balanced", noise_lvl=3)
    with pytest.raises(
        ConfigError, match=r"preset 'best' is not known: take one of balanced, fast, mini, preview, reference, x2"
    ):
        Settings.preset("best")


def test_public_names():
    for name in vidup.__all__:
        assert getattr(vidup, name) is not None
    assert set(vidup.__all__) <= set(dir(vidup))
    assert set(vidup._HOMES) == set(vidup.__all__) and " ".join(sorted(vidup.__all__)) == (
        "Color ConfigError EngineError Frame MediaError Progress Receipt ResumeError Runtime Settings Stopped"
        " Upscaler VerifyError Video VidupError compare open plan upscale upscale_files verify"
    )
    with pytest.raises(AttributeError, match="no attribute 'downscale'"):
        _ = vidup.downscale
    errors = [getattr(vidup, name) for name in vidup.__all__ if name.endswith("Error")]
    assert len(errors) >= 6 and all(issubclass(error, vidup.VidupError) for error in errors)


def test_import_loads_nothing_heavy():
    code = (
        "import sys, vidup, vidup.cli; print(sorted({'torch', 'av', 'diffusers', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
