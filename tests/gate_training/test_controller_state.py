"""`GateController.state_dict`: somebody's own loop goes on as if it had not been interrupted."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interrupted import (
    EXAMPLE,
)
from small_task import Net, batches
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fxcat
from fxcat.utils.json_tensors import pack

pytestmark = pytest.mark.usefixtures("one_thread")


STEPS = 240
STOPS = (3, 61, 108, 200)
"""Before gates begin, between two moments at which slopes are made, after a shrink, and after the last one."""


def own_loop(state: bytes | None, moments: tuple[int, ...]) -> tuple[fxcat.GatedModule, dict[int, bytes]]:
    """Training with an averaged copy, from a state on if there is one; returns the states at some steps too, and at the
    end."""
    torch.manual_seed(0 if state is None else 7)
    net = fxcat.prepare(Net(), EXAMPLE, verbose=False)
    optimizer = torch.optim.AdamW(net.weight_parameters(), lr=1e-2)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    controller = fxcat.GateController(
        net,
        optimizer,
        target=fxcat.Target(flops=0.4),
        total_steps=STEPS,
        averages=[average],
        seed=0 if state is None else 7,
    )
    parts: dict[str, Any] = {"controller": controller, "net": net, "optimizer": optimizer, "average": average}
    if state is not None:
        loaded = torch.load(io.BytesIO(state), weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(loaded[name])
    images, labels = batches(1920).tensors
    saved: dict[int, bytes] = {}
    for step in range(controller.steps, STEPS + 1):
        if step in (*moments, STEPS):
            file = io.BytesIO()
            torch.save({name: part.state_dict() for name, part in parts.items()}, file)
            saved[step] = file.getvalue()
        if step == STEPS:
            break
        chosen = slice(8 * step, 8 * step + 8)
        loss = F.cross_entropy(net(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(net)
        controller.step()
    return net, saved


@pytest.mark.parametrize("given", [{"target": fxcat.Target}, {"pressure": fxcat.Pressure}])
def test_a_state_holds_no_numbers_of_numpy(given: dict[str, Any]) -> None:
    """Targets come from `np.linspace`; `torch.load` and JSON read plain numbers only."""
    limits = {"*": fxcat.Limits(least=np.int64(2), most_pruned=np.float32(0.9))}  # pyright: ignore[reportArgumentType]
    net = fxcat.prepare(Net(), EXAMPLE, limits=limits, verbose=False)
    optimizer = torch.optim.AdamW(net.weight_parameters(), lr=1e-2)
    options: dict[str, Any] = {name: kind(np.float32(0.5)) for name, kind in given.items()}
    options |= {"total_steps": np.int64(9), "seed": np.int64(3), "shrinks": np.int32(2)}
    options |= {"warmup": np.float32(0.1), "until": np.float32(0.5), "gate_lr": np.float32(0.1)}
    controller = fxcat.GateController(net, optimizer, **options)
    file = io.BytesIO()
    torch.save(controller.state_dict(), file)
    file.seek(0)
    controller.load_state_dict(torch.load(file, weights_only=True))
    json.dumps(controller.state_dict()["settings"])


def test_shrinks_may_be_as_many_as_there_are_numbers() -> None:
    """At most one after every step."""
    net = fxcat.prepare(Net(), EXAMPLE, verbose=False)
    optimizer = torch.optim.AdamW(net.weight_parameters(), lr=1e-2)
    target = fxcat.Target(flops=0.5)
    with pytest.raises(fxcat.InputError, match=r"shrinks=.* is too large"):
        fxcat.GateController(net, optimizer, target=target, total_steps=9, shrinks=2**70)
    controller = fxcat.GateController(net, optimizer, target=target, total_steps=9, shrinks=2**53)
    assert not controller.schedule.may_shrink(0)


def test_an_average_has_the_final_structure() -> None:
    """θ of a slow average is still near where it began when the gates are decided."""
    net = fxcat.prepare(Net(), EXAMPLE, verbose=False)
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.05)
    for gate in net.gates.values():
        gate.set(0.45)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    for gate in net.gates.values():
        gate.set(1.0)
    controller = fxcat.GateController(
        net, optimizer, target=fxcat.Target(flops=0.5), total_steps=40, averages=[average]
    )
    images, labels = batches(320).tensors
    for step in range(40):
        chosen = slice(8 * step, 8 * step + 8)
        optimizer.zero_grad()
        F.cross_entropy(net(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        average.update_parameters(net)
        controller.step()
    averaged: Any = average.module
    assert averaged.hard_cost() == net.hard_cost()


def states(saved: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(saved), weights_only=True)


def equal(a: bytes, b: bytes) -> bool:
    ours: dict[str, torch.Tensor] = {}
    theirs: dict[str, torch.Tensor] = {}
    texts = pack(states(a), ours, ""), pack(states(b), theirs, "")
    return texts[0] == texts[1] and all(torch.equal(v, theirs[k]) for k, v in ours.items())


@pytest.fixture(scope="module")
def own_loop_whole() -> tuple[fxcat.GatedModule, dict[int, bytes]]:
    return own_loop(None, (*STOPS, *(stop + 2 for stop in STOPS)))


@pytest.mark.parametrize("stop", STOPS)
def test_own_loop_goes_on_from_the_controllers_state(
    stop: int, own_loop_whole: tuple[fxcat.GatedModule, dict[int, bytes]]
) -> None:
    net, saved = own_loop_whole
    stored = states(saved[stop])["controller"]
    assert (stored["slopes"] is not None) is (stop == 61)
    assert len(stored["closed"]) == {3: 0, 61: 0, 108: 3, 200: 4}[stop]
    assert stored["trains"] is (stop < 200)
    again, found = own_loop(saved[stop], (stop + 2,))
    assert all(equal(found[step], saved[step]) for step in (stop + 2, STEPS))
    assert again.gate_vector.theta.requires_grad is net.gate_vector.theta.requires_grad
    assert again.unfinished is None


def controller_for(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> fxcat.GateController:
    net = fxcat.prepare(model, EXAMPLE, verbose=False)
    return fxcat.GateController(
        net, torch.optim.SGD(net.weight_parameters(), lr=0.1), target=fxcat.Target(flops=0.4), total_steps=60
    )


def test_the_controller_refuses_a_state_that_is_not_its_own() -> None:
    controller = controller_for(Net())
    state = controller.state_dict()
    json.dumps({k: v for k, v in state.items() if not isinstance(v, torch.Tensor)})
    with pytest.raises(fxcat.InputError, match="no state of a GateController"):
        controller.load_state_dict({"steps": 3})
    with pytest.raises(fxcat.InputError, match="other gates"):
        controller_for(nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1))).load_state_dict(state)
    net = controller.net
    controller.shrink(net.gate_vector.open_but([0]))
    smaller = controller.state_dict()
    again = controller_for(Net())
    again.shrink(again.net.gate_vector.open_but([1]))
    with pytest.raises(fxcat.InputError, match="lost other gates"):
        again.load_state_dict(smaller)
    fresh = controller_for(Net())
    fresh.load_state_dict(smaller)
    assert fresh.net.structure.cost == net.structure.cost
