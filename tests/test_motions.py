"""What is hard to carry, class by class: with a stand-in for the model, a picture is never much worse than each alone.

The stand-in is bicubic with the anchor: it invents nothing, so that all that is lost is what carrying loses (ghosts,
smears, rings), and nothing of it hides in what a model gets wrong.
"""

import motions
import pytest
import torch
from torch.nn import functional

from vidup.engines import Place, flow
from vidup.engines.relay import Follower, Relay
from vidup.picture import flicker
from vidup.picture.metrics import luma, psnr
from vidup.picture.resample import anchor, resize

HEIGHT, WIDTH, FRAMES = 64, 96, 8
WORST = -0.5
"""dB by which any frame may be worse than without carrying."""
SEEN = 48.0
"""dB above which no difference is seen."""
PLACE = 200.0
"""Squared codes by which any place of 32 x 32 pixels may be worse: a ghost is there before it shows in the mean."""


def enlarge(clip: torch.Tensor, place: Place) -> torch.Tensor:
    return anchor(functional.interpolate(clip, scale_factor=4, mode="bicubic", align_corners=False), clip, 5)


def places(picture: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return 255**2 * functional.avg_pool2d((picture - truth).square().mean(0)[None], 32)


Followed = list[tuple[torch.Tensor, torch.Tensor]]


def followed(truth: list[torch.Tensor]) -> Followed:
    """Of each frame after the first, where it was in the one before, and how much that is to be trusted."""
    true, found = [luma(one) for one in truth], []
    for before, after in zip(true, true[1:], strict=False):
        there, back = flow.accurate(after, before), flow.accurate(before, after)
        found.append((there, flicker.followed(there, back)))
    return found


def changes(pictures: list[torch.Tensor], motion: Followed) -> float:
    """E*warp, without the frames that nothing follows."""
    bright = [luma(one) for one in pictures]
    pairs = zip(bright, bright[1:], motion, strict=False)
    errors = [flicker.warp_error(before, after, *of) for before, after, of in pairs]
    known = [error for error in errors if error is not None]
    assert len(known) >= FRAMES / 2
    return sum(known) / len(known)


@pytest.mark.parametrize("name", motions.CLASSES)
def test_carrying_is_never_much_worse(name: str):
    truth = motions.clip(name, (4 * HEIGHT, 4 * WIDTH), FRAMES)
    frames = [(resize(one[None], (HEIGHT, WIDTH))[0].clamp(0, 1) * 255).round() / 255 for one in truth]
    alone = [enlarge(frame[None], Place(0, 0, HEIGHT, WIDTH))[0].clamp(0, 1) for frame in frames]
    follower, relay = Follower(0, 2.0, 12), Relay(enlarge, 4, 5)
    carried = [next(iter(relay(frame[None], [follower(frame)]))).clamp(0, 1) for frame in frames]
    for true, each, result in zip(truth, alone, carried, strict=True):
        assert psnr(true, result) - min(SEEN, psnr(true, each)) > WORST
        assert (places(result, true) - places(each, true)).max() < PLACE
    motion = followed(truth)
    assert changes(carried, motion) < 1.02 * changes(alone, motion)
    assert relay.computed < 0.7 * relay.total


def test_a_long_shot_does_not_drift():
    truth = motions.clip("uncut", (96, 128), 100)
    frames = [resize(one[None], (24, 32))[0].clamp(0, 1) for one in truth]
    follower, relay = Follower(0, 2.0, 12), Relay(enlarge, 4, 5)
    gained = []
    for true, frame in zip(truth, frames, strict=True):
        result, each = next(iter(relay(frame[None], [follower(frame)]))), enlarge(frame[None], Place(0, 0, 24, 32))[0]
        gained.append(psnr(true, result.clamp(0, 1)) - psnr(true, each.clamp(0, 1)))
    assert min(gained) > WORST
    assert sum(gained[-20:]) > 0
