"""Elementwise ops that are not finite at zero, or whose gradient is not: roots, logarithms, quotients."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.label_arrays import Labels, frozen
from fxcat.passes.rules.base import Counting, Zero
from fxcat.passes.rules.counting import spared
from fxcat.passes.rules.elementwise import Elementwise, broadcast, is_tensor
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.table import rule


class _Spared(Elementwise):
    """Not finite at zero, or its gradient is not: where units may be dead, the gated form spares them.

    `function`: what the op computes, as a function of the same arguments.
    """

    zero = Zero.BREAKS

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def is_sound(self, flow: Flow, node: fx.Node) -> bool:
        """Whether a dead unit does no harm."""
        return False

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels = broadcast(flow, node)
        # of heads that are folded into the batch no gate fits another batch
        if labels.dim() > 1 and labels.shape[0] > 1 and not self.is_sound(flow, node) and _is_computed(node):
            flow.freeze(labels, node, "units along the batch axis in what is not finite at zero")
            return frozen((1,) * labels.dim())
        return labels

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        labels = flow.of(node)
        if labels.numel() == 1 or self.is_sound(flow, node) or not _is_computed(node):
            return None
        return Counting(spared(self.function), labels)


def _is_computed(node: fx.Node) -> bool:
    """Whether a gate may make a value zero: it depends on the network's inputs, or on parameters that others read."""
    stack = [node]
    while stack:
        current = stack.pop()
        if current.op in ("placeholder", "call_module") or (current is not node and len(current.users) > 1):
            return True
        stack += current.all_input_nodes
    return False


@rule(torch.sqrt, "sqrt", "sqrt_", function=torch.sqrt)
@rule(torch.rsqrt, "rsqrt", "rsqrt_", function=torch.rsqrt)
@rule(torch.reciprocal, "reciprocal", "reciprocal_", function=torch.reciprocal)
@rule(torch.log, "log", "log_", function=torch.log)
@rule(torch.log2, "log2", "log2_", function=torch.log2)
@rule(torch.log10, "log10", "log10_", function=torch.log10)
@rule(torch.hypot, "hypot", "hypot_", function=torch.hypot)
@rule(torch.atan2, "atan2", "atan2_", torch.arctan2, "arctan2", "arctan2_", function=torch.atan2)
@rule(torch.xlogy, "xlogy", "xlogy_", function=torch.xlogy)
@rule(torch.lgamma, function=torch.lgamma)
@rule(torch.digamma, function=torch.digamma)
@rule(torch.logit, function=torch.logit)
@rule(torch.special.entr, function=torch.special.entr)
@rule(torch.addcdiv, function=torch.addcdiv)
class NotAtZero(_Spared):
    """Roots, logarithms, reciprocals."""


@rule(operator.pow, operator.ipow, torch.pow, "pow", "pow_", function=torch.pow)
@rule(torch.float_power, function=torch.float_power)
class Power(_Spared):
    """Powers by a number of at least 1 keep zero; with another exponent the value or its gradient is not finite."""

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        # `float_power` gives double precision
        return None if self.function is torch.float_power else super().infer_call(args, kwargs)

    def is_sound(self, flow: Flow, node: fx.Node) -> bool:
        exponent = arguments(node, "input", "exponent")["exponent"]
        return isinstance(exponent, int | float) and exponent >= 1

    def zero_at(self, node: fx.Node) -> Zero:
        exponent = arguments(node, "input", "exponent")["exponent"]
        return Zero.PRESERVES if isinstance(exponent, int | float) and exponent >= 1 else Zero.BREAKS


@rule(
    *(operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide),
    *("div", "div_", "divide", "divide_", "true_divide", "true_divide_"),
    function=torch.div,
)
@rule(operator.floordiv, operator.ifloordiv, torch.floor_divide, function=torch.floor_divide)
@rule(operator.mod, torch.remainder, function=torch.remainder)
@rule(torch.fmod, function=torch.fmod)
class Quotient(_Spared):
    """Quotients, and what they leave. A dead unit in the divisor would divide by zero."""

    keeps_infinity = True

    def is_sound(self, flow: Flow, node: fx.Node) -> bool:
        _, divisor = self._terms(node)
        return not is_tensor(divisor) or flow.of(divisor).numel() == 1 or not self._may_be_zero(divisor)

    def zero_at(self, node: fx.Node) -> Zero:
        """A divisor that is computed may be zero where the dividend is."""
        dividend, divisor = self._terms(node)
        computed = is_tensor(divisor) and self._may_be_zero(divisor)
        return Zero.PRESERVES if is_tensor(dividend) and not computed else Zero.BREAKS

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (self._terms(node)[0],)

    @staticmethod
    def _may_be_zero(divisor: fx.Node) -> bool:
        return _is_computed(divisor) or (divisor.op == "get_attr" and len(divisor.users) > 1)

    @staticmethod
    def _terms(node: fx.Node) -> tuple[Any, Any]:
        """Dividend and divisor."""
        given = arguments(node, "input", "other")
        return given["input"], given["other"]
