"""Loops that leave something out, or do it in another order, are told so."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_task import Net, batches
from torch import nn

import fxcat

X, Y = batches(64).tensors


def begun(**options: Any) -> tuple[fxcat.GatedModule, torch.optim.Optimizer, fxcat.GateController]:
    torch.manual_seed(0)
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False).train()
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.05, momentum=0.9)
    settings: dict[str, Any] = {"target": fxcat.Target(flops=0.5), "total_steps": 60}
    return net, optimizer, fxcat.GateController(net, optimizer, **settings | options)


def loss_of(net: nn.Module) -> torch.Tensor:
    return F.cross_entropy(net(X), Y)


def test_without_a_controller() -> None:
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxcat.finalize(net)  # nothing has been trained
    loss_of(net).backward()
    with pytest.warns(UserWarning, match="nothing decided on its gates"):
        fxcat.finalize(net)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_no_optimizer_moves_gates(kind: Any) -> None:
    """Not by a weight decay either: without a controller a network trains as its model does."""
    torch.manual_seed(0)
    model = Net().double()
    net = fxcat.prepare(model, torch.zeros(1, 3, 8, 8, dtype=torch.float64), verbose=False).train()
    for each in (model, net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        optimizer = kind(each.parameters(), lr=1e-2, weight_decay=0.5)
        for step in range(5):

            def closure(net: nn.Module = each, own: torch.optim.Optimizer = optimizer) -> torch.Tensor:
                own.zero_grad()
                loss = F.cross_entropy(net(X.double()), Y)
                loss.backward()
                return loss

            if step % 2:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        if isinstance(each, fxcat.GatedModule):
            assert bool((each.gate_vector.theta == 1).all())
            for name, parameter in each.network.named_parameters():
                torch.testing.assert_close(parameter, model.get_parameter(name))


def test_the_controller_before_the_backward_pass() -> None:
    net, optimizer, controller = begun()
    with pytest.raises(fxcat.TrainingError, match="before the last step of the gates"):
        for _ in range(3):
            loss = loss_of(net)
            optimizer.zero_grad()
            controller.step()
            loss.backward()
            optimizer.step()


def test_without_a_step_of_the_optimizer() -> None:
    net, _, controller = begun(total_steps=20)
    for _ in range(255):
        controller.step()
    with pytest.warns(UserWarning, match="made 0 of 20 steps"):
        fxcat.finalize(net)
    with pytest.raises(fxcat.TrainingError, match="in 256 calls"):
        controller.step()


def test_a_norm_that_is_not_finite_is_forgotten() -> None:
    net, optimizer, controller = begun()
    norms: list[float] = []
    for factor in (1.0, math.nan, 1.0, 1.0):
        optimizer.zero_grad()
        (factor * loss_of(net)).backward()
        norms.append(float(nn.utils.clip_grad_norm_(net.parameters(), 1.0)))
        if math.isfinite(norms[-1]):
            optimizer.step()
        controller.step()
    assert [math.isfinite(n) for n in norms] == [True, False, True, True]
    assert controller.steps == 3


class Divided(torch.optim.Optimizer):
    """Updates half of the weights, as if another process did so with the others."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.optim = torch.optim.SGD(parameters[::2], lr=0.1)


def test_an_optimizer_of_a_part_of_its_weights() -> None:
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)
    with pytest.raises(fxcat.InputError, match="Divided updates 6 of 12 weights itself"):
        optimizer = Divided(list(net.weight_parameters()))
        fxcat.GateController(net, optimizer, target=fxcat.Target(flops=0.5), total_steps=9)


def descended(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss_of(net).backward()
    optimizer.step()


def test_far_more_steps_than_were_said() -> None:
    """Epochs were taken for steps."""
    net, optimizer, controller = begun(total_steps=2)
    with pytest.warns(
        UserWarning, match=r"made 6 steps(?s:.*)total_steps=2: the gates were decided in the first 1"
    ) as all_:
        for _ in range(8):
            descended(net, optimizer)
            controller.step()
    assert len(all_) == 1
    assert all_[0].filename == __file__


def test_gates_that_are_frozen_on_the_way() -> None:
    net, optimizer, controller = begun()
    descended(net, optimizer)
    controller.step()
    net.requires_grad_(False)
    net.network.get_submodule("head").requires_grad_(True)
    descended(net, optimizer)
    with pytest.raises(fxcat.TrainingError, match=r"take no gradients(?s:.*)gate_vector\.requires_grad_\(True\)"):
        controller.step()
    net.requires_grad_(True)
    descended(net, optimizer)
    controller.step()
    assert controller.steps == 2


def test_what_nobody_takes_is_not_kept() -> None:
    """Before there is a controller, and after gates were decided and thawed with the weights."""
    net, optimizer, _ = begun(total_steps=2)
    alone, its = copy.deepcopy((net, optimizer))
    for _ in range(3):
        descended(alone, its)
    assert len(alone.gate_vector.draws._seen) <= 1  # pyright: ignore[reportPrivateUsage]
    controller = fxcat.GateController(alone, its, target=fxcat.Target(flops=0.5), total_steps=2)
    for _ in range(5):
        descended(alone, its)
        controller.step()
        if controller.phase == "plain":
            alone.requires_grad_(True)
    draws = alone.gate_vector.draws
    assert not draws.used and len(draws._seen) <= 1  # pyright: ignore[reportPrivateUsage]


def test_a_last_step_that_fails_may_be_made_again() -> None:
    """An average was not named; its copy is deleted then."""
    net, optimizer, controller = begun(total_steps=4)
    average = torch.optim.swa_utils.AveragedModel(net)
    with pytest.raises(fxcat.InputError, match="a copy of the network is changed"):
        for _ in range(4):
            descended(net, optimizer)
            average.update_parameters(net)
            controller.step()
    before = controller.steps
    assert controller.phase != "plain"
    del average
    while controller.phase != "plain":
        descended(net, optimizer)
        controller.step()
    assert before < controller.steps
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs
