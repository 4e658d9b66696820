"""The measures of vidup.metrics against closed forms and scikit-image."""

import math

import numpy as np
import pytest
import torch

from vidup.picture.metrics import gmsd, gradient_energy, luma, psnr, ssim

RNG = np.random.default_rng(0)
NOISE = torch.from_numpy(RNG.random((40, 50)))


def test_luma_weights_sum_to_one_and_favour_green():
    grey = torch.full((2, 3, 4, 5), 0.25)
    assert luma(grey).shape == (2, 4, 5)
    torch.testing.assert_close(luma(grey), torch.full((2, 4, 5), 0.25))
    green = torch.zeros(3, 1, 1)
    green[1] = 1
    assert luma(green).item() == pytest.approx(0.7152)


def test_psnr_of_a_constant_difference():
    assert psnr(NOISE, NOISE + 0.1) == pytest.approx(20)
    assert psnr(NOISE, NOISE) == math.inf


def test_psnr_equals_scikit_image():
    from skimage import metrics

    other = (NOISE + 0.05 * torch.from_numpy(RNG.standard_normal(NOISE.shape))).clamp(0, 1)
    expected = metrics.peak_signal_noise_ratio(NOISE.numpy(), other.numpy(), data_range=1)
    assert psnr(NOISE, other) == pytest.approx(expected)


def test_ssim():
    assert ssim(NOISE, NOISE) == pytest.approx(1)
    near, far = NOISE + 0.05, NOISE.flip(0)
    assert ssim(NOISE, far) < 0.5 < ssim(NOISE, near) < 1
    # Two flat pictures: only the luminance term is left.
    one, two, constant = 0.2, 0.6, 0.01**2
    expected = (2 * one * two + constant) / (one**2 + two**2 + constant)
    assert ssim(torch.full((20, 20), one), torch.full((20, 20), two)) == pytest.approx(expected)


def test_gmsd_by_hand():
    assert gmsd(NOISE, NOISE) == 0
    assert gmsd(NOISE, NOISE + 0.2) == pytest.approx(0, abs=1e-9)  # brightness does not change a gradient
    # A step of height 1 against a flat picture: at half size two of six columns have gradient 1, where similarity is
    # c / (1 + c), and it is 1 elsewhere.
    step = torch.zeros(16, 16)
    step[:, 8:] = 1
    constant = 170 / 255**2
    similarity = np.array([1, 1, constant / (1 + constant), constant / (1 + constant), 1, 1])
    assert gmsd(step, torch.zeros(16, 16)) == pytest.approx(similarity.std())


def test_gradient_energy_of_a_ramp():
    y, x = torch.meshgrid(torch.arange(10.0), torch.arange(12.0), indexing="ij")
    assert gradient_energy(0.02 * x - 0.03 * y) == pytest.approx(0.05)
    assert gradient_energy(torch.ones(3, 9, 9)) == 0
