"""Muon: momentum whose matrices are made orthogonal before each update (Jordan et al. 2024).

All directions of a layer learn at one pace, where plain momentum follows a few strong ones. Training on a CPU is short
of iterations, and this needs fewer of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


def orthogonalised(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """About the nearest matrix with all singular values 1, by a quintic Newton-Schulz iteration.

    Args:
        matrix: float (rows, columns).
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # steep at zero, and good enough between 0.7 and 1.2
    tall = matrix.shape[0] > matrix.shape[1]
    x: torch.Tensor = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """For weights of two dimensions and more; convolutions count as matrices of (out, in * height * width)."""

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(momentum, group["momentum"])  # Nesterov
                update = orthogonalised(ahead.flatten(1))
                # An update of the size that AdamW's has, so that one learning rate serves both (Liu et al. 2025).
                scale = 0.2 * max(update.shape) ** 0.5
                weight.add_(update.view_as(weight), alpha=-group["lr"] * scale)
