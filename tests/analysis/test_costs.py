"""Costs are those counted: of what layers share, and of what a batch computes once."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from exactness import counted_macs, random_gates
from torch import nn

import fxcat
from fxcat.network.cost_model import CostTerm
from fxcat.records import COSTS, COUNTED


class _Branch(nn.Module):
    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.enter, self.shared, self.leave = nn.Conv2d(4, 6, 3, padding=1), shared, nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.leave(self.shared(self.enter(x).relu()).relu())


class _Shared(nn.Module):
    """Branches with a layer in common, which has a name in each."""

    def __init__(self, branches: int) -> None:
        super().__init__()
        shared = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.branches = nn.Sequential(*[_Branch(shared) for _ in range(branches)])
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.branches(self.stem(x)))


class _Tied(nn.Module):
    """Two layers with one weight, which a part of the model that is never called holds too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 4), nn.Linear(4, 2)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.unused = nn.Linear(4, 4, bias=False)
        self.b.weight = self.unused.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.a(x).relu()
        return self.head(x + self.b(x).relu())


@pytest.mark.parametrize(
    ("model", "example"),
    [(_Shared(3), torch.randn(1, 3, 5, 5)), (_Tied(), torch.randn(1, 5))],
    ids=["layer", "weight"],
)
def test_what_all_closed_sections_shared_is_gone(model: nn.Module, example: torch.Tensor) -> None:
    net = fxcat.prepare(model.double().eval(), example.double(), verbose=False).eval()
    sections = [g for g in net.gates.values() if g.kind == "section"]
    for closed in itertools.product((0.0, 1.0), repeat=len(sections)):
        for gate, theta in zip(sections, closed, strict=True):
            gate.set(theta)
        small = fxcat.finalize(net)
        assert net.hard_cost().params == sum(p.numel() for p in small.parameters())
        assert net.hard_cost().macs == counted_macs(small, (example.double(),))
    assert len(sections) > 1


class _Tables(nn.Module):
    """Positions from a network over a grid, queries that every example shares, and features that all are averaged to:
    computed once for a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.rand(7, 2))
        self.positions = nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 6))
        self.queries = nn.Parameter(torch.randn(1, 3, 6))
        self.q, self.k, self.mean, self.head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k = self.k(x + self.positions(self.grid))
        q = self.q(self.queries)
        mean = self.mean(k.mean((0, 1)).unsqueeze(0))
        told = self.q(self.queries.expand(x.shape[0], -1, -1))
        return self.head((q @ k.transpose(1, 2)).softmax(-1) @ k * mean + told)


class _Folded(nn.Module):
    """Heads folded into the batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.head = nn.Linear(6, 12), nn.Linear(4, 5), nn.Linear(15, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, count, _ = x.shape
        heads = self.enter(x).view(n, count, 3, 4).transpose(1, 2).reshape(n * 3, count, 4)
        heads = self.inner(torch.bmm(torch.bmm(heads, heads.transpose(1, 2)).softmax(-1), heads))
        return self.head(heads.view(n, 3, count, 5).transpose(1, 2).flatten(2))


class _OwnKernels(nn.Module):
    """A kernel for each channel of each example, and a mixture of kernels for each example: groups of one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.kernels, self.head = nn.Linear(6, 4), nn.Linear(4, 4 * 3), nn.Linear(4, 2)
        self.mixed, self.choice = nn.Parameter(torch.randn(2, 4, 4, 3)), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x).transpose(1, 2)
        n, channels, count = x.shape
        own = self.kernels(x.mean(2)).view(n * channels, 1, 3)
        x = F.conv1d(x.reshape(1, n * channels, count), own, padding=1, groups=n * channels).view(x.shape)
        mixed = (self.choice(x.mean(2)).sigmoid() @ self.mixed.flatten(1)).view(n * 4, 4, 3)
        x = F.conv1d(x.reshape(1, n * channels, count), mixed, padding=1, groups=n).view(x.shape)
        x = F.conv_transpose1d(x.reshape(1, n * channels, count), mixed, padding=1, groups=n).view(x.shape)
        return self.head(x.transpose(1, 2))


class _Unlike(nn.Module):
    """Images, and sentences that are not as many."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(42, 8), nn.ReLU(), nn.Linear(8, 6))
        self.text = nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 6))

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.image(x) @ self.text(text).T


@pytest.mark.parametrize("kind", [_Tables, _Folded, _OwnKernels, _Unlike])
def test_costs_of_one_example_do_not_depend_on_the_batch(kind: type[nn.Module]) -> None:
    model = kind().eval().requires_grad_(False)
    more = (torch.randn(11, 3),) if kind is _Unlike else ()
    one = (torch.randn(1, 7, 6), *more)
    for batch in (1, 2, 8):
        net = fxcat.prepare(model, (torch.randn(batch, 7, 6), *more), verbose=False).eval()
        assert net.start_cost.macs == counted_macs(model, one)
        random_gates(net, 3)
        assert net.hard_cost().macs == counted_macs(fxcat.finalize(net), one)
        net.shrink()
        assert net.start_cost.macs == counted_macs(model, one)
        assert net.hard_cost().macs == counted_macs(fxcat.finalize(net), one)


class _OneExample(nn.Module):
    """A sequence without a batch axis."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.enter, self.inner, self.head = nn.Linear(6, 8), inner, nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        if isinstance(self.inner, nn.Conv1d):
            return self.head(self.inner(x.T).T)
        given = (x, x, x) if isinstance(self.inner, nn.MultiheadAttention) else (x,)
        return self.head(self.inner(*given)[0].relu())


@pytest.mark.parametrize(
    "inner",
    [
        *(nn.LSTM(8, 8), nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)),
        nn.Conv1d(8, 8, 3, padding=1),
    ],
    ids=lambda m: type(m).__name__,
)
def test_an_input_without_a_batch_axis_is_one_example(inner: nn.Module) -> None:
    model, x = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), _OneExample(inner)), torch.randn(5, 6).double()
    model = model.double().eval().requires_grad_(False)
    net = fxcat.prepare(model, x, verbose=False).eval()
    assert net.start_cost.macs == counted_macs(model, (x,))


class _Nested(nn.Module):
    """A layer shared by sections of sections."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 4), nn.Linear(4, 2)
        self.shared, self.own = nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for own in self.own:
            y = own(x)
            for _ in range(2):
                y = y + self.shared(y).relu()
            x = x + y.relu()
        return self.head(x + self.shared(x.relu()))


@pytest.mark.parametrize(("model", "width"), [(_Nested(), 5), (_Shared(3), 3)], ids=["nested", "side by side"])
def test_expected_cost_of_what_is_shared_is_the_mean_over_settings(model: nn.Module, width: int) -> None:
    example = torch.randn(1, 5) if width == 5 else torch.randn(1, 3, 5, 5)
    net = fxcat.prepare(model.double().eval(), example.double(), gates="layers", verbose=False).eval()
    theta = torch.linspace(0.2, 0.9, len(net.gates), dtype=torch.float64)
    for gate, value in zip(net.gates.values(), theta.tolist(), strict=True):
        gate.set(value)
    told = net.expected_cost()
    mean = torch.zeros(2, dtype=torch.float64)
    for setting in itertools.product((0.0, 1.0), repeat=len(theta)):
        for gate, value in zip(net.gates.values(), setting, strict=True):
            gate.set(value)
        small, chosen = fxcat.finalize(net), torch.tensor(setting, dtype=torch.float64)
        counted = counted_macs(small, (example.double(),)), sum(p.numel() for p in small.parameters())
        assert (net.hard_cost().macs, net.hard_cost().params) == counted
        mean += torch.tensor(counted) * (theta * chosen + (1 - theta) * (1 - chosen)).prod()
    assert len(theta) > 2
    torch.testing.assert_close(torch.stack([told.macs, told.params]).double().detach(), mean)


def test_every_kind_of_cost_has_a_coefficient_and_a_target() -> None:
    kinds = {f.name for f in dataclasses.fields(CostTerm)}
    assert kinds.issuperset(COUNTED)
    assert {f.name for f in dataclasses.fields(fxcat.Target)}.issuperset(COSTS)
    assert {f.name for f in dataclasses.fields(fxcat.Pressure)}.issuperset(COSTS[1:])


def test_a_layer_that_many_sections_share_costs_no_time() -> None:
    net = fxcat.prepare(_Shared(24), torch.randn(1, 3, 5, 5), verbose=False)
    assert len(net.structure.sections) == 24
    assert len(net.structure.terms) < 24 * 10 * len(COUNTED)


class _Asserting(nn.Module):
    """A branch that normalizes by a function of its own parameters, and asserts sizes of what comes out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.table, self.index = nn.Parameter(torch.randn(9, 2)), torch.arange(16) % 9
        self.qkv, self.leave = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 7), nn.GELU(), nn.Linear(7, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(F.layer_norm(x, x.shape[-1:], self.weight, self.bias))
        return x + self.mlp(x)

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        batch, count, width = x.shape
        torch._assert(count % 2 == 0, f"{count} tokens")
        q, k, v = self.qkv(x).reshape(batch, count, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index].view(count, count, 2).permute(2, 0, 1)
        scores = (q @ k.transpose(-2, -1)) * (width // 2) ** -0.5 + bias
        return self.leave((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, count, width))


def test_no_norm_stays_for_an_assertion() -> None:
    model = nn.Sequential(nn.Linear(3, 6), _Asserting(6), _Asserting(6), nn.Linear(6, 2)).double().eval()
    example = torch.randn(1, 4, 3, dtype=torch.float64)
    net = fxcat.prepare(model, example, verbose=False).eval()
    sections = [g for g in net.gates.values() if g.kind == "section"]
    assert len(sections) == 4
    for closed in itertools.product((0.0, 1.0), repeat=4):
        for gate, theta in zip(sections, closed, strict=True):
            gate.set(theta)
        small = fxcat.finalize(net)
        counted = counted_macs(small, (example,)), sum(p.numel() for p in small.parameters())
        assert (net.hard_cost().macs, net.hard_cost().params) == counted
        torch.testing.assert_close(small(example), net(example))


class _Attending(nn.Module):
    """Training differs before an attention whose weights are cut into three parts, of which PyTorch asks the sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention, self.head = (
            nn.Linear(6, 8),
            nn.MultiheadAttention(8, 1, batch_first=True),
            nn.Linear(8, 3),
        )
        self.queries = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x * 0.5 if self.training else x
        q = self.queries.expand(x.shape[0], -1, -1)
        x = x + self.attention(q, x, x)[0]
        return self.head(x.mean(1))


def test_weights_do_not_stay_for_an_assertion_about_their_sizes() -> None:
    net = fxcat.prepare(_Attending(), torch.zeros(1, 5, 6), verbose=False)
    for gate in net.gates.values():
        if gate.kind == "section":
            gate.set(0.0)
    small = fxcat.finalize(net)
    assert not hasattr(small, "attention")
    assert net.hard_cost().params == sum(p.numel() for p in small.parameters())


class _Product(nn.Module):
    """A product of projected tokens, by a function of them."""

    def __init__(self, product: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.product = product
        self.a, self.b, self.c, self.leave = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 4)
        self.vector = nn.Parameter(torch.randn(6))
        self.head = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.leave(self.product(self.a(x), self.b(x), self.c(x), self.vector)).relu())


PRODUCTS: dict[str, Callable[..., torch.Tensor]] = {
    "three": lambda a, b, c, v: torch.einsum("nik,njk,njl->nil", a, b, c),
    "ellipsis": lambda a, b, c, v: torch.einsum("...ij,...jk->...ik", torch.einsum("...ik,...jk->...ij", a, b), c),
    "diagonal": lambda a, b, c, v: c * torch.einsum("nii->ni", a @ b.transpose(1, 2)).unsqueeze(-1),
    "vector": lambda a, b, c, v: a * (b @ v).unsqueeze(-1),
    "rows": lambda a, b, c, v: c * (v @ b.transpose(1, 2)).unsqueeze(-1),
    "outer": lambda a, b, c, v: (a.unsqueeze(-1) @ b.unsqueeze(-2)).mean(-1),
}


@pytest.mark.parametrize("kind", PRODUCTS)
def test_costs_of_products(kind: str) -> None:
    model = _Product(PRODUCTS[kind]).double().eval().requires_grad_(False)
    example = torch.randn(1, 4, 3, dtype=torch.float64)
    net = fxcat.prepare(model, example, verbose=False).eval()
    for seed in range(3):
        random_gates(net, seed)
        small = fxcat.finalize(net)
        assert net.hard_cost().macs == counted_macs(small, (example,))
        torch.testing.assert_close(small(example), net(example))


class _ThreeAxes(nn.Module):
    """Weights with units along three axes, of which two or all have the same."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(2, 3), nn.Linear(2, 2), nn.Linear(3, 1)
        self.layer = nn.Bilinear(3, 2 if kind == "apart" else 3, 3)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x).relu()
        y = self.layer(a, self.b(x).relu() if self.kind == "apart" else a)
        return self.last(a + y if self.kind == "one" else y.relu())


@pytest.mark.parametrize("kind", ["apart", "two", "one"])
def test_expected_cost_over_three_axes_is_the_mean_over_settings(kind: str) -> None:
    net = fxcat.prepare(_ThreeAxes(kind).double(), torch.randn(1, 2).double(), gates="units", verbose=False).eval()
    theta = net.gate_vector.theta
    values = torch.linspace(0.2, 0.9, len(theta), dtype=theta.dtype)
    with torch.no_grad():
        theta.copy_(values)
    told, mean = net.expected_cost(), 0.0
    for setting in itertools.product((0.0, 1.0), repeat=len(theta)):
        chosen = torch.tensor(setting, dtype=theta.dtype)
        with torch.no_grad():
            theta.copy_(chosen)
        mean += net.hard_cost().params * (values * chosen + (1 - values) * (1 - chosen)).prod().item()
    assert len(theta) == {"apart": 8, "two": 6, "one": 3}[kind]
    assert told.params.item() == pytest.approx(mean)
