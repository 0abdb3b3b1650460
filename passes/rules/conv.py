"""Convolutions: modules and functions."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcat.passes.graph.arguments import arguments, thaw
from fxcat.passes.graph.label_arrays import Grid, Labels, along, frozen
from fxcat.passes.graph.meta import path_of, value_of
from fxcat.passes.rules.base import Folding, Moved, Replacement, Rule, Sample, Share, Zero
from fxcat.passes.rules.contraction import (
    WeightedFunction,
    computed,
    consumed,
    freeze_outer,
    given_weights,
    line_of,
    parameter_weight,
    unite_bias,
)
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.kernels import Sizes, bind_kernel, kernel_labels, kernel_macs
from fxcat.passes.rules.layouts import empty
from fxcat.passes.rules.one_by_one import convolved_one_by_one, is_of_batch
from fxcat.passes.rules.table import rule
from fxcat.passes.rules.terms import Contraction, Term
from fxcat.utils.made_classes import gated_class


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
class Conv(Rule):
    """Convolutions, plain, depthwise and grouped.

    A grouped convolution must stay balanced. Either its groups are the units (all channels of one group in and out
    go together), or the positions inside every group are (position i of each group, in and out apart): see `Sizes`.
    """

    zero = Zero.BREAKS
    affine = True
    parameters = ("weight", "bias")

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        rank = len(module.kernel_size)
        fits = value.dim() == rank + 2 and value.shape[1] == module.in_channels
        if not fits or isinstance(module.padding, str):
            return None  # run it: it pads by name, takes no batch, or says what is wrong with its input
        sides = zip(value.shape[2:], module.kernel_size, module.stride, module.padding, module.dilation, strict=True)
        sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides]
        if min(sizes) < 1:
            return None  # run it: it says that the image is too small
        return empty((value.shape[0], module.out_channels, *sizes), value)

    def groups(self, node: fx.Node, module: nn.Module | None) -> int:
        assert isinstance(module, nn.modules.conv._ConvNd)
        return module.groups

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        module = self._module(flow, node)
        channels = -module.weight.dim() + 1
        entering, found = consumed(flow, node, channels)
        outer = left_alone(flow, node, found, module.kernel_size, module.stride, module.padding)
        out = bind_kernel(flow, flow.parameter_name(node, "weight"), str(node.target), module_sizes(module), entering)
        freeze_outer(flow, node, out, found)
        flow.bind(node, "bias", 0, out)
        return along(out, channels, value_of(node).dim()) if outer is None else outer

    def equivariant_at(self, flow: Flow, node: fx.Node) -> bool:
        """Channels are of a group by their places, unless whole groups go together."""
        sizes = module_sizes(self._module(flow, node))
        return sizes.groups == 1 or sizes.whole

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0],)

    def macs(self, flow: Flow, node: fx.Node) -> tuple[Term, ...]:
        module = self._module(flow, node)
        axes = flow.parameters[flow.parameter_name(node, "weight")]
        return kernel_macs(flow, node, module_sizes(module), math.prod(module.kernel_size), axes.get(1), axes[0])

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        if module_sizes(module).whole:
            module.groups = module.weight.shape[0] * module.groups // module.out_channels
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups

    def folding(self, module: nn.Module, shape: torch.Size) -> Folding | None:
        assert isinstance(module, nn.Conv2d | nn.Conv1d | nn.Conv3d)
        fan_in = module.weight[0].numel()
        cheap = fan_in <= shape[2:].numel()
        subclass = _gated_conv(type(module)) if cheap else None
        return None if subclass is None else Folding(subclass)

    def samples(self) -> tuple[Sample, ...]:
        return (
            Sample(nn.Conv2d(6, 4, 3, padding=1), (2, 6, 5, 5)),
            Sample(nn.Conv2d(6, 12, 3, groups=6, bias=False), (2, 6, 5, 5)),
            Sample(nn.Conv2d(8, 12, 3, groups=4, stride=2), (2, 8, 5, 5)),
            Sample(nn.Conv2d(12, 16, 1, groups=2), (2, 12, 5, 5)),
            Sample(nn.Conv1d(6, 4, 3, dilation=2), (2, 6, 9)),
            Sample(nn.Conv3d(6, 4, 2), (2, 6, 5, 5, 5)),
        )

    @staticmethod
    def _module(flow: Flow, node: fx.Node) -> nn.Conv2d:
        module = flow.module(node)
        return module  # pyright: ignore[reportReturnType]


def left_alone(
    flow: Flow, node: fx.Node, outer: torch.Tensor | None, kernel: tuple[int, ...], stride: Any, padding: Any
) -> torch.Tensor | None:
    """Labels along axes that a convolution sums nothing over. It runs over those of its kernel, but where that has one
    entry, and takes what lies there one by one: tokens mixed by `nn.Conv1d(tokens, hidden, 1)`."""
    if outer is None:
        return None

    def of_axis(given: Any, axis: int) -> Any:
        return given[axis] if isinstance(given, tuple | list) else given

    rank = len(kernel)
    for axis in range(-rank, 0):
        apart = kernel[axis] == of_axis(stride, axis) == 1 and (isinstance(padding, str) or not of_axis(padding, axis))
        if outer.shape[axis] > 1 and not apart:
            flow.freeze(outer, node, "units along an axis that the convolution runs over")
            return frozen((1,) * outer.dim())
    return outer


TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def module_sizes(module: nn.Module) -> Sizes:
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED))
    return Sizes(module.groups, module.in_channels // module.groups, module.out_channels // module.groups)


def _gated_conv_forward(self: nn.Conv2d, input: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    weight = self.weight * gate.reshape([-1] + [1] * (self.weight.dim() - 1))
    bias = None if self.bias is None else self.bias * gate
    return self._conv_forward(input, weight, bias)


@cache
def _gated_conv(base: type[nn.Module]) -> type[nn.Module] | None:
    """The class that takes the gate of its output; None for one that may do more than `nn.Conv*d`."""
    if base not in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return None
    return gated_class(base, _gated_conv_forward, (_gated_conv, (base,)))


@rule(F.conv1d, F.conv2d, F.conv3d)
class ConvFunction(WeightedFunction):
    """F.conv1d, F.conv2d, F.conv3d."""

    def is_one_by_one(self, node: fx.Node) -> bool:
        return is_of_batch(_of_conv(node).get("groups"))

    def groups(self, node: fx.Node, module: nn.Module | None) -> int:
        given = _of_conv(node)
        return 1 if self.is_one_by_one(node) else _given_sizes(given).groups

    def binds(self, node: fx.Node) -> tuple[fx.Node, ...]:
        return parameter_weight(_of_conv(node)["weight"])

    def weights(self, node: fx.Node) -> tuple[fx.Node, ...]:
        given = _of_conv(node)
        return given_weights(given["weight"], given.get("bias"))

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        given = _of_conv(node)
        if self.is_one_by_one(node):
            return convolved_one_by_one(flow, node, given)
        weight, bias, sizes = given["weight"], given.get("bias"), _given_sizes(given)
        channels = 1 - value_of(weight).dim()
        entering, found = consumed(flow, node, channels)
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
        kernel = tuple(value_of(weight).shape[2:])
        outer = left_alone(flow, node, found, kernel, thaw(given.get("stride", 1)), thaw(given.get("padding", 0)))
        freeze_outer(flow, node, out, found)
        unite_bias(flow, out, bias)
        terms = None  # groups with computed weights may be those of the examples of a batch
        if sizes.groups == 1 or isinstance(flow.values[weight], Grid) or self.binds(node):
            terms = kernel_macs(flow, node, sizes, math.prod(kernel), second, first)
        flow.contractions[node] = Contraction(terms, (node.all_input_nodes[0],), ())
        return along(out, channels, value_of(node).dim()) if outer is None else outer

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        given = _of_conv(node)
        sizes = _given_sizes(given)
        channels = moved.shape[1 - value_of(given["weight"]).dim()]
        if self.is_one_by_one(node):
            groups: Any = given["groups"]
            left = moved.number(given["input"]).shape[1] // moved.number(given["weight"]).shape[1]
            if left == moved.number(groups):
                return None
            given["groups"] = Share(groups, left)
        else:
            given["groups"] = channels // sizes.leaving if sizes.whole else sizes.groups
        return Replacement((given.pop("input"), given.pop("weight")), given)


def _of_conv(node: fx.Node) -> dict[str, Any]:
    return arguments(node, "input", "weight", "bias", "stride", "padding", "dilation", "groups")


def _given_sizes(given: dict[str, Any]) -> Sizes:
    groups = thaw(given.get("groups", 1))
    leaving, entering = value_of(given["weight"]).shape[:2]
    return Sizes(groups, entering, leaving // groups)
