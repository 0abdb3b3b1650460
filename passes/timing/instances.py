"""An op of a graph, and what follows it, as a module of its own at other widths: to be measured.

In: nodes of an analysed graph, which widths vary. Out: a module and its inputs on the meta device. Sizes come from the
labels: what carries them is as wide as asked for. An op whose numbers state other sizes than that cannot be built.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from fxcat.network.cost_model import Axis
from fxcat.passes.graph.arguments import thaw
from fxcat.passes.graph.copy_model import meta_twin
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.table import module_rule

Sizes: TypeAlias = "tuple[int | Axis, ...]"
"""Of every axis of a tensor its size, or whose live entries it counts."""

_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


@dataclass(frozen=True, slots=True)
class Parts:
    """What an op is made of: its `nodes`, one after another; the values that enter them, and the constants that they
    read, with their types; `tensors`: parameters and buffers of the modules that are called."""

    nodes: tuple[fx.Node, ...]
    entries: Mapping[fx.Node, Sizes]
    constants: Mapping[fx.Node, Sizes]
    tensors: Mapping[fx.Node, Mapping[str, Sizes]]


def build(parts: Parts, network: nn.Module, widths: Mapping[int, int]) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The module and its inputs, on the meta device. `network`: on the meta device, without gates; it is not changed.
    `widths`: by the id of an `Axis`.

    Raises whatever the op raises if it does not run at these widths.
    """
    sized = {n: _empty(n, sizes, widths) for n, sizes in parts.entries.items()}
    held = {n: _empty(n, sizes, widths) for n, sizes in parts.constants.items()}
    values: dict[fx.Node, Any] = {**sized, **held}
    modules: dict[fx.Node, nn.Module] = {}
    for node in parts.nodes:
        if node.op == "call_module":
            modules[node] = _resized(network.get_submodule(str(node.target)), node, parts.tensors[node], widths, values)
        values[node] = _run(node, modules, values)
    return OneOp(parts.nodes, modules, tuple(sized), held), tuple(sized.values())


class OneOp(nn.Module):
    """Runs the nodes; returns the value of the last."""

    def __init__(
        self,
        nodes: Sequence[fx.Node],
        modules: Mapping[fx.Node, nn.Module],
        entries: Sequence[fx.Node],
        held: Mapping[fx.Node, torch.Tensor],
    ) -> None:
        super().__init__()
        self._nodes, self._entries, self._held = nodes, entries, tuple(held)
        self.layers = nn.ModuleList(modules.values())
        self._numbers = {node: i for i, node in enumerate(modules)}
        for i, tensor in enumerate(held.values()):
            self.register_buffer(f"constant_{i}", tensor)

    def forward(self, *inputs: torch.Tensor) -> Any:
        values: dict[fx.Node, Any] = dict(zip(self._entries, inputs, strict=True))
        values |= {node: self.get_buffer(f"constant_{i}") for i, node in enumerate(self._held)}
        modules = {node: self.layers[i] for node, i in self._numbers.items()}
        for node in self._nodes:
            values[node] = _run(node, modules, values)
        return values[self._nodes[-1]]


def _empty(node: fx.Node, sizes: Sizes, widths: Mapping[int, int]) -> torch.Tensor:
    return torch.empty(_shape(sizes, widths), dtype=value_of(node).dtype, device="meta")


def _shape(sizes: Sizes, widths: Mapping[int, int]) -> list[int]:
    return [widths[id(size)] if isinstance(size, Axis) else size for size in sizes]


def _resized(
    module: nn.Module,
    node: fx.Node,
    tensors: Mapping[str, Sizes],
    widths: Mapping[int, int],
    values: Mapping[fx.Node, Any],
) -> nn.Module:
    """A copy of a module on the meta device with other widths."""
    found = meta_twin(module).eval()
    for name, sizes in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner = found.get_submodule(path)
        new = torch.empty(_shape(sizes, widths), dtype=getattr(owner, leaf).dtype, device="meta")
        is_parameter = owner._parameters.get(leaf) is not None
        setattr(owner, leaf, nn.Parameter(new, requires_grad=False) if is_parameter else new)
    rule = module_rule(found)
    if rule is not None:
        rule.resize(found, tuple(thaw(node.args[0], values).shape) if node.args else ())
    return found


def _run(node: fx.Node, modules: Mapping[fx.Node, nn.Module], values: Mapping[fx.Node, Any]) -> Any:
    """A node's value, made out of place: what enters an op is used again."""
    args = thaw(node.args, values)
    kwargs = {k: v for k, v in thaw(node.kwargs, values).items() if k != "inplace"}
    if node.op == "call_module":
        return modules[node](*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target).removesuffix("_"))(*args[1:], **kwargs)
    target: Any = node.target
    function: Any = _OUT_OF_PLACE.get(target, target)
    return function(*args, **kwargs)
