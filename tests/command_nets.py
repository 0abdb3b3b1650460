"""Networks that the command is told to make, by their names."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """As in a ResNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def residual(width: int = 12, blocks: int = 2) -> nn.Module:
    """For grey images of any size, and ten classes."""
    stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    return nn.Sequential(stem, *(Block(width) for _ in range(blocks)), head)


def depthwise(width: int = 48) -> nn.Module:
    """With a convolution of many groups, which is slow at odd widths."""
    stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
    block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width), nn.ReLU(), nn.Conv2d(width, width, 1))
    return nn.Sequential(stem, block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def broken() -> nn.Module:
    """Cannot be made."""
    raise RuntimeError("out of order")


nothing = 3


def volumes() -> nn.Module:
    """For what is no image."""
    return nn.Sequential(
        *(nn.Conv3d(1, 8, 3, stride=8), nn.ReLU(), nn.Conv3d(8, 8, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


def four() -> nn.Module:
    """For images of four channels."""
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
