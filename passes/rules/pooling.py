"""Pooling and resampling over positions: channels pass through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.label_arrays import Labels
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Counting, Rule, Sample, Zero
from fxcat.passes.rules.counting import spared_windows
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.layouts import empty
from fxcat.passes.rules.product import whole_slices
from fxcat.passes.rules.table import rule


def channelwise(flow: Flow, node: fx.Node, spatial: int) -> torch.Tensor:
    """Labels of an op that works on each channel apart and changes only the last `spatial` axes."""
    axes = flow.of(node.all_input_nodes[0]).dim()
    return whole_slices(flow, node, *range(axes - spatial, axes), reason="units along an axis that pooling mixes")


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
    equivariant = True

    def __init__(self, spatial: int, window: Literal["maximum", "average"] | None = None) -> None:
        self.spatial, self.window = spatial, window

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        size = getattr(module, "output_size", None)
        if not isinstance(module, nn.AdaptiveAvgPool2d) or value.dim() != 4:
            return None
        sizes = size if isinstance(size, tuple) else (size, size)
        found = (n if s is None else s for n, s in zip(value.shape[2:], sizes, strict=True))
        return empty((*value.shape[:2], *found), value)

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels = channelwise(flow, node, self.spatial)
        return labels if isinstance(value_of(node), torch.Tensor) else (labels, labels)

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
    equivariant = True

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return channelwise(flow, node, value_of(node).dim() - 2)

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
        return channelwise(flow, node, value_of(node).dim() - 2).narrow(0, 0, 1)

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (arguments(node, "input", "grid")["input"],)
