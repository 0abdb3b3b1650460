"""What other code does to a network's weights before, or while, gates are trained: it is right, or refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_task import Net, batches
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fxcat

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLE = torch.zeros(1, 3, 8, 8)
HALF = fxcat.Target(flops=0.5)
X, Y = batches(64).tensors


def prepared() -> fxcat.GatedModule:
    torch.manual_seed(0)
    return fxcat.prepare(Net(), EXAMPLE, verbose=False).train()


def controller_of(net: Any, optimizer: Any = None, steps: int = 12) -> fxcat.GateController:
    chosen = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9) if optimizer is None else optimizer
    return fxcat.GateController(net, chosen, target=HALF, total_steps=steps)


def step(net: Any, controller: fxcat.GateController) -> None:
    for optimizer in controller.optimizers:
        optimizer.zero_grad()
    F.cross_entropy(net(X[:16]), Y[:16]).backward()
    for optimizer in controller.optimizers:
        optimizer.step()
    controller.step()


def fully_sharded(net: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    fully_shard(net)
    return net


def fully_sharded_part(net: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    fully_shard(net.network.block)
    return net


def spread(net: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_module

    return distribute_module(net, init_device_mesh("cpu", (1,)))


def flattened(net: nn.Module, *, originals: bool) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is a newer one, and no GPU
        return FullyShardedDataParallel(net, use_orig_params=originals, device_id=torch.device("cpu"))


SPLIT: dict[str, tuple[Callable[[Any], Any], str]] = {
    "FSDP2": (fully_sharded, "held in a DTensor"),
    "FSDP2 of a part": (fully_sharded_part, "held in a DTensor"),
    "tensor parallelism": (spread, "held in a DTensor"),
    "FSDP1": (lambda net: flattened(net, originals=False), "one flat tensor"),
    "FSDP1, original parameters": (lambda net: flattened(net, originals=True), "one flat tensor"),
}


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("how", SPLIT)
def test_weights_that_are_split_or_flattened_are_refused(how: str) -> None:
    split, match = SPLIT[how]
    net = prepared()
    wrapped = split(net)
    for given in {id(n): n for n in (net, wrapped)}.values():
        with pytest.raises(fxcat.InputError, match=rf"{match}(?s:.*)DistributedDataParallel"):
            controller_of(given, torch.optim.SGD(wrapped.parameters(), lr=0.1))
    with pytest.raises(fxcat.InputError, match=r"cannot be copied|held in a DTensor"):
        fxcat.prepare(split(Net()) if how != "FSDP2 of a part" else fully_sharded(Net()), EXAMPLE, verbose=False)


@pytest.mark.usefixtures("group_of_one")
def test_weights_that_are_split_after_the_controller_was_made() -> None:
    net = prepared()
    controller = controller_of(net)
    fully_sharded(net)
    with pytest.raises(fxcat.InputError, match="held in a DTensor"):
        step(net, controller)


@pytest.mark.usefixtures("group_of_one")
def test_wrappers_say_where_the_network_is() -> None:
    net = prepared()
    for wrapped, path in (
        (nn.parallel.DistributedDataParallel(net), "net.module"),
        (nn.DataParallel(net), "net.module"),
        (torch.compile(net), "net._orig_mod"),
        (nn.parallel.DistributedDataParallel(nn.DataParallel(net)), "net.module.module"),
    ):
        with pytest.raises(fxcat.InputError, match=rf"{path}$"):
            controller_of(wrapped, torch.optim.SGD(net.weight_parameters(), lr=0.1))


def test_optimizers_of_flat_copies_are_refused() -> None:
    """As engines hold them that train with less memory."""
    net = prepared()
    flat = torch.cat([p.detach().flatten() for p in net.weight_parameters()]).requires_grad_()
    with pytest.raises(fxcat.InputError, match=r"flat tensors(?s:.*)DistributedDataParallel"):
        controller_of(net, torch.optim.SGD([flat], lr=0.1))


WITHOUT_VALUES: dict[str, Callable[[Any, fxcat.GateController], object]] = {
    "a controller": lambda net, controller: controller_of(net),
    "a step": lambda net, controller: (controller.optimizers[0].step(), controller.step()),
    "finish": lambda net, controller: controller.finish(),
    "shrink": lambda net, controller: net.shrink(),
    "finalize": lambda net, controller: fxcat.finalize(net),
    "fit": lambda net, controller: fxcat.fit(net, [(X, Y)], epochs=1, target=HALF, progress=False),
    "taylor": lambda net, controller: fxcat.importance.taylor(net, [(X, Y)]),
    "sensitivity": lambda net, controller: fxcat.sensitivity(net, [(X, Y)]),
    "recalibrate": lambda net, controller: fxcat.recalibrate(net, [X]),
    "forward": lambda net, controller: net(X),
    "inference": lambda net, controller: net.eval()(X),
}


@pytest.mark.parametrize("use", WITHOUT_VALUES)
def test_weights_without_values_are_refused(use: str) -> None:
    """The gates keep theirs, so that the run goes on when the weights have some again."""
    net = prepared()
    controller = controller_of(net)
    for _ in range(6):
        step(net, controller)
    kept, theta, steps = copy.deepcopy(net.state_dict()), net.gate_vector.theta.detach().clone(), controller.steps
    net.to("meta")
    with pytest.raises(fxcat.InputError, match=r"meta device(?s:.*)where: stem\.0\.weight(?s:.*)to_empty"):
        WITHOUT_VALUES[use](net, controller)
    assert torch.equal(net.gate_vector.theta, theta) and controller.steps == steps
    net.to_empty(device="cpu").train()
    net.load_state_dict(kept)
    with pytest.raises(fxcat.InputError, match="none of the gated network's weights"):
        step(net, controller)
    later = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(6):
        later.zero_grad()
        F.cross_entropy(net(X[:16]), Y[:16]).backward()
        later.step()
        controller.step()
    assert controller.phase == "plain" and net.hard_cost().macs <= 0.5 * net.start_cost.macs


def test_gates_keep_their_values_when_weights_lose_theirs() -> None:
    net = prepared()
    net.gates["block.0"].theta[:10] = 0.25
    before = net.gate_vector.theta.detach().clone()
    for change in (lambda: net.to_empty(device="cpu"), lambda: net.to("meta"), lambda: net.to_empty(device="cpu")):
        change()
        assert torch.equal(net.gate_vector.theta, before) and net.gate_vector.theta.requires_grad
    shapes = net.to("meta")(X.to("meta"))
    assert shapes.is_meta and shapes.shape == (64, 4)
    assert net.double().gate_vector.theta.dtype is torch.float64
    assert 0 < net.hard_cost().macs < net.start_cost.macs


class LowRank(nn.Module):
    """Adds a product of two small matrices to a weight."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.zeros(len(weight), 2))
        self.right = nn.Parameter(torch.randn(2, weight[0].numel()))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + (self.left @ self.right).view_as(weight)


class Adapted(nn.Module):
    """A layer with another one beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.beside = base, nn.Linear(base.in_features, base.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.beside(x)


def replaced(layer: Any) -> None:
    layer.weight = nn.Parameter(torch.randn(len(layer.weight) + 1, *layer.weight.shape[1:]))


CHANGES: dict[str, Callable[[Any], object]] = {
    "adapter": lambda network: setattr(network, "head", Adapted(network.head)),
    "low rank": lambda network: parametrize.register_parametrization(
        network.block[0], "weight", LowRank(network.block[0].weight)
    ),
    "weight norm": lambda network: parametrizations.weight_norm(network.block[0]),
    "masked": lambda network: prune.l1_unstructured(network.block[3], "weight", 0.5),
    "another shape": lambda network: replaced(network.head),
    "tied": lambda network: setattr(network.block[4], "weight", network.stem[1].weight),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_are_others_than_the_gates_were_made_for(change: str) -> None:
    net = prepared()
    CHANGES[change](net.network)
    with pytest.raises(
        fxcat.InputError, match=r"(?s)was changed since its gates were made.*where: .*prepare\(\) again"
    ):
        controller_of(net)
    net = prepared()
    controller = controller_of(net)
    step(net, controller)
    CHANGES[change](net.network)
    with pytest.raises(fxcat.InputError, match=r"was changed since|was replaced after"):
        controller.finish()


def test_what_comes_beside_the_network_is_no_matter() -> None:
    net = prepared()
    net.network.extra = nn.Linear(3, 3)
    net.network.head.scale = nn.Parameter(torch.ones(1))  # pyright: ignore[reportAttributeAccessIssue]
    controller = controller_of(net)
    for _ in range(12):
        step(net, controller)
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs


def test_weights_may_be_frozen_and_thawed() -> None:
    net = prepared()
    net.network.get_submodule("stem").requires_grad_(False)
    controller = controller_of(
        net, torch.optim.SGD((p for p in net.parameters() if p.requires_grad), 0.05, momentum=0.9)
    )
    for number in range(12):
        if number == 2:
            net.network.get_submodule("block").requires_grad_(False)
        if number == 4:
            thawed = list(net.network.get_submodule("stem").parameters())
            for parameter in thawed:
                parameter.requires_grad_(True)
            controller.optimizers[0].add_param_group({"params": thawed})
        step(net, controller)
    frozen = {name for name, p in net.network.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in net.network.named_parameters() if n.startswith("block")}
    small = fxcat.finalize(net.eval())
    torch.testing.assert_close(small(X[:4]), net(X[:4]))


def test_gates_that_were_frozen_with_the_weights() -> None:
    net = prepared()
    net.requires_grad_(False)
    with pytest.raises(fxcat.InputError, match=r"take no gradients(?s:.*)net\.network\.requires_grad_\(False\)"):
        controller_of(net, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))


def test_optimizers_that_come_later_follow_too() -> None:
    """A stage of its own; the first optimizer makes no more steps."""
    net = prepared()
    controller = controller_of(net)
    later = None
    for number in range(12):
        if number == 3:
            later = torch.optim.AdamW(net.parameters(), lr=1e-3)
            assert len(controller.optimizers) == 1
        if later is None:
            step(net, controller)
            continue
        later.zero_grad()
        F.cross_entropy(net(X[:16]), Y[:16]).backward()
        later.step()
        controller.step()
    assert later is not None and controller.optimizers[1] is later
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs
    assert all(later.state[p]["exp_avg"].shape == p.shape for p in net.weight_parameters())


def test_steps_that_are_made_within_the_backward_pass() -> None:
    net = prepared()
    own = {p: torch.optim.SGD([p], lr=0.02, momentum=0.9) for p in net.weight_parameters()}

    def made(parameter: torch.Tensor) -> None:
        own[parameter].step()  # pyright: ignore[reportArgumentType]
        own[parameter].zero_grad()  # pyright: ignore[reportArgumentType]

    for parameter in own:
        parameter.register_post_accumulate_grad_hook(made)
    controller = controller_of(net, torch.optim.SGD(net.weight_parameters(), lr=0.0), steps=40)
    for number in range(40):
        F.cross_entropy(net(X[number % 4 * 16 :][:16]), Y[number % 4 * 16 :][:16]).backward()
        controller.step()
    assert len(controller.optimizers) == len(own) + 1
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs
    assert bool(((net.appraisal.worth > 0) & net.appraisal.worth.isfinite()).any())


def test_an_optimizer_without_hooks_of_its_own() -> None:
    """Some wrap another one, and never call `Optimizer.__init__`."""

    class Around(torch.optim.Optimizer):
        def __init__(self, base: torch.optim.Optimizer) -> None:
            self.base_optimizer, self.defaults = base, base.defaults
            self.param_groups, self.state = base.param_groups, base.state
            self._optimizer_step_post_hooks, self._optimizer_step_pre_hooks = {}, {}

        def step(self, closure: Any = None) -> None:
            self.base_optimizer.step()

    net = prepared()
    around = Around(torch.optim.SGD(net.weight_parameters(), lr=0.05, momentum=0.9))
    controller = controller_of(net, around)
    for _ in range(12):
        step(net, controller)
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs
