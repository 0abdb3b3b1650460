"""A graph as the `forward` of a module: its class becomes a subclass with generated source.

The user's containers, names and other methods stay; only `forward` is new. Inference and training may have graphs
of their own over the same modules.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import itertools
import keyword
import linecache
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from torch import fx, nn

from fxcat.apart import GENERATED, AsWritten
from fxcat.passes.cleanup import remove_dead
from fxcat.passes.effects import CALLS, PHASE, RESULTS, needed, returned
from fxcat.passes.made_classes import make_class
from fxcat.passes.nested import Slot, pack, unpack
from fxcat.passes.regions import Region
from fxcat.passes.rules.boundary import NO_REGION, owners, region_input, region_output
from fxcat.passes.shown import hide, left_out
from fxcat.passes.uncast import NAMES as UNCAST_NAMES
from fxcat.passes.uncast import with_blocks, with_marks
from fxcat.pretrained import told_when_saved

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
    results = [n for n in graph.nodes if n.target is region_output and n.args[1] == number]
    inside = _inside(graph, number)
    result = fx.Graph()
    found: dict[int, fx.Node] = {}
    for name, pattern in region.arguments.items():
        parameter = inspect.signature(forward).parameters[name]
        unpack(result, _placeholder(result, parameter, pattern), pattern, found)
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
        values = [copies[n.args[0]] for n in results if n.args[3] == phase]
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


def _placeholder(graph: fx.Graph, parameter: inspect.Parameter, pattern: Any) -> fx.Node:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    node = graph.placeholder(stars + parameter.name)
    node.meta[_PATTERN] = pattern
    return node


_PATTERN = "pattern"
"""Key in the `meta` of a placeholder of a region: the template of the argument."""


def _install(root: nn.Module, graph: fx.Graph) -> None:
    """Make the graph, for all ways to call it, the `forward` of `root`."""
    base = original_class(root)
    ways = split_phases(graph)
    given = {str(n.target): n for n in graph.nodes if n.op == "placeholder"}
    parameters = _parameters(base, list(given))
    head = _Head(_name_of_module(graph, parameters), parameters, given)
    names = {"_as_written": AsWritten(base.forward, partial(layers, graph), ", ".join(given)), **head.names}
    first = ways[0].graphs[0]
    if len(ways) == len(ways[0].graphs) == 1:
        start = (f"if {head.fails}:", f"    return _as_written({head.this}, {head.passed})") if head.fails else ()
        methods = [_compiled(first, head.this, f"def forward({head.text}):", start, names)]
    else:
        methods = _dispatched(ways, given, head, names)
    root.__class__ = _class_with(base, methods, left_out(parameters, {name.lstrip("*") for name in given}))


def _class_with(base: type[nn.Module], methods: Sequence[Generated], hidden: Sequence[str]) -> type[nn.Module]:
    """A subclass with generated methods; `hidden`: parameters of `forward` that it does not show."""
    members: dict[str, Any] = {"__module__": base.__module__, "__doc__": base.__doc__, "_captured_class": base}
    members |= told_when_saved(base) | {method.name: method.defined() for method in methods}
    hide(members["forward"], hidden)
    return make_class(base.__name__, base, members, (_class_with, (base, tuple(methods), tuple(hidden))))


def _dispatched(
    ways: Sequence[Way], given: Mapping[str, fx.Node], head: _Head, names: Mapping[str, Any]
) -> list[Generated]:
    """A function for every way and phase, and the `forward` that chooses one."""
    methods: list[Generated] = []
    lines = [f"def forward({head.text}):"]
    for number, way in enumerate(ways):
        taken = [name for name in given if name not in way.absent]
        values, parameters = ", ".join(taken), ", ".join([head.this, *taken])
        lines.append(f"    if {head.fits(way.absent)}:")
        for phase in reversed(range(len(way.graphs))):
            name = f"_forward_{_PHASES[phase]}" + (f"_{number}" if number else "")
            methods.append(_compiled(way.graphs[phase], head.this, f"def {name}({parameters}):"))
            condition = f"if {head.this}.training: " if phase else ""
            lines.append(f"        {condition}return {head.this}.{name}({values})")
    lines.append(f"    return _as_written({head.this}, {head.passed})\n")
    return [*methods, Generated("\n".join(lines), "forward", dict(names))]


_PHASES = ("inference", "training")


def layers(graph: fx.Graph) -> frozenset[str]:
    """Paths of the modules whose weights a graph uses, but of those that Python calls by themselves."""
    apart = {n.all_input_nodes[0] for n in graph.nodes if n.target is region_output and n.args[1] == NO_REGION}
    called = {str(n.target) for n in graph.nodes if n.op == "call_module" and n not in apart}
    return frozenset(called | {str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"})


def _parameters(base: type[nn.Module], given: Sequence[str]) -> list[inspect.Parameter]:
    """The parameters of a `forward`, as it was written; those of the graph if they have nothing to do with these."""
    written = list(inspect.signature(base.forward).parameters.values())[1:]
    if {g.lstrip("*") for g in given} <= {p.name for p in written}:
        return written
    return [inspect.Parameter(g, inspect.Parameter.POSITIONAL_OR_KEYWORD) for g in given]


class _Head:
    """The first line of a generated `forward`, with all parameters that it was written with, and what it checks.

    `this`: what it calls the module; `names`: what its text means.
    """

    def __init__(self, this: str, parameters: Sequence[inspect.Parameter], given: Mapping[str, fx.Node]) -> None:
        self.this = this
        self._parameters = parameters
        self._given = {name.lstrip("*"): node for name, node in given.items()}
        self.names: dict[str, Any] = {"_mapping": Mapping, "_others": _NO_TENSORS, "_is": _is, "_is_empty": _is_empty}
        self.names["_isinstance"] = isinstance
        parts, passed, stars = [this], list[str](), False
        for i, parameter in enumerate(parameters):
            name, kind = parameter.name, parameter.kind
            stars |= kind is parameter.VAR_POSITIONAL
            if kind is parameter.KEYWORD_ONLY and not stars:
                parts.append("*")
                stars = True
            mark = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(kind, "")
            default = "" if parameter.default is parameter.empty else f"={self._default(parameter)}"
            parts.append(f"{mark}{name}{default}")
            passed.append(f"{name}={name}" if kind is parameter.KEYWORD_ONLY else mark + name)
            later = parameters[i + 1].kind if i + 1 < len(parameters) else None
            if kind is parameter.POSITIONAL_ONLY and later is not kind:
                parts.append("/")
        self.text, self.passed = ", ".join(parts), ", ".join(passed)

    def _default(self, parameter: inspect.Parameter) -> str:
        if parameter.default is None or type(parameter.default) in (bool, int, str):
            return repr(parameter.default)
        self.names[f"_default_{parameter.name}"] = parameter.default
        return f"_default_{parameter.name}"

    def fits(self, absent: Sequence[str]) -> str:
        """A condition: the arguments are of the kinds that were captured; those `absent` are left out."""
        return " and ".join(self._conditions(absent)) or "True"

    @property
    def fails(self) -> str:
        """The opposite for the call with all arguments; empty if it fits always."""
        opposites = [c.removeprefix("not ") if c.startswith("not ") else f"not {c}" for c in self._conditions(())]
        return " or ".join(opposites)

    def _conditions(self, absent: Sequence[str]) -> list[str]:
        return [c for p in self._parameters if (c := self._condition(p, p.name in absent))]

    def _condition(self, parameter: inspect.Parameter, is_absent: bool) -> str:
        name = parameter.name
        if name not in self._given or is_absent:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                return f"_is_empty({name})"
            default = self._default(parameter)
            if parameter.default is None or isinstance(parameter.default, bool):
                return f"({name} is {default})"
            return f"_is({name}, {default})"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return ""
        node = self._given[name]
        pattern = node.meta.get(_PATTERN, Slot(0))
        if isinstance(pattern, Slot):
            return f"not _isinstance({name}, _others)"
        return f"_isinstance({name}, _mapping)" if isinstance(pattern, Mapping) else ""


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module had before `install`."""
    return getattr(type(module), "_captured_class", type(module))


_NO_TENSORS = (Mapping, list, tuple, str, type(None))
"""What stands in the place of a tensor where `forward` decides by the kind of an argument."""


def _is(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and value == default)


def _is_empty(value: Any) -> bool:
    return isinstance(value, fx.Proxy) or not value  # a tracer's stands for further arguments, of which there are none


@dataclass(frozen=True, slots=True)
class Way:
    """A way to call a model, without the arguments `absent`: the graph of inference and, if it differs, of training."""

    absent: tuple[str, ...]
    graphs: tuple[fx.Graph, ...]


def split_phases(graph: fx.Graph) -> tuple[Way, ...]:
    """The ways to call a model.

    The graph of inference has only what its output needs. That of training has all that the model runs then: a norm
    whose result nobody reads updates its statistics too, and dropout draws numbers.
    """
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    ways, modes = output.meta.get(CALLS, ((),)), 2 if output.meta.get("phases") else 1
    patterns = output.meta.get(RESULTS, (None,) * len(ways) * modes)
    if len(ways) == modes == 1 and patterns == (None,):
        return (Way((), (graph,)),)
    found: list[Way] = []
    for i, absent in enumerate(ways):
        own = patterns[i * modes : (i + 1) * modes]
        inference, training = (_part(graph, (i, p), absent, own[p % modes]) for p in range(2))
        same = modes == 1 and len(inference.nodes) == len(training.nodes)
        found.append(Way(absent, (inference,) if same else (inference, training)))
    return tuple(found)


def _part(graph: fx.Graph, of: tuple[int, int], absent: Sequence[str], pattern: Any) -> fx.Graph:
    """What a way and phase runs, without what would need arguments that are absent, or what only another way needs.

    A graph that is there for both phases has what training runs.
    """
    phase = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    phase.graph_copy(graph, copies)
    way, number = of
    result = fx.map_arg(returned(output, number, way), copies.__getitem__)
    phase.output(result if pattern is None else pack(phase, pattern, result))
    _erase_from(phase, {n for n in phase.nodes if n.op == "placeholder" and n.target in absent})
    if number == 0 and output.meta.get("phases"):
        remove_dead(phase, number)
    else:
        left = set(phase.nodes)
        _erase_from(phase, {copies[n] for n in _of_other_ways(graph, output, way) if copies[n] in left})
        _remove_inference(phase)
    return phase


def _of_other_ways(graph: fx.Graph, output: fx.Node, way: int) -> set[fx.Node]:
    """What only other ways to call the model than this one need in training."""
    ways = range(len(output.meta.get(CALLS, ((),))))
    found = [needed(graph, _nodes_in(returned(output, 1, i)), 1) for i in ways]
    return set[fx.Node]().union(*found) - found[way]


def _nodes_in(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return found


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


def _erase_from(graph: fx.Graph, nodes: set[fx.Node]) -> None:
    """Erase nodes and all that takes their values."""
    gone = set(nodes)
    for node in graph.nodes:
        if not gone.isdisjoint(node.all_input_nodes):
            gone.add(node)
    for node in reversed(graph.nodes):
        if node in gone:
            graph.erase_node(node)


def _name_of_module(graph: fx.Graph, parameters: Sequence[inspect.Parameter]) -> str:
    """What the generated code calls the module: `self`, unless something else in it has that name."""
    taken = {n.name for n in graph.nodes} | {str(n.target).lstrip("*") for n in graph.nodes if n.op == "placeholder"}
    taken |= {p.name for p in parameters}
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


def _compiled(
    graph: fx.Graph, this: str, head: str, start: Sequence[str] = (), names: Mapping[str, Any] | None = None
) -> Generated:
    """The function of a graph of a module that it calls `this`, with a head of its own, and lines that come first."""
    code = with_marks(_with_names_as_data(graph)).python_code(this)
    lines = [head, *(f"    {line}" for line in start)]
    source = re.sub(r"^def forward\(.*$", lambda _: "\n".join(lines), code.src, count=1, flags=re.MULTILINE)
    namespace = {**code.globals, **UNCAST_NAMES, **(names or {})}
    return Generated(with_blocks(source), head.removeprefix("def ").partition("(")[0], namespace)


@dataclass(frozen=True, slots=True)
class Generated:
    """Source of a function, and what the names in it mean. Can be pickled."""

    source: str
    name: str
    namespace: Mapping[str, Any]

    def defined(self) -> Callable[..., Any]:
        """Compile it; registered with linecache, as long as the function lives, so that tracebacks show it."""
        filename = f"{GENERATED} {next(_numbers)}>"
        linecache.cache[filename] = (len(self.source), None, self.source.splitlines(True), filename)
        namespace = dict(self.namespace)
        exec(compile(self.source, filename, "exec"), namespace)
        function = namespace[self.name]
        weakref.finalize(function, linecache.cache.pop, filename, None)
        return function

    def __reduce__(self) -> tuple[Any, ...]:
        modules = {n: v.__name__ for n, v in self.namespace.items() if isinstance(v, ModuleType)}
        others = {n: v for n, v in self.namespace.items() if n not in modules and n != "__builtins__"}
        return _generated, (self.source, self.name, others, modules)


def _generated(source: str, name: str, names: Mapping[str, Any], modules: Mapping[str, str]) -> Generated:
    return Generated(source, name, {**names, **{n: importlib.import_module(path) for n, path in modules.items()}})
