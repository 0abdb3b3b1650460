"""Parts of networks whose own Python cannot be traced."""

from __future__ import annotations

from torch import nn


def block(entering: int, leaving: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(entering, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, leaving, 3, padding=1),
        nn.ReLU(),
    )
