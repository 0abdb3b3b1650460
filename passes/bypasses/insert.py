"""Putting bypasses in: a copy of the model in which every section found has a residual connection round it.

In: a model, its graph, and where bypasses go. Out: a module of the same class with a new `forward`. Its own modules and
parameters keep their names; those of the bypasses lie in one new submodule.
"""

from __future__ import annotations

import itertools
import operator
from collections import OrderedDict
from collections.abc import Container

import torch
from torch import fx, nn

from fxcat.network.latency import attach_latency
from fxcat.network.recipe import ATTRIBUTE
from fxcat.passes.bypasses.place import Bypass, Bypasses
from fxcat.passes.capture.capture import Captured
from fxcat.passes.codegen.install import install
from fxcat.passes.graph.buffers import add_buffer
from fxcat.passes.graph.copy_model import copy_data, copy_model
from fxcat.passes.graph.invocations import stands_for
from fxcat.passes.graph.meta import PHASE, VALUE, stand_beside, value_of

CONTAINER = "bypasses"
"""The submodule that holds what the bypasses compute."""


def with_bypasses(model: nn.Module, captured: Captured, bypasses: Bypasses) -> nn.Module:
    """A copy of `model` with its bypasses, on the same device and in the same mode. Its graph becomes the copy's."""
    network, copied = copy_model(model)
    copy_data(copied)
    for name, constant in captured.constants.items():
        add_buffer(network, name, constant, persistent=False)
    # how the structure of a finalized module came about says nothing of its bypasses
    vars(network).pop(ATTRIBUTE, None)
    attach_latency(network, None)
    container = _free(CONTAINER, dir(network))
    added = nn.ModuleDict()
    device = next((p.device for p in network.parameters()), None)
    sums: dict[fx.Node, fx.Node] = {}
    for bypass in bypasses.found:
        # what enters a section is what left the one before: the sum, if that has a bypass
        shortcut = sums.get(bypass.stretch.entry, bypass.stretch.entry)
        where = bypass.stretch.exit
        if bypass.kind != "identity":
            name = _free(bypass.name.replace(".", "_"), dir(added))
            added[name] = _computed(bypass, value_of(shortcut).dtype, device)
            with where.graph.inserting_after(where):
                shortcut = where = where.graph.call_module(f"{container}.{name}", (shortcut,))
        sums[bypass.stretch.exit] = _add(bypass.stretch.exit, shortcut, where)
    if len(added):
        network.add_module(container, added.train(network.training))
    captured.graph.lint()
    install(network, captured.graph, captured.regions, captured.blocks, for_good=True)
    return network


def _free(name: str, taken: Container[str]) -> str:
    """The name, with a number if it is taken."""
    names = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(1)))
    return next(n for n in names if n not in taken)


def _computed(bypass: Bypass, dtype: torch.dtype, device: torch.device | None) -> nn.Sequential:
    """Average poolings, one for each window that changes sizes, and behind them the projection and its normalization.

    One for each, since a single one with their common window could give another size. Normalized as in a ResNet: else
    nothing would keep what all bypasses together carry in size, and training would not stand the learning rate of the
    rest.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for window in bypass.windows:
        layers[_free("pool", layers)] = window.pooling()
    if bypass.kind == "projection":
        layers["project"] = _projection(bypass, dtype, device)
    if bypass.is_normalized:
        kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(bypass.leaving) - 1]
        layers["norm"] = kind(bypass.leaving[0], device=device, dtype=dtype)
    return nn.Sequential(layers)


def _projection(bypass: Bypass, dtype: torch.dtype, device: torch.device | None) -> nn.Module:
    """A 1×1 convolution, or a linear layer.

    Its entries are normal with variance 1 / (channels that enter), so that what the bypass adds has the second moment
    of what enters the section (He et al., Delving Deep into Rectifiers, arXiv 1502.01852, §2.2, for a linear layer).
    It has no bias: that of the next layer does the same.
    """
    if bypass.stretch.windows:
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(bypass.entering) - 2]
        layer = kind(bypass.entering[0], bypass.leaving[0], 1, bias=False, device=device, dtype=dtype)
    else:
        layer = nn.Linear(bypass.entering[-1], bypass.leaving[-1], bias=False, device=device, dtype=dtype)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    return layer


def _add(last: fx.Node, shortcut: fx.Node, where: fx.Node) -> fx.Node:
    """Let everything that reads a section's result read its sum with the shortcut, which is made behind `where`."""
    readers = [n for n in last.users if n is not shortcut]
    with last.graph.inserting_after(where):
        total = last.graph.call_function(operator.add, (last, shortcut))
    VALUE.copy(total, last)
    PHASE.copy(total, last)
    stand_beside(total, last)
    stands_for(total, last)
    PHASE.copy(where, last)
    for reader in readers:
        reader.replace_input_with(last, total)
    return total
