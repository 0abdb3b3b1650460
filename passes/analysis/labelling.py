"""What the label analysis has found, for all that comes after it: frozen, and true of every copy of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxcat.network.module_state import full_name
from fxcat.passes.graph.label_arrays import Labels
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Rule


@dataclass(frozen=True, slots=True)
class Names:
    """The names of parameters and buffers. Tied weights are one tensor under several: the first stands for all.

    `first`: the first name by every other one.
    """

    first: Mapping[str, str]

    @classmethod
    def of(cls, modules: Mapping[str, nn.Module]) -> Names:
        """`modules`: all of a network, by their paths."""
        found: dict[int, tuple[str, str]] = {}
        names: dict[str, str] = {}
        for path, module in modules.items():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    known = found.setdefault(id(tensor), (path, name))
                    if known != (path, name):
                        names[full_name(path, name)] = full_name(*known)
        return cls(names)

    def canonical(self, known: str) -> str:
        """The first name of a parameter or buffer that is known by some name."""
        return self.first.get(known, known)

    def of_module(self, node: fx.Node, name: str) -> str:
        """Full, canonical name of a parameter or buffer of the module that a node calls."""
        return self.canonical(f"{node.target}.{name}")

    def read_by(self, node: fx.Node) -> str:
        """Canonical name of the parameter or buffer that a get_attr node reads."""
        return self.canonical(str(node.target))


@dataclass(frozen=True, slots=True)
class Labelling:
    """`values`: labels of every value. `rules`: that of every op which computes a tensor, None where it has none.
    `ones`: values for a batch of one, where they are not the example values: costs are for one example. `repeats`: how
    often nodes run in one forward pass, where that is not once."""

    values: Mapping[fx.Node, Labels]
    rules: Mapping[fx.Node, Rule | None]
    ones: Mapping[fx.Node, Any]
    repeats: Mapping[fx.Node, int]
    names: Names

    def of(self, node: fx.Node) -> torch.Tensor:
        """Labels of a node whose value is one tensor."""
        labels = self.values[node]
        assert isinstance(labels, torch.Tensor), f"{node} is not a tensor"
        return labels

    def one(self, node: fx.Node) -> Any:
        """A node's value for a batch of one."""
        return self.ones[node] if node in self.ones else value_of(node)
