"""Checks for networks that do what models of transformers do."""

from __future__ import annotations

from typing import Any

import torch
from exactness import check, randomise
from torch import nn

import fxcat

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()


def prepared(model: nn.Module, example: Any = X) -> fxcat.GatedModule:
    randomise(model, 0)
    return fxcat.prepare(model.double(), example, verbose=False).eval()


def assert_exact(model: nn.Module, other: tuple[int, ...] = (3, 3, 12, 8), *, sections: int = 0) -> None:
    """I1 to I4, all MACs prunable."""
    randomise(model, 0)
    report = check(model.double(), "small", (1, 3, 8, 8), other)
    assert not report.failures
    assert report.coverage == 1.0
    assert report.sections == sections
