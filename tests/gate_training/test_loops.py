"""Other people's training loops: what they do with gradients, optimizers, modes and states changes no decision."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loops import EXAMPLE, STEPS, Step, X, Y, batch, controller_of, plain, prepared, same, sgd, trained
from small_task import Net
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import fxcat


def cleared_by_the_network(net: fxcat.GatedModule, optimizer: torch.optim.Optimizer, step: int) -> None:
    x, y = batch(step)
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
    net.zero_grad()


def with_a_loss_scale(net: fxcat.GatedModule, optimizer: torch.optim.Optimizer, step: int) -> None:
    x, y = batch(step)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer.zero_grad()
    scaler.scale(F.cross_entropy(net(x), y)).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("step", [cleared_by_the_network, with_a_loss_scale])
def test_the_loop_does_not_change_what_is_decided(step: Step) -> None:
    assert same(trained(step), trained(plain))


def test_clipping_all_parameters_clips_the_weights_alone() -> None:
    """θ adds nothing to the norm: zeros in its place do the same. (Without any, sums have another order.)"""

    def all_of(net: fxcat.GatedModule) -> list[nn.Parameter]:
        return list(net.parameters())

    def zeros_and_weights(net: fxcat.GatedModule) -> list[nn.Parameter]:
        theta = net.gate_vector.theta
        zeros = nn.Parameter(torch.zeros_like(theta))
        zeros.grad = None if theta.grad is None else torch.zeros_like(theta)
        return [zeros, *net.weight_parameters()]

    def clipped(of: Callable[[fxcat.GatedModule], list[nn.Parameter]]) -> Step:
        def step(net: fxcat.GatedModule, optimizer: torch.optim.Optimizer, i: int) -> None:
            x, y = batch(i)
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            nn.utils.clip_grad_norm_(of(net), 0.1)
            optimizer.step()

        return step

    assert same(trained(clipped(all_of)), trained(clipped(zeros_and_weights)))


@pytest.mark.parametrize("clear", ["optimizer", "network", "by hand"])
def test_a_batch_that_is_skipped_does_not_count(clear: str) -> None:
    """It draws gates and updates statistics, as a forward pass alone does."""

    def skipping(factor: float) -> Step:
        def step(net: fxcat.GatedModule, optimizer: torch.optim.Optimizer, i: int) -> None:
            if i % 7 == 3:
                x, y = batch(i + 1)
                loss = F.cross_entropy(net(x), y)
                if factor:
                    (factor * loss).backward()
                    if clear == "optimizer":
                        optimizer.zero_grad()
                    elif clear == "network":
                        net.zero_grad()
                    else:
                        for parameter in net.parameters():
                            parameter.grad = None
            plain(net, optimizer, i)

        return step

    assert same(trained(skipping(1e30)), trained(skipping(0.0)))


def test_a_single_bad_batch_does_not_decide() -> None:
    def spiked(at: int) -> Step:
        def step(net: fxcat.GatedModule, optimizer: torch.optim.Optimizer, i: int) -> None:
            x, y = batch(i)
            optimizer.zero_grad()
            (F.cross_entropy(net(x), y) * (1e18 if i == at else 1.0)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()

        return step

    one, other = trained(spiked(25)), trained(spiked(-1))
    assert one.hard_cost().macs == pytest.approx(other.hard_cost().macs, rel=0.35)


def worth_of(parts: int) -> torch.Tensor:
    """What gates are found to be worth from batches in so many parts; the weights do not move."""
    net = prepared()
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.0)
    controller = controller_of(net, optimizer, total_steps=10_000, warmup=0.9, until=1.0)
    net.gate_vector.theta.data.fill_(0.5)
    net.gate_vector.values = "sampled"
    for i in range(150):
        x, y = batch(i)
        optimizer.zero_grad()
        for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (F.cross_entropy(net(a), b) / parts).backward()
        optimizer.step()
        controller.step()
    return controller.policy.worth.estimate  # pyright: ignore[reportAttributeAccessIssue]


def test_accumulated_gradients_belong_to_the_gates_of_their_own_pass() -> None:
    whole, parts = worth_of(1), worth_of(4)
    assert float(torch.corrcoef(torch.stack([whole, parts]))[0, 1]) > 0.8
    assert 0.4 < float(parts.mean() / whole.mean()) < 2.5


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_pass_that_is_computed_again_has_the_gates_that_it_had(reentrant: bool) -> None:
    gradients: list[torch.Tensor] = []
    for again in (False, True):
        net = prepared().double()
        net.gate_vector.theta.data.fill_(0.6)
        net.gate_vector.seed(3)
        first, second = X[:8].double().requires_grad_(), X[8:16].double().requires_grad_()
        outputs = [checkpoint(net, x, use_reentrant=reentrant) if again else net(x) for x in (first, second)]
        sum(o.square().sum() for o in outputs).backward()  # pyright: ignore[reportAttributeAccessIssue]
        gradients.append(torch.cat([p.grad.flatten() for p in net.weight_parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_second_derivatives_are_those_of_the_network_by_hand() -> None:
    """A penalty on the gradients of the weights; gates are all open, or all of a section closed."""
    model = Net().double().eval()
    net = fxcat.prepare(model, EXAMPLE.double(), verbose=False).eval()
    found: list[list[torch.Tensor]] = []
    for each in (model, net):
        weights = [dict(each.named_parameters())[n] for n in _names(each, "stem.0.weight", "block.1.weight")]
        loss = F.cross_entropy(each(X[:8].double()), Y[:8])
        slopes = torch.autograd.grad(loss, weights, create_graph=True)
        penalty = torch.stack([s.square().sum() for s in slopes]).sum()
        found.append(list(torch.autograd.grad(penalty, weights)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def _names(network: nn.Module, *names: str) -> list[str]:
    return [f"network.{n}" for n in names] if isinstance(network, fxcat.GatedModule) else list(names)


def test_gates_in_training_can_be_differentiated_twice() -> None:
    net = prepared().double()
    sample = torch.ones_like(net.gate_vector.theta.detach())
    sample[2] = 0.0
    x, weight = X[:4].double(), net.network.get_parameter("stem.1.weight")
    with net.gate_vector.fixed(sample):

        def slope(value: torch.Tensor) -> torch.Tensor:
            weight.data.copy_(value)
            (found,) = torch.autograd.grad(net(x).square().sum(), weight, create_graph=True)
            return found

        start = weight.detach().clone()
        direction = torch.randn_like(start)
        (second,) = torch.autograd.grad((slope(start) * direction).sum(), weight)
        around = [(slope(start + e * direction) * direction).sum().item() for e in (1e-5, -1e-5)]
    assert (second * direction).sum().item() == pytest.approx((around[0] - around[1]) / 2e-5, rel=1e-3)


def test_functional_calls_and_gradients() -> None:
    net = prepared().eval()
    parameters = {n: p.detach() for n, p in net.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(net, parameters, (x,)), y)

    found = torch.func.grad(loss)(parameters, X[:8], Y[:8])
    F.cross_entropy(net(X[:8]), Y[:8]).backward()
    expected = net.network.get_parameter("head.weight").grad
    torch.testing.assert_close(found["network.head.weight"], expected)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, X[:8, None], Y[:8, None])
    torch.testing.assert_close(each["network.head.weight"].mean(0), expected)


def test_an_average_of_all_buffers_corrupts_nothing() -> None:
    net = prepared()
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(5):
        average.update_parameters(net)
    copied: Any = average.module
    for gate in copied.gates.values():
        gate.theta[::3] = 0.0
    for gate in net.gates.values():
        gate.theta[::3] = 0.0
    averaged: Any = average.module
    torch.testing.assert_close(averaged.eval()(X[:4]), net.eval()(X[:4]))
    assert averaged.hard_cost() == net.hard_cost()


def test_a_target_of_everything_removes_nothing() -> None:
    net = trained(plain, pressure=None, target=fxcat.Target(flops=1.0))
    assert net.hard_cost() == net.start_cost


def test_a_loop_that_ends_early_is_told_so_and_can_finish() -> None:
    net = prepared()
    optimizer = sgd(net)
    controller = controller_of(net, optimizer, pressure=None, target=fxcat.Target(flops=0.5))
    for i in range(20):
        plain(net, optimizer, i)
        controller.step()
    with pytest.warns(UserWarning, match="has not ended"):
        fxcat.finalize(net)
    assert controller.finish()
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxcat.finalize(net)
    assert not controller.finish()
    with pytest.raises(fxcat.InputError, match="decided"):
        controller_of(net, optimizer)


def train_by(optimizers: Sequence[torch.optim.Optimizer], net: fxcat.GatedModule, controller: Any) -> None:
    for i in range(STEPS):
        x, y = batch(i)
        F.cross_entropy(net(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        controller.step()


def test_several_optimizers_share_the_weights() -> None:
    net = prepared()
    head = list(net.network.get_submodule("head").parameters())
    rest = [p for p in net.weight_parameters() if all(p is not h for h in head)]
    optimizers = [torch.optim.SGD(rest, lr=0.05, momentum=0.9), torch.optim.AdamW(head, lr=1e-3)]
    with pytest.raises(fxcat.InputError, match="of the gated network's weights that are trained"):
        controller_of(net, optimizers[0])
    controller = controller_of(net, optimizers, pressure=None, target=fxcat.Target(flops=0.5))
    train_by(optimizers, net, controller)
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has it from 2.9 on")
def test_muon_takes_the_matrices_and_another_optimizer_the_rest() -> None:
    net = prepared()
    matrices = [p for p in net.weight_parameters() if p.dim() == 2]
    rest = [p for p in net.weight_parameters() if p.dim() != 2]
    optimizers = [torch.optim.Muon(matrices, lr=0.01), torch.optim.AdamW(rest, lr=1e-3)]
    controller = controller_of(net, optimizers, pressure=None, target=fxcat.Target(flops=0.25))
    width = matrices[0].shape[1]
    train_by(optimizers, net, controller)
    assert net.hard_cost().macs <= 0.25 * net.start_cost.macs
    (matrix,) = optimizers[0].param_groups[0]["params"]
    assert optimizers[0].state[matrix]["momentum_buffer"].shape == matrix.shape
    assert matrix.shape[1] < width


class Matrices(torch.optim.Optimizer):
    """Keeps a square matrix per parameter, in an object of its own."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p].setdefault("factors", [torch.eye(p.shape[0]), torch.eye(p.numel())])


class ByWidth(torch.optim.Optimizer):
    """Keeps a factored second moment from eight channels on."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                wide = p.dim() > 1 and p.shape[0] >= 4
                state = self.state[p]
                if not state:
                    state["rows" if wide else "all"] = torch.zeros_like(p[:, :1] if wide else p)
                state["rows" if wide else "all"].mul_(0.9)


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, Matrices, ByWidth])
def test_optimizers_that_cannot_shrink_are_refused_at_the_first_step(kind: Any) -> None:
    net = prepared()
    optimizer = kind(net.weight_parameters())
    controller = controller_of(net, optimizer)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(net(X[:32]), Y[:32])
        value.backward()
        return value

    loss()
    optimizer.step(loss)
    with pytest.raises(fxcat.InputError, match=f"{kind.__name__} (keeps|cannot go on)"):
        controller.step()
    assert controller.steps == 0


def test_modules_keep_their_modes_and_memory_format() -> None:
    model = Net().train()
    model.stem[1].eval()
    net = fxcat.prepare(model, EXAMPLE, verbose=False).to(memory_format=torch.channels_last)
    assert net.training and not net.network.get_submodule("stem.1").training
    optimizer = sgd(net)
    controller = controller_of(net, optimizer, pressure=None, target=fxcat.Target(flops=0.4))
    for i in range(STEPS):
        plain(net, optimizer, i)
        controller.step()
    assert not net.network.get_submodule("stem.1").training and net.network.get_submodule("block").training
    assert net.network.get_parameter("block.0.weight").is_contiguous(memory_format=torch.channels_last)
    assert not net.network.get_parameter("block.0.weight").is_contiguous()


def test_modules_may_be_replaced_by_others_of_the_same_shapes() -> None:
    net = prepared()
    reference = fxcat.finalize(net.eval())
    net: Any = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    torch.testing.assert_close(net.eval()(X[:4]), reference(X[:4]))
    for gate in net.gates.values():
        gate.theta[::2] = 0.0 if gate.kind == "units" else 1.0
    small = fxcat.finalize(net)
    torch.testing.assert_close(small(X[:4]), net(X[:4]))
    assert sum(p.numel() for p in small.parameters()) == net.hard_cost().params
    net.network.head = nn.Linear(16, 9)
    with pytest.raises(fxcat.InputError, match="replaced after prepare"):
        net(X[:4])
