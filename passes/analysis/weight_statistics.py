"""Functions of many entries of weights, as weight standardisation has them: what counts the units that are live."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxcat.passes.analysis.on_weights import (
    OnWeights,
    layers,
    tensors_of,
)
from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.label_arrays import Grid, Labels
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules import counting
from fxcat.passes.rules.base import Counting
from fxcat.passes.rules.flow import Flow


@dataclass(frozen=True)
class Statistic(OnWeights):
    """A function of all entries along some axes: other axes keep their units; of one axis with units, among those, the
    live ones are counted.

    `names` of the positional arguments; `gated`: the form that counts. `others`: whether all axes but those that are
    named are meant.
    """

    names: tuple[str, ...]
    gated: Callable[..., Any]
    default: int | None = None
    others: bool = False
    spread: bool = False
    """It is defined for two entries or more, unless it is the biased form."""

    whole: bool = False
    """Only over all axes at once is it a function of one value that gives one."""

    def has_form(self, node: fx.Node) -> bool:
        given = arguments(node, *self.names)
        power = given.get("p", given.get("ord", 2))
        statistics = given.get("running_mean") is None and given.get("training", True)
        if self.whole and len(node.args) + len(node.kwargs) > 1:
            return False
        return statistics and (power in (None, "fro") or (isinstance(power, int | float) and power >= 1))

    def axes(self, node: fx.Node) -> set[int]:
        """The axes that the function runs over."""
        given = arguments(node, *self.names)
        dims = value_of(node.all_input_nodes[0]).dim()
        chosen: Any = given.get("dim", given.get("axis", self.default))
        if chosen is None:
            return set(range(dims))
        named = {int(a) % dims for a in (chosen if isinstance(chosen, tuple | list) else (chosen,))}
        return set(range(dims)) - named if self.others else named

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source, *more = tensors_of(node)
        axes, shape = self.axes(node), value_of(source).shape
        value = value_of(node)
        first = value if isinstance(value, torch.Tensor) else value[0]
        kept, over = list[torch.Tensor](), list[torch.Tensor]()
        for layer in layers(flow.values[source]):
            inner = [a for a in axes if layer.shape[a] > 1]
            if inner:
                over.append(layer)
                entries = math.prod(shape[a] for a in axes) // layer.unique().numel()
                if len(inner) < sum(size > 1 for size in layer.shape) or (self._is_unbiased(node) and entries < 2):
                    over.pop()
                    flow.freeze_if_units(layer, node, "a statistic over units that has no form without them")
            if not inner or first.shape == shape:
                kept.append(layer)
        flow.statistics[node] = over
        if first.dim() < len(shape):
            kept = [x.reshape([n for a, n in enumerate(x.shape) if a not in axes]) for x in kept]
        grid = Grid(tuple(kept))
        if more:
            flow.values[node] = grid
            self._scaled(flow, node, more)
        return grid if isinstance(value, torch.Tensor) else (grid,) * len(value)

    def _scaled(self, flow: Flow, node: fx.Node, more: list[fx.Node]) -> None:
        """What every slice is multiplied by has its unit."""
        (axis,) = set(range(value_of(node).dim())) - self.axes(node)
        own = flow.lines(node)[axis]
        for other in more:
            line = next((x for x in flow.lines(other) if x is not None), None)
            if own is not None and line is not None:
                flow.unite(own, line)
            elif own is not None:
                flow.freeze_if_units(own, node, "an axis with units meets one without")

    def _is_unbiased(self, node: fx.Node) -> bool:
        given = arguments(node, *self.names, "unbiased")
        return self.spread and bool(given.get("correction", given.get("unbiased", True)))

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        over = flow.statistics.get(node)
        return Counting(self.gated, over[0]) if over else None


_DIM = ("input", "dim")
_NORM = ("input", "p", "dim")
STATISTICS: dict[Any, Statistic] = {
    target: statistic
    for targets, statistic in (
        ((torch.mean, "mean"), Statistic(_DIM, counting.gated_mean)),
        ((torch.sum, "sum"), Statistic(_DIM, counting.gated_sum)),
        ((torch.var, "var"), Statistic(_DIM, counting.gated_var, spread=True)),
        ((torch.std, "std"), Statistic(_DIM, counting.gated_std, spread=True)),
        ((torch.var_mean,), Statistic(_DIM, counting.gated_var_mean, spread=True)),
        ((torch.std_mean,), Statistic(_DIM, counting.gated_std_mean, spread=True)),
        ((torch.amax, "amax"), Statistic(_DIM, counting.gated_amax)),
        ((torch.amin, "amin"), Statistic(_DIM, counting.gated_amin)),
        ((torch.max, "max"), Statistic(_DIM, counting.gated_amax, whole=True)),
        ((torch.min, "min"), Statistic(_DIM, counting.gated_amin, whole=True)),
        ((torch.norm, "norm"), Statistic(_NORM, counting.gated_norm)),
        ((torch.linalg.vector_norm,), Statistic(("x", "ord", "dim"), counting.gated_vector_norm)),
        ((F.normalize,), Statistic(_NORM, counting.gated_normalize, default=1)),
        (
            (torch._weight_norm,),  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            Statistic(("v", "g", "dim"), counting.gated_weight_norm, default=0, others=True),
        ),
        (
            (F.batch_norm,),
            Statistic(
                ("input", "running_mean", "running_var", "weight", "bias", "training"),
                *(counting.gated_standardised, 1, True),
            ),
        ),
    )
    for target in targets
}
