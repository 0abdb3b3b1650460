"""Layers in the middle of a network that is checked as a whole."""

from __future__ import annotations

from exactness import check, randomise
from torch import nn


def checked(*middle: nn.Module, channels: int = 16) -> tuple[float, int]:
    """Share of the MACs that can be pruned, and units, of a network with these layers in the middle."""
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *middle, *ends).double()
    randomise(model, 0)
    report = check(model, "functional", (1, 3, 9, 9), (3, 3, 11, 11))
    assert not report.failures
    return report.coverage, report.units
