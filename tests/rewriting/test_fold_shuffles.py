"""Shuffles that removal breaks: the weights around them take the channels in another order."""

from __future__ import annotations

import copy
import inspect
import logging
import textwrap
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from differences import difference
from exactness import counted_macs, random_gates, randomise
from torch import nn
from torchvision_nets import shufflenet

import fxcat
from fxcat.passes.rules import Sample, registered


def shuffled(x: torch.Tensor, groups: int) -> torch.Tensor:
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class Plain(nn.Module):
    """A shuffle between two layers, through ops that treat channels alike."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 1)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.depthwise = nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.bn, self.pool = nn.BatchNorm2d(12), nn.MaxPool2d(2)
        self.head = nn.Linear(12 * 4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = shuffled(F.relu(self.first(x)), 2) * self.scale
        x = self.pool(self.bn(self.depthwise(x)))
        return self.head(x.flatten(1))


class Blocks(nn.Module):
    """As ShuffleNet: one half passes a block by, and a shuffle mixes the halves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            a, b = x.chunk(2, 1)
            x = shuffled(torch.cat((a, block(b)), 1), 2)
        return self.head(x)


class Groups(nn.Module):
    """A layer whose groups are what lies beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([0, 4, 1, 5, 2, 6, 3, 7]))
        self.first, self.grouped, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.grouped(self.first(x).index_select(1, self.get_buffer("order"))))


def pruned(model: nn.Module, x: torch.Tensor, closed: dict[str, list[int]]) -> tuple[nn.Module, float]:
    """What is left of a network without some units, and how far it is from the one with gates."""
    randomise(model, 0)
    net = fxcat.prepare(model.double(), x, verbose=False).eval()
    for name, units in closed.items():
        net.gates[name].theta[units] = 0.0
    small = fxcat.finalize(net)
    assert sum(p.numel() for p in small.parameters()) == net.hard_cost().params
    return small, difference(small(x), net(x))


def body(module: nn.Module) -> str:
    """Generated statements, without the head of the function."""
    return textwrap.dedent(inspect.getsource(type(module).forward).partition("\n")[2]).partition(
        "_as_written(self, x)\n"
    )[2]


X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

PLAIN = """\
x = self.first(x)
x = F.relu(x)
x = x * self.scale
x = self.depthwise(x)
x = self.bn(x)
x = self.pool(x)
x = x.flatten(1)
x = self.head(x)
return x
"""


def test_a_shuffle_between_layers_goes() -> None:
    model = Plain()
    small, error = pruned(model, X, {"first": [1, 5]})
    assert error <= 1e-14
    assert body(small) == PLAIN
    assert set(small.state_dict()) == set(model.state_dict())
    # the producer's channels stay in their order, and the consumers follow
    order = [model.first.weight[i].flatten().tolist() for i in (0, 2, 3, 4)]
    assert [w.flatten().tolist() for w in small.get_parameter("first.weight")] == order


def test_halves_that_pass_blocks_by() -> None:
    small, error = pruned(Blocks(), X, {"stem": [1, 2, 6], "blocks.0": [0], "blocks.1": [3]})
    assert error <= 1e-14
    code = body(small)
    assert "index_select" not in code and "transpose" not in code
    assert sum("torch.cat" in line for line in code.splitlines()) == 3
    assert not list(small.buffers())


class BehindSection(nn.Module):
    """A shuffle of what a section is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(shuffled(x + self.branch(F.relu(x)), 2).mean((2, 3)))


def test_a_shuffle_behind_a_closed_section() -> None:
    """What it takes is the shortcut then."""
    net = fxcat.prepare(BehindSection().double(), X, verbose=False).eval()
    for gate in net.gates.values():
        gate.theta[[1, 5] if gate.kind == "units" else [0]] = 0.0
    with torch.no_grad():
        expected = net(X)
        assert net.shrink()
        assert difference(net(X), expected) <= 1e-14
    assert not net.structure.sections


def test_what_minds_the_order_of_channels_keeps_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fxcat.passes")
    net = fxcat.prepare(Groups().double(), X, verbose=False).eval()
    for gate in net.gates.values():
        gate.theta[0] = 0.0
    small = fxcat.finalize(net)
    assert difference(small(X), net(X)) <= 1e-14
    assert "index_select" in body(small)
    assert "a permutation of channels stays an index_select" in caplog.text


def test_the_networks_own_permutation_goes_too() -> None:
    class Own(Groups):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(F.relu(self.first(x).index_select(1, self.get_buffer("order"))))

    small, error = pruned(Own(), X, {"first": [3]})
    assert error <= 1e-14
    assert not list(small.buffers()) and "index_select" not in body(small)


def test_one_permutation_behind_another() -> None:
    class Twice(Groups):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            order = self.get_buffer("order")
            return self.last(F.relu(self.first(x).index_select(1, order)).index_select(1, order).index_select(1, order))

    small, error = pruned(Twice(), X, {"first": [3, 4]})
    assert error <= 1e-14
    assert not list(small.buffers()) and "index_select" not in body(small)


def test_beside_a_number_that_is_computed_of_a_weight() -> None:
    class Normalised(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(6, 6, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.conv2d(self.first(x), self.kernel / self.kernel.norm())
            return self.head(self.pool(self.bn(self.depthwise(shuffled(x, 2)))).flatten(1))

    closed = {"kernel": [0, 3, 4]}
    assert pruned(Normalised(), X, closed)[1] <= 1e-14


def test_shufflenet() -> None:
    """Nothing but the model's own ops is left, whose files every runtime computes rightly."""
    model = shufflenet().double()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    randomise(model, 0)
    net = fxcat.prepare(model, x, verbose=False).eval()
    random_gates(net, 1)
    small = fxcat.finalize(net)
    assert difference(small(x), net(x)) <= 1e-12
    assert small.state_dict().keys() == model.state_dict().keys()
    macs, params = net.hard_cost().macs, net.hard_cost().params
    assert (counted_macs(small, (x,)), sum(p.numel() for p in small.parameters())) == (macs, params)


SAMPLES = [(rule.equivariant, s) for rule in registered() for s in rule.samples() if s.axis == 1 and not rule.movement]


class Around(nn.Module):
    """A permutation, and an op behind it, between two layers."""

    def __init__(self, op: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        kind: Any = getattr(nn, {2: "Linear", 3: "Conv1d", 4: "Conv2d", 5: "Conv3d"}[len(shape)])
        self.register_buffer("order", torch.arange(shape[1]).roll(2).flip(0))
        leaving = op.eval()(torch.zeros(shape)).shape[1]
        more: tuple[int, ...] = () if len(shape) == 2 else (1,)
        self.first, self.op, self.last = kind(3, shape[1], *more), op, kind(leaving, 2, *more)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.op(self.first(x).index_select(1, self.get_buffer("order"))))


@pytest.mark.parametrize(("equivariant", "sample"), SAMPLES, ids=lambda v: str(getattr(v, "module", v)))
def test_what_a_rule_says_of_the_order_of_channels(equivariant: bool, sample: Sample) -> None:
    model = Around(copy.deepcopy(sample.module), sample.shape).double()
    x = torch.randn(sample.shape[0], 3, *sample.shape[2:], dtype=torch.float64)
    randomise(model, 0)
    net = fxcat.prepare(model, x, verbose=False).eval()
    next(iter(net.gates.values())).theta[0] = 0.0
    small = fxcat.finalize(net)
    assert difference(small(x), net(x)) <= 1e-12
    assert not equivariant or "index_select" not in body(small)
