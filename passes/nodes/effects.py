"""What nodes do besides computing a value: they change values, parameters and buffers in place, or assert something.

`needed` finds what a result takes, with the changes that it depends on, and with what else happens on the way.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from fxcat.passes.graph.meta import (
    BOTH_PHASES,
    CALLS,
    CHANGES,
    CONSTANT,
    NEW,
    PHASE,
    SAME,
    VALUE,
    path_of,
    stand_beside,
    take_all,
    value_of,
)
from fxcat.passes.rules.base import Rule
from fxcat.passes.rules.boundary import region_output
from fxcat.passes.rules.table import ASSERTING, function_rule, method_rule

INPLACE_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.ipow: operator.pow,
}

FACTS = (int, float, torch.Size, torch.dtype, torch.device)
"""What is asked about a tensor, and is no part of its values."""


def is_view(node: fx.Node) -> bool:
    """Whether the values of a node are in the memory of its input's; those of `reshape` are where that is possible."""
    if NEW.has(node):
        return False
    if SAME.has(node):
        return not is_inplace(node)
    if not may_be_view(node):
        return False
    source, result = value_of(node.all_input_nodes[0]), value_of(node)
    if isinstance(source, torch.Tensor) and isinstance(result, torch.Tensor):
        return source.untyped_storage()._cdata == result.untyped_storage()._cdata
    return _rule(node) is not None


def may_be_view(node: fx.Node) -> bool:
    """Whether the op of a node gives a view for some inputs; of an op without a rule nothing is known."""
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        return False
    rule = _rule(node)
    return rule is None or rule.views


def _rule(node: fx.Node) -> Rule | None:
    return function_rule(node.target) if node.op == "call_function" else method_rule(str(node.target))


def is_inplace(node: fx.Node) -> bool:
    """Whether a node changes its first argument."""
    if node.op == "call_module":
        return CHANGES.has(node)
    if node.op == "call_method":
        return _says_so(node.target)
    if node.op != "call_function" or not (_says_so(node.target) or node.kwargs.get("inplace")):
        return False
    return isinstance(VALUE.get(node), torch.Tensor)


@cache
def _says_so(target: Any) -> bool:
    """Whether a function or method is an in-place operator, or has the name of an in-place op."""
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return target in INPLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))


def make_plain(node: fx.Node) -> None:
    """Let an in-place node make a new value; of one that calls a module, whose `inplace` it is, only take the mark.

    What has no other form changes a copy.
    """
    CHANGES.drop(node)
    instead = _plain_form(node)
    if node.target in INPLACE_OPERATORS:
        node.target = INPLACE_OPERATORS[node.target]
    elif node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
    elif instead is not None:
        node.target = instead
    elif node.op in ("call_method", "call_function"):
        copy_first(node)


def _plain_form(node: fx.Node) -> Any:
    """The function or method that computes what an in-place one does, if there is one."""
    if node.op == "call_method":
        name = str(node.target).removesuffix("_")
        # without a probability, the one takes the values for probabilities, the other writes zeros and ones
        same = name != "bernoulli" or len(node.args) > 1 or "p" in node.kwargs
        return name if same and hasattr(torch.Tensor, name) else None
    name = getattr(node.target, "__name__", "")
    owner = next((o for o in (torch, functional) if getattr(o, name, None) is node.target), None)
    return getattr(owner, name.removesuffix("_"), None)


def copy_first(node: fx.Node) -> None:
    """Let an in-place op change a copy of its first argument."""
    changed = node.args[0]
    assert isinstance(changed, fx.Node)
    with node.graph.inserting_before(node):
        copied = node.graph.call_method("clone", (changed,))
    take_all(copied, changed, but=(CHANGES, CONSTANT, SAME))
    stand_beside(copied, node)
    VALUE.set(copied, value_of(changed).clone())
    node.replace_input_with(changed, copied)


def changed_part_of(node: fx.Node) -> fx.Node | None:
    """The value of which a node changes a part in place, by item assignment or through a view; or the parameter or
    buffer that it changes."""
    assigned = node.target is operator.setitem
    if not (assigned or is_inplace(node)):  # first, as hardly any node is
        return None
    target = node.args[0] if node.args else None
    if not isinstance(target, fx.Node):
        return None
    origin = base = target
    while is_view(origin) or is_inplace(origin):
        origin = origin.all_input_nodes[0]
    if origin.op == "get_attr":
        return origin
    while is_view(base) or (is_inplace(base) and changed_part_of(base) is not None):
        base = base.all_input_nodes[0]
    return base if assigned or base is not target or base.op == "get_attr" else None


def effects(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For values that are changed in part the nodes that do so: whoever reads the value needs these too."""
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        base = changed_part_of(node)
        if base is not None:
            found.setdefault(base, []).append(node)
    return found


def changed_later(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The values that a later op changes in part, and their views: what is read of them in the end is not what the op
    that makes them has given. Of a buffer also what else is in its memory."""
    nodes = list(nodes)
    found = {base for base in map(changed_part_of, nodes) if base is not None}
    buffers = {base for base in found if base.op == "get_attr"}
    for node in nodes if found else ():  # in graph order: views of views too
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        if source in buffers and (is_view(node) or is_inplace(node)):
            buffers.add(node)
        if source in found and is_view(node):
            found.add(node)
    return found | buffers


def needed(
    graph: fx.Graph, start: Iterable[fx.Node], phase: int | None = None, ends: Container[fx.Node] = ()
) -> set[fx.Node]:
    """The nodes that `start` takes, without those of another phase, and without what nodes in `ends` take.

    Assertions and changes of buffers belong to the module whose `forward` makes them: they are needed as long as
    anything is that it computes. No layer is needed for an assertion alone.
    """
    changes = effects(graph)
    of_buffers = {n for base, changing in changes.items() if base.op == "get_attr" for n in changing}
    waiting = [n for n in graph.nodes if n in of_buffers or asserts(n)]
    found: set[fx.Node] = set()
    alive: set[str] = set()
    stack = list(start)
    # what a module does by the way takes values, which may be the first that are needed of another module: until no
    # module is added whose assertions and changes still wait
    while stack:
        while stack:
            node = stack.pop()
            if node not in found and (phase is None or PHASE.get(node, phase) == phase):
                found.add(node)
                stack += changes.get(node, ())
                stack += () if node in ends else node.all_input_nodes
                if waiting and node.op.startswith("call"):
                    alive.update(_with_outer(path_of(node)))
        still: list[fx.Node] = []
        for node in waiting:
            due = (path_of(node)) in alive and not (asserts(node) and _layers(node, found))
            (stack if due else still).append(node)
        waiting = still
    return found


def returned(output: fx.Node, phase: int, call: int = 0) -> Any:
    """What an output node returns in inference (phase 0) or in training (1), if the model is called in a given way."""
    modes = 2 if BOTH_PHASES.get(output) else 1
    value: Any = output.args[0]
    return value[call * modes + phase % modes] if modes > 1 or CALLS.has(output) else value


def reads_type(node: fx.Node) -> bool:
    """Whether a node reads a parameter or buffer for no more than its dtype or device."""
    read = node.op == "get_attr" and isinstance(VALUE.get(node), torch.Tensor) and bool(node.users)
    return read and all(u.target is getattr and u.args[1] in ("dtype", "device") for u in node.users)


def is_by_the_way(node: fx.Node) -> bool:
    """Whether a node is there for what it does, not for its value: it asserts, or changes a parameter or buffer."""
    if asserts(node):
        return True
    base = changed_part_of(node)
    return base is not None and base.op == "get_attr"


def without_result(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values reach no result and change nothing, such as assertions and what these alone read."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        ends = node.op == "output" or node.target is region_output or (is_by_the_way(node) and not asserts(node))
        if not ends and all(u in found for u in node.users):
            found.add(node)
    return found


def asserts(node: fx.Node) -> bool:
    """Whether a node asserts something."""
    return node.target in ASSERTING


def _layers(node: fx.Node, found: Container[fx.Node]) -> bool:
    """Whether a node takes the result of a module, or of a function of parameters, that is not among those found."""
    stack, seen = [node], set[fx.Node]()
    while stack:
        current = stack.pop()
        if current.op == "call_module" or isinstance(VALUE.get(current), nn.Parameter):
            return True
        seen.add(current)
        stack += [i for i in current.all_input_nodes if i not in found and i not in seen]
    return False


@lru_cache(4096)
def _with_outer(path: str) -> tuple[str, ...]:
    """The paths of a module and of all that hold it."""
    parts = path.split(".") if path else []
    return tuple(".".join(parts[:depth]) for depth in range(len(parts) + 1))
