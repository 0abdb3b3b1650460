"""What convolutions and linear layers share: the input axis is consumed, the output axis gets labels of its own.

As a function a layer has its weight among the arguments. One that is a parameter is bound to the axes as a module's;
one that is computed from parameters (transposed, scaled, standardised) has units along its axes too. Of one that is
computed otherwise the first axis may have units, if nothing that computes it mixes them.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from fxcat.passes.graph.label_arrays import frozen
from fxcat.passes.graph.meta import path_of, value_of
from fxcat.passes.rules.base import Rule, Zero
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.terms import Term, per_entry


def consumed(flow: Flow, node: fx.Node, axis: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Labels of the input axis that a contraction sums over, 1-D; and those along axes that it leaves alone, if any.

    Where both vary, an index along the summed axis goes everywhere at once; but units along the batch axis (heads that
    were folded into it) go as a whole. A value without a batch axis is frozen. Rows of a table (positions, queries) are
    units only where something else makes them such.
    """
    source = node.all_input_nodes[0]
    labels, size = flow.of(source), value_of(source).shape[axis]
    axis %= labels.dim()
    if axis == 0:
        flow.unite(labels, frozen(labels.shape))
        return frozen((size,)), frozen((1,) * labels.dim())
    apart = labels.shape[axis] == 1 < labels.numel()
    if axis > 0 and (apart or labels.shape[0] > 1):
        outer = labels.narrow(axis, 0, 1)
        if flow.has_units(outer):
            flow.unite(labels, outer)
            flow.outer[node] = outer
            return frozen((size,)), outer
    if apart:
        flow.unite(labels, frozen(labels.shape))
        return frozen((size,)), None
    if labels.numel() == labels.shape[axis]:
        return flow.line(labels, size), None
    first = labels
    for other in range(labels.dim()):
        first = first.narrow(other, 0, 1) if other != axis else first
    flow.unite(labels, first)
    return first.reshape(-1).expand(size), None


def freeze_outer(flow: Flow, node: fx.Node, out: torch.Tensor, outer: torch.Tensor | None) -> None:
    """Freeze a contraction's output channels if its input has units along an axis that it leaves alone."""
    if outer is not None:
        units = outer.numel() > 1
        flow.freeze(out, node, "the input has units along another axis" if units else "the input has no batch axis")


def per_slice(flow: Flow, node: fx.Node, term: Term) -> tuple[Term, ...]:
    """The cost of a contraction; where units lie along other axes of its input, per live slice of those."""
    outer = flow.outer.get(node)
    if outer is None:
        return (term,)
    width = math.prod(f.numel() for f in term.factors)
    return (per_entry(term.coefficient * width, (outer.reshape(-1),)),)


def parameter_weight(weight: object) -> tuple[fx.Node, ...]:
    """The weight of a function, if it is a parameter."""
    return (weight,) if isinstance(weight, fx.Node) and weight.op == "get_attr" else ()


def given_weights(*arguments: object) -> tuple[fx.Node, ...]:
    """Those arguments that are nodes."""
    return tuple(a for a in arguments if isinstance(a, fx.Node))


def unite_bias(flow: Flow, out: torch.Tensor, bias: object) -> None:
    """The bias has the units of the output's channels."""
    if isinstance(bias, fx.Node):
        line = flow.lines(bias)[0]
        flow.unite(out, line if line is not None else torch.zeros_like(out[:1]))


def line_of(labels: torch.Tensor | None, size: int) -> torch.Tensor:
    """Labels along an axis of a weight; one without units is frozen."""
    return frozen((size,)) if labels is None else labels


def computed(flow: Flow, node: fx.Node, weight: fx.Node, entering: torch.Tensor) -> torch.Tensor:
    """Labels of a contraction's output whose weight is computed: those of its first axis, if no other axis has any."""
    flow.freeze(entering, node, "a weight that is computed from other values, or by mixing its entries")
    labels = flow.of(weight)
    rows = labels
    for axis in range(1, labels.dim()):
        rows = rows.narrow(axis, 0, 1)
    flow.unite(labels, rows)
    out = flow.line(rows, value_of(weight).shape[0])
    flow.unite(out, flow.fresh(len(out), path_of(node)))
    return out


class WeightedFunction(Rule):
    """Base of layers as functions: what the weight tells is found by `flow`."""

    zero = Zero.BREAKS

    def is_one_by_one(self, node: fx.Node) -> bool:
        """Whether every example has kernels of its own."""
        return False

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return flow.contractions[node].mixed

    def macs(self, flow: Flow, node: fx.Node) -> tuple[Term, ...] | None:
        return flow.contractions[node].terms


def bind_matrix(flow: Flow, name: str, owner: str, entering: torch.Tensor, width: int) -> torch.Tensor:
    """Bind both axes of the weight of a linear layer, known by its canonical name: the second is that of the input.
    Returns labels of the output's `width` channels; new ones where no earlier use of the weight tells them."""
    flow.bind_axis(name, 1, entering)
    out = flow.bound_axis(name, 0)
    out = flow.fresh(width, owner) if out is None else out
    flow.bind_axis(name, 0, out)
    return out
