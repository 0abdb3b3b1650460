"""An op of a graph, and what follows it, as a module of its own at other widths: to be measured.

In: nodes of an analysed graph, which widths vary. Out: a module and its inputs on the meta device. Sizes come from the
labels: what carries them is as wide as asked for, and numbers that state sizes follow as they do after removal. An op
with numbers that cannot follow cannot be built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from fxcat.network.cost_model import Axis
from fxcat.passes.graph.arguments import thaw
from fxcat.passes.graph.copy_model import meta_twin
from fxcat.passes.graph.meta import VALUE, value_of
from fxcat.passes.nodes.effects import FACTS, INPLACE_OPERATORS
from fxcat.passes.rules.base import Moved, Rule, Share, Size
from fxcat.passes.rules.table import module_rule


@dataclass(frozen=True, slots=True)
class Width:
    """The size of an axis with units: the live entries of `axis`, so many `times`: heads that are folded into the batch
    are there for every example of a run."""

    axis: Axis
    times: int = 1

    def at(self, widths: Mapping[int, int]) -> int:
        """For widths by the id of an `Axis`."""
        return self.times * widths[id(self.axis)]


Sizes: TypeAlias = "tuple[int | Width, ...]"
"""Of every axis of a tensor its size, or whose live entries it counts."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What an op is made of: its `nodes`, one after another; the values that enter them, and the constants that they
    read, with their types; `tensors`: parameters and buffers of the modules that are called. `results`: the values that
    the nodes give, where these are single tensors; `rules`: of the nodes; `values`: of nodes for the examples of a run,
    where these are not their example values."""

    nodes: tuple[fx.Node, ...]
    entries: Mapping[fx.Node, Sizes]
    constants: Mapping[fx.Node, Sizes]
    tensors: Mapping[fx.Node, Mapping[str, Sizes]]
    results: Mapping[fx.Node, Sizes]
    rules: Mapping[fx.Node, Rule | None]
    values: Mapping[fx.Node, Any]

    def value(self, node: fx.Node) -> Any:
        """A node's value for the examples of a run."""
        return self.values[node] if node in self.values else value_of(node)

    def sizes(self, node: fx.Node) -> Sizes | None:
        """Of the tensor that a node gives."""
        return next((of[node] for of in (self.entries, self.constants, self.results) if node in of), None)


@dataclass(frozen=True, slots=True)
class _Call:
    """A node with the arguments that fit its widths."""

    node: fx.Node
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def build(parts: Parts, network: nn.Module, widths: Mapping[int, int]) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The module and its inputs, on the meta device. `network`: on the meta device, without gates; it is not changed.
    `widths`: by the id of an `Axis`.

    Raises whatever the op raises if it does not run at these widths.
    """
    sized = {n: _empty(n, sizes, widths) for n, sizes in parts.entries.items()}
    held = {n: _empty(n, sizes, widths) for n, sizes in parts.constants.items()}
    values: dict[fx.Node, Any] = {**sized, **held}
    modules: dict[fx.Node, nn.Module] = {}
    calls = [_call(parts, node, widths) for node in parts.nodes]
    for call in calls:
        node = call.node
        if node.op == "call_module":
            modules[node] = _resized(network.get_submodule(str(node.target)), node, parts.tensors[node], widths, values)
        values[node] = _run(call, modules, values)
    return OneOp(calls, modules, tuple(sized), held), tuple(sized.values())


class OneOp(nn.Module):
    """Runs the nodes; returns the value of the last."""

    def __init__(
        self,
        calls: Sequence[_Call],
        modules: Mapping[fx.Node, nn.Module],
        entries: Sequence[fx.Node],
        held: Mapping[fx.Node, torch.Tensor],
    ) -> None:
        super().__init__()
        self._calls, self._entries, self._held = calls, entries, tuple(held)
        self.layers = nn.ModuleList(modules.values())
        self._numbers = {node: i for i, node in enumerate(modules)}
        for i, tensor in enumerate(held.values()):
            self.register_buffer(f"constant_{i}", tensor)

    def forward(self, *inputs: torch.Tensor) -> Any:
        values: dict[fx.Node, Any] = dict(zip(self._entries, inputs, strict=True))
        values |= {node: self.get_buffer(f"constant_{i}") for i, node in enumerate(self._held)}
        modules = {node: self.layers[i] for node, i in self._numbers.items()}
        for call in self._calls:
            values[call.node] = _run(call, modules, values)
        return values[self._calls[-1].node]


def run_alone(
    node: fx.Node, network: nn.Module, values: Mapping[fx.Node, Any], given: Mapping[fx.Node, torch.Tensor]
) -> Any:
    """What a node gives of other tensors. `values`: of numbers, for the examples of a run."""
    modules = {node: network.get_submodule(str(node.target))} if node.op == "call_module" else {}
    args, kwargs = (_plain(a, values) for a in (node.args, node.kwargs))
    return _run(_Call(node, node.target, args, kwargs), modules, given)


def _call(parts: Parts, node: fx.Node, widths: Mapping[int, int]) -> _Call:
    """Numbers among the arguments that state sizes are those at these widths, and for the examples of a run."""
    args, kwargs = (_plain(a, parts.values) for a in (node.args, node.kwargs))
    whole = _Call(node, node.target, args, kwargs)
    rule, after = parts.rules.get(node), parts.results.get(node)
    source = next((s for i in node.all_input_nodes if (s := parts.sizes(i)) is not None), None)
    if rule is None or after is None or source is None or type(rule).reshaped is Rule.reshaped:
        return whole
    shape = tuple(_shape(after, widths))
    has_units = tuple(isinstance(size, Width) for size in after)
    moved = Moved(_left(source, widths), _left(after, widths), shape, has_units, parts.value)
    if shape == parts.value(node).shape and all(x is None for x in moved.source):
        return whole
    new = rule.reshaped(node, moved)
    if new is None:
        return whole
    args, kwargs = (_plain(a, parts.values) for a in (new.args, new.kwargs))
    return _Call(node, new.target or node.target, args, kwargs)


def _left(sizes: Sizes, widths: Mapping[int, int]) -> tuple[torch.Tensor | None, ...]:
    """Per axis which indices there are, None where it has all."""
    axes = ((size.axis.width, size.at(widths), size.times) if isinstance(size, Width) else None for size in sizes)
    return tuple(None if a is None or a[0] * a[2] == a[1] else torch.arange(a[1]) for a in axes)


def _plain(argument: Any, values: Mapping[fx.Node, Any]) -> Any:
    """An argument with numbers in place of what would be computed in a graph."""

    def number(leaf: Any) -> Any:
        if isinstance(leaf, Size):
            return number(leaf.shape)[leaf.axis]
        if isinstance(leaf, Share):
            return leaf.live
        known = isinstance(leaf, fx.Node) and isinstance(VALUE.get(leaf), FACTS)
        return thaw(leaf, values) if known else leaf

    return map_aggregate(argument, number)


def _empty(node: fx.Node, sizes: Sizes, widths: Mapping[int, int]) -> torch.Tensor:
    return torch.empty(_shape(sizes, widths), dtype=value_of(node).dtype, device="meta")


def _shape(sizes: Sizes, widths: Mapping[int, int]) -> list[int]:
    return [size.at(widths) if isinstance(size, Width) else size for size in sizes]


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


def _run(call: _Call, modules: Mapping[fx.Node, nn.Module], values: Mapping[fx.Node, Any]) -> Any:
    """A node's value, made out of place: what enters an op is used again."""
    args = thaw(call.args, values)
    kwargs = {k: v for k, v in thaw(call.kwargs, values).items() if k != "inplace"}
    if call.node.op == "call_module":
        return modules[call.node](*args, **kwargs)
    if isinstance(call.target, str):
        return getattr(args[0], call.target.removesuffix("_"))(*args[1:], **kwargs)
    function: Any = INPLACE_OPERATORS.get(call.target, call.target)
    return function(*args, **kwargs)
