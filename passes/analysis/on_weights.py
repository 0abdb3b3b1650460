"""Ops on weights: how labels along the axes of a weight pass through what computes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxcat.passes.graph.label_arrays import Grid, Labels, along, frozen
from fxcat.passes.graph.meta import VALUE, value_of
from fxcat.passes.rules.base import Rule
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.product import Einsum, Matmul, multiplied, weight_factor
from fxcat.passes.rules.table import find_rule
from fxcat.passes.rules.terms import Contraction, Term


def tensors_of(node: fx.Node) -> list[fx.Node]:
    """The inputs of a node that are tensors, or several of them; not those that only give it a type."""
    given = [i for i in node.all_input_nodes if has_tensors(i)]
    return given[:1] if node.target in ("to", "type_as") else given


def has_tensors(node: fx.Node) -> bool:
    value = VALUE.get(node)
    return isinstance(value, torch.Tensor) or (
        isinstance(value, tuple | list)
        and not isinstance(value, torch.Size)
        and any(isinstance(v, torch.Tensor) for v in value)  # pyright: ignore[reportUnknownVariableType]
    )


def layers(labels: Labels) -> tuple[torch.Tensor, ...]:
    """The layers of a weight, or the labels of a vector as one."""
    if isinstance(labels, torch.Tensor):
        return (labels,) if labels.numel() > 1 else ()
    assert isinstance(labels, Grid)
    return labels.layers


class OnWeights(Rule):
    """Base of the rules below."""


class _Pointwise(OnWeights):
    """Any function of the entries: those at the same place go together."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return broadcast_weights(flow, node, tensors_of(node))


def broadcast_weights(flow: Flow, node: fx.Node, operands: list[fx.Node]) -> Grid:
    """Labels of an op on the entries of weights of shapes that broadcast."""
    dims = value_of(node).dim()
    found: list[torch.Tensor | None] = [None] * dims
    lacking = [False] * dims
    for operand in operands:
        shape = value_of(operand).shape
        for axis, line in enumerate(flow.lines(operand), start=dims - len(shape)):
            known = found[axis]
            if line is None:
                lacking[axis] |= shape[axis - dims] > 1
            elif known is None:
                found[axis] = line
            else:
                flow.unite(known, line)
    for line, without in zip(found, lacking, strict=True):
        if line is not None and without:
            flow.freeze_if_units(line, node, "an axis with units meets one without")
    return Grid(tuple(along(line, axis, dims) for axis, line in enumerate(found) if line is not None))


class _ProductOfWeights(OnWeights):
    """A matrix product of weights: rows of one, columns of the other."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        rule = find_rule(node, None)
        assert isinstance(rule, Matmul | Einsum)
        found = rule.operands(node)
        assert found is not None
        operands, result = found
        factors = [weight_factor(flow, *operand) for operand in operands]
        dims, known = len(result), dict[str, torch.Tensor]()
        for item in factors:
            for letter, labels in item.lines.items():
                if letter in known:
                    flow.unite(known[letter], labels)
                known[letter] = labels
        for letter in [x for x in known if x not in result] + [x for x in result if x in known][2:]:
            flow.freeze_if_units(known[letter], node, "units along another axis of a product of weights")
        for letter, labels in known.items():
            if len([f for f in factors if f.size(letter) > 1]) > len([f for f in factors if letter in f.lines]):
                flow.freeze_if_units(labels, node, "an axis with units meets one without")
        by_vector = len(operands[-1][1]) == 1  # which torch does not count
        flow.contractions[node] = Contraction(() if by_vector else multiplied(factors, known), (), ())
        return Grid(tuple(along(known[x], axis, dims) for axis, x in enumerate(result) if x in known))

    def macs(self, flow: Flow, node: fx.Node) -> tuple[Term, ...] | None:
        return flow.contractions[node].terms


class _Padded(OnWeights):
    """Some axes become longer."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.all_input_nodes[0]
        sizes = zip(value_of(source).shape, value_of(node).shape, strict=True)
        changed = [a for a, (before, after) in enumerate(sizes) if before != after]
        kept = list[torch.Tensor]()
        for layer in layers(flow.values[source]):
            if any(layer.shape[a] > 1 for a in changed):
                flow.freeze_if_units(layer, node, "units along an axis of a weight that is padded")
            else:
                kept.append(layer)
        return Grid(tuple(kept))


class _Joined(OnWeights):
    """Weights one behind the other."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        dims, pieces = value_of(node).dim(), tensors_of(node)
        given: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        lines = [flow.lines(piece) for piece in pieces]
        sizes = [value_of(piece).shape[given] for piece in pieces]
        found: list[torch.Tensor | None] = []
        for axis in range(dims):
            parts = [line[axis] for line in lines]
            known = [part for part in parts if part is not None]
            if axis == given % dims:
                ends = [frozen((n,)) if x is None else x.expand(n) for x, n in zip(parts, sizes, strict=True)]
                found.append(torch.cat(ends) if known else None)
                continue
            for part in known[1:]:
                flow.unite(known[0], part)
            if known and len(known) < len(parts):
                flow.freeze_if_units(known[0], node, "an axis with units meets one without")
            found.append(known[0] if known else None)
        return Grid(tuple(along(x, axis, dims) for axis, x in enumerate(found) if x is not None))


POINTWISE, PRODUCT, PADDED, JOINED = _Pointwise(), _ProductOfWeights(), _Padded(), _Joined()
