"""What the units of a smaller network were in the one before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import fxcat


class Branch(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.enter = nn.Conv2d(8, 6, 3, padding=1)
        self.leave = nn.Conv2d(6, 8, 3, padding=1)
        self.leave.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.leave(F.relu(self.enter(x)))


class TiedBranches(nn.Module):
    """Three branches, whose last layers have one weight and biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        weight = nn.Parameter(torch.randn(8, 6, 3, 3))
        self.branches = nn.Sequential(*(Branch(weight) for _ in range(3)))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.branches(self.stem(x)).mean((2, 3)))


def test_a_tied_weight_whose_first_name_goes() -> None:
    model, x = TiedBranches().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    net = fxcat.prepare(model, x[:1], verbose=False).eval()
    for gate in net.gates.values():
        gate.set(0.6 + torch.arange(gate.count) / 100)
    net.gates["branches.0.section"].set(0.0)
    net.gates["stem"].theta[3] = 0.0
    before = net(x).detach()
    net.shrink()
    assert (net(x) - before).abs().max() <= 1e-12
    theta = net.gates["stem"].theta
    assert torch.allclose(theta, 0.6 + torch.tensor([0, 1, 2, 4, 5, 6, 7], dtype=torch.float64) / 100)
    assert net.gates["branches.1.enter"].count == 6
    names = dict(net.network.named_parameters(remove_duplicate=False))
    assert "branches.1.leave.weight" in names and not any(n.startswith("branches.0.") for n in names)
    assert "Conv2d(6, 7" in repr(net.network), "no module is left half empty"
    kept = net.kept_indices()["branches.2.leave.weight"]
    assert kept[0].tolist() == [0, 1, 2, 4, 5, 6, 7] and kept[1].tolist() == list(range(6))
    assert (fxcat.finalize(net)(x) - before).abs().max() <= 1e-12


class Experts(nn.Module):
    """Two experts by products with stacked weights: units along the experts, none within them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.choice = nn.Linear(6, 2, bias=False)
        self.enter, self.leave = nn.Parameter(torch.randn(2, 6, 5)), nn.Parameter(torch.randn(2, 5, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        weights = self.choice(tokens).softmax(-1)
        inner = F.gelu(torch.einsum("bnc,ecd->bned", tokens, self.enter))
        found = torch.einsum("bned,edc->bnec", inner, self.leave)
        return self.head((tokens + (found * weights.unsqueeze(-1)).sum(2)).mean(1))


def test_what_was_no_unit_does_not_become_one() -> None:
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    net = fxcat.prepare(Experts().double(), x[:1], verbose=False).eval()
    assert list(net.gates) == ["choice", "section"]
    net.gates["choice"].theta[1] = 0.0
    before = net(x).detach()
    net.shrink()
    assert list(net.gates) == ["section"], "one expert is left, and its hidden units are none still"
    assert (net(x) - before).abs().max() <= 1e-12 and net.kept_indices()["enter"][0].tolist() == [0]


class Attention(nn.Module):
    """Two heads of three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.qkv, self.out = nn.Linear(8, 18), nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(*tokens.shape[:2], 3, 2, 3).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((tokens + self.out(mixed)).mean(1))


def test_the_last_head_is_not_taken_apart() -> None:
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    model = Attention().double()
    net = fxcat.prepare(model, x[:1], verbose=False).eval()
    assert {name: gate.count for name, gate in net.gates.items()} == {"stem": 8, "qkv": 2, "section": 1}
    net.gates["qkv"].theta[0] = 0.0
    before = net(x).detach()
    net.shrink()
    assert {name: gate.count for name, gate in net.gates.items()} == {"stem": 8, "section": 1}
    small = fxcat.finalize(net)
    assert (small(x) - before).abs().max() <= 1e-12
    assert net.kept_indices()["out.weight"][1].tolist() == [3, 4, 5]


class Counting(nn.Module):
    """Keeps a mean of the first two of its channels, in a buffer that is as long as there are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 3)
        self.mean: torch.Tensor
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).mean((2, 3))
        if self.training:
            with torch.no_grad():
                self.mean[:2] += x.mean(0)[:2]
        return self.head(x)


def test_entries_that_no_layer_makes_are_no_units() -> None:
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    net = fxcat.prepare(Counting().double(), x[:1], verbose=False).eval()
    assert {name: gate.count for name, gate in net.gates.items()} == {"stem": 6}
    for closed in (1, 2):
        net.gates["stem"].theta[closed] = 0.0
        before = net(x).detach()
        net.shrink()
        assert (net(x) - before).abs().max() <= 1e-12
    assert (fxcat.finalize(net)(x) - before).abs().max() <= 1e-12
