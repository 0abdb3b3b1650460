"""Transposed convolutions: modules and functions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcat.passes.graph.arguments import arguments, thaw
from fxcat.passes.graph.label_arrays import Grid, Labels, along, frozen
from fxcat.passes.graph.meta import path_of, value_of
from fxcat.passes.rules.base import Folding, Moved, Replacement, Sample
from fxcat.passes.rules.contraction import (
    WeightedFunction,
    consumed,
    freeze_outer,
    given_weights,
    line_of,
    unite_bias,
)
from fxcat.passes.rules.conv import TRANSPOSED, Conv, module_sizes
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.kernels import Sizes
from fxcat.passes.rules.one_by_one import convolved_one_by_one, is_of_batch
from fxcat.passes.rules.table import rule
from fxcat.passes.rules.terms import Contraction, Term


@rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
class ConvTranspose(Conv):
    """Transposed convolutions: the weight's first axis is that of all inputs, the second that of a group's outputs."""

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        return None

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        module = self._module(flow, node)
        channels = -module.weight.dim() + 1
        entering, outer = consumed(flow, node, channels)
        if outer is not None:
            flow.freeze(outer, node, "units along an axis that the convolution runs over")
        sizes = module_sizes(module)
        groups, width_in, width_out = sizes
        blocks = entering.reshape(groups, width_in)
        if sizes.whole:
            flow.unite(blocks, blocks[:, :1])
            out = blocks[:, 0].repeat_interleave(width_out)
        else:
            flow.unite(blocks, blocks[:1])
            bound = flow.bound(node, "weight", 1)
            position = flow.fresh(width_out, str(node.target)) if bound is None else bound
            flow.bind(node, "weight", 1, position)
            out = position.repeat(groups)
        freeze_outer(flow, node, out, outer)
        flow.bind(node, "weight", 0, entering)
        flow.bind(node, "bias", 0, out)
        return along(out, channels, value_of(node).dim())

    def macs(self, flow: Flow, node: fx.Node) -> tuple[Term, ...]:
        module, value = self._module(flow, node), flow.one(node.all_input_nodes[0])
        sizes = module_sizes(module)
        _, width_in, width_out = sizes
        positions = value.numel() // module.in_channels
        per_pair = positions * math.prod(module.kernel_size)
        axes = flow.parameters[flow.parameter_name(node, "weight")]
        if sizes.whole:
            return (Term(per_pair * width_in * width_out, (axes[0][::width_in],)),)
        return (Term(per_pair, (axes[0], axes[1])),)

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, TRANSPOSED)
        if module_sizes(module).whole:
            module.groups = module.weight.shape[0] * module.groups // module.in_channels
        module.in_channels = module.weight.shape[0]
        module.out_channels = module.weight.shape[1] * module.groups

    def folding(self, module: nn.Module, shape: torch.Size) -> Folding | None:
        return None

    def samples(self) -> tuple[Sample, ...]:
        return (
            Sample(nn.ConvTranspose2d(6, 4, 2, stride=2), (2, 6, 4, 4)),
            Sample(nn.ConvTranspose2d(6, 6, 3, groups=6, padding=1, bias=False), (2, 6, 4, 4)),
            Sample(nn.ConvTranspose2d(12, 16, 3, groups=2, output_padding=1, stride=2), (2, 12, 4, 4)),
            Sample(nn.ConvTranspose1d(6, 4, 3), (2, 6, 5)),
            Sample(nn.ConvTranspose3d(6, 4, 2), (2, 6, 3, 3, 3)),
        )


@rule(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
class ConvTransposeFunction(WeightedFunction):
    """F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d; with groups only where these are units."""

    def is_one_by_one(self, node: fx.Node) -> bool:
        return is_of_batch(_of_transposed(node).get("groups"))

    def groups(self, node: fx.Node, module: nn.Module | None) -> int:
        given = _of_transposed(node)
        return 1 if self.is_one_by_one(node) else _transposed_sizes(given).groups

    def weights(self, node: fx.Node) -> tuple[fx.Node, ...]:
        given = _of_transposed(node)
        return given_weights(given["weight"], given.get("bias"))

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        given = _of_transposed(node)
        if self.is_one_by_one(node):
            return convolved_one_by_one(flow, node, given, transposed=True)
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
        unite_bias(flow, out, given.get("bias"))
        source = flow.one(node.all_input_nodes[0])
        positions = source.numel() // (groups * width_in) * math.prod(value_of(weight).shape[2:])
        by_batch = groups > 1 and flow.values[weight] is not None and not isinstance(flow.values[weight], Grid)
        terms = None if by_batch else (Term(positions * cost[1], cost[0].factors),)
        flow.contractions[node] = Contraction(terms, (node.all_input_nodes[0],), ())
        return along(out, channels, value_of(node).dim())

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        given = _of_transposed(node)
        if self.is_one_by_one(node):
            return None
        groups, _, width_out = _transposed_sizes(given)
        if groups == 1:
            return None
        given["groups"] = moved.shape[1 - value_of(given["weight"]).dim()] // width_out
        return Replacement((given.pop("input"), given.pop("weight")), given)


def _of_transposed(node: fx.Node) -> dict[str, Any]:
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    return arguments(node, *names)


def _transposed_sizes(given: dict[str, Any]) -> Sizes:
    groups = thaw(given.get("groups", 1))
    entering, leaving = value_of(given["weight"]).shape[:2]
    return Sizes(groups, entering // groups, leaving)
