"""The analysis is linear in the number of nodes."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import fxcat


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


@pytest.mark.slow
def test_two_thousand_blocks() -> None:
    """2,000 residual blocks prepare in under a minute, and in less than three times what 1,000 take."""
    seconds: list[float] = []
    for blocks in (1000, 2000):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), *[Block(8) for _ in range(blocks)], nn.Conv2d(8, 2, 1))
        start = time.perf_counter()
        net = fxcat.prepare(model, torch.zeros(1, 3, 16, 16), verbose=False)
        seconds.append(time.perf_counter() - start)
        assert (len(net.structure.groups), len(net.structure.sections)) == (blocks + 1, blocks)
    assert seconds[1] < 60
    assert seconds[1] < 3 * seconds[0]
