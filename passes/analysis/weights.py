"""Weights that are computed from parameters, as in `conv2d(x, weight * 0.3)` or `linear(x, proj.t())`; of convolutions
with kernels for every example, from parameters and values.

In: a graph. Out: the values that nothing reads but layers, as their weights, and the rules of the ops that compute
them. Their labels are `Grid`s: rows and columns of a weight belong to different units. A dead unit need not be zero in
a weight, since what reads it is zero, or what it gives is gated; but statistics over units count the live ones.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.analysis.on_weights import (
    AS_COMPLEX,
    JOINED,
    PADDED,
    POINTWISE,
    PRODUCT,
    OnWeights,
    has_tensors,
    layers,
    tensors_of,
)
from fxcat.passes.analysis.weight_statistics import STATISTICS
from fxcat.passes.graph.label_arrays import FROZEN, Grid, Labels, along
from fxcat.passes.graph.meta import value_of
from fxcat.passes.nodes.effects import is_inplace
from fxcat.passes.rules.asking import ask
from fxcat.passes.rules.base import Rule
from fxcat.passes.rules.contraction import WeightedFunction
from fxcat.passes.rules.creation import Alike
from fxcat.passes.rules.elementwise import Elementwise
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.movement import ReshapeAs, Reshaping
from fxcat.passes.rules.pieces import Concatenation
from fxcat.passes.rules.product import Einsum, Matmul
from fxcat.passes.rules.repetition import Expand, Repeat
from fxcat.passes.rules.table import find_rule


def find_weights(graph: fx.Graph) -> dict[fx.Node, Rule | None]:
    """The weights, and what computes them from parameters, in graph order; with the rule of each op."""
    constant: set[fx.Node] = set()
    of_examples = _made_for_examples(graph)
    found: dict[fx.Node, Rule | None] = {}
    for node in graph.nodes:
        tensors = tensors_of(node)
        if node.op == "get_attr":
            constant.add(node)
            if isinstance(value_of(node), torch.Tensor) and value_of(node).numel() > 1:
                found[node] = None
        elif tensors and (constant.issuperset(tensors) or node in of_examples):
            if constant.issuperset(tensors):
                constant.add(node)
            rule = _rule_for(node)
            if rule is not None and any(t in found for t in tensors):
                found[node] = rule
    # what computes a weight is fit if what it reads and what reads it are: each that is not may make others unfit
    while True:
        unfit = [
            n for n in found if not (_reads_weights(n, found, constant) and _is_read_as_weight(n, found, n in constant))
        ]
        if not unfit:
            return found
        for node in unfit:
            del found[node]


def _reads_weights(node: fx.Node, found: dict[fx.Node, Rule | None], constant: set[fx.Node]) -> bool:
    """Whether all that a node reads is weights, or vectors, whose labels are of one axis anyway; of what is made for
    every example, whether it reads a weight."""
    if node not in constant:
        return any(i in found for i in tensors_of(node))
    return all(i in found or (i in constant and _is_vector(i)) for i in tensors_of(node))


def _is_vector(node: fx.Node) -> bool:
    value = value_of(node)
    return isinstance(value, torch.Tensor) and value.numel() == max(value.shape, default=1)


def _is_read_as_weight(node: fx.Node, found: dict[fx.Node, Rule | None], constant: bool) -> bool:
    """Whether all that reads a value is layers, whose weight it is, what computes weights, and what asks for sizes.

    `constant`: whether it is the same for all examples; else the layers are convolutions of every example by itself.
    """
    users = [u for u in node.users if has_tensors(u) or u.op == "output"]
    return (bool(users) or _is_written(node)) and all(
        u in found or ((constant or _convolves_one_by_one(u)) and _takes_as_weight(u, node)) for u in users
    )


def _is_written(node: fx.Node) -> bool:
    """Whether a node puts values into a parameter or buffer, in place of those that it has."""
    target = node.args[0] if node.target == "copy_" else None
    return isinstance(target, fx.Node) and target.op == "get_attr"


def _made_for_examples(graph: fx.Graph) -> set[fx.Node]:
    """What may compute kernels for every example: all between these convolutions and what is no function of entries."""
    stack = [w for n in graph.nodes if _convolves_one_by_one(n) for w in _weights_of(n)]
    found: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node not in found and tensors_of(node) and _rule_for(node) is not None:
            found.add(node)
            stack += tensors_of(node)
    return found


def _convolves_one_by_one(node: fx.Node) -> bool:
    rule = find_rule(node, None) if node.op == "call_function" else None
    return isinstance(rule, WeightedFunction) and rule.is_one_by_one(node)


def _weights_of(node: fx.Node) -> tuple[fx.Node, ...]:
    rule = find_rule(node, None)
    return () if rule is None else rule.weights(node)


def _takes_as_weight(node: fx.Node, weight: fx.Node) -> bool:
    """Whether a layer takes a value as its weight, and as nothing else."""
    rule = None if node.op == "call_module" or is_inplace(node) else find_rule(node, None)
    given: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), given.append)
    return rule is not None and given.count(weight) == rule.weights(node).count(weight)


def _rule_for(node: fx.Node) -> Rule | None:
    """What to do with an op on weights; None if there is no exact form."""
    if _is_written(node):
        return POINTWISE
    if node.op not in ("call_function", "call_method") or is_inplace(node) or isinstance(value_of(node), list):
        return None  # a list is of Python: `[weight] * batch`
    statistic = STATISTICS.get(node.target)
    if statistic is not None:
        return statistic if statistic.has_form(node) else None
    rule = find_rule(node, None)
    if isinstance(rule, Elementwise) or node.target in _ENTRYWISE:
        return POINTWISE
    if node.target is F.pad:
        return PADDED
    if node.target is torch.view_as_complex:
        return AS_COMPLEX
    if isinstance(rule, Concatenation):
        return JOINED
    if isinstance(rule, Alike) and node.target in _SAME_FOR_ALL:
        return POINTWISE
    if isinstance(rule, Matmul | Einsum):
        return None if rule.operands(node) is None else PRODUCT
    if isinstance(rule, ReshapeAs) or (rule is not None and rule.movement and len(tensors_of(node)) == 1):
        return rule
    return None


def flow_weight(flow: Flow, node: fx.Node, rule: Rule) -> Labels:
    """Labels of what an op computes from weights."""
    for other in tensors_of(node):
        labels = flow.values[other]
        if other in flow.of_weights or not isinstance(labels, torch.Tensor) or labels.dim() < 2:
            continue
        if labels.shape[0] > 1:
            flow.freeze(labels, node, "units along the first axis of a value, which is no batch")
    if isinstance(rule, OnWeights):
        return ask(rule.flow, flow, node)
    source = node.all_input_nodes[0]
    whole = flow.values[source]
    if isinstance(whole, tuple):
        return ask(rule.flow, flow, node)  # one of several weights
    moved: list[Labels] = []
    for layer in layers(whole):
        flow.values[source] = layer
        moved.append(Reshaping.flow(rule, flow, node) if isinstance(rule, ReshapeAs) else ask(rule.flow, flow, node))
    flow.values[source] = whole
    if isinstance(value_of(node), torch.Tensor):
        result = _with_axes(flow, node, moved)
        result = _grown(flow, node, result) if isinstance(rule, Expand | Repeat) else result
        return _same(flow, node, result, node.all_input_nodes[-1]) if isinstance(rule, ReshapeAs) else result
    pieces = zip(*moved, strict=True) if moved else ([] for _ in value_of(node))
    return tuple(_with_axes(flow, node, list(piece)) for piece in pieces)


def _with_axes(flow: Flow, node: fx.Node, moved: list[Labels]) -> Grid:
    """The layers that lie along an axis; others are of one unit, which cannot go."""
    kept: list[torch.Tensor] = []
    for layer in moved:
        assert isinstance(layer, torch.Tensor)
        if layer.numel() > 1:
            kept.append(layer)
        else:
            flow.freeze_if_units(layer, node, "a weight of one unit is used apart")
    return Grid(tuple(kept))


def _grown(flow: Flow, node: fx.Node, grid: Grid) -> Grid:
    """Where one slice is taken many times, how often is a matter of what reads it."""
    before, after = value_of(node.all_input_nodes[0]).shape, value_of(node).shape
    before = (1,) * (len(after) - len(before)) + tuple(before)
    grown = [a for a, (one, many) in enumerate(zip(before, after, strict=True)) if one == 1 < many]
    fresh = [along(flow.fresh(after[a], str(node), producer=False), a, len(after)) for a in grown]
    return Grid((*grid.layers, *fresh))


def _same(flow: Flow, node: fx.Node, grid: Grid, like: fx.Node) -> Grid:
    """A weight in the shape of another has the same units."""
    flow.values[node] = grid
    lines = zip(flow.lines(node), flow.lines(like), strict=True)
    for axis, (own, other) in enumerate(lines):
        if own is not None and other is not None:
            flow.unite(own, other)
        elif own is not None and value_of(node).shape[axis] > 1:
            flow.freeze_if_units(own, node, "an axis with units meets one without")
    return grid


_SAME_FOR_ALL = (torch.zeros_like, torch.ones_like, torch.full_like)
_NAMES = ("sqrt", "rsqrt", "reciprocal", "log", "log2", "pow", "sign", "trunc", "frac", "float_power")
_ENTRYWISE: set[Any] = {*_NAMES, *(getattr(torch, name) for name in _NAMES)}
"""Functions of every entry whose value or derivative at zero is not finite: a weight's dead entries are not zero."""


def settle(flow: LabelFlow) -> None:
    """Decide what depends on which axes of weights turn out to have units."""
    roots, has_units = flow.unions.unit_roots()

    def are_units(labels: torch.Tensor) -> bool:
        return bool(has_units[roots[labels.numpy()]].any())

    for node, over in flow.statistics.items():
        first, *rest = [x for x in over if are_units(x)] or [None]
        flow.statistics[node] = [] if first is None else [first]
        for layer in rest:
            assert layer is not None
            flow.freeze(layer, node, "a statistic over units along several axes")
    for labels, node, reason in flow.doubtful:
        if are_units(labels):
            flow.freeze(labels, node, reason)
        else:
            flow.unite(labels, torch.zeros_like(labels))
    for name, own in flow.weight_axes.items():
        frozen = {a for a, x in own.items() if bool((roots[x.numpy()] == FROZEN).any())}
        known = flow.parameters[name].items()
        flow.parameters[name] = {a: x for a, x in known if a not in own or a in frozen or are_units(x)}
