"""Values that do not depend on those of the inputs: a mask of ones may decide a branch when the model is captured."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from fxcat.passes.graph.meta import CONSTANT, VALUE, value_of
from fxcat.passes.nodes.effects import is_inplace, may_be_view
from fxcat.passes.rules.elementwise import Elementwise
from fxcat.passes.rules.table import function_rule, method_rule


@dataclass(slots=True)
class Known:
    """A value that was found, and the numbers, computed from sizes, that it may depend on.

    `finite`: it is that where values, which are not known, are finite. `held`: as long as buffers hold what they do.
    """

    value: torch.Tensor
    sizes: list[fx.Node]
    finite: bool = False
    held: bool = False


@dataclass(slots=True)
class _Search:
    """What is found on the way to a value."""

    root: nn.Module
    buffers: Mapping[str, torch.Tensor]
    found: dict[fx.Node, Any] = field(default_factory=dict[fx.Node, Any])
    sizes: list[fx.Node] = field(default_factory=list[fx.Node])
    finite: bool = False
    held: bool = False


class _Unknown(Exception):
    """A value depends on those of inputs, parameters or buffers, or on chance."""


_NONE: Mapping[str, torch.Tensor] = {}


def known_value(node: fx.Node, root: nn.Module, buffers: Mapping[str, torch.Tensor] = _NONE) -> Known | None:
    """The value of a node that inputs, parameters, buffers other than those given, and chance do not change; None if
    they do."""
    if _cannot_be_below(node):
        return Known(torch.tensor(False), [])
    search = _Search(root, buffers)
    try:
        value = _evaluate(node, search)
    except _Unknown:
        return None
    except Exception:  # what the model's op does with values that it never has
        return None
    return Known(value, search.sizes, search.finite, search.held)


def _cannot_be_below(node: fx.Node) -> bool:
    """Whether a node asks whether a number that is drawn from [0, 1) is below 0 (a rate of layers to drop)."""
    if node.target not in (operator.lt, torch.lt, "lt") or len(node.args) != 2:
        return False
    drawn, limit = node.args
    is_rate = isinstance(limit, int | float) and limit <= 0
    return is_rate and isinstance(drawn, fx.Node) and getattr(drawn.target, "__name__", "") == "rand"


def _evaluate(node: fx.Node, search: _Search) -> Any:
    found = search.found
    if node in found:
        return found[node]
    value = value_of(node)
    if not isinstance(value, torch.Tensor):
        found[node] = value
        return value
    if node.op == "get_attr" and CONSTANT.has(node):
        constant: torch.Tensor = operator.attrgetter(str(node.target))(search.root)
        if constant.is_meta:
            raise _Unknown
        sure = False
    elif node.op == "get_attr" and str(node.target) in search.buffers and not _is_changed(node):
        constant, sure, search.held = search.buffers[str(node.target)].detach().cpu(), False, True
    elif node.op in ("call_function", "call_method") and not is_random(node.target) and not _is_changed(node):
        constant, sure = _compute(node, search)
    else:
        raise _Unknown
    if not sure or constant.numel() == 0 or bool((constant != constant.flatten()[0]).any()):
        # not the same number everywhere: it may be another one for other sizes
        search.sizes += [n for n in _numbers(node) if n not in search.sizes]
    found[node] = constant
    return constant


def _compute(node: fx.Node, search: _Search) -> tuple[torch.Tensor, bool]:
    """The value of a call, and whether it is the same number everywhere, whatever the sizes are, if its inputs are."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    shape_only = name in _LIKE

    def value(argument: Any) -> Any:
        if not isinstance(argument, fx.Node):
            return argument
        if shape_only and argument is node.args[0]:
            return torch.empty_like(value_of(argument), device="cpu")
        return _evaluate(argument, search)

    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n)
    try:
        args, kwargs = map_aggregate((args, kwargs), value)
    except _Unknown:
        if name not in _FINITE:
            raise
        search.finite = True
        return torch.full(value_of(node).shape, name == "isfinite"), True
    kwargs = {k: "cpu" if k == "device" else v for k, v in kwargs.items()}
    args = tuple("cpu" if isinstance(a, torch.device) else a for a in args)
    function = getattr(args[0], name) if node.op == "call_method" else node.target
    assert callable(function)
    result = function(*(args[1:] if node.op == "call_method" else args), **kwargs)
    if not isinstance(result, torch.Tensor):
        raise _Unknown
    rule = method_rule(name) if node.op == "call_method" else function_rule(node.target)
    if name in _FILLED or name in _EXTREMES or (rule is not None and rule.movement):
        return result, True
    computed = any(isinstance(value_of(n), int | float) for n in node.all_input_nodes)
    return result, not computed and (name in _SAME or isinstance(rule, Elementwise))


_FILLED = ("ones", "zeros", "ones_like", "zeros_like", "new_ones", "new_zeros")
_LIKE = ("ones_like", "zeros_like", "full_like", "new_ones", "new_zeros", "new_full")
"""Functions that ask a tensor for its shape and type only."""

_FINITE = ("isfinite", "isinf", "isnan", "isposinf", "isneginf")
"""Functions that ask whether values are numbers: those of a forward pass that does what it should are."""

_EXTREMES = ("all", "any", "amin", "amax", "min", "max")
_SAME = (
    *("full", "full_like", "new_full", "to", "bool", "float", "long", "int", "logical_not", "logical_and"),
    *("logical_or", "invert", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "detach", "clone", "contiguous"),
)


def _numbers(node: fx.Node) -> Iterator[fx.Node]:
    """The numbers and shapes, computed from sizes, that a value is made of."""
    stack, seen = [node], set[fx.Node]()
    while stack:
        current = stack.pop()
        for given in current.all_input_nodes:
            if given in seen:
                continue
            seen.add(given)
            if isinstance(value_of(given), torch.Tensor):
                stack.append(given)
            elif isinstance(value_of(given), int | float | torch.Size):
                yield given


def _is_changed(node: fx.Node) -> bool:
    """Whether something changes a value, or a view of it, in place."""
    for user in node.users:
        if user.args and user.args[0] is node:
            if user.target is operator.setitem or is_inplace(user):
                return True
            if may_be_view(user) and isinstance(VALUE.get(user), torch.Tensor) and _is_changed(user):
                return True
    return is_inplace(node)


@cache
def is_random(function: Any) -> bool:
    """Whether a function or method of PyTorch draws random numbers."""
    name = function if isinstance(function, str) else getattr(function, "__name__", "")
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    if packet is None or not hasattr(packet, "overloads"):
        return name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
    return any(torch.Tag.nondeterministic_seeded in getattr(packet, o).tags for o in packet.overloads())
