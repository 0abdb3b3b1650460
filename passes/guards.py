"""Branches that were resolved at capture must not depend on sizes that removal changes.

A number that comes from the size of an axis with units, and decided a branch, an assertion or a Python integer,
would have decided differently in the smaller network: such axes are frozen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from fxcat.passes.arrays import place
from fxcat.passes.labels import Flow
from fxcat.passes.tracer import Guard


def freeze_guarded(flow: Flow, graph: fx.Graph, guards: Sequence[Guard]) -> None:
    """Freeze the axes whose sizes reach a guard or an assertion."""
    assertions = [n for n in graph.nodes if n.target is torch._assert]  # pyright: ignore[reportPrivateUsage]
    deciding = [g.node for g in guards] + [i for n in assertions for i in n.all_input_nodes]
    seen: set[tuple[fx.Node, int | None]] = set()
    for node in deciding:
        _freeze_sizes(flow, node, node, seen)


def _freeze_sizes(flow: Flow, node: fx.Node, decision: fx.Node, seen: set[tuple[fx.Node, int | None]]) -> None:
    stack: list[tuple[fx.Node, int | None]] = [(node, None)]
    while stack:
        current, index = stack.pop()
        if (current, index) in seen:
            continue
        seen.add((current, index))
        if isinstance(current.meta.get("value"), torch.Tensor):
            continue
        tensors = [i for i in current.all_input_nodes if isinstance(i.meta.get("value"), torch.Tensor)]
        asks_size = bool(tensors) and (current.target == "size" or current.args[1:] == ("shape",))
        if asks_size:
            axis = index if index is not None else _size_axis(current)
            labels = flow.of(tensors[0])
            if axis is None or labels.shape[axis] > 1:
                flow.freeze(labels, place(decision), "a branch depends on the number of units")
            continue
        follow = None
        if getattr(current.target, "__name__", "") == "getitem" and isinstance(current.args[1], int):
            follow = current.args[1]
        stack += [(i, follow) for i in current.all_input_nodes]


def _size_axis(node: fx.Node) -> int | None:
    """The axis that `x.size(axis)` asks for; no axis for attributes that are not the shape."""
    if node.target == "size":
        given = node.args[1] if len(node.args) > 1 else None
        return given if isinstance(given, int) else None
    return None
