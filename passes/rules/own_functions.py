"""Autograd functions of somebody's own whose `forward` is elementwise: memory-saving activations, roundings and spikes
with gradients of their own, reversed gradients. They stay one op, since the backward pass may be anything."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from fxcat.passes.rules.creation import Alike
from fxcat.passes.rules.dropping import Dropping
from fxcat.passes.rules.elementwise import Elementwise
from fxcat.passes.rules.movement import Copy
from fxcat.passes.rules.table import AutogradCall, autograd_call, function_rule, method_rule, rule

_ASKED = ("dtype", "device", "is_cuda", "data", "requires_grad")
"""What a forward pass may ask a tensor without knowing how many entries it has."""
_SAME = (torch.zeros_like, torch.ones_like, torch.full_like)
"""Of the values of another's shape, those that are no random numbers."""
_LIKE_ANOTHER = ("view_as", "reshape_as", "expand_as")
"""Where all tensors have one shape, these leave every entry at its place."""
_OPERATORS = {
    **{"rsub": "sub", "rdiv": "div", "rpow": "pow", "rmul": "mul", "radd": "add"},
    **{"invert": "logical_not", "and": "logical_and", "or": "logical_or", "xor": "logical_xor"},
}


class ElementwiseFunction(Elementwise):
    """Every entry of the result is computed from the entries at its place."""

    views = True

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        return None


def call_of(function: type[Function], args: tuple[Any, ...]) -> Callable[..., Any]:
    """The function that stands for `function.apply` in a graph; `args`: example values."""
    call = autograd_call(function)
    return _elementwise_call(function) if function_rule(call) is None and _is_elementwise(function, args) else call


@cache
def _elementwise_call(function: type[Function]) -> Callable[..., Any]:
    """The same function once more, with a rule: with other arguments it may compute something else."""
    call = AutogradCall(function, _elementwise_call)
    rule(call)(ElementwiseFunction)
    return call


class _OtherOpError(Exception):
    """The forward pass does something else."""


class _Context:
    """In place of the context of a forward pass that has no backward pass."""

    needs_input_grad = (False,) * 64

    def save_for_backward(self, *_: Any) -> None:
        """Nothing is kept."""

    mark_non_differentiable = set_materialize_grads = save_for_backward


class _Watch(TorchFunctionMode):
    """Runs ops that are elementwise; others end the run."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        with torch._C.DisableTorchFunction():
            if func.__name__ == "__get__":
                if func.__self__.__name__ not in _ASKED:
                    raise _OtherOpError
                return func(*args, **(kwargs or {}))
            if not _is_known(func):
                raise _OtherOpError
            result = func(*args, **(kwargs or {}))
        if not isinstance(result, torch.Tensor) or result.shape not in (self.shape, ()):
            raise _OtherOpError
        if func.__name__ in _LIKE_ANOTHER and args[0].shape != self.shape:
            raise _OtherOpError  # one number for all
        return result


def _is_known(func: Any) -> bool:
    name: str = func.__name__.strip("_")
    if name in _LIKE_ANOTHER:
        return True
    found = function_rule(func) or method_rule(func.__name__) or method_rule(_OPERATORS.get(name, name))
    if isinstance(found, Alike):
        return func in _SAME
    return isinstance(found, Elementwise | Copy) and not isinstance(found, Dropping)


def _is_elementwise(function: type[Function], args: tuple[Any, ...]) -> bool:
    """Whether the forward pass consists of elementwise ops on tensors of one shape: run once, on other numbers.

    It may not ask for sizes or values, nor change what it is given."""
    shapes = {a.shape for a in args if isinstance(a, torch.Tensor) and a.dim()}
    if len(shapes) != 1 or not all(isinstance(a, torch.Tensor | int | float | bool | None) for a in args):
        return False
    given = [_numbers(a) if isinstance(a, torch.Tensor) else a for a in args]
    (shape,) = shapes
    takes_context = function.setup_context is Function.setup_context
    context: Any = (_Context(),) if takes_context else ()
    try:
        with torch.no_grad(), _Watch(shape):
            result = function.forward(*context, *given)
    except Exception:  # somebody's own code, given numbers that it does not expect
        return False
    unchanged = all(a._version == 0 for a in given if isinstance(a, torch.Tensor))
    return unchanged and shape.numel() > 1 and isinstance(result, torch.Tensor) and result.shape == shape


def _numbers(example: torch.Tensor) -> torch.Tensor:
    return torch.full(example.shape, 0.5).to(example.dtype).clone()
