"""Training a small network to half of its MACs by a loop of one's own, and what has to hold at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from small_task import Net, batches
from torch import nn

import fxcat

EXAMPLE = torch.zeros(1, 3, 8, 8)
HALF = fxcat.Target(flops=0.5)
X, Y = batches(256).tensors
STEPS = 16

Step = Callable[[fxcat.GatedModule, torch.optim.Optimizer, torch.Tensor, torch.Tensor, int], object]


def prepared(model: nn.Module | None = None) -> fxcat.GatedModule:
    torch.manual_seed(0)
    return fxcat.prepare(Net() if model is None else model, EXAMPLE, verbose=False).train()


def sgd(net: fxcat.GatedModule) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.weight_parameters(), lr=0.02, momentum=0.9)


def controlled(net: fxcat.GatedModule, optimizer: Any, steps: int = STEPS, **options: Any) -> fxcat.GateController:
    return fxcat.GateController(net, optimizer, target=HALF, total_steps=steps, **options)


def batch(i: int) -> tuple[torch.Tensor, torch.Tensor]:
    return X[i * 16 % 256 :][:16], Y[i * 16 % 256 :][:16]


def check(net: fxcat.GatedModule) -> None:
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs
    small, x = fxcat.finalize(net.eval()), X[:4]
    torch.testing.assert_close(small(x), net(x))
    assert sum(p.numel() for p in small.parameters()) == net.hard_cost().params


def run(step: Step, net: fxcat.GatedModule | None = None) -> None:
    net = prepared() if net is None else net
    optimizer = sgd(net)
    controller = controlled(net, optimizer)
    for i in range(STEPS):
        step(net, optimizer, *batch(i), i)
        controller.step()
    check(net)


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
