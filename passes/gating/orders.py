"""Selections by constant indices, as `x[:, index]` and `x.index_select(1, index)`, of a buffer or a constant.

In: a captured graph and the model. Out: the same graph, in which such a selection is one `torch.index_select` by
indices with known values, so that units move with them; what is left of the indices is computed when units go.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from fxcat.passes.capture.capture import Captured
from fxcat.passes.graph.arguments import arguments, thaw
from fxcat.passes.graph.meta import VALUE, value_of


@dataclass(frozen=True, slots=True)
class _Selection:
    """`node` selects from `source` along `axis` by the indices that `index` gives."""

    node: fx.Node
    source: fx.Node
    axis: int
    index: fx.Node


def with_known_orders(captured: Captured, model: nn.Module) -> Captured:
    """Name the indices of all selections by a buffer that does nothing else; for each further source by a copy."""
    known = dict(model.named_buffers(remove_duplicate=False)) | dict(captured.constants)
    readers: dict[str, list[fx.Node]] = {}
    for node in captured.graph.nodes:
        if node.op == "get_attr" and _holds_indices(known.get(str(node.target))):
            readers.setdefault(str(node.target), []).append(node)
    orders = dict(captured.orders)
    for name, nodes in readers.items():
        found = [s for node in nodes for s in _selections(node)]
        selections = [s for s in found if s is not None]
        if not selections or len(selections) < len(found):
            continue  # something else reads the numbers too: for that they have to stay what they are
        names: dict[tuple[fx.Node, int], str] = {}
        for selection in selections:
            # sources lose different units, so that their indices will differ
            place = selection.source, selection.axis
            if place not in names:
                others = (f"{name}_{i}" for i in itertools.count(1))
                names[place] = next(n for n in others if n not in known and n not in orders) if names else name
            orders[names[place]] = known[name].detach().cpu().long()
            _rewrite(selection, names[place])
    return replace(captured, orders=orders) if orders.keys() != captured.orders.keys() else captured


def _holds_indices(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.is_meta or value.dim() != 1:
        return False
    return value.dtype in (torch.int64, torch.int32) and value.numel() > 1 and bool((value >= 0).all())


_COPIES = ("detach", "clone", "contiguous", "long", "int", "to")
"""Methods that leave indices what they are."""


def _selections(index: fx.Node) -> Iterator[_Selection | None]:
    """What is done with indices: selections of computed values, and None for everything else."""
    for user in index.users:
        if user.op == "call_method" and user.target in _COPIES and user.all_input_nodes[0] is index:
            yield from _selections(user)
        elif not isinstance(VALUE.get(user), torch.device | torch.dtype):
            yield _selection(user, index)


def _selection(node: fx.Node, index: fx.Node) -> _Selection | None:
    for source, axis, given in _parts(node):
        value = value_of(source) if isinstance(source, fx.Node) else None
        if given is index and isinstance(value, torch.Tensor) and source.op != "get_attr" and source is not index:
            return _Selection(node, source, axis % value.dim(), index)
    return None


def _parts(node: fx.Node) -> Iterator[tuple[Any, int, Any]]:
    """Source, axis and indices of a call that may be a selection."""
    if node.target in (torch.index_select, "index_select"):
        given = arguments(node, "input", "dim", "index")
        yield given["input"], thaw(given["dim"]), given["index"]
    elif node.target is operator.getitem:
        entries: Any = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        *before, index = [e for e in entries if e is not Ellipsis and e != slice(None)] or [None]
        if not before and index is not None:
            at = next(i for i, e in enumerate(entries) if e is index)
            rest = len(entries) - 1 - at
            yield node.args[0], -1 - rest if Ellipsis in entries[:at] else at, index


def _rewrite(selection: _Selection, name: str) -> None:
    node, index = selection.node, selection.index
    if index.op != "get_attr" or index.target != name:
        with node.graph.inserting_before(node):
            index = node.graph.create_node("get_attr", name)
        VALUE.set(index, value_of(selection.index))
    # the node itself may be what another one selects from
    node.op, node.target, node.kwargs = "call_function", torch.index_select, {}
    node.args = (selection.source, selection.axis, index)
