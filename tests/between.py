"""Something between two convolutions, captured and pruned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from differences import difference, fixed_seed
from torch import nn

import fxcat

X = torch.rand(2, 3, 8, 8)
Middle = Callable[[torch.Tensor], torch.Tensor]


class Between(nn.Module):
    """Something between two convolutions."""

    def __init__(self, middle: Middle) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.middle = middle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.middle(self.a(x).relu()))


def close_some(net: fxcat.GatedModule) -> None:
    for gate in net.gates.values():
        open_ = torch.arange(gate.theta.numel()) % 3 != 1
        gate.set(open_.to(gate.theta.dtype))


def check(model: nn.Module, *inputs: torch.Tensor, whole: bool = True) -> fxcat.GatedModule:
    """Open gates, in both modes, and removal; nothing is pinned but the output if `whole`."""
    net = fxcat.prepare(model, X, verbose=False)
    for training in (True, False):
        model.train(training)
        net.train(training)
        for x in (X, *inputs):
            for seed in (0, 1):
                with torch.no_grad(), fixed_seed(seed):
                    expected = model(x)
                with torch.no_grad(), fixed_seed(seed):
                    assert difference(net(x), expected) <= 1e-5
    close_some(net)
    small = fxcat.finalize(net)
    for x in (X, *inputs):
        with torch.no_grad(), fixed_seed(0):
            expected = net(x)
        with torch.no_grad(), fixed_seed(0):
            assert difference(small(x), expected) <= 1e-5
    if whole:
        # attributes in which forward leaves values are told of, and are no pins
        assert [p.where for p in net.structure.pinned if not p.where.startswith("attribute")] == ["output"]
    return net


# names -----------------------------------------------------------------------------------------------------------
