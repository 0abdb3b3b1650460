"""Phases: one call of a module, traced in inference mode and, where that differs, in training mode."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from fxcat.errors import CaptureError
from fxcat.passes.capture.functionalise import detach_without_grad, functionalise
from fxcat.passes.capture.held import held_buffers
from fxcat.passes.capture.kept_state import Count, changed_state, check_next, left_values
from fxcat.passes.capture.mode_watch import Modes
from fxcat.passes.capture.module_states import ModuleStates, State, hooks_of
from fxcat.passes.capture.regions import Call
from fxcat.passes.capture.stale import make_stale
from fxcat.passes.capture.tracer import ExampleTracer
from fxcat.passes.capture.tracing import Guard
from fxcat.passes.graph.copy_model import meta_twin
from fxcat.passes.graph.invocations import Invocations
from fxcat.passes.graph.nested import Slot

Results = Callable[[Call, tuple[Any, ...], Callable[..., Any], nn.Module], tuple[Any, Any]]
"""Calls a `forward`, given to it as a function, and gives what the graph returns, and a template of the rest of it."""


@dataclass(frozen=True, slots=True)
class Phases:
    """The graphs of one call: in inference and, where any Python looked at the mode, in training."""

    graphs: tuple[fx.Graph, ...]
    guards: tuple[Guard, ...]
    constants: dict[str, torch.Tensor]
    patterns: tuple[Any, ...]
    calls: tuple[Invocations, ...]
    counts: tuple[tuple[Count, ...], ...]
    left: frozenset[str] = frozenset()
    """Attributes in which a pass leaves values, by full names."""


def trace_phases(model: nn.Module, call: Call, results: Results) -> Phases:
    """Trace a module in inference mode, and in training mode too if any of its Python looks at `training`.

    What it kept of an earlier pass is taken for stale, if its Python can do with that.
    """
    twin, device, held = meta_twin(model), _device(model, call), held_buffers(model)
    if make_stale(twin):
        try:
            return _of_twin(twin, device, call, results, held)
        except CaptureError:
            twin = meta_twin(model)
    return _of_twin(twin, device, call, results, held)


def _device(model: nn.Module, call: Call) -> torch.device:
    """Where the model is, or its inputs."""
    found = next((t.device for t in itertools.chain(model.parameters(), call.tensors) if not t.is_meta), None)
    return found or torch.device("cpu")


def _of_twin(
    twin: nn.Module, device: torch.device, call: Call, results: Results, held: Mapping[str, torch.Tensor]
) -> Phases:
    modes, left = Modes(twin), set[str]()
    states = ModuleStates(twin)

    def trace(training: bool) -> _Phase:
        found = _trace(twin, device, call, results, modes, held, training)
        touched = states.touched()
        left.update(left_values(touched))
        found = replace(found, changed=tuple(changed_state(touched)), hooks=tuple(hooks_of(touched)))
        states.take_back()
        return found

    def checked(found: _Phase, training: bool, others: Sequence[_Phase]) -> _Phase:
        """What one phase changes may decide the other one, too."""
        changed = list(found.changed)
        own = {(id(state), name) for state, name, _ in changed}
        changed += [c for f in others for c in f.changed if (id(c[0]), c[1]) not in own]
        if not changed:
            return found
        for state, name, registered in found.hooks:
            state[name] = registered
        again = lambda: _trace(twin, device, call, results, modes, held, training).graph  # noqa: E731
        found = replace(found, counts=check_next(found.graph, changed, again, states.by_path))
        states.take_back()
        return found

    found = [trace(False)]
    if modes.matter:
        known = modes.known
        found.append(trace(True))
        if modes.known > known:  # the layers whose modes training sets are functions in inference too
            found[0] = trace(False)
    found = [checked(f, i == 1, found[:i] + found[i + 1 :]) for i, f in enumerate(found)]
    return Phases(
        tuple(f.graph for f in found),
        tuple(guard for f in found for guard in f.guards),
        {n: c for f in found for n, c in f.constants.items()},
        tuple(f.pattern for f in found),
        tuple(f.calls for f in found),
        tuple(f.counts for f in found),
        frozenset(left),
    )


@dataclass(frozen=True, slots=True)
class _Phase:
    graph: fx.Graph
    guards: tuple[Guard, ...]
    constants: dict[str, torch.Tensor]
    pattern: Any
    calls: Invocations
    counts: tuple[Count, ...] = ()
    changed: tuple[tuple[State, str, Any], ...] = ()
    """What the pass has changed of the state of modules."""
    hooks: tuple[tuple[State, str, Any], ...] = ()
    """What it has registered."""


def _trace(
    twin: nn.Module,
    device: torch.device,
    call: Call,
    results: Results,
    modes: Modes,
    held: Mapping[str, torch.Tensor],
    training: bool,
) -> _Phase:
    """Trace a copy in one mode. It is one that nobody traced before: models that cache tensors break when traced
    twice."""
    pattern: Any = None

    def forward(function: Callable[..., Any], module: nn.Module, *values: Any) -> Any:
        nonlocal pattern
        result, pattern = results(call, values, function, module)
        return result

    tensors = [name for name, a in call.arguments.items() if isinstance(a, Slot)]
    names = tensors if call.has_names else [f"input_{i}" for i in range(len(call.inputs))]
    known = set(vars(twin))
    modes.begin(training)
    tracer = modes.tracer = ExampleTracer(device, modes)
    tracer.held = held
    try:
        graph = tracer.trace_module(twin, dict(zip(names, call.inputs, strict=True)), forward, training=training)
    finally:
        modes.tracer = None
    modes.end()
    functionalise(graph)
    detach_without_grad(graph)
    constants = {n: v for n, v in vars(twin).items() if n not in known and isinstance(v, torch.Tensor)}
    return _Phase(graph, tuple(tracer.guards), constants, pattern, tracer.calls.found)
