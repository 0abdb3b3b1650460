"""Numbers that are computed from sizes and have to stay what they were when units go."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from fxcat.passes.graph.meta import VALUE, value_of

NumberOf = Callable[[fx.Node], Any]
"""What a node of the old graph that computes a number gives after removal."""


def keep_numbers(after_removal: NumberOf, copies: Mapping[fx.Node, fx.Node], old: fx.Node) -> None:
    """An op on tensors that takes a number made from the size of an axis with units (√width) keeps that number."""
    new = copies[old]
    for before, after in paired_inputs(old, new):
        number = VALUE.get(before)
        if isinstance(number, int | float) and after_removal(before) != number:
            with new.graph.inserting_before(new):
                kept = as_before(after_removal, copies, new.graph, before)
            new.args = fx.map_arg(new.args, lambda n, a=after, v=kept: v if n is a else n)
            new.kwargs = fx.map_arg(new.kwargs, lambda n, a=after, v=kept: v if n is a else n)


def paired_inputs(old: fx.Node, new: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """The inputs of a node and of its copy, pairwise; after a bypass one new node may stand for two old ones."""
    sides: tuple[list[fx.Node], list[fx.Node]] = [], []
    for node, found in zip((old, new), sides, strict=True):
        fx.map_arg((node.args, node.kwargs), found.append)
    return list(zip(*sides, strict=True))


def as_before(after_removal: NumberOf, copies: Mapping[fx.Node, fx.Node], graph: fx.Graph, number: fx.Node) -> Any:
    """What a number, computed from sizes, was before units went, for inputs of any size: a node of the new graph, or
    the number itself where it is made of widths."""
    before, after = value_of(number), after_removal(number)
    if not all(isinstance(value_of(i), int | float) for i in number.all_input_nodes):
        if after == before:
            return copies[number]
        return before if _is_width(number) or not after else in_proportion(graph, copies[number], before, after)
    inputs = {i: as_before(after_removal, copies, graph, i) for i in number.all_input_nodes}
    if all(new is copies[i] for i, new in inputs.items()):
        return copies[number]
    if not any(isinstance(new, fx.Node) for new in inputs.values()):
        return before
    return graph.node_copy(number, inputs.__getitem__)


def _is_width(number: fx.Node) -> bool:
    """Whether a number that units change is the same for every batch: the size of an axis that is not the first, or
    what is no count."""
    axes = [a for a in (*number.args, *number.kwargs.values()) if type(a) is int]
    return type(value_of(number)) is not int or (len(axes) == 1 and axes[0] > 0)


def in_proportion(graph: fx.Graph, number: fx.Node, share: int, whole: int) -> fx.Node:
    """A node for `share` of every `whole` that a number counts."""
    product = graph.call_function(operator.mul, (number, share))
    return graph.call_function(operator.floordiv, (product, whole))
