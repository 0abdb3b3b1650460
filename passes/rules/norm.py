"""Normalisations by statistics over channels: LayerNorm, GroupNorm, RMSNorm.

The gated form counts live units only, so that removal is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcat.passes.graph.arguments import arguments, thaw
from fxcat.passes.graph.label_arrays import Labels, frozen
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Counting, Moved, Replacement, Rule, Sample, Zero
from fxcat.passes.rules.counting import (
    gated_group_norm,
    gated_layer_norm,
    gated_local_response_norm,
    gated_rms_norm,
)
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.sizes import sizes_left
from fxcat.passes.rules.table import rule
from fxcat.utils.made_classes import gated_class


def _over_last_axes(flow: Flow, node: fx.Node, rank: int) -> torch.Tensor:
    """Labels of a value that is normalised over its last `rank` axes."""
    labels = flow.of(node.all_input_nodes[0])
    inner = labels.shape[labels.dim() - rank :]
    if inner.numel() == 1 or labels.numel() == inner.numel():
        return labels
    # units along the batch axis (heads that were folded into it) go as a whole
    tied = range(labels.dim() - rank, labels.dim()) if labels.shape[0] > 1 else range(labels.dim() - rank)
    first = labels
    for axis in tied:
        first = first.narrow(axis, 0, 1)
    flow.unite(labels, first)
    return first


def _counted(flow: Flow, node: fx.Node, rank: int, target: Callable[..., Any]) -> Counting | None:
    labels = flow.of(node)
    inner = labels.shape[labels.dim() - rank :]
    return Counting(target, labels.reshape(inner)) if 1 < labels.numel() == inner.numel() else None


def _normalised(value: torch.Tensor, size: Sequence[int]) -> torch.Tensor | None:
    """The example value of what is normalised: the kernels write it anew. None: run it, it says what does not fit."""
    return value.contiguous() if tuple(value.shape[-len(size) :]) == tuple(size) else None


class _OverLastAxes(Rule):
    """Statistics over the last axes."""

    zero = Zero.BREAKS
    equivariant = True
    gated: Callable[..., Any]

    def rank(self, flow: Flow, node: fx.Node) -> int:
        raise NotImplementedError

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        return _counted(flow, node, self.rank(flow, node), self.target(flow, node))

    def target(self, flow: Flow, node: fx.Node) -> Callable[..., Any]:
        return self.gated


class _LastAxesModule(_OverLastAxes):
    """As a module. Without parameters it is captured as the function, which can be told its size."""

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
        return _normalised(value, module.normalized_shape)

    def rank(self, flow: Flow, node: fx.Node) -> int:
        module = flow.module(node)
        assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
        return len(module.normalized_shape)

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        rank = self.rank(flow, node)
        labels = _over_last_axes(flow, node, rank)
        for axis in range(-rank, 0):
            if labels.shape[axis] > 1:
                for name in self.parameters:
                    flow.bind(node, name, rank + axis, labels.reshape(-1))
        return labels

    def target(self, flow: Flow, node: fx.Node) -> Callable[..., Any]:
        return _subclass(type(flow.module(node)), self.gated)

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
        module.normalized_shape = entering[-len(module.normalized_shape) :]


class _LastAxesFunction(_OverLastAxes):
    """As a function, with its size among the arguments."""

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        return _normalised(args[0], args[1]) if len(args) > 1 else None

    def rank(self, flow: Flow, node: fx.Node) -> int:
        return len(thaw(arguments(node)["normalized_shape"]))

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        rank = self.rank(flow, node)
        labels = _over_last_axes(flow, node, rank)
        inner = labels.shape[labels.dim() - rank :]
        given = arguments(node)
        for name in ("weight", "bias"):
            if isinstance(given.get(name), fx.Node) and labels.numel() == inner.numel() > 1:
                flow.unite(labels.reshape(inner), flow.of(given[name]))
        return labels

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        given = arguments(node)
        sizes = given.pop("normalized_shape")
        left = sizes_left(sizes, moved.shape[-len(thaw(sizes)) :], moved)
        return Replacement((given.pop("input"), left), given)


@cache
def _subclass(base: type[nn.Module], function: Callable[..., Any]) -> type[nn.Module]:
    """A module class that takes its gate as the argument `gate` of `forward`, and hands it to `function`."""

    def forward(self: Any, input: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        size = self.num_groups if hasattr(self, "num_groups") else list(self.normalized_shape)
        parameters = {n: p for n, p in self.named_parameters(recurse=False)}
        return function(input, size, eps=self.eps, gate=gate, **parameters)

    return gated_class(base, forward, (_subclass, (base, function)))


@rule(nn.LayerNorm)
class LayerNorm(_LastAxesModule):
    """LayerNorm."""

    parameters = ("weight", "bias")
    gated = staticmethod(gated_layer_norm)

    def samples(self) -> tuple[Sample, ...]:
        return Sample(nn.LayerNorm(6), (2, 3, 6), axis=-1), Sample(nn.LayerNorm(6, bias=False), (2, 6), axis=-1)


@rule(nn.RMSNorm)
class RMSNorm(_LastAxesModule):
    """RMSNorm."""

    parameters = ("weight",)
    gated = staticmethod(gated_rms_norm)

    def samples(self) -> tuple[Sample, ...]:
        return Sample(nn.RMSNorm(6), (2, 3, 6), axis=-1), Sample(nn.RMSNorm(6, eps=1e-5), (2, 6), axis=-1)


@rule(F.layer_norm)
class LayerNormFunction(_LastAxesFunction):
    """F.layer_norm."""

    gated = staticmethod(gated_layer_norm)


@rule(F.rms_norm)
class RMSNormFunction(_LastAxesFunction):
    """F.rms_norm."""

    gated = staticmethod(gated_rms_norm)


class _Groups(Rule):
    """GroupNorm, whose groups must stay equally wide.

    Either its groups are the units, whose statistics are their own; or the positions inside every group are, and the
    statistics count the live ones: whichever gives more units.
    """

    zero = Zero.BREAKS

    def number(self, flow: Flow, node: fx.Node) -> int:
        """How many groups there are."""
        raise NotImplementedError

    def bind(self, flow: Flow, node: fx.Node, labels: torch.Tensor) -> None:
        """The weight and the bias carry the labels."""
        raise NotImplementedError

    def target(self, flow: Flow, node: fx.Node) -> Callable[..., Any]:
        """What counts the live units."""
        raise NotImplementedError

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.all_input_nodes[0]
        labels = flow.axis(source, 1)
        if labels is None:
            flow.freeze(flow.of(source), node, "units along an axis that GroupNorm averages over")
            return frozen((1,) * value_of(node).dim())
        blocks = labels.reshape(self.number(flow, node), -1)
        flow.unite(blocks, blocks[:, :1] if _groups_are_units(*blocks.shape) else blocks[:1])
        if not _groups_are_units(*blocks.shape) and math.prod(value_of(node).shape[2:]) == 1:
            flow.freeze(blocks[:, :2], node, "of one example PyTorch does not normalise a group of one value")
        self.bind(flow, node, labels)
        return flow.of(source)

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        labels, groups = flow.axis(node, 1), self.number(flow, node)
        width = value_of(node).shape[1] // groups
        if _groups_are_units(groups, width) or labels is None or labels.unique().numel() == 1:
            return None
        return Counting(self.target(flow, node), labels)


def _groups_are_units(groups: int, width: int) -> bool:
    return groups >= width


@rule(nn.GroupNorm)
class GroupNorm(_Groups):
    """GroupNorm as a module."""

    parameters = ("weight", "bias")

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        return value.contiguous()

    def number(self, flow: Flow, node: fx.Node) -> int:
        module = flow.module(node)
        assert isinstance(module, nn.GroupNorm)
        return module.num_groups

    def bind(self, flow: Flow, node: fx.Node, labels: torch.Tensor) -> None:
        flow.bind_all(node, self.parameters, labels)

    def target(self, flow: Flow, node: fx.Node) -> Callable[..., Any]:
        return _subclass(type(flow.module(node)), gated_group_norm)

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, nn.GroupNorm)
        width = module.num_channels // module.num_groups
        units = _groups_are_units(module.num_groups, width)
        module.num_channels = entering[1]
        if units:
            module.num_groups = entering[1] // width

    def samples(self) -> tuple[Sample, ...]:
        return (
            Sample(nn.GroupNorm(4, 8), (2, 8, 3, 3)),
            Sample(nn.GroupNorm(2, 8), (2, 8, 5)),
            Sample(nn.GroupNorm(1, 6, affine=False), (2, 6, 3, 3)),
            Sample(nn.GroupNorm(6, 6), (2, 6, 3, 3)),
        )


@rule(F.group_norm)
class GroupNormFunction(_Groups):
    """F.group_norm."""

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        return args[0].contiguous() if args else None

    def number(self, flow: Flow, node: fx.Node) -> int:
        return thaw(arguments(node)["num_groups"])

    def bind(self, flow: Flow, node: fx.Node, labels: torch.Tensor) -> None:
        for given in node.all_input_nodes[1:]:
            if isinstance(value_of(given), torch.Tensor):
                flow.unite(labels, flow.of(given))

    def target(self, flow: Flow, node: fx.Node) -> Callable[..., Any]:
        return gated_group_norm

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        given = arguments(node)
        groups = thaw(given["num_groups"])
        channels = value_of(node).shape[1]
        units = _groups_are_units(groups, channels // groups)
        given["num_groups"] = moved.shape[1] * groups // channels if units else groups
        return Replacement((given.pop("input"),), given)


@rule(F.local_response_norm)
class LocalResponseNorm(Rule):
    """Channels are divided by what those beside them hold: the live ones."""

    zero = Zero.PRESERVES

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.all_input_nodes[0]
        labels = flow.of(source)
        if labels.numel() == labels.shape[1]:
            return labels
        first = labels.narrow(1, 0, 1)
        flow.unite(labels, first)
        return first

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        labels = flow.of(node)
        return Counting(gated_local_response_norm, labels) if labels.shape[1] > 1 else None
