"""Capture: a model as one graph over its own modules.

In: a model and example inputs. Out: `Captured`: a copy of the model, its meta twin (same structure, no data), one
graph whose nodes hold example values, and the guards. If the model behaves differently in training, the graph holds
both behaviours, with the nodes they share only once, and its output is `(inference, training)`.
"""

from __future__ import annotations

import inspect
import operator
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from fxcat.errors import InputError
from fxcat.passes.arguments import thaw
from fxcat.passes.copying import meta_twin
from fxcat.passes.rules.table import is_leaf
from fxcat.passes.tracer import ExampleTracer, Guard


@dataclass(frozen=True, slots=True)
class Captured:
    """A captured model. `twin` is for analysis, `root` (None while analysing only) has the weights."""

    twin: nn.Module
    graph: fx.Graph
    guards: tuple[Guard, ...]
    constants: Mapping[str, torch.Tensor]


def bind_inputs(model: nn.Module, example_inputs: Any) -> dict[str, Any]:
    """Example inputs by parameter name of `forward`, tensors on the meta device.

    Raises `InputError` when they do not fit its signature.
    """
    values = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    try:
        bound = inspect.signature(model.forward).bind(*values)
    except TypeError as error:
        raise InputError(
            f"example_inputs do not fit {type(model).__name__}.forward: {error}",
            remedy="give a tensor, or a tuple with one entry per argument of forward",
        ) from error
    names: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if inspect.signature(model.forward).parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            names |= {f"{name}_{i}": v for i, v in enumerate(value)}
        else:
            names[name] = value
    for name, value in names.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(
                f"example input {name!r} is a {type(value).__name__}, not a tensor",
                remedy="give tensors as example_inputs",
            )
    return {n: torch.empty_like(v, device="meta") for n, v in names.items()}


def capture(model: nn.Module, example_inputs: Any) -> Captured:
    """Trace a model in inference mode, and in training mode too if any of its Python looks at `training`.

    Raises `CaptureError` (module path, source line, reason); the model is not touched.
    """
    inputs = bind_inputs(model, example_inputs)
    twin = meta_twin(model)
    reads = _watch_training(twin)
    inference, guards, constants = _trace(twin, inputs, training=False)
    if reads:
        training, more, others = _trace(twin, inputs, training=True)
        inference, renamed = _merge(inference, training)
        guards = tuple(Guard(renamed[g.node], g.value) for g in (*guards, *more))
        constants |= others
    _functionalise(inference)
    if _has_kept_values(twin):
        twin = meta_twin(model)
        vars(twin).update({n: c.to("meta") for n, c in constants.items()})
    return Captured(twin, inference, guards, constants)


def _has_kept_values(twin: nn.Module) -> bool:
    """Whether the traced modules have kept proxies of what they were called with, or may have, in objects of theirs."""
    for module in twin.modules():
        if is_leaf(module):
            continue
        own = [v for name, v in vars(module).items() if type(v) not in _PLAIN and name not in _MODULE_STATE]
        if any(hasattr(v, "__dict__") and not isinstance(v, _HARMLESS) for v in tree_leaves(own)):
            return True
    return False


_PLAIN = frozenset((bool, int, float, str, type(None)))
_HARMLESS = (torch.Tensor, nn.Module, type, types.FunctionType)
_MODULE_STATE = frozenset(vars(nn.Module()))


def _trace(
    twin: nn.Module, inputs: Mapping[str, Any], *, training: bool
) -> tuple[fx.Graph, tuple[Guard, ...], dict[str, torch.Tensor]]:
    known = set(vars(twin))
    # A copy that nobody traced before: models that cache tensors break when traced twice.
    twin.train(training)
    for module in twin.modules():
        # a leaf's example run must not check batch sizes or update statistics
        if is_leaf(module):
            module.training = False
    tracer = ExampleTracer()
    graph = tracer.trace_module(twin, inputs)
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


def _merge(inference: fx.Graph, training: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """One graph with both outputs; a node that both have (same op, target and arguments) appears once.

    The order of each graph is kept: random ops must draw in the order in which the model's Python calls them.
    """
    merged = fx.Graph()
    known: dict[Any, fx.Node] = {}
    outputs: list[Any] = []
    copies: dict[fx.Node, fx.Node] = {}
    for graph in (inference, training):
        occurrences: dict[Any, int] = {}
        last: fx.Node | None = None
        for node in graph.nodes:
            if node.op == "output":
                outputs.append(fx.map_arg(node.args[0], copies.__getitem__))
                continue
            key: Any = (node.op, node.target, _key(node.args, copies), _key(node.kwargs, copies))
            # equal calls within one graph stay apart: they may be random or in place
            occurrences[key] = occurrences.get(key, 0) + 1
            key = (key, occurrences[key])
            if key not in known:
                with merged.inserting_after(last):
                    known[key] = merged.node_copy(node, copies.__getitem__)
            last = copies[node] = known[key]
    same = _key(outputs[0], {}) == _key(outputs[1], {})
    result = merged.output(outputs[0] if same else tuple(outputs))
    if not same:
        result.meta["phases"] = True
    return merged, copies


def _key(argument: Any, copies: Mapping[fx.Node, fx.Node]) -> str:
    return repr(fx.map_arg(argument, lambda n: copies.get(n, n)))


def _functionalise(graph: fx.Graph) -> None:
    """What reads a value after an in-place op changed it reads the op's result instead.

    Assignments of a value to slices become `slice_scatter`; other changes of a part stay as they are: see `effects`.
    """
    order = {n: i for i, n in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.target is operator.setitem:
            _scatter(graph, node, order)
        elif is_inplace(node) and isinstance(node.args[0], fx.Node) and changed_part_of(node) is None:
            _redirect(node.args[0], node, order, order[node])


def _redirect(old: fx.Node, new: fx.Node, order: Mapping[fx.Node, int], after: int) -> None:
    later: Sequence[fx.Node] = [u for u in old.users if order.get(u, -1) > after]
    for user in later:
        user.replace_input_with(old, new)


def _scatter(graph: fx.Graph, node: fx.Node, order: dict[fx.Node, int]) -> None:
    """`base[slices] = value` as a new value; `base[slices] += x` has computed the value by an in-place sum."""
    base, index, value = node.args
    entries: Any = index if isinstance(index, tuple) else (index,)
    plain = all(isinstance(e, slice) and e.step in (None, 1) for e in entries)
    is_tensor = isinstance(value, fx.Node) and isinstance(value.meta["value"], torch.Tensor)
    if not plain or not is_tensor or not isinstance(base, fx.Node) or base.target in _VIEWS:
        return
    assert isinstance(value, fx.Node)
    if value.target in INPLACE_OPERATORS:
        value.target = INPLACE_OPERATORS[value.target]
    cut = [(axis, e) for axis, e in enumerate(entries) if e != slice(None)]
    path = node.meta.get("path")

    def call(function: Any, *args: Any) -> fx.Node:
        new = graph.call_function(function, args)
        new.meta.update(path=path, value=function(*thaw(args)))
        order[new] = order[node]
        return new

    with graph.inserting_before(node):
        parts = [base]
        for axis, entry in cut[:-1]:
            parts.append(call(operator.getitem, parts[-1], (*[slice(None)] * axis, entry)))
        result = value
        for part, (axis, entry) in zip(reversed(parts), reversed(cut), strict=True):
            result = call(torch.slice_scatter, part, result, axis, entry.start, entry.stop)
    _redirect(base, result, order, order[node])
    graph.erase_node(node)


INPLACE_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


_VIEWS: tuple[Any, ...] = (
    *(operator.getitem, "view", "narrow", "select", "transpose", "permute", "unsqueeze", "squeeze", "flatten", "t"),
    *(
        "chunk",
        "split",
        "unbind",
        torch.transpose,
        torch.permute,
        torch.flatten,
        torch.chunk,
        torch.split,
        torch.unbind,
    ),
)


def changed_part_of(node: fx.Node) -> fx.Node | None:
    """The value of which a node changes a part in place: by item assignment, or through a view."""
    target = node.args[0] if node.args else None
    assigned = node.target is operator.setitem
    if not isinstance(target, fx.Node) or not (assigned or is_inplace(node)):
        return None
    base = target
    while base.target in _VIEWS and isinstance(base.args[0], fx.Node):
        base = base.args[0]
    return base if assigned or base is not target else None


def effects(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For values that are changed in part the nodes that do so: whoever reads the value needs these too."""
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        base = changed_part_of(node)
        if base is not None:
            found.setdefault(base, []).append(node)
    return found


def is_inplace(node: fx.Node) -> bool:
    """Whether a function or method node changes its first argument."""
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op != "call_function" or not isinstance(node.meta.get("value"), torch.Tensor):
        return False
    name = getattr(node.target, "__name__", "")
    return (
        node.target in INPLACE_OPERATORS
        or bool(node.kwargs.get("inplace"))
        or (name.endswith("_") and not name.endswith("__"))
    )
