"""A network with what tools stumble over, trained a little and pruned: a residual sum, a channel shuffle before a
depthwise convolution, norms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import fxcat

SIZE = 16
CLASSES = 4


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.first, self.second = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 1, groups=2)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.point = nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.second(self.first(x)))
        x = torch.channel_shuffle(F.relu(self.grouped(x)), 2)
        x = F.relu(self.point(self.depthwise(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with one channel brighter, (N, 3, SIZE, SIZE), and which: the last label is none."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    x = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    bright = F.one_hot(labels, CLASSES)[:, :3, None, None]
    return x + 0.7 * bright, labels


def train(model: nn.Module, steps: int, rate: float) -> list[float]:
    """The loss of every step."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    losses: list[float] = []
    for step in range(steps):
        x, y = images(16, step)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def pruned() -> nn.Module:
    """About half of its MACs are left, and the shuffle is broken."""
    torch.manual_seed(0)
    net = fxcat.prepare(Mixed(), images(1, 0)[0], verbose=False, round_to=1)
    fxcat.one_shot(net, fxcat.importance.norm_scale(net), target=fxcat.Target(flops=0.5))
    small = fxcat.finalize(net).train()
    train(small, 60, 5e-3)
    return small.eval()
