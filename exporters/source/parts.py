"""Which form every module of a network has in a file, and how its parts are written: `self.layer1[0].conv1`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from fxcat.exporters.source.forwards import Forwards
from fxcat.exporters.source.layers import Layer, call_that_makes
from fxcat.exporters.source.names import quoted
from fxcat.exporters.source.tree import Base
from fxcat.network.module_state import full_name
from fxcat.passes.codegen.expressions import is_name
from fxcat.passes.codegen.install import is_chain, original_class


def is_plain_name(name: str) -> bool:
    """Whether an attribute can be written as it is: Python changes names with two underscores in classes."""
    return is_name(name) and (not name.startswith("__") or name.endswith("__"))


class Parts:
    """The modules of a network that a file has, by path. `tensors`: what they hold, by full name."""

    def __init__(self, root: nn.Module, found: Forwards, tensors: Mapping[str, torch.Tensor]) -> None:
        self._found = found
        self.first: dict[int, str] = {}
        """The first path of a module."""
        self.modules = dict(root.named_modules(remove_duplicate=False))
        for path, module in self.modules.items():
            self.first.setdefault(id(module), path)
        self.tensors: dict[str, list[str]] = {}
        """Names of what a module holds itself."""
        for name in tensors:
            path, _, leaf = name.rpartition(".")
            self.tensors.setdefault(path, []).append(leaf)
        self._present = _with_outer([*found.graphs, *found.layers, *self.tensors])
        self._layers: dict[str, Layer | None] = {}

    def children(self, path: str) -> list[str]:
        """Names of the modules in a module, but of those that hold nothing and are not called."""
        prefix = f"{path}." if path else ""
        return [n for n, m in self.modules[path]._modules.items() if m is not None and prefix + n in self._present]

    def is_again(self, path: str) -> bool:
        """Whether a module has been there before under another name."""
        return self.first[id(self.modules[path])] != path

    def layer(self, path: str) -> Layer | None:
        """What makes the module at a path, if it is a layer."""
        if path in self._found.graphs:
            return None
        if path not in self._layers:
            known = self._found.layers.get(path)
            self._layers[path] = known or (
                None if self.children(path) else call_that_makes(self.modules[path], called=False)
            )
        return self._layers[path]

    def container(self, path: str) -> Base | None:
        """The kind of a module that only holds others, or calls one after another; None if it needs a class, as the
        network itself does."""
        module, graphs = self.modules[path], self._found.graphs.get(path)
        if not path or self.tensors.get(path) or self.layer(path) is not None:
            return None
        if graphs is not None:
            return "Sequential" if is_chain(module, graphs) else None
        if issubclass(original_class(module), nn.Sequential | nn.ModuleList | nn.ModuleDict):
            return self._numbered(path) or ("ModuleDict" if self._are_keys(path) else None)
        return None

    def base(self, path: str) -> Base:
        """The base of the class of a module that needs one."""
        if all(map(is_plain_name, self.children(path))):
            return "Module"
        return self._numbered(path) or ("ModuleDict" if self._are_keys(path) else "Module")

    def _numbered(self, path: str) -> Base | None:
        names = self.children(path)
        return "ModuleList" if names and names == [str(i) for i in range(len(names))] else None

    def _are_keys(self, path: str) -> bool:
        """Whether a `ModuleDict` takes these names, of which some are no attributes."""
        names = self.children(path)
        return bool(names) and not any(hasattr(nn.ModuleDict, n) or n == "training" for n in names)

    def place(self, path: str, inner: str, this: str = "self") -> str:
        """How what lies in the module at a path is written in its code."""
        for name in inner.split("."):
            plain = self._has_step(path, name)
            this = f"{this}{self._step(path, name)}" if plain else f"getattr({this}, {quoted(name)})"
            path = full_name(path, name)
        return this

    def _has_step(self, path: str, name: str) -> bool:
        return is_plain_name(name) or (name in self.children(path) and self._base_at(path) != "Module")

    def _base_at(self, path: str) -> Base:
        return self.container(path) or self.base(path)

    def _step(self, path: str, name: str) -> str:
        base = self._base_at(path) if path in self.modules else "Module"
        names: Sequence[str] = self.children(path) if path in self.modules else ()
        if base == "Module" or name not in names or (base == "Sequential" and is_plain_name(name)):
            return f".{name}"
        return f"[{quoted(name)}]" if base == "ModuleDict" else f"[{names.index(name)}]"


def _with_outer(paths: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for path in paths:
        while path not in found:
            found.add(path)
            path = path.rpartition(".")[0]
    return found
