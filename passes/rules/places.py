"""Ops that look up, order or write elements along one axis: units may lie along the others.

Places are integers: no gate multiplies them, but they have the units of the values that they belong to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from fxcat.passes.graph.arguments import arguments, thaw
from fxcat.passes.graph.label_arrays import Labels, frozen
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Rule, Zero
from fxcat.passes.rules.elementwise import broadcast
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.product import whole_slices
from fxcat.passes.rules.table import rule


class _AlongAxis(Rule):
    """An op whose result has the axes of its input, and mixes what lies along one of them."""

    zero = Zero.PRESERVES
    names: tuple[str, ...] = ("input", "dim")
    default: int | None = -1

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels = whole_slices(flow, node, *self.axes(node))
        value = value_of(node)
        return labels if isinstance(value, torch.Tensor) else (labels,) * len(value)

    def axes(self, node: fx.Node) -> Sequence[int]:
        """The axes that are mixed."""
        chosen = arguments(node, *self.names).get("dim", self.default)
        dims = value_of(node.all_input_nodes[0]).dim()
        if chosen is None:
            return range(dims)
        return [thaw(a) for a in (chosen if isinstance(chosen, tuple | list) else (chosen,))]


@rule(torch.sort, "sort", torch.cummax, "cummax", torch.cummin, "cummin")
class Sorted(_AlongAxis):
    """Values in order, or the largest and smallest so far, with their places."""


@rule(torch.msort, "msort")
class SortedFirst(_AlongAxis):
    """Values in order along the first axis."""

    default = 0


@rule(torch.topk, "topk", torch.kthvalue, "kthvalue")
class Largest(_AlongAxis):
    """The k largest values, or the k-th, with their places."""

    names = ("input", "k", "dim", "keepdim")

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels = whole_slices(flow, node, *self.axes(node))
        if value_of(node)[0].dim() < labels.dim():  # labels are of size 1 along that axis
            labels = labels.squeeze(self.axes(node)[0])
        return labels, labels


@rule(torch.argsort, "argsort")
class Order(_AlongAxis):
    """Places in order."""

    zero = Zero.BREAKS


@rule(torch.tril, torch.triu)
class Triangle(_AlongAxis):
    """One half of matrices."""

    def axes(self, node: fx.Node) -> Sequence[int]:
        return -2, -1


@rule(torch.diagonal)
class Diagonal(_AlongAxis):
    """Diagonals of matrices, along a new last axis."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels = whole_slices(flow, node, *self.axes(node))
        axes = {a % labels.dim() for a in self.axes(node)}
        return labels.reshape([n for a, n in enumerate(labels.shape) if a not in axes] + [1])

    def axes(self, node: fx.Node) -> Sequence[int]:
        given = arguments(node, "input", "offset", "dim1", "dim2")
        return given.get("dim1", 0), given.get("dim2", 1)


@rule(torch.diff, "diff")
class Differences(_AlongAxis):
    """Differences of neighbours."""

    names = ("input", "n", "dim", "prepend", "append")

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels = whole_slices(flow, node, *self.axes(node))
        for other in node.all_input_nodes[1:]:
            flow.unite(labels, flow.of(other))
        return labels


@rule(*(torch.fft.fft, torch.fft.ifft, torch.fft.rfft, torch.fft.irfft, torch.fft.hfft, torch.fft.ihfft))
class Fourier(_AlongAxis):
    """Fourier transforms along one axis."""

    names = ("input", "n", "dim", "norm")


@rule(*(torch.fft.fft2, torch.fft.ifft2, torch.fft.rfft2, torch.fft.irfft2))
class FourierOfImages(_AlongAxis):
    """Fourier transforms along two axes."""

    names = ("input", "s", "dim", "norm")

    def axes(self, node: fx.Node) -> Sequence[int]:
        given = arguments(node, *self.names)
        return super().axes(node) if "dim" in given else (-2, -1)


@rule(*(torch.fft.fftn, torch.fft.ifftn, torch.fft.rfftn, torch.fft.irfftn))
class FourierOfAll(_AlongAxis):
    """Fourier transforms along several axes."""

    names = ("input", "s", "dim", "norm")
    default = None

    def axes(self, node: fx.Node) -> Sequence[int]:
        given = arguments(node, *self.names)
        sizes = thaw(given.get("s"))
        if sizes is not None and given.get("dim") is None:
            return range(-len(sizes), 0)
        return super().axes(node)


@rule(torch.fft.fftshift, torch.fft.ifftshift)
class FourierShift(_AlongAxis):
    """Frequencies in another order."""

    default = None


@rule(torch.view_as_real)
class AsReal(Rule):
    """Complex numbers as pairs, along a new last axis."""

    zero = Zero.PRESERVES
    views = True

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return flow.of(node.all_input_nodes[0]).unsqueeze(-1)


@rule(torch.view_as_complex)
class AsComplex(Rule):
    """Pairs as complex numbers."""

    zero = Zero.PRESERVES
    views = True

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return whole_slices(flow, node, -1).squeeze(-1)


@rule("unfold")
class Windows(Rule):
    """Windows along an axis, with their elements along a new last axis."""

    zero = Zero.PRESERVES
    views = True
    keeps_infinity = True

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return whole_slices(flow, node, arguments(node, "input", "dimension")["dimension"]).unsqueeze(-1)


class _ByPlace(Rule):
    """Elements of the first input along one axis, by the places that another one holds."""

    zero = Zero.PRESERVES
    names: tuple[str, ...] = ()
    reason = "units along an axis that is looked up"

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0],)

    def apart(self, flow: Flow, node: fx.Node, axis: int, others: Sequence[fx.Node]) -> torch.Tensor:
        """Labels of all these values, which have the same units along all axes but one; and none along that."""
        source = node.all_input_nodes[0]
        kept = whole_slices(flow, node, axis, reason=self.reason)
        axis %= kept.dim()
        size = value_of(source).shape
        for other in others:
            labels, shape = flow.of(other), value_of(other).shape
            if labels.shape[axis] > 1 or any(
                a != axis and max(kept.shape[a], labels.shape[a]) > 1 and size[a] != shape[a] for a in range(len(size))
            ):
                flow.freeze((kept, labels), node, self.reason)
                return frozen((1,) * kept.dim())
            if labels.numel() == 1:
                flow.freeze(kept, node, "places or values without units")
            flow.unite(kept, labels)
            kept = min(kept, labels, key=lambda x: x.numel())
        return kept


@rule(torch.gather, "gather")
class Gather(_ByPlace):
    """gather: the places have the units of the values."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        given = arguments(node, "input", "dim", "index")
        return self.apart(flow, node, thaw(given["dim"]), (given["index"],))


@rule(torch.take_along_dim, "take_along_dim")
class TakeAlong(_ByPlace):
    """take_along_dim: the places are broadcast to the values."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        given = arguments(node, "input", "indices", "dim")
        if given.get("dim") is None:
            for used in node.all_input_nodes:
                flow.freeze(flow.values[used], node, self.reason)
            return frozen((1,) * value_of(node).dim())
        whole_slices(flow, node, thaw(given["dim"]))
        return broadcast(flow, node)


@rule(*(torch.scatter, "scatter", "scatter_", torch.scatter_add, "scatter_add", "scatter_add_"))
@rule(torch.scatter_reduce, "scatter_reduce", "scatter_reduce_")
class Scatter(_ByPlace):
    """Values are written, or added, to places along an axis."""

    reason = "units along an axis that is written to"

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        given = arguments(node, "input", "dim", "index", "src")
        others = [given["index"], given.get("src", given.get("value"))]
        return self.apart(flow, node, thaw(given["dim"]), [o for o in others if isinstance(o, fx.Node)])

    def zero_at(self, node: fx.Node) -> Zero:
        given = arguments(node, "input", "dim", "index", "src")
        return Zero.PRESERVES if isinstance(given.get("src"), fx.Node) else Zero.BREAKS

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return node.all_input_nodes[0], arguments(node, "input", "dim", "index", "src")["src"]


@rule(torch.index_add, "index_add", "index_add_", torch.index_copy, "index_copy", "index_copy_")
class IndexAdd(_ByPlace):
    """Slices are written, or added, to places along an axis."""

    reason = "units along an axis that is written to"

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        given = arguments(node, "input", "dim", "index", "source")
        return self.apart(flow, node, thaw(given["dim"]), (given["source"],))

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return node.all_input_nodes[0], arguments(node, "input", "dim", "index", "source")["source"]


@rule(torch.index_fill, "index_fill", "index_fill_")
class IndexFill(_ByPlace):
    """A number in some slices."""

    zero = Zero.BREAKS

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return self.apart(flow, node, thaw(arguments(node, "input", "dim")["dim"]), ())
