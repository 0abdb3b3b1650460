"""With open gates a network trains as the model does: outputs, statistics, buffers, random draws, gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from exactness import DOUBLE_TOLERANCE, difference, fixed_seed, random_gates
from torch import nn
from torch.utils._pytree import tree_leaves

import fxcat


class _Net(nn.Module):
    """A block twice, and an output that only training has, without which the two modes would have one graph."""

    def __init__(self, block: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.block = block
        self.stem, self.conv, self.head, self.aux = (nn.Conv2d(a, b, 1) for a, b in ((3, 6), (6, 6), (6, 2), (6, 2)))
        self.norm, self.other, self.drop = nn.BatchNorm2d(6, momentum=None), nn.BatchNorm2d(6), nn.Dropout(0.3)
        self.register_buffer("ema", torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = first = self.block(self, self.stem(x))
        y = self.head(self.block(self, x))
        return (y, self.aux(first)) if self.training else y


def _unread_norm(net: _Net, x: torch.Tensor) -> torch.Tensor:
    net.norm(x)
    return net.conv(x).relu()


def _unread_layers(net: _Net, x: torch.Tensor) -> torch.Tensor:
    net.norm(net.conv(x))
    net.drop(x)
    return net.drop(net.conv(x)).relu()


def _norm_of_inference(net: _Net, x: torch.Tensor) -> torch.Tensor:
    a, b = net.norm(net.conv(x)), net.other(x)
    return a.relu() if net.training else (a + b).relu()


def _norm_of_each_mode(net: _Net, x: torch.Tensor) -> torch.Tensor:
    return (net.norm if net.training else net.other)(net.conv(x)).relu()


def _running_mean(net: _Net, x: torch.Tensor) -> torch.Tensor:
    y = net.conv(x)
    if net.training:
        with torch.no_grad():
            net.ema.mul_(0.9).add_(y.mean((0, 2, 3)), alpha=0.1)
    return (y - net.ema.view(1, -1, 1, 1)).relu()


def _frozen_in_forward(net: _Net, x: torch.Tensor) -> torch.Tensor:
    net.other.eval()
    net.drop.training = False
    return net.drop(net.other(net.conv(x))).relu()


def _frozen_in_training(net: _Net, x: torch.Tensor) -> torch.Tensor:
    if net.training:
        for module in net.modules():
            if module is net.other:
                module.eval()
    return net.other(net.conv(x)).relu()


def _frozen_once(net: _Net, x: torch.Tensor) -> torch.Tensor:
    """A pass that leaves no statistics behind."""
    mode = net.other.training
    net.other.eval()
    before = net.other(x)
    net.other.train(mode)
    return net.conv(net.other(x) - before).relu()


BLOCKS = (
    *(_unread_norm, _unread_layers, _norm_of_inference, _norm_of_each_mode, _running_mean),
    *(_frozen_in_forward, _frozen_in_training, _frozen_once),
)


@pytest.mark.parametrize("block", BLOCKS)
def test_open_gates_train_as_the_model(block: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
    torch.manual_seed(0)
    model = _Net(block).double()
    net = fxcat.prepare(model, torch.randn(1, 3, 4, 4, dtype=torch.float64), verbose=False)
    reference = copy.deepcopy(model)
    parameters = dict(reference.named_parameters())
    for step, training in enumerate((True, True, False, True)):
        x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
        results = []
        for each in (reference, net):
            each.train(training)
            each.zero_grad()
            with fixed_seed(step):
                results.append(each(x))
            sum(t.square().sum() for t in tree_leaves(results[-1])).backward()
        assert difference(results[1], results[0]) <= DOUBLE_TOLERANCE
        buffers = dict(net.network.named_buffers())
        for name, buffer in reference.named_buffers():
            assert difference(buffers[name], buffer) <= DOUBLE_TOLERANCE, name
        for name, parameter in net.network.named_parameters():
            if parameter.grad is not None:
                assert difference(parameter.grad, parameters[name].grad) <= DOUBLE_TOLERANCE, name
    random_gates(net.eval(), 1)
    small = fxcat.finalize(net)
    assert difference(small(x), net(x)) <= DOUBLE_TOLERANCE
    assert net.hard_cost().params == sum(p.numel() for p in small.parameters())


def test_dropout_that_is_always_on() -> None:
    class Net(_Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.drop.train()
            return self.head(self.drop(self.conv(self.stem(x)).relu()))

    model, x = Net(_unread_norm).eval(), torch.randn(2, 3, 4, 4)
    net = fxcat.prepare(model, x, verbose=False).eval()
    random_gates(net, 1)
    small = fxcat.finalize(net)
    results: list[torch.Tensor] = []
    for each in (model, net, small):
        with fixed_seed(0):
            results.append(each(x))
    assert not torch.equal(results[0], model(x))
    gates = net.gate_vector.theta.detach().clone()
    net.gate_vector.theta.data.fill_(1.0)
    with fixed_seed(0):
        torch.testing.assert_close(net(x), results[0])
    assert gates.min() < 0.5
    assert results[2].shape == results[1].shape


def test_a_mode_that_is_of_the_next_pass_is_refused() -> None:
    class Net(_Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.other(self.stem(x))
            self.other.eval()
            return self.head(self.conv(y).relu())

    with pytest.raises(fxcat.FxcatError, match="in one mode"):
        fxcat.prepare(Net(_unread_norm), torch.randn(1, 3, 4, 4), verbose=False)
