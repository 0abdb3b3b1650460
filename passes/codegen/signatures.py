"""The first lines of a generated `forward`: it has the parameters that were written and checks what it is given."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import fx, nn

from fxcat.passes.capture.asked import conditions
from fxcat.passes.graph.meta import ABSENT, PATTERN, SAME_AS, VALUE
from fxcat.passes.graph.nested import CONSTANTS, Slot

signature_of = lru_cache(1024)(inspect.signature)


def parameters_of(base: type[nn.Module], given: Sequence[str]) -> list[inspect.Parameter]:
    """The parameters of a `forward`, as it was written; those of the graph if they have nothing to do with these."""
    written = list(signature_of(base.forward).parameters.values())[1:]
    if {g.lstrip("*") for g in given} <= {p.name for p in written}:
        return written
    return [inspect.Parameter(g, inspect.Parameter.POSITIONAL_OR_KEYWORD) for g in given]


class Head:
    """The first line of a generated `forward`, with all parameters that it was written with, and what it checks.

    `this`: what it calls the module; `names`: gets what its text means.
    """

    def __init__(
        self,
        this: str,
        parameters: Sequence[inspect.Parameter],
        given: Mapping[str, fx.Node],
        names: dict[str, Any],
    ) -> None:
        self.this, self.names = this, names
        self._parameters = parameters
        self._given = {name.lstrip("*"): node for name, node in given.items()}
        self._constants: dict[str, str] = {}
        self._types: dict[str, str] = {}
        self.names |= {"_mapping": Mapping, "_others": _NO_TENSORS, "_is": _is, "_is_empty": _is_empty}
        self.names |= {"_is_scripting": torch.jit.is_scripting}  # pyright: ignore[reportPrivateImportUsage]
        self.names |= {"_isinstance": isinstance, "_len": len, "_sequence": (tuple, list)}
        for name, node in self._given.items():
            if isinstance(PATTERN.get(node, Slot(0)), CONSTANTS):
                self._constants[name] = f"_given_{name}{len(names) if f'_given_{name}' in names else ''}"
                names[self._constants[name]] = PATTERN.of(node)
        parts, passed, stars = [this], list[str](), False
        for i, parameter in enumerate(parameters):
            name, kind = parameter.name, parameter.kind
            stars |= kind is parameter.VAR_POSITIONAL
            if kind is parameter.KEYWORD_ONLY and not stars:
                parts.append("*")
                stars = True
            mark = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(kind, "")
            of_type = "" if mark else self._type(parameter)
            self._types[name] = of_type
            equals = " = " if of_type else "="
            default = "" if parameter.default is parameter.empty else f"{equals}{self._default(parameter)}"
            parts.append(f"{mark}{name}{of_type}{default}")
            passed.append(f"{name}={name}" if kind is parameter.KEYWORD_ONLY else mark + name)
            later = parameters[i + 1].kind if i + 1 < len(parameters) else None
            if kind is parameter.POSITIONAL_ONLY and later is not kind:
                parts.append("/")
        self.text, self.passed = ", ".join(parts), ", ".join(passed)

    def _type(self, parameter: inspect.Parameter) -> str:
        """What TorchScript has to be told of a parameter: it takes those of which nothing is said for tensors."""
        node = self._given.get(parameter.name)
        if node is None and parameter.default is parameter.empty:
            return ""
        given = parameter.default if node is None else PATTERN.get(node, VALUE.get(node))
        kind = _type_of(given)
        if kind in ("", "torch.Tensor"):
            return ""
        self.names["torch"] = torch
        return f": {kind}"

    def _default(self, parameter: inspect.Parameter) -> str:
        if parameter.default is None or type(parameter.default) in (bool, int, str):
            return repr(parameter.default)
        self.names[f"_default_{parameter.name}"] = parameter.default
        return f"_default_{parameter.name}"

    @property
    def start(self) -> tuple[str, ...]:
        """Lines that hand a call over that does not fit; TorchScript knows kinds, and can only fail."""
        if not self.fails:
            return ()
        given = f"    if {self.fails}:", f"        return _as_written({self.this}, {self.passed})"
        checks = [f"    {line}" for line in self.checks]
        return ("if not _is_scripting():", *given, *(["else:", *checks] if checks else ()))

    @property
    def checks(self) -> list[str]:
        """What TorchScript can check of the arguments, as statements."""
        return [f"assert {v}" for p in self._parameters for v in self._values(p)]

    def typed(self, name: str) -> str:
        """A parameter as one of another function."""
        return name + self._types.get(name, "")

    def fits(self, absent: Sequence[str]) -> str:
        """A condition: the arguments are of the kinds that were captured; those `absent` are left out."""
        return " and ".join(self._conditions(absent)) or "True"

    @property
    def fails(self) -> str:
        """The opposite for the call with all arguments; empty if it fits always."""
        opposites = [c.removeprefix("not ") if c.startswith("not ") else f"not {c}" for c in self._conditions(())]
        return " or ".join(opposites)

    def _conditions(self, absent: Sequence[str]) -> list[str]:
        return [c for p in self._parameters for c in self._condition(p, p.name in absent)]

    def _values(self, parameter: inspect.Parameter) -> Iterable[str]:
        """What TorchScript can check of a parameter."""
        name, node = parameter.name, self._given.get(parameter.name)
        if node is not None and SAME_AS.has(node):
            return [f"{name} is {SAME_AS.of(node)}"]
        value = parameter.default if node is None else PATTERN.get(node)
        if value is None and (node is None or PATTERN.has(node)):
            return [f"{name} is None"]
        return [f"{name} == {value!r}"] if type(value) in (bool, int, float, str) else []

    def _condition(self, parameter: inspect.Parameter, is_absent: bool) -> Iterable[str]:
        name = parameter.name
        stars = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if name not in self._given or is_absent:
            if stars:
                return [f"_is_empty({name})"]
            default = self._default(parameter)
            if parameter.default is None or isinstance(parameter.default, bool):
                return [f"({name} is {default})"]
            return [f"_is({name}, {default})"]
        given = self._given[name]
        if stars:
            return ()
        if SAME_AS.has(given):
            return [f"({name} is {SAME_AS.of(given)})"]
        if name in self._constants:
            return [f"_is({name}, {self._constants[name]})"]
        return conditions(name, PATTERN.get(given, Slot(0)), ABSENT.get(given, {}), self.names, name)


def name_of_module(graphs: Sequence[fx.Graph], parameters: Sequence[inspect.Parameter]) -> str:
    """What the generated code calls the module: `self`, unless something else in it has that name."""
    nodes = [n for graph in graphs for n in graph.nodes]
    taken = {n.name for n in nodes} | {str(n.target).lstrip("*") for n in nodes if n.op == "placeholder"}
    taken |= {p.name for p in parameters}
    return "self" if "self" not in taken else next(n for i in itertools.count() if (n := f"module_{i}") not in taken)


def _type_of(given: Any) -> str:
    """The type of an argument, by its template or value; empty where TorchScript has none."""
    if isinstance(given, torch.Tensor | Slot):
        return "torch.Tensor"
    if given is None:
        return "torch.Tensor | None"
    if type(given) in (bool, int, float, str):
        return type(given).__name__
    if type(given) in (list, tuple, dict):
        parts = [_type_of(v) for v in (given.values() if isinstance(given, dict) else given)]
        if "" in parts or not parts:
            return ""
        if type(given) is tuple:
            return f"tuple[{', '.join(parts)}]"
        of_keys = "str, " if isinstance(given, dict) else ""
        return f"{type(given).__name__}[{of_keys}{parts[0]}]" if len(set(parts)) == 1 else ""
    return ""


_NO_TENSORS = (Mapping, list, tuple, str, type(None))
"""What stands in the place of a tensor where `forward` decides by the kind of an argument."""


def _is(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and value == default)


def _is_empty(value: Any) -> bool:
    return isinstance(value, fx.Proxy) or not value  # a tracer's stands for further arguments, of which there are none
