"""From the graphs of a network to the classes of a file."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from fxcat.exporters.source.forwards import Forwards
from fxcat.exporters.source.names import FileNames, SourceWriter
from fxcat.exporters.source.parts import Parts
from fxcat.exporters.source.tree import Block, BlockClass, Held, Tree, Values, holes, skeleton
from fxcat.network.module_state import full_name
from fxcat.passes.codegen.expressions import is_name
from fxcat.passes.codegen.install import original_class
from fxcat.passes.codegen.signatures import name_of_module
from fxcat.passes.codegen.statements import INDENT, body_of, names_of_values

_GENERAL = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Module)


class Classes:
    """The classes of a network, inner ones first, and what makes it: `root`."""

    def __init__(self, module: nn.Module, found: Forwards, parts: Parts, tensors: Mapping[str, torch.Tensor]) -> None:
        self._module, self._found, self._parts, self._tensors = module, found, parts, tensors
        graphs = [graph for several in found.graphs.values() for graph in several]
        arguments = {p.lstrip("*") for several in found.parameters.values() for p in several}
        self.names = FileNames(arguments | names_of_values(max(len(g.nodes) for g in graphs)))
        self._known: dict[Any, BlockClass] = {}
        self.root = self._block("")
        self._name_all()

    @property
    def all(self) -> list[BlockClass]:
        return list(self._known.values())

    def _tree(self, path: str) -> Tree:
        layer, base = self._parts.layer(path), self._parts.container(path)
        if layer is not None:
            return layer
        return self._block(path) if base is None else Held(base, self._children(path))

    def _children(self, path: str) -> tuple[tuple[str, Tree], ...]:
        paths = {name: full_name(path, name) for name in self._parts.children(path)}
        # another name for a module needs something in its place, until all are there
        return tuple((n, Held("Module", ()) if self._parts.is_again(p) else self._tree(p)) for n, p in paths.items())

    def _block(self, path: str) -> Block:
        module = self._parts.modules[path]
        own = tuple((name, self._values(path, name)) for name in self._parts.tensors.get(path, ()))
        members, numbers = (*own, *self._children(path)), list[Any]()
        lines = tuple(self._forward(path, numbers))
        original = original_class(module)
        base = self._parts.base(path)
        key = original, base, lines, tuple((name, skeleton(tree)) for name, tree in members)
        made_by = self._known.get(key)
        if made_by is None:
            origin = f"{original.__module__}.{original.__qualname__}"
            wanted = _class_name(original, path)
            made_by = self._known[key] = BlockClass(wanted, origin, base, members, lines, tuple(numbers))
        values = tuple(value for _, value in holes(members, tuple(numbers)))
        made_by.paths.append(path)
        made_by.rows.append(values)
        return Block(made_by, values)

    def _values(self, path: str, name: str) -> Values:
        module, tensor = self._parts.modules[path], self._tensors[full_name(path, name)]
        kept = name in module._buffers and name not in module._non_persistent_buffers_set
        kind = "parameter" if name in module._parameters else "buffer" if kept else "constant"
        return Values(kind, tuple(tensor.shape), tensor.dtype)

    def _forward(self, path: str, numbers: list[Any]) -> list[str]:
        graphs = self._found.graphs.get(path)
        if graphs is None:
            return []
        parameters = self._found.parameters[path]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        this = name_of_module(graphs, [inspect.Parameter(p.lstrip("*"), kind) for p in parameters])
        lines = [f"def forward({', '.join([this, *parameters])}):"]
        write = partial(SourceWriter, file=self.names, place=self._parts.place, path=path, holes=numbers)
        for phase, graph in reversed(list(enumerate(graphs))):
            body, returned, _ = body_of(graph, this, [], write)
            indent = INDENT
            if phase:
                lines.append(f"{INDENT}if {this}.training:")
                indent *= 2
            lines += [indent + line for line in [*_once(body), f"return {returned}"]]
        return lines

    def _name_all(self) -> None:
        taken = {*self.names.meanings, *self.names.taken}
        for made_by in self.all:
            made_by.find_arguments()
            names = itertools.chain([made_by.wanted], (f"{made_by.wanted}{i}" for i in itertools.count(2)))
            made_by.name = next(n for n in names if n not in taken)
            taken.add(made_by.name)


def _once(lines: list[str]) -> list[str]:
    """Without the checks that were made before."""
    return [line for i, line in enumerate(lines) if not (line.startswith("torch._assert(") and line in lines[:i])]


def _class_name(original: type[nn.Module], path: str) -> str:
    """The model's, or one after the place of a container."""
    name = original.__name__
    if original in _GENERAL and path:
        name = "".join(part[:1].upper() + part[1:] for part in path.replace("_", ".").split(".")[-2:])
    name = "".join(c for c in name if c.isascii() and (c.isalnum() or c == "_"))
    return name if is_name(name) else "Block"
