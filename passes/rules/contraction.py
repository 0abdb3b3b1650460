"""Convolutions and linear layers: the input axis is consumed, the output axis gets labels of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from fxcat.passes.graph.label_arrays import along, frozen
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.table import Folding, Labels, Rule, Sample, Zero, rule
from fxcat.passes.rules.terms import Term, per_entry
from fxcat.utils.made_classes import gated_class


def consumed(flow: Flow, node: fx.Node, axis: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Labels of the input axis that a contraction sums over, 1-D; and those along axes that it leaves alone, if any.

    Where both vary, an index along the summed axis goes everywhere at once; but units along the batch axis (heads that
    were folded into it) go as a whole. A value without a batch axis is frozen. Rows of a table (positions, queries) are
    units only where something else makes them such.
    """
    source = node.all_input_nodes[0]
    labels, size = flow.of(source), source.meta["value"].shape[axis]
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


class Sizes(NamedTuple):
    """Groups of a convolution, input channels per group, output channels per group."""

    groups: int
    entering: int
    leaving: int

    @property
    def whole(self) -> bool:
        """Whether groups are units, and not the positions inside every group: whichever gives more units."""
        return self.groups > 1 and self.groups >= max(self.entering, self.leaving)


def bind_kernel(flow: Flow, name: str, owner: str, sizes: Sizes, entering: torch.Tensor) -> torch.Tensor:
    """Bind the axes of a convolution's weight, known by its canonical name. Returns labels of the output's channels."""
    return kernel_labels(flow, owner, sizes, entering, flow.bound_axis(name, 0), partial(flow.bind_axis, name))


def kernel_labels(
    flow: Flow,
    owner: str,
    sizes: Sizes,
    entering: torch.Tensor,
    out: torch.Tensor | None,
    bind: Callable[[int, torch.Tensor], None],
) -> torch.Tensor:
    """Labels of a convolution's output channels: `out`, or new ones. `bind` is told those of the weight's axes."""
    if sizes.groups == 1:
        bind(1, entering)
        out = flow.fresh(sizes.leaving, owner) if out is None else out
    else:
        blocks = entering.reshape(sizes.groups, sizes.entering)
        flow.unite(blocks, blocks[:, :1] if sizes.whole else blocks[:1])
        if sizes.whole:
            out = blocks[:, 0].repeat_interleave(sizes.leaving)
        else:
            bind(1, blocks[0])
            out = flow.fresh(sizes.leaving, owner).repeat(sizes.groups) if out is None else out
    bind(0, out)
    return out


def kernel_macs(
    flow: Flow, node: fx.Node, sizes: Sizes, kernel: int, entering: torch.Tensor | None, out: torch.Tensor
) -> tuple[Term, ...]:
    """Multiply-adds of a convolution. `kernel`: its area; `entering`, `out`: labels of the weight's axes."""
    positions = flow.one(node).numel() // (sizes.groups * sizes.leaving)
    if sizes.whole:
        return per_slice(
            flow, node, Term(positions * kernel * sizes.entering * sizes.leaving, (out[:: sizes.leaving],))
        )
    assert entering is not None
    return per_slice(flow, node, Term(positions * kernel, (entering, out)))


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
        return value.new_empty((value.shape[0], module.out_channels, *sizes))

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        module = self._module(flow, node)
        channels = -module.weight.dim() + 1
        entering, outer = consumed(flow, node, channels)
        if outer is not None and any(size > 1 for size in outer.shape[channels:]):
            flow.freeze(outer, node, "units along an axis that the convolution runs over")
            outer = frozen((1,) * outer.dim())
        out = bind_kernel(flow, flow.parameter_name(node, "weight"), str(node.target), _sizes(module), entering)
        freeze_outer(flow, node, out, outer)
        flow.bind(node, "bias", 0, out)
        return along(out, channels, node.meta["value"].dim()) if outer is None else outer

    def equivariant_at(self, flow: Flow, node: fx.Node) -> bool:
        """Channels are of a group by their places, unless whole groups go together."""
        sizes = _sizes(self._module(flow, node))
        return sizes.groups == 1 or sizes.whole

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0],)

    def macs(self, flow: Flow, node: fx.Node) -> tuple[Term, ...]:
        module = self._module(flow, node)
        axes = flow.parameters[flow.parameter_name(node, "weight")]
        return kernel_macs(flow, node, _sizes(module), math.prod(module.kernel_size), axes.get(1), axes[0])

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        if _sizes(module).whole:
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
        sizes = _sizes(module)
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
        return along(out, channels, node.meta["value"].dim())

    def macs(self, flow: Flow, node: fx.Node) -> tuple[Term, ...]:
        module, value = self._module(flow, node), flow.one(node.all_input_nodes[0])
        sizes = _sizes(module)
        _, width_in, width_out = sizes
        positions = value.numel() // module.in_channels
        per_pair = positions * math.prod(module.kernel_size)
        axes = flow.parameters[flow.parameter_name(node, "weight")]
        if sizes.whole:
            return (Term(per_pair * width_in * width_out, (axes[0][::width_in],)),)
        return (Term(per_pair, (axes[0], axes[1])),)

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, _TRANSPOSED)
        if _sizes(module).whole:
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


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _sizes(module: nn.Module) -> Sizes:
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED))
    return Sizes(module.groups, module.in_channels // module.groups, module.out_channels // module.groups)


@rule(nn.Linear)
class Linear(Rule):
    """Fully connected layers, on the last axis."""

    zero = Zero.BREAKS
    affine = True
    equivariant = True
    parameters = ("weight", "bias")

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        assert isinstance(module, nn.Linear)
        fits = value.shape[-1:] == (module.in_features,) and value.dtype == module.weight.dtype
        return value.new_empty((*value.shape[:-1], module.out_features)) if fits else None

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        entering, outer = consumed(flow, node, -1)
        flow.bind(node, "weight", 1, entering)
        out = flow.bound(node, "weight", 0)
        if out is None:
            out = flow.fresh(node.meta["value"].shape[-1], str(node.target))
        freeze_outer(flow, node, out, outer)
        flow.bind(node, "weight", 0, out)
        flow.bind(node, "bias", 0, out)
        return along(out, -1, node.meta["value"].dim()) if outer is None else outer

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0],)

    def macs(self, flow: Flow, node: fx.Node) -> tuple[Term, ...]:
        axes = flow.parameters[flow.parameter_name(node, "weight")]
        return per_slice(flow, node, Term(flow.one(node).shape[:-1].numel(), (axes[1], axes[0])))

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, nn.Linear)
        module.out_features, module.in_features = module.weight.shape

    def samples(self) -> tuple[Sample, ...]:
        return (
            Sample(nn.Linear(6, 4), (2, 6), axis=-1),
            Sample(nn.Linear(6, 4, bias=False), (2, 3, 6), axis=-1),
        )


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
