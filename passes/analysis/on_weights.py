"""Ops on weights: how labels along the axes of a weight pass through what computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxcat.passes.graph.label_arrays import Grid, Labels, along, frozen, varying_axis
from fxcat.passes.graph.meta import VALUE, value_of
from fxcat.passes.rules.base import Counting, Rule
from fxcat.passes.rules.counting import gated_matmul
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
        whole = {n: flow.values[n] for n, _ in operands}
        more = _beside(flow, operands, result)
        factors = [weight_factor(flow, *operand) for operand in operands]
        flow.values.update(whole)
        dims, known, own = len(result), dict[str, torch.Tensor](), [n for n, _ in operands if n not in flow.of_weights]
        for item in factors:
            for letter, labels in item.lines.items():
                if letter in known:
                    flow.unite(known[letter], labels)
                known[letter] = labels
        # experts that a value weighs: it is zero where they are dead
        weighed = {x: n for n, f in zip([n for n, _ in operands], factors, strict=True) if n in own for x in f.lines}
        summed = [x for x in known if x not in result]
        counted = [x for x in summed if x not in weighed]
        # a product of matrices counts the live ones of those that it sums over, if both have them
        if isinstance(rule, Matmul) and all(x in f.letters and x in f.lines for x in counted for f in factors):
            flow.statistics[node] = [known[x] for x in counted]
            counted.clear()
        for letter in counted + [x for x in result if x in known][2:]:
            flow.freeze_if_units(known[letter], node, "units along another axis of a product of weights")
        for letter, labels in known.items():
            if len([f for f in factors if f.size(letter) > 1]) > len([f for f in factors if letter in f.lines]):
                flow.freeze_if_units(labels, node, "an axis with units meets one without")
        by_vector = len(operands[-1][1]) == 1  # which torch does not count
        mixed = tuple(dict.fromkeys(weighed[x] for x in summed if x in weighed))
        both = {x: labels.unique() if x in more else labels for x, labels in known.items()}
        both |= {f"{x} {i}": labels.unique() for x in more for i, labels in enumerate(more[x])}
        flow.contractions[node] = Contraction(() if by_vector else multiplied(factors, both), mixed, ())
        pairs = [(axis, known[x]) for axis, x in enumerate(result) if x in known]
        pairs += [(axis, labels) for axis, x in enumerate(result) for labels in more.get(x, ())]
        return Grid(tuple(along(labels, axis, dims) for axis, labels in pairs))

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return flow.contractions[node].mixed

    def macs(self, flow: Flow, node: fx.Node) -> tuple[Term, ...] | None:
        return flow.contractions[node].terms

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        over = flow.statistics.get(node)
        return Counting(gated_matmul, over[0]) if over else None


def _beside(flow: Flow, operands: Sequence[tuple[fx.Node, str]], result: str) -> dict[str, list[torch.Tensor]]:
    """Labels of merged axes of a weight, by letter: of all layers along an axis but the first, which stays alone there.

    An entry goes with either; their labels have as many entries each, so that those left are a product."""
    found: dict[str, list[torch.Tensor]] = {}
    for node, letters in operands:
        grid = flow.values[node]
        if not isinstance(grid, Grid):
            continue
        alone: dict[int, torch.Tensor] = {}
        kept = list[torch.Tensor]()
        for layer in grid.layers:
            axis = varying_axis(layer)
            assert axis is not None
            even = layer.numel() == layer.shape[axis] and len(layer.unique(return_counts=True)[1].unique()) == 1
            passes = letters[axis] in result and sum(letters[axis] in x for _, x in operands) == 1
            if even and passes and axis in alone:
                found.setdefault(letters[axis], []).append(layer.reshape(-1))
                continue
            kept.append(layer)
            if even:
                alone[axis] = layer
        flow.values[node] = Grid(tuple(kept))
    return found


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


class _AsComplex(OnWeights):
    """Pairs along the last axis as complex numbers."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        kept = list[torch.Tensor]()
        for layer in layers(flow.values[node.all_input_nodes[0]]):
            if layer.shape[-1] > 1:
                flow.freeze_if_units(layer, node, "units along an axis that is the two parts of complex numbers")
            else:
                kept.append(layer.squeeze(-1))
        return Grid(tuple(kept))


POINTWISE, PRODUCT, PADDED, JOINED = _Pointwise(), _ProductOfWeights(), _Padded(), _Joined()
AS_COMPLEX = _AsComplex()
