"""Pooling and other reductions over positions: channels pass through."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcat.passes.arrays import frozen
from fxcat.passes.rules.counting import gated_mean, gated_var
from fxcat.passes.rules.table import Counting, Labels, Rule, Sample, Zero, rule

if TYPE_CHECKING:
    from fxcat.passes.labels import Flow


def channelwise(flow: Flow, node: fx.Node, spatial: int) -> Labels:
    """Labels of an op that works on each channel apart and changes only the last `spatial` axes."""
    source = node.all_input_nodes[0]
    labels = flow.of(source)
    if any(size > 1 for size in labels.shape[labels.dim() - spatial :]):
        flow.freeze(labels, node, "units along an axis that pooling mixes")
        return frozen((1,) * node.meta["value"].dim())
    return labels


@rule(*(nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, F.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d), spatial=1)
@rule(
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.UpsamplingNearest2d),
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d),
    spatial=2,
)
@rule(*(nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, F.max_pool3d, F.avg_pool3d, F.adaptive_avg_pool3d), spatial=3)
class Pool(Rule):
    """Max and average pooling: a window of zeros gives zero."""

    zero = Zero.PRESERVES

    def __init__(self, spatial: int) -> None:
        self.spatial = spatial

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        size = getattr(module, "output_size", None)
        if not isinstance(module, nn.AdaptiveAvgPool2d) or value.dim() != 4:
            return None
        sizes = size if isinstance(size, tuple) else (size, size)
        return value.new_empty(
            (*value.shape[:2], *(n if s is None else s for n, s in zip(value.shape[2:], sizes, strict=True)))
        )

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return channelwise(flow, node, self.spatial)

    def samples(self) -> tuple[Sample, ...]:
        if self.spatial != 2:
            return ()
        return (
            Sample(nn.MaxPool2d(3, 2, 1), (2, 6, 5, 5)),
            Sample(nn.AvgPool2d(2), (2, 6, 4, 4)),
            Sample(nn.AdaptiveAvgPool2d(1), (2, 6, 4, 4)),
        )


@rule(F.interpolate, nn.Upsample, nn.UpsamplingBilinear2d)
class Resample(Rule):
    """Interpolation: every channel apart; zeros give zeros."""

    zero = Zero.PRESERVES

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return channelwise(flow, node, node.meta["value"].dim() - 2)

    def samples(self) -> tuple[Sample, ...]:
        return (Sample(nn.Upsample(scale_factor=2), (2, 6, 3, 3)),)


@rule(F.grid_sample)
class GridSample(Rule):
    """grid_sample: every channel apart, at positions that have no units."""

    zero = Zero.PRESERVES

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        _, grid = node.all_input_nodes
        flow.freeze(flow.values[grid], node, "positions of a grid")
        return channelwise(flow, node, node.meta["value"].dim() - 2)

    def carriers(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0],)


class _Reduction(Rule):
    """A reduction over axes without units keeps zeros."""

    zero = Zero.PRESERVES

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.all_input_nodes[0]
        shape, labels = source.meta["value"].shape, flow.of(source)
        axes = _reduced(node, len(shape))
        if any(labels.shape[a] > 1 for a in axes):
            return self.over_units(flow, node, labels)
        if node.meta["value"].dim() == len(shape):
            return labels
        return labels.reshape([s for a, s in enumerate(labels.shape) if a not in axes])

    def over_units(self, flow: Flow, node: fx.Node, labels: torch.Tensor) -> torch.Tensor:
        """Labels of the result where the input has units along an axis that is reduced: all are frozen."""
        flow.freeze(labels, node, "reduced over the units")
        return frozen((1,) * node.meta["value"].dim())


@rule(torch.amax, "amax", torch.amin, "amin")
class Extremum(_Reduction):
    """Maximum and minimum: over units they would change, since a dead one counts as zero."""


class _OverOneAxis(_Reduction):
    """Where all units lie along an axis that is reduced, they may go."""

    def over_units(self, flow: Flow, node: fx.Node, labels: torch.Tensor) -> torch.Tensor:
        if _along_one(labels):
            return frozen((1,) * node.meta["value"].dim())
        return super().over_units(flow, node, labels)


@rule(torch.sum, "sum")
class Total(_OverOneAxis):
    """Sums: what is zero adds nothing."""

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return tuple(node.all_input_nodes[:1]) if _reduces_units(flow, node) else ()


@rule(torch.mean, "mean", gated=gated_mean)
@rule(torch.var, "var", gated=gated_var)
class Moment(_OverOneAxis):
    """Means and variances; over units, the live ones count."""

    def __init__(self, gated: Callable[..., torch.Tensor]) -> None:
        self.gated = gated

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        return Counting(self.gated, flow.of(node.all_input_nodes[0])) if _reduces_units(flow, node) else None


def _along_one(labels: torch.Tensor) -> bool:
    return labels.numel() == max(labels.shape)


def _reduces_units(flow: Flow, node: fx.Node) -> bool:
    labels = flow.of(node.all_input_nodes[0])
    return _along_one(labels) and any(labels.shape[a] > 1 for a in _reduced(node, labels.dim()))


def _reduced(node: fx.Node, dims: int) -> set[int]:
    given = node.kwargs.get("dim", node.kwargs.get("axis", node.args[1] if len(node.args) > 1 else None))
    if given is None:
        return set(range(dims))
    axes = given if isinstance(given, tuple | list) else (given,)
    return {int(a) % dims for a in axes}  # pyright: ignore[reportArgumentType]
