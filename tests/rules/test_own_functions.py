"""Autograd functions of somebody's own: those that are elementwise pass units on, all others are kept whole."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import check, randomise
from torch import nn
from torch.autograd import Function

import fxcat


class Swish(Function):
    """Saves memory; the gradient is its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 7 * grads[0] * torch.sigmoid(x)


class Spike(Function):
    """One above a threshold, else nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, threshold: float) -> torch.Tensor:
        return (x > threshold).to(x.dtype) + 1.0

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return grads[0], None


class Reversed(Function):
    """The same, with the gradient turned round; of the kind that has no context."""

    @staticmethod
    def forward(x: torch.Tensor, scale: float) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return -ctx.scale * grads[0], None


class ReversedView(Reversed):
    """The same, as most write it."""

    @staticmethod
    def forward(x: torch.Tensor, scale: float) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x.view_as(x)


class ByWidth(Function):
    """Knows how many channels there are."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x / x.shape[1] + 1.0

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0]


class ByNeighbours(ByWidth):
    """Mixes channels."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x + x.flip(1)


class ByMode(ByWidth):
    """With another argument it is another function."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mixes: bool = False) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x + x.mean(1, keepdim=True) if mixes else x + 1

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return (grads[0], None)[: len(ctx.needs_input_grad)]


class Spread(ByWidth):
    """One entry for all."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.max().expand_as(x)


class Drawn(ByWidth):
    """Draws random numbers."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.rand_like(x) < 2, x, 0.0) + 1


class Changed(ByWidth):
    """Writes into what it is given."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.add_(1) * 2


class Through(nn.Module):
    """A function between two layers."""

    def __init__(self, function: type[Function], *args: Any) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.before, self.after = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
        self.function, self.args = function, args

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        called: Any = self.function.apply(self.norm(self.first(x)).clone(), *self.args)
        return self.last(called).mean((2, 3)) + self.after(torch.relu(self.before(x))).mean((2, 3))


def units(model: nn.Module) -> int:
    model = model.double().train()
    randomise(model, 0)
    report = check(model, "own function", (1, 3, 8, 8), (2, 3, 9, 9))
    assert not report.failures
    return report.units


@pytest.mark.parametrize(
    "make",
    [
        *(lambda: Through(Swish), lambda: Through(Spike, 0.3), lambda: Through(Reversed, 0.5)),
        *(lambda: Through(ReversedView, 0.5), lambda: Through(ByMode)),
    ],
    ids=["swish", "spike", "reversed", "reversed view", "by mode"],
)
def test_units_pass_what_is_elementwise(make: Callable[[], nn.Module]) -> None:
    assert units(make()) == 14


@pytest.mark.parametrize("function", [ByWidth, ByNeighbours, Spread, Drawn, Changed])
def test_all_others_are_kept_whole(function: type[Function]) -> None:
    model = Through(function)
    assert units(model) == 6
    net = fxcat.prepare(model, torch.zeros(1, 3, 8, 8, dtype=torch.float64), verbose=False)
    assert f"unknown operation {function.__name__}" in {p.reason for p in net.structure.pinned}


def test_one_with_another_argument_is_another_one() -> None:
    assert units(Through(ByMode, True)) == 6
    assert units(Through(ByMode, False)) == 14


@pytest.mark.parametrize("function", [Swish, ByNeighbours])
def test_the_gradient_is_its_own_and_networks_can_be_pickled(function: type[Function]) -> None:
    torch.manual_seed(0)
    model = Through(function).eval()
    x = torch.randn(2, 3, 8, 8)
    net = fxcat.prepare(model, x[:1], verbose=False).eval()
    for module in (model, net):
        module(x).sum().backward()
    theirs = net.network.get_parameter("first.weight").grad
    assert theirs is not None
    torch.testing.assert_close(theirs, model.first.weight.grad)
    small = fxcat.finalize(net)
    for module in (net, small):
        again = pickle.loads(pickle.dumps(module))
        assert torch.equal(again(x), module(x))
