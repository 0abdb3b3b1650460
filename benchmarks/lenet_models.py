"""LeNet-300-100 and LeNet-5-Caffe, and MNIST for them."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.datasets import MNIST

MEAN, STD = 0.1307, 0.3081


def lenet_300_100(width: float = 1.0) -> nn.Sequential:
    """784-300-100-10, the hidden layers `width` times as wide, on images given as rows of pixels."""
    a, b = (max(1, round(width * n)) for n in (300, 100))
    return nn.Sequential(
        *(nn.Linear(784, a), nn.ReLU(inplace=True)),
        *(nn.Linear(a, b), nn.ReLU(inplace=True)),
        nn.Linear(b, 10),
    )


def lenet_5_caffe(width: float = 1.0) -> nn.Sequential:
    """20-50-500-10, as in Caffe's examples, the hidden layers `width` times as wide."""
    a, b, c = (max(1, round(width * n)) for n in (20, 50, 500))
    return nn.Sequential(
        *(nn.Conv2d(1, a, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(a, b, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * b, c), nn.ReLU(inplace=True), nn.Linear(c, 10)),
    )


def load_mnist(root: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training images (60000, 1, 28, 28), standardised, and labels; then those of the test. Downloaded if missing."""
    parts: list[torch.Tensor] = []
    for train in (True, False):
        data = MNIST(str(root), train=train, download=True)
        parts += [(data.data[:, None].float() / 255 - MEAN) / STD, data.targets]
    return parts[0], parts[1], parts[2], parts[3]


def moved(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every image turned by up to 5°, scaled by up to 6 % and shifted by up to 0.7 pixels; shape (n, 1, 28, 28) or
    (n, 784), standardised, as given back."""
    n = len(images)
    angle, scale, right, down = torch.rand(4, n, generator=generator) * 2 - 1
    angle, scale, right, down = 0.085 * angle, 1 + 0.06 * scale, 0.05 * right, 0.05 * down
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack([cos, -sin, right, sin, cos, down], 1).view(n, 2, 3)
    grid = F.affine_grid(matrix, [n, 1, 28, 28], align_corners=False)
    background = MEAN / STD  # what lies outside is 0 after the sampling, and must be the background
    sampled = F.grid_sample(images.view(n, 1, 28, 28) + background, grid, align_corners=False)
    return sampled.sub_(background).view_as(images)
