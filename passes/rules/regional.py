"""Pooling of regions of interest: every channel apart, at positions that have no units."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torchvision.ops import MultiScaleRoIAlign, RoIAlign, RoIPool, roi_align, roi_pool

from fxcat.passes.graph.label_arrays import Labels, along, frozen
from fxcat.passes.rules.base import Rule, Zero
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.layouts import empty
from fxcat.passes.rules.table import rule


@rule(RoIAlign, RoIPool, roi_align, roi_pool)
class RegionPooling(Rule):
    """Features (N, C, H, W) and boxes to (boxes, C, h, w)."""

    zero = Zero.PRESERVES

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        features = self.zero_from(flow, node)
        axes: list[torch.Tensor] = []
        for source in node.all_input_nodes:
            labels = flow.axis(source, 1) if source in features else None
            if labels is None:
                flow.freeze(flow.values[source], node, "units along an axis that is pooled, or among the boxes")
            else:
                axes.append(labels)
        for other in axes[1:]:
            flow.unite(axes[0], other)
        return along(axes[0], 1, 4) if axes else frozen((1,) * 4)

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        found: list[fx.Node] = []
        fx.map_arg(node.args[0] if node.args else node.kwargs["input"], found.append)
        return tuple(found)


@rule(MultiScaleRoIAlign)
class MultiScaleRegionPooling(RegionPooling):
    """The same on one of several feature maps, chosen by the size of each box."""

    def infer_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        assert isinstance(module, MultiScaleRoIAlign)
        features, boxes = args[:2]
        first = next(iter(features.values()))
        return empty((sum(len(b) for b in boxes), first.shape[1], *module.output_size), first)
