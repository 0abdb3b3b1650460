"""Where a graph puts channels into another order, and does nothing else with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from fxcat.passes.analysis.chains import Chain
from fxcat.passes.graph.meta import ENTRY, MADE, value_of
from fxcat.passes.rules.selection import known_selection


@dataclass(frozen=True, slots=True)
class Shuffle:
    """node[i] = source[order[i]] along an axis. `inner`: what lies between them, in a chain of movements."""

    node: fx.Node
    source: fx.Node
    axis: int
    order: torch.Tensor
    inner: tuple[fx.Node, ...] = ()


def of_chain(chain: Chain) -> Shuffle:
    """One by movements."""
    return Shuffle(chain.sink, chain.source, chain.axis, chain.order, chain.inner)


def selections(graph: fx.Graph, orders: Mapping[str, torch.Tensor]) -> Iterator[Shuffle]:
    """Those by constant indices (`orders`, by their names) that are no units themselves."""
    for node in graph.nodes:
        known = None if ENTRY.get(node) or MADE.get(node) else known_selection(node, orders)
        if known is not None:
            source, axis, name = known
            order, value = orders[name], value_of(source)
            if torch.equal(order.sort().values, torch.arange(value.shape[axis])):
                yield Shuffle(node, source, axis % value.dim(), order)
