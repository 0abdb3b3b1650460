"""The rule table: one entry per op says how labels flow, what the op costs, and how it changes when units go.

Keys are module classes (matched along the class hierarchy), functions, and method names. Anything that is not in
the table is opaque: its units are frozen and it is reported.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

from fxcat.checks import check_op, shown
from fxcat.errors import FxcatError, InputError
from fxcat.passes.graph.label_arrays import Labels
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.terms import Term


class Zero(enum.Enum):
    """What an op does to a unit that is exactly zero in its inputs."""

    PRESERVES = "zero if every input is zero"
    ANY = "zero if one input is zero"
    BREAKS = "not zero, whatever the inputs are"


@dataclass(frozen=True, slots=True)
class Sample:
    """A small instance of an op for the tests: a module, the shape of its input, and the axis with the units."""

    module: nn.Module
    shape: tuple[int, ...]
    axis: int = 1


@dataclass(frozen=True, slots=True)
class Moved:
    """What is left of a movement's value.

    `source`, `result`: per axis the surviving indices, None where all survive (for several results, one such tuple
    each). `shape`: the shape that is left of a single result; `has_units`: which of its axes have units. `number`:
    what a node among the arguments that computes a number gives after removal.
    """

    source: tuple[torch.Tensor | None, ...]
    result: tuple[torch.Tensor | None, ...] | tuple[tuple[torch.Tensor | None, ...], ...]
    shape: tuple[int, ...]
    has_units: tuple[bool, ...]
    number: Callable[[fx.Node], Any]


@dataclass(frozen=True, slots=True)
class Size:
    """In the arguments of a `Replacement`: one size of a shape that a node holds."""

    shape: fx.Node
    axis: int


@dataclass(frozen=True, slots=True)
class Share:
    """In the arguments of a `Replacement`: a computed number, as in batch · heads, less what goes of it.

    `live`: what is left of the number that it is for the example inputs.
    """

    number: fx.Node
    live: int


@dataclass(frozen=True, slots=True)
class Replacement:
    """A call that replaces a node's: None keeps the target. Sequences in `args` may hold `Size`s and `Share`s."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Callable[..., Any] | str | None = None


@dataclass(frozen=True, slots=True)
class Folding:
    """A subclass of a module's class that takes its gate as further arguments of `forward`.

    `parameters`: names of one-dimensional parameters along the output's axis 1. `forward` receives them multiplied by
    the gate, in this order; those of all modules are multiplied at once. With none it receives the gate itself.
    """

    subclass: type[nn.Module]
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Counting:
    """A form of an op whose statistics count live units only: it takes their gate as the keyword argument `gate`.

    `target`: a subclass of the module's class, or a function. `labels`: of the axes that the statistics run over, of
    any shape; the gate has the same.
    """

    target: Callable[..., Any]
    labels: torch.Tensor


class Rule:
    """What fxcat knows about one op. Subclass it, register it with `rule(...)`."""

    zero: Zero = Zero.BREAKS
    movement: bool = False
    """The op only moves elements: its output labels are found by running it on the input labels."""

    views: bool = False
    """The result may be in the memory of the first input."""

    keeps_infinity: bool = False
    """What is infinite in an input is so in the output."""

    affine: bool = False
    """The module has a `weight` and perhaps a `bias`, and is affine in its first input; the channels of what it reads
    and gives lie along axis 1 − (dimensions of the weight)."""

    equivariant: bool = False
    """With its channels in another order, in all inputs and all parameters that have them, the result is the same in
    that order: nothing depends on which of them lie beside each other."""

    parameters: tuple[str, ...] = ()
    """Parameters and buffers of the module that `flow` binds to axes; a module that lacks one is opaque."""

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        """The output's example value for a module with one input, where it is known without running the module.

        Running a meta kernel costs up to a millisecond; None runs it.
        """
        return None

    def infer_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """The same for a module with several inputs, or with others than tensors."""
        return None

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """The same for a function."""
        return None

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        """Labels of the output; unites what must be removed together, freezes what cannot be removed."""
        raise NotImplementedError

    def returns_input(self, node: fx.Node, module: nn.Module | None, training: bool) -> bool:
        """Whether the result is the input itself, and not a new tensor."""
        return False

    def zero_at(self, node: fx.Node) -> Zero:
        """`zero` for one node, where it depends on the arguments."""
        return self.zero

    def equivariant_at(self, flow: Flow, node: fx.Node) -> bool:
        """`equivariant` for one node, where it depends on the module."""
        return self.equivariant

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        """The inputs whose zeros `zero` speaks of; not conditions, positions, or what only gives a shape."""
        return tuple(node.all_input_nodes)

    def infinite_at(self, flow: Flow, node: fx.Node) -> bool:
        """Whether the result may hold infinities, which no gate makes zero: gates go behind what takes them."""
        return False

    def binds(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The parameters among the arguments of a function whose axes `flow` binds one by one, as a module's."""
        return ()

    def weights(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The arguments that may be weights: parameters, or computed from them, with units along every axis."""
        return ()

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        """The inputs in which a dead unit has to be exactly zero (the op mixes units)."""
        return ()

    def carriers(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...] | None:
        """Those of `zero_from` that are zero for a dead unit wherever the result has to be; None compares labels."""
        return None

    def macs(self, flow: Flow, node: fx.Node) -> tuple[Term, ...] | None:
        """Multiply-adds for one example, as `torch.utils.flop_counter` counts them (2 FLOPs each).

        None has them counted on the example values, for a node whose units are all frozen.
        """
        return ()

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        """The form that counts live units, for an op whose statistics run over labelled axes.

        What it returns is zero for dead units, and does not depend on what they hold in the input.
        """
        return None

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        """Set the attributes that state a size after the module's parameters were sliced.

        `entering`: shape of the first input after removal.
        """

    def folding(self, module: nn.Module, shape: torch.Size) -> Folding | None:
        """How a gate on the output folds into the module's affine parameters.

        `shape` is that of the output; None when folding is impossible or dearer than multiplying the output.
        """
        return None

    def folding_call(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The parameters among a function's arguments that its gate folds into; none when folding is impossible."""
        return ()

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        """New arguments for a movement whose numbers state sizes, or None to keep it as it is."""
        return None

    def samples(self) -> tuple[Sample, ...]:
        """Small instances that the parametrised test runs."""
        return ()


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

    `targets`: module classes, functions, subclasses of `torch.autograd.Function`, and names of tensor methods. Raises
    `InputError` for anything else and for a class that is no `Rule`, and `FxcatError` if one of them has a rule
    already; then none is registered.
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
    return _FUNCTIONS, target


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


@cache
def autograd_call(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """The function that stands for `function.apply` in a graph: its backward pass is its own, it is not traced into."""

    def apply(*args: Any) -> Any:
        return function.apply(*args)  # pyright: ignore[reportUnknownMemberType]

    apply.__name__ = apply.__qualname__ = function.__name__
    apply.__module__ = function.__module__
    return apply


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module is more than its `forward`."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def computes_weights(module: nn.Module) -> bool:
    """Whether the module's weights are computed from parameters before each call, by `torch.nn.utils.parametrize`, or
    by hooks of torch.nn that do nothing else; then it is captured as the function that it calls."""
    if not isinstance(module, _WITH_FUNCTIONS) or type(module).forward is not _own_class(module).forward:
        return False
    hooks = list(module._forward_pre_hooks.values())
    if module._forward_hooks or not all(isinstance(h, WeightNorm | BasePruningMethod) for h in hooks):
        return False
    return bool(hooks) or is_parametrized(module)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WITH_FUNCTIONS = (nn.Linear, *_CONVOLUTIONS)


def _own_class(module: nn.Module) -> type[nn.Module]:
    return next(c for c in type(module).__mro__ if c in _WITH_FUNCTIONS)


ASSERTING: tuple[object, ...] = (torch._assert, torch._assert_async)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
"""Functions that assert something."""

HOOKED = "hooked"
"""Key in the `meta` of a node whose module had forward hooks when it was captured: no rule says what they do."""


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
        _DECOMPOSITIONS[cls] = function
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
    return _DECOMPOSITIONS.get(function)


def function_rule(function: Any) -> Rule | None:
    """The rule of a function."""
    return _first_rule(_FUNCTIONS.get(function), function)


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


def is_leaf(module: nn.Module) -> bool:
    """Whether capture keeps the module as one node: it has a rule, or it is torch's own and holds weights itself.

    Those of torch.nn that hold none call functions or other modules, which are captured instead.
    """
    if isinstance(module, ParametrizationList) or computes_weights(module):
        return False
    if module_rule(module) is not None:
        return True
    if find_decomposition(module) is not None:
        return False
    own = type(module).__module__
    held = (*module._parameters.values(), *module._buffers.values())
    return own.startswith("torch.ao") or (own.startswith("torch.nn") and any(t is not None for t in held))


def is_of_torch(module: nn.Module) -> bool:
    """Whether torch.nn wrote a module and all that it holds, and it is no container of what a user chose."""
    chosen = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    return not chosen and all(type(m).__module__.startswith("torch.nn") for m in module.modules())


def find_rule(node: fx.Node, module: nn.Module | None) -> Rule | None:
    """The rule for a node (and the module that it calls), or None: opaque."""
    if node.op == "call_function":
        return function_rule(node.target) if callable(node.target) else None
    if node.op == "call_method":
        return method_rule(str(node.target))
    if module is not None and HOOKED not in node.meta:
        found = module_rule(module)
        if found is not None and all(n in module._parameters or n in module._buffers for n in found.parameters):
            return found
    return None


def registered() -> tuple[Rule, ...]:
    """Every rule in the table, once."""
    return tuple(dict.fromkeys([*_MODULES.values(), *_FUNCTIONS.values(), *_METHODS.values()]))
