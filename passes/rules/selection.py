"""`index_select`: by indices that are known, a movement; by others along an axis without units."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import fx

from fxcat.passes.graph.arguments import arguments, thaw
from fxcat.passes.graph.label_arrays import Labels, along
from fxcat.passes.graph.meta import ENTRY, MADE, value_of
from fxcat.passes.rules.base import Rule, Zero
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.product import whole_slices
from fxcat.passes.rules.table import rule


def known_selection(node: fx.Node, known: Container[str]) -> tuple[fx.Node, int, str] | None:
    """Source, axis and the name of the indices, if the node selects by indices that are known under their name.

    Calls of that kind have no keywords: see `with_known_orders`.
    """
    if node.target is not torch.index_select or len(node.args) != 3:
        return None
    source, axis, index = node.args
    if not (isinstance(source, fx.Node) and isinstance(axis, int) and isinstance(index, fx.Node)):
        return None
    name = str(index.target)
    return (source, axis, name) if index.op == "get_attr" and name in known else None


@rule(torch.index_select, "index_select")
class Select(Rule):
    """At an entry the selected input features are the units. By unknown indices no units are selected."""

    keeps_infinity = True

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        found = known_selection(node, flow.orders)
        if found is None:
            axis = thaw(arguments(node, "input", "dim", "index")["dim"])
            return whole_slices(flow, node, axis, reason="selection by values")
        source, axis, name = found
        order = flow.orders[name]
        if ENTRY.get(node):
            return flow.fresh(len(order), str(source.target))[None]
        if MADE.get(node):
            return along(flow.fresh(len(order), node.name, producer=False), axis, value_of(node).dim())
        labels = flow.of(source)
        return labels if labels.shape[axis] == 1 else labels.index_select(axis, order)

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0],)

    def zero_at(self, node: fx.Node) -> Zero:
        return Zero.BREAKS if ENTRY.get(node) or MADE.get(node) else Zero.PRESERVES
