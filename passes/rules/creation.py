"""New values that another value gives type, device or shape."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx, nn

from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.label_arrays import Labels, along, frozen
from fxcat.passes.graph.meta import path_of, value_of
from fxcat.passes.rules.base import Moved, Replacement, Rule, Zero
from fxcat.passes.rules.elementwise import broadcast
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.sizes import asked_sizes, is_width, shape_read, sizes_left, units_of_size
from fxcat.passes.rules.table import rule


def _of_sizes(flow: Flow, node: fx.Node, sizes: Any) -> torch.Tensor:
    """Labels of a new value of some sizes: where one of them is the size of an axis with units, it has these units."""
    dims = value_of(node).dim()
    whole = shape_read(sizes)
    if whole is not None:
        labels = flow.values.get(whole)
        return labels if isinstance(labels, torch.Tensor) else frozen((1,) * dims)
    if not isinstance(sizes, tuple | list):
        return frozen((1,) * dims)
    found = {axis: units for axis, size in enumerate(sizes) if (units := units_of_size(flow, size)) is not None}
    first = min(found, default=None)
    if first is None:
        # all entries are alike: what meets them tells whether they are units
        written = [a for a, size in enumerate(sizes) if isinstance(size, int) and size > 1]
        if len(written) != 1 or len(sizes) != dims:
            return frozen((1,) * dims)
        return along(flow.fresh(sizes[written[0]], path_of(node), producer=False), written[0], dims)
    for axis in found.keys() - {first}:
        flow.freeze(found[axis], node, "a new value with units along two axes")
    return along(found[first], first, dims)


class _New(Rule):
    """A new value. `sizes_at`: position of its sizes among the arguments."""

    def __init__(self, sizes_at: int) -> None:
        self.sizes_at = sizes_at

    def sizes(self, node: fx.Node) -> Any:
        """The sizes among the arguments."""
        if "size" in node.kwargs:
            return node.kwargs["size"]
        given: Any = node.args[self.sizes_at :]
        return given[0] if given and not isinstance(given[0], int) and not _is_number(given[0]) else given

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return _of_sizes(flow, node, self.sizes(node))

    def infinite_at(self, flow: Flow, node: fx.Node) -> bool:
        return any(isinstance(a, float) and math.isinf(a) for a in (*node.args, *node.kwargs.values()))

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        """Sizes that are read from values with the same units change with them; others keep the number they had."""
        given = self.sizes(node)
        if shape_read(given) is not None and tuple(moved.number(given)) == moved.shape:
            return None
        sizes = sizes_left(given, moved.shape, moved)
        options = {k: v for k, v in node.kwargs.items() if k != "size"}
        one = "size" in node.kwargs or given is node.args[self.sizes_at]
        after = node.args[self.sizes_at + ("size" not in node.kwargs) :] if one else ()
        return Replacement((*node.args[: self.sizes_at], sizes, *after), options)


def _is_number(argument: Any) -> bool:
    return isinstance(argument, fx.Node) and isinstance(value_of(argument), int)


@rule(torch.zeros, torch.ones, torch.empty, torch.full, sizes_at=0)
@rule("new_zeros", "new_ones", "new_full", "new_empty", sizes_at=1)
@rule(torch.rand, torch.randn, sizes_at=0)
class Creation(_New):
    """Values of some sizes."""


@rule(torch.arange, torch.linspace, torch.logspace, torch.eye)
class Table(Rule):
    """Numbers in a row, or a unit matrix. As many as there are channels are the same in every pass, as a buffer is."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        asked = [a for i in node.all_input_nodes if _is_number(i) for a in asked_sizes(i)]
        if asked and all(is_width(flow, tensor, axis) for tensor, axis in asked):
            flow.tables.append(node)
        return frozen((1,) * value_of(node).dim())


@rule("new_tensor", torch.randperm)
class NewTensor(Rule):
    """Values of their own."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return frozen((1,) * value_of(node).dim())


@rule(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like)
@rule(torch.rand_like, torch.randn_like, torch.randint_like)
class Alike(Rule):
    """Values of another's shape, and so with its units."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return flow.of(node.all_input_nodes[0])

    def infinite_at(self, flow: Flow, node: fx.Node) -> bool:
        return node.target is torch.full_like


@rule(torch.bernoulli, "bernoulli")
class Bernoulli(Alike):
    """Ones, with one probability for all, or with those that a value holds: none where that is zero."""

    def zero_at(self, node: fx.Node) -> Zero:
        return Zero.BREAKS if "p" in arguments(node, "input", "p") else Zero.PRESERVES


@rule(*(f"{name}_" for name in ("normal", "uniform", "exponential", "random", "cauchy", "geometric", "log_normal")))
@rule("bernoulli_", nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_)
class Drawn(Rule):
    """Numbers that are drawn anew, in the place of values, or for parameters of their distribution."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return broadcast(flow, node)


@rule(torch.normal, torch.randint)
class DrawnOfSizes(_New):
    """Numbers that are drawn, of sizes that stand behind the parameters of their distribution; or one for every entry
    of these."""

    def __init__(self) -> None:
        super().__init__(0)

    def sizes(self, node: fx.Node) -> Any:
        at = self._place(node)
        return node.args[at] if at < len(node.args) else node.kwargs.get("size")

    def _place(self, node: fx.Node) -> int:
        numbers = (i for i, a in enumerate(node.args) if not (isinstance(a, int | float) or _is_number(a)))
        return next(numbers, len(node.args))

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return broadcast(flow, node) if self._has_parameters(node) else super().flow(flow, node)

    def _has_parameters(self, node: fx.Node) -> bool:
        given = (node.args[0] if node.args else None, node.kwargs.get("mean"), *node.args[1:2], node.kwargs.get("std"))
        return any(isinstance(a, fx.Node) and isinstance(value_of(a), torch.Tensor) for a in given)

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        if self._has_parameters(node):
            return None
        given, at = self.sizes(node), self._place(node)
        if shape_read(given) is not None and tuple(moved.number(given)) == moved.shape:
            return None
        before = (*node.args[:at], *(node.kwargs[k] for k in _OF_DISTRIBUTIONS if k in node.kwargs))
        options = {k: v for k, v in node.kwargs.items() if k != "size" and k not in _OF_DISTRIBUTIONS}
        return Replacement((*before, sizes_left(given, moved.shape, moved), *node.args[at + 1 :]), options)


_OF_DISTRIBUTIONS = ("mean", "std", "low", "high")
