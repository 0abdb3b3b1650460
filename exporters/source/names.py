"""What the names in a file mean, and the lines that import it: torch, torchvision and Python's own library alone."""

from __future__ import annotations

import importlib
import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxcat.errors import ExportError
from fxcat.passes.codegen.expressions import Text, Writer, is_name

HOLE = "\0"
"""Stands in written code on both sides of the number of a constant."""

_HOMES = (
    *("torch", "torch.nn.functional", "torch.special", "torch.linalg", "torch.fft", "torch.nn.init", "torch.nn"),
    *("torchvision.ops", "torchvision.ops.stochastic_depth", "collections", "operator", "math", "builtins"),
)


_SIZED = (
    *("view", "reshape", "expand", "repeat", "split", "unflatten", "narrow"),
    *("new_zeros", "new_ones", "zeros", "ones"),
)
"""Names of ops that take sizes: in blocks of one kind they may differ."""

_NOT = 39
"""How strongly `not` holds together, as in `Writer`."""


def quoted(text: str) -> str:
    """A text as code."""
    code = repr(text)
    return f'"{code[1:-1]}"' if code[0] == "'" and '"' not in code else code


class FileNames:
    """The names of one file: each means the same everywhere in it. `taken`: those of values."""

    def __init__(self, taken: Iterable[str]) -> None:
        self.taken = {*taken, *_FIXED}
        self.meanings: dict[str, Any] = {"OrderedDict": OrderedDict}
        self.objects: dict[int, str] = {id(OrderedDict): "OrderedDict"}
        self.lines: dict[str, str] = {}
        """Per name the line that gives it its meaning."""

    def imports(self) -> list[str]:
        """All of these lines, imports first."""
        return sorted(dict.fromkeys(self.lines.values()), key=lambda line: (" = " in line, line))


_FIXED = ("torch", "nn", "F", "json", "Path", "load", "read", "torchvision", "namedtuple", "TYPES")
"""What the file names itself."""


class SourceWriter(Writer):
    """Writes one `forward` of a file. `place`: how what lies at a path is written; `path`: of the module.

    `holes`: gets the numbers in the code, in whose places stand marks: in another block of the kind they may differ.
    """

    def __init__(
        self,
        this: str,
        taken: Iterable[str],
        value_of: Callable[[fx.Node], Text],
        file: FileNames,
        place: Callable[[str, str, str], str],
        path: str,
        holes: list[Any],
    ) -> None:
        super().__init__(this, {*taken, *file.taken} - {"torch", "F"}, value_of)
        self.names, self.objects = file.meanings, file.objects
        self._file, self._place, self._path, self._holes, self._is_sized = file, place, path, holes, False

    def call(self, node: fx.Node) -> Text:
        outer = self._is_sized
        self._is_sized = getattr(node.target, "__name__", node.target) in _SIZED
        negated = node.target is operator.not_
        text = Text(f"not {self.argument(node.args[0]).code}", _NOT) if negated else super().call(node)
        self._is_sized = outer
        return text

    def argument(self, value: Any) -> Text:
        return Text(quoted(value)) if type(value) is str else super().argument(value)

    def attribute(self, path: str) -> str:
        return self._place(self._path, path, self.this)

    def number(self, value: Any) -> Text:
        text = super().number(value)
        if type(value) is not int or not self._is_sized:
            return text
        self._holes.append(value)
        return Text(f"{HOLE}{len(self._holes) - 1}{HOLE}", text.strength)

    def named(self, name: str, target: Any) -> str:
        if target is torch or target is F:
            name = {torch: "torch", F: "F"}[target]
            if target is F:
                self._file.lines[name] = "import torch.nn.functional as F"
            return name
        found = super().named(name, target)
        if found not in self._file.lines:
            line = _line(found, target)
            if line is None:
                kind = type(target).__name__ if not callable(target) else getattr(target, "__module__", None)
                raise ExportError(
                    f"{name} (of {kind}) is neither torch's nor torchvision's, and has no source form",
                    where=self._path or None,
                    remedy="write what it does with functions of torch, in a forward that can be captured",
                )
            self._file.lines[found] = line
        return found


def _line(name: str, target: Any) -> str | None:
    """The line that gives a name its meaning; None if that cannot be told."""
    if inspect.ismodule(target):
        known = target.__name__.partition(".")[0] in ("torch", "torchvision", "operator", "math")
        plain = target.__name__ == name
        return (f"import {name}" if plain else f"import {target.__name__} as {name}") if known else None
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        parts = str(target).replace("::", ".").split(".")
        if parts[0] in ("aten", "prims", "torchvision") and all(map(is_name, parts)):
            return f"{name} = torch.ops.{'.'.join(parts)}"
        return None
    own = getattr(target, "__name__", "")
    if isinstance(target, type) and issubclass(target, tuple) and hasattr(target, "_fields"):
        fields = [str(f) for f in target._fields]  # pyright: ignore[reportAttributeAccessIssue]
        return f"{name} = namedtuple({name!r}, {fields!r})"
    if getattr(torch.Tensor, own, None) is target and is_name(own):
        return f"{name} = torch.Tensor.{own}"
    home = str(getattr(target, "__module__", ""))
    homes = (*_HOMES, *([home] if home.partition(".")[0] in ("torch", "torchvision") else []))
    for module in homes:
        for attribute in (own, own.rpartition("_")[2], own.partition("_")[2]):
            if is_name(attribute) and getattr(importlib.import_module(module), attribute, None) is target:
                return f"from {module} import {attribute}" + ("" if attribute == name else f" as {name}")
    return None
