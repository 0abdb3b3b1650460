"""With open gates a network trains as the model does: outputs, statistics, buffers, random draws, gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
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


BLOCKS = (_unread_norm, _unread_layers, _norm_of_inference, _norm_of_each_mode, _running_mean)

NORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "group norm": lambda x: F.group_norm(x, 2),
    "group norm of one group": lambda x: F.group_norm(x, 1),
    "batch norm without statistics": lambda x: F.batch_norm(x, None, None, training=True),
    "instance norm": F.instance_norm,
    "response norm": lambda x: F.local_response_norm(x, 3),
}
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


def _drawn(norm: str, layout: str, net: _Net, x: torch.Tensor) -> torch.Tensor:
    """Dropout draws its numbers in the order in which its input lies in memory."""
    return net.drop(NORMS[norm](LAYOUTS[layout](net.conv(x))))


DRAWN = [pytest.param(partial(_drawn, n, o), id=f"{n}, {o}") for n in NORMS for o in LAYOUTS]


@pytest.mark.parametrize("block", [*BLOCKS, *DRAWN])
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
