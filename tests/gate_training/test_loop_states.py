"""States of loops: loaded in any order, pickled, given before there is a controller."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import sys
from typing import Any

import pytest
import torch
from loops import STEPS, X, controller_of, plain, prepared, same, sgd, trained
from small_task import Net
from torch import nn

import fxcat


def half_way(state: list[dict[str, Any]] | None, order: tuple[int, ...]) -> fxcat.GatedModule:
    """A whole run, or one that goes on from its states half way, loaded in some order."""
    net = prepared()
    optimizer = torch.optim.AdamW(net.weight_parameters(), lr=2e-3)
    controller = controller_of(net, optimizer, pressure=None, target=fxcat.Target(flops=0.4))
    parts: list[Any] = [net, optimizer, controller]
    start = 0
    if state:
        for i in order:
            parts[i].load_state_dict(state[i])
        start = 40
    for i in range(start, STEPS):
        if i == 40 and state == []:
            file = io.BytesIO()
            torch.save([p.state_dict() for p in parts], file)
            file.seek(0)
            state += torch.load(file, weights_only=True)
        plain(net, optimizer, i)
        controller.step()
    return net


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_a_run_goes_on_from_states_that_are_loaded_in_any_order(order: tuple[int, ...]) -> None:
    state: list[dict[str, Any]] = []
    whole = half_way(state, order)
    assert state[0]["network.block.0.weight"].numel() < Net().block[0].weight.numel()  # pyright: ignore[reportCallIssue]
    assert same(half_way(state, order), whole)


@pytest.mark.parametrize("place", [0, 4])
def test_an_optimizer_of_all_parameters_is_given_its_state_before_there_is_a_controller(place: int) -> None:
    """Trainers restore what they know before they tell anybody; theta may stand anywhere among the weights."""

    def run(states: dict[int, list[Any]], start: int = 0) -> fxcat.GatedModule:
        net = prepared()
        if start:
            net.load_state_dict(states[start][0])
        parameters = [*net.weight_parameters()]
        parameters.insert(place, net.gate_vector.theta)
        optimizer = torch.optim.AdamW(parameters, lr=2e-3)
        if start:
            optimizer.load_state_dict(states[start][1])
        controller = controller_of(net, optimizer, pressure=None, target=fxcat.Target(flops=0.4))
        if start:
            controller.load_state_dict(states[start][2])
        for i in range(start, STEPS):
            if i in (15, 40):
                states[i] = copy.deepcopy([p.state_dict() for p in (net, optimizer, controller)])
            plain(net, optimizer, i)
            controller.step()
        return net

    states: dict[int, list[Any]] = {}
    whole = run(states)
    assert same(run(dict(states), 15), whole)
    assert same(run(dict(states), 40), whole)


def test_weights_of_the_model_and_of_a_smaller_network_are_loaded() -> None:
    net, model = prepared(), Net()
    assert not any(net.load_state_dict(model.state_dict()))
    torch.testing.assert_close(net.eval()(X[:4]), model.eval()(X[:4]))
    small = trained(plain, pressure=None, target=fxcat.Target(flops=0.4))
    net = prepared()
    nn.ModuleDict({"inside": net}).load_state_dict({f"inside.{k}": v for k, v in small.state_dict().items()})
    assert same(net, small)
    with pytest.raises(fxcat.InputError, match="smaller already"):
        net.load_state_dict(prepared().state_dict())


def test_pickling_goes_no_deeper_with_more_layers() -> None:
    layers = [layer for _ in range(120) for layer in (nn.Conv2d(4, 4, 1), nn.ReLU())]
    net = fxcat.prepare(nn.Sequential(nn.Conv2d(3, 4, 1), *layers, nn.Conv2d(4, 2, 1)), X[:2], verbose=False).eval()
    for gate in net.gates.values():
        gate.theta[0] = 0.0
    small = fxcat.finalize(net)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 120)
    try:
        again, small = pickle.loads(pickle.dumps(net)), pickle.loads(pickle.dumps(small))
    finally:
        sys.setrecursionlimit(limit)
    torch.testing.assert_close(small(X[:2]), net(X[:2]))
    again.shrink()
    torch.testing.assert_close(again(X[:2]), net(X[:2]))


def test_networks_and_whole_runs_can_be_pickled() -> None:
    net = prepared()
    optimizer = sgd(net)
    controller = controller_of(net, optimizer, pressure=None, target=fxcat.Target(flops=0.4))
    for i in range(STEPS):
        if i == 15:
            net, optimizer, controller = copy.deepcopy((net, optimizer, controller))
        if i == 40:
            net, optimizer, controller = pickle.loads(pickle.dumps((net, optimizer, controller)))
        plain(net, optimizer, i)
        controller.step()
    assert same(net, trained(plain, pressure=None, target=fxcat.Target(flops=0.4)))
    small = fxcat.finalize(net.eval())
    again = pickle.loads(pickle.dumps(small))
    assert torch.equal(again(X[:4]), small(X[:4]))
