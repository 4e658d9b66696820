"""What can be carried along the motion: warping, trust, cuts, fades, refresh, and the windows that hold what is new."""

import pytest
import torch
from torch.nn import functional

from vidup.engines import flow
from vidup.picture import temporal
from vidup.picture.temporal import judge


def texture(height: int, width: int, seed: int = 0, coarse: int = 4) -> torch.Tensor:
    """A smooth random picture, RGB (3, height, width) in [0, 1]."""
    drawn = torch.rand(1, 3, height // coarse + 2, width // coarse + 2, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(drawn, (height, width), mode="bicubic", align_corners=False)[0].clamp(0, 1)


def follow(before: torch.Tensor, now: torch.Tensor, tolerance: float = 2.0) -> tuple[temporal.Motion, float]:
    codes = before * 255, now * 255
    return judge(*codes, temporal.error(*codes), *flow.both_ways(before, now), tolerance)


def test_a_warp_by_whole_pixels_is_exact():
    picture = texture(24, 40)
    moved = temporal.warp(picture, torch.tensor([3.0, -2.0]).view(2, 1, 1).expand(2, 24, 40))
    torch.testing.assert_close(moved[:, 4:20, 4:34], picture[:, 2:18, 7:37], atol=1e-5, rtol=0)


def test_a_flow_grows_with_the_picture():
    flow_ = torch.tensor([1.5, -1.0]).view(2, 1, 1).expand(2, 10, 12)
    grown = temporal.resize_flow(flow_, (40, 24))
    assert grown.shape == (2, 40, 24)
    torch.testing.assert_close(grown[:, 5, 5], torch.tensor([3.0, -4.0]))


@pytest.mark.parametrize("side", [3, 9])
def test_the_mean_of_a_square(side: int):
    picture = torch.rand(2, 20, 30)
    padded = functional.pad(picture[None], (side // 2,) * 4, mode="replicate")
    expected = functional.avg_pool2d(padded, side, 1)[0]
    torch.testing.assert_close(temporal.mean(picture, side), expected)


@pytest.mark.parametrize("size, side", [((20, 30), 5), ((1, 4), 9), ((6, 2), 3)])
def test_the_largest_of_a_square(size: tuple[int, int], side: int):
    picture = torch.rand(2, *size)
    assert torch.equal(temporal.most(picture, side), functional.max_pool2d(picture[None], side, 1, side // 2)[0])


def test_what_changed_is_found():
    picture = texture(48, 64)
    assert temporal.changed(temporal.error(picture, picture)) is None
    other = picture.clone()
    other[:, 20:24, 30:40] = 1 - other[:, 20:24, 30:40]
    box = temporal.changed(temporal.error(255 * picture, 255 * other))
    assert box is not None
    assert all(0 <= there - found <= 4 for there, found in zip((20, 30), box[:2], strict=True))
    assert all(0 <= found - there <= 4 for there, found in zip((24, 40), box[2:], strict=True))


def test_the_flow_of_a_pan_is_found():
    whole = texture(80, 120, coarse=6)
    before, now = whole[:, 8:72, 8:104], whole[:, 10:74, 11:107]
    there, back = flow.both_ways(before, now)
    inner = (slice(None), slice(16, -16), slice(16, -16))
    assert (there[inner] - torch.tensor([3.0, 2.0]).view(2, 1, 1)).abs().mean() < 0.2
    assert (back[inner] + torch.tensor([3.0, 2.0]).view(2, 1, 1)).abs().mean() < 0.3


@pytest.mark.parametrize("size", [(1, 1), (2, 90), (8, 60), (12, 60), (15, 15), (60, 6)])
def test_the_flow_of_tiny_pictures_is_found(size: tuple[int, int]):
    """On which OpenCV's search fails, or ends the process."""
    picture = texture(*size, coarse=2)
    for found in (*flow.both_ways(picture, picture), flow.accurate(picture[0], picture[0])):
        assert found.shape == (2, *size) and found.abs().max() < 0.5


def test_what_stands_still_is_carried_whole_and_exactly():
    motion, trust = follow(texture(48, 64), texture(48, 64))
    assert trust > 0.99 and motion.trust.min() > 0.99
    assert not motion.flow.any() and not motion.cells.any() and motion.gain == 1


def test_a_pan_is_carried_but_for_its_edge():
    whole = texture(64, 112, coarse=6)
    motion, trust = follow(whole[:, :48, :96], whole[:, :48, 4:100])
    assert trust > 0.8
    assert motion.trust[:, :-16].mean() > 0.9
    assert motion.trust[:, -3:].mean() < 0.3  # there something came into the picture


def test_a_cut_is_no_motion():
    _, trust = follow(texture(48, 64, 1), texture(48, 64, 2))
    assert trust < temporal.CUT / 2


def test_a_caption_stands_still_over_what_moves():
    whole = texture(64, 112, coarse=6)
    before, now = whole[:, :48, :96].clone(), whole[:, :48, 3:99].clone()
    for frame in (before, now):
        frame[:, 20:28, 20:60] = 0
        frame[:, 22:26, 22:58:3] = 1
    motion, _ = follow(before, now)
    caption = (slice(None), slice(22, 26), slice(24, 56))
    assert motion.flow[caption].abs().max() == 0
    assert motion.trust[caption[1:]].mean() > 0.9


def test_a_change_of_light_is_followed_with_its_contrast():
    picture = texture(48, 64)
    motion, trust = follow(picture, 0.5 + 0.9 * (picture - 0.5))
    assert trust > 0.6
    assert motion.gain == pytest.approx(0.9, abs=0.03)


def test_trust_follows_the_noise_of_the_input():
    """Noise is no change; where it is stronger, more of a difference is put down to it."""
    picture, generator = 0.2 + 0.6 * texture(48, 64, coarse=16), torch.Generator().manual_seed(3)
    means = []
    for sigma in (0.0, 2.0, 4.0):
        first, second = (picture + sigma / 255 * torch.randn(3, 48, 64, generator=generator) for _ in range(2))
        means.append(follow(first, second)[0].trust.mean().item())
    assert min(means) > 0.75


def test_what_became_sharper_is_not_what_was_carried():
    sharp = texture(48, 64, coarse=3)
    blurred = temporal.mean(sharp, 5)
    assert follow(blurred, sharp)[0].trust.mean() < 0.5 * follow(sharp, sharp)[0].trust.mean()


@pytest.mark.parametrize(
    "rows, columns, period", [(17, 30, 12), (3, 4, 12), (1, 1, 12), (6, 10, 5), (4, 4, 1), (5, 5, 3)]
)
@pytest.mark.parametrize("shown", [1, 2])
def test_every_cell_has_its_turn_within_the_period(rows: int, columns: int, period: int, shown: int):
    """Where a frame is shown twice, as in animation, what falls due in between is done with the next."""
    numbers = range(101, 101 + 2 * max(period, 4 * shown), shown)
    turns = [temporal.refreshed(rows, columns, number, period, number - shown) for number in numbers]
    assert torch.stack(turns).any(0).all()
    assert torch.stack(turns).float().mean() <= max(0.5, 1.5 * shown / period) or period < 4


def test_without_a_period_nothing_is_refreshed():
    assert not temporal.refreshed(5, 7, 3, 0, 2).any()


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_rectangles_cover_every_cell_and_cost_no_more_than_one(share: float):
    cells = torch.rand(17, 30, generator=torch.Generator().manual_seed(round(100 * share))) < share
    boxes = temporal.cover(cells, 0.5)
    found = torch.zeros_like(cells)
    for top, left, bottom, right in boxes:
        found[top:bottom, left:right] = True
    assert (found | ~cells).all()
    assert sum((bottom - top + 1) * (right - left + 1) for top, left, bottom, right in boxes) <= 18 * 31
    assert temporal.cover(torch.zeros(4, 4, dtype=torch.bool), 0.5) == []


def test_two_far_cells_are_two_rectangles():
    cells = torch.zeros(12, 20, dtype=torch.bool)
    cells[1, 1] = cells[10, 18] = True
    assert sorted(temporal.cover(cells, 0.5)) == [(1, 1, 2, 2), (10, 18, 11, 19)]
