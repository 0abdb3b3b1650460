"""Pooling and other reductions over positions: channels pass through."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcat.passes.arguments import arguments
from fxcat.passes.arrays import frozen
from fxcat.passes.rules.counting import (
    gated_amax,
    gated_amin,
    gated_max,
    gated_mean,
    gated_min,
    gated_std,
    gated_std_mean,
    gated_var,
    gated_var_mean,
    spared_windows,
)
from fxcat.passes.rules.elementwise import broadcast
from fxcat.passes.rules.table import ASSERTING, Counting, Labels, Rule, Sample, Zero, rule

if TYPE_CHECKING:
    from fxcat.passes.labels import Flow


def channelwise(flow: Flow, node: fx.Node, spatial: int) -> torch.Tensor:
    """Labels of an op that works on each channel apart and changes only the last `spatial` axes."""
    source = node.all_input_nodes[0]
    labels = flow.of(source)
    first = labels
    for axis in range(labels.dim() - spatial, labels.dim()):
        first = first.narrow(axis, 0, 1)
    if first.shape == labels.shape:
        return labels
    flow.unite(labels, first)
    if first.numel() == 1:
        flow.freeze(labels, node, "units along an axis that pooling mixes")
    return first


@rule(nn.MaxPool1d, F.max_pool1d, spatial=1, window="maximum")
@rule(nn.MaxPool2d, F.max_pool2d, spatial=2, window="maximum")
@rule(nn.MaxPool3d, F.max_pool3d, spatial=3, window="maximum")
@rule(nn.AvgPool1d, F.avg_pool1d, spatial=1, window="average")
@rule(nn.AvgPool2d, F.avg_pool2d, spatial=2, window="average")
@rule(nn.AvgPool3d, F.avg_pool3d, spatial=3, window="average")
@rule(nn.AdaptiveMaxPool1d, F.adaptive_max_pool1d, nn.AdaptiveAvgPool1d, F.adaptive_avg_pool1d, spatial=1)
@rule(nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d, nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d, spatial=2)
@rule(nn.AdaptiveMaxPool3d, F.adaptive_max_pool3d, nn.AdaptiveAvgPool3d, F.adaptive_avg_pool3d, spatial=3)
@rule(nn.UpsamplingNearest2d, spatial=2)
@rule(F.max_pool1d_with_indices, F.adaptive_max_pool1d_with_indices, spatial=1, window="maximum")
@rule(F.max_pool2d_with_indices, F.adaptive_max_pool2d_with_indices, spatial=2, window="maximum")
@rule(F.max_pool3d_with_indices, F.adaptive_max_pool3d_with_indices, spatial=3, window="maximum")
class Pool(Rule):
    """Max and average pooling: a window of zeros gives zero. Indices, where they are asked for too, have the same
    channels. `window`: what is taken of one that slides; None of
    others."""

    zero = Zero.PRESERVES

    def __init__(self, spatial: int, window: Literal["maximum", "average"] | None = None) -> None:
        self.spatial, self.window = spatial, window

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        size = getattr(module, "output_size", None)
        if not isinstance(module, nn.AdaptiveAvgPool2d) or value.dim() != 4:
            return None
        sizes = size if isinstance(size, tuple) else (size, size)
        return value.new_empty(
            (*value.shape[:2], *(n if s is None else s for n, s in zip(value.shape[2:], sizes, strict=True)))
        )

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels = channelwise(flow, node, self.spatial)
        return labels if isinstance(node.meta["value"], torch.Tensor) else (labels, labels)

    def samples(self) -> tuple[Sample, ...]:
        if self.spatial != 2 or self.window is None:
            return ()
        return (
            Sample(nn.MaxPool2d(3, 2, 1), (2, 6, 5, 5)),
            Sample(nn.AvgPool2d(2), (2, 6, 4, 4)),
            Sample(nn.AdaptiveAvgPool2d(1), (2, 6, 4, 4)),
        )


@rule(F.max_unpool1d, spatial=1)
@rule(F.max_unpool2d, spatial=2)
@rule(F.max_unpool3d, spatial=3)
class Unpool(Rule):
    """Values go back to where pooling found them."""

    zero = Zero.PRESERVES

    def __init__(self, spatial: int) -> None:
        self.spatial = spatial

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source, places = node.all_input_nodes[:2]
        flow.unite(flow.of(source), flow.of(places))
        return channelwise(flow, node, self.spatial)

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return tuple(node.all_input_nodes[:1])


@rule(F.lp_pool1d, spatial=1, function=F.lp_pool1d)
@rule(F.lp_pool2d, spatial=2, function=F.lp_pool2d)
@rule(F.lp_pool3d, spatial=3, function=F.lp_pool3d)
class PowerPool(Rule):
    """p-norms of windows, whose gradients are not finite where all is zero."""

    zero = Zero.BREAKS

    def __init__(self, spatial: int, function: Callable[..., torch.Tensor]) -> None:
        self.spatial, self.function = spatial, function

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels = channelwise(flow, node, self.spatial)
        if labels.shape[0] > 1:
            flow.freeze(labels, node, "units along the batch axis in what is not finite at zero")
        return labels

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        labels = flow.of(node)
        return Counting(spared_windows(self.function), labels) if labels.shape[0] == 1 < labels.numel() else None


@rule(F.interpolate, nn.Upsample, nn.UpsamplingBilinear2d)
class Resample(Rule):
    """Interpolation: every channel apart; zeros give zeros."""

    zero = Zero.PRESERVES

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return channelwise(flow, node, node.meta["value"].dim() - 2)

    def samples(self) -> tuple[Sample, ...]:
        return (Sample(nn.Upsample(scale_factor=2), (2, 6, 3, 3)),)


def _entries_of_batch(flow: Flow, labels: torch.Tensor) -> torch.Tensor:
    """Labels of a value's entries along the batch axis, which go as a whole."""
    entries = labels
    for axis in range(1, labels.dim()):
        entries = entries.narrow(axis, 0, 1)
    flow.unite(labels, entries)
    return entries


@rule(F.grid_sample)
class GridSample(Rule):
    """grid_sample: every channel apart, at positions that have no units. Heads that were folded into the batch axis of
    both go as a whole."""

    zero = Zero.PRESERVES

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        given = arguments(node, "input", "grid")
        image, grid = flow.of(given["input"]), flow.of(given["grid"])
        if image.shape[0] > 1 and grid.shape[0] > 1:
            heads, positions = (_entries_of_batch(flow, labels) for labels in (image, grid))
            flow.unite(heads, positions)
            return heads
        flow.freeze(grid, node, "positions of a grid")
        flow.unite(image, image.narrow(0, 0, 1))
        if image.numel() == image.shape[0]:
            flow.freeze(image, node, "units along the batch axis, and none along that of the grid")
        return channelwise(flow, node, node.meta["value"].dim() - 2).narrow(0, 0, 1)

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (arguments(node, "input", "grid")["input"],)


def _is_asserted(node: fx.Node) -> bool:
    """Whether a value is there for an assertion alone: of units that go, nothing is asserted any more."""
    ways = [u.target in ASSERTING or (u.target in _TRUTHS and _is_asserted(u)) for u in node.users]
    return bool(ways) and all(ways) and node.meta["value"].dtype == torch.bool


_TRUTHS = (torch.logical_not, torch.all, torch.any, "all", "any", "logical_not")


class _Reduction(Rule):
    """A reduction over axes without units keeps zeros."""

    zero = Zero.PRESERVES
    arguments = ("input", "dim")

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return self.reduced(flow, node, node.meta["value"].dim())

    def reduced(self, flow: Flow, node: fx.Node, dims: int) -> torch.Tensor:
        """Labels of a result with so many axes."""
        labels, axes = self.apart(flow, node), self.axes(node)
        if any(labels.shape[a] > 1 for a in axes):
            return self.over_units(flow, node, labels, dims)
        if dims == labels.dim():
            return labels
        return labels.reshape([s for a, s in enumerate(labels.shape) if a not in axes])

    def apart(self, flow: Flow, node: fx.Node) -> torch.Tensor:
        """Labels of the input. Where axes that stay have units, a unit is all that lies along those that go: so it
        is where values are stacked."""
        labels = first = flow.of(node.all_input_nodes[0])
        for axis in self.axes(node):
            first = first.narrow(axis, 0, 1)
        if first.numel() == 1 or first.shape == labels.shape:
            return labels
        flow.unite(labels, first)
        return first

    def over_units(self, flow: Flow, node: fx.Node, labels: torch.Tensor, dims: int) -> torch.Tensor:
        """Labels of the result where the input has units along an axis that is reduced: all are frozen."""
        if not _is_asserted(node):
            flow.freeze(labels, node, "reduced over the units")
        return frozen((1,) * dims)

    def axes(self, node: fx.Node) -> set[int]:
        """The axes that are reduced."""
        given = arguments(node, *self.arguments)
        chosen = given.get("dim", given.get("axis"))
        dims = node.all_input_nodes[0].meta["value"].dim()
        if chosen is None:
            return set(range(dims))
        return {int(a) % dims for a in (chosen if isinstance(chosen, tuple | list) else (chosen,))}


@rule(torch.prod, "prod")
class Multiplied(_Reduction):
    """Products: over units they would change, since a dead one counts as zero."""


@rule(torch.argmax, "argmax", torch.argmin, "argmin")
@rule(torch.all, "all", torch.any, "any", torch.count_nonzero, "count_nonzero")
class Finding(_Reduction):
    """Places and truth values: no gate multiplies them."""

    zero = Zero.BREAKS


@rule(torch.logsumexp, "logsumexp")
class LogSumExp(_Reduction):
    """log Σ exp: not zero for zeros."""

    zero = Zero.BREAKS


@rule(torch.aminmax, "aminmax")
class BothExtrema(_Reduction):
    """Minimum and maximum."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels = self.reduced(flow, node, node.meta["value"][0].dim())
        return labels, labels

    def axes(self, node: fx.Node) -> set[int]:
        dims = node.all_input_nodes[0].meta["value"].dim()
        given = node.kwargs.get("dim")
        return set(range(dims)) if given is None else {int(given) % dims}  # pyright: ignore[reportArgumentType]


class _OverOneAxis(_Reduction):
    """Where all units lie along an axis that is reduced, they may go."""

    def over_units(self, flow: Flow, node: fx.Node, labels: torch.Tensor, dims: int) -> torch.Tensor:
        return frozen((1,) * dims) if self.reduces_units(flow, node) else super().over_units(flow, node, labels, dims)

    def reduces_units(self, flow: Flow, node: fx.Node) -> bool:
        """Whether the op reduces the one axis with units, in a form in which they may go."""
        labels = flow.of(node.all_input_nodes[0])
        reduced = any(labels.shape[a] > 1 for a in self.axes(node))
        return reduced and labels.numel() == max(labels.shape) and self.known_form(node)

    def known_form(self, node: fx.Node) -> bool:
        """Whether the call has no arguments that keep units from going."""
        return True


@rule(torch.amax, "amax", gated=gated_amax)
@rule(torch.amin, "amin", gated=gated_amin)
class Extremum(_OverOneAxis):
    """Maximum and minimum; over units, of the live ones."""

    def __init__(self, gated: Callable[..., Any]) -> None:
        self.gated = gated

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        return Counting(self.gated, flow.of(node.all_input_nodes[0])) if self.reduces_units(flow, node) else None


@rule(torch.max, "max", gated=gated_max)
@rule(torch.min, "min", gated=gated_min)
class ExtremumWithPlace(Extremum):
    """Maximum and minimum along an axis, with its place; of two values; or of all elements."""

    keeps_infinity = True

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        value = node.meta["value"]
        if isinstance(value, torch.Tensor):
            return broadcast(flow, node) if self.is_of_two(node) else super().flow(flow, node)
        labels = self.reduced(flow, node, value[0].dim())
        return labels, labels

    def reduces_units(self, flow: Flow, node: fx.Node) -> bool:
        return not self.is_of_two(node) and super().reduces_units(flow, node)

    @staticmethod
    def is_of_two(node: fx.Node) -> bool:
        """Whether it is the maximum of two values."""
        return len(node.all_input_nodes) > 1 and "other" in arguments(node, "input", "other", "dim")

    def known_form(self, node: fx.Node) -> bool:
        """Places would be counted among fewer, and those of all elements say nothing of an axis."""
        values_only = all(u.target is operator.getitem and u.args[1] == 0 for u in node.users)
        return not isinstance(node.meta["value"], torch.Tensor) and values_only


@rule(torch.median, "median", torch.nanmedian, "nanmedian", torch.mode, "mode")
class ElementWithPlace(_Reduction):
    """Median and mode along an axis, with their places; or of all elements."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        value = node.meta["value"]
        if isinstance(value, torch.Tensor):
            return super().flow(flow, node)
        labels = self.reduced(flow, node, value[0].dim())
        return labels, labels


class _Additive(_OverOneAxis):
    """What is zero adds nothing."""

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return tuple(node.all_input_nodes[:1]) if self.reduces_units(flow, node) else ()


@rule(torch.sum, "sum")
class Total(_Additive):
    """Sums."""


@rule(torch.norm, "norm")
class Norm(_Additive):
    """p-norms of vectors."""

    arguments = ("input", "p", "dim")
    power = "p"

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        power = arguments(node, *self.arguments).get(self.power, 2)
        if power in (None, "fro") or (isinstance(power, int | float) and power >= 1):
            return super().flow(flow, node)
        flow.freeze(flow.of(node.all_input_nodes[0]), node, "units in a norm that zeros or their gradients change")
        return frozen((1,) * node.meta["value"].dim())


@rule(torch.linalg.vector_norm)
class VectorNorm(Norm):
    """The same by another name."""

    arguments = ("x", "ord", "dim")
    power = "ord"


@rule(torch.mean, "mean", gated=gated_mean)
class Mean(_OverOneAxis):
    """Means; over units, of the live ones."""

    def __init__(self, gated: Callable[..., torch.Tensor]) -> None:
        self.gated = gated

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        return Counting(self.gated, flow.of(node.all_input_nodes[0])) if self.reduces_units(flow, node) else None

    def known_form(self, node: fx.Node) -> bool:
        return node.kwargs.keys() <= {"input", "dim", "keepdim"}


@rule(torch.var, "var", gated=gated_var)
@rule(torch.std, "std", gated=gated_std)
class Spread(Mean):
    """Variances and standard deviations; over units, of the live ones. Unbiased ones of one unit are not defined."""

    def known_form(self, node: fx.Node) -> bool:
        given = arguments(node, "input", "dim", "unbiased", "keepdim")
        named = node.kwargs.keys() <= {"input", "dim", "unbiased", "correction", "keepdim"}
        return named and not given.get("correction", int(given.get("unbiased", True)))


@rule(torch.var_mean, gated=gated_var_mean)
@rule(torch.std_mean, gated=gated_std_mean)
class SpreadAndMean(Spread):
    """Both."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels = self.reduced(flow, node, node.meta["value"][0].dim())
        return labels, labels


@rule(torch.quantile, "quantile", torch.nanquantile, "nanquantile")
class Quantile(_Reduction):
    """One quantile, of values along an axis or of all."""

    arguments = ("input", "q", "dim", "keepdim")

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        if isinstance(arguments(node, *self.arguments)["q"], int | float):
            return super().flow(flow, node)
        flow.freeze(flow.of(node.all_input_nodes[0]), node, "several quantiles at once")
        return frozen((1,) * node.meta["value"].dim())
