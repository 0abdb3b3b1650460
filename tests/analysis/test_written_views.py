"""What is written through views of a value: views with gaps, of other shapes, in a value with gates and two phases."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from exactness import check, randomise
from torch import nn

import fxcat

Write = Callable[[torch.Tensor, torch.Tensor], object]

WRITES: dict[str, Write] = {
    "gaps, then a range": lambda h, x: h[:, ::2][:, :3].copy_(x),
    "gaps, added": lambda h, x: h[:, ::2].add_(x),
    "gaps, assigned": lambda h, x: h[:, 1::2].__setitem__(slice(None), x),
    "a range of a range": lambda h, x: h[:, :4][:, :3].mul_(x),
    "narrow": lambda h, x: h.narrow(1, 2, 3).copy_(x),
    "another shape": lambda h, x: h.view(h.shape[0], 3, 2, *h.shape[2:])[:, :, 1].copy_(x),
    "another shape, transposed": lambda h, x: h.view(h.shape[0], 2, 3, *h.shape[2:]).transpose(1, 2)[:, :, 0].add_(x),
    "the whole, by rows": lambda h, x: h.flatten(2)[:, :, 0].add_(1),
    "flattened channels": lambda h, x: h.flatten(1)[:, 5].zero_(),
    "axes in another order": lambda h, x: h.permute(0, 2, 3, 1)[..., :3].sub_(x.permute(0, 2, 3, 1)),
}


class Written(nn.Module):
    """`noisy`: what is written to is something else in training."""

    def __init__(self, write: Write, *, noisy: bool = False) -> None:
        super().__init__()
        self.first, self.part, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 1), nn.Conv2d(6, 5, 1)
        self.head = nn.Linear(5, 3)
        self.write, self.noisy = write, noisy

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if self.noisy and self.training:
            x = F.dropout(x, 0.5)
        h = x.clone()
        self.write(h, self.part(x))
        return self.head(F.relu(self.last(h)).mean((2, 3)))


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("noisy", [False, True])
def test_writes_through_views(name: str, noisy: bool) -> None:
    model = Written(WRITES[name], noisy=noisy).double()
    randomise(model, 0)
    assert not check(model, name, (1, 3, 4, 4), (3, 3, 4, 4)).failures


def test_a_range_leaves_the_rest() -> None:
    """What lies beside a range that is written to may go; beside one with gaps it stays."""
    counts = {
        name: sum(
            g.units
            for g in fxcat.prepare(
                Written(WRITES[name]), torch.zeros(1, 3, 4, 4), verify=False, verbose=False
            ).structure.groups
        )
        for name in ("a range of a range", "gaps, added")
    }
    assert counts["a range of a range"] > counts["gaps, added"] == 5
