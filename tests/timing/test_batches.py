"""Ops at a batch: what is timed has the shapes that a forward pass with so many examples has, wherever the batch is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

import fxcat

COMPUTING = ("convolution", "mm", "addmm", "bmm", "native_layer_norm", "_softmax", "gelu", "roll", "mean")


class _Calls(TorchDispatchMode):
    """Counts calls of ops that compute, with the shapes of what enters."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in COMPUTING:
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            name, tensors = ("mm", tensors[1:]) if name == "addmm" else (name, tensors)  # where its bias is added
            self.found[f"{name}{[tuple(x.shape) for x in tensors]}"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def calls() -> Iterator[Counter[str]]:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _Calls() as watch:
        yield watch.found


def vit() -> nn.Module:
    return VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)


def swin() -> nn.Module:
    """Windows that are shifted, folded into the axis of the batch, and merged."""
    return SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5)


class SequenceFirst(nn.Module):
    """The batch is the second axis, as recurrent networks like it; a position is made of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 24)
        self.attention = nn.MultiheadAttention(24, 3)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(x.transpose(0, 1))
        x = x + torch.linspace(0, 1, x.shape[0]).reshape(-1, 1, 1)
        x = torch.cat([x, x.new_zeros(1, x.shape[1], 24)])
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(0))


class FoldedHeads(nn.Module):
    """Heads are folded into the axis of the batch: it is as long as heads are left, times the examples."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 4, 4).permute(2, 0, 3, 1, 4).flatten(1, 2)
        weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
        x = torch.bmm(weights, v).reshape(batch, 4, tokens, 4).transpose(1, 2).reshape(batch, tokens, -1)
        return self.head(x)


NETWORKS = {
    "vit": (vit, (3, 32, 32)),
    "swin": (swin, (3, 64, 64)),
    "sequence first": (SequenceFirst, (6, 16)),
    "folded heads": (FoldedHeads, (6, 16)),
}


@cache
def prepared(name: str, examples: int = 1) -> tuple[fxcat.GatedModule, tuple[int, ...]]:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    return fxcat.prepare(build(), torch.zeros(examples, *shape), verbose=False), shape


def timed(net: fxcat.GatedModule, batch: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for op in net.timed_ops(batch):
        instance = op.build(op.widths)
        assert instance is not None, op.key
        module, inputs = instance
        with calls() as each:
            module(*inputs)
        for key, count in each.items():
            found[key] += count * op.repeats
    return found


@pytest.mark.parametrize("examples", (1, 2))
@pytest.mark.parametrize("batch", (1, 8))
@pytest.mark.parametrize("name", NETWORKS)
def test_ops_have_the_shapes_of_a_forward_pass(name: str, batch: int, examples: int) -> None:
    net, shape = prepared(name, examples)
    small = net.finalized(torch.ones(net.gate_vector.theta.numel()))
    with calls() as wanted:
        small(torch.zeros(batch, *shape))
    assert timed(net, batch) == wanted


@pytest.mark.parametrize("name", NETWORKS)
def test_ops_at_other_widths_have_the_shapes_of_what_is_left(name: str) -> None:
    net, shape = prepared(name, 2)
    setting = torch.ones(net.gate_vector.theta.numel())
    start = 0
    for part in net.parts:
        setting[start + (part.count + 1) // 2 : start + part.count] = part.kind != "units"
        start += part.count
    small = net.finalized(setting)
    with calls() as wanted:
        small(torch.zeros(8, *shape))
    found: Counter[str] = Counter()
    units = net.gate_vector.unit_count
    for op in net.timed_ops(8):
        alive = [int(_live(axis, setting[:units])) for axis in op.axes]
        instance = op.build(alive)
        assert instance is not None, op.key
        with calls() as each:
            instance[0](*instance[1])
        found.update(each)
    assert found == wanted


def _live(axis: Any, units: torch.Tensor) -> float:
    numbers, weights = axis.units
    return axis.constant + float((units[torch.from_numpy(numbers).long()] * torch.from_numpy(weights)).sum())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_table_does_not_depend_on_how_many_examples_there_were(name: str) -> None:
    keys = [[op.key for op in prepared(name, examples)[0].timed_ops(8)] for examples in (1, 2)]
    assert keys[0] == keys[1]


class OneExample(nn.Module):
    """It is written for one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(x.reshape(1, 16)).relu())


def test_a_batch_that_a_network_does_not_take_is_refused() -> None:
    net = fxcat.prepare(OneExample(), torch.zeros(1, 16), verbose=False)
    assert len(net.timed_ops(1)) == 2
    with pytest.raises(fxcat.InputError, match="does not run with 8 examples"):
        net.timed_ops(8)
