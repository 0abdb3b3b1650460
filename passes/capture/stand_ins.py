"""What stands in for functions of Python and of PyTorch while a model is traced.

They do the same, and know proxies: a number that is computed from sizes stays symbolic, and no private helper of
torch.nn asks for the type of a proxy.
"""

from __future__ import annotations

import builtins
import functools
import sys
import types
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.modules import transformer
from torch.utils._pytree import tree_map

from fxcat.errors import CaptureError
from fxcat.passes.capture.caches import KEEPING_RESULTS, forgetting, keeps_results, results_forgotten
from fxcat.passes.capture.namespaces import (
    builtins_used,
    codes_in,
    loose_namespaces,
    only_called,
    only_calls_in,
    python_modules,
    taken_from,
    with_helpers,
)
from fxcat.passes.capture.numbers_of_tensors import extreme_of, is_number_of_tensor, number_of
from fxcat.passes.capture.overrides import ASKING_FOR_OVERRIDES, NOT_OVERRIDDEN
from fxcat.passes.capture.proxy import ExampleAttribute, ExampleProxy
from fxcat.passes.graph.meta import NUMBER
from fxcat.passes.graph.nested import leaves
from fxcat.passes.rules.leaves import traced_modules


@contextmanager
def stand_ins(root: nn.Module) -> Generator[None]:
    """Put them in place: in PyTorch, in the Python modules whose code runs, and in those whose functions they use."""
    added: list[tuple[dict[str, Any], str]] = []
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    with ExitStack() as stack:
        stack.enter_context(patch.object(transformer, "_detect_is_causal_mask", _said_to_be_causal))
        stack.enter_context(patch.object(torch.nn.functional, "_none_or_dtype", _dtype_of))
        stack.enter_context(patch.object(torch, "is_tensor", lambda value: _is_instance(value, torch.Tensor)))
        stack.enter_context(patch.object(torch.jit, "isinstance", _is_of_kind(torch.jit.isinstance)))
        for owner, names in _TAKING_SIZES.items():
            for name in names:
                stack.enter_context(patch.object(owner, name, _of_one_shape(getattr(owner, name))))
        for name in ("finfo", "iinfo", "broadcast_shapes"):
            stack.enter_context(patch.object(torch, name, _deferred(getattr(torch, name))))
        for name in ASKING_FOR_OVERRIDES:
            stack.enter_context(patch.object(torch.overrides, name, ASKING_FOR_OVERRIDES[name]))
        stack.enter_context(patch.object(torch, "Size", _Shape))
        traced = traced_modules(root)
        loose = loose_namespaces(traced)
        helpers = with_helpers(
            python_modules(traced) | {name for known in loose for name in taken_from(known, codes_in(known))}
        )
        names = frozenset(_BUILTINS)
        places = [
            (vars(sys.modules[module]), builtins_used(module, names), functools.partial(only_calls_in, module))
            for module in helpers
        ]
        places += [(known, names, functools.partial(only_called, codes_in(known))) for known in loose]
        stack.enter_context(results_forgotten(traced, helpers))
        try:
            for known, used, only_calls in places:
                for name, value in [(n, v) for n, v in known.items() if type(v) in _REPLACED]:
                    instead = _of_python(value)
                    if instead is not value:
                        known[name] = instead
                        replaced.append((known, name, value))
                # a global hides the built-in of its name; where a class (int, type) is more than called, it stays one
                for name in used:
                    if name not in known and (name not in ("int", "float", "type") or only_calls(name)):
                        known[name] = _BUILTINS[name]
                        added.append((known, name))
            yield
        finally:
            for known, name in added:
                del known[name]
            for known, name, value in replaced:
                known[name] = value
            kept = [where for known, _, _ in places for where in _take_proxies(known)]
    if kept:
        raise CaptureError(
            f"a value of the forward pass is kept in the global {kept[0]}", remedy="keep it in a buffer, or not at all"
        )


def _of_python(value: Any) -> Any:
    """For a compiled or scripted function the one that was compiled; for one that keeps its results one that forgets
    those of proxies."""
    if type(value) is types.FunctionType:  # most are
        return getattr(value, "_torchdynamo_orig_callable", value)
    if keeps_results(value):
        return forgetting(value)
    if isinstance(value, types.BuiltinFunctionType):
        return next((new for old, new in NOT_OVERRIDDEN if old is value), value)
    return _scripted(value)


_REPLACED = frozenset((types.FunctionType, torch.jit.ScriptFunction, types.BuiltinFunctionType, KEEPING_RESULTS))
"""Types of globals that others may stand in for: asked for each of all globals."""


def _scripted(value: torch.jit.ScriptFunction[..., Any]) -> Callable[..., Any]:
    """The Python that was scripted, where torch knows it and it can do with proxies; else what makes a node of it."""
    written, node = getattr(value, "_torchdynamo_inline", None), _deferred(_called(value))

    def call(*args: Any, **kwargs: Any) -> Any:
        proxy = next((a for a in leaves((args, kwargs)) if isinstance(a, ExampleProxy)), None)
        if proxy is None or written is None:
            return node(*args, **kwargs)
        result = proxy.tracer.attempt(written, args, kwargs)
        return node(*args, **kwargs) if result is NotImplemented else result

    return call


@cache
def _called(scripted: torch.jit.ScriptFunction[..., Any]) -> Callable[..., Any]:
    """A function that calls a scripted one: code that is generated can name it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return scripted(*args, **kwargs)

    call.__name__ = call.__qualname__ = str(scripted.name)
    return call


def _take_proxies(known: dict[str, Any]) -> Iterator[str]:
    """Take proxies out of a Python module's globals, and say where they were."""
    module = known.get("__name__")
    for name, value in [(n, v) for n, v in known.items() if type(v) in _HOLDING]:
        if isinstance(value, ExampleProxy):
            del known[name]
            yield f"{module}.{name}"
        elif name != "__builtins__":
            for key in [k for k, v in value.items() if type(v) in _PROXIES]:
                del value[key]
                yield f"{module}.{name}"


_PROXIES = frozenset((ExampleProxy, ExampleAttribute))
_HOLDING = _PROXIES | {dict}
"""Types of globals in which a proxy may be kept: asked for each of all globals."""


def _said_to_be_causal(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    """What torch.nn's transformers find out from a mask's values, to choose a quicker kernel for the same result."""
    return bool(is_causal)


def _dtype_of(value: Any) -> Any:
    """What torch.nn asks about masks; its own function wants tensors."""
    return None if value is None else value.dtype


def _length(value: Any) -> Any:
    """`len` for the modules whose code is traced: the length of a tensor stays symbolic, as `size(0)`."""
    if isinstance(value, ExampleProxy) and isinstance(value.example, torch.Tensor):
        return value.size(0)
    return len(value)


def _is_floating(found: ExampleProxy) -> bool:
    return isinstance(found.example, float) or (
        isinstance(found.example, torch.Tensor) and found.example.is_floating_point()
    )


class _OfNumbers(type):
    """The type of `_Integer` and `_Float`."""

    number: type
    of_tensor: Callable[[Any], Any]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        given = args[0] if len(args) == 1 else None
        if isinstance(given, ExampleProxy) and isinstance(given.example, int | float):
            return given.tracer.create_proxy("call_function", cls.number, args, {})
        if isinstance(given, ExampleProxy) and isinstance(given.example, torch.Tensor):
            found = number_of(given)
            return cls.of_tensor(found) if isinstance(found, ExampleProxy) else cls.number(found)
        return cls.number(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.number)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.number)


class _Integer(metaclass=_OfNumbers):
    """`int` for the modules whose code is traced: what is computed from sizes stays symbolic."""

    number = int
    of_tensor = staticmethod(lambda found: found.long() if isinstance(found.example, torch.Tensor) else found)


class _Float(metaclass=_OfNumbers):
    """`float`, likewise."""

    number = float
    of_tensor = staticmethod(lambda found: found if _is_floating(found) else found * 1.0)


def _is_instance(value: Any, kinds: Any) -> bool:
    """`isinstance`: a model may ask whether it has a tensor or a list of tensors, or whether it is being traced."""
    if isinstance(value, kinds) or not isinstance(value, ExampleProxy):
        return isinstance(value, kinds)
    return isinstance(NUMBER.get(value.node, value.example), kinds)


def _is_of_kind(check: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """`torch.jit.isinstance`, which knows `list[torch.Tensor]`, too: what proxies stand for is asked."""
    return lambda value, kind: check(tree_map(lambda v: v.example if isinstance(v, ExampleProxy) else v, value), kind)


def _type_of(value: Any, *more: Any, **options: Any) -> Any:
    """`type`: of a proxy, that of what it stands for."""
    if more or options or not isinstance(value, ExampleProxy):
        return type(value, *more, **options)
    return type(value.example)


def _is_callable(value: Any) -> bool:
    """`callable`: proxies can be called, what they stand for cannot."""
    return callable(value.example if isinstance(value, ExampleProxy) else value)


_TAKING_SIZES: dict[Any, tuple[str, ...]] = {
    torch: ("zeros", "ones", "empty", "rand", "randn"),
    torch.Tensor: ("expand", "view", "reshape", "repeat"),
}


def _of_one_shape(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes sizes one by one, which PyTorch does not dispatch if they are proxies; a shape it does."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        sizes = [i for i, a in enumerate(args) if isinstance(a, int | ExampleProxy)]
        if len(sizes) < 2 or not any(isinstance(args[i], ExampleProxy) for i in sizes):
            return function(*args, **options)
        return function(*args[: sizes[0]], tuple(args[sizes[0] :]), **options)

    return call


def _extreme(function: Callable[..., Any]) -> Callable[..., Any]:
    """`min` and `max`: of sizes, a number that stays symbolic; of numbers of tensors, a tensor."""

    def call(*args: Any, **kwargs: Any) -> Any:
        given: Any = args[0] if len(args) == 1 and type(args[0]) in (list, tuple) else args
        if not kwargs and any(map(is_number_of_tensor, given)):
            found = extreme_of(given, largest=function is builtins.max)
            if found is not NotImplemented:
                return found
        proxy = next((a for a in args if isinstance(a, ExampleProxy)), None)
        if proxy is None or kwargs or not isinstance(proxy.example, int | float | torch.Size):
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", function, args, {})

    return call


_BUILTINS: dict[str, Any] = {
    **{"len": _length, "int": _Integer, "float": _Float, "isinstance": _is_instance, "callable": _is_callable},
    "type": _type_of,
    **{"min": _extreme(builtins.min), "max": _extreme(builtins.max)},
}
"""What the modules whose code is traced find under these names."""


def _deferred(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that PyTorch does not dispatch, as a node where its argument is a proxy."""

    def call(*args: Any, **kwargs: Any) -> Any:
        proxy = next((a for a in leaves((args, kwargs)) if isinstance(a, ExampleProxy)), None)
        if proxy is None:
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", function, args, kwargs)

    return call


class _Shapes(type):
    """The type of `_Shape`."""

    def __call__(cls, *args: Any) -> Any:
        return _deferred(_SIZE)(*args)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _SIZE)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _SIZE)


_SIZE = torch.Size


class _Shape(metaclass=_Shapes):
    """`torch.Size`: of sizes, a shape that stays symbolic."""
