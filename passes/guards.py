"""Branches that were resolved at capture must not depend on sizes that removal changes.

A number that comes from the size of an axis with units, and decided a branch or a Python integer, would have decided
differently in the smaller network: such axes are frozen. (Assertions stay in the graph; the plan drops those that
removal makes false.)
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fxcat.passes.arrays import Grid, place
from fxcat.passes.effects import PHASE
from fxcat.passes.flow import LabelFlow
from fxcat.passes.invocations import same_place
from fxcat.passes.rules.asking import LINE
from fxcat.passes.rules.sizes import asked_sizes, is_width
from fxcat.passes.tracing import Guard


def freeze_guarded(flow: LabelFlow, guards: Sequence[Guard]) -> None:
    """Freeze the axes whose sizes reach a guard; axes of two values that are found to be equal go together.

    A check, on whose other side is an error, freezes nothing: it is asserted as long as it holds. Nor does what widths
    alone decide: no input changes them, and what is removed changes nothing of what was decided for the whole model.
    """
    for guard in guards:
        if guard.checks or _is_of_widths(flow, guard):
            continue
        if guard.node.target in (operator.eq, operator.ne) and (_is_settled(guard) or _tie_shapes(flow, guard)):
            continue
        for tensor, axis in asked_sizes(guard.node):
            freeze_axis(flow, tensor, axis, place(guard.node), "a branch depends on the number of units")


def _is_of_widths(flow: LabelFlow, guard: Guard) -> bool:
    """Whether a guard asks for nothing but sizes of parameters, and of axes that have a unit at every index."""
    asked = list(asked_sizes(guard.node))
    return bool(asked) and all(is_width(flow, tensor, axis) for tensor, axis in asked)


def _is_settled(guard: Guard) -> bool:
    """Whether a guard compares a size with a number that no size is."""
    sides = guard.node.args[:2]
    sizes = [s for s in sides if isinstance(s, fx.Node) and _is_size(s)]
    return len(sizes) == 1 and any(isinstance(s, int) and s < 0 for s in sides)


def _is_size(node: fx.Node) -> bool:
    """Whether a node is one size of a value, as it is."""
    shape = node.args[0] if node.target is operator.getitem else None
    if isinstance(shape, fx.Node) and isinstance(shape.meta["value"], torch.Size):
        return isinstance(node.meta["value"], int)
    return node.target == "size" and isinstance(node.meta["value"], int)


def _tie_shapes(flow: LabelFlow, guard: Guard) -> bool:
    """Whether a guard compares a shape in a way that removal does not change: with nothing, or with the same shape of
    another value, whose units are united with its own then."""
    sides = guard.node.args[:2]
    if any(not isinstance(s, fx.Node) and (s is None or isinstance(s, str)) for s in sides):
        return True
    asked = [list(asked_sizes(s)) for s in sides if isinstance(s, fx.Node) and isinstance(s.meta["value"], torch.Size)]
    if [len(a) for a in asked] != [1, 1]:
        return False
    (a, _), (b, _) = asked[0][0], asked[1][0]
    whole = all(
        isinstance(s, fx.Node) and s.args[0] is t and s.meta["value"] == t.meta["value"].shape
        for s, t in zip(sides, (a, b), strict=True)
    )
    if not whole or a.meta["value"].shape[1:] != b.meta["value"].shape[1:]:
        return False
    first, second = flow.values[a], flow.values[b]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        flow.unite(first, second)
    return True


def assert_guards(graph: fx.Graph, guards: Sequence[Guard]) -> None:
    """Let the graph assert that sizes decide as they did for the example inputs."""
    seen: set[tuple[fx.Node, str]] = set()
    for guard in guards:
        node, key = guard.node, (guard.node, repr(guard.value))
        if key in seen or _is_settled(guard) or not any(True for _ in asked_sizes(node)):
            continue
        seen.add(key)
        with graph.inserting_after(node):
            value: Any = guard.value
            # not `== False`, of which torch.export makes no formula
            told = (operator.not_, (node,)) if value is False else (operator.eq, (node, value))
            same = graph.call_function(*told)
        with graph.inserting_after(same):
            said = f"sizes decide otherwise than for the example inputs{_line_of(node)}"
            check = graph.call_function(torch._assert, (same, said))  # pyright: ignore[reportPrivateUsage]
        for new, value in ((same, True), (check, None)):
            new.meta.update({k: v for k, v in node.meta.items() if k == PHASE}, value=value, **same_place(node))


def _line_of(node: fx.Node) -> str:
    """Where the model's Python asked."""
    file, line = node.meta.get(LINE, ("", 0))
    return f", in {Path(file).name}, line {line}" if line else ""


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
