"""A small network for tests of wrong and shared uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fxcat

X = torch.zeros(2, 3, 8, 8)
HALF = fxcat.Target(flops=0.5)


def made() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


def prepared(model: Any = None, example: Any = X, **options: Any) -> fxcat.GatedModule:
    return fxcat.prepare(made() if model is None else model, example, **{"verbose": False, **options})
