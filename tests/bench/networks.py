"""Two published architectures of one pass, written from their papers: what a plain loop runs, with random weights.

Compact is SRVGGNetCompact as Real-ESRGAN's authors publish it (Wang et al. 2021): convolutions in a row at the input's
size. RRDB is ESRGAN's generator (Wang et al. 2018), with the names that Real-ESRGAN's files use.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional


def _conv(source: int, target: int) -> nn.Conv2d:
    return nn.Conv2d(source, target, 3, 1, 1)


class Compact(nn.Module):
    """64 channels, 16 convolutions between the first and the last: 621,000 parameters."""

    def __init__(self, width: int = 64, layers: int = 16, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale
        body: list[nn.Module] = [_conv(3, width), nn.PReLU(width)]
        for _ in range(layers):
            body += [_conv(width, width), nn.PReLU(width)]
        self.body = nn.Sequential(*body, _conv(width, 3 * scale**2))

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        details = functional.pixel_shuffle(self.body(picture), self.scale)
        return details + functional.interpolate(picture, scale_factor=self.scale, mode="nearest")


class _Dense(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for index in range(4):
            setattr(self, f"conv{index + 1}", _conv(width + index * growth, growth))
        self.conv5 = _conv(width + 4 * growth, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        seen = [features]
        for index in range(4):
            layer = getattr(self, f"conv{index + 1}")
            seen.append(functional.leaky_relu(layer(torch.cat(seen, 1)), 0.2, inplace=True))
        return features + 0.2 * self.conv5(torch.cat(seen, 1))


class _Block(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (_Dense(width, growth) for _ in range(3))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + 0.2 * self.rdb3(self.rdb2(self.rdb1(features)))


class RRDB(nn.Module):
    """64 channels, 23 blocks, 4 times larger: 16,698,000 parameters."""

    def __init__(self, width: int = 64, blocks: int = 23, growth: int = 32) -> None:
        super().__init__()
        self.conv_first = _conv(3, width)
        self.body = nn.Sequential(*(_Block(width, growth) for _ in range(blocks)))
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (_conv(width, width) for _ in range(4))
        self.conv_last = _conv(width, 3)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        features = self.conv_first(picture)
        features = features + self.conv_body(self.body(features))
        for layer in (self.conv_up1, self.conv_up2):
            larger = functional.interpolate(features, scale_factor=2, mode="nearest")
            features = functional.leaky_relu(layer(larger), 0.2, inplace=True)
        return self.conv_last(functional.leaky_relu(self.conv_hr(features), 0.2, inplace=True))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"Compact": Compact, "RRDB": RRDB}


def write(name: str, path: Path) -> Path:
    """Save a network's weights as a table of torch's: random ones, but for a way that brings the picture through."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    with torch.no_grad():
        if isinstance(model, RRDB):
            model.conv_body.weight.mul_(0.01)
            for layer in (model.conv_first, model.conv_up1, model.conv_up2, model.conv_hr, model.conv_last):
                layer.weight[:3] = 0
                layer.bias[:3] = 0
                for channel in range(3):
                    layer.weight[channel, channel, 1, 1] = 1
    torch.save(model.state_dict(), path)
    return path
