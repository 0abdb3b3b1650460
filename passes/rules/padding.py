"""Padding."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxcat.passes.graph.arguments import thaw
from fxcat.passes.graph.label_arrays import Labels, frozen
from fxcat.passes.graph.meta import path_of, value_of
from fxcat.passes.rules.base import Moved, Replacement, Rule, Zero
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.product import whole_slices
from fxcat.passes.rules.table import rule


@rule(F.pad)
class Pad(Rule):
    """Padding. What zero padding adds along an axis with units are new units that are zero already."""

    zero = Zero.PRESERVES

    def zero_at(self, node: fx.Node) -> Zero:
        return Zero.BREAKS if _pad_value(node) else Zero.PRESERVES

    def infinite_at(self, flow: Flow, node: fx.Node) -> bool:
        return math.isinf(_pad_value(node))

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.all_input_nodes[0]
        labels, shape = flow.of(source), value_of(node).shape
        given = _pad_amounts(node)
        amounts = {a: given[2 * (len(shape) - 1 - a) :][:2] for a, size in enumerate(labels.shape) if size > 1}
        axes = [a for a, pair in amounts.items() if any(pair)]
        if not axes:
            return labels
        if len(amounts) > len(axes):  # what lies along the other axes goes as a whole
            return whole_slices(flow, node, *axes)
        axis = axes[0]
        plain = isinstance(_pad_argument(node), tuple | list) and _pad_mode(node) == "constant"
        if len(amounts) > 1 or min(amounts[axis]) < 0 or not plain:
            flow.freeze(labels, node, "padded along the units' axis")
            return frozen((1,) * len(shape))
        before, after = amounts[axis]
        flat = labels.reshape(-1)
        new = flow.fresh(before + after, path_of(node), producer=False)
        full = torch.cat([new[:before], flat, new[before:]])
        return full.reshape([-1 if a == axis else 1 for a in range(len(shape))])

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        source, amounts, written = node.all_input_nodes[0], _pad_amounts(node), _pad_argument(node)
        if not isinstance(written, tuple | list):
            return None
        new: list[Any] = list(written)
        shape = value_of(source).shape
        for axis, live in enumerate(moved.result):
            at = 2 * (len(shape) - 1 - axis)
            if isinstance(live, torch.Tensor) and any(amounts[at : at + 2]):
                before = int((live < amounts[at]).sum())
                after = int((live >= amounts[at] + shape[axis]).sum())
                new[at : at + 2] = [before, after]
        return Replacement((source, new, *node.args[2:]), {k: v for k, v in node.kwargs.items() if k != "pad"})


def pads_nothing(node: fx.Node) -> bool:
    """Whether a padding adds and cuts nothing."""
    return not any(_pad_amounts(node))


def _pad_mode(node: fx.Node) -> Any:
    return node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")


def _pad_value(node: fx.Node) -> float:
    mode = _pad_mode(node)
    value: Any = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
    return 0.0 if mode != "constant" or value is None else value


def _pad_argument(node: fx.Node) -> Any:
    return node.kwargs.get("pad", node.args[1] if len(node.args) > 1 else ())


def _pad_amounts(node: fx.Node) -> list[int]:
    return list(thaw(_pad_argument(node)))
