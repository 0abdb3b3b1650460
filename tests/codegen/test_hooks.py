"""Hooks that people register on parts of a network are called, in all of its forms."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from small_task import Net
from torch import nn

import fxcat

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.layers = nn.ModuleList([nn.ReLU()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x + self.inner(x))


class Deep(Net):
    def __init__(self) -> None:
        super().__init__()
        self.more = Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.more(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize("form", ("with gates", "small", "copied", "pickled", "shrunk"))
def test_hooks_on_all_modules_are_called(form: str) -> None:
    net = fxcat.prepare(Deep(), X, verbose=False).eval()
    net.gates["stem.0"].theta[::2] = 0.0
    if form == "shrunk":
        net.shrink()
        net(X)
    network: Any = net.network if form in ("with gates", "shrunk") else fxcat.finalize(net)
    if form == "copied":
        network = copy.deepcopy(network)
    if form == "pickled":
        network = pickle.loads(pickle.dumps(network))
    run: Any = net if form in ("with gates", "shrunk") else network
    for path in ("", "stem", "stem.0", "more", "more.inner", "more.inner.1", "more.layers.0", "head"):
        found: list[str] = []
        module = network.get_submodule(path)
        handles = [
            module.register_forward_pre_hook(lambda *_, found=found: found.append("before")),
            module.register_forward_hook(lambda *_, found=found: found.append("after")),
            module.register_full_backward_hook(lambda *_, found=found: found.append("backward")),
        ]
        run(X.clone().requires_grad_()).sum().backward()
        for handle in handles:
            handle.remove()
        assert found == ["before", "after", "backward"], path
