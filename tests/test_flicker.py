"""The measures of steadiness over time, against closed forms."""

import pytest
import torch

from vidup.picture import flicker

HEIGHT, WIDTH = 40, 60


def flow(right: float, down: float) -> torch.Tensor:
    return torch.tensor([float(right), float(down)]).view(2, 1, 1).repeat(1, HEIGHT, WIDTH)


def test_what_moves_as_one_is_followed_as_far_as_the_frame_reaches():
    where = flicker.followed(flow(4, 0), flow(-4, 0))
    assert where[:, : WIDTH - 4].all() and not where[:, WIDTH - 3 :].any()


def test_what_was_hidden_is_not_followed():
    assert not flicker.followed(flow(4, 0), flow(0, 0)).any()


def test_the_edge_of_a_motion_is_not_followed():
    there = flow(0, 0)
    there[0, :, 30:] = 3
    where = flicker.followed(there, -there)
    assert not where[:, 29:31].any()
    assert where[:, :26].all() and where[:, 32:54].all()


def test_the_error_of_a_shift_is_that_of_what_did_not_move_with_it():
    whole = torch.rand(HEIGHT, WIDTH + 4, generator=torch.Generator().manual_seed(0))
    where = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    where[4:-4, 4:-8] = True
    before, now = whole[:, :WIDTH], whole[:, 4:]
    assert flicker.warp_error(before, now, flow(4, 0), where) == pytest.approx(0, abs=1e-4)
    assert flicker.warp_error(before, now + 2 / 255, flow(4, 0), where) == pytest.approx(4, rel=1e-3)
    assert flicker.warp_error(before, now, flow(4, 0), where & False) is None


def test_the_distance_of_flows():
    assert flicker.flow_distance(flow(4, 0), flow(1, 4)) == pytest.approx(5)


def test_unchanged_is_what_is_equal_with_its_neighbours():
    before = torch.rand(3, 10, 15)
    now = before.clone()
    now[1, 4, 6] += 0.1
    where = flicker.unchanged(before, now, (HEIGHT, WIDTH))
    assert not where[12:24, 20:32].any()
    assert where.sum() == HEIGHT * WIDTH - 12 * 12


def test_the_deviation_over_time_is_that_of_independent_noise():
    before, now = 3 / 255 * torch.randn(2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    where = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    assert flicker.deviation(before, now, where) == pytest.approx(3, rel=0.05)
    assert flicker.deviation(before, now, ~where) is None
