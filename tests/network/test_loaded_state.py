"""States that do not fit are told of before anything of the network has changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import randomise
from small_task import Net
from torch import nn

import fxcat

X = torch.zeros(1, 3, 8, 8)


def prepared() -> fxcat.GatedModule:
    torch.manual_seed(0)
    return fxcat.prepare(Net(), X, verbose=False)


def shrunk() -> fxcat.GatedModule:
    """Twice: what leaves second is numbered as at the start."""
    net = prepared()
    for step in (2, 3):
        for gate in net.gates.values():
            if gate.kind == "units":
                gate.theta[1::step] = 0.0
        net.shrink()
    return net


State = dict[str, Any]


def with_another_head(state: State) -> State:
    return state | {"network.head.weight": torch.zeros(3, 3)}


def without_a_bias(state: State) -> State:
    return {k: v for k, v in state.items() if k != "network.head.bias"}


def wrapped(state: State) -> State:
    return {f"module.{k}": v for k, v in state.items()}


def of_the_wrapped_model(state: State) -> State:
    return {f"_orig_mod.{k}": v for k, v in Net().state_dict().items()}


def without_its_size(state: State) -> State:
    return {k: v for k, v in state.items() if not k.endswith("_extra_state")}


def of_the_small(state: State) -> State:
    return dict(fxcat.finalize(shrunk()).state_dict())


CASES: list[tuple[Callable[[State], State], str]] = [
    (with_another_head, r"does not hold the network that it says: a shape \(3, 3\) where(?s:.*)where: head.weight"),
    (wrapped, "the names in the state begin with 'module.'"),
    (of_the_wrapped_model, "the names in the state begin with '_orig_mod.'"),
    (without_its_size, "the state does not say how small its network was"),
    (of_the_small, "that of a smaller network without gates(?s:.*)fxcat.load"),
]


@pytest.mark.parametrize(("change", "message"), CASES, ids=[c.__name__ for c, _ in CASES])
def test_nothing_changes(change: Callable[[State], State], message: str) -> None:
    net, state = prepared(), change(dict(shrunk().state_dict()))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(fxcat.InputError, match=message):
        net.load_state_dict(state)
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_the_model_does_not_fit_when_something_has_left() -> None:
    net = prepared()
    net.load_state_dict(shrunk().state_dict())
    with pytest.raises(fxcat.InputError, match="without gates, and this one has become smaller"):
        net.load_state_dict(Net().state_dict())


def test_a_part_of_a_state_may_be_loaded() -> None:
    net = prepared()
    left = net.load_state_dict(without_a_bias(dict(shrunk().state_dict())), strict=False)
    assert left.missing_keys == ["network.head.bias"]
    assert net.hard_cost() == shrunk().hard_cost()


def test_the_shapes_told_before_are_those_after() -> None:
    net = prepared()
    randomise(net.network, 0)
    closed = ([0, 3, 6, 20], [1, 2])
    told = net.program.shapes_after(net.network, closed)
    for numbers in closed:
        net.shrink(net.gate_vector.open_but(numbers))
    assert told == {k: v.shape for k, v in net.network.state_dict().items() if isinstance(v, torch.Tensor)}


def test_a_wrapper_whose_graph_may_not_change_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Static(nn.parallel.DistributedDataParallel):
        static_graph = True

        def __init__(self) -> None:
            nn.Module.__init__(self)

    net = prepared()
    monkeypatch.setattr("fxcat.network.ddp.is_distributed", lambda: True)
    monkeypatch.setattr(nn.parallel.DistributedDataParallel, "_get_active_ddp_module", Static)
    with pytest.raises(fxcat.InputError, match="static_graph=True"):
        net(X)
