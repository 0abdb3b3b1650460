"""What `prepare` and `finalize` check by running, and `verify`: faults are found, and nothing is left behind."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import random_gates, randomise
from torch import nn

import fxcat
from fxcat.passes import verification
from fxcat.passes.rules import table
from fxcat.passes.verification import difference
from fxcat.rules import decomposition


class Twice(nn.Module):
    """What the tests let fxcat misunderstand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(table, "_DECOMPOSITIONS", dict(table._DECOMPOSITIONS))
    yield


def network(middle: nn.Module) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), middle, nn.Dropout(0.5), nn.Conv2d(8, 3, 1))
    randomise(model, 0)
    return model


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def wrong(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return 2.001 * x


def wrong_in_training(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return 3 * x if module.training else 2 * x


def wrong_order(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """It draws a random number more."""
    return 2 * x + 0 * F.dropout(x, training=module.training)


@pytest.mark.parametrize(
    ("meaning", "mode", "first"), [(wrong, "eval", 2), (wrong_in_training, "train", 2), (wrong_order, "train", 3)]
)
def test_prepare_refuses_what_it_misunderstands(meaning: Callable[..., Any], mode: str, first: int) -> None:
    decomposition(Twice)(meaning)
    model = network(Twice())
    with pytest.raises(fxcat.CaptureError, match=rf"something else in {mode}\(\): result is off by") as raised:
        fxcat.prepare(model, IMAGE, verbose=False)
    assert f"first in {first}" in str(raised.value.where)
    net = fxcat.prepare(model, IMAGE, verify=False, verbose=False)
    if mode == "eval":
        with pytest.raises(fxcat.VerificationError):
            fxcat.verify(net, model, IMAGE)
    else:
        assert fxcat.verify(net, model, IMAGE) == 0


class FailsLate(torch.autograd.Function):
    """Runs where shapes are looked for only."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x if x.is_meta else x[:, 100]


def test_prepare_refuses_what_does_not_run() -> None:
    decomposition(Twice)(lambda module, x: FailsLate.apply(x))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), network(Twice()))
    model[1][0] = nn.Conv2d(8, 8, 3)  # pyright: ignore[reportIndexIssue]
    with pytest.raises(fxcat.CaptureError, match=r"does not run in eval\(\): IndexError"):
        fxcat.prepare(model, IMAGE, verbose=False)


class Counting(nn.Module):
    """Random in training; it remembers in a buffer and in an attribute, and a statistic is updated."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.runs: list[int] = []
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs.append(len(x))
        self.calls += 1
        return self.norm(x)


def test_verifying_leaves_nothing_behind() -> None:
    model = network(Counting()).train()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    net = fxcat.prepare(model, IMAGE, verify=True, verbose=False)
    drawn = torch.rand(3)
    fxcat.verify(net, model, IMAGE)
    small = fxcat.finalize(net, verify=IMAGE)
    for module in (model, net.network, small):
        state = module.state_dict()
        assert all(torch.equal(state[k], v) for k, v in before.items())
        assert getattr(module.get_submodule("2"), "runs", []) == []  # the networks do not have it
        assert module.training
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    random = net.gate_vector.random_state
    assert torch.equal(random, fxcat.prepare(model, IMAGE, verify=False, verbose=False).gate_vector.random_state)


def test_finalize_tells_what_differs() -> None:
    net = fxcat.prepare(network(nn.ReLU()), IMAGE, verbose=False)
    random_gates(net, 0)
    small = fxcat.finalize(net, verify=IMAGE)
    assert fxcat.verify(small, net, IMAGE) == fxcat.verify(small, net, {"input": IMAGE}) <= 1e-6
    with torch.no_grad():
        small.get_submodule("4").weight.mul_(1.01)  # pyright: ignore[reportCallIssue]
    with pytest.raises(fxcat.VerificationError, match="result is off by"):
        fxcat.verify(small, net, IMAGE)


def test_where_rounding_decides_nothing_is_refused() -> None:
    class Ranks(nn.Module):
        """Which entry is the largest of many that are equal but for rounding."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((1, 2, 3)) * 1e9

    def otherwise(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x.mean(3).mean((1, 2)) * 1e9

    decomposition(Ranks)(otherwise)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), Ranks())
    with torch.no_grad():  # the mean is zero but for rounding
        model[1].weight[2:] = -model[1].weight[:2]  # pyright: ignore[reportIndexIssue]
        model[1].bias.zero_()  # pyright: ignore[reportCallIssue]
    fxcat.prepare(model, IMAGE, verify=True, verbose=False)


def test_models_that_do_not_run_on_the_example_are_not_checked() -> None:
    class Positive(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.embedding(x.long().flatten(1)[:, :4], self.weight)

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 6))

    model = nn.Sequential(Positive(), nn.Linear(6, 8), nn.Linear(8, 2))
    fxcat.prepare(model, torch.full((2, 4), 100.0), verbose=False)
    fxcat.prepare(model, torch.empty(2, 4, device="meta"), verbose=False)


def test_large_networks_are_checked_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    decomposition(Twice)(wrong)
    model = network(Twice())
    monkeypatch.setattr(verification, "CHEAP", 1000)
    fxcat.prepare(model, IMAGE, verbose=False)
    with pytest.raises(fxcat.CaptureError):
        fxcat.prepare(model, IMAGE, verify=True, verbose=False)


class Single(Twice):
    """As norms that are stable in half precision: their statistics are of single precision."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance = x.float().pow(2).mean(1, keepdim=True)
        return 2 * x * torch.rsqrt(variance + 1e-6)


def off(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return type(module).forward(module, x) * module.factor


@pytest.mark.parametrize(
    ("middle", "factor", "refused"),
    [(Single(), 1.0, False), (Single(), 1 + 1e-6, False), (Single(), 1.001, True), (Twice(), 1 + 1e-6, True)],
)
def test_models_that_cast_to_single_precision_are_held_to_that(middle: Any, factor: float, refused: bool) -> None:
    decomposition(type(middle))(off)
    middle.factor = factor
    model = network(middle).double()
    if not refused:
        fxcat.prepare(model, IMAGE.double(), verify=True, verbose=False)
        return
    with pytest.raises(fxcat.CaptureError, match="computes something else"):
        fxcat.prepare(model, IMAGE.double(), verify=True, verbose=False)


@pytest.mark.parametrize(
    ("found", "expected", "text"),
    [
        ({"a": torch.ones(2)}, {"a": torch.ones(3)}, r"result\['a'\] has the shape"),
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}, r"it lacks result\['b'\]"),
        ((torch.ones(2), torch.tensor([1, 2])), (torch.ones(2), torch.tensor([1, 3])), r"result\[1\] differs in 1 of"),
        (torch.tensor([1.0, float("nan")]), torch.ones(2), "not finite in other entries"),
        (torch.ones(2).double(), torch.ones(2), "holds torch.float64"),
    ],
)
def test_differences_say_where(found: Any, expected: Any, text: str) -> None:

    assert re.search(text, difference(found, expected).text)
    assert difference(expected, expected).size == 0
