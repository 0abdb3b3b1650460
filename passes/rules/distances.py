"""Distances between rows: functions of what lies along an axis of both of two values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Counting, Zero
from fxcat.passes.rules.counting import gated_distances
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.product import BATCH, Product, factors_of
from fxcat.passes.rules.table import rule
from fxcat.passes.rules.terms import Contraction


@rule(torch.cdist)
class Distances(Product):
    """Distances between the rows of two matrices, or of batches of them: of the entries that are live. PyTorch counts
    no operations."""

    zero = Zero.BREAKS

    def operands(self, node: fx.Node) -> tuple[Sequence[tuple[fx.Node, str]], str] | None:
        given = arguments(node, "x1", "x2", "p")
        a, b, power = given["x1"], given["x2"], given.get("p", 2.0)
        if not (isinstance(power, int | float) and power >= 1):
            return None  # zeros, or their gradients, would change it
        ranks = value_of(a).dim() - 2, value_of(b).dim() - 2
        batch = BATCH[: max(ranks)]
        return ((a, batch[max(ranks) - ranks[0] :] + "xs"), (b, batch[max(ranks) - ranks[1] :] + "ys")), batch + "xy"

    def product(self, flow: Flow, node: fx.Node) -> tuple[torch.Tensor, Contraction]:
        labels, found = super().product(flow, node)
        operands = self.operands(node)
        if operands is not None:
            lines = [f.lines["s"] for f in factors_of(flow, *operands) if "s" in f.lines]
            flow.statistics[node] = lines[:1]
        return labels, replace(found, terms=())

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        over = flow.statistics.get(node)
        return Counting(gated_distances, over[0]) if over else None

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return ()

    def carriers(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return ()
