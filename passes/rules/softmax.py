"""Softmax, and sums of what comes before along an axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.label_arrays import Labels
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Counting, Rule, Zero
from fxcat.passes.rules.counting import gated_log_softmax, gated_softmax
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.product import whole_slices
from fxcat.passes.rules.table import rule


@rule(torch.softmax, F.softmax, "softmax", form=gated_softmax)
@rule(torch.log_softmax, F.log_softmax, "log_softmax", form=gated_log_softmax)
@rule(F.softmin, torch.logcumsumexp, form=None)
class Softmax(Rule):
    """softmax, its logarithm, and softmin. Where all units lie along the axis, that counts live ones, in this form."""

    zero = Zero.BREAKS

    def __init__(self, form: Callable[..., Any] | None) -> None:
        self.form = form

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Of one that is asked for no other type: it has the layout of its input."""
        value, *options = args
        if not value.dtype.is_floating_point or any(isinstance(o, torch.dtype) for o in (*options, *kwargs.values())):
            return None
        return value if value.is_contiguous() else None

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return flow.of(node.all_input_nodes[0]) if self._counts(flow, node) else whole_slices(flow, node, _dim(node))

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        if self.form is None or not self._counts(flow, node):
            return None
        return Counting(self.form, flow.of(node.all_input_nodes[0]))

    def _counts(self, flow: Flow, node: fx.Node) -> bool:
        labels = flow.of(node.all_input_nodes[0])
        named = len(node.args) == 2 or node.kwargs.get("dim") is not None
        return self.form is not None and named and labels.shape[_dim(node)] == labels.numel() > 1


def _dim(node: fx.Node) -> int:
    """The axis of a softmax."""
    given: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    if given is None:  # the axis that torch chooses
        return 0 if value_of(node).dim() in (0, 1, 3) else 1
    return given


@rule(torch.cumprod, "cumprod", over_units=False)
@rule(torch.cumsum, "cumsum", over_units=True)
class Cumulative(Rule):
    """Sums and products of what comes before along an axis. Along one with units a sum goes on as if a dead one, which
    is zero, were not there; its own place gets what comes before."""

    zero = Zero.PRESERVES

    def __init__(self, over_units: bool) -> None:
        self.over_units = over_units

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        axis = arguments(node, "input", "dim")["dim"]
        return flow.of(node.all_input_nodes[0]) if self._sums_units(flow, node) else whole_slices(flow, node, axis)

    def carriers(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...] | None:
        return () if self._sums_units(flow, node) else None

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0],) if self._sums_units(flow, node) else ()

    def _sums_units(self, flow: Flow, node: fx.Node) -> bool:
        """Whether all units lie along the axis of a sum."""
        labels, axis = flow.of(node.all_input_nodes[0]), arguments(node, "input", "dim")["dim"]
        return self.over_units and labels.shape[axis] == labels.numel() > 1
