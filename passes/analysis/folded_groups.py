"""Groups of channels that are folded into the batch: `x.reshape(batch * groups, -1, height, width)`.

As heads are, groups may go as a whole. But layers and norms that all groups share (those of shuffle attention, SGE,
EMA) treat channels of a group apart, and then the same channels of every group may go.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from fxcat.passes.analysis.chains import keep_rectangular
from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.graph.label_arrays import FROZEN


def kept_folds(flow: LabelFlow) -> frozenset[fx.Node]:
    """Values with groups folded into the batch, some of whose channels stay when groups go as a whole."""
    folds = [node for node in flow.rules if _is_fold(flow, node)]
    if not folds:
        return frozenset()
    roots = flow.unions.roots()
    return frozenset(n for n in folds if bool((roots[flow.of(n).numpy()] == FROZEN).any()))


def _is_fold(flow: LabelFlow, node: fx.Node) -> bool:
    rule, labels = flow.rules[node], flow.values[node]
    if rule is None or not rule.movement or not isinstance(labels, torch.Tensor):
        return False
    source = flow.values[node.all_input_nodes[0]]
    along_batch = labels.dim() > 1 and labels.shape[0] > 1 and labels.numel() > labels.shape[0]
    return along_batch and isinstance(source, torch.Tensor) and source.dim() > 1 and source.shape[0] == 1


def tied(flow: LabelFlow, node: fx.Node) -> torch.Tensor:
    """Labels of a folded value of which the same channels go in every group."""
    labels = flow.of(node)
    first = labels.narrow(0, 0, 1)
    flow.unite(labels, first)
    return first


def weights_that_may_go(flow: LabelFlow, graph: fx.Graph) -> float:
    """How many entries of parameters lie along axes of which units may go, each by their share in the axis."""
    keep_rectangular(flow, graph)
    roots, are_units = flow.unions.unit_roots()
    total = 0.0
    for name, parameter in flow.named_parameters():
        shares = [0.0]
        for axis, labels in flow.parameters.get(name, {}).items():
            own = roots[labels.numpy()] if axis >= 0 else roots[labels.reshape(-1).numpy()]
            if len(np.unique(own)) > 1:
                shares.append(float(are_units[own].mean()))
        total += max(shares) * parameter.numel()
    return total
