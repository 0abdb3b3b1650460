"""Sections of networks that compute more in training: noise, labels that are dropped, behind a norm or not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from exactness import check_on, randomise
from torch import nn

import fxcat


class Noisy(nn.Module):
    """Residual branches behind what only training does; every branch is scaled by one layer for both of a block."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.time = nn.Linear(4, 6)
        self.scales = nn.ModuleList([nn.Linear(6, 16) for _ in range(2)])
        self.first = nn.ModuleList([nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)) for _ in range(2)])
        self.second = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)) for _ in range(2)]
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if self.training and self.kind == "noise":
            x = x + torch.randn_like(x) * 0.1
        x = self.stem(x)
        t = self.time(t.to(x.dtype))
        if self.training and self.kind == "dropped":
            t = torch.where(torch.rand(len(t), 1) < 0.3, 0, t)
        for scale, first, second in zip(self.scales, self.first, self.second, strict=True):
            a, b = scale(F.silu(t)).chunk(2, 1)
            x = x + a[:, :, None, None] * first(x)
            if self.training and self.kind == "one mode":
                x = F.relu(x + second(x) * b.mean())
            else:
                x = x + b[:, :, None, None] * second(x)
        return self.head(x.mean((2, 3)))


def _example(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 6, 6, dtype=torch.double), torch.randn(batch, 4, dtype=torch.double)


@pytest.mark.parametrize("kind", ["plain", "noise", "dropped"])
def test_what_training_does_beforehand_leaves_sections(kind: str) -> None:
    model = Noisy(kind).double()
    randomise(model, 0)
    net = fxcat.prepare(model, _example(1), verbose=False)
    names = ["first.0.section", "second.0.section", "first.1.section", "second.1.section"]
    assert [s.name for s in net.structure.sections] == names
    assert all(s.macs and s.params for s in net.structure.sections)
    assert check_on(model, kind, _example(1), _example(3), _example(3), net=net, settings=4).failures == []


def test_a_section_closes_in_both_modes() -> None:
    model = Noisy("noise").double()
    net = fxcat.prepare(model, _example(1), verbose=False)
    for name in ("first.1.section", "second.1.section"):
        net.gates[name].theta.fill_(0.0)
    small = fxcat.finalize(net)
    assert not {n for n, _ in small.named_parameters() if n.split(".")[1] == "1" and not n.startswith("head")}
    assert net.hard_cost().params == sum(p.numel() for p in small.parameters())
    one, same = small.train()(*_seeded()), net.train()(*_seeded())
    torch.testing.assert_close(one, same, rtol=1e-10, atol=1e-10)


def _seeded() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return _example(3)


def test_what_is_a_section_in_one_mode_alone_is_none() -> None:
    model = Noisy("one mode").double()
    randomise(model, 0)
    net = fxcat.prepare(model, _example(1), verbose=False)
    assert check_on(model, "one mode", _example(1), _example(3), _example(3), net=net, settings=3).failures == []
