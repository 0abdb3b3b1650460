"""Ops that give several values, of what no gate may come before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from forms import IMAGES, Between, failures


def weighted(y: torch.Tensor) -> torch.Tensor:
    """By numbers that are written into a value: what is changed is gated behind that."""
    weights = torch.zeros(y.shape[-1])
    weights[1:] = 0.5
    return y * weights


TAKEN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "topk": lambda y: y.topk(2, -1)[0].sum(-1, keepdim=True),
    "sort": lambda y: y.sort(-1).values,
    "max": lambda y: y.max(2, keepdim=True)[0],
    "halves of rows": lambda y: y.chunk(2, 2)[0].mean(2, keepdim=True),
    "halves of channels": lambda y: torch.cat(y.chunk(2, 1)[::-1], 1),
    "both halves": lambda y: torch.cat(y.chunk(2, 1), 1),
}


@pytest.mark.parametrize("form", TAKEN)
def test_each_of_several_values_is_gated(form: str) -> None:
    failed, units, _ = failures(
        Between(lambda m, y, x: m.inner(TAKEN[form](weighted(y).flatten(2).unflatten(2, (8, 8)))) + y), *IMAGES
    )
    assert not failed
    assert units == 8
