"""What is handled or frozen by design, and reported: never a wrong result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import Report, check, randomise
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import fxcat


def network(*layers: nn.Module) -> nn.Module:
    model = nn.Sequential(*layers).double().train()
    randomise(model, 0)
    return model


def checked(model: nn.Module, *shape: int) -> Report:
    report = check(model, "opaque", (1, *shape), (3, *shape))
    assert not report.failures
    return report


def reasons(model: nn.Module, *shape: int) -> str:
    net = fxcat.prepare(model, torch.zeros(1, *shape, dtype=torch.float64), verbose=False)
    return "; ".join(f"{p.where}: {p.reason}" for p in net.structure.pinned)


class Autoencoder(nn.Module):
    """The decoder uses the encoder's weight, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8))
        self.out = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(nn.functional.linear(self.encoder(x), self.encoder[2].weight.t())))  # pyright: ignore[reportCallIssue]


class Tied(nn.Module):
    """Two layers hold the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.b(torch.relu(self.a(torch.relu(self.enter(x)))))))


@pytest.mark.parametrize("cls", [Autoencoder, Tied])
def test_tied_weights(cls: Callable[[], nn.Module]) -> None:
    assert checked(network(cls()), 6).units >= 2


def test_a_layer_without_a_rule_between_others_is_named() -> None:
    """It has no units that could be frozen, nor have its neighbours."""
    model = network(parametrizations.orthogonal(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    with pytest.raises(fxcat.NothingToPruneError, match="unknown operation _Orthogonal"):
        reasons(model, 3, 4, 4)


def test_frozen_layers_are_pruned_like_others() -> None:
    model = network(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    model[0].requires_grad_(False)  # pyright: ignore[reportIndexIssue]
    net = fxcat.prepare(model, torch.zeros(1, 3, 8, 8, dtype=torch.float64), verbose=False)
    net.gates["0"].theta[3:] = 0.0
    small = fxcat.finalize(net)
    assert small[0].weight.shape == (3, 3, 3, 3) and not small[0].weight.requires_grad  # pyright: ignore[reportIndexIssue]


def test_a_module_called_several_times_has_one_gate() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.shared, self.out = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.relu(self.shared(torch.relu(self.shared(torch.relu(self.enter(x)))))))

    assert checked(network(Twice()), 3, 6, 6).groups == 1


class Picking(nn.Module):
    """Calls index_select in its own ways, by a buffer; `read`: that does more than select."""

    def __init__(self, *, read: bool) -> None:
        super().__init__()
        self.read = read
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
        self.last = nn.Conv2d(4, 4, 1)
        self.register_buffer("order", torch.tensor([5, 0, 1, 2, 4, 3]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        order = self.get_buffer("order")
        x = torch.index_select(self.first(x), dim=1, index=order)
        x = torch.index_select(input=x, dim=-3, index=order)
        x = self.last(self.second(torch.index_select(x, 1, order)))
        return x + order.sum() if self.read else x


@pytest.mark.parametrize(("read", "units"), [(False, 6 + 4), (True, 4)])
def test_a_models_own_index_select(read: bool, units: int) -> None:
    model = Picking(read=read).double()
    randomise(model, 0)
    report = check(model, "picking", (1, 3, 8, 8), (2, 3, 9, 9))
    assert report.failures == []
    assert ("selection by values" in {p.reason for p in report.pinned}) == read
    assert report.units == units


class Checkpointed(nn.Module):
    """Blocks whose activations are computed again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(2))
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks(reentrant: bool) -> None:
    model = Checkpointed(reentrant).double()
    randomise(model, 0)
    report = check(model, "checkpointed", (1, 3, 8, 8), (2, 3, 9, 9))
    assert (report.failures, report.units, report.sections) == ([], 8, 2)


class Reversed(torch.autograd.Function):
    """Takes the module that it calls."""

    @staticmethod
    def forward(ctx: Any, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return layer(x)


def test_an_autograd_function_that_takes_a_module_is_refused() -> None:
    class Calling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Reversed.apply(self.last, self.first(x))

    with pytest.raises(fxcat.CaptureError, match="Reversed takes a function"):
        fxcat.prepare(Calling(), torch.randn(1, 3, 8, 8), verbose=False)
