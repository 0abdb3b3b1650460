"""The rule table: which op has which rule.

Keys are module classes (matched along the class hierarchy), functions, and method names. Anything that is not in
the table is opaque: its units are frozen and it is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload

from fxcat.checks import check_op, shown
from fxcat.errors import FxcatError, InputError
from fxcat.passes.graph.meta import HOOKED
from fxcat.passes.rules.base import Rule, Zero

R = TypeVar("R", bound=Rule)
C = TypeVar("C", bound=Callable[..., Any])

_MODULES: dict[type[nn.Module], Rule] = {}
_FUNCTIONS: dict[Callable[..., Any], Rule] = {}
_METHODS: dict[str, Rule] = {}
_BY_NATURE: list[tuple[Callable[[nn.Module], bool], Rule]] = []
_DECOMPOSITIONS: dict[Callable[..., Any], Callable[..., Any]] = {}
_OVERRIDABLE = ("forward", "_conv_forward")


def rule(*targets: type[nn.Module] | Callable[..., Any] | str, **options: Any) -> Callable[[type[R]], type[R]]:
    """Register a `Rule` subclass, instantiated with `options`.

    `targets`: module classes, functions, ops of `torch.library`, subclasses of `torch.autograd.Function`, and names of
    tensor methods. Raises `InputError` for anything else and for a class that is no `Rule`, and `FxcatError` if one of
    them has a rule already; then none is registered.
    """
    if not targets:
        raise InputError("rule() got no op", remedy="write @rule(YourModule), or @rule(your_function)")
    places = [_place(target) for target in targets]

    def register(cls: type[R]) -> type[R]:
        instance = _rule_of(cls, options)
        for table, target in places:
            if target in table:
                raise FxcatError(f"there is a rule for {target!r} already", remedy="register each op once")
        for table, target in places:
            table[target] = instance
        return cls

    return register


def _place(target: Any) -> tuple[dict[Any, Rule], Any]:
    """The table that an op belongs to, and its key there."""
    if isinstance(target, str):
        return _METHODS, target
    if isinstance(target, type) and issubclass(target, nn.Module):
        return _MODULES, target
    if isinstance(target, type) and issubclass(target, torch.autograd.Function):
        return _FUNCTIONS, autograd_call(target)
    check_op(target, "rule()")
    return _FUNCTIONS, _packet(target)


def _packet(op: Any) -> Any:
    """An op of `torch.library` goes by its packet, which its definition and a single overload stand for."""
    if isinstance(op, CustomOpDef):
        op = op._opoverload  # pyright: ignore[reportPrivateUsage]
    if isinstance(op, OpOverload) and len(op.overloadpacket.overloads()) == 1:
        return op.overloadpacket
    return op


def _rule_of(cls: Any, options: dict[str, Any]) -> Any:
    """An instance of a class of rules."""
    if not isinstance(cls, type) or not issubclass(cls, Rule):
        raise InputError(
            f"{getattr(cls, '__name__', shown(cls))} is no subclass of Rule",
            remedy="write class YourRule(fxcat.rules.Elementwise), for example",
        )
    try:
        instance = cls(**options)
    except TypeError as error:
        raise InputError(f"{cls.__name__} cannot be made: {error}", remedy="check the options of rule()") from error
    if not isinstance(instance.zero, Zero):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            f"{cls.__name__}.zero is {shown(instance.zero)}",
            remedy=f"give one of {', '.join(map(str, Zero))}",
        )
    return instance


class AutogradCall:
    """Stands for `function.apply` in a graph: its backward pass is its own, it is not traced into.

    It has the name of the function, and is pickled as what makes it again.
    """

    def __init__(self, function: type[torch.autograd.Function], again: Callable[..., Any]) -> None:
        self.function, self._again = function, again
        self.__name__, self.__qualname__, self.__module__ = function.__name__, function.__name__, function.__module__

    def __call__(self, *args: Any) -> Any:
        return self.function.apply(*args)  # pyright: ignore[reportUnknownMemberType]

    def __reduce__(self) -> tuple[Any, ...]:
        return self._again, (self.function,)


@cache
def autograd_call(function: type[torch.autograd.Function]) -> AutogradCall:
    """The one for an autograd function."""
    return AutogradCall(function, autograd_call)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module is more than its `forward`."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


ASSERTING: tuple[object, ...] = (torch._assert, torch._assert_async)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
"""Functions that assert something."""


def module_rule(module: nn.Module) -> Rule | None:
    """The rule of the nearest registered base class whose computation the module's class does not override."""
    cls = type(module)
    for base in cls.__mro__:
        found = _MODULES.get(base)
        if found is not None:
            unchanged = base is cls or all(getattr(cls, m, None) is getattr(base, m, None) for m in _OVERRIDABLE)
            return found if unchanged else None
    return next((found for takes, found in _BY_NATURE if takes(module)), None)


def rule_by_nature(found: Rule, takes: Callable[[nn.Module], bool]) -> None:
    """Register a rule for modules of classes that nobody can list."""
    _BY_NATURE.append((takes, found))


def decomposition(cls: Callable[..., Any]) -> Callable[[C], C]:
    """Register what to capture for a module class instead of its `forward`: a function of the module and its arguments;
    or for a function, or an autograd function instead of `apply`: a function of its arguments.

    It computes the same by simpler ops, or returns `NotImplemented`: then the module stays one opaque node.
    """
    check_op(cls, "decomposition()")

    def register(function: C) -> C:
        _DECOMPOSITIONS[_packet(cls)] = function
        return function

    return register


def find_decomposition(module: nn.Module) -> Callable[..., Any] | None:
    """What to capture instead of the module's `forward`, unless its class overrides that."""
    if has_hooks(module):
        return None
    for base in type(module).__mro__:
        if base in _DECOMPOSITIONS:
            return _DECOMPOSITIONS[base] if type(module).forward is base.forward else None
    return None


def function_decomposition(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """What to capture instead of a function or an autograd function."""
    return _DECOMPOSITIONS.get(_packet(function))


def function_rule(function: Any) -> Rule | None:
    """The rule of a function."""
    op = _packet(function)
    return _first_rule(_FUNCTIONS.get(op), op)


def method_rule(name: str) -> Rule | None:
    """The rule of a method of tensors."""
    return _first_rule(_METHODS.get(name), name)


def _first_rule(own: Rule | None, op: Any) -> Rule | None:
    """An op's own rule, or that of the same op under another name."""
    if own is not None:
        return own
    known = (_METHODS.get(o) if isinstance(o, str) else _FUNCTIONS.get(o) for o in _other_names(op))
    return next((found for found in known if found is not None), None)


@cache
def _other_names(op: Any) -> tuple[Any, ...]:
    """Other keys of an op: `x.exp_()` and `torch.exp_(x)` compute what `x.exp()` and `torch.exp(x)` do."""
    name = op if isinstance(op, str) else getattr(op, "__name__", "")
    plain = name if name.startswith("_") else name.removesuffix("_")
    owner = next((o for o in (torch, F, torch.special) if getattr(o, name.removeprefix("special_"), None) is op), None)
    if plain in _NOT_PLAIN or not (owner is not None or hasattr(torch.Tensor, name)):
        return ()
    if owner is F:
        found = (getattr(F, plain, None),)
    else:
        plain = plain.removeprefix("special_") if owner is torch.special else plain
        plain = _SPECIAL.get(plain, plain) if owner is torch.special else plain
        found = plain, getattr(torch, plain, None)
    return tuple(o for o in found if o is not None and o != op)


_NOT_PLAIN = ("bernoulli", "dropout", "alpha_dropout", "feature_alpha_dropout", "feature_dropout", "where")
"""Names of what takes other arguments, or does other things with them, as a method, a function or in place."""

_SPECIAL = {"expit": "sigmoid", "gammaln": "lgamma", "psi": "digamma"}
"""Names that torch.special has for functions of torch."""


def find_rule(node: fx.Node, module: nn.Module | None) -> Rule | None:
    """The rule for a node (and the module that it calls), or None: opaque."""
    if node.op == "call_function":
        return function_rule(node.target) if callable(node.target) else None
    if node.op == "call_method":
        return method_rule(str(node.target))
    if module is not None and not HOOKED.has(node):
        found = module_rule(module)
        if found is not None and all(n in module._parameters or n in module._buffers for n in found.parameters):
            return found
    return None


def registered() -> tuple[Rule, ...]:
    """Every rule in the table, once."""
    return tuple(dict.fromkeys([*_MODULES.values(), *_FUNCTIONS.values(), *_METHODS.values()]))
