"""A net in which one thing is written in many forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from exactness import check, randomise
from torch import nn

Form = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]


class Between(nn.Module):
    """A convolution, what is written between (given the module, the value and the input), a convolution."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(8, 4, 1)
        self.rows = nn.Parameter(torch.randn(8))
        self.table = nn.Parameter(torch.randn(8, 16))
        self.embedding = nn.Embedding(9, 8)
        self.same = nn.Identity()
        self.held = torch.randn(1, 8, 1, 1).double()
        self.plain = torch.randn(16, 16).double()
        self.several = [torch.randn(8).double()]
        self.register_buffer("blur", torch.rand(8, 1, 3, 3))
        self.register_buffer("mask", torch.rand(8, 8) > 0.5)
        self.register_buffer("order", torch.randperm(8))
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.form(self, self.first(x), x))


def failures(model: nn.Module, *shapes: tuple[int, ...]) -> tuple[list[str], int, int]:
    """What fails, the number of units, and of sections."""
    model = model.double()
    randomise(model, 0)
    report = check(model, "form", *shapes)
    return report.failures, report.units, report.sections


IMAGES = (1, 3, 8, 8), (3, 3, 8, 8)


def run(*steps: Any) -> Any:
    """The last of some steps."""
    return steps[-1]
