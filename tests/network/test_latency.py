"""Milliseconds of a network: what ops it has, what they take at their widths, and what goes with what is closed."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Literal

import pytest
import torch
from artificial_latency import OVERHEAD, table_for, with_latency
from torch import nn

import fxcat


class Net(nn.Module):
    """A stem, a section of two convolutions, a depthwise one, a head."""

    def __init__(self, width: int = 32, hidden: int = 48) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.first = nn.Conv2d(width, hidden, 3, padding=1)
        self.second = nn.Conv2d(hidden, width, 3, padding=1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.second(self.first(x).relu())).relu()
        return self.head(self.depthwise(x).mean((2, 3)))


def prepared(**options: int) -> fxcat.GatedModule:
    torch.manual_seed(0)
    return fxcat.prepare(Net(**options), torch.zeros(1, 3, 8, 8), round_to=1, verbose=False)


def expected(width: int, hidden: int, *, section: bool = True) -> float:
    """Stem, activation, depthwise, mean and head; the two convolutions and the sum."""
    outside = 5 * OVERHEAD + 5 * width / 1000
    return outside + section * (3 * OVERHEAD + (2 * width * hidden + width) / 1000)


def closed(net: fxcat.GatedModule, width: int, hidden: int, *, section: bool = True) -> fxcat.GatedModule:
    for name, count in (("stem", width), ("first", hidden)):
        if name in net.gates:
            net.gates[name].theta[count:] = 0.0
    if not section:
        net.gates["section"].set(0.0)
    return net


def test_ops_are_what_a_runtime_computes_at_once() -> None:
    net = prepared()
    ops = {op.name: op for op in net.timed_ops(1)}
    assert list(ops) == ["stem", "first", "second", "add", "relu_2", "depthwise", "mean", "head"]
    assert ops["stem"].key.endswith("relu(·)")
    assert [ops[n].widths for n in ("stem", "first", "second", "depthwise")] == [(32,), (32, 48), (48, 32), (32,)]
    assert [bool(ops[n].holding.sections) for n in ops] == [False, True, True, True, False, False, False, False]


class Stated(nn.Module):
    """Heads, a norm with its size among the arguments, a mask that is made of sizes, and what does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 16)
        self.dropout = nn.Dropout(0.5)
        self.qkv = nn.Linear(16, 48)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.layer_norm(self.stem(x), (16,))
        x = nn.functional.pad(self.dropout(x.roll(1, 1)), (0, 0, 0, 0))
        q, k, v = self.qkv(x).reshape(x.shape[0], 6, 3, 4, 4).permute(2, 0, 3, 1, 4)
        mask = x.new_zeros(6, 6)
        mask[:3] = 1.0
        weights = (q @ k.transpose(-2, -1) + mask).softmax(-1)
        return self.head((weights @ v).transpose(1, 2).reshape(x.shape[0], 6, 16))


def test_ops_that_state_sizes_can_be_had_at_others_and_what_is_known_before_is_none() -> None:
    net = fxcat.prepare(Stated(), torch.zeros(1, 6, 12), verbose=False)
    for batch in (1, 3):
        ops = net.timed_ops(batch)
        keys = " ".join(op.key for op in ops)
        assert not any(word in keys for word in ("pad", "zeros", "setitem", "slice_scatter"))
        for op in ops:
            assert len(op.axes) <= 2
            if op.axes:
                assert op.build([max(1, w // 2) for w in op.widths]) is not None, op.key
    kinds = {op.key.partition("(")[0]: op.kind for op in ops}
    assert [kinds[n] for n in ("roll", "permute", "layer_norm", "matmul")] == ["passing", "passing", "value", "product"]


@pytest.mark.parametrize(
    "rounding, left, counted", (((1, 2, 4, 0), 43, 48), ((1, 2, 0, 0), 37, 40), ((0, 1, 2, 4), 34, 41))
)
def test_widths_count_as_what_is_computed_once_all_is_decided(
    rounding: tuple[float, ...], left: int, counted: int
) -> None:
    net = prepared()
    table = table_for(net, step=1)
    rounded = {key: replace(op, rounding=(rounding,) * len(op.widths)) for key, op in table.ops.items()}
    net.use_latency(replace(table, ops=rounded))
    closed(net, 32, left)
    assert net.expected_latency().item() == pytest.approx(expected(32, counted))
    net.gates["first"].theta[left - 1] = 0.5
    less, whole = expected(32, left - 1), expected(32, left)
    assert net.expected_latency().item() == pytest.approx((less + whole) / 2)


@pytest.mark.parametrize("gates", ("units", "units+layers"))
def test_a_table_serves_whichever_gates_there_are(gates: Literal["units", "units+layers"]) -> None:
    table = table_for(prepared())
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), gates=gates, verbose=False)
    net.use_latency(table)


def test_ops_can_be_had_at_other_widths() -> None:
    net = prepared()
    for batch in (1, 4):
        for op in net.timed_ops(batch):
            for share in (1.0, 0.5):
                instance = op.build([int(w * share) for w in op.widths])
                assert instance is not None
                module, inputs = instance
                assert module(*inputs).shape[0] == batch
                assert all(t.is_meta for t in (*module.parameters(), *inputs))


@pytest.mark.parametrize("width, hidden", ((32, 48), (16, 48), (32, 8), (16, 24)))
def test_at_widths_of_the_table_it_is_the_sum_of_the_ops(width: int, hidden: int) -> None:
    net = closed(with_latency(prepared()), width, hidden)
    assert net.expected_latency().item() == pytest.approx(expected(width, hidden))


def test_between_them_it_is_interpolated_and_its_gradient_is_that_of_a_step() -> None:
    net = closed(with_latency(prepared()), 32, 48)
    at, less = net.expected_latency(), expected(32, 40)
    at.backward()
    gradient = net.gates["first"].vector.theta.grad
    assert gradient is not None
    assert gradient[32:80].tolist() == pytest.approx([(expected(32, 48) - less) / 8] * 48)
    closed(net, 32, 44)
    assert net.expected_latency().item() == pytest.approx((expected(32, 48) + less) / 2)


def test_a_section_takes_the_overhead_of_all_its_ops_with_it() -> None:
    net = closed(with_latency(prepared()), 32, 48, section=False)
    assert net.expected_latency().item() == pytest.approx(expected(32, 48, section=False))
    net.gates["section"].set(0.25)
    whole, without = expected(32, 48), expected(32, 48, section=False)
    assert net.expected_latency().item() == pytest.approx(0.25 * whole + 0.75 * without)


@pytest.mark.parametrize("section", (True, False))
def test_it_stays_what_it_is_when_what_is_closed_leaves(section: bool) -> None:
    net = closed(with_latency(prepared()), 16, 24, section=section)
    before = net.expected_latency().item()
    net.shrink()
    assert net.expected_latency().item() == pytest.approx(before)
    assert net.expected_latency().item() < net.latency.start  # type: ignore[union-attr]
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.expected_latency().item() == pytest.approx(before)


def test_widths_become_multiples_of_what_pays_where_nothing_else_is_said() -> None:
    model = Net()
    limits = {"first": fxcat.Limits(multiple_of=4)}
    net = with_latency(fxcat.prepare(model, torch.zeros(1, 3, 8, 8), limits=limits, round_to=1, verbose=False))
    assert [g.multiple_of for g in net.limits.groups] == [8, 4]
    assert not with_latency(prepared(), step=1).limits
    assert [g.multiple_of for g in with_latency(prepared(width=16, hidden=6), step=16).limits.groups] == [8, 2]


def test_a_table_of_another_network_is_refused() -> None:
    net, table = prepared(), table_for(prepared(hidden=40))
    with pytest.raises(fxcat.InputError, match="no times for 2 of 8 ops, such as Conv2d"):
        net.use_latency(table)
    assert net.latency is None
    assert not net.limits
    with pytest.raises(fxcat.InputError, match="LatencyTable"):
        net.use_latency({})  # type: ignore[arg-type]


def test_a_table_comes_before_anything_has_left() -> None:
    net = closed(prepared(), 16, 24)
    table = table_for(net)
    net.shrink()
    with pytest.raises(fxcat.InputError, match="right after prepare"):
        net.use_latency(table)
    with pytest.raises(fxcat.InputError, match="no latency table"):
        net.expected_latency()
