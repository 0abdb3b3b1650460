"""New values that another value gives type, device or shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from fxcat.passes.arrays import frozen
from fxcat.passes.rules.table import Labels, Rule, rule

if TYPE_CHECKING:
    from fxcat.passes.labels import Flow


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")
class Creation(Rule):
    """Values of a shape of their own."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return frozen((1,) * node.meta["value"].dim())


@rule(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like)
class Alike(Rule):
    """Values of another's shape, and so with its units."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return flow.of(node.all_input_nodes[0])

    def infinite_at(self, flow: Flow, node: fx.Node) -> bool:
        return node.target is torch.full_like
