"""Distances and cosines between rows, and rows of tables: codebooks, prototypes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from exactness import Report, check, randomise
from torch import nn


def checked(model: nn.Module) -> Report:
    model = model.double()
    randomise(model, 0)
    return check(model, "distances", (1, 3, 8, 8), (3, 3, 8, 8), settings=3)


class Rows(nn.Module):
    """Two images as rows of channels, and what is computed of them."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.a, self.b, self.power = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3), power

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = (F.silu(layer(x)).flatten(2).transpose(1, 2) for layer in (self.a, self.b))
        return torch.cdist(a[:, :5], b[:, 5:9], p=self.power), F.cosine_similarity(a, b, dim=-1)


@pytest.mark.parametrize(("power", "units"), [(1.0, 6), (2.0, 6), (float("inf"), 6), (0.5, 0)])
def test_distances_of_live_channels(power: float, units: int) -> None:
    report = checked(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), Rows(power)))
    assert (report.failures, report.units) == ([], 3 + units)


class Prototypes(nn.Module):
    """The next of them is looked up, or how far away all are leads on."""

    def __init__(self, looked_up: bool) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 if looked_up else 9, 4)
        self.table, self.looked_up = nn.Parameter(torch.randn(9, 6)), looked_up

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = F.silu(self.enter(x)).permute(0, 2, 3, 1).reshape(-1, 6)
        distances = torch.cdist(rows, self.table)
        if self.looked_up:
            nearest = F.embedding(distances.argmin(-1), self.table)
            return self.leave(rows + (nearest - rows).detach())
        return self.leave(torch.exp(-distances))


@pytest.mark.parametrize(("looked_up", "units"), [(True, 6), (False, 6 + 9)])
def test_tables_of_prototypes(looked_up: bool, units: int) -> None:
    report = checked(Prototypes(looked_up))
    assert (report.failures, report.units) == ([], units)


class Compared(nn.Module):
    """Distances to prototypes, which a layer reads as they are: what counts live channels keeps its own gate too."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.table, self.leave = nn.Linear(3, 6), nn.Parameter(torch.randn(9, 6)), nn.Linear(9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leave(torch.cdist(self.enter(x.mean((2, 3))), self.table))


def test_distances_that_a_layer_reads() -> None:
    report = checked(Compared())
    assert (report.failures, report.units) == ([], 6 + 9)


class Looked(nn.Module):
    """Rows of a table that is a parameter, or computed from some."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.table, self.scale = nn.Parameter(torch.randn(9, 6)), nn.Parameter(torch.randn(6))
        self.enter, self.leave, self.how = nn.Conv2d(3, 6, 1), nn.Linear(6, 4), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = self.table * self.scale if self.how == "scaled" else self.table
        rows = F.embedding(torch.arange(8) % 9, table)
        return self.leave(F.silu(self.enter(x).permute(0, 2, 3, 1) + rows))


@pytest.mark.parametrize(("how", "units"), [("parameter", 6), ("scaled", 6)])
def test_rows_of_tables(how: str, units: int) -> None:
    report = checked(Looked(how))
    assert (report.failures, report.units) == ([], units)
