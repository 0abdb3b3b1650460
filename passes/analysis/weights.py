"""Weights that are computed from parameters, as in `conv2d(x, weight * 0.3)` or `linear(x, proj.t())`.

In: a graph. Out: the values that nothing reads but layers, as their weights, and the rules of the ops that compute
them. Their labels are `Grid`s: rows and columns of a weight belong to different units. A dead unit need not be zero in
a weight, since what reads it is zero, or what it gives is gated; but statistics over units count the live ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.label_arrays import FROZEN, Grid, Labels, along, frozen
from fxcat.passes.graph.meta import VALUE, value_of
from fxcat.passes.nodes.effects import is_inplace
from fxcat.passes.rules import counting
from fxcat.passes.rules.asking import ask
from fxcat.passes.rules.base import Counting, Rule
from fxcat.passes.rules.creation import Alike
from fxcat.passes.rules.elementwise import Elementwise
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.movement import Concatenation, Expand, Repeat, ReshapeAs, Reshaping
from fxcat.passes.rules.product import Einsum, Matmul, multiplied, weight_factor
from fxcat.passes.rules.table import find_rule
from fxcat.passes.rules.terms import Contraction, Term


def find_weights(graph: fx.Graph) -> dict[fx.Node, Rule | None]:
    """The weights, and what computes them from parameters, in graph order; with the rule of each op."""
    constant: set[fx.Node] = set()
    found: dict[fx.Node, Rule | None] = {}
    for node in graph.nodes:
        tensors = _tensors(node)
        if node.op == "get_attr":
            constant.add(node)
            if isinstance(value_of(node), torch.Tensor) and value_of(node).numel() > 1:
                found[node] = None
        elif tensors and constant.issuperset(tensors):
            constant.add(node)
            rule = _rule_for(node)
            if rule is not None and any(t in found for t in tensors):
                found[node] = rule
    while True:
        unfit = [n for n in found if not (_reads_weights(n, found, constant) and _is_read_as_weight(n, found))]
        if not unfit:
            return found
        for node in unfit:
            del found[node]


def _tensors(node: fx.Node) -> list[fx.Node]:
    """The inputs of a node that are tensors, or several of them; not those that only give it a type."""
    given = [i for i in node.all_input_nodes if _has_tensors(i)]
    return given[:1] if node.target in ("to", "type_as") else given


def _has_tensors(node: fx.Node) -> bool:
    value = VALUE.get(node)
    return isinstance(value, torch.Tensor) or (
        isinstance(value, tuple | list)
        and not isinstance(value, torch.Size)
        and any(isinstance(v, torch.Tensor) for v in value)  # pyright: ignore[reportUnknownVariableType]
    )


def _reads_weights(node: fx.Node, found: dict[fx.Node, Rule | None], constant: set[fx.Node]) -> bool:
    """Whether all that a node reads is weights, or vectors, whose labels are of one axis anyway."""
    return all(i in found or (i in constant and _is_vector(i)) for i in _tensors(node))


def _is_vector(node: fx.Node) -> bool:
    value = value_of(node)
    return isinstance(value, torch.Tensor) and value.numel() == max(value.shape, default=1)


def _is_read_as_weight(node: fx.Node, found: dict[fx.Node, Rule | None]) -> bool:
    """Whether all that reads a value is layers, whose weight it is, what computes weights, and what asks for sizes."""
    users = [u for u in node.users if _has_tensors(u) or u.op == "output"]
    return bool(users) and all(u in found or _takes_as_weight(u, node) for u in users)


def _takes_as_weight(node: fx.Node, weight: fx.Node) -> bool:
    """Whether a layer takes a value as its weight, and as nothing else."""
    rule = None if node.op == "call_module" or is_inplace(node) else find_rule(node, None)
    given: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), given.append)
    return rule is not None and given.count(weight) == rule.weights(node).count(weight)


def _rule_for(node: fx.Node) -> Rule | None:
    """What to do with an op on weights; None if there is no exact form."""
    if node.op not in ("call_function", "call_method") or is_inplace(node):
        return None
    statistic = _STATISTICS.get(node.target)
    if statistic is not None:
        return statistic if statistic.has_form(node) else None
    rule = find_rule(node, None)
    if isinstance(rule, Elementwise) or node.target in _ENTRYWISE:
        return _POINTWISE
    if node.target is F.pad:
        return _PADDED
    if isinstance(rule, Concatenation):
        return _JOINED
    if isinstance(rule, Alike) and node.target in _SAME_FOR_ALL:
        return _POINTWISE
    if isinstance(rule, Matmul | Einsum):
        return None if rule.operands(node) is None else _PRODUCT
    if isinstance(rule, ReshapeAs) or (rule is not None and rule.movement and len(_tensors(node)) == 1):
        return rule
    return None


def flow_weight(flow: Flow, node: fx.Node, rule: Rule) -> Labels:
    """Labels of what an op computes from weights."""
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
    pieces = zip(*moved, strict=True) if moved else ([] for _ in value_of(node))  # pyright: ignore
    return tuple(_with_axes(flow, node, list(piece)) for piece in pieces)


def layers(labels: Labels) -> tuple[torch.Tensor, ...]:
    """The layers of a weight, or the labels of a vector as one."""
    if isinstance(labels, torch.Tensor):
        return (labels,) if labels.numel() > 1 else ()
    assert isinstance(labels, Grid)
    return labels.layers


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


class OnWeights(Rule):
    """Base of the rules below."""


class _Pointwise(OnWeights):
    """Any function of the entries: those at the same place go together."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return broadcast_weights(flow, node, _tensors(node))


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
        dims, pieces = value_of(node).dim(), _tensors(node)
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


_POINTWISE, _PRODUCT, _PADDED, _JOINED = _Pointwise(), _ProductOfWeights(), _Padded(), _Joined()
_SAME_FOR_ALL = (torch.zeros_like, torch.ones_like, torch.full_like)
_NAMES = ("sqrt", "rsqrt", "reciprocal", "log", "log2", "pow", "sign", "trunc", "frac", "float_power")
_ENTRYWISE: set[Any] = {*_NAMES, *(getattr(torch, name) for name in _NAMES)}
"""Functions of every entry whose value or derivative at zero is not finite: a weight's dead entries are not zero."""


@dataclass(frozen=True)
class _Statistic(OnWeights):
    """A function of all entries along some axes: other axes keep their units; of one axis with units, among those, the
    live ones are counted.

    `names` of the positional arguments; `gated`: the form that counts. `others`: whether all axes but those that are
    named are meant.
    """

    names: tuple[str, ...]
    gated: Callable[..., Any]
    default: int | None = None
    others: bool = False
    spread: bool = False
    """It is defined for two entries or more, unless it is the biased form."""

    whole: bool = False
    """Only over all axes at once is it a function of one value that gives one."""

    def has_form(self, node: fx.Node) -> bool:
        given = arguments(node, *self.names)
        power = given.get("p", given.get("ord", 2))
        statistics = given.get("running_mean") is None and given.get("training", True)
        if self.whole and len(node.args) + len(node.kwargs) > 1:
            return False
        return statistics and (power in (None, "fro") or (isinstance(power, int | float) and power >= 1))

    def axes(self, node: fx.Node) -> set[int]:
        """The axes that the function runs over."""
        given = arguments(node, *self.names)
        dims = value_of(node.all_input_nodes[0]).dim()
        chosen: Any = given.get("dim", given.get("axis", self.default))
        if chosen is None:
            return set(range(dims))
        named = {int(a) % dims for a in (chosen if isinstance(chosen, tuple | list) else (chosen,))}
        return set(range(dims)) - named if self.others else named

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source, *more = _tensors(node)
        axes, shape = self.axes(node), value_of(source).shape
        value = value_of(node)
        first = value if isinstance(value, torch.Tensor) else value[0]
        kept, over = list[torch.Tensor](), list[torch.Tensor]()
        for layer in layers(flow.values[source]):
            inner = [a for a in axes if layer.shape[a] > 1]
            if inner:
                over.append(layer)
                entries = math.prod(shape[a] for a in axes) // layer.unique().numel()
                if len(inner) < sum(size > 1 for size in layer.shape) or (self._is_unbiased(node) and entries < 2):
                    over.pop()
                    flow.freeze_if_units(layer, node, "a statistic over units that has no form without them")
            if not inner or first.shape == shape:
                kept.append(layer)
        flow.statistics[node] = over
        if first.dim() < len(shape):
            kept = [x.reshape([n for a, n in enumerate(x.shape) if a not in axes]) for x in kept]
        grid = Grid(tuple(kept))
        if more:
            flow.values[node] = grid
            self._scaled(flow, node, more)
        return grid if isinstance(value, torch.Tensor) else (grid,) * len(value)

    def _scaled(self, flow: Flow, node: fx.Node, more: list[fx.Node]) -> None:
        """What every slice is multiplied by has its unit."""
        (axis,) = set(range(value_of(node).dim())) - self.axes(node)
        own = flow.lines(node)[axis]
        for other in more:
            line = next((x for x in flow.lines(other) if x is not None), None)
            if own is not None and line is not None:
                flow.unite(own, line)
            elif own is not None:
                flow.freeze_if_units(own, node, "an axis with units meets one without")

    def _is_unbiased(self, node: fx.Node) -> bool:
        given = arguments(node, *self.names, "unbiased")
        return self.spread and bool(given.get("correction", given.get("unbiased", True)))

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        over = flow.statistics.get(node)
        return Counting(self.gated, over[0]) if over else None


_DIM = ("input", "dim")
_NORM = ("input", "p", "dim")
_STATISTICS: dict[Any, _Statistic] = {
    target: statistic
    for targets, statistic in (
        ((torch.mean, "mean"), _Statistic(_DIM, counting.gated_mean)),
        ((torch.sum, "sum"), _Statistic(_DIM, counting.gated_sum)),
        ((torch.var, "var"), _Statistic(_DIM, counting.gated_var, spread=True)),
        ((torch.std, "std"), _Statistic(_DIM, counting.gated_std, spread=True)),
        ((torch.var_mean,), _Statistic(_DIM, counting.gated_var_mean, spread=True)),
        ((torch.std_mean,), _Statistic(_DIM, counting.gated_std_mean, spread=True)),
        ((torch.amax, "amax"), _Statistic(_DIM, counting.gated_amax)),
        ((torch.amin, "amin"), _Statistic(_DIM, counting.gated_amin)),
        ((torch.max, "max"), _Statistic(_DIM, counting.gated_amax, whole=True)),
        ((torch.min, "min"), _Statistic(_DIM, counting.gated_amin, whole=True)),
        ((torch.norm, "norm"), _Statistic(_NORM, counting.gated_norm)),
        ((torch.linalg.vector_norm,), _Statistic(("x", "ord", "dim"), counting.gated_vector_norm)),
        ((F.normalize,), _Statistic(_NORM, counting.gated_normalize, default=1)),
        (
            (torch._weight_norm,),  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            _Statistic(("v", "g", "dim"), counting.gated_weight_norm, default=0, others=True),
        ),
        (
            (F.batch_norm,),
            _Statistic(
                ("input", "running_mean", "running_var", "weight", "bias", "training"),
                *(counting.gated_standardised, 1, True),
            ),
        ),
    )
    for target in targets
}


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
