"""What is carried from frame to frame: what is computed, what it looks like, and that segments begin on their own."""

import logging
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import vidup
from vidup import Color, Frame, MediaError, Runtime, Settings, Upscaler
from vidup.engines import LEAD_IN, Choice, Needs, Place, flow, windows, with_carried
from vidup.engines.planner import Planner
from vidup.engines.relay import HALO, Follower, Relay
from vidup.job import pace
from vidup.media import decoding, probing
from vidup.picture.geometry import Turn
from vidup.picture.resample import anchor, resize

HEIGHT, WIDTH = 64, 96


def texture(height: int, width: int, seed: int = 0, coarse: int = 5) -> torch.Tensor:
    drawn = torch.rand(1, 3, height // coarse + 2, width // coarse + 2, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(drawn, (height, width), mode="bicubic", align_corners=False)[0].clamp(0, 1)


class Inventor:
    """Enlarges four times, and invents grain that stays on the glass; counts what it is asked for."""

    def __init__(self) -> None:
        self.windows: list[tuple[int, int, int, int]] = []
        grain = torch.randn(1, 4 * HEIGHT, 4 * WIDTH, generator=torch.Generator().manual_seed(9))
        self.grain = 0.08 * grain

    def __call__(self, clip: torch.Tensor, place: Place) -> torch.Tensor:
        height, width = clip.shape[-2:]
        self.windows += [(place.top, place.left, height, width)] * len(clip)
        above = functional.interpolate(clip, scale_factor=4, mode="bicubic", align_corners=False)
        rows = slice(4 * place.top, 4 * (place.top + height))
        columns = slice(4 * place.left, 4 * (place.left + width))
        return anchor(above + self.grain[:, rows, columns], clip, 5)

    @property
    def pixels(self) -> int:
        return sum(height * width for *_, height, width in self.windows)


def carried(
    frames: list[torch.Tensor],
    batch: int = 1,
    refresh: int = 0,
    steady: bool = False,
    number: int = 0,
    span: tuple[int, int] | None = None,
) -> tuple[list[torch.Tensor], Inventor, Relay]:
    inventor = Inventor()
    follower, relay = Follower(number, 2.0, refresh, span), Relay(inventor, 4, 5, steady)
    results: list[torch.Tensor] = []
    for first in range(0, len(frames), batch):
        clip = frames[first : first + batch]
        results += list(relay(torch.stack(clip), [follower(frame) for frame in clip]))
    return results, inventor, relay


def pan(count: int, step: int = 2, seed: int = 0) -> list[torch.Tensor]:
    whole = texture(HEIGHT, WIDTH + step * count, seed)
    return [whole[:, :, step * index : step * index + WIDTH].contiguous() for index in range(count)]


def change(results: list[torch.Tensor], step: int) -> float:
    """Mean square, in codes, of what changes along a pan beside the motion: flicker."""
    inner = slice(24, -24)
    moved = [
        (after[:, inner, 24 : -24 - 4 * step] - before[:, inner, 24 + 4 * step : -24]).square().mean()
        for before, after in zip(results, results[1:], strict=False)
    ]
    return 255**2 * float(torch.stack(moved).mean())


def test_what_is_invented_moves_with_the_picture():
    frames = pan(8)
    inventor = Inventor()
    alone = [inventor(frame[None], Place(height=HEIGHT, width=WIDTH))[0] for frame in frames]
    results, asked, relay = carried(frames)
    assert change(results, 2) < 0.1 * change(alone, 2)
    assert asked.pixels < 0.6 * len(frames) * HEIGHT * WIDTH
    assert relay.computed == asked.pixels and relay.total == len(frames) * HEIGHT * WIDTH
    for frame, result in zip(frames, results, strict=True):
        assert (resize(result[None], frame.shape[-2:])[0] - frame).abs().mean() < 1 / 255


def test_what_was_invented_is_kept_not_blurred_away():
    results, _, _ = carried(pan(12), refresh=12)
    energy = [float((one[..., 1:] - one[..., :-1]).abs().mean()) for one in results]
    assert min(energy[1:]) > 0.65 * energy[0]  # what is invented anew each time averages out where it is blended in


def test_a_still_shot_does_not_change_and_costs_one_frame():
    frame = texture(HEIGHT, WIDTH)
    results, asked, _ = carried([frame] * 10, refresh=12)
    assert all(torch.equal(result, results[0]) for result in results)
    assert asked.pixels == HEIGHT * WIDTH


def test_a_cut_begins_anew_and_a_flash_does_not():
    first, second = pan(3), pan(3, seed=5)
    flash = [torch.full((3, HEIGHT, WIDTH), 0.97)]
    _, asked, _ = carried([*first, *second])
    assert asked.windows.count((0, 0, HEIGHT, WIDTH)) >= 2
    whole = pan(6)
    results, asked, _ = carried([*whole[:3], *flash, *whole[3:]])
    assert asked.windows.count((0, 0, HEIGHT, WIDTH)) == 2  # the first frame, and the flash
    assert change([results[2], results[4]], 2) < 0.2 * change([results[2], Inventor()(whole[3][None], Place())[0]], 2)


def test_a_hidden_place_is_computed_with_a_halo_around_it():
    """Something passes over a still picture: what it uncovers is new, the rest is not asked for."""
    ground, thing = texture(HEIGHT, WIDTH), texture(16, 16, seed=7, coarse=2)
    frames = []
    for index in range(6):
        frame = ground.clone()
        frame[:, 24:40, 8 + 6 * index : 24 + 6 * index] = thing
        frames.append(frame)
    _, asked, _ = carried(frames)
    assert 0 < asked.pixels - HEIGHT * WIDTH < 0.5 * 5 * HEIGHT * WIDTH
    for top, left, height, width in asked.windows[1:]:
        assert height >= 16 + HALO and width >= 16 + HALO
        assert top % 8 == left % 8 == 0


def test_motion_is_looked_for_where_something_changed(monkeypatch: pytest.MonkeyPatch):
    ground, searched = texture(160, 240), []
    frames = [ground.clone() for _ in range(3)]
    for index, frame in enumerate(frames):
        frame[:, 40:60, 100 + 2 * index : 120 + 2 * index] = texture(20, 20, seed=7, coarse=3)
    both_ways = flow.both_ways
    monkeypatch.setattr(flow, "both_ways", lambda *two: searched.append(two[0].shape) or both_ways(*two))
    follower = Follower(0, 2.0, 0)
    motions = [step.motion for step in map(follower, frames) if step.motion is not None]
    assert len(motions) == len(searched) == 2
    assert all(height * width < 0.4 * 160 * 240 for _, height, width in searched)
    for motion in motions:
        assert (motion.flow[0, 45:55, 107:115] + 2).abs().mean() < 0.2
        assert not motion.flow[:, :8].any() and motion.trust[:8].min() == 1


def test_windows_leave_no_seam():
    """The gradient across a window's border is that beside it."""
    frames = pan(4)
    results, asked, _ = carried(frames, refresh=1)
    assert len(asked.windows) >= 4
    gradient = torch.stack(results[1:]).diff(dim=-1).abs().mean((0, 1, 2))
    typical = gradient[32:-32].median()
    assert (gradient[32:-32] < 1.5 * typical).all()


@pytest.mark.parametrize("length", [20, 5])
def test_a_segment_ends_as_the_next_one_begins(length: int):
    """What a segment shows at its end is what the next one, which sees the last frames alone, carries on from."""
    frames, begin = pan(27), 0 if length == 20 else 15
    first = max(0, begin - LEAD_IN)
    ours, _, _ = carried(frames[first:20], refresh=12, number=first, span=(begin, 20))
    theirs, _, _ = carried(frames[20 - LEAD_IN :], refresh=12, number=20 - LEAD_IN)
    alone, _, _ = carried(frames, refresh=12)
    torch.testing.assert_close(ours[-1], theirs[LEAD_IN - 1], atol=1e-5, rtol=0)
    usual = change(alone[18:22], 2)
    assert change([ours[-1], theirs[LEAD_IN]], 2) < 1.05 * usual
    assert change([alone[19], theirs[LEAD_IN]], 2) > 2 * usual  # as it would be without


@pytest.mark.parametrize("batch", [2, 3])
def test_batches_decide_nothing(batch: int):
    frames = [*pan(5), *pan(4, seed=5)]
    one, _, _ = carried(frames, refresh=12)
    many, _, _ = carried(frames, batch, refresh=12)
    torch.testing.assert_close(torch.stack(many), torch.stack(one), atol=1e-5, rtol=0)


def test_what_waits_elsewhere_gives_the_same_pictures():
    """Offloaded, the device holds nothing of what is carried while the model works."""
    frames = [*pan(3), *pan(2, seed=5)]
    plain, _, _ = carried(frames, refresh=12)
    follower, where = Follower(0, 2.0, 12), []
    relay = Relay(Inventor(), 4, 5, home=torch.device("cpu"))
    relay._waiting = lambda result: where.append(result.device) or result.clone()  # type: ignore[method-assign]
    waited = [next(iter(relay(frame[None], [follower(frame)]))) for frame in frames]
    assert len(where) == len(frames)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(plain, waited, strict=True))


def test_offloaded_what_is_carried_is_not_planned_beside_the_model():
    needs = Needs(torch.device("cuda"), 0.0, window=1e5, weights=(10**9, 10**8))
    plans = {}
    for offload in (False, True):
        for temporal in ("off", "relay"):
            settings = Settings.preset("mini", temporal=temporal)
            planner = Planner(with_carried(needs, settings, 4), settings, Runtime(offload=offload, max_memory="40G"))
            plans[offload, temporal] = planner.memory(Choice(1, 128), 720, 1280)
    result = 3 * 4 * 16 * 720 * 1280
    assert plans[False, "relay"] - plans[False, "off"] > 5 * result
    assert plans[True, "relay"] == plans[True, "off"]


def test_frames_stay_as_they_are_where_a_model_keeps_their_size():
    frames, follower = torch.stack(pan(3)), Follower(0, 2.0, 0)
    before = frames.clone()
    results = list(Relay(lambda clip, place: clip + 0.05, 1, 0)(frames, [follower(frame) for frame in frames]))
    assert torch.equal(frames, before)
    assert (results[2] - frames[2]).mean() > 0.03


def test_steady_computes_every_frame_and_changes_less():
    frames = pan(8)
    inventor = Inventor()
    alone = [inventor(frame[None], Place(height=HEIGHT, width=WIDTH))[0] for frame in frames]
    results, asked, _ = carried(frames, steady=True)
    assert asked.pixels == len(frames) * HEIGHT * WIDTH
    assert change(results, 2) < 0.3 * change(alone, 2)


def video(frames: list[torch.Tensor]) -> list[Frame]:
    color = Color(0, full_range=True)
    codes = [(frame * 255).round().to(torch.uint8).numpy() for frame in frames]
    return [
        Frame((c[1], c[2], c[0]), "gbrp", color, pts=index, time_base=Fraction(1, 25)) for index, c in enumerate(codes)
    ]


@pytest.fixture(scope="module")
def upscaler():
    with Upscaler(Settings.preset("mini"), Runtime(device="cpu")) as made:
        yield made


def test_frames_carry_and_each_call_begins_anew(upscaler: Upscaler):
    frames = video(pan(5))
    whole = [frame.planes[0] for frame in upscaler.frames(frames)]
    (alone,) = upscaler.frames(frames[4:])
    assert not np.array_equal(alone.planes[0], whole[4])
    begun, again = upscaler.frames(iter(frames)), upscaler.frames(iter(frames))  # neither knows of the other
    both = [(next(begun).planes[0], next(again).planes[0]) for _ in frames]
    assert all(np.array_equal(one, other) for one, other in both)
    assert all(np.array_equal(mine, theirs) for mine, (theirs, _) in zip(whole, both, strict=True))


def test_equal_planes_are_not_computed_again(upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch):
    converted: list[int] = []
    to_rgb = vidup.picture.color.to_rgb
    monkeypatch.setattr("vidup.picture.color.to_rgb", lambda *given: converted.append(1) or to_rgb(*given))
    frame = video(pan(1))[0]
    same = [Frame(tuple(map(np.copy, frame.planes)), "gbrp", frame.color, pts=index) for index in range(5)]
    results = list(upscaler.frames(same))
    assert len(converted) == 1
    assert all(np.array_equal(one.planes[0], results[0].planes[0]) for one in results)
    assert [one.pts for one in results] == list(range(5))


@pytest.mark.parametrize("compiles", [False, True])
def test_how_much_will_be_computed_is_found_by_planning_alone(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch, compiles: bool
):
    monkeypatch.setattr(Upscaler, "compiles", compiles)
    frames = pan(5)
    pictures = video([*frames, frames[-1]])
    seen = pace.planned(pictures, upscaler.settings, Turn(), 7, windows.fixed if compiles else None)
    upscaler.reset(7)
    assert len(list(upscaler.frames(pictures))) == 6
    computed, total = upscaler.computed
    assert seen and seen.frames == 5 and 0.05 < seen.computed < 0.9
    assert (1 + 5 * seen.computed) / 6 == pytest.approx(computed / total)  # the first frame is computed whole


def test_of_a_still_shot_nothing_will_be_computed_and_of_noise_and_cuts_all():
    def share(frames: list[torch.Tensor]) -> float | None:
        seen = pace.planned(video(frames), Settings.preset("mini"), Turn())
        return seen and seen.computed

    assert share(pan(1) * 5) == 0
    assert share([texture(HEIGHT, WIDTH, seed) for seed in range(4)]) == 1
    assert share([texture(HEIGHT, WIDTH, seed, coarse=1) for seed in range(4)]) == 1
    assert share(pan(1)) is None


def test_work_of_a_job_has_its_first_frames_and_those_at_borders():
    settings = Settings.preset("mini", segment_frames=10)
    assert pace.whole_frames(settings, 25, None) == 25
    assert pace.whole_frames(settings, 10, 0.5) == 1 + 0.5 * 9
    assert pace.whole_frames(settings, 25, 0.5) == 5 + 0.5 * (20 + 2 * LEAD_IN)


def test_a_plan_says_how_much_will_be_computed(
    make_clip: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vidup.engines.load", lambda *given: pytest.fail("a model was loaded"))
    whole = (texture(48, 64) * 255).byte().permute(1, 2, 0).numpy()
    source = make_clip("still.mkv", codec="ffv1", sound=False, draw=lambda *given: whole)
    found = vidup.plan(source, settings="mini")
    assert found.computed == 0 == found.table["computed"]
    assert "about 0 % of the pixels will be computed, the rest is carried along the motion" in str(found)
    monkeypatch.setattr(pace, "QUICK", 48 * 64 * 2)
    large = vidup.plan(source, settings="mini")
    assert large.computed is None and "vidup bench --input" in str(large)

    def fails(*given: object) -> object:
        raise MediaError("it is damaged")

    monkeypatch.setattr(pace, "QUICK", 10**9)
    with monkeypatch.context() as patch:
        patch.setattr("vidup.job.pace.decoding.decode", fails)
        damaged = vidup.plan(source, settings="mini")
    assert damaged.computed is None and any("it is damaged" in note for note in damaged.notes)
    alone = vidup.plan(source, settings=Settings.preset("mini", temporal="off"))
    assert alone.computed is None and "  motion " not in str(alone)
    assert not pace.is_carried(Settings.preset("mini", temporal="steady"))
    assert not pace.is_carried(Settings(model="nearest"))


def test_off_takes_each_frame_alone():
    frames = video(pan(3))
    with Upscaler(Settings.preset("mini", temporal="off"), Runtime(device="cpu")) as alone:
        together = [frame.planes[0] for frame in alone.frames(frames)]
        single = [next(iter(alone.frames([frame]))).planes[0] for frame in frames]
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(together, single, strict=True))


def test_a_segment_begins_as_the_one_before_it_ends(
    make_clip: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Led in by the frames before it, and the one before fading into it, a segment's border does not show."""
    whole = texture(48, 64 + 34)

    def draw(index: int, width: int, height: int) -> np.ndarray:
        return (whole[:, :height, index : index + width] * 255).byte().permute(1, 2, 0).numpy()

    source = make_clip("pan.mkv", times=range(0, 34 * 40, 40), time_base=Fraction(1, 1000), sound=False, draw=draw)
    pictures = {}
    for length in (96, 17):
        output = tmp_path / f"{length}.mkv"
        settings = Settings.preset("mini", segment_frames=length, codec="ffv1")
        events: list[vidup.Progress] = []
        with caplog.at_level(logging.INFO, "vidup"):
            vidup.upscale(source, output, settings, runtime=Runtime(device="cpu"), on_progress=events.append)
        assert 0 < events[-1].computed < 1
        assert f"{events[-1].computed:.0%} of the pixels computed" in caplog.text
        pictures[length] = [frame.planes[0].astype(float) for frame in decoding.decode(probing.probe(output))]
    steps = {
        length: [np.abs(a - b).mean() for a, b in zip(shown, shown[1:], strict=False)]
        for length, shown in pictures.items()
    }
    assert [np.array_equal(a, b) for a, b in zip(pictures[96], pictures[17], strict=True)][:5] == [True] * 5
    assert steps[17][16] < 1.1 * np.mean(steps[96][14:19])


def test_what_is_carried_is_planned_for():
    """Its memory is that of whole results, whatever the batch."""
    plans = {}
    for temporal in ("off", "relay"):
        with Upscaler(Settings.preset("mini", temporal=temporal), Runtime(device="cpu", batch=1)) as made:
            plans[temporal] = made.planner.memory(made.choose(64, 96), 64, 96)
    result = 3 * 4 * (4 * 64) * (4 * 96)
    assert plans["relay"] - plans["off"] == 6 * result
