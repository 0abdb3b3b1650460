"""With open gates a network trains as the model does: outputs, statistics, buffers, random draws, gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from differences import DOUBLE_TOLERANCE, difference, fixed_seed
from exactness import random_gates
from torch import nn
from torch.utils._pytree import tree_leaves

import fxcat


class _Net(nn.Module):
    """A block twice, and an output that only training has, without which the two modes would have one graph."""

    ema: torch.Tensor

    def __init__(self, block: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.block = block
        self.stem, self.conv, self.head, self.aux = (nn.Conv2d(a, b, 1) for a, b in ((3, 6), (6, 6), (6, 2), (6, 2)))
        self.norm, self.other, self.drop = nn.BatchNorm2d(6, momentum=None), nn.BatchNorm2d(6), nn.Dropout(0.3)
        self.register_buffer("ema", torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = first = self.block(self, self.stem(x))
        y = self.head(self.block(self, x))
        return (y, self.aux(first)) if self.training else y


def _unread_norm(net: _Net, x: torch.Tensor) -> torch.Tensor:
    net.norm(x)
    return net.conv(x).relu()


def _unread_layers(net: _Net, x: torch.Tensor) -> torch.Tensor:
    net.norm(net.conv(x))
    net.drop(x)
    return net.drop(net.conv(x)).relu()


def _norm_of_inference(net: _Net, x: torch.Tensor) -> torch.Tensor:
    a, b = net.norm(net.conv(x)), net.other(x)
    return a.relu() if net.training else (a + b).relu()


def _norm_of_each_mode(net: _Net, x: torch.Tensor) -> torch.Tensor:
    return (net.norm if net.training else net.other)(net.conv(x)).relu()


def _running_mean(net: _Net, x: torch.Tensor) -> torch.Tensor:
    y = net.conv(x)
    if net.training:
        with torch.no_grad():
            net.ema.mul_(0.9).add_(y.mean((0, 2, 3)), alpha=0.1)
    return (y - net.ema.view(1, -1, 1, 1)).relu()


def _frozen_in_forward(net: _Net, x: torch.Tensor) -> torch.Tensor:
    net.other.eval()
    net.drop.training = False
    return net.drop(net.other(net.conv(x))).relu()


def _frozen_in_training(net: _Net, x: torch.Tensor) -> torch.Tensor:
    if net.training:
        for module in net.modules():
            if module is net.other:
                module.eval()
    return net.other(net.conv(x)).relu()


def _frozen_once(net: _Net, x: torch.Tensor) -> torch.Tensor:
    """A pass that leaves no statistics behind."""
    mode = net.other.training
    net.other.eval()
    before = net.other(x)
    net.other.train(mode)
    return net.conv(net.other(x) - before).relu()


def _part_of_running_mean(net: _Net, x: torch.Tensor) -> torch.Tensor:
    y = net.conv(x)
    if net.training:
        net.ema[:2] += y.detach().mean((0, 2, 3))[:2]
    return (y - net.ema.view(1, -1, 1, 1)).relu()


def _assigned_part(net: _Net, x: torch.Tensor) -> torch.Tensor:
    if net.training:
        net.ema[3:5] += 1
        net.ema[:2] = x.amax((0, 2, 3))[:2].detach()
    return x.relu()


def _unread_after_dropout(net: _Net, x: torch.Tensor) -> torch.Tensor:
    """In both modes the same result, on the way to another one that nobody reads."""
    net.norm(net.conv(nn.functional.dropout(x, 0.5) if net.training else x))
    return x.relu()


BLOCKS = (
    *(_unread_norm, _unread_layers, _norm_of_inference, _norm_of_each_mode, _running_mean),
    _part_of_running_mean,
    *(_frozen_in_forward, _frozen_in_training, _frozen_once),
)


class Result(NamedTuple):
    scores: torch.Tensor


@pytest.mark.parametrize("block", [_unread_after_dropout, _assigned_part, _unread_norm])
def test_state_of_what_gives_the_same_in_both_modes(block: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
    class Net(_Net):
        def forward(self, x: torch.Tensor) -> Result:
            return Result(self.head(self.block(self, self.stem(x))) + self.aux(self.more(x)))  # pyright: ignore[reportCallIssue]

    torch.manual_seed(0)
    model, x = Net(block), torch.randn(3, 3, 4, 4, dtype=torch.float64)
    model.more = nn.Conv2d(3, 6, 1)
    net = fxcat.prepare(model.double(), x, verbose=False).train()
    for seed in range(2):
        for each in (model.train(), net):
            with fixed_seed(seed):
                each(x)
    buffers = dict(net.network.named_buffers())
    assert int(buffers["norm.num_batches_tracked"]) == (0 if block is _assigned_part else 2)
    for name, buffer in model.named_buffers():
        assert difference(buffers[name], buffer) <= DOUBLE_TOLERANCE, name


NORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "group norm": lambda x: F.group_norm(x, 2),
    "group norm of one group": lambda x: F.group_norm(x, 1),
    "batch norm without statistics": lambda x: F.batch_norm(x, None, None, training=True),
    "instance norm": F.instance_norm,
    "response norm": lambda x: F.local_response_norm(x, 3),
}
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


def _drawn(norm: str, layout: str, net: _Net, x: torch.Tensor) -> torch.Tensor:
    """Dropout draws its numbers in the order in which its input lies in memory."""
    return net.drop(NORMS[norm](LAYOUTS[layout](net.conv(x))))


DRAWN = [pytest.param(partial(_drawn, n, o), id=f"{n}, {o}") for n in NORMS for o in LAYOUTS]


@pytest.mark.parametrize("block", [*BLOCKS, *DRAWN])
def test_open_gates_train_as_the_model(block: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
    torch.manual_seed(0)
    model = _Net(block).double()
    net = fxcat.prepare(model, torch.randn(1, 3, 4, 4, dtype=torch.float64), verbose=False)
    reference = copy.deepcopy(model)
    parameters, x = dict(reference.named_parameters()), torch.empty(0)
    for step, training in enumerate((True, True, False, True)):
        x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
        results = []
        for each in (reference, net):
            each.train(training)
            each.zero_grad()
            with fixed_seed(step):
                results.append(each(x))
            sum((t.square().sum() for t in tree_leaves(results[-1])), torch.zeros(())).backward()
        assert difference(results[1], results[0]) <= DOUBLE_TOLERANCE
        buffers = dict(net.network.named_buffers())
        for name, buffer in reference.named_buffers():
            assert difference(buffers[name], buffer) <= DOUBLE_TOLERANCE, name
        for name, parameter in net.network.named_parameters():
            if parameter.grad is not None:
                assert difference(parameter.grad, parameters[name].grad) <= DOUBLE_TOLERANCE, name
    random_gates(net.eval(), 1)
    small = fxcat.finalize(net)
    assert difference(small(x), net(x)) <= DOUBLE_TOLERANCE
    assert net.hard_cost().params == sum(p.numel() for p in small.parameters())


def test_dropout_that_is_always_on() -> None:
    class Net(_Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.drop.train()
            return self.head(self.drop(self.conv(self.stem(x)).relu()))

    model, x = Net(_unread_norm).eval(), torch.randn(2, 3, 4, 4)
    net = fxcat.prepare(model, x, verbose=False).eval()
    random_gates(net, 1)
    small = fxcat.finalize(net)
    results: list[torch.Tensor] = []
    for each in (model, net, small):
        with fixed_seed(0):
            results.append(each(x))
    assert not torch.equal(results[0], model(x))
    gates = net.gate_vector.theta.detach().clone()
    net.gate_vector.theta.data.fill_(1.0)
    with fixed_seed(0):
        torch.testing.assert_close(net(x), results[0])
    assert gates.min() < 0.5
    assert results[2].shape == results[1].shape


def test_a_mode_that_is_of_the_next_pass_is_refused() -> None:
    class Net(_Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.other(self.stem(x))
            self.other.eval()
            return self.head(self.conv(y).relu())

    with pytest.raises(fxcat.FxcatError, match="in one mode"):
        fxcat.prepare(Net(_unread_norm), torch.randn(1, 3, 4, 4), verbose=False)


class _Codebook(_Net):
    """A residual branch that is quantised, and moves the entries of the codebook that it uses."""

    codes: torch.Tensor

    def __init__(self) -> None:
        super().__init__(_unread_norm)
        self.register_buffer("codes", torch.randn(5, 6))
        self.enter = nn.Conv2d(6, 7, 1)
        self.leave = nn.Conv2d(7, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.leave(self.enter(x).relu())
        flat = y.permute(0, 2, 3, 1).reshape(-1, 6)
        nearest = torch.cdist(flat, self.codes).argmin(1)
        if self.training:
            used = nn.functional.one_hot(nearest, 5).to(y.dtype)
            self.codes.data.mul_(0.9).add_((used.t() @ flat).detach(), alpha=0.1)
        q = self.codes[nearest].view(len(y), *y.shape[2:], 6).permute(0, 3, 1, 2)
        return self.head(x + (y + (q - y).detach()))


def test_costs_where_a_branch_changes_a_buffer() -> None:
    net = fxcat.prepare(_Codebook().double(), torch.randn(1, 3, 4, 4, dtype=torch.float64), verbose=False).eval()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for seed in range(3):
        random_gates(net, seed, sections=0.7)
        small = fxcat.finalize(net)
        assert net.hard_cost().params == sum(p.numel() for p in small.parameters())
        assert difference(small(x), net(x)) <= DOUBLE_TOLERANCE


class _Counting(_Net):
    """Keeps a number or a flag, and goes on from it in the next pass."""

    def __init__(self, count: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__(_unread_norm)
        self.count, self.steps, self.rate, self.begins, self.log = count, 0, 1.0, True, list[int]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.count(self, self.conv(self.stem(x))).relu())


def _counts_only(net: _Counting, y: torch.Tensor) -> torch.Tensor:
    net.steps += 1
    net.rate *= 0.99
    net.begins = False
    net.log.append(0)
    return y


def _decides(net: _Counting, y: torch.Tensor) -> torch.Tensor:
    if net.training:
        net.steps += 1
    return y * 2 if net.steps > 2 else y


def _decides_inference(net: _Counting, y: torch.Tensor) -> torch.Tensor:
    if net.training:
        net.steps += 1
        return y
    return y * 2 if net.steps > 2 else y


def _is_a_factor(net: _Counting, y: torch.Tensor) -> torch.Tensor:
    net.rate = 0.9 * net.rate
    return y * net.rate


def _decays_to_a_bound(net: _Counting, y: torch.Tensor) -> torch.Tensor:
    net.rate = max(0.1, net.rate * 0.9)
    return y


def _is_first(net: _Counting, y: torch.Tensor) -> torch.Tensor:
    begins, net.begins = net.begins, False
    return y * 0 if begins else y


def _counts_a_list(net: _Counting, y: torch.Tensor) -> torch.Tensor:
    net.log.append(1)
    return y * len(net.log)


def test_a_number_that_decides_nothing_is_no_matter() -> None:
    model, x = _Counting(_counts_only), torch.randn(2, 3, 4, 4)
    net = fxcat.prepare(model, x, verbose=False)
    torch.testing.assert_close(net.eval()(x), model.eval()(x))


class _Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.n, self.rate = nn.Conv2d(8, 8, 1), 0, 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.n += 1
        if self.training:
            self.rate = 0.5 * self.rate - 1 / 4
        return self.conv(x).relu()


class _Counted(nn.Module):
    """Numbers, a flag and a buffer that every pass changes, some only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.inner = nn.Sequential(_Inner(), nn.Identity())
        self.steps, self.last, self.begins = 0, 0, True
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last, self.begins = self.steps, False
        if self.training:
            self.steps += 1
            self.seen += 1
        y = self.stem(x)
        return self.head(y + self.inner(y))

    def state(self) -> tuple[object, ...]:
        return self.steps, self.last, self.begins, int(self.seen)


class _Outer(nn.Module):
    """Only its parts can be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.part = _Counted()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.part(x)
        return y if bool(y.sum() > -1e9) else y * 2


@pytest.mark.parametrize("cls", [_Counted, _Outer])
def test_numbers_that_decide_nothing_go_on(cls: type[nn.Module]) -> None:
    model, x = cls(), torch.randn(2, 3, 4, 4)
    net = fxcat.prepare(model, x, verbose=False)
    small = fxcat.finalize(net)
    section = next(g for g in net.gates.values() if g.kind == "section")
    section.set(0.0)
    networks = (model, net, small, fxcat.finalize(net))
    for network in networks:
        for mode in (True, True, False, True, False):
            network.train(mode)(x)
    plain = [n.network if isinstance(n, fxcat.GatedModule) else n for n in networks]
    parts: list[Any] = [getattr(n, "part", n) for n in plain]
    assert [_Counted.state(p) for p in parts] == [(3, 3, False, 3)] * 4
    assert [(p.inner[0].n, p.inner[0].rate) for p in parts[:3]] == [(5, -0.3125)] * 3


@pytest.mark.parametrize(
    "count", [_decides, _decides_inference, _is_a_factor, _decays_to_a_bound, _is_first, _counts_a_list]
)
def test_numbers_that_decide_the_next_pass_are_refused(
    count: Callable[[nn.Module, torch.Tensor], torch.Tensor],
) -> None:
    with pytest.raises(fxcat.FxcatError, match="from one forward pass to the next"):
        fxcat.prepare(_Counting(count), torch.randn(1, 3, 4, 4), verbose=False)
