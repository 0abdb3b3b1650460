"""Boundaries of regions: captured parts of a model inside Python that was not captured.

Each region's graph is a slice of one graph: from its `region_input`s to its `region_output`s. Values that Python only
passes on lead from an output of one region to an input of another.
"""

from __future__ import annotations

import torch
from torch import fx

from fxcat.passes.graph.label_arrays import Labels
from fxcat.passes.rules.base import Rule, Zero
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.table import rule

NO_REGION = -1
"""The number of what a single module returns that Python calls."""


def region_input(value: torch.Tensor, region: int, index: int) -> torch.Tensor:
    """The tensor number `index` among the arguments of a region."""
    return value


def region_output(value: torch.Tensor, region: int, index: int, phase: int) -> torch.Tensor:
    """The tensor number `index` that a region returns, in inference (phase 0) or in training (1)."""
    return value


def inside(node: fx.Node) -> fx.Node:
    """What a region returns at an output, as the node that computes it; any other node is its own."""
    return node.all_input_nodes[0] if node.target is region_output else node


def owners(graph: fx.Graph) -> dict[fx.Node, int]:
    """The number of the region that each node belongs to, as far as its inputs tell."""
    found: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.target in (region_input, region_output):
            found[node] = node.args[1]  # pyright: ignore[reportArgumentType]
        else:
            inner = [i for i in node.all_input_nodes if i.target is not region_output]
            owner = next((found[i] for i in inner if i in found), None)
            if owner is not None:
                found[node] = owner
    return found


@rule(region_input, region_output)
class Boundary(Rule):
    """Values pass as they are."""

    zero = Zero.PRESERVES
    movement = True

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return flow.values[node.all_input_nodes[0]]

    def carriers(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0], *flow.ties.get(node, ()))
