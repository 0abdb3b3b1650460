"""Regions: the parts of a model that were captured, where its own Python cannot be traced as a whole.

One graph holds the graphs of all regions, linked where Python passes a tensor from one to another.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from fxcat.errors import CaptureError
from fxcat.passes.capture.asked import Absent, Asking
from fxcat.passes.capture.kept_state import Count
from fxcat.passes.capture.tracing import Guard
from fxcat.passes.graph.invocations import Invocations, below
from fxcat.passes.graph.meta import CALL, PATH, VALUE, path_of, value_of
from fxcat.passes.graph.nested import CONSTANTS, Slot, fill, leaves, template
from fxcat.passes.rules.boundary import region_input, region_output


@dataclass(frozen=True, slots=True)
class Region:
    """A module whose `forward` is a part of the graph: from its `region_input`s to its `region_output`s.

    `arguments`: templates by parameter of `forward`. `results`: templates of what it returns, in inference and, where
    that differs, in training. `absent`: what must not be in its arguments. `counts`: per phase what it does to state.
    """

    path: str
    arguments: dict[str, Any]
    results: tuple[Any, ...]
    absent: Absent = field(default_factory=dict[tuple[Any, ...], "frozenset[Any] | None"])
    counts: tuple[tuple[Count, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Tie:
    """A further call of a region passes the value of `source` where the first one passed that of `entry`."""

    source: fx.Node
    entry: fx.Node


@dataclass(frozen=True, slots=True)
class Pin:
    """Units that must stay: all of a value's, or those along one of its axes."""

    node: fx.Node
    axis: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Traced:
    """A module's own graph: the placeholders are the tensors among its arguments, in order."""

    graph: fx.Graph
    guards: tuple[Guard, ...]
    constants: dict[str, torch.Tensor]
    results: tuple[Any, ...]
    blocks: tuple[Invocations, Invocations]
    """The calls of modules in inference and in training."""
    left: frozenset[str]
    """Attributes in which `forward` leaves values."""
    absent: Absent = field(default_factory=dict[tuple[Any, ...], "frozenset[Any] | None"])
    counts: tuple[tuple[Count, ...], ...] = ()


Tracing = Callable[[nn.Module, "Call"], Traced]


@dataclass(frozen=True, slots=True)
class Call:
    """Arguments of a module's `forward`, with a template and tensors on the meta device."""

    bound: inspect.BoundArguments
    arguments: dict[str, Any]
    tensors: tuple[torch.Tensor, ...]
    inputs: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Raises `TypeError` if the arguments do not fit `forward`."""
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        for parameter in bound.signature.parameters.values():
            if parameter.default is None and bound.arguments.get(parameter.name, parameter) is None:
                del bound.arguments[parameter.name]  # says what is said by saying nothing
        arguments, tensors = template(dict(bound.arguments), torch.Tensor)
        return cls(bound, arguments, tuple(tensors), tuple(torch.empty_like(t, device="meta") for t in tensors))

    def is_like(self, other: Call) -> bool:
        """Whether another call has the same structure and shapes."""
        shapes = [x.shape for x in self.inputs] == [x.shape for x in other.inputs]
        return shapes and self.arguments == other.arguments

    def filled(self, values: Sequence[Any], asking: Asking | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with other values in the place of the tensors; `asking` notes what dicts are asked for."""
        arguments = fill(self.arguments, values)
        for name in arguments:
            if asking is not None and self.bound.signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                arguments[name] = asking.watched(arguments[name], name)
        bound = inspect.BoundArguments(self.bound.signature, arguments)
        return bound.args, bound.kwargs

    def without(self, names: Container[str]) -> Call:
        """The same call, but for some arguments."""
        left = {n: v for n, v in self.bound.arguments.items() if n not in names}
        arguments, tensors = template(left, torch.Tensor)
        inputs = tuple(torch.empty_like(t, device="meta") for t in tensors)
        return Call(inspect.BoundArguments(self.bound.signature, OrderedDict(left)), arguments, tuple(tensors), inputs)

    @property
    def has_lists(self) -> bool:
        """Whether an argument is a list: of variable length, where tuples and dicts are taken to be of one kind."""
        return any(isinstance(a, list) for a in self.arguments.values())

    @property
    def has_names(self) -> bool:
        """Whether every argument has a name of its own and is a tensor or a constant."""
        kinds = {self.bound.signature.parameters[name].kind for name in self.arguments}
        plain = all(isinstance(a, (Slot, *CONSTANTS)) for a in self.arguments.values())
        return plain and kinds.isdisjoint((inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD))

    @property
    def is_plain(self) -> bool:
        """Whether everything but tensors is a flag or a name: a number may be another one the next time."""
        return all(type(a) in (bool, str, type(None), Slot) for a in leaves(self.arguments))


@dataclass(slots=True)
class Regions:
    """What a run found: the graph of all regions, and what surrounds them."""

    graph: fx.Graph = field(default_factory=fx.Graph)
    regions: list[Region] = field(default_factory=list[Region])
    guards: list[Guard] = field(default_factory=list[Guard])
    pins: list[Pin] = field(default_factory=list[Pin])
    ties: list[Tie] = field(default_factory=list[Tie])
    calls: dict[int, int] = field(default_factory=dict[int, int])
    """How often each region was called."""
    constants: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    refused: dict[str, CaptureError] = field(default_factory=dict[str, CaptureError])
    """Why modules with weights were not captured."""
    blocks: tuple[Invocations, Invocations] = ({}, {})
    """Calls of modules inside of regions, in inference and in training."""
    left: set[str] = field(default_factory=set[str])
    """Attributes in which regions leave values."""
    macs: int = 0
    """Multiply-adds of the code between the regions, for the example inputs."""

    def placeholder(self, value: torch.Tensor) -> fx.Node:
        """A node for a tensor that comes from elsewhere."""
        node = self.graph.placeholder(f"value_{len(self.graph.nodes)}")
        VALUE.set(node, value)
        return node

    def add(self, path: str, call: Call, traced: Traced, sources: Sequence[fx.Node]) -> list[fx.Node]:
        """Add a region that takes its tensors from `sources`. Returns the nodes of its results in inference."""
        number = len(self.regions)
        self.calls[number] = 1
        self.regions.append(Region(path, call.arguments, traced.results, traced.absent, traced.counts))
        prefix = f"{path}." if path else ""
        entering = iter(
            self.node(region_input, (s, number, i), x)
            for i, (s, x) in enumerate(zip(sources, call.inputs, strict=True))
        )
        copies: dict[fx.Node, fx.Node] = {}
        results: list[list[fx.Node]] = []
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                copies[node] = next(entering)
            elif node.op == "output":
                phases: Any = node.args[0] if len(traced.results) > 1 else (node.args[0],)
                for phase, nodes in enumerate(phases):
                    values = [copies[n] for n in nodes]
                    results.append(
                        [self.node(region_output, (v, number, i, phase), value_of(v)) for i, v in enumerate(values)]
                    )
            else:
                copy = copies[node] = self.graph.node_copy(node, copies.__getitem__)
                if node.op in ("call_module", "get_attr"):
                    copy.target = f"{prefix}{node.target}"
                PATH.set(copy, f"{prefix}{path_of(node)}".rstrip("."))
                if CALL.has(node):
                    inner, count = CALL.of(node)
                    CALL.set(copy, (f"{prefix}{inner}", count))
        self.guards += [replace(g, node=copies[g.node]) for g in traced.guards]
        inference, training = (below(prefix, calls) for calls in traced.blocks)
        self.blocks = {**self.blocks[0], **inference}, {**self.blocks[1], **training}
        self.left |= {f"{prefix}{name}" for name in traced.left}
        self.constants |= {f"{prefix}{name}": value for name, value in traced.constants.items()}
        known = [(n.args[0], n.args[2]) for n in results[0]]
        for node in (n for nodes in results[1:] for n in nodes if (n.args[0], n.args[2]) not in known):
            self.pins.append(Pin(node, None, "what a region returns in training"))
        return results[0]

    def repeat(self, number: int, sources: Sequence[fx.Node]) -> list[fx.Node]:
        """Note another call of a region. Returns the nodes of its results in inference."""
        self.calls[number] += 1
        for node in self.graph.nodes:
            if node.target is region_input and node.args[1] == number:
                self.ties.append(Tie(sources[node.args[2]], node))
        returned = [n for n in self.graph.nodes if n.target is region_output and n.args[1] == number]
        return [n for n in returned if n.args[3] == 0]

    def node(self, function: Callable[..., Any], args: tuple[Any, ...], value: torch.Tensor) -> fx.Node:
        """A call of a function with a known result."""
        node = self.graph.call_function(function, args)
        VALUE.set(node, value)
        PATH.set(node, "")
        return node
