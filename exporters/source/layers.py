"""Layers of torch.nn and torchvision.ops as the calls that make them: found from their attributes, and tried."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torchvision.ops
from torch import nn

from fxcat.passes.codegen.install import original_class

EMPTY = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a call: a plain value, and what it is if it is left out (`EMPTY`: it must be given)."""

    name: str
    value: Any
    default: Any = EMPTY


@dataclass(frozen=True, slots=True)
class Layer:
    """The call that makes a layer, with all arguments that its class has."""

    owner: str
    """`nn`, or `torchvision.ops`."""
    name: str
    arguments: tuple[Argument, ...]


def call_that_makes(module: nn.Module, *, called: bool) -> Layer | None:
    """The call that makes a layer as it is, but for the values of its weights; None if there is none.

    `called`: it has to do what the layer does, too; else it only has to hold the same.
    """
    original: Any = original_class(module)
    for base in original.__mro__:
        owner = _owner(base)
        if owner is None:
            continue
        if called and base.forward is not original.forward:
            return None
        given = _arguments(base, module)
        if given is None:
            return None
        for arguments in (tuple(map(_shorter, given)), tuple(given)):
            if _makes(base, arguments, module):
                return Layer(owner, base.__name__, arguments)
        return None
    return None


def _owner(base: type) -> str | None:
    for owner, name in ((nn, "nn"), (torchvision.ops, "torchvision.ops")):
        if getattr(owner, base.__name__, None) is base and base not in (nn.Module, *_CONTAINERS):
            return name
    return None


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_PLAIN = (bool, int, float, str, type(None), torch.dtype)


def _arguments(base: Any, module: nn.Module) -> list[Argument] | None:
    found: list[Argument] = []
    for parameter in _parameters(base):
        name, default = parameter.name, parameter.default
        if name == "device" or name.startswith("_"):
            continue
        if name == "dtype":
            value = _dtype(module)
            default = torch.float32
        elif name == "bias" and isinstance(default, bool):
            value = _has_bias(module)
        else:
            value = getattr(module, name, default)
        if value is EMPTY or not is_literal(value):
            return None
        found.append(Argument(name, value, default))
    return found


def is_literal(value: Any) -> bool:
    """Whether a value is written as it is."""
    if type(value) in (tuple, list, torch.Size):
        return all(map(is_literal, value))
    return isinstance(value, _PLAIN)


def _parameters(base: Any) -> Iterator[inspect.Parameter]:
    """Those of the constructor; of one that passes on what it gets, those of the next class."""
    for cls in base.__mro__:
        own = vars(cls).get("__init__")
        if own is None:
            continue
        parameters = list(inspect.signature(own).parameters.values())[1:]
        if all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters):
            return (p for p in parameters if p.name != "mode" or cls is base)
    return iter(())


def _dtype(module: nn.Module) -> torch.dtype:
    floats = (t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point() or t.is_complex())
    return next((t.dtype for t in floats), torch.float32)


def _has_bias(module: nn.Module) -> bool:
    value = getattr(module, "bias", None)
    return value if isinstance(value, bool) else value is not None


def _shorter(argument: Argument) -> Argument:
    """`3` for `(3, 3)`."""
    value = argument.value
    if type(value) is tuple and value and len(set(map(repr, value))) == 1:
        return Argument(argument.name, value[0], argument.default)
    return argument


def _makes(base: Any, arguments: tuple[Argument, ...], module: nn.Module) -> bool:
    """Whether the call makes a layer that is the same."""
    try:
        with torch.device("meta"):
            made: nn.Module = base(**{a.name: a.value for a in arguments})
    except Exception:  # what constructors make of values that are not theirs
        return False
    own = {n: v for n, v in vars(made).items() if n not in _OF_ALL}
    return (
        _shapes(made) == _shapes(module)
        and made._non_persistent_buffers_set == module._non_persistent_buffers_set
        and all(n in vars(module) and _is_same(v, vars(module)[n]) for n, v in own.items())
    )


_OF_ALL = {*vars(nn.Module())}
"""What all modules have: modes, hooks, and what they hold."""


def _is_same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (not is_literal(one) or one == other)


def _shapes(module: nn.Module) -> dict[str, Any]:
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: (tuple(t.shape), t.dtype) for name, t in named}
