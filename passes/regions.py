"""Capture by regions: the parts of a model that can be traced, where its own Python cannot.

In: a model whose `forward` cannot be traced as a whole, and example inputs. Out: one graph that holds the graphs of
all regions, linked where Python passes a tensor from one to another.

The model's Python runs once, on a copy. Every call of a module is traced if it can be, and then tensors of the right
shapes take the place of what it would compute; so little more than the code between the regions is executed. That
code is watched: what it does with a region's results, other than to pass them on, pins their units.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from fxcat.errors import CaptureError
from fxcat.passes.copying import meta_twin, share
from fxcat.passes.execute import infer
from fxcat.passes.nested import CONSTANTS, Slot, fill, leaves, template
from fxcat.passes.rules.boundary import NO_REGION, region_input, region_output
from fxcat.passes.rules.table import Zero, is_leaf, module_rule
from fxcat.passes.tracer import Guard


@dataclass(frozen=True, slots=True)
class Region:
    """A module whose `forward` is a part of the graph: from its `region_input`s to its `region_output`s.

    `arguments`: templates by parameter of `forward`. `results`: templates of what it returns, in inference and, where
    that differs, in training.
    """

    path: str
    arguments: dict[str, Any]
    results: tuple[Any, ...]


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
        arguments, tensors = template(dict(bound.arguments), torch.Tensor)
        return cls(bound, arguments, tuple(tensors), tuple(torch.empty_like(t, device="meta") for t in tensors))

    def is_like(self, other: Call) -> bool:
        """Whether another call has the same structure and shapes."""
        shapes = [x.shape for x in self.inputs] == [x.shape for x in other.inputs]
        return shapes and self.arguments == other.arguments

    def filled(self, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with other values in the place of the tensors."""
        bound = inspect.BoundArguments(self.bound.signature, fill(self.arguments, values))
        return bound.args, bound.kwargs

    @property
    def has_lists(self) -> bool:
        """Whether an argument is a list: of variable length, where tuples and dicts are taken to be of one kind."""
        return any(isinstance(a, list) for a in self.arguments.values())

    @property
    def is_plain(self) -> bool:
        """Whether everything but tensors is a flag or a name: a number may be another one the next time."""
        return all(type(a) in (bool, str, type(None), Slot) for a in leaves(self.arguments))


class _CalledAgain(Exception):
    """A region was called in another way than before, or something inside it was called by itself."""


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

    def placeholder(self, value: torch.Tensor) -> fx.Node:
        """A node for a tensor that comes from elsewhere."""
        node = self.graph.placeholder(f"value_{len(self.graph.nodes)}")
        node.meta["value"] = value
        return node

    def add(self, path: str, call: Call, traced: Traced, sources: Sequence[fx.Node]) -> list[fx.Node]:
        """Add a region that takes its tensors from `sources`. Returns the nodes of its results in inference."""
        number = len(self.regions)
        self.calls[number] = 1
        self.regions.append(Region(path, call.arguments, traced.results))
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
                        [self.node(region_output, (v, number, i, phase), v.meta["value"]) for i, v in enumerate(values)]
                    )
            else:
                copy = copies[node] = self.graph.node_copy(node, copies.__getitem__)
                if node.op in ("call_module", "get_attr"):
                    copy.target = f"{prefix}{node.target}"
                copy.meta["path"] = f"{prefix}{node.meta.get('path') or ''}".rstrip(".")
        self.guards += [Guard(copies[g.node], g.value) for g in traced.guards]
        self.constants |= {f"{prefix}{name}": value for name, value in traced.constants.items()}
        for nodes in results[1:]:
            self.pins += [Pin(n, None, "what a region returns in training") for n in nodes]
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
        node.meta.update(value=value, path="")
        return node


def find_regions(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], trace: Tracing) -> Regions:
    """Run `model` (its tensors are not changed) and capture what can be captured.

    Raises `CaptureError` when the model does not run on the example inputs.
    """
    repeated: set[str] = set()
    while True:
        run = _Run(model, trace, repeated)
        try:
            return run.execute(args, kwargs)
        except _CalledAgain as again:
            repeated.add(str(again))
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(
                f"the model does not run on the example inputs: {type(error).__name__}: {error}",
                remedy="check that the model itself accepts them, in eval mode",
            ) from error


class _Run:
    """One execution of a model's Python."""

    def __init__(self, model: nn.Module, trace: Tracing, repeated: set[str]) -> None:
        self.found = Regions()
        self.paused = False
        self._model = model
        self._runner = share(model).eval()
        self._trace = trace
        self._repeated = repeated
        self._paths = {id(m): path for path, m in self._runner.named_modules()}
        self._known: dict[int, tuple[torch.Tensor, fx.Node, int]] = {}
        self._captured: dict[str, tuple[int, Call]] = {}
        self._executed: set[str] = {""}
        self._places: list[str] = []
        self._generator = torch.Generator().manual_seed(0)

    def execute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Regions:
        original = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            path = self._paths.get(id(module))
            if path is None or self.paused:
                return original(module, *args, **kwargs)
            return self._call(path, module, args, kwargs)

        self._own_tensors(self._runner)
        with torch.no_grad(), torch.random.fork_rng(), patch.object(nn.Module, "__call__", call), _Watch(self):
            result = self._runner.forward(*args, **kwargs)
        for tensor in _tensors(result):
            self.pin(tensor, None, "output of the network")
        self._pin_borders()
        self.found.graph.output(())
        return self.found

    def _pin_borders(self) -> None:
        """Code that did not run this time may use whatever a region returns, if there is any such code."""
        idle = [
            path
            for path, module in self._runner.named_modules()
            if any(p is not None for p in module._parameters.values())
            and not any(path == c or path.startswith(c + ".") for c in self._captured)
            and path not in self._executed
        ]
        if idle:
            reason = f"{idle[0]!r} did not run on the example inputs, and may use it"
            for node in list(self.found.graph.nodes):
                if node.target is region_output:
                    self.found.pins.append(Pin(node, None, reason))

    def _call(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._pause():
            try:
                call = Call.of(module, args, kwargs)
                return self._leaf(path, module, call) if is_leaf(module) else self._region(path, module, call)
            except CaptureError as error:
                if any(True for _ in module.parameters()) and not isinstance(error, _NotTried):
                    self.found.refused[path] = error
        self._executed.add(path)
        self._own_tensors(module)
        self._places.append(path)
        result = module.forward(*args, **kwargs)
        self._places.pop()
        return result

    def _own_tensors(self, module: nn.Module) -> None:
        """The module's Python is executed: what it may change in place must not be the caller's."""
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else nn.Parameter(parameter.detach().clone(), False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.clone()

    def _region(self, path: str, module: nn.Module, call: Call) -> Any:
        weights = any(True for _ in module.parameters())
        if not call.is_plain or not (weights or any(id(t) in self._known for t in call.tensors)):
            raise _NotTried("its arguments are not tensors and flags", where=path)
        if path in self._repeated:
            raise CaptureError("it is called in several ways, or by parts, by code that cannot be captured", where=path)
        sources = [self._source(t) for t in call.tensors]
        if path in self._captured and self._captured[path][1].is_like(call):
            number = self._captured[path][0]
            results = self.found.repeat(number, sources)
            return fill(self.found.regions[number].results[0], [self._stand_in(n) for n in results])
        self._check_overlap(path)
        if any(p.startswith(path + ".") for p in (*self._captured, *self._executed)):
            raise CaptureError("its parts were called by themselves before", where=path)
        traced = self._trace(self._model.get_submodule(path), call)
        if not weights and traced.guards:
            raise _NotTried("its branches depend on sizes", where=path)
        self._captured[path] = len(self.found.regions), call
        results = self.found.add(path, call, traced, sources)
        return fill(traced.results[0], [self._stand_in(n) for n in results])

    def _check_overlap(self, path: str) -> None:
        for region in self._captured:
            if path == region or path.startswith(region + "."):
                raise _CalledAgain(region)

    def _leaf(self, path: str, module: nn.Module, call: Call) -> torch.Tensor:
        """A node for a module that is called by code that was not captured: gates cannot be folded into it."""
        args, kwargs = call.filled(call.inputs)
        value = infer(module, args, kwargs)
        if value is None:
            try:
                value = meta_twin(module).forward(*args, **kwargs)
            except Exception as error:
                raise CaptureError(f"its result's shape cannot be found: {error}", where=path) from error
        strange = [a for a in leaves(call.arguments) if not isinstance(a, (Slot, *CONSTANTS))]
        if not isinstance(value, torch.Tensor) or strange:
            raise CaptureError("its arguments or results are not tensors", where=path)
        self._check_overlap(path)
        self._executed.add(path)
        node_args, node_kwargs = call.filled([self._source(t) for t in call.tensors])
        node = self.found.graph.call_module(path, node_args, node_kwargs)
        node.meta.update(value=value, path=path)
        rule = module_rule(module)
        if rule is None or rule.zero_at(node) is Zero.BREAKS:
            self.found.pins.append(Pin(node, None, "it is called by code that cannot be captured"))
        return self._stand_in(self.found.node(region_output, (node, NO_REGION, 0, 0), value))

    def _source(self, tensor: torch.Tensor) -> fx.Node:
        """The node that a tensor is the value of, or a placeholder for what comes from elsewhere."""
        known = self._known.get(id(tensor))
        if known is not None:
            if known[2] != tensor._version:
                self.pin(tensor, None, "changed in place by code that cannot be captured")
            return known[1]
        node = self.found.placeholder(torch.empty_like(tensor, device="meta"))
        self._know(tensor, node)
        return node

    def _stand_in(self, node: fx.Node) -> torch.Tensor:
        """A tensor for Python to go on with."""
        value = node.meta["value"]
        shape, few = value.shape, [n if a == 1 else 1 for a, n in enumerate(value.shape)]
        if value.is_floating_point():
            drawn = shape if value.numel() <= _FEW else few
            result = torch.randn(drawn, generator=self._generator, dtype=value.dtype).expand(shape).clone()
        else:
            result = torch.zeros(shape, dtype=value.dtype)
        device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        result = result.to(device)
        self._know(result, node)
        return result

    def _know(self, tensor: torch.Tensor, node: fx.Node) -> None:
        self._known[id(tensor)] = tensor, node, tensor._version

    def is_known(self, tensor: Any) -> bool:
        return id(tensor) in self._known

    def pin(self, tensor: torch.Tensor, axis: int | None, reason: str) -> None:
        known = self._known.get(id(tensor))
        if known is None or known[1].op == "placeholder":
            return
        if not any(p.node is known[1] and p.axis in (None, axis) for p in self.found.pins):
            self.found.pins.append(Pin(known[1], axis, reason))

    @property
    def place(self) -> str:
        return self._places[-1] if self._places else type(self._model).__name__

    @contextmanager
    def _pause(self) -> Generator[None]:
        outer, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = outer


_FEW = 1 << 20
"""Up to so many entries a stand-in is random everywhere, above along its channels only."""


class _NotTried(CaptureError):
    """A module that is no candidate: nothing to report."""


class _Shape(tuple[int, ...]):
    """The shape of a region's result: notes which sizes are read."""

    read: Callable[[int], None]

    @classmethod
    def of(cls, shape: torch.Size, read: Callable[[int], None]) -> _Shape:
        result = cls(shape)
        result.read = read
        return result

    def __getitem__(self, index: Any) -> Any:
        for axis in range(len(self))[index] if isinstance(index, slice) else [range(len(self))[index]]:
            self.read(axis)
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[int]:
        self.read_all()
        return super().__iter__()

    def __eq__(self, other: object) -> bool:
        self.read_all()
        return tuple.__eq__(self, other)

    def __hash__(self) -> int:
        return tuple.__hash__(self)

    def __add__(self, other: Any) -> Any:
        self.read_all()
        return super().__add__(other)

    def numel(self) -> int:
        self.read_all()
        return torch.Size(tuple.__iter__(self)).numel()

    def read_all(self) -> None:
        for axis in range(len(self)):
            self.read(axis)


_HARMLESS = frozenset(
    (
        *("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf", "is_cuda", "is_meta", "is_sparse"),
        *("is_quantized", "is_nested", "grad_fn", "itemsize", "_version", "dim", "ndimension", "size", "numel"),
        *("__len__", "__hash__", "is_floating_point", "is_complex", "is_contiguous", "get_device"),
    )
)
"""What may be asked of a region's result: sizes are noted apart."""


class _Watch(TorchFunctionMode):
    """Notes what Python does with regions' results."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self._run = run

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        run = self._run
        if run.paused:
            return func(*args, **kwargs)
        name = func.__name__
        if name == "__get__":
            name = func.__self__.__name__
        given = list(leaves((args, kwargs)))
        used = [t for t in given if run.is_known(t)]
        result = func(*map(_plain, args), **{k: _plain(v) for k, v in kwargs.items()})
        if used and name == "shape":
            return _Shape.of(result, lambda axis: self._read(used[0], axis))
        if used and name in ("size", "numel", "__len__"):
            asked = [0] if name == "__len__" else [*args[1:2], *kwargs.values()]
            for axis in asked or range(used[0].dim()):
                self._read(used[0], axis)
        elif name not in _HARMLESS and not any(result is t for t in used):
            for tensor in used:
                run.pin(tensor, None, f"used by code that cannot be captured: {name} in {run.place}")
        return result

    def _read(self, tensor: torch.Tensor, axis: int) -> None:
        reason = f"its size is read by code that cannot be captured, in {self._run.place}"
        self._run.pin(tensor, axis % tensor.dim(), reason)


def _plain(value: Any) -> Any:
    """An argument without watched shapes, which not all of PyTorch takes for tuples."""
    if isinstance(value, _Shape):
        return torch.Size(value)
    if isinstance(value, tuple | list) and any(isinstance(v, _Shape) for v in value):  # pyright: ignore
        return type(value)(_plain(v) for v in value)  # pyright: ignore
    return value


def _tensors(value: Any, depth: int = 4) -> Iterator[torch.Tensor]:
    """Tensors in a value: in containers, and in attributes of objects."""
    for leaf in leaves(value):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif depth and not isinstance(leaf, type | nn.Module) and hasattr(leaf, "__dict__"):
            yield from _tensors(list(vars(leaf).values()), depth - 1)
