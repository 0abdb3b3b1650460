"""Selections by constant indices, as `x[:, index]` and `x.index_select(1, index)`, of a buffer or a constant.

In: a captured graph and the model. Out: the same graph, in which such a selection is one `torch.index_select` by
indices with known values, so that units move with them; what is left of the indices is computed when units go.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from fxcat.passes.arguments import arguments, thaw
from fxcat.passes.capture import Captured

_Selection = tuple[fx.Node, fx.Node, int]
"""What selects, from what, along which axis."""


def with_known_orders(captured: Captured, model: nn.Module) -> Captured:
    """Name the indices of all selections by a buffer that does nothing else."""
    known = dict(model.named_buffers(remove_duplicate=False)) | dict(captured.constants)
    readers: dict[str, list[fx.Node]] = {}
    for node in captured.graph.nodes:
        if node.op == "get_attr" and _holds_indices(known.get(str(node.target))):
            readers.setdefault(str(node.target), []).extend(node.users)
    orders = dict(captured.orders)
    for name, users in readers.items():
        found = [_selection(user, name) for user in users]
        selections = [f for f in found if f is not None]
        # one index for several sources would have to become several
        if len(selections) == len(found) and len({(source, axis) for _, source, axis in selections}) == 1:
            orders[name] = known[name].detach().cpu().long()
            for selection in selections:
                _rewrite(*selection)
    return replace(captured, orders=orders) if orders.keys() != captured.orders.keys() else captured


def _holds_indices(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.is_meta or value.dim() != 1:
        return False
    return value.dtype in (torch.int64, torch.int32) and value.numel() > 1 and bool((value >= 0).all())


def _selection(node: fx.Node, name: str) -> _Selection | None:
    """The selection that a node makes by the indices of that name, if it makes one of a computed value."""
    for source, axis, index in _parts(node):
        value = source.meta["value"] if isinstance(source, fx.Node) else None
        named = isinstance(index, fx.Node) and index.op == "get_attr" and index.target == name
        if named and isinstance(value, torch.Tensor) and source.op != "get_attr" and source is not index:
            return node, source, axis % value.dim()
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


def _rewrite(node: fx.Node, source: fx.Node, axis: int) -> None:
    index = next(i for i in node.all_input_nodes if i is not source)
    with node.graph.inserting_before(node):
        select = node.graph.call_function(torch.index_select, (source, axis, index))
    select.meta = dict(node.meta)
    node.replace_all_uses_with(select)
    node.graph.erase_node(node)
