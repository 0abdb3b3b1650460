"""A net with three sections of different sizes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

import fxcat

Gates = Literal["units", "layers", "units+layers"]


class Block(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, hidden, 3, padding=1)
        self.second = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def prepared(gates: Gates = "units+layers", round_to: int = 1) -> fxcat.GatedModule:
    """Sections with a tenth, three tenths and six tenths of the MACs."""
    blocks = [Block(16, hidden) for hidden in (16, 48, 96)]
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *blocks, nn.Flatten(), nn.Linear(16 * 64, 4))
    return fxcat.prepare(model, torch.zeros(1, 3, 8, 8), gates=gates, round_to=round_to, verbose=False)
