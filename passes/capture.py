"""Capture: a model as one graph over its own modules.

In: a model and example inputs. Out: `Captured`: one graph whose nodes hold example values, and the guards. If the model
behaves differently in training, the graph holds both behaviours, with the nodes they share only once, and its output is
`(inference, training)`. What cannot be traced as a whole is captured in regions.
"""

from __future__ import annotations

import operator
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from fxcat.errors import CaptureError, InputError
from fxcat.passes.copying import meta_twin
from fxcat.passes.discovery import find_regions
from fxcat.passes.effects import CALLS, PHASE, RESULTS, is_by_the_way, needed, returned, without_result
from fxcat.passes.example import argument_forms
from fxcat.passes.functionalise import detach_without_grad, functionalise
from fxcat.passes.guards import assert_guards
from fxcat.passes.nested import CONSTANTS, Slot, is_plain, leaves, lost_in_copy, map_leaves, template
from fxcat.passes.proxy import Guard
from fxcat.passes.regions import Call, Pin, Region, Regions, Tie, Traced
from fxcat.passes.rules.table import is_leaf
from fxcat.passes.stale import make_stale
from fxcat.passes.tracer import ExampleTracer


@dataclass(frozen=True, slots=True)
class Captured:
    """A captured model of class `name`: a graph over any copy of it, whole or of `regions`.

    `constants`: tensors that the model's Python makes, to be registered under these names. `batch`: examples in the
    example inputs. `calls`: of each region. `pins`: units that the Python between regions needs. `refused`: why the
    rest was not captured. `orders`: buffers of indices that rewrites put in, with values. `macs`: of the
    Python between regions, for one example.
    """

    name: str
    graph: fx.Graph
    guards: tuple[Guard, ...]
    constants: Mapping[str, torch.Tensor]
    batch: int
    regions: tuple[Region, ...] = ()
    calls: Mapping[int, int] = field(default_factory=dict[int, int])
    ties: tuple[Tie, ...] = ()
    pins: tuple[Pin, ...] = ()
    refused: Mapping[str, CaptureError] = field(default_factory=dict[str, CaptureError])
    orders: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    macs: int = 0


def capture(model: nn.Module, example_inputs: Any, *, in_regions: bool = True) -> Captured:
    """Capture a model whole if it can be traced, otherwise in regions, unless they are not wanted.

    Raises `InputError` when the inputs do not fit `forward`, and `CaptureError` (module path, source line, reason) when
    nothing can be captured; the model is not touched.
    """
    refused: list[CaptureError | InputError] = []
    for args, kwargs in argument_forms(model, example_inputs):
        try:
            call = _bind(model, args, kwargs)
            with _LOCK:
                return _capture(model, call, in_regions=in_regions)
        except (CaptureError, InputError) as error:
            refused.append(error)
    raise refused[0]


_LOCK = threading.RLock()
"""While a model is captured, functions of PyTorch and of the model's Python are replaced: one at a time."""


def _capture(model: nn.Module, call: Call, *, in_regions: bool) -> Captured:
    try:
        if call.has_lists:  # the images of a detector
            raise CaptureError("it takes a list, which may have another length the next time", where=_name(model))
        return _whole(model, call)
    except CaptureError as error:
        if not in_regions:
            raise
        return _in_regions(model, call, error)


def _bind(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    try:
        call = Call.of(model, args, kwargs)
    except TypeError as error:
        raise InputError(
            f"example_inputs do not fit {_name(model)}.forward: {error}",
            remedy="give a tensor, a tuple with one entry per argument of forward, or a dict with their names",
        ) from error
    if not call.tensors:
        kinds = ", ".join(type(a).__name__ for a in (*args, *kwargs.values()))
        raise InputError(f"there is no tensor in example_inputs ({kinds})", remedy="give tensors as example_inputs")
    return call


def _name(model: nn.Module) -> str:
    return type(model).__name__


def _batch(call: Call) -> int:
    """Examples in the inputs: entries of a list of images, or of the first axis of most tensors."""
    lists = [len(a) for a in call.arguments.values() if isinstance(a, list)]
    lengths = [len(x) for x in call.inputs if x.dim() > 1 and len(x) > 0]
    return max(lists) if lists else max(lengths, key=lengths.count, default=1)


def _whole(model: nn.Module, call: Call) -> Captured:
    if not all(isinstance(a, Slot) for a in call.arguments.values()):
        return _one_region(model, call)
    found = _phases(model, call, _plainly)
    traced = _merged(found, _shorter_calls(model, call, found))
    return Captured(_name(model), traced.graph, traced.guards, traced.constants, _batch(call))


def _plainly(call: Call, values: tuple[Any, ...], function: Callable[..., Any], twin: nn.Module) -> tuple[Any, Any]:
    """What a module returns; if that holds other containers than Python's own: what is in them, and a template."""
    args, kwargs = call.filled(values)
    result = function(twin, *args, **kwargs)
    if is_plain(result):
        return result, None
    pattern, found = template(map_leaves(_whole_copy(result, twin), _opened), (fx.Proxy, torch.Tensor))
    _check_constants(pattern, twin)
    return tuple(found), pattern


def _check_constants(pattern: Any, module: nn.Module) -> None:
    strange = [type(a).__name__ for a in leaves(pattern) if not isinstance(a, (Slot, *CONSTANTS))]
    if strange:
        raise CaptureError(f"it returns a {strange[0]}, not tensors", where=type(module).__name__)


def _whole_copy(result: Any, module: nn.Module) -> Any:
    """A result that can be made from its class and what is in it."""
    lost = lost_in_copy(result)
    if lost is not None:
        raise CaptureError(f"what it returns cannot be made from its parts: {lost}", where=type(module).__name__)
    return result


Results = Callable[[Call, tuple[Any, ...], Callable[..., Any], nn.Module], tuple[Any, Any]]
"""Calls a `forward`, given to it as a function, and gives what the graph returns, and a template of the rest of it."""


@dataclass(frozen=True, slots=True)
class _Phases:
    """The graphs of one call: in inference and, where any Python looked at the mode, in training."""

    graphs: tuple[fx.Graph, ...]
    guards: tuple[Guard, ...]
    constants: dict[str, torch.Tensor]
    patterns: tuple[Any, ...]


def _phases(model: nn.Module, call: Call, results: Results) -> _Phases:
    """Trace a module in inference mode, and in training mode too if any of its Python looks at `training`.

    What it kept of an earlier pass is taken for stale, if its Python can do with that.
    """
    twin, device = meta_twin(model), _device(model, call)
    if make_stale(twin):
        try:
            return _phases_of_twin(twin, device, call, results)
        except CaptureError:
            twin = meta_twin(model)
    return _phases_of_twin(twin, device, call, results)


def _device(model: nn.Module, call: Call) -> torch.device:
    """Where the model is, or its inputs."""
    found = next((t.device for t in (*model.parameters(), *call.tensors) if not t.is_meta), None)
    return found or torch.device("cpu")


def _phases_of_twin(twin: nn.Module, device: torch.device, call: Call, results: Results) -> _Phases:
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
        return _Phases((graph,), guards, constants, tuple(patterns))
    for state, known in before:  # what the first pass left there is of another graph
        kept = {n: v for n, v in state.items() if n not in known and n.startswith("_tensor_constant")}
        state.clear()
        state.update(known | kept)
    training, more, others = _trace(twin, device, inputs, forward, training=True)
    return _Phases((graph, training), (*guards, *more), constants | others, tuple(patterns))


def _merged(found: _Phases, shorter: Sequence[_Shorter] = ()) -> Traced:
    """One graph with all outputs, and with assertions of what was decided from sizes."""
    graph, guards = found.graphs[0], (*found.guards, *(g for call in shorter for g in call.guards))
    renamed = {n: n for n in graph.nodes}
    if len(found.graphs) > 1:
        graph, renamed = _merge(*found.graphs, differ=found.patterns[0] != found.patterns[-1])
        guards = tuple(Guard(renamed[g.node], g.value) for g in guards)
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    modes = 2 if output.meta.get("phases") else 1
    patterns = list(found.patterns[:modes])
    if shorter:
        values = [returned(output, mode) for mode in range(modes)]
        for call in shorter:
            values += [fx.map_arg(v, renamed.__getitem__) for v in call.values[:modes]]
            patterns += call.patterns[:modes]
        output.args = (tuple(values),)
        output.meta[CALLS] = ((), *(call.absent for call in shorter))
    if any(p is not None for p in patterns):
        output.meta[RESULTS] = tuple(patterns)
    assert_guards(graph, guards)
    return Traced(graph, guards, found.constants, tuple(patterns[:modes]))


@dataclass(frozen=True, slots=True)
class _Shorter:
    """A call without some arguments, as a part of the graphs of the whole call: what it returns in either phase."""

    absent: tuple[str, ...]
    values: tuple[Any, ...]
    patterns: tuple[Any, ...]
    guards: tuple[Guard, ...]


def _shorter_calls(model: nn.Module, call: Call, whole: _Phases) -> list[_Shorter]:
    """The calls without arguments that may be left out, such as labels: one of them, or all that may be.

    Only those that do a part of what the whole call does, and compute with that: all weights are those of the whole.
    """
    parameters = call.bound.signature.parameters
    optional = [name for name in call.arguments if parameters[name].default is None]
    found = [s for name in optional if (s := _shorter(model, call, whole, (name,))) is not None]
    if len(found) > 1:
        together = _shorter(model, call, whole, tuple(name for s in found for name in s.absent))
        found += [] if together is None else [together]
    return found


def _shorter(model: nn.Module, call: Call, whole: _Phases, absent: tuple[str, ...]) -> _Shorter | None:
    left = call.without(absent)
    if not left.tensors:
        return None
    try:
        found = _phases(model, left, _plainly)
    except CaptureError:
        return None
    values, guards = list[Any](), list[Guard]()
    for phase, graph in enumerate(whole.graphs):
        part = found.graphs[phase % len(found.graphs)]
        places = _placed(part, graph, found.constants, whole.constants)
        if places is None:
            return None
        output = next(n for n in reversed(part.nodes) if n.op == "output")
        values.append(fx.map_arg(output.args[0], places.__getitem__))
        guards += [Guard(places[g.node], g.value) for g in found.guards if g.node in places]
    patterns = tuple(found.patterns[p % len(found.graphs)] for p in range(len(values)))
    return _Shorter(absent, tuple(values), patterns, tuple(guards))


def _placed(
    part: fx.Graph, graph: fx.Graph, constants: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]
) -> dict[fx.Node, fx.Node] | None:
    """For every node of a graph the one of a larger graph that computes the same; functions that this lacks are added.

    None, and nothing is added, if there is more to it.
    """
    numbers: Counter[Any] = Counter()
    same = {n: n for n in graph.nodes}
    known = {_numbered(numbers, _key(n, same)): n for n in graph.nodes if n.op != "output"}
    numbers.clear()
    places: dict[fx.Node, fx.Node] = {}
    added: list[fx.Node] = []
    node = last = next(iter(graph.nodes))
    for node in part.nodes:
        if node.op == "output":
            break
        key = _key(node, places)
        if node.op == "get_attr" and node.target in constants:
            value = constants[str(node.target)]
            equal = next((n for n, c in others.items() if c.shape == value.shape and torch.equal(c, value)), None)
            key = (node.op, equal, *key[2:])
        found = known.get(_numbered(numbers, key))
        if found is None and node.op in ("call_function", "call_method") and not is_by_the_way(node):
            with graph.inserting_after(max([last, *(places[i] for i in node.all_input_nodes)])):
                found = graph.node_copy(node, places.__getitem__)
            added.append(found)
        if found is None:
            break
        places[node] = last = found
    if node.op != "output" or not _is_apart(graph, places, node):
        for new in reversed(added):
            graph.erase_node(new)
        return None
    return places


def _is_apart(graph: fx.Graph, places: Mapping[fx.Node, fx.Node], output: fx.Node) -> bool:
    """Whether a part of a graph is all that its results take: nothing else changes on the way what it computes."""
    results: list[fx.Node] = []
    fx.map_arg(output.args[0], lambda n: results.append(places[n]))
    return needed(graph, results) - without_result(graph) <= set(places.values())


def _shallow(value: Any) -> Any:
    return value.copy() if type(value) in (list, dict) else value


def _trace_region(module: nn.Module, call: Call) -> Traced:
    """Trace a module whose arguments and results are nested values."""

    def results(call: Call, values: tuple[Any, ...], function: Callable[..., Any], twin: nn.Module) -> tuple[Any, Any]:
        args, kwargs = call.filled(values)
        result = _whole_copy(function(twin, *args, **kwargs), twin)
        pattern, proxies = template(map_leaves(result, _opened), fx.Proxy)
        _check_constants(pattern, twin)
        if any(not isinstance(p.node.meta["value"], torch.Tensor) for p in proxies):
            raise CaptureError("it returns a number, not tensors", where=type(twin).__name__)
        return tuple(proxies), pattern

    traced = _merged(_phases(module, call, results))
    output = next(n for n in reversed(traced.graph.nodes) if n.op == "output")
    output.meta.pop(RESULTS, None)  # regions put their results together themselves
    return traced


def _opened(leaf: Any) -> Any:
    """A proxy of several values as a tuple of proxies."""
    is_tuple = isinstance(leaf, fx.Proxy) and isinstance(leaf.node.meta["value"], tuple | list)
    return tuple(map_leaves(part, _opened) for part in leaf) if is_tuple else leaf


def _one_region(model: nn.Module, call: Call) -> Captured:
    """The whole model as a region, since its arguments are nested values."""
    found = Regions()
    sources = [found.placeholder(x) for x in call.inputs]
    for node in found.add("", call, _trace_region(model, call), sources):
        found.pins.append(Pin(node, None, "output of the network"))
    found.graph.output(())
    return _from_regions(model, call, found)


def _in_regions(model: nn.Module, call: Call, refused: CaptureError) -> Captured:
    """`refused`: why the model cannot be captured whole. It is raised if nothing inside the model can be captured."""
    tensors = [torch.rand(t.shape, dtype=t.dtype) if t.is_meta else t for t in call.tensors]
    try:
        found = find_regions(model, *call.filled(tensors), _trace_region)
        if not found.regions:
            raise CaptureError("no part of the model can be captured", where=_name(model))
    except CaptureError as error:
        raise (error if call.has_lists else refused) from error
    found.refused = {"": refused, **found.refused}
    return _from_regions(model, call, found)


def _from_regions(model: nn.Module, call: Call, found: Regions) -> Captured:
    return Captured(
        *(_name(model), found.graph, tuple(found.guards), found.constants, _batch(call)),
        *(tuple(found.regions), found.calls, tuple(found.ties), tuple(found.pins), found.refused),
        macs=found.macs // _batch(call),
    )


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


def _merge(inference: fx.Graph, training: fx.Graph, *, differ: bool) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """One graph with both outputs; a node that both have (same op, target and arguments) appears once.

    So does a function that differs in what is off, or 0.0, in inference only: it reads the mode of the module that
    calls it. The order of each graph is kept: random ops must draw in the order in which the model's Python calls them.
    """
    merged = fx.Graph()
    known: dict[Any, fx.Node] = {}
    modal: dict[Any, fx.Node] = {}
    outputs: list[Any] = []
    copies: dict[fx.Node, fx.Node] = {}
    place: dict[fx.Node, int] = {}
    for phase, graph in enumerate((inference, training)):
        seen: Counter[Any] = Counter()
        last: fx.Node | None = None
        reached = -1
        for node in graph.nodes:
            if node.op == "output":
                outputs.append(fx.map_arg(node.args[0], copies.__getitem__))
                continue
            # equal calls within one graph stay apart: they may be random or in place
            key = _numbered(seen, _key(node, copies))
            flagged = _numbered(seen, _key(node, copies, flags=False)) if _has_flag(node) else None
            found = known.get(key)
            if phase and found is None and flagged in modal and place[modal[flagged]] > reached:
                found = modal[flagged] if _set_by_mode(modal[flagged], node) else None
            if found is not None and place[found] < reached and node.op != "get_attr":
                found = None  # the two graphs call these in another order
            if found is None:
                with merged.inserting_after(last):
                    found = merged.node_copy(node, copies.__getitem__)
                found.meta[PHASE] = phase
                if not phase:
                    known[key], place[found] = found, len(place)
                    if flagged is not None:
                        modal[flagged] = found
                last = found
            elif place[found] > reached:
                last, reached = found, place[found]
            if phase and found in place:
                found.meta.pop(PHASE, None)
            copies[node] = found
    differ |= repr(outputs[0]) != repr(outputs[1]) or any(PHASE in n.meta and is_by_the_way(n) for n in merged.nodes)
    result = merged.output(tuple(outputs) if differ else outputs[0])
    if differ:
        result.meta["phases"] = True
    return merged, copies


def _numbered(seen: Counter[Any], key: Any) -> tuple[Any, int]:
    seen[key] += 1
    return key, seen[key]


def _key(node: fx.Node, copies: Mapping[fx.Node, fx.Node], *, flags: bool = True) -> Any:
    """What a node computes; without the values of its flags, if they are not wanted."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: copies.get(n, n))
    if not flags:
        args, kwargs = map_aggregate((args, kwargs), lambda a: "flag" if isinstance(a, bool | float) else a)
    return node.op, node.target, repr(args), repr(kwargs)


def _has_flag(node: fx.Node) -> bool:
    return node.op == "call_function" and bool(_flags(node))


def _flags(node: fx.Node) -> list[bool | float]:
    """The flags and fractions among a node's arguments, in order."""
    found: list[bool | float] = []
    map_aggregate((node.args, node.kwargs), lambda a: found.append(a) if isinstance(a, bool | float) else None)
    return found


def _set_by_mode(node: fx.Node, training: fx.Node) -> bool:
    """Let `node` of the merged graph read the mode where its flags are off and those of `training` are on, and where
    its fractions are 0.0 and those of `training` are not.

    False if others differ: then nothing is changed.
    """
    pairs = list(zip(_flags(node), _flags(training), strict=True))
    if any(off != on and off not in (False, 0.0) for off, on in pairs):
        return False
    with node.graph.inserting_before(node):
        mode = node.graph.create_node("get_attr", f"{node.meta['path']}.training".lstrip("."))
    mode.meta.update(path=node.meta["path"], value=False)
    left = iter(pairs)

    def by_mode(argument: Any) -> Any:
        off, on = next(left) if isinstance(argument, bool | float) else (None, None)
        if off == on:
            return argument
        if isinstance(on, bool):
            return mode
        with node.graph.inserting_before(node):
            product = node.graph.call_function(operator.mul, (mode, on))
        product.meta.update(path=node.meta["path"], value=0.0)
        return product

    node.args, node.kwargs = map_aggregate((node.args, node.kwargs), by_mode)
    return True
