"""Ops of users: rules and decompositions registered from outside the package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from exactness import check, randomise
from torch import nn

import fxcat
from fxcat.passes.graph.meta import LINE
from fxcat.passes.rules import table
from fxcat.rules import Elementwise, Labels, Rule, Term, Zero, decomposition, rule, value_of


class ScaleFunction(torch.autograd.Function):
    """Twice the input, with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return 3 * gradients[0]


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ScaleFunction.apply(x)


class Swish(nn.Module):
    """Each channel apart, with a branch that cannot be traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if bool((x == 0).all()) else x * torch.sigmoid(x)


class Pointwise(nn.Module):
    """A 1×1 convolution with weights (in, out), computed in a way of its own."""

    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(entering, leaving))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.numel():
            raise ValueError("empty")
        return torch.einsum("nchw,cd->ndhw", x, self.weight)


class PointwiseRule(Rule):
    """What a user writes for a layer with weights."""

    zero = Zero.BREAKS
    parameters = ("weight",)

    def flow(self, flow: Any, node: torch.fx.Node) -> Labels:
        entering = flow.axis(node.all_input_nodes[0], 1)
        out = flow.fresh(flow.module(node).weight.shape[1], str(node.target))
        flow.bind(node, "weight", 0, entering)
        flow.bind(node, "weight", 1, out)
        return out.reshape(1, -1, 1, 1)

    def needs_zero(self, flow: Any, node: torch.fx.Node) -> tuple[torch.fx.Node, ...]:
        return (node.all_input_nodes[0],)

    def macs(self, flow: Any, node: torch.fx.Node) -> tuple[Term, ...]:
        axes = flow.parameters[f"{node.target}.weight"]
        return (Term(value_of(node).shape[2:].numel(), (axes[0], axes[1])),)


@torch.library.custom_op("fxcat_tests::softened", mutates_args=())
def softened(x: torch.Tensor) -> torch.Tensor:
    """x / (1 + |x|), by a kernel that nobody can look into."""
    return x / (1 + x.abs())


@softened.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def _backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
    return gradient / (1 + context.saved_tensors[0].abs()) ** 2


softened.register_autograd(_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
SPELLINGS = {
    "definition": softened,
    "packet": torch.ops.fxcat_tests.softened,
    "overload": torch.ops.fxcat_tests.softened.default,
}
"""How an op of `torch.library` is called."""


class Softened(nn.Module):
    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return SPELLINGS[self.spelling](x)


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    for name in ("_MODULES", "_FUNCTIONS", "_METHODS", "_DECOMPOSITIONS"):
        monkeypatch.setattr(table, name, dict(getattr(table, name)))
    yield


def network(middle: nn.Module) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), middle, nn.Conv2d(8, 3, 1)).double().train()
    randomise(model, 0)
    return model


def test_an_autograd_function_keeps_its_gradient() -> None:
    model = nn.Sequential(network(Doubled()), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)).double()
    net = fxcat.prepare(model, torch.zeros(1, 3, 8, 8, dtype=torch.float64), verbose=False)
    assert [g.name for g in net.structure.groups] == ["0.0", "0.2", "1"]
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    weights = next(model.parameters()), next(net.weight_parameters())
    gradients = [torch.autograd.grad(m.eval()(x).sum(), w)[0] for m, w in zip((model, net), weights, strict=True)]
    assert torch.allclose(*gradients, rtol=1e-12)


@pytest.mark.parametrize(("op", "layer"), [(ScaleFunction, Doubled), (Swish, Swish)])
def test_a_rule_makes_units_prunable(op: type, layer: type[nn.Module]) -> None:
    """For an autograd function, and for a module: the example of docs/writing_rules.md."""

    @rule(op)
    class _(Elementwise):
        zero = Zero.PRESERVES

    report = check(network(layer()), layer.__name__, (1, 3, 8, 8), (2, 3, 6, 6))
    assert not report.failures
    assert report.units == 8


@pytest.mark.parametrize("called", SPELLINGS)
@pytest.mark.parametrize("registered", SPELLINGS)
def test_an_op_of_torch_library_is_one_however_it_is_called(registered: str, called: str) -> None:
    @rule(SPELLINGS[registered])
    class _(Elementwise):
        zero = Zero.PRESERVES

    report = check(network(Softened(called)), "custom op", (1, 3, 8, 8), (2, 3, 6, 6), settings=1)
    assert not report.failures
    assert report.units == 8


@pytest.mark.parametrize("called", SPELLINGS)
@pytest.mark.parametrize("registered", SPELLINGS)
def test_a_decomposition_of_an_op_of_torch_library(registered: str, called: str) -> None:
    decomposition(SPELLINGS[registered])(lambda x: x / (1 + x.abs()))
    report = check(network(Softened(called)), "custom op", (1, 3, 8, 8), (2, 3, 6, 6), settings=1)
    assert not report.failures
    assert report.units == 8


def test_a_rule_for_a_module_with_weights() -> None:
    rule(Pointwise)(PointwiseRule)
    report = check(network(nn.Sequential(Pointwise(8, 12), Pointwise(12, 8))), "pointwise", (1, 3, 8, 8), (2, 3, 6, 6))
    assert not report.failures
    assert report.units == 8 + 12 + 8
    assert report.coverage == 1.0


def test_a_decomposition_is_captured_instead_of_the_module() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x) if x.sum() > 1e9 else x.clamp(min=0)

    decomposition(Branching)(lambda module, x: torch.relu(x))
    report = check(network(Branching()), "branching", (1, 3, 8, 8), (2, 3, 6, 6))
    assert not report.failures
    assert report.units == 8


@pytest.mark.parametrize("method", ["flow", "macs", "needs_zero"])
def test_a_rule_that_fails_is_named(method: str) -> None:
    class Failing(Elementwise):
        zero = Zero.PRESERVES

    def fail(self: Any, flow: Any, node: Any) -> Any:
        raise KeyError("no such thing")

    fail.__name__ = method
    setattr(Failing, method, fail)
    rule(ScaleFunction)(Failing)
    line = Doubled.forward.__code__.co_firstlineno + 1
    with pytest.raises(fxcat.CaptureError, match=f"Failing.{method} failed: KeyError: 'no such thing'") as caught:
        fxcat.prepare(network(Doubled()), torch.zeros(1, 3, 8, 8), verbose=False)
    assert caught.value.where is not None
    assert f"{__file__}:{line}" in caught.value.where
    assert caught.value.where.startswith("1: ")  # the module, before the op


def test_the_line_of_a_module_that_is_captured_as_simpler_ops_is_the_models() -> None:
    """And not one of the compiler's."""
    net = fxcat.prepare(
        nn.Sequential(nn.Linear(6, 8), Attending(), nn.Linear(8, 2)), torch.zeros(1, 4, 6), verbose=False
    )
    program: Any = net.program
    lines = {LINE.of(node) for node in program.analysis.graph.nodes if LINE.has(node)}
    written = Attending.forward.__code__.co_firstlineno
    assert (__file__, written + 1) in lines
    assert {file for file, _ in lines} == {__file__, "unknown file"}  # nobody has written one for the layers outside


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attention(x, x, x)[0]
