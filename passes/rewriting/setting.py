"""What one 0/1 setting of all gates leaves of values: surviving indices, shapes, and numbers computed from these."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from fxcat.errors import PlanError
from fxcat.passes.graph.label_arrays import Grid, Labels, place
from fxcat.passes.graph.meta import value_of
from fxcat.passes.work import Analysis


class Setting:
    """Surviving indices, for one 0/1 setting."""

    def __init__(self, analysis: Analysis, units: torch.Tensor) -> None:
        self.analysis = analysis
        self._numbers: dict[fx.Node, Any] = {}
        self._left: dict[fx.Node, Any] = {}
        # the last entry answers for NO_UNIT = -1
        self.open = torch.cat([units.bool().cpu(), torch.ones(1, dtype=torch.bool)])

    def live(self, labels: torch.Tensor) -> torch.Tensor | None:
        """Surviving indices of a 1-D label array, None if all survive."""
        alive = self.open[self.analysis.units.of_label[labels]]
        return None if bool(alive.all()) else alive.nonzero().reshape(-1)

    def live_axes(self, node: fx.Node, labels: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor | None, ...]:
        """Surviving indices of every axis of a value. Raises `PlanError` if they are not a rectangle."""
        if not labels.numel():
            return (None,) * len(shape)  # of a layer of width 0
        alive = self.open[self.analysis.units.of_label[labels]]
        if bool(alive.all()):
            return (None,) * alive.dim()
        if not bool(alive.any()):
            axes = self.analysis.units.of(labels).shape  # only along axes with units nothing is left
            return tuple(torch.empty(0, dtype=torch.long) if size > 1 else None for size in axes)
        result: list[torch.Tensor | None] = [None] * alive.dim()
        long = [axis for axis, size in enumerate(alive.shape) if size > 1]  # units lie along these alone
        kept = 1
        for axis in long:
            others = tuple(a for a in long if a != axis)
            some = (alive.any(dim=others) if others else alive).reshape(-1)
            index = result[axis] = None if bool(some.all()) else some.nonzero().reshape(-1)
            kept *= len(some) if index is None else len(index)
        if int(alive.sum()) != kept:
            raise PlanError("the surviving part of a value is not a rectangle", where=place(node))
        return tuple(result)

    def is_empty(self, node: fx.Node) -> bool:
        """Whether nothing is left of a node's tensor."""
        labels = self.analysis.labels.values.get(node)
        return (
            isinstance(labels, torch.Tensor)
            and labels.numel() > 0
            and not bool(self.open[self.analysis.units.of_label[labels]].any())
        )

    def is_whole_group(self, node: fx.Node) -> bool:
        """Whether all units of a group are among those of a node's tensor."""
        return holds_group(self.analysis, self.analysis.labels.of(node))

    def groups(self, node: fx.Node) -> list[str]:
        """The names of the groups whose units lie in a node's tensor."""
        numbers = set(self.analysis.units.of_label[self.analysis.labels.of(node)].reshape(-1).tolist())
        groups = self.analysis.units.groups
        return [g.name for g in groups if not numbers.isdisjoint(range(g.start, g.start + g.count))]

    def width(self, node: fx.Node) -> int:
        """How many channels are left of a node's tensor."""
        return self.shape(node)[1]

    def of_value(self, node: fx.Node) -> Any:
        """Surviving indices of every axis of a node's tensor, or of those in its tuple. Not to be written to."""
        if node not in self._left:
            self._left[node] = self._of(node, self.analysis.labels.values[node], value_of(node))
        return self._left[node]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """What is left of the shape of a node's tensor."""
        return tuple(n if x is None else len(x) for n, x in zip(value_of(node).shape, self.of_value(node), strict=True))

    def number(self, node: fx.Node) -> Any:
        """What a node that computes a number, from sizes, gives after removal."""
        value = value_of(node)
        if isinstance(value, torch.Tensor):
            shape = self.shape(node) if self.analysis.labels.values.get(node) is not None else self._shape_bound(node)
            return torch.empty(shape, dtype=value.dtype, device="meta")
        if node.op in ("placeholder", "get_attr"):
            return value
        if node not in self._numbers:
            args = fx.map_arg(node.args, self.number)
            kwargs = fx.map_arg(node.kwargs, self.number)
            try:
                if node.op == "call_method":
                    self._numbers[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
                else:
                    assert callable(node.target)
                    self._numbers[node] = node.target(*args, **kwargs)
            except ArithmeticError:  # of a width that is divided by more heads than it has channels left
                self._numbers[node] = math.nan
        return self._numbers[node]

    def _shape_bound(self, node: fx.Node) -> tuple[int, ...]:
        """What is left of the shape of a parameter whose axes were bound one by one."""
        shape = list(value_of(node).shape)
        name = self.analysis.labels.names.read_by(node) if node.op == "get_attr" else ""
        for axis, labels in self.analysis.units.parameters.get(name, {}).items():
            live = self.live(labels) if axis >= 0 else None
            shape[axis] = shape[axis] if live is None else len(live)
        return tuple(shape)

    def _of(self, node: fx.Node, labels: Labels, value: Any) -> Any:
        if isinstance(labels, tuple):
            return tuple(self._of(node, x, v) for x, v in zip(labels, value, strict=True))
        if isinstance(labels, Grid):
            layers = [self.live_axes(node, layer, value.shape) for layer in labels.layers]
            return tuple(_in_all([x[axis] for x in layers], size) for axis, size in enumerate(value.shape))
        return None if labels is None else self.live_axes(node, labels, value.shape)


def _in_all(found: list[torch.Tensor | None], size: int) -> torch.Tensor | None:
    """The indices of an axis of some size that are in all lists; None stands for all of them."""
    indices = [x for x in found if x is not None]
    if len(indices) < 2:
        return indices[0] if indices else None
    count = torch.zeros(size, dtype=torch.int32)
    for index in indices:
        count[index] += 1
    return (count == len(indices)).nonzero().reshape(-1)


def holds_group(analysis: Analysis, labels: torch.Tensor) -> bool:
    """Whether a whole group is among these labels, and not only a part of one."""
    numbers = set(analysis.units.of_label[labels].reshape(-1).tolist())
    return any(numbers.issuperset(range(g.start, g.start + g.count)) for g in analysis.units.groups)
