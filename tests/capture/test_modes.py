"""Layers whose own Python asks for the mode, asserts, or changes buffers."""

from __future__ import annotations

import copy
import inspect

import torch
import torch.nn.functional as F
from differences import difference, fixed_seed
from exactness import Report, check, random_gates, randomise
from torch import nn

import fxcat
from fxcat.training.batch_norm_statistics import recalibrate


class NormAct(nn.BatchNorm2d):
    """BatchNorm and activation in one layer, written out as many libraries do."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        torch._assert(input.ndim == 4, f"expected 4D input, got {input.ndim}D")
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        by_batch = True if self.training else self.running_mean is None
        result = F.batch_norm(
            *(input, self.running_mean, self.running_var, self.weight, self.bias),
            *(by_batch, 0.0 if self.momentum is None else self.momentum, self.eps),
        )
        return F.relu(result)


class Block(nn.Module):
    """A residual block with functional dropout, and a buffer that counts its calls."""

    calls: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter, self.norm = nn.Conv2d(channels, 12, 3, padding=1, bias=False), NormAct(12)
        self.leave = nn.Conv2d(12, channels, 1)
        self.register_buffer("calls", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        y = F.dropout(self.norm(self.enter(x)), 0.3, self.training)
        y = self.leave(y)
        torch._assert(y.shape[2:] == x.shape[2:], "a branch keeps the size")
        return F.dropout(x + y, p=0.2, training=self.training)


def network() -> nn.Sequential:
    stem = [nn.Conv2d(3, 8, 3), NormAct(8)]
    model = nn.Sequential(*stem, Block(8), Block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).double()
    randomise(model, 0)
    return model


def checked(model: nn.Module) -> Report:
    report = check(model, "modes", (1, 3, 10, 10), (4, 3, 12, 12))
    assert not report.failures
    return report


def prepared(model: nn.Module) -> fxcat.GatedModule:
    return fxcat.prepare(model, torch.zeros(1, 3, 10, 10, dtype=torch.float64), verbose=False)


class Meeting(nn.Module):
    """Two branches that are asserted to have the same width, and are free to lose different channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)
        self.of_one, self.of_other = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.one(x), self.other(x)
        torch._assert(a.shape[1] == b.shape[1], "as wide as each other")
        torch._assert(x.shape[-1] == b.shape[-1], "as large as the input")
        return self.of_one(a) * self.of_other(b)


def test_assertions_about_widths_go_with_the_widths() -> None:
    model = Meeting().double()
    randomise(model, 0)
    assert checked(model).units == 2 * 8
    net = prepared(model)
    net.gates["one"].set(torch.tensor([1.0, 0, 0, 1, 1, 1, 1, 1]))
    small = fxcat.finalize(net)
    code = inspect.getsource(type(small).forward)
    assert "as large" in code and "as wide" not in code
    assert small(torch.zeros(1, 3, 10, 10, dtype=torch.float64)).shape == (1, 4, 10, 10)


def test_layers_that_ask_for_the_mode_are_pruned_exactly() -> None:
    report = checked(network())
    assert report.coverage == 1.0
    assert (report.groups, report.units, report.sections) == (3, 32, 2)
    assert {p.reason for p in report.pinned} == {"output of the network"}


def test_an_op_that_takes_the_mode_is_there_once() -> None:
    net = prepared(network())
    targets = [n.target for n in net.program.analysis.graph.nodes]  # pyright: ignore[reportAttributeAccessIssue]
    assert targets.count(F.batch_norm) == 3
    assert targets.count(F.dropout) == 4


def test_a_part_may_be_in_another_mode_than_the_whole() -> None:
    model = network()
    net = prepared(model)
    for one in (model, net.network):
        one.train()
        one.get_submodule("1").eval()
        one.get_submodule("2").eval()
    x = torch.randn(4, 3, 10, 10, dtype=torch.float64)
    with fixed_seed(0):
        expected = model(x)
    with fixed_seed(0):
        assert difference(net(x), expected) <= 1e-12


def test_buffers_are_changed_in_the_mode_in_which_the_model_changes_them() -> None:
    model = network()
    net = prepared(model)
    for _ in range(2):
        with fixed_seed(0):
            net.train()(torch.randn(4, 3, 10, 10, dtype=torch.float64))
        net.eval()(torch.randn(4, 3, 10, 10, dtype=torch.float64))
    buffers = dict(net.network.named_buffers())
    assert int(buffers["2.calls"]) == 4
    assert int(buffers["1.num_batches_tracked"]) == int(buffers["3.norm.num_batches_tracked"]) == 2


def test_nothing_of_a_closed_branch_is_left() -> None:
    net = prepared(network())
    net.gates["2.section"].set(0.0)
    small = fxcat.finalize(net)
    names = {name for name, _ in small.named_modules()}
    assert not {"2.enter", "2.norm", "2.leave"} & names
    assert "3.norm" in names


def test_a_copy_of_the_small_network_trains() -> None:
    net = prepared(network())
    random_gates(net, 0)
    small = fxcat.finalize(net)
    again = copy.deepcopy(small).train()
    x = torch.randn(4, 3, 10, 10, dtype=torch.float64)
    with fixed_seed(1):
        expected = small.train()(x)
    with fixed_seed(1):
        assert difference(again(x), expected) <= 1e-12


def test_statistics_are_gathered_anew_whatever_the_layer_is() -> None:
    """Averages over the batches, also of layers that write BatchNorm out, with their momentum in the graph."""
    model = network()
    net = prepared(model)
    batches = [torch.randn(4, 3, 10, 10, dtype=torch.float64) for _ in range(3)]
    means = [model[0](batch).mean((0, 2, 3)) for batch in batches]
    recalibrate(net, batches)
    found = dict(net.network.named_buffers())["1.running_mean"]
    assert difference(found, torch.stack(means).mean(0).detach()) <= 1e-12


class Branching(nn.Module):
    """Its own Python looks at values, so it is captured in regions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Sequential(nn.Conv2d(3, 8, 3), NormAct(8)), network()[2:]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.stem(x if x.mean() < 1e9 else x / 2))


def test_regions_that_ask_for_the_mode_are_linked() -> None:
    model = Branching().double()
    randomise(model, 0)
    report = checked(model)
    assert (report.coverage, report.units, report.sections) == (1.0, 32, 2)


def test_new_values_of_computed_sizes() -> None:
    """`torch.ones(batch, count)`, as code for masks and extra tokens does."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.enter(x).flatten(2)
            batch, _, count = y.shape
            valid = torch.ones(batch, 1, count, dtype=torch.bool, device=x.device)
            y = y.masked_fill(~valid, float("-inf")).relu() + torch.zeros(batch, 1, 1, dtype=y.dtype)
            return self.leave(y.reshape(batch, -1, *x.shape[2:]))

    model = Masked().double()
    randomise(model, 0)
    report = checked(model)
    assert (report.units, report.coverage) == (8, 1.0)


class FrozenStages(nn.Module):
    """Its `train` keeps norms, by name, and the stem as they are in `eval()`, as detectors do with their backbones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.norm1, self.norm2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.enter = nn.ModuleList(nn.Conv2d(8, 6, 1) for _ in range(2))
        self.leave = nn.ModuleList(nn.Conv2d(6, 8, 1) for _ in range(2))
        self.last = nn.BatchNorm2d(8)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.stem.eval()
        self.norm1.eval()
        self.norm2.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.leave[0](self.norm1(self.enter[0](x)).relu())
        return self.last(x + self.leave[1](self.norm2(self.enter[1](x)).relu()))


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = FrozenStages(), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.backbone.norm2.training = False
        self.neck.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.neck(self.backbone(x)))


def test_a_train_of_its_own_that_names_what_has_gone() -> None:
    model = Detector().double()
    randomise(model, 0)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for closed in ((0,), (1,), (0, 1)):
        net = fxcat.prepare(model, x, verbose=False).train()
        sections = [g for g in net.gates.values() if g.kind == "section"]
        for number in closed:
            sections[number].set(0.0)
        small = fxcat.finalize(net)
        net.shrink()
        left = {path: m.training for path, m in net.train().network.named_modules()}
        for each in (small.train(), net.network):
            modes = {path: m.training for path, m in each.named_modules()}
            frozen = {p for p, m in each.named_modules() if isinstance(m, nn.BatchNorm2d) and not modes[p]}
            names = {"backbone.norm1", "backbone.norm2"} - {f"backbone.norm{number + 1}" for number in closed}
            assert frozen == {"neck", "backbone.stem.1", *names}
            assert modes["backbone.last"]
            assert modes == {path: left[path] for path in modes}
        assert difference(small.eval()(x), net.eval()(x)) < 1e-10
        assert not any(m.training for m in small.modules())
