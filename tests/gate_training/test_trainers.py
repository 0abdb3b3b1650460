"""What trainers do between people's code and network, optimizers and controller, each by itself."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from lightning.fabric import Fabric
from small_task import Net, batches
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import fxcat

pytestmark = pytest.mark.usefixtures("one_thread")
X, Y = batches(512).tensors
STEPS = 40
TARGET = fxcat.Target(flops=0.4)


def prepared() -> fxcat.GatedModule:
    torch.manual_seed(0)
    return fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False).train()


def sgd(net: fxcat.GatedModule) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.weight_parameters(), lr=0.05, momentum=0.9)


def controller_of(net: fxcat.GatedModule, optimizer: Any, **options: Any) -> fxcat.GateController:
    return fxcat.GateController(net, optimizer, **{"target": TARGET, "total_steps": STEPS} | options)


def backward(net: Any, step: int, factor: float = 1.0) -> None:
    part = slice(step * 32 % len(X), step * 32 % len(X) + 32)
    (F.cross_entropy(net(X[part]), Y[part]) * factor).backward()


def trained(net: Any, optimizer: Any, controller: fxcat.GateController, first: int = 0, last: int = STEPS) -> None:
    for i in range(first, last):
        optimizer.zero_grad()
        backward(net, i)
        optimizer.step()
        controller.step()


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether all parameters and buffers are the same, to the last bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def test_calls_between_two_steps_do_not_count() -> None:
    """From the first batch on, and whether gradients are cleared before or after them."""
    runs: list[fxcat.GatedModule] = []
    for eager in (False, True):
        net = prepared()
        optimizer = sgd(net)
        controller = controller_of(net, optimizer)
        for i in range(4 * STEPS):
            if i % 4 == 0:
                optimizer.zero_grad()
            backward(net, i, 0.25)
            if i % 4 == 3:
                optimizer.step()
            if i % 4 == 3 or eager:
                controller.step()
        assert controller.steps == STEPS
        runs.append(net)
    assert same(*runs)
    assert runs[0].hard_cost().macs <= 0.4 * runs[0].start_cost.macs


def test_an_optimizer_that_never_makes_a_step_is_told() -> None:
    net = prepared()
    controller, other = controller_of(net, sgd(net)), torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    backward(net, 0)
    with pytest.raises(fxcat.TrainingError, match="in 400 calls of the controller's step"):
        for _ in range(400):
            other.step()  # of another network
            assert not controller.step()
    assert controller.steps == 0


@pytest.mark.parametrize("by_hand", [False, True])
def test_when_the_structure_is_decided_other_optimizers_may_train_on(by_hand: bool) -> None:
    """Without any optimizer there is nothing to count, and nothing to complain of."""
    net = prepared()
    optimizer = sgd(net)
    controller = controller_of(net, optimizer)
    while controller.phase != "plain":
        backward(net, controller.steps)
        optimizer.step()
        controller.step()
    steps, later = controller.steps, sgd(net)
    for i in range(10):
        backward(net, i)
        if not by_hand:
            later.step()
        controller.step()
    for _ in range(500 if by_hand else 0):
        controller.step()
    assert controller.steps == (steps if by_hand else steps + 10)


def test_steps_of_a_loss_scaler() -> None:
    """Those that it leaves out are none."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    Accelerator(cpu=True)
    net, plain = prepared(), prepared()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = AcceleratedOptimizer(sgd(net), scaler=scaler)
    controller = controller_of(net, optimizer)
    for i in range(STEPS):
        if i % 5 == 4:  # a batch without a step
            buffers = copy.deepcopy(dict(net.named_buffers()))
            state = net.gate_vector.random_state
            backward(net, i, float("inf"))
            optimizer.step()
            assert not controller.step()
            optimizer.zero_grad()
            net.load_state_dict(buffers, strict=False)
            net.gate_vector.random_state = state
            scaler.update(2.0**10)
        backward(net, i, scaler.scale(torch.tensor(1.0)).item())
        optimizer.step()
        controller.step()
        optimizer.zero_grad()
    other = sgd(plain)
    trained(plain, other, controller_of(plain, other))
    assert controller.steps == STEPS
    assert same(net, plain)


def test_gradients_that_a_wrapper_clears_do_not_count() -> None:
    """Fabric's optimizers have the class of what they wrap, and its `zero_grad`, which they do not pass on."""
    runs: list[fxcat.GatedModule] = []
    for factor in (0.0, 1e30):
        net = prepared()
        made, optimizer = Fabric(accelerator="cpu", devices=1).setup(net, sgd(net))
        controller = controller_of(net, optimizer)
        for i in range(STEPS):
            if i % 7 == 3:
                backward(made, i + 1, factor)
                optimizer.zero_grad()
            backward(made, i)
            optimizer.step()
            optimizer.zero_grad()
            controller.step()
        runs.append(net)
    assert same(*runs)


def test_optimizers_of_other_networks_say_nothing() -> None:
    """A critic's step takes place between the backward pass through a gated network and that network's own step."""
    net, other = prepared(), nn.Linear(4, 1)
    own, its = sgd(net), torch.optim.SGD(other.parameters(), lr=0.1)
    controller = controller_of(net, [its, own])
    assert controller.optimizers == [own]
    backward(net, 0, 1e30)
    its.step()
    own.zero_grad()
    assert not controller.step()
    assert controller.steps == 0
    trained(net, own, controller)
    plain = prepared()
    alone = sgd(plain)
    reference = controller_of(plain, alone)
    with torch.no_grad():
        plain(X[:32])
    plain.gate_vector(())
    trained(plain, alone, reference)
    assert net.hard_cost() == plain.hard_cost()


def test_what_has_not_ended_is_known_after_loading() -> None:
    net = prepared()
    optimizer = sgd(net)
    controller = controller_of(net, optimizer)
    trained(net, optimizer, controller, last=20)
    half = copy.deepcopy([net.state_dict(), controller.state_dict()])
    trained(net, optimizer, controller, first=20)
    ended = [net.state_dict(), controller.state_dict()]
    for (weights, state), has_ended in ((half, False), (ended, True)):
        alone, resumed = prepared(), prepared()
        alone.load_state_dict(weights)
        again = controller_of(resumed, sgd(resumed))
        resumed.load_state_dict(weights)
        again.load_state_dict(state)
        for loaded in (alone, resumed):
            assert (loaded.unfinished is None) is has_ended
    with pytest.warns(UserWarning, match="its state was stored in has not ended"):
        loaded = prepared()
        loaded.load_state_dict(half[0])
        fxcat.finalize(loaded)


def test_averages_end_with_the_structure_that_was_decided() -> None:
    net = prepared()
    optimizer, average = sgd(net), AveragedModel(net)
    controller = controller_of(net, optimizer, averages=[average])
    copied: Any = average.module
    trained(net, optimizer, controller, last=5)
    copied.gate_vector.theta.data.fill_(0.2)
    controller.finish()
    assert torch.equal(copied.gate_vector.theta, net.gate_vector.theta)
    assert copied.hard_cost() == net.hard_cost()


@pytest.mark.usefixtures("group_of_one")
def test_wrappers_that_were_made_before_a_state_was_loaded() -> None:
    """In the gated phase, and after it, where θ is trained no more."""
    net = prepared()
    optimizer = sgd(net)
    controller = controller_of(net, optimizer)
    states: dict[int, Any] = {}
    sizes: list[int] = []
    for i in range(STEPS):
        trained(net, optimizer, controller, i, i + 1)
        if i == 10:
            controller.shrink(net.gate_vector.open_but([0, 3, 20]))
        if i in (15, 30):
            states[i] = copy.deepcopy([p.state_dict() for p in (net, optimizer, controller)])
    for first, state in states.items():
        again = prepared()
        made = sgd(again)
        its = controller_of(again, made)
        wrapper = DistributedDataParallel(again)
        for part, its_state in zip((again, made, its), state, strict=True):
            part.load_state_dict(its_state)
        told = wrapper._get_ddp_logging_data()  # pyright: ignore[reportPrivateUsage]
        assert told["num_parameter_tensors"] == sum(p.requires_grad for p in again.parameters())
        assert told["total_parameter_size_bytes"] == sum(p.nbytes for p in again.parameters() if p.requires_grad)
        sizes.append(told["total_parameter_size_bytes"])
        trained(wrapper, made, its, first=first + 1)
        assert same(again, net)
    assert sum(p.nbytes for p in prepared().parameters()) > sizes[0] > sizes[1]


class Pooled(Net):
    """Calls a function that was made in another one, and so has no name that pickle would find."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.max_pool2d(x, 2))


class Sent(pickle.Pickler):
    """Notes what would go to a process that is spawned."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.generators, self.storages = 0, [0]

    def reducer_override(self, value: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.generators += isinstance(value, torch.Generator)
        if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter) and value.device.type == "cpu":
            self.storages.append(value.untyped_storage().data_ptr())
        return NotImplemented


@pytest.mark.parametrize("called", [False, True])
def test_networks_are_sent_to_processes_that_are_spawned(called: bool) -> None:
    net = fxcat.prepare(Pooled(), torch.zeros(1, 3, 8, 8), verbose=False).eval()
    expected = net(X[:4]) if called else copy.deepcopy(net)(X[:4])
    file = io.BytesIO()
    sent = Sent(file)
    sent.dump(net)
    assert not sent.generators  # the file descriptor of the tensor that one is pickled as would end too soon
    assert len(set(sent.storages)) == len(sent.storages)  # multiprocessing refuses one twice
    found: Any = pickle.loads(file.getvalue())
    assert torch.equal(found(X[:4]), expected)
    assert torch.equal(fxcat.finalize(found)(X[:4]), expected)
