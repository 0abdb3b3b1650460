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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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


def test_names_in_groups_stay_those_of_the_parameters() -> None:
    """Of optimizers that were given `named_parameters()`, in their states too, which others go on from."""

    def made() -> tuple[fxcat.GatedModule, torch.optim.Optimizer]:
        net = prepared()
        named = dict(net.named_parameters())
        groups = [{k: p for k, p in named.items() if (p.ndim > 1) is matrices} for matrices in (True, False)]
        return net, torch.optim.SGD([{"params": list(g.items())} for g in groups], lr=0.02, momentum=0.9)

    def check(net: fxcat.GatedModule, optimizer: torch.optim.Optimizer) -> None:
        named = dict(net.named_parameters())
        for group in optimizer.param_groups:
            pairs = zip(group["param_names"], group["params"], strict=True)
            assert all(named[name] is parameter for name, parameter in pairs)

    net, optimizer = made()
    start = optimizer.state_dict()["param_groups"]
    controller = controller_of(net, optimizer, pressure=None, target=fxcat.Target(flops=0.4))
    check(net, optimizer)
    assert [g["param_names"] for g in optimizer.state_dict()["param_groups"]] == [g["param_names"] for g in start]
    for i in range(STEPS):
        plain(net, optimizer, i)
        controller.step()
    check(net, optimizer)
    state = [p.state_dict() for p in (net, optimizer)]
    for group in state[1]["param_groups"]:
        assert len(group["param_names"]) == len(group["params"])
    again, other = made()
    again.load_state_dict(state[0])
    other.load_state_dict(state[1])  # before there is a controller
    controller_of(again, other, pressure=None, target=fxcat.Target(flops=0.4)).load_state_dict(controller.state_dict())
    check(again, other)


@pytest.mark.parametrize("order", [(3, 0, 1, 2), (0, 3, 2, 1), (1, 2, 3, 0)])
@pytest.mark.parametrize("at", [15, 40])
def test_averages_go_on_from_their_states_in_any_order(at: int, order: tuple[int, ...]) -> None:
    """The average is as small as the network is about to be, or is made so with it."""

    def made() -> list[Any]:
        net = prepared()
        average, optimizer = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9)), sgd(net)
        target = fxcat.Target(flops=0.4)
        return [
            net,
            optimizer,
            controller_of(net, optimizer, pressure=None, target=target, averages=[average]),
            average,
        ]

    def train(parts: list[Any], first: int, last: int) -> None:
        net, optimizer, controller, average = parts
        for i in range(first, last):
            plain(net, optimizer, i)
            controller.step()
            average.update_parameters(net)

    whole, again = made(), made()
    train(whole, 0, at)
    states = copy.deepcopy([part.state_dict() for part in whole])
    for part in order:
        again[part].load_state_dict(states[part])
    for parts in (whole, again):
        train(parts, at, at + 4)
    assert same(again[0], whole[0])
    assert same(again[3].module, whole[3].module)


def test_an_average_of_another_run_is_refused() -> None:
    net = prepared()
    average, optimizer = AveragedModel(net), sgd(net)
    other: Any = average.module
    controller = controller_of(net, optimizer, averages=[average, other, average])
    assert controller.averages == (average,)  # one, however often it is named
    other.shrink(other.gate_vector.open_but([0, 1]))
    before = net.hard_cost()
    with pytest.raises(fxcat.InputError, match="has lost other gates than the network"):
        controller.shrink(net.gate_vector.open_but([2]))
    assert net.hard_cost() == before


def test_a_run_that_goes_on_without_its_controllers_state_is_told() -> None:
    """Not where a state of the beginning is put back, by a search for a learning rate."""
    net = prepared()
    controller = controller_of(net, optimizer := sgd(net))
    start = copy.deepcopy(net.state_dict())
    net.load_state_dict(start)
    for i in range(20):
        plain(net, optimizer, i)
        controller.step()  # warnings are errors
    again = prepared()
    its = controller_of(again, other := sgd(again))
    again.load_state_dict(net.state_dict())
    plain(again, other, 20)
    with pytest.warns(
        UserWarning, match=r"from the beginning: to resume the run, load the controller's state_dict\(\)"
    ):
        its.step()


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
