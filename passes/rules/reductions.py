"""Reductions over axes: units along the others pass through; of some, units along the one that is reduced may go."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.label_arrays import Labels, frozen, is_wide
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Counting, Moved, Replacement, Rule, Zero
from fxcat.passes.rules.counting import (
    gated_amax,
    gated_amin,
    gated_logsumexp,
    gated_max,
    gated_mean,
    gated_min,
    gated_std,
    gated_std_mean,
    gated_var,
    gated_var_mean,
)
from fxcat.passes.rules.elementwise import broadcast
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.table import ASSERTING, rule


def _is_asserted(node: fx.Node) -> bool:
    """Whether a value is there for an assertion alone: of units that go, nothing is asserted any more."""
    ways = [u.target in ASSERTING or (u.target in _TRUTHS and _is_asserted(u)) for u in node.users]
    return bool(ways) and all(ways) and value_of(node).dtype == torch.bool


_TRUTHS = (torch.logical_not, torch.all, torch.any, "all", "any", "logical_not")


class _Reduction(Rule):
    """A reduction over axes without units keeps zeros."""

    zero = Zero.PRESERVES
    arguments = ("input", "dim")

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return self.reduced(flow, node, value_of(node).dim())

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
        labels = first = self.labels(flow, node)
        for axis in self.axes(node):
            first = first.narrow(axis, 0, 1)
        if first.numel() == 1 or first.shape == labels.shape:
            return labels
        flow.unite(labels, first)
        return first

    def labels(self, flow: Flow, node: fx.Node) -> torch.Tensor:
        """Labels of the input. Where they vary along several axes, what goes together by now tells along which units
        lie: heads, whose entries an attention has tied."""
        labels = flow.of(node.all_input_nodes[0])
        return flow.settled(labels) if is_wide(labels) else labels

    def over_units(self, flow: Flow, node: fx.Node, labels: torch.Tensor, dims: int) -> torch.Tensor:
        """Labels of the result where the input has units along an axis that is reduced: all are frozen."""
        if not _is_asserted(node):
            flow.freeze(labels, node, "reduced over the units")
        return frozen((1,) * dims)

    def axes(self, node: fx.Node) -> set[int]:
        """The axes that are reduced."""
        given = arguments(node, *self.arguments)
        chosen = given.get("dim", given.get("axis"))
        dims = value_of(node.all_input_nodes[0]).dim()
        if chosen is None or isinstance(chosen, bool):  # `x.var(False)`: unbiased or not, of all entries
            return set(range(dims))
        return {int(a) % dims for a in (chosen if isinstance(chosen, tuple | list) else (chosen,))}


@rule(torch.prod, "prod")
class Multiplied(_Reduction):
    """Products: over units they would change, since a dead one counts as zero."""


@rule(torch.nanmean, torch.nansum)
class WithoutNan(_Reduction):
    """Means and sums of what is a number."""


@rule(torch.argmax, "argmax", torch.argmin, "argmin")
@rule(torch.all, "all", torch.any, "any", torch.count_nonzero, "count_nonzero")
class Finding(_Reduction):
    """Places and truth values: no gate multiplies them."""

    zero = Zero.BREAKS


@rule(torch.aminmax, "aminmax")
class BothExtrema(_Reduction):
    """Minimum and maximum."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels = self.reduced(flow, node, value_of(node)[0].dim())
        return labels, labels

    def axes(self, node: fx.Node) -> set[int]:
        dims = value_of(node.all_input_nodes[0]).dim()
        given = node.kwargs.get("dim")
        return set(range(dims)) if given is None else {int(given) % dims}  # pyright: ignore[reportArgumentType]


class _OverOneAxis(_Reduction):
    """Where all units lie along an axis that is reduced, they may go."""

    def over_units(self, flow: Flow, node: fx.Node, labels: torch.Tensor, dims: int) -> torch.Tensor:
        return frozen((1,) * dims) if self.reduces_units(flow, node) else super().over_units(flow, node, labels, dims)

    def reduces_units(self, flow: Flow, node: fx.Node) -> bool:
        """Whether the op reduces the one axis with units, in a form in which they may go."""
        labels = self.labels(flow, node)
        reduced = any(labels.shape[a] > 1 for a in self.axes(node))
        return reduced and labels.numel() == max(labels.shape) and self.known_form(node)

    def known_form(self, node: fx.Node) -> bool:
        """Whether the call has no arguments that keep units from going."""
        return True


@rule(torch.logsumexp, "logsumexp")
class LogSumExp(_OverOneAxis):
    """log Σ exp: not zero for zeros."""

    zero = Zero.BREAKS

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        return Counting(gated_logsumexp, self.labels(flow, node)) if self.reduces_units(flow, node) else None


@rule(torch.amax, "amax", gated=gated_amax)
@rule(torch.amin, "amin", gated=gated_amin)
class Extremum(_OverOneAxis):
    """Maximum and minimum; over units, of the live ones."""

    def __init__(self, gated: Callable[..., Any]) -> None:
        self.gated = gated

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        return Counting(self.gated, self.labels(flow, node)) if self.reduces_units(flow, node) else None


@rule(torch.max, "max", gated=gated_max)
@rule(torch.min, "min", gated=gated_min)
class ExtremumWithPlace(Extremum):
    """Maximum and minimum along an axis, with its place; of two values; or of all elements."""

    keeps_infinity = True

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        value = value_of(node)
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

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        found = super().counting(flow, node)
        of_all = found is not None and isinstance(value_of(node), torch.Tensor)
        return Counting(_OF_ALL[self.gated], found.labels) if found is not None and of_all else found

    def known_form(self, node: fx.Node) -> bool:
        """Places would be counted among fewer."""
        values_only = all(u.target is operator.getitem and u.args[1] == 0 for u in node.users)
        return isinstance(value_of(node), torch.Tensor) or values_only


_OF_ALL: dict[Callable[..., Any], Callable[..., Any]] = {gated_max: gated_amax, gated_min: gated_amin}
"""The forms for all elements, which have no places."""


@rule(torch.median, "median", torch.nanmedian, "nanmedian", torch.mode, "mode")
class ElementWithPlace(_Reduction):
    """Median and mode along an axis, with their places; or of all elements."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        value = value_of(node)
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

    equivariant = True


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
        return frozen((1,) * value_of(node).dim())


@rule(torch.linalg.vector_norm)
class VectorNorm(Norm):
    """The same by another name."""

    arguments = ("x", "ord", "dim")
    power = "ord"


@rule(torch.mean, "mean", gated=gated_mean)
class Mean(_OverOneAxis):
    """Means; over units, of the live ones."""

    equivariant = True

    def __init__(self, gated: Callable[..., torch.Tensor]) -> None:
        self.gated = gated

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        return Counting(self.gated, self.labels(flow, node)) if self.reduces_units(flow, node) else None

    def known_form(self, node: fx.Node) -> bool:
        return node.kwargs.keys() <= {"input", "dim", "keepdim"}


@rule(torch.var, "var", gated=gated_var)
@rule(torch.std, "std", gated=gated_std)
class Spread(Mean):
    """Variances and standard deviations; over units, of the live ones. An unbiased one of as few entries as it takes
    off is not defined: then it takes off one less than there are."""

    def known_form(self, node: fx.Node) -> bool:
        return node.kwargs.keys() <= {"input", "dim", "unbiased", "correction", "keepdim"}

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        source = node.all_input_nodes[0]
        sizes, left = value_of(source).shape, moved.source
        given, axes = arguments(node, "input", "dim", "unbiased", "keepdim"), self.axes(node)
        entries = math.prod(sizes[a] if (live := left[a]) is None else len(live) for a in axes)
        unbiased = given["dim"] if isinstance(given.get("dim"), bool) else given.get("unbiased", True)
        if not 0 < entries <= given.get("correction", int(unbiased)):
            return None
        kept = {"keepdim": given.get("keepdim", False), "correction": entries - 1}
        return Replacement((source,), {"dim": sorted(axes), **kept})


@rule(torch.var_mean, gated=gated_var_mean)
@rule(torch.std_mean, gated=gated_std_mean)
class SpreadAndMean(Spread):
    """Both."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels = self.reduced(flow, node, value_of(node)[0].dim())
        return labels, labels


@rule(torch.quantile, "quantile", torch.nanquantile, "nanquantile")
class Quantile(_Reduction):
    """One quantile, of values along an axis or of all."""

    arguments = ("input", "q", "dim", "keepdim")

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        if isinstance(arguments(node, *self.arguments)["q"], int | float):
            return super().flow(flow, node)
        flow.freeze(flow.of(node.all_input_nodes[0]), node, "several quantiles at once")
        return frozen((1,) * value_of(node).dim())


@rule(F.cosine_similarity)
class Similarity(_Additive):
    """Cosines of the angles between vectors of one shape."""

    def reduced(self, flow: Flow, node: fx.Node, dims: int) -> torch.Tensor:
        given = self.pair(node)
        if value_of(given[0]).shape != value_of(given[1]).shape:
            flow.freeze(tuple(flow.values[g] for g in given), node, "similarity of values of other shapes")
            return frozen((1,) * dims)
        flow.unite(flow.of(given[0]), flow.of(given[1]))
        return super().reduced(flow, node, dims)

    def axes(self, node: fx.Node) -> set[int]:
        chosen: Any = arguments(node, "x1", "x2", "dim").get("dim", 1)
        return {chosen % value_of(self.pair(node)[0]).dim()}

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return self.pair(node) if self.reduces_units(flow, node) else ()

    @staticmethod
    def pair(node: fx.Node) -> tuple[fx.Node, fx.Node]:
        """The two values."""
        given = arguments(node, "x1", "x2", "dim")
        return given["x1"], given["x2"]
