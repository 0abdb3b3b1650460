"""Branches that were resolved at capture must not depend on sizes that removal changes.

A number that comes from the size of an axis with units, and decided a branch or a Python integer, would have decided
differently in the smaller network: such axes are frozen. (Assertions stay in the graph; the plan drops those that
removal makes false.)
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx

from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.capture.assert_guards import is_settled
from fxcat.passes.capture.tracing import Guard
from fxcat.passes.graph.label_arrays import Grid, place
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.sizes import asked_sizes, is_width


def freeze_guarded(flow: LabelFlow, guards: Sequence[Guard]) -> None:
    """Freeze the axes whose sizes reach a guard; axes of two values that are found to be equal go together.

    A check, on whose other side is an error, freezes nothing: it is asserted as long as it holds. Nor does what widths
    alone decide: no input changes them, and what is removed changes nothing of what was decided for the whole model.
    """
    for guard in guards:
        if guard.checks or _is_of_widths(flow, guard):
            continue
        if guard.node.target in (operator.eq, operator.ne) and (is_settled(guard) or _tie_shapes(flow, guard)):
            continue
        for tensor, axis in asked_sizes(guard.node):
            freeze_axis(flow, tensor, axis, place(guard.node), "a branch depends on the number of units")


def _is_of_widths(flow: LabelFlow, guard: Guard) -> bool:
    """Whether a guard asks for nothing but sizes of parameters, and of axes that have a unit at every index."""
    asked = list(asked_sizes(guard.node))
    return bool(asked) and all(is_width(flow, tensor, axis) for tensor, axis in asked)


def _tie_shapes(flow: LabelFlow, guard: Guard) -> bool:
    """Whether a guard compares a shape in a way that removal does not change: with nothing, or with the same shape of
    another value, whose units are united with its own then."""
    sides = guard.node.args[:2]
    if any(not isinstance(s, fx.Node) and (s is None or isinstance(s, str)) for s in sides):
        return True
    asked = [list(asked_sizes(s)) for s in sides if isinstance(s, fx.Node) and isinstance(value_of(s), torch.Size)]
    if [len(a) for a in asked] != [1, 1]:
        return False
    (a, _), (b, _) = asked[0][0], asked[1][0]
    whole = all(
        isinstance(s, fx.Node) and s.args[0] is t and value_of(s) == value_of(t).shape
        for s, t in zip(sides, (a, b), strict=True)
    )
    if not whole or value_of(a).shape[1:] != value_of(b).shape[1:]:
        return False
    first, second = flow.values[a], flow.values[b]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        flow.unite(first, second)
    return True


def freeze_axis(flow: LabelFlow, tensor: fx.Node, axis: int | None, where: str, reason: str) -> None:
    """Freeze the size of one axis (None: all) of a value."""
    labels = flow.values[tensor]
    if isinstance(labels, Grid):
        for line in flow.lines(tensor) if axis is None else [flow.lines(tensor)[axis]]:
            flow.freeze(line, where, reason)
    if labels is None and tensor.op == "get_attr":
        bound = flow.parameters.get(flow.attribute_name(tensor), {})
        flow.freeze(tuple(x for a, x in bound.items() if a >= 0 and axis in (a, None)), where, reason)
        return
    if not isinstance(labels, torch.Tensor):
        return
    if axis is not None and labels.shape[axis] < labels.numel():
        flow.unite(labels, labels.narrow(axis, 0, 1))  # units may still lie along the other axes
    elif labels.numel() > 1:
        flow.freeze(labels, where, reason)
