"""Where a model is compiled, or recorded as CUDA graphs, the windows of what is carried have few shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_relay import HEIGHT, WIDTH, Inventor, texture
from torch.nn import functional

from vidup import Runtime, Settings, Upscaler
from vidup.engines import Choice, Needs, Place, compiling, windows
from vidup.engines.compiling import Compiled
from vidup.engines.planner import Planner
from vidup.engines.relay import Follower, Relay
from vidup.picture.temporal import Box

SIZES = [(270, 480), (480, 854), (1080, 1920), (64, 96), (101, 67), (720, 576), (16, 2000), (1, 1)]


def boxes(height: int, width: int) -> Iterator[Box]:
    """Boxes as the relay has them: sides in multiples of 8, or the frame's."""
    random = torch.Generator().manual_seed(height)
    for _ in range(60):
        (top, bottom), (left, right) = (
            sorted(min(side, 8 * int(torch.randint(0, side // 8 + 2, (), generator=random))) for _ in range(2))
            for side in (height, width)
        )
        if top < bottom and left < right:
            yield top, left, bottom, right


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_shapes_are_few_and_windows_contain_their_boxes(height: int, width: int):
    allowed = windows.shapes(height, width)
    assert len(allowed) <= 8 and allowed[-1] == (height, width)
    for box in [*boxes(height, width), (0, 0, height, width)]:
        top, left, bottom, right = windows.fixed(box, height, width)
        assert 0 <= top <= box[0] < box[2] <= bottom <= height and 0 <= left <= box[1] < box[3] <= right <= width
        assert (bottom - top, right - left) in allowed
        fitting = [
            rows * columns for rows, columns in allowed if rows >= box[2] - box[0] and columns >= box[3] - box[1]
        ]
        assert (bottom - top) * (right - left) == min(fitting)


def moving(count: int) -> list[torch.Tensor]:
    """A square that jumps about before what stands still, and grows: boxes of many shapes."""
    still, frames = texture(HEIGHT, WIDTH), list[torch.Tensor]()
    for index in range(count):
        frame, tall, wide = still.clone(), 3 + index, 3 + 5 * index % 23
        top, left = 7 * index % (HEIGHT - tall), 11 * index % (WIDTH - wide)
        frame[:, top : top + tall, left : left + wide] = 1 - frame[:, top : top + tall, left : left + wide]
        frames.append(frame)
    return frames


def carried(frames: list[torch.Tensor], fit: Any = None) -> tuple[list[torch.Tensor], Inventor, Relay]:
    inventor, follower = Inventor(), Follower(0, 2.0, 0)
    relay = Relay(inventor, 4, 5, fit=fit)
    results: list[torch.Tensor] = []
    for first in range(0, len(frames), 3):
        clip = frames[first : first + 3]
        results += list(relay(torch.stack(clip), [follower(frame) for frame in clip]))
    return results, inventor, relay


def test_the_picture_is_the_same_and_the_shapes_are_few():
    frames = moving(14)
    tight, exact, _ = carried(frames)
    wide, asked, relay = carried(frames, windows.fixed)
    found = {shape[2:] for shape in asked.windows}
    assert found <= {*windows.shapes(HEIGHT, WIDTH)} and len(found) < len({shape[2:] for shape in exact.windows})
    assert exact.pixels < asked.pixels == relay.computed <= relay.total
    for one, other in zip(tight, wide, strict=True):  # what is around a box is computed and not used
        assert (one - other).abs().max() < 0.01 / 255


def test_a_model_is_compiled_for_no_more_graphs_than_there_are_shapes(monkeypatch: pytest.MonkeyPatch):
    graphs = []

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(inputs)
        return graph

    def compiler(whole: bool = True) -> dict[str, Any]:
        return {"backend": counted, "fullgraph": True, "dynamic": not whole}

    monkeypatch.setattr(compiling, "compiler", compiler)
    torch._dynamo.reset()
    cpu, asked = torch.device("cpu"), set[tuple[int, ...]]()
    run = Compiled(lambda batch: functional.interpolate(batch.square(), scale_factor=2), "on", cpu)

    def compute(clip: torch.Tensor, place: Place) -> torch.Tensor:
        run.begin(clip, place)
        asked.add(tuple(clip.shape))
        return run(clip)

    frames, follower, relay = moving(14), Follower(0, 2.0, 0), Relay(compute, 2, 0, fit=windows.fixed)
    for frame in frames:
        assert len(list(relay(frame[None], [follower(frame)]))) == 1
    torch._dynamo.reset()
    allowed = windows.shapes(HEIGHT, WIDTH)
    assert 3 < len(asked) <= len(allowed) and 1 < len(graphs) <= len(asked)


@pytest.mark.parametrize("compiles", [True, False])
def test_windows_are_of_few_shapes_only_where_a_model_is_compiled(
    tiny_x4: Path, monkeypatch: pytest.MonkeyPatch, compiles: bool
):
    """An eager one has nothing to gain by it, and keeps the boxes that fit."""
    seen, enlarge = set[tuple[int, ...]](), Upscaler._enlarge_clip

    def look(self: Upscaler, rgb: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.add((len(rgb), *rgb.shape[-2:]))
        return enlarge(self, rgb, *rest)

    monkeypatch.setattr(Upscaler, "_enlarge_clip", look)
    monkeypatch.setattr(Upscaler, "compiles", compiles)
    settings = Settings(model=str(tiny_x4), steps=1, noise_level=20, temporal="relay", refresh=0, anchor=1)
    with Upscaler(settings, Runtime(device="cpu")) as upscaler:
        assert len(list(upscaler.frames(picture for picture in moving(5)))) == 5
    assert len(seen) > 2
    assert (seen <= {(1, *shape) for shape in windows.shapes(HEIGHT, WIDTH)}) == compiles


def test_calls_of_a_compiled_model_have_few_numbers_of_pictures():
    cuda = torch.device("cuda")
    needs = Needs(cuda, frame=100.0, window=1000.0, batch=8, compiled=True)
    planner, choice, place = Planner(needs, Settings(), Runtime()), Choice(4, 0), Place(0, 0, 64, 96)
    assert planner.portions((11, 3, 64, 96), place, choice, fill=False) == [4, 4, 1, 1, 1]
    assert planner.portions((5, 3, 32, 96), place, choice, fill=False) == [1] * 5
    assert planner.portions((5, 3, 64, 96), place, choice, fill=True) == [4, 1]  # which is filled up
    plain = Planner(replace(needs, compiled=False), Settings(), Runtime())
    assert plain.portions((5, 3, 32, 96), place, choice, fill=False) == [4, 1]


def test_the_plan_knows_what_graphs_of_windows_keep():
    needs = Needs(torch.device("cuda"), frame=100.0, window=1000.0, compiled=True)
    plans = {
        carried: Planner(replace(needs, carried=carried), Settings(), Runtime()).memory(Choice(1, 0), 270, 480)
        for carried in (0.0, 1e-9)
    }
    pixels = sum(rows * columns for rows, columns in windows.shapes(270, 480)[:-1])
    assert plans[1e-9] - plans[0.0] >= 100 * pixels
