"""Linear layers and convolutions as functions: their weights are arguments.

A weight that is a parameter is bound to the axes as a module's; one that is computed from parameters (transposed,
scaled, standardised) has units along its axes too. Of one that is computed otherwise the first axis may have units, if
nothing that computes it mixes them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxcat.passes.graph.arguments import arguments, thaw
from fxcat.passes.graph.label_arrays import Grid, Labels, along, frozen
from fxcat.passes.graph.meta import path_of, value_of
from fxcat.passes.rules.base import Moved, Replacement, Rule, Zero
from fxcat.passes.rules.contraction import (
    Sizes,
    bind_kernel,
    consumed,
    freeze_outer,
    kernel_labels,
    kernel_macs,
    per_slice,
)
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.table import rule
from fxcat.passes.rules.terms import Contraction, Term


def parameter_weight(weight: object) -> tuple[fx.Node, ...]:
    """The weight of a function, if it is a parameter."""
    return (weight,) if isinstance(weight, fx.Node) and weight.op == "get_attr" else ()


def given_weights(*arguments: object) -> tuple[fx.Node, ...]:
    """Those arguments that are nodes."""
    return tuple(a for a in arguments if isinstance(a, fx.Node))


def unite_bias(flow: Flow, node: fx.Node, out: torch.Tensor, bias: object) -> None:
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


class _Weighted(Rule):
    """A layer as a function."""

    zero = Zero.BREAKS

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0],)

    def macs(self, flow: Flow, node: fx.Node) -> tuple[Term, ...] | None:
        return flow.contractions[node].terms


@rule(F.linear)
class LinearFunction(_Weighted):
    """F.linear."""

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        if len(args) < 2:
            return None
        value, weight = args[:2]
        fits = weight.dim() == 2 and value.shape[-1:] == weight.shape[1:] and value.dtype == weight.dtype
        return value.new_empty((*value.shape[:-1], weight.shape[0])) if fits else None

    def binds(self, node: fx.Node) -> tuple[fx.Node, ...]:
        weight = arguments(node, "input", "weight", "bias")["weight"]
        return (weight,) if isinstance(weight, fx.Node) and weight.op == "get_attr" else ()

    def weights(self, node: fx.Node) -> tuple[fx.Node, ...]:
        given = arguments(node, "input", "weight", "bias")
        return given_weights(given["weight"], given.get("bias"))

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        given = arguments(node, "input", "weight", "bias")
        weight, bias = given["weight"], given.get("bias")
        entering, outer = consumed(flow, node, -1)
        value = value_of(node)
        if value_of(weight).dim() == 1:
            return self._of_vector(flow, node, weight, entering, outer)
        out = self._bind(flow, node, weight, entering, value.shape[-1])
        freeze_outer(flow, node, out, outer)
        unite_bias(flow, node, out, bias)
        term = Term(flow.one(node).shape[:-1].numel(), (entering, out))
        flow.contractions[node] = Contraction(per_slice(flow, node, term), (node.all_input_nodes[0],), ())
        return along(out, -1, value.dim()) if outer is None else outer

    def _of_vector(
        self, flow: Flow, node: fx.Node, weight: fx.Node, entering: torch.Tensor, outer: torch.Tensor | None
    ) -> torch.Tensor:
        """Labels where the weight has one axis only, which leaves none of the output's."""
        if flow.values[weight] is None:
            flow.bind_axis(flow.attribute_name(weight), 0, entering)
        elif isinstance(flow.values[weight], Grid):
            flow.unite(entering, line_of(flow.lines(weight)[0], len(entering)))
        else:
            flow.freeze(
                (entering, flow.of(weight)),
                node,
                "a weight that is computed from other values, or by mixing its entries",
            )
        flow.contractions[node] = Contraction((), (node.all_input_nodes[0],), ())
        return frozen((1,) * value_of(node).dim()) if outer is None else outer.squeeze(-1)

    def _bind(self, flow: Flow, node: fx.Node, weight: fx.Node, entering: torch.Tensor, width: int) -> torch.Tensor:
        if isinstance(flow.values[weight], Grid):
            lines = [line_of(x, n) for x, n in zip(flow.lines(weight), value_of(weight).shape, strict=True)]
            flow.unite(entering, lines[1])
            out = flow.fresh(width, path_of(node))
            flow.unite(out, lines[0])
            return out
        if flow.values[weight] is not None:
            return computed(flow, node, weight, entering)
        name = flow.attribute_name(weight)
        flow.bind_axis(name, 1, entering)
        out = flow.bound_axis(name, 0)
        out = flow.fresh(width, name.removesuffix(".weight")) if out is None else out
        flow.bind_axis(name, 0, out)
        return out


@rule(F.conv1d, F.conv2d, F.conv3d)
class ConvFunction(_Weighted):
    """F.conv1d, F.conv2d, F.conv3d."""

    def binds(self, node: fx.Node) -> tuple[fx.Node, ...]:
        return parameter_weight(_of_conv(node)["weight"])

    def weights(self, node: fx.Node) -> tuple[fx.Node, ...]:
        given = _of_conv(node)
        return given_weights(given["weight"], given.get("bias"))

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        given = _of_conv(node)
        if _is_of_batch(given.get("groups")):
            return _convolved_one_by_one(flow, node)
        weight, bias, sizes = given["weight"], given.get("bias"), _sizes(given)
        channels = 1 - value_of(weight).dim()
        entering, outer = consumed(flow, node, channels)
        name = flow.attribute_name(weight)
        if self.binds(node) and flow.values[weight] is None:
            out = bind_kernel(flow, name, name.removesuffix(".weight"), sizes, entering)
            axes = flow.parameters[name]
            first, second = axes[0], axes.get(1)
        elif isinstance(flow.values[weight], Grid):
            first, second, *_ = lines = [
                line_of(x, n) for x, n in zip(flow.lines(weight), value_of(weight).shape, strict=True)
            ]

            def bind(axis: int, labels: torch.Tensor) -> None:
                flow.unite(labels, lines[axis])

            out = kernel_labels(flow, path_of(node), sizes, entering, None, bind)
        else:
            if sizes.groups > 1:
                flow.freeze(flow.of(weight), node, "a computed weight of a grouped convolution")
            out = first = computed(flow, node, weight, entering)
            second = entering
        if outer is not None:
            flow.freeze((outer, out), node, "units along an axis that the convolution runs over")
        unite_bias(flow, node, out, bias)
        terms = None  # groups with computed weights may be those of the examples of a batch
        if sizes.groups == 1 or isinstance(flow.values[weight], Grid) or self.binds(node):
            terms = kernel_macs(flow, node, sizes, math.prod(value_of(weight).shape[2:]), second, first)
        flow.contractions[node] = Contraction(terms, (node.all_input_nodes[0],), ())
        return along(out, channels, value_of(node).dim())

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        given = _of_conv(node)
        if _is_of_batch(given.get("groups")):
            return None
        sizes = _sizes(given)
        channels = moved.shape[1 - value_of(given["weight"]).dim()]
        given["groups"] = channels // sizes.leaving if sizes.whole else sizes.groups
        return Replacement((given.pop("input"), given.pop("weight")), given)


@rule(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
class ConvTransposeFunction(_Weighted):
    """F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d; with groups only where these are units."""

    def weights(self, node: fx.Node) -> tuple[fx.Node, ...]:
        given = _of_transposed(node)
        return given_weights(given["weight"], given.get("bias"))

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        given = _of_transposed(node)
        if _is_of_batch(given.get("groups")):
            return _convolved_one_by_one(flow, node)
        weight, (groups, width_in, width_out) = given["weight"], _transposed_sizes(given)
        channels = 1 - value_of(weight).dim()
        entering, outer = consumed(flow, node, channels)
        if outer is not None:
            flow.freeze(outer, node, "units along an axis that the convolution runs over")
        if flow.values[weight] is not None and not isinstance(flow.values[weight], Grid):
            flow.freeze(
                (entering, flow.values[weight]),
                node,
                "a weight that is computed from other values, or by mixing its entries",
            )
            rows, columns = frozen((groups * width_in,)), frozen((width_out,))
        else:
            rows, columns = (
                line_of(x, n) for x, n in zip(flow.lines(weight)[:2], value_of(weight).shape[:2], strict=True)
            )
        flow.unite(rows, entering)
        if groups > 1:
            blocks = entering.reshape(groups, width_in)
            flow.unite(blocks, blocks[:, :1])
            flow.freeze_if_units(columns, node, "the width of a group")
            out = blocks[:, 0].repeat_interleave(width_out)
            cost = Term(1, (blocks[:, 0],)), width_in * width_out
        else:
            out = flow.fresh(width_out, path_of(node))
            flow.unite(out, columns)
            cost = Term(1, (entering, out)), 1
        freeze_outer(flow, node, out, outer)
        unite_bias(flow, node, out, given.get("bias"))
        source = flow.one(node.all_input_nodes[0])
        positions = source.numel() // (groups * width_in) * math.prod(value_of(weight).shape[2:])
        by_batch = groups > 1 and flow.values[weight] is not None and not isinstance(flow.values[weight], Grid)
        terms = None if by_batch else (Term(positions * cost[1], cost[0].factors),)
        flow.contractions[node] = Contraction(terms, (node.all_input_nodes[0],), ())
        return along(out, channels, value_of(node).dim())

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        given = _of_transposed(node)
        if _is_of_batch(given.get("groups")):
            return None
        groups, _, width_out = _transposed_sizes(given)
        if groups == 1:
            return None
        given["groups"] = moved.shape[1 - value_of(given["weight"]).dim()] // width_out
        return Replacement((given.pop("input"), given.pop("weight")), given)


def _is_of_batch(number: object) -> bool:
    """Whether a number is computed from the first size of a value: from that of the batch."""
    if not isinstance(number, fx.Node):
        return False
    sources = number.all_input_nodes
    if any(isinstance(value_of(s), torch.Tensor | torch.Size) for s in sources):
        return any(type(a) is int and a == 0 for a in (*number.args, *number.kwargs.values()))
    return any(_is_of_batch(source) for source in sources)


def _convolved_one_by_one(flow: Flow, node: fx.Node) -> Labels:
    """Every example has a kernel of its own, and the batch lies along the axis of the channels: none of them goes."""
    for source in node.all_input_nodes:
        flow.freeze(flow.values[source], node, "a convolution with as many groups as there are examples")
    flow.contractions[node] = Contraction(None, (), ())
    return frozen((1,) * value_of(node).dim())


def _of_transposed(node: fx.Node) -> dict[str, Any]:
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    return arguments(node, *names)


def _transposed_sizes(given: dict[str, Any]) -> Sizes:
    groups = thaw(given.get("groups", 1))
    entering, leaving = value_of(given["weight"]).shape[:2]
    return Sizes(groups, entering // groups, leaving)


def _of_conv(node: fx.Node) -> dict[str, Any]:
    return arguments(node, "input", "weight", "bias", "stride", "padding", "dilation", "groups")


def _sizes(given: dict[str, Any]) -> Sizes:
    groups = thaw(given.get("groups", 1))
    leaving, entering = value_of(given["weight"]).shape[:2]
    return Sizes(groups, entering, leaving // groups)
