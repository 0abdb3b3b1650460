"""A graph as the `forward` of a module: its class becomes a subclass with generated source.

The user's containers, names and other methods stay; only `forward` is new. Inference and training may have graphs
of their own over the same modules.
"""

from __future__ import annotations

import itertools
import linecache
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from fxcat.passes.cleanup import remove_dead

_numbers = itertools.count()


def install(root: nn.Module, graph: fx.Graph) -> None:
    """Make the graph the `forward` of `root`. Its output is `(inference, training)`, or one value for both."""
    base = original_class(root)
    phases = split_phases(graph)
    members: dict[str, Any] = {"__module__": base.__module__, "__doc__": base.__doc__, "_captured_class": base}
    if len(phases) == 1:
        members["forward"] = _compile(phases[0], "forward")
    else:
        members["_forward_inference"] = _compile(phases[0], "_forward_inference")
        members["_forward_training"] = _compile(phases[1], "_forward_training")
        members["forward"] = _dispatcher(phases[0])
    root.__class__ = type(base.__name__, (base,), members)


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module had before `install`."""
    return getattr(type(module), "_captured_class", type(module))


def split_phases(graph: fx.Graph) -> tuple[fx.Graph, ...]:
    """The graph of inference and that of training if they differ, each without what its output does not need."""
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    if not output.meta.get("phases"):
        return (graph,)
    values: Any = output.args[0]
    result: list[fx.Graph] = []
    for value in values:
        phase = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        phase.graph_copy(graph, copies)
        phase.output(fx.map_arg(value, copies.__getitem__))
        remove_dead(phase)
        result.append(phase)
    return tuple(result)


def _compile(graph: fx.Graph, name: str) -> Callable[..., Any]:
    code = graph.python_code("self")
    source = code.src.replace("def forward(", f"def {name}(", 1)
    return _define(source, name, dict(code.globals))


def _dispatcher(graph: fx.Graph) -> Callable[..., Any]:
    names = [str(n.target) for n in graph.nodes if n.op == "placeholder"]
    values = ", ".join(names)
    source = (
        f"def forward({', '.join(['self', *names])}):\n"
        f"    if self.training:\n"
        f"        return self._forward_training({values})\n"
        f"    return self._forward_inference({values})\n"
    )
    return _define(source, "forward", {})


def _define(source: str, name: str, namespace: dict[str, Any]) -> Callable[..., Any]:
    """Compile generated source; registered with linecache so that tracebacks show it."""
    filename = f"<fxcat graph {next(_numbers)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    exec(compile(source, filename, "exec"), namespace)
    return namespace[name]
