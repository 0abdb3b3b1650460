"""Gated inputs: an `index_select` behind every input of features, whose indices are units.

In: a captured graph. Out: the same graph with a selection of all features, so far, at its entry. What is closed leaves
the selection; a selection of everything leaves the final network.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from fxcat.errors import InputError
from fxcat.passes.capture.capture import Captured
from fxcat.passes.graph.meta import ENTRY, VALUE, value_of


def with_entries(captured: Captured) -> Captured:
    """Put a selection behind every input of shape (N, features). Raises `InputError` if there is none."""
    orders = dict(captured.orders)
    for node in [] if captured.regions else list(captured.graph.nodes):
        if node.op == "placeholder" and _is_features(node):
            name = f"{node.name}_features"
            orders[name] = _add_entry(captured, node, name)
    if len(orders) == len(captured.orders):
        raise InputError(
            "gate_inputs=True: the model has no input of shape (N, features)",
            remedy="flatten the input outside of the model, or leave gate_inputs=False",
        )
    return replace(captured, orders=orders)


def _is_features(node: fx.Node) -> bool:
    value = VALUE.get(node)
    return isinstance(value, torch.Tensor) and value.dim() == 2 and value.is_floating_point() and value.shape[1] > 1


def _add_entry(captured: Captured, node: fx.Node, name: str) -> torch.Tensor:
    order = torch.arange(value_of(node).shape[1])
    users = list(node.users)
    graph = captured.graph
    with graph.inserting_before(users[0] if users else None):
        index = graph.create_node("get_attr", name)
        select = graph.call_function(torch.index_select, (node, 1, index))
    VALUE.set(index, order.to("meta"))
    VALUE.set(select, value_of(node))
    ENTRY.set(select, True)
    for user in users:
        user.replace_input_with(node, select)
    return order
