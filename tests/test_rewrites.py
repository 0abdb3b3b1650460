"""Golden graphs: where gates go, and what is left after removal."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
import torchvision
from exactness import difference, random_gates, randomise
from torch import nn

import fxcat


class Residual(nn.Module):
    """Stem, a residual block with squeeze-and-excitation, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 6, 3, padding=1)
        self.fc1 = nn.Conv2d(6, 3, 1)
        self.fc2 = nn.Conv2d(3, 6, 1)
        self.outer = nn.Conv2d(6, 4, 1)
        self.outer_bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.stem(x)))
        y = F.relu(self.inner(x))
        scale = F.relu(self.fc1(F.adaptive_avg_pool2d(y, 1)))
        y = y * torch.sigmoid(self.fc2(scale))
        x = x + self.outer_bn(self.outer(y))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def body(module: nn.Module) -> list[str]:
    """Generated statements, without those that free values."""
    lines = inspect.getsource(type(module).forward).splitlines()[1:]
    return [line.split(";")[0].strip() for line in lines if line.strip()]


GATED = """\
if _isinstance(x, _others):
return _as_written(self, x)
stem = self.stem(x)
fxcat_gates_bn_weight = self.fxcat_gates.bn_weight
fxcat_gates_bn_bias = self.fxcat_gates.bn_bias
bn = self.bn(stem, fxcat_gates_bn_weight, fxcat_gates_bn_bias)
relu = torch.nn.functional.relu(bn, inplace = False)
fxcat_gates_inner_gate = self.fxcat_gates.inner_gate
inner = self.inner(relu, fxcat_gates_inner_gate)
relu_1 = torch.nn.functional.relu(inner, inplace = False)
adaptive_avg_pool2d = torch.nn.functional.adaptive_avg_pool2d(relu_1, 1)
fc1 = self.fc1(adaptive_avg_pool2d)
fxcat_gates_fc1_gate = self.fxcat_gates.fc1_gate
mul = fc1 * fxcat_gates_fc1_gate
relu_2 = torch.nn.functional.relu(mul, inplace = False)
fc2 = self.fc2(relu_2)
sigmoid = torch.sigmoid(fc2)
mul_1 = relu_1 * sigmoid
outer = self.outer(mul_1)
fxcat_gates_outer_bn_weight = self.fxcat_gates.outer_bn_weight
fxcat_gates_outer_bn_bias = self.fxcat_gates.outer_bn_bias
outer_bn = self.outer_bn(outer, fxcat_gates_outer_bn_weight, fxcat_gates_outer_bn_bias)
add = relu + outer_bn
adaptive_avg_pool2d_1 = torch.nn.functional.adaptive_avg_pool2d(add, 1)
flatten = adaptive_avg_pool2d_1.flatten(1)
head = self.head(flatten)
return head
"""


def test_gates_fold_into_what_makes_a_unit_non_zero() -> None:
    """The excitation's sigmoid breaks the zero, but the product with a clean value restores it: no gate there."""
    net = fxcat.prepare(Residual(), torch.zeros(1, 3, 12, 12), verbose=False)
    net(torch.zeros(1, 3, 12, 12))  # compiles it
    assert body(net.network) == GATED.splitlines()


FINAL = """\
if _isinstance(x, _others):
return _as_written(self, x)
stem = self.stem(x)
bn = self.bn(stem)
relu = torch.nn.functional.relu(bn, inplace = False)
adaptive_avg_pool2d_1 = torch.nn.functional.adaptive_avg_pool2d(relu, 1)
flatten = adaptive_avg_pool2d_1.flatten(1)
head = self.head(flatten)
return head
"""


def test_a_closed_section_leaves_only_the_shortcut() -> None:
    net = fxcat.prepare(Residual(), torch.zeros(1, 3, 12, 12), verbose=False)
    (section,) = [g for g in net.gates.values() if g.kind == "section"]
    section.set(0.0)
    small = fxcat.finalize(net)
    assert body(small) == FINAL.splitlines()
    assert set(small.state_dict()) == {k for k in Residual().state_dict() if k.startswith(("stem", "bn", "head"))}
    assert isinstance(small, Residual)


def test_names_and_shapes_after_removal() -> None:
    model = Residual()
    randomise(model, 0)
    net = fxcat.prepare(model, torch.zeros(1, 3, 12, 12), verbose=False).eval()
    net.gates["inner"].theta[[0, 3, 4]] = 0.0
    small = fxcat.finalize(net)
    assert list(small.state_dict()) == list(model.state_dict())
    assert small.get_submodule("inner").out_channels == 3
    assert small.get_submodule("outer").in_channels == 3
    kept = model.inner.weight[[1, 2, 5]]
    torch.testing.assert_close(small.get_parameter("inner.weight"), kept, rtol=0, atol=0)
    x = torch.randn(2, 3, 9, 9)
    assert difference(small(x), net(x)) < 1e-6


class Twice(nn.Module):
    """Two chained identity blocks: removing the first must not break the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.first = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
        self.second = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(x + self.first(x))
        x = self.relu(x + self.second(x))
        return self.head(x)


@pytest.mark.parametrize("closed", ((0,), (1,), (0, 1)))
def test_bypassed_blocks_leave_no_in_place_trap(closed: tuple[int, ...]) -> None:
    net = fxcat.prepare(Twice(), torch.zeros(1, 3, 4, 4), verbose=False).eval()
    sections = [g for g in net.gates.values() if g.kind == "section"]
    for i in closed:
        sections[i].set(0.0)
    small = fxcat.finalize(net).train()
    x = torch.randn(2, 3, 4, 4)
    assert difference(small(x), net(x)) < 1e-6
    small(x).sum().backward()
    # relu(relu(x)) is one ReLU
    assert sum("self.relu" in line for line in body(small)) == 3 - len(closed)


class Head(nn.Module):
    """An auxiliary head that exists only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 8, 1)
        self.main = nn.Conv2d(8, 2, 1)
        self.auxiliary = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = F.relu(self.trunk(x))
        if self.training:
            return self.main(x), self.auxiliary(x)
        return self.main(x)


def test_auxiliary_heads_survive_in_training_only() -> None:
    model = Head()
    net = fxcat.prepare(model, torch.zeros(1, 3, 4, 4), verbose=False)
    net.gates["trunk"].theta[2:] = 0.0
    small = fxcat.finalize(net)
    x = torch.randn(2, 3, 4, 4)
    assert len(small.train()(x)) == 2
    assert isinstance(small.eval()(x), torch.Tensor)
    assert small.get_parameter("auxiliary.weight").shape[1] == 2
    assert net.hard_cost().macs == 16 * (3 * 2 + 2 * 2)


def test_only_what_was_asked_for_is_gated() -> None:
    example = torch.zeros(1, 3, 12, 12)
    assert not fxcat.prepare(Residual(), example, gates="units", verbose=False).structure.sections
    assert not fxcat.prepare(Residual(), example, gates="layers", verbose=False).structure.groups


def test_unknown_operations_are_frozen_and_reported() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(F.relu(self.b(torch.renorm(self.a(x), 2, 0, 1.0))))

    net = fxcat.prepare(Summed(), torch.zeros(1, 3, 4, 4), verbose=False)
    assert [g.name for g in net.structure.groups] == ["b"]
    assert any("renorm" in p.reason for p in net.structure.pinned)


def test_cost_graph_holds_every_op_once() -> None:
    net = fxcat.prepare(Residual(), torch.zeros(1, 3, 12, 12), verbose=False)
    costs = net.structure.costs
    assert costs.nodes["inner"]["macs"] == 144 * 9 * 4 * 6
    assert costs.nodes["inner.weight"]["params"] == 9 * 4 * 6
    assert costs.nodes["inner"]["activation_bytes"] == 144 * 6 * 4
    assert costs.has_edge("relu", "inner")
    assert sum(d["macs"] for _, d in costs.nodes(data=True)) == net.start_cost.macs
    assert sum(d["params"] for _, d in costs.nodes(data=True)) == net.start_cost.params


@pytest.mark.parametrize("seed", range(4))
def test_a_shrink_makes_no_new_sections(seed: int) -> None:
    """Where the attention branch is gone, the sum after it may look like the end of a section that was none before."""
    model = torchvision.models.VisionTransformer(16, 4, 4, 4, 64, 128, num_classes=10).double()
    randomise(model, seed)
    net = fxcat.prepare(model, torch.zeros(1, 3, 16, 16).double(), verbose=False).eval()
    random_gates(net, seed)
    x = torch.randn(2, 3, 16, 16).double()
    with torch.no_grad():
        expected = net(x)
        net.shrink()
        assert difference(net(x), expected) < 1e-12


class Shared(nn.Module):
    """A module on a large and on a small value. Gating its filters is cheaper than gating the large value only; of a
    value that goes into a norm, nothing has to be gated at all."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.stem, self.shared, self.head = nn.Conv2d(3, 8, 1), shared, nn.Conv2d(8, 2, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = F.relu(self.stem(x))
        small, other = F.max_pool2d(x, 4), F.max_pool2d(x, 2)
        return self.head(self.shared(x)), self.head(self.shared(small)), self.head(self.norm(self.shared(other)))


@pytest.mark.parametrize(
    "shared",
    (
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        torchvision.ops.FrozenBatchNorm2d(8),
        nn.Sequential(nn.GroupNorm(1, 8), nn.Conv2d(8, 8, 3, padding=1)),
    ),
)
@pytest.mark.parametrize("mode", (True, False))
def test_a_module_may_be_gated_differently_in_every_call(shared: nn.Module, mode: bool) -> None:
    model = Shared(copy.deepcopy(shared)).double()
    randomise(model, 0)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    net = fxcat.prepare(model, x[:1], verbose=False)
    with torch.no_grad():
        assert difference(net.train(mode)(x), model.train(mode)(x)) <= 1e-10
    random_gates(net, 0)
    assert difference(fxcat.finalize(net.eval())(x), net(x)) <= 1e-10
    net.shrink()
    assert difference(fxcat.finalize(net)(x), net(x)) <= 1e-10


class Attention(nn.Module):
    """Tokens attend to each other; query, key and value come from one layer."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, tokens = x.shape[:2]
        q, k, v = self.qkv(x).reshape(count, tokens, 3, self.heads, 8 // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(count, tokens, 8))


@pytest.mark.parametrize(("heads", "units"), [(1, 8), (2, 2), (4, 4)])
def test_units_of_attention_are_heads_or_the_dimensions_of_the_only_one(heads: int, units: int) -> None:
    model = Attention(heads).double()
    randomise(model, 0)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    net = fxcat.prepare(model, x[:1], verbose=False).eval()
    assert net.live_units() == {"qkv": units}
    net.gates["qkv"].theta[1::2] = 0.0
    small = fxcat.finalize(net)
    assert small.get_parameter("qkv.weight").shape == (12, 6)
    assert difference(small(x), net(x)) <= 1e-10
