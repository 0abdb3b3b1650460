"""A value with units meets a parameter with an axis of its own: one of them has units then, that of more weights."""

from __future__ import annotations

import pytest
import torch
from exactness import Report, check, randomise
from torch import nn


class Bases(nn.Module):
    """Every channel as the values of functions round places (FastKAN), then mixed."""

    def __init__(self, entering: int, leaving: int, trained: bool) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.linspace(-2, 2, 4), requires_grad=trained)
        self.mix = nn.Linear(4 * entering, leaving, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near = torch.exp(-((x[..., None] - self.places) ** 2))
        return self.mix(near.view(*near.shape[:-2], -1))


class Tokens(nn.Module):
    """Every feature becomes a token, by a vector for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.vector, self.shift = (
            nn.Linear(3, 5),
            nn.Parameter(torch.randn(16)),
            nn.Parameter(torch.randn(16)),
        )
        self.mix, self.wide, self.last = nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.first(x)[..., None] * self.vector + self.shift
        return self.last(self.wide(tokens + self.mix(tokens)).relu().mean(1))


def checked(model: nn.Module) -> Report:
    model = model.double()
    randomise(model, 0)
    report = check(model, "rivals", (1, 3), (4, 3))
    assert report.failures == []
    return report


@pytest.mark.parametrize("trained", [False, True])
def test_channels_rather_than_places(trained: bool) -> None:
    report = checked(nn.Sequential(nn.Linear(3, 8), Bases(8, 6, trained), nn.Tanh(), Bases(6, 2, trained)))
    assert (report.units, report.coverage) == (8 + 6, 1.0)


def test_the_width_of_tokens_rather_than_how_many() -> None:
    assert checked(Tokens()).units == 16 + 32
