"""Groups of channels that are folded into the batch: whole groups go, or the same channels of every one."""

from __future__ import annotations

import pytest
import torch
from forms import IMAGES, failures
from torch import nn

import fxcat


class Grouped(nn.Module):
    """A stem, attention within groups of channels, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attend(self.stem(x)))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Spatial(Grouped):
    """Spatial group-wise enhancement: every group has a map of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(1, 4, 1, 1)), nn.Parameter(torch.ones(1, 4, 1, 1))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.size()
        x = x.view(b * 4, -1, h, w)
        t = (x * x.mean((2, 3), keepdim=True)).sum(dim=1, keepdim=True).view(b * 4, -1)
        t = t - t.mean(dim=1, keepdim=True)
        t = (t / (t.std(dim=1, keepdim=True) + 1e-5)).view(b, 4, h, w)
        t = (t * self.weight + self.bias).view(b * 4, 1, h, w)
        return (x * t.sigmoid()).view(b, c, h, w)


class Shuffled(Grouped):
    """Shuffle attention: one half of a group is scaled by its means, the other by a norm that all groups share."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.shift = nn.GroupNorm(2, 2), nn.Parameter(torch.ones(1, 2, 1, 1))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        b, _, h, w = x.shape
        first, second = x.reshape(b * 4, -1, h, w).chunk(2, dim=1)
        first = first * (first.mean((2, 3), keepdim=True) * self.shift).sigmoid()
        second = second * (self.norm(second) * self.shift).sigmoid()
        x = torch.cat([first, second], dim=1).reshape(b, -1, h, w)
        return x.reshape(b, 2, -1, h, w).permute(0, 2, 1, 3, 4).reshape(b, -1, h, w)


class MultiScale(Grouped):
    """Efficient multi-scale attention: convolutions that all groups share."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.plain, self.wide = nn.GroupNorm(4, 4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.size()
        g = x.reshape(b * 4, -1, h, w)
        rows, columns = g.mean(3, keepdim=True), g.mean(2, keepdim=True).permute(0, 1, 3, 2)
        rows, columns = torch.split(self.plain(torch.cat([rows, columns], dim=2)), [h, w], dim=2)
        a = self.norm(g * rows.sigmoid() * columns.permute(0, 1, 3, 2).sigmoid())
        z = self.wide(g)
        scores = a.mean((2, 3)).unsqueeze(1).softmax(-1) @ z.reshape(b * 4, c // 4, -1)
        return (g * scores.reshape(b * 4, 1, h, w).sigmoid()).reshape(b, c, h, w)


@pytest.mark.parametrize(("form", "units"), [(Spatial, 4), (Shuffled, 2), (MultiScale, 4)])
def test_the_same_channels_of_every_group_go(form: type[Grouped], units: int) -> None:
    assert failures(form(), IMAGES[0], (3, 3, 6, 10)) == ([], units, 0)


def test_whole_groups_go_where_they_can() -> None:
    class Heads(Grouped):
        def attend(self, x: torch.Tensor) -> torch.Tensor:
            y = x.reshape(len(x) * 4, 4, -1)
            return ((y @ y.mT).softmax(-1) @ y).reshape(x.shape)

    assert failures(Heads(), *IMAGES) == ([], 4, 0)
    net = fxcat.prepare(Heads(), torch.zeros(1, 3, 8, 8), verbose=False)
    net.gates["stem"].set(torch.tensor([1.0, 0, 1, 1]))
    kept = fxcat.finalize(net).get_parameter("stem.bias")
    assert torch.equal(kept, net.network.get_parameter("stem.bias")[[0, 1, 2, 3, *range(8, 16)]])
