"""A graph as the `forward` of a module: its class becomes a subclass with generated source.

The user's containers, names and other methods stay; only `forward` is new. Inference and training may have graphs
of their own over the same modules.
"""

from __future__ import annotations

import builtins
import inspect
import itertools
import keyword
import linecache
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from fxcat.passes.cleanup import remove_dead
from fxcat.passes.effects import needed
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
    """The graph of inference and that of training if they differ, each without what its output does not need."""
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
        remove_dead(phase, number)
        result.append(phase)
    return tuple(result)


def _compile(graph: fx.Graph, name: str) -> Callable[..., Any]:
    graph = _with_names_as_data(graph)
    this = _name_of_module(graph)
    code = graph.python_code(this)
    # torch.fx writes `self` in front, unless the first argument has that name
    first = next((n.target for n in graph.nodes if n.op == "placeholder"), None)
    named = f"def {name}({this}, self" if first == "self" else f"def {name}({this}"
    source = code.src.replace("def forward(self", named, 1)
    return _define(source, name, dict(code.globals))


def _name_of_module(graph: fx.Graph) -> str:
    """What the generated code calls the module: `self`, unless something else in it has that name."""
    taken = {n.name for n in graph.nodes} | {str(n.target).lstrip("*") for n in graph.nodes if n.op == "placeholder"}
    return "self" if "self" not in taken else next(n for i in itertools.count() if (n := f"module_{i}") not in taken)


def _with_names_as_data(graph: fx.Graph) -> fx.Graph:
    """A graph of the same modules, parameters and buffers, where those whose names are no Python names are looked up.

    torch.fx writes every name into the code as it is. A name is data, whatever it holds.
    """
    if all(_is_written(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")):
        return graph
    result = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr") or _is_written(node.target):
            copies[node] = result.node_copy(node, copies.__getitem__)
            continue
        path, _, leaf = str(node.target).rpartition(".")
        if node.op == "call_module":
            found = result.call_module("get_submodule", (node.target,))
            args, kwargs = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
            copies[node] = result.call_method("__call__", (found, *args), kwargs)
        else:
            found = result.call_module("get_submodule", (path,))
            # with a default, torch.fx does not write it as an attribute
            copies[node] = result.call_function(builtins.getattr, (found, leaf, None))
        copies[node].meta = dict(node.meta)
    return result


def _is_written(path: Any) -> bool:
    """Whether a path may stand in code, where Python would read the same names."""
    return all(part.isascii() and part.isidentifier() and not keyword.iskeyword(part) for part in str(path).split("."))


def _dispatcher(graph: fx.Graph) -> Callable[..., Any]:
    names = [str(n.target) for n in graph.nodes if n.op == "placeholder"]
    values = ", ".join(names)
    this = _name_of_module(graph)
    source = (
        f"def forward({', '.join([this, *names])}):\n"
        f"    if {this}.training:\n"
        f"        return {this}._forward_training({values})\n"
        f"    return {this}._forward_inference({values})\n"
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
