"""Elementwise ops: labels broadcast against each other and unite. The base of the rules of all such ops."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx, nn

from fxcat.passes.graph.label_arrays import Labels, frozen
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Rule
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.layouts import same_layout


def broadcast(flow: Flow, node: fx.Node) -> torch.Tensor:
    """Labels of the broadcast of all tensor inputs of a node.

    An input of size 1 along an axis on which another input has units multiplies or shifts many of them at once: see
    `Flow.stretch`.
    """
    dims = value_of(node).dim()
    entries: list[tuple[torch.Tensor, tuple[int, ...]]] = []
    sources: list[fx.Node] = []
    for source in node.all_input_nodes:
        value = value_of(source)
        if isinstance(value, torch.Tensor):
            pad = (1,) * (dims - value.dim())
            labels = flow.of(source)
            # the same array where it can be: what is known of an array is known by its id
            entries.append((labels.reshape(pad + labels.shape) if pad else labels, pad + tuple(value.shape)))
            sources.append(source)
    without_units = _without_units(flow, node, entries, sources)
    entries = [
        (frozen((1,) * dims), shape) if i in without_units else (labels, shape)
        for i, (labels, shape) in enumerate(entries)
    ]
    varying = [any(labels.shape[a] > 1 for labels, _ in entries) for a in range(dims)]
    partners: list[torch.Tensor] = []
    stretched: list[torch.Tensor] = []
    without = set[int]()
    for source, (labels, shape) in zip(sources, entries, strict=True):
        met = [a for a in range(dims) if varying[a] and shape[a] > 1 and labels.numel() == 1]
        without.update(met)
        flow.meet(node, source, met)
    for labels, shape in entries:
        over_units = any(varying[a] and shape[a] == 1 and value_of(node).shape[a] > 1 for a in range(dims))
        (stretched if over_units else partners).append(labels)
    for other in partners[1:]:
        flow.unite(partners[0], other)
    for labels in partners if without else ():
        _keep_axes(flow, labels, without, node)
    fewest = max if without else min  # where there are units, what comes later may tell why they stay, too
    result = fewest(partners, key=lambda p: p.numel()) if partners else frozen((1,) * dims)
    for labels in stretched:
        flow.stretch(labels, max(partners, key=lambda p: p.numel(), default=result), node)
    return result


def _keep_axes(flow: Flow, labels: torch.Tensor, axes: Collection[int], node: fx.Node) -> None:
    """Nothing goes along some axes, but units may lie along the others."""
    if all(size == 1 or axis in axes for axis, size in enumerate(labels.shape)):
        flow.freeze(labels, node, "an axis with units meets one without", besides=True)
        return
    for axis in axes:
        if labels.shape[axis] > 1:
            flow.unite(labels, labels.narrow(axis, 0, 1))


def _without_units(
    flow: Flow, node: fx.Node, entries: list[tuple[torch.Tensor, tuple[int, ...]]], sources: list[fx.Node]
) -> set[int]:
    """The inputs that have no units, and are frozen: constants with entries along axes that no other input has, where
    others have units; of a value that has units and a parameter of that kind either."""
    found: set[int] = set()
    for number, (labels, _) in enumerate(entries):
        others = [i for i, e in enumerate(entries) if i != number and e[0].numel() > 1]
        origin = _origin(sources[number]) if labels.numel() > 1 and others else None
        own = [a for a, n in enumerate(labels.shape) if n > 1]
        if origin is None or any(entries[i][1][a] > 1 for i in others for a in own):
            continue
        if not isinstance(value_of(origin), torch.nn.Parameter):
            flow.freeze(labels, node, "a constant along an axis of its own")
            found.add(number)
        elif any(flow.has_producer(entries[i][0]) for i in others):
            flow.rivals.add(node)
            frozen_ones = [number] if node in flow.alone else others
            for i in frozen_ones:
                flow.freeze(entries[i][0], node, "units of one value beside those of another, along another axis")
            found.update(frozen_ones)
    return found


def _origin(node: fx.Node) -> fx.Node | None:
    """The one constant or parameter of the model from which a value is computed, if that is all."""
    while node.op != "get_attr":
        sources = [n for n in node.all_input_nodes if isinstance(value_of(n), torch.Tensor)]
        if len(sources) != 1:
            return None
        node = sources[0]
    return node


def _aligned(large: torch.Tensor, small: torch.Tensor) -> list[tuple[int, int]]:
    """Sizes along the axes that both have."""
    return list(zip(large.shape[large.dim() - small.dim() :], small.shape, strict=True))


class Elementwise(Rule):
    """Base of the rules below; an op of several tensors unites them. A module has the shape of its input."""

    equivariant = True
    keeps_type = False
    """Whether a function of one floating-point tensor, and of numbers and flags, returns such."""

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        return value

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Of a tensor and numbers, or of two tensors of one type: what has the layout of the result."""
        if self.keeps_type and isinstance(args[0], torch.Tensor) and args[0].dtype.is_floating_point:
            others = (*args[1:], *kwargs.values())
            if all(type(other) in (int, float, bool, type(None)) for other in others):
                return same_layout(args[0])
        if kwargs or len(args) != 2:
            return None
        a, b = args
        if isinstance(a, torch.Tensor) and type(b) in (int, float) and a.dtype.is_floating_point:
            return same_layout(a)
        if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
            return None
        if a.dtype != b.dtype or not a.dtype.is_floating_point:
            return None
        large, small = (a, b) if (a.dim(), a.numel()) >= (b.dim(), b.numel()) else (b, a)
        if any(n not in (1, m) for m, n in _aligned(large, small)):
            return None
        if large is a:  # the first one's order of axes is the result's
            return same_layout(a)
        if not small.is_contiguous():
            return None
        if large.is_contiguous():
            return large
        # a small one with one axis has no such order, but strides along axes of one entry may look like one
        return same_layout(large) if sum(n > 1 for n in small.shape) <= 1 and 1 not in large.shape else None

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return broadcast(flow, node)


def is_tensor(argument: Any) -> bool:
    """Whether an argument is a value, and that a tensor."""
    return isinstance(argument, fx.Node) and isinstance(value_of(argument), torch.Tensor)
