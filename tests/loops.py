"""A small network with gates, and the parts of a training loop for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from small_task import Net, batches
from torch import nn

import fxcat

EXAMPLE = torch.zeros(1, 3, 8, 8)
X, Y = batches(512).tensors
STEPS = 60


def prepared(model: nn.Module | None = None) -> fxcat.GatedModule:
    torch.manual_seed(0)
    return fxcat.prepare(Net() if model is None else model, EXAMPLE, verbose=False).train()


def sgd(net: fxcat.GatedModule) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.weight_parameters(), lr=0.05, momentum=0.9)


def controller_of(net: fxcat.GatedModule, optimizer: Any, **options: Any) -> fxcat.GateController:
    return fxcat.GateController(
        net, optimizer, **{"pressure": fxcat.Pressure(nu=0.5), "total_steps": STEPS, "seed": 1} | options
    )


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    start = step * 32 % len(X)
    return X[start : start + 32], Y[start : start + 32]


Step = Callable[[fxcat.GatedModule, torch.optim.Optimizer, int], None]


def plain(net: fxcat.GatedModule, optimizer: torch.optim.Optimizer, step: int) -> None:
    x, y = batch(step)
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    optimizer.step()


def trained(step: Step, steps: int = STEPS, **options: Any) -> fxcat.GatedModule:
    net = prepared()
    optimizer = sgd(net)
    controller = controller_of(net, optimizer, **options)
    for i in range(steps):
        step(net, optimizer, i)
        controller.step()
    return net


def same(one: fxcat.GatedModule, other: fxcat.GatedModule) -> bool:
    """Whether two networks have the same structure and weights, to the last bit."""
    pairs = zip(one.network.parameters(), other.network.parameters(), strict=True)
    return one.live_units() == other.live_units() and all(torch.equal(a, b) for a, b in pairs)
