"""Capture: a model as one graph over its own modules.

In: a model and example inputs. Out: `Captured`: one graph whose nodes hold example values, and the guards. If the model
behaves differently in training, the graph holds both behaviours, with the nodes they share only once, and its output is
`(inference, training)`. What cannot be traced as a whole is captured in regions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from fxcat.errors import CaptureError, InputError
from fxcat.passes.capture.asked import Asking, plain
from fxcat.passes.capture.assert_guards import assert_guards
from fxcat.passes.capture.default_inputs import argument_forms
from fxcat.passes.capture.find_regions import find_regions
from fxcat.passes.capture.merge_phases import merge
from fxcat.passes.capture.phases import Phases, trace_phases
from fxcat.passes.capture.regions import Call, Pin, Region, Regions, Tie, Traced
from fxcat.passes.capture.shorter import Shorter, shorter_calls
from fxcat.passes.capture.tracing import Guard
from fxcat.passes.graph.invocations import Invocations, number_values
from fxcat.passes.graph.meta import BOTH_PHASES, CALLS, COUNTS, PATTERN, RESULTS, VALUE, value_of
from fxcat.passes.graph.nested import CONSTANTS, Slot, is_plain, leaves, lost_in_copy, map_leaves, template
from fxcat.passes.nodes.effects import returned
from fxcat.utils.exclusive import ONE_AT_A_TIME


@dataclass(frozen=True, slots=True)
class Captured:
    """A captured model of class `name`: a graph over any copy of it, whole or of `regions`.

    `constants`: tensors that the model's Python makes, to be registered under these names. `batch`: examples in the
    example inputs. `calls`: of each region. `pins`: units that the Python between regions needs. `refused`: why the
    rest was not captured. `orders`: buffers of indices that rewrites put in, with values. `macs`: of the
    Python between regions, for one example. `blocks`: the calls of modules in inference and in training. `left`:
    attributes in which `forward` leaves values of a pass, which the graph does not. `others`: paths of modules that
    are not any more what the code of their classes makes of them.
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
    blocks: tuple[Invocations, Invocations] = ({}, {})
    left: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()


def capture(model: nn.Module, example_inputs: Any, *, in_regions: bool = True, python: Sequence[str] = ()) -> Captured:
    """Capture a model whole if it can be traced, otherwise in regions, unless they are not wanted.

    `python`: paths of modules that are no regions, nor parts of one: what they call may be.

    Raises `InputError` when the inputs do not fit `forward`, and `CaptureError` (module path, source line, reason) when
    nothing can be captured; the model is not touched.
    """
    refused: list[CaptureError | InputError] = []
    for args, kwargs in argument_forms(model, example_inputs):
        try:
            call = _bind(model, args, kwargs)
            with ONE_AT_A_TIME:
                return _capture(model, call, in_regions=in_regions, python=python)
        except (CaptureError, InputError) as error:
            refused.append(error)
    raise refused[0]


def _capture(model: nn.Module, call: Call, *, in_regions: bool, python: Sequence[str]) -> Captured:
    try:
        if python:
            raise CaptureError("its Python is to be run as it is", where=_name(model))
        if call.has_lists:  # the images of a detector
            raise CaptureError("it takes a list, which may have another length the next time", where=_name(model))
        return _whole(model, call)
    except CaptureError as error:
        if not in_regions:
            raise
        return _in_regions(model, call, error, python)


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
    if not call.has_names:
        return _one_region(model, call)
    phases = trace_phases(model, call, _plainly)
    traced = _merged(phases, shorter_calls(model, call, phases, _plainly))
    _add_flags(traced.graph, call)
    found = traced.graph, traced.guards, traced.constants, _batch(call)
    return Captured(_name(model), *found, blocks=traced.blocks, left=traced.left)


def _add_flags(graph: fx.Graph, call: Call) -> None:
    """Placeholders for arguments that are no tensors: the code that becomes of the graph is for these."""
    first = next(iter(graph.nodes))
    for name, value in call.arguments.items():
        if not isinstance(value, Slot):
            with graph.inserting_before(first):
                placeholder = graph.placeholder(name)
            VALUE.set(placeholder, value)
            PATTERN.set(placeholder, value)


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


def _merged(found: Phases, shorter: Sequence[Shorter] = ()) -> Traced:
    """One graph with all outputs, and with assertions of what was decided from sizes."""
    graph, guards = found.graphs[0], (*found.guards, *(g for call in shorter for g in call.guards))
    renamed = {n: n for n in graph.nodes}
    if len(found.graphs) > 1:
        graph, renamed = merge(*found.graphs, differ=found.patterns[0] != found.patterns[-1])
        guards = tuple(replace(g, node=renamed[g.node]) for g in guards)
    blocks = number_values(graph, found.calls, renamed)
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    modes = 2 if BOTH_PHASES.get(output) else 1
    patterns = list(found.patterns[:modes])
    if shorter:
        values = [returned(output, mode) for mode in range(modes)]
        for call in shorter:
            values += [fx.map_arg(v, renamed.__getitem__) for v in call.values[:modes]]
            patterns += call.patterns[:modes]
        output.args = (tuple(values),)
        CALLS.set(output, ((), *(call.absent for call in shorter)))
    if any(p is not None for p in patterns):
        RESULTS.set(output, tuple(patterns))
    if any(found.counts):
        COUNTS.set(output, found.counts)
    assert_guards(graph, guards)
    return Traced(
        graph,
        guards,
        found.constants,
        tuple(patterns[:modes]),
        (blocks[0], blocks[-1]),
        found.left,
        counts=found.counts,
    )


def _trace_region(module: nn.Module, call: Call) -> Traced:
    """Trace a module whose arguments and results are nested values."""
    asking = Asking()

    def results(call: Call, values: tuple[Any, ...], function: Callable[..., Any], twin: nn.Module) -> tuple[Any, Any]:
        args, kwargs = call.filled(values, asking)
        result = _whole_copy(plain(function(twin, *args, **kwargs)), twin)
        pattern, proxies = template(map_leaves(result, _opened), fx.Proxy)
        _check_constants(pattern, twin)
        if any(not isinstance(value_of(p.node), torch.Tensor) for p in proxies):
            raise CaptureError("it returns a number, not tensors", where=type(twin).__name__)
        return tuple(proxies), pattern

    traced = _merged(trace_phases(module, call, results))
    output = next(n for n in reversed(traced.graph.nodes) if n.op == "output")
    RESULTS.drop(output)  # regions put their results together themselves
    return replace(traced, absent=asking.absent)


def _opened(leaf: Any) -> Any:
    """A proxy of several values as a tuple of proxies."""
    is_tuple = isinstance(leaf, fx.Proxy) and isinstance(value_of(leaf.node), tuple | list)
    return tuple(map_leaves(part, _opened) for part in leaf) if is_tuple else leaf


def _one_region(model: nn.Module, call: Call) -> Captured:
    """The whole model as a region, since its arguments are nested values."""
    found = Regions()
    sources = [found.placeholder(x) for x in call.inputs]
    for node in found.add("", call, _trace_region(model, call), sources):
        found.pins.append(Pin(node, None, "output of the network"))
    found.graph.output(())
    return _from_regions(model, call, found)


def _in_regions(model: nn.Module, call: Call, refused: CaptureError, python: Sequence[str]) -> Captured:
    """`refused`: why the model cannot be captured whole. It is raised if nothing inside the model can be captured."""
    tensors = [torch.rand(t.shape, dtype=t.dtype) if t.is_meta else t for t in call.tensors]
    try:
        found = find_regions(model, *call.filled(tensors), _trace_region, python)
        if not found.regions:
            raise CaptureError(
                "it takes a list, which may have another length the next time, and no part of it can be captured alone",
                where=_name(model),
                remedy="let forward take a tuple of tensors, or an argument for each",
            )
    except CaptureError as error:
        raise (error if call.has_lists else refused) from error
    if not python:
        found.refused = {"": refused, **found.refused}
    return _from_regions(model, call, found)


def _from_regions(model: nn.Module, call: Call, found: Regions) -> Captured:
    return Captured(
        *(_name(model), found.graph, tuple(found.guards), found.constants, _batch(call)),
        *(tuple(found.regions), found.calls, tuple(found.ties), tuple(found.pins), found.refused),
        macs=found.macs // _batch(call),
        blocks=found.blocks,
        left=frozenset(found.left),
    )
