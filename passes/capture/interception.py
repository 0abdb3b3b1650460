"""Ways into a call, a context or an attribute that torch.fx does not watch, watched while a model is traced."""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import fx, nn
from torch.fx import _symbolic_trace
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from fxcat.errors import CaptureError
from fxcat.passes.capture.proxy import ExampleProxy
from fxcat.passes.capture.torch_checks import checks_traced
from fxcat.passes.capture.tracing import Tracing
from fxcat.passes.nodes.known import is_random
from fxcat.passes.rules.own_functions import call_of
from fxcat.passes.rules.table import function_decomposition, function_rule

_APPLY: Any = vars(torch.autograd.Function)["apply"]


@contextmanager
def intercepted(tracer: Tracing) -> Generator[None]:
    """Watch them for a tracer."""
    with (
        patch.object(_symbolic_trace, "_create_wrapped_func", functools.partial(_descending, tracer)),
        patch.object(torch.autograd.Function, "apply", _applying(tracer)),
        patch.object(type(torch.autograd.Variable), "__call__", _without_history, create=True),
        patch.object(torch.autocast, "__enter__", _entering(tracer, torch.autocast.__enter__)),
        patch.object(torch.autocast, "__exit__", _leaving(tracer, torch.autocast.__exit__)),
        checks_traced(tracer),
        _Dispatch(tracer),
    ):
        yield


class _Dispatch(TorchFunctionMode):
    """Makes nodes of calls whose only proxies are sizes (`torch.eye(n)`, `constant.repeat(n, 1)`), and of what is done
    with parameters that the model came by in other ways than as attributes."""

    def __init__(self, tracer: Tracing) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self.tracer.is_executing:
            return func(*args, **kwargs)
        if not _has_proxy((args, kwargs)):
            plain = functools.partial(func, *args, **kwargs)
            args, kwargs = (
                tree_map(self.tracer.read, args),
                {k: tree_map(self.tracer.read, v) for k, v in kwargs.items()},
            )
            if not _has_proxy((args, kwargs)):
                seeded = any(isinstance(a, torch.Generator) for a in (*args, *kwargs.values()))
                draws = is_random(getattr(func, "__name__", "")) and not seeded
                return self.tracer.draw(func, args, kwargs) if draws else self.tracer.made(plain(), (args, kwargs))
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return getattr(args[0], func.__self__.__name__)
        if name in _METHODS and func is getattr(torch.Tensor, name):
            return self.tracer.create_proxy("call_method", name, args, kwargs)
        if func is torch.Tensor.__getitem__:
            return self.tracer.create_proxy("call_function", operator.getitem, args, kwargs)
        return fx.Proxy.__torch_function__(func, types, args, kwargs)


_METHODS = ("expand", "view", "reshape", "repeat")
"""Methods of tensors that have stand-ins, and so are not known to torch.fx."""


def _has_proxy(value: Any) -> bool:
    """Whether there is a proxy among arguments, or inside of them."""
    if isinstance(value, tuple | list):
        return any(_has_proxy(v) for v in value)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return any(_has_proxy(v) for v in value.values())  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, slice):
        return _has_proxy((value.start, value.stop, value.step))
    return isinstance(value, fx.Proxy)


def _descending(tracer: Tracing, function: Callable[..., Any]) -> Callable[..., Any]:
    """What calls of a function that was given to `torch.fx.wrap` do: they are traced through where possible."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if tracer.is_executing or not _has_proxy((args, kwargs)):
            return function(*args, **kwargs)
        result = NotImplemented
        if isinstance(function, types.FunctionType) and function_rule(function) is None:
            result = tracer.attempt(function, args, kwargs)
        return tracer.create_proxy("call_function", function, args, kwargs) if result is NotImplemented else result

    call.__name__ = function.__name__  # the rest of `functools.wraps` takes too long for every function of every trace
    return call


def _without_history(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """What `Variable(x)` gives: the same values, without a history."""
    given = args[0] if args else kwargs.get("data")
    return given.detach() if isinstance(given, fx.Proxy) else type.__call__(cls, *args, **kwargs)


def _entering(tracer: Tracing, enter: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What entering autocast does: nodes say that they run without it, or with one that casts."""

    def call(context: torch.autocast) -> Any:
        if not tracer.is_executing:
            tracer.has_cast |= context._enabled
            tracer.uncast.append((context.device, context.fast_dtype if context._enabled else None))
        return enter(context)

    return call


def _leaving(tracer: Tracing, leave: Callable[..., Any]) -> Callable[..., Any]:
    def call(context: torch.autocast, *error: Any) -> Any:
        if not tracer.is_executing:
            tracer.uncast.pop()
        return leave(context, *error)

    return call


def _applying(tracer: Tracing) -> Any:
    """What `function.apply` does: one node, since its backward pass may be anything."""

    def apply(function: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        if tracer.is_executing or not _has_proxy((args, kwargs)):
            return _APPLY.__get__(None, function)(*args, **kwargs)
        instead = function_decomposition(function)
        if instead is not None:
            return instead(*args, **kwargs)
        if any(isinstance(a, nn.Module | types.FunctionType | types.MethodType | functools.partial) for a in args):
            raise CaptureError(
                f"{function.__name__} takes a function",
                where=tracer.location(),
                remedy="teach fxcat the module with a rule (fxcat.rules)",
            )
        examples = tree_map(lambda a: a.example if isinstance(a, ExampleProxy) else a, args)
        return tracer.create_proxy("call_function", call_of(function, examples), args, kwargs)

    return classmethod(apply)
