"""What stands in for functions of Python and of PyTorch while a model is traced.

They do the same, and know proxies: a number that is computed from sizes stays symbolic, and no private helper of
torch.nn asks for the type of a proxy.
"""

from __future__ import annotations

import builtins
import functools
import sys
import types
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.modules import transformer

from fxcat.passes.proxy import ExampleProxy


@contextmanager
def stand_ins(modules: Iterable[str]) -> Generator[None]:
    """Put them in place: in PyTorch, and in the Python modules of these names and those whose functions they use."""
    added: list[tuple[dict[str, Any], str]] = []
    with ExitStack() as stack:
        stack.enter_context(patch.object(transformer, "_detect_is_causal_mask", _said_to_be_causal))
        stack.enter_context(patch.object(torch.nn.functional, "_none_or_dtype", _dtype_of))
        stack.enter_context(patch.object(torch, "is_tensor", lambda value: _is_instance(value, torch.Tensor)))
        for owner, names in _TAKING_SIZES.items():
            for name in names:
                stack.enter_context(patch.object(owner, name, _of_one_shape(getattr(owner, name))))
        for name in ("finfo", "iinfo"):
            stack.enter_context(patch.object(torch, name, _deferred(getattr(torch, name))))
        try:
            for module in _with_helpers(frozenset(modules)):
                known = vars(sys.modules[module])
                for name in _BUILTINS.keys() - known.keys():
                    known[name] = _BUILTINS[name]
                    added.append((known, name))
            yield
        finally:
            for known, name in added:
                del known[name]


@cache
def _with_helpers(modules: frozenset[str]) -> frozenset[str]:
    """Python modules, and those from which they have functions, unless these belong to Python or to another package."""
    packages = {name.partition(".")[0] for name in modules}
    found = {name for name in modules if not name.startswith("torch.")}
    stack = list(found)
    while stack:
        for value in list(vars(sys.modules[stack.pop()]).values()):
            name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
            if isinstance(value, types.ModuleType | types.FunctionType) and isinstance(name, str) and name not in found:
                package = name.partition(".")[0]
                if name in sys.modules and (package in packages or _is_loose(name)) and package != "torch":
                    found.add(name)
                    stack.append(name)
    return frozenset(found)


def _is_loose(name: str) -> bool:
    """Whether a Python module is not installed: a script's, or one beside it."""
    file = getattr(sys.modules[name], "__file__", None) or "site-packages"
    return "site-packages" not in file and name.partition(".")[0] not in {*sys.stdlib_module_names, "fxcat"}


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


class _AnInteger(type):
    """The type of `_Integer`."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        given = args[0] if len(args) == 1 else None
        if isinstance(given, ExampleProxy) and isinstance(given.example, int | float):
            return given.tracer.create_proxy("call_function", int, args, {})
        return int(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, int)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, int)


class _Integer(metaclass=_AnInteger):
    """`int` for the modules whose code is traced: what is computed from sizes stays symbolic."""


def _is_instance(value: Any, kinds: Any) -> bool:
    """`isinstance`: a model may ask whether it has a tensor or a list of tensors."""
    return isinstance(value.example if isinstance(value, ExampleProxy) else value, kinds)


_TAKING_SIZES: dict[Any, tuple[str, ...]] = {
    torch: ("zeros", "ones", "empty", "rand", "randn"),
    torch.Tensor: ("expand", "view", "reshape"),
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
    """`min` and `max`: of sizes, a number that stays symbolic."""

    def call(*args: Any, **kwargs: Any) -> Any:
        proxy = next((a for a in args if isinstance(a, ExampleProxy)), None)
        if proxy is None or kwargs or not isinstance(proxy.example, int | float | torch.Size):
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", function, args, {})

    return call


_BUILTINS: dict[str, Any] = {
    **{"len": _length, "int": _Integer, "isinstance": _is_instance},
    **{"min": _extreme(builtins.min), "max": _extreme(builtins.max)},
}
"""What the modules whose code is traced find under these names."""


def _deferred(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that PyTorch does not dispatch, as a node where its argument is a proxy."""

    def call(*args: Any) -> Any:
        proxy = next((a for a in args if isinstance(a, ExampleProxy)), None)
        return function(*args) if proxy is None else proxy.tracer.create_proxy("call_function", function, args, {})

    return call
