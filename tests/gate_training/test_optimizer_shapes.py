"""What optimizers keep of a parameter becomes smaller with it, in whatever containers they keep it."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from small_task import Net, batches
from torch import nn

import fxcat
from fxcat.gate_training.optimizer_shapes import check_state, sliced


class Moments(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


SHAPE = torch.Size((4, 3))
WHOLE = torch.arange(12.0).reshape(SHAPE)
CONTAINERS = [
    deque([WHOLE, WHOLE], maxlen=3),
    OrderedDict(a=[WHOLE], b=(WHOLE, 1.0)),
    Moments(WHOLE, WHOLE[:, :1]),
]


def train_to_half(net: fxcat.GatedModule, optimizer: torch.optim.Optimizer) -> None:
    """A run to half of the FLOPs, in 20 steps."""
    x, y = batches(64).tensors
    controller = fxcat.GateController(net, optimizer, target=fxcat.Target(flops=0.5), total_steps=20)
    for _ in range(20):
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        controller.step()
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs


@pytest.mark.parametrize("state", CONTAINERS, ids=lambda s: type(s).__name__)
def test_containers_stay_what_they_are(state: Any) -> None:
    left = sliced(state, SHAPE, {0: torch.tensor([0, 2])})
    assert type(left) is type(state)
    assert getattr(left, "maxlen", None) == getattr(state, "maxlen", None)
    first = next(iter(left.values() if isinstance(left, dict) else left))
    assert torch.equal(first[0] if isinstance(first, list) else first, WHOLE[[0, 2]])


def test_what_cannot_shrink_is_found_in_any_of_them() -> None:
    layer = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    optimizer.state[layer.weight]["past"] = deque([torch.zeros(5, 5)])
    with pytest.raises(fxcat.InputError, match="keeps 'past' of shape"):
        check_state(layer, [optimizer])


class Delayed(torch.optim.Optimizer):
    """Steps with the gradient of two steps before."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.02})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                past = self.state[p].setdefault("past", deque(maxlen=3))
                past.append(p.grad.clone())
                p.sub_(past[0], alpha=group["lr"])


def test_an_optimizer_that_keeps_a_queue_goes_on() -> None:
    torch.manual_seed(0)
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False).train()
    optimizer = Delayed(net.weight_parameters())
    train_to_half(net, optimizer)
    assert all(past.shape == p.shape for p in net.weight_parameters() for past in optimizer.state[p]["past"])


@pytest.mark.parametrize("first", ["gates", "another network"])
def test_state_of_all_parameters_together_is_refused(first: str) -> None:
    """LBFGS keeps it with its first parameter, which need be no weight of the network."""
    torch.manual_seed(0)
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False).train()
    beside = nn.Linear(2, 2) if first == "another network" else nn.Identity()
    parameters = [*beside.parameters(), *(net.parameters() if first == "gates" else net.weight_parameters())]
    optimizer = torch.optim.LBFGS(parameters, lr=0.1, max_iter=2)
    controller = fxcat.GateController(net, optimizer, target=fxcat.Target(flops=0.5), total_steps=9)
    x, y = batches(32).tensors

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y) + sum((p.square().sum() for p in beside.parameters()), torch.zeros(()))
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    with pytest.raises(fxcat.InputError, match="LBFGS keeps"):
        controller.step()


class Slow(torch.optim.Optimizer):
    """Wrapped round another; it is never initialised as an optimizer itself."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:  # pyright: ignore[reportMissingSuperCall]
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.inner.step()


def test_a_wrapper_that_was_never_initialised_is_none_itself() -> None:
    torch.manual_seed(0)
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False).train()
    train_to_half(net, Slow(torch.optim.SGD(net.weight_parameters(), lr=0.02)))


def _in_groups(optimizer: torch.optim.Optimizer) -> Any:
    return [[p.detach().clone() for p in group["params"]] for group in optimizer.param_groups]


def _by_parameter(optimizer: torch.optim.Optimizer) -> Any:
    return {p: {"first": torch.zeros_like(p)} for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("kept", [_in_groups, _by_parameter])
@pytest.mark.parametrize("wrapped", [False, True])
def test_tensors_beside_the_state_are_refused(kept: Any, wrapped: bool) -> None:
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)
    optimizer: Any = torch.optim.SGD(net.weight_parameters(), lr=0.02)
    optimizer = Slow(optimizer) if wrapped else optimizer
    optimizer.weights = list(net.weight_parameters())  # the parameters themselves follow
    options: dict[str, Any] = {"target": fxcat.Target(flops=0.5), "total_steps": 20}
    optimizer.kept = kept(optimizer)
    with pytest.raises(fxcat.InputError, match="in its attribute 'kept'"):
        fxcat.GateController(net, optimizer, **options)
    del optimizer.kept
    fxcat.GateController(net, optimizer, **options)
