"""Bilinear layers between others: both inputs and the output lose units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import check, randomise
from torch import nn

Form = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]


class Pair(nn.Module):
    """Two layers, a product of both, a layer."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(3, 5), nn.Linear(3, 4), nn.Linear(6, 2)
        self.layer, self.own = nn.Bilinear(5, 4, 6), nn.Bilinear(5, 5, 6, bias=False)
        self.weight, self.bias = nn.Parameter(torch.randn(6, 5, 4)), nn.Parameter(torch.randn(6))
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.form(self, self.a(x).relu(), self.b(x).relu()).relu())


FORMS: dict[str, tuple[Form, int]] = {
    "module": (lambda m, a, b: m.layer(a, b), 5 + 4 + 6),
    "twice the same": (lambda m, a, b: m.own(a, a) + b.sum(-1, keepdim=True), 5 + 4 + 6),
    "function": (lambda m, a, b: F.bilinear(a, b, m.weight, m.bias), 5 + 4 + 6),
    "computed weight": (lambda m, a, b: F.bilinear(a, b, m.weight * 0.3), 5 + 4 + 6),
    "weight of the input": (lambda m, a, b: F.bilinear(a, b, m.weight * a.mean()), 0),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 3), (1, 7, 3)], ids=len)
def test_bilinear(form: str, shape: tuple[int, ...]) -> None:
    made, units = FORMS[form]
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), Pair(made)).double()
    randomise(model, 0)
    report = check(model, form, shape, (2, *shape[1:]), settings=2)
    assert report.failures == []
    assert report.units >= 4 + 3 + units
