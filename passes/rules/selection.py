"""`index_select`: by indices that fxcat has put in, a movement; by others, whose values may change, opaque."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

import torch
from torch import fx

from fxcat.passes.arrays import frozen
from fxcat.passes.rules.table import Labels, Rule, Zero, rule

if TYPE_CHECKING:
    from fxcat.passes.labels import Flow

ENTRY = "entry"
"""Key in the `meta` of a node that selects input features: they are units."""


def known_selection(node: fx.Node, known: Container[str]) -> tuple[fx.Node, int, str] | None:
    """Source, axis and the name of the indices, if the node selects by indices that are known under their name.

    fxcat writes such calls without keywords; a model's own may have any form.
    """
    if node.target is not torch.index_select or len(node.args) != 3:
        return None
    source, axis, index = node.args
    if not (isinstance(source, fx.Node) and isinstance(axis, int) and isinstance(index, fx.Node)):
        return None
    name = str(index.target)
    return (source, axis, name) if index.op == "get_attr" and name in known else None


@rule(torch.index_select)
class Select(Rule):
    """At an entry the selected input features are the units."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        found = known_selection(node, flow.orders)
        if found is None:
            for used in node.all_input_nodes:
                flow.freeze(flow.values[used], node, "selection by values")
            return frozen((1,) * node.meta["value"].dim())
        source, axis, name = found
        order = flow.orders[name]
        if node.meta.get(ENTRY):
            return flow.fresh(len(order), str(source.target))[None]
        labels = flow.of(source)
        return labels if labels.shape[axis] == 1 else labels.index_select(axis, order)

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0],)

    def zero_at(self, node: fx.Node) -> Zero:
        return Zero.BREAKS if node.meta.get(ENTRY) else Zero.PRESERVES
