"""Phases: one call of a module, traced in inference mode and, where that differs, in training mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxcat.errors import CaptureError
from fxcat.passes.copying import meta_twin
from fxcat.passes.functionalise import detach_without_grad, functionalise
from fxcat.passes.nested import Slot
from fxcat.passes.proxy import Guard
from fxcat.passes.regions import Call
from fxcat.passes.rules.table import is_leaf
from fxcat.passes.stale import make_stale
from fxcat.passes.tracer import ExampleTracer

Results = Callable[[Call, tuple[Any, ...], Callable[..., Any], nn.Module], tuple[Any, Any]]
"""Calls a `forward`, given to it as a function, and gives what the graph returns, and a template of the rest of it."""


@dataclass(frozen=True, slots=True)
class Phases:
    """The graphs of one call: in inference and, where any Python looked at the mode, in training."""

    graphs: tuple[fx.Graph, ...]
    guards: tuple[Guard, ...]
    constants: dict[str, torch.Tensor]
    patterns: tuple[Any, ...]


def trace_phases(model: nn.Module, call: Call, results: Results) -> Phases:
    """Trace a module in inference mode, and in training mode too if any of its Python looks at `training`.

    What it kept of an earlier pass is taken for stale, if its Python can do with that.
    """
    twin, device = meta_twin(model), _device(model, call)
    if make_stale(twin):
        try:
            return _of_twin(twin, device, call, results)
        except CaptureError:
            twin = meta_twin(model)
    return _of_twin(twin, device, call, results)


def _device(model: nn.Module, call: Call) -> torch.device:
    """Where the model is, or its inputs."""
    found = next((t.device for t in (*model.parameters(), *call.tensors) if not t.is_meta), None)
    return found or torch.device("cpu")


def _of_twin(twin: nn.Module, device: torch.device, call: Call, results: Results) -> Phases:
    reads, patterns = _watch_training(twin), list[Any]()

    def forward(function: Callable[..., Any], module: nn.Module, *values: Any) -> Any:
        result, pattern = results(call, values, function, module)
        patterns.append(pattern)
        return result

    named = all(isinstance(a, Slot) for a in call.arguments.values())
    names = list(call.arguments) if named else [f"input_{i}" for i in range(len(call.inputs))]
    inputs = dict(zip(names, call.inputs, strict=True))
    before = [(vars(m), {n: _shallow(v) for n, v in vars(m).items()}) for m in twin.modules()]
    graph, guards, constants = _trace(twin, device, inputs, forward, training=False)
    if not reads:
        return Phases((graph,), guards, constants, tuple(patterns))
    for state, known in before:  # what the first pass left there is of another graph
        kept = {n: v for n, v in state.items() if n not in known and n.startswith("_tensor_constant")}
        state.clear()
        state.update(known | kept)
    training, more, others = _trace(twin, device, inputs, forward, training=True)
    return Phases((graph, training), (*guards, *more), constants | others, tuple(patterns))


def _shallow(value: Any) -> Any:
    return value.copy() if type(value) in (list, dict) else value


def _trace(
    twin: nn.Module,
    device: torch.device,
    inputs: Mapping[str, Any],
    call: Callable[..., Any] | None,
    *,
    training: bool,
) -> tuple[fx.Graph, tuple[Guard, ...], dict[str, torch.Tensor]]:
    known = set(vars(twin))
    # A copy that nobody traced before: models that cache tensors break when traced twice.
    modules = list(twin.modules())
    if any(type(m).train is not nn.Module.train for m in modules):
        twin.train(training)
    else:
        for module in modules:
            vars(module)["training"] = training
    for module in modules:
        # a leaf's example run must not check batch sizes or update statistics
        if is_leaf(module):
            module.training = False
    tracer = ExampleTracer(device)
    graph = tracer.trace_module(twin, inputs, call, training=training)
    functionalise(graph)
    detach_without_grad(graph)
    constants = {n: v for n, v in vars(twin).items() if n not in known and isinstance(v, torch.Tensor)}
    return graph, tuple(tracer.guards), constants


def _watch_training(twin: nn.Module) -> list[str]:
    """Give every container a `training` property that notes who read it; leaves handle the mode themselves."""
    reads: list[str] = []
    classes: dict[type[nn.Module], type[nn.Module]] = {}

    def read(module: nn.Module) -> bool:
        reads.append(type(module).__name__)
        return module.__dict__["training"]

    def write(module: nn.Module, value: bool) -> None:
        module.__dict__["training"] = value

    for module in twin.modules():
        if is_leaf(module):
            continue
        cls = type(module)
        if cls not in classes:
            members = {"training": property(read, write), "__module__": cls.__module__}
            classes[cls] = type(cls.__name__, (cls,), members)
        module.__class__ = classes[cls]
    return reads
