"""Calls and arguments of nodes as Python, with no more parentheses and arguments than it takes."""

from __future__ import annotations

import builtins
import inspect
import keyword
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx


class Text(NamedTuple):
    """Code, and how strongly it holds together: an operand of an operator that is stronger takes parentheses."""

    code: str
    strength: int = 100

    def within(self, strength: int) -> str:
        """As an operand of something of that strength."""
        return self.code if self.strength >= strength else f"({self.code})"


_COMPARES, _SIGN, _POWER, _ATOM = 40, 80, 90, 100
_INFIX: dict[Any, tuple[str, int]] = {
    **dict.fromkeys([operator.eq], ("==", _COMPARES)),
    **{operator.ne: ("!=", _COMPARES), operator.lt: ("<", _COMPARES), operator.le: ("<=", _COMPARES)},
    **{operator.gt: (">", _COMPARES), operator.ge: (">=", _COMPARES)},
    **{operator.or_: ("|", 45), operator.xor: ("^", 46), operator.and_: ("&", 47)},
    **{operator.lshift: ("<<", 50), operator.rshift: (">>", 50), operator.add: ("+", 60), operator.sub: ("-", 60)},
    **{operator.mul: ("*", 70), operator.truediv: ("/", 70), operator.floordiv: ("//", 70), operator.mod: ("%", 70)},
    **{operator.matmul: ("@", 70), operator.pow: ("**", _POWER)},
}
_PREFIX: dict[Any, str] = {operator.neg: "-", operator.pos: "+", operator.invert: "~"}


class Writer:
    """Writes nodes. `this`: the name of the module; `taken`: names that mean something else.

    `names` is what the names in the text mean.
    """

    def __init__(self, this: str, taken: Iterable[str], value_of: Callable[[fx.Node], Text]) -> None:
        self.names: dict[str, Any] = {}
        self.this, self.taken, self._value_of = this, {*taken, this}, value_of
        self.objects: dict[int, str] = {}

    def call(self, node: fx.Node) -> Text:
        """What a node computes; of an assignment to a part of a value the statement."""
        if node.op == "get_attr":
            return Text(self.attribute(str(node.target)))
        args, kwargs = node.args, dict(node.kwargs)
        if node.op == "call_module":
            return Text(f"{self.attribute(str(node.target))}({self._given(args, kwargs)})")
        if node.op == "call_method":
            owner = self.argument(args[0]).within(_ATOM)
            return Text(f"{owner}.{node.target}({self._given(args[1:], kwargs)})")
        target: Any = node.target
        written = None if kwargs else self._operator(target, args)
        if written is not None:
            return written
        return Text(f"{self._function(target)}({self._given(args, _needed(target, kwargs))})")

    def attribute(self, path: str) -> str:
        """What lies at a path from the module, however its parts are called: names are data."""
        found = self.this
        for part in path.split("."):
            found = f"{found}.{part}" if is_name(part) else f"getattr({found}, {part!r})"
        return found

    def _operator(self, target: Any, args: tuple[Any, ...]) -> Text | None:
        """A call of a function that Python has a sign for; None for others."""
        if target is operator.not_:
            return self._not(args[0])
        if target in _INFIX and len(args) == 2:
            if target is operator.eq and args[1] is False:
                return self._not(args[0])
            sign, strength = _INFIX[target]
            left, right = strength, strength + 1
            if strength == _COMPARES:
                left += 1
            elif strength == _POWER:
                left, right = _POWER + 1, _SIGN
            one, other = self.argument(args[0]).within(left), self.argument(args[1]).within(right)
            return Text(f"{one} {sign} {other}", strength)
        if target in _PREFIX:
            return Text(f"{_PREFIX[target]}{self.argument(args[0]).within(_SIGN)}", _SIGN)
        if target is operator.getitem:
            return Text(f"{self.argument(args[0]).within(_ATOM)}[{self._index(args[1])}]")
        if target is operator.setitem:
            value = self.argument(args[2]).code
            return Text(f"{self.argument(args[0]).within(_ATOM)}[{self._index(args[1])}] = {value}", 0)
        if target is builtins.getattr and len(args) == 2 and is_name(args[1]):
            return Text(f"{self.argument(args[0]).within(_ATOM)}.{args[1]}")
        return None

    def _not(self, value: Any) -> Text:
        return Text(f"not {self.argument(value).within(_COMPARES)}", _COMPARES - 1)

    def _given(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> str:
        if not all(map(is_name, kwargs)):
            return f"{self._listed(args)}, **{self.argument(kwargs).code}".removeprefix(", ")
        named = (f"{name}={self.argument(a).code}" for name, a in kwargs.items())
        return ", ".join([*(self.argument(a).code for a in args), *named])

    def _listed(self, values: Iterable[Any]) -> str:
        return ", ".join(self.argument(v).code for v in values)

    def _index(self, index: Any) -> str:
        if isinstance(index, tuple) and index and not hasattr(index, "_fields"):  # pyright: ignore[reportUnknownArgumentType]
            parts: list[Any] = list(index)  # pyright: ignore[reportUnknownArgumentType]
            return ", ".join(map(self._entry, parts)) + ("," if len(parts) == 1 else "")
        return self._entry(index)

    def _entry(self, entry: Any) -> str:
        if not isinstance(entry, slice):
            return self.argument(entry).code
        start, stop, step = ("" if e is None else self.argument(e).code for e in (entry.start, entry.stop, entry.step))
        return f"{start}:{stop}" + (f":{step}" if step else "")

    def argument(self, value: Any) -> Text:
        """Any argument: nodes, plain values, containers of these, and whatever else has a name then."""
        if isinstance(value, fx.Node):
            return self._value_of(value)
        kind = type(value)
        if kind in (int, float, complex):
            return self.number(value)
        if value is Ellipsis:
            return Text("...")
        if kind in (bool, str, bytes) or value is None:
            return Text(repr(value))
        if isinstance(value, tuple) and hasattr(value, "_fields"):  # pyright: ignore[reportUnknownArgumentType]
            return Text(f"{self._function(kind)}({self._listed(value)})")  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(value, torch.Size | tuple):
            parts: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
            return Text(f"({self._listed(parts)}{',' if len(parts) == 1 else ''})")
        if isinstance(value, list):
            return Text(f"[{self._listed(value)}]")  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(value, dict):
            items: dict[Any, Any] = value
            pairs = (f"{self.argument(k).code}: {self.argument(v).code}" for k, v in items.items())
            return Text(f"{{{', '.join(pairs)}}}")
        if isinstance(value, slice):
            return Text(f"slice({self._listed([value.start, value.stop, value.step])})")
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            return Text(f"{self.named('torch', torch)}.{repr(value).removeprefix('torch.')}")
        if isinstance(value, torch.device):
            return Text(f"{self.named('torch', torch)}.device({str(value)!r})")
        return Text(self._function(value))

    def number(self, value: Any) -> Text:
        """A number as it is."""
        if isinstance(value, float) and not math.isfinite(value):
            return Text(f"float({str(value)!r})")
        text = repr(value)
        return Text(text, _SIGN if text.startswith("-") else _ATOM)

    def _function(self, target: Any) -> str:
        """The name of a function, a class or any other object."""
        name = getattr(target, "__name__", type(target).__name__)
        if is_name(name):
            if getattr(F, name, None) is target:
                return f"{self.named('F', F)}.{name}"
            for module in (torch, operator, math):
                if getattr(module, name, None) is target:
                    return f"{self.named(module.__name__, module)}.{name}"
            if getattr(builtins, name, None) is target and name not in self.taken:
                return name
        return self.named(name if is_name(name) else "function", target)

    def named(self, name: str, target: Any) -> str:
        """A name for an object, the same every time."""
        known = self.objects.get(id(target))
        if known is None:
            known, number = name, 0
            while known in self.taken or known in self.names or hasattr(builtins, known):
                number += 1
                known = f"{name}_{number}"
            self.objects[id(target)], self.names[known] = known, target
        return known


def is_name(text: Any) -> bool:
    """Whether Python reads the same name where it is written."""
    return isinstance(text, str) and text.isascii() and text.isidentifier() and not keyword.iskeyword(text)


def _needed(target: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name without those that the functions of torch.nn have by default."""
    if not kwargs or getattr(target, "__module__", None) != F.__name__:
        return kwargs
    defaults = _defaults(target)
    return {
        k: v for k, v in kwargs.items() if not (k in defaults and type(v) is type(defaults[k]) and v == defaults[k])
    }


@cache
def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {p.name: p.default for p in parameters if type(p.default) in (bool, int, float, str, type(None))}
