"""Deformable convolutions, as a layer and as a function."""

from __future__ import annotations

import pytest
import torch
from forms import failures
from torch import nn
from torchvision.ops import DeformConv2d, deform_conv2d


class Deformed(nn.Module):
    """Offsets and a mask that a convolution makes. `groups`: of channels; `fields`: with offsets of their own."""

    def __init__(self, groups: int = 1, fields: int = 1) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(12, 4, 1)
        self.offset, self.mask = nn.Conv2d(8, 18 * fields, 3, padding=1), nn.Conv2d(8, 9 * fields, 3, padding=1)
        self.deformed = DeformConv2d(8, 12, 3, padding=1, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        return self.head(self.deformed(y, self.offset(y), self.mask(y).sigmoid()))


class Called(Deformed):
    """With the weight of another layer, and no bias."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        return self.head(deform_conv2d(y, self.offset(y), weight=self.deformed.weight, padding=(1, 1)))


@pytest.mark.parametrize(
    ("model", "units"),
    [(Deformed(), 20), (Called(), 20), (Deformed(groups=2), 10), (Deformed(fields=2), 16), (Deformed(2, 2), 6)],
)
def test_channels_go(model: nn.Module, units: int) -> None:
    assert failures(model, (1, 3, 5, 6), (3, 3, 7, 5))[:2] == ([], units)
