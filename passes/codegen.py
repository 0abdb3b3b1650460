"""A graph as the `forward` of a module: its class becomes a subclass with generated source.

The user's containers, names and other methods stay; only `forward` is new. Inference and training may have graphs
of their own over the same modules.
"""

from __future__ import annotations

import inspect
import itertools
import linecache
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from fxcat.passes.cleanup import remove_dead
from fxcat.passes.effects import PHASE, needed
from fxcat.passes.nested import CONSTANTS, pack, unpack
from fxcat.passes.regions import Region
from fxcat.passes.rules.boundary import owners, region_input, region_output

_numbers = itertools.count()


def install(root: nn.Module, graph: fx.Graph, regions: Sequence[Region] = ()) -> None:
    """Make the graph the `forward` of `root`, or the parts of it that belong to regions those of their modules."""
    if not regions:
        _install(root, graph)
    for number, region in enumerate(regions):
        module = root.get_submodule(region.path)
        _install(module, region_graph(graph, number, region, original_class(module).forward))


def region_graph(graph: fx.Graph, number: int, region: Region, forward: Callable[..., Any]) -> fx.Graph:
    """The graph of one region over its own module: it takes its arguments apart and puts its results together."""
    returned = [n for n in graph.nodes if n.target is region_output and n.args[1] == number]
    inside = _inside(graph, number)
    result = fx.Graph()
    found: dict[int, fx.Node] = {}
    for name, pattern in region.arguments.items():
        unpack(result, _placeholder(result, inspect.signature(forward).parameters[name]), pattern, found)
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node not in inside:
            continue
        if node.target is region_input:
            copies[node] = found[node.args[2]]
            continue
        copy = copies[node] = result.node_copy(node, copies.__getitem__)
        if node.op in ("call_module", "get_attr"):
            copy.target = str(node.target).removeprefix(f"{region.path}.")
    phases: list[Any] = []
    for phase, pattern in enumerate(region.results):
        values = [copies[n.args[0]] for n in returned if n.args[3] == phase]
        phases.append(pack(result, pattern, values))
    output = result.output(phases[0] if len(phases) == 1 else tuple(phases))
    if len(phases) > 1:
        output.meta["phases"] = True
    return result


def _inside(graph: fx.Graph, number: int) -> set[fx.Node]:
    """The nodes of a region, with the parameters that they read. Some reach no result, but update statistics."""
    inside = [n for n, owner in owners(graph).items() if owner == number and n.target is not region_output]
    inside += [n.all_input_nodes[0] for n in graph.nodes if n.target is region_output and n.args[1] == number]
    return needed(graph, inside, ends={n for n in inside if n.target is region_input})


def _placeholder(graph: fx.Graph, parameter: inspect.Parameter) -> fx.Node:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    default = parameter.default
    if default is parameter.empty or not isinstance(default, CONSTANTS):
        return graph.placeholder(stars + parameter.name)
    return graph.placeholder(parameter.name, default_value=default)


def _install(root: nn.Module, graph: fx.Graph) -> None:
    """The graph's output is `(inference, training)`, or one value for both."""
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
    """The graph of inference and that of training if they differ.

    Inference only has what its output needs. Training has all that the model runs then: a norm whose result nobody
    reads updates its statistics too, and dropout draws numbers.
    """
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    if not output.meta.get("phases"):
        return (graph,)
    values: Any = output.args[0]
    result: list[fx.Graph] = []
    for number, value in enumerate(values):
        phase = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        phase.graph_copy(graph, copies)
        phase.output(fx.map_arg(value, copies.__getitem__))
        if number == 0:
            remove_dead(phase, number)
        else:
            _remove_inference(phase)
        result.append(phase)
    return tuple(result)


def _remove_inference(graph: fx.Graph) -> None:
    """Erase what only inference runs, what takes its results, and the gates that only these read."""
    wanted = needed(graph, [n for n in graph.nodes if n.op == "output"], 1)
    gone: set[fx.Node] = set()
    for node in graph.nodes:
        if node not in wanted and (node.meta.get(PHASE) == 0 or any(i in gone for i in node.all_input_nodes)):
            gone.add(node)
    for node in reversed(graph.nodes):
        if node in gone or (node.op == "get_attr" and not node.users and node not in wanted):
            graph.erase_node(node)


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
    """Compile generated source; registered with linecache, as long as it lives, so that tracebacks show it."""
    filename = f"<fxcat graph {next(_numbers)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    exec(compile(source, filename, "exec"), namespace)
    function = namespace[name]
    weakref.finalize(function, linecache.cache.pop, filename, None)
    return function
