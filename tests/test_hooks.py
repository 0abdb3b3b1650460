"""Hooks that people register on parts of a network: they are called, or it is said that they will not be."""

from __future__ import annotations

import copy
import pickle
import warnings
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
def test_hooks_on_blocks_are_called_or_told_of(form: str) -> None:
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
    for path in ("stem.0", "more.inner.1", "more.layers.0", "head", ""):
        found: list[object] = []
        handle = network.get_submodule(path).register_forward_hook(lambda *_, found=found: found.append(1))
        run(X)
        handle.remove()
        assert found == [1], path
    for path in ("stem", "more", "more.inner"):
        for kind in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"):
            with pytest.warns(UserWarning, match=f"a hook on '{path}' will not be called"):
                getattr(network.get_submodule(path), f"register_{kind}")(lambda *_: None).remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.more.layers.register_forward_hook(lambda *_: None)  # a list is never called


def test_the_small_network_is_prepared_again() -> None:
    net = fxcat.prepare(Deep(), X, verbose=False).eval()
    net.gates["stem.0"].theta[::2] = 0.0
    again = fxcat.prepare(fxcat.finalize(net), X, verbose=False).eval()
    torch.testing.assert_close(again(X), net(X))
    block: Any = again.network.get_submodule("more")
    assert vars(block)["register_forward_hook"]._module is block
