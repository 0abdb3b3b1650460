"""What users register on a network with gates is the model's: it goes with it, and is in what `finalize` returns."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
import torch.nn.functional as F
from small_task import Net, batches
from torch import nn

import fxcat

X, Y = batches(32).tensors


def prepared() -> Any:
    torch.manual_seed(0)
    return fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)


def doubled(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (2 * inputs[0],)


def shifted(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output + 1


def test_modules_parameters_and_buffers_are_carried_over() -> None:
    net = prepared()
    net.register_buffer("mean", torch.full((3,), 2.0))
    net.register_buffer("cache", torch.zeros(2), persistent=False)
    net.register_parameter("scale", nn.Parameter(torch.ones(1)))
    net.add_module("projector", nn.Linear(4, 2))
    net.predictor, net.temperature = nn.Linear(2, 2), nn.Parameter(torch.ones(()))
    net.gates["block.0"].theta[:10] = 0.0
    net.shrink()
    added = {"mean", "cache", "scale", "projector", "predictor", "temperature"}
    for each in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        small: Any = fxcat.finalize(each)
        for module in (each.network, small):
            assert added <= {*module._modules, *module._parameters, *module._buffers}
            assert torch.equal(module.mean, torch.full((3,), 2.0)) and "cache" not in module.state_dict()
            torch.testing.assert_close(module.projector(torch.ones(1, 4)), net.projector(torch.ones(1, 4)))
    assert not added & {*net._modules, *net._parameters, *net._buffers}
    del net.projector, net.mean
    assert not hasattr(net.network, "projector") and not hasattr(net, "mean")
    assert hasattr(fxcat.finalize(net), "predictor")


def test_what_is_registered_is_trained_beside_the_network() -> None:
    net = prepared().train()
    net.projector = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.05, momentum=0.9)
    controller = fxcat.GateController(net, optimizer, target=fxcat.Target(flops=0.5), total_steps=12)
    before = net.projector.weight.detach().clone()
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(net.projector(net(X)), Y % 2).backward()
        optimizer.step()
        controller.step()
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs
    small: Any = fxcat.finalize(net)
    assert torch.equal(small.projector.weight, net.projector.weight) and not torch.equal(before, small.projector.weight)


def test_hooks_are_carried_over() -> None:
    net, seen = prepared().eval(), list[str]()
    with torch.no_grad():
        expected = net(2 * X) + 1
    handles = [net.register_forward_pre_hook(doubled), net.register_forward_hook(shifted)]
    net.register_full_backward_hook(lambda *_: seen.append("after"))
    net.register_full_backward_pre_hook(lambda *_: seen.append("before"))
    small = fxcat.finalize(net)
    for each in (net, small):
        torch.testing.assert_close(each(X), expected)
    small(X.clone().requires_grad_()).sum().backward()
    assert seen == ["before", "after"]
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(2 * net(X), net(X) + net(X))
    torch.testing.assert_close(net(2 * X) + 1, expected)
    torch.testing.assert_close(small(X), expected)
