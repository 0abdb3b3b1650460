"""Merging: the graphs of inference and of training as one, with the nodes they share only once."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import fx
from torch.fx.node import map_aggregate

from fxcat.passes.graph.meta import BOTH_PHASES, PATH, PHASE, UNCAST, VALUE, stand_beside


def merge(inference: fx.Graph, training: fx.Graph, *, differ: bool) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
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
            key = numbered(seen, key_of(node, copies))
            flagged = numbered(seen, key_of(node, copies, flags=False)) if _has_flag(node) else None
            found = known.get(key)
            # a node that is there must not come before one that has been matched: training would run it too early
            if phase and found is None and flagged in modal and place[modal[flagged]] > reached:
                found = modal[flagged] if _set_by_mode(modal[flagged], node) else None
            if found is not None and place[found] < reached and node.op != "get_attr":
                found = None  # the two graphs call these in another order
            if found is None:
                with merged.inserting_after(last):  # behind what its own graph runs before it, shared or not
                    found = merged.node_copy(node, copies.__getitem__)
                PHASE.set(found, phase)
                if not phase:
                    known[key], place[found] = found, len(place)
                    if flagged is not None:
                        modal[flagged] = found
                last = found
            elif place[found] > reached:
                last, reached = found, place[found]
            if phase and found in place:
                PHASE.drop(found)
            copies[node] = found
    # of what only one mode runs another must not run anything, even if no result takes it: norms, dropout
    differ |= repr(outputs[0]) != repr(outputs[1]) or any(PHASE.has(n) for n in merged.nodes)
    result = merged.output(tuple(outputs) if differ else outputs[0])
    if differ:
        BOTH_PHASES.set(result, True)
    return merged, copies


def numbered(seen: Counter[Any], key: Any) -> tuple[Any, int]:
    seen[key] += 1
    return key, seen[key]


def key_of(node: fx.Node, copies: Mapping[fx.Node, fx.Node], *, flags: bool = True) -> Any:
    """What a node computes; without the values of its flags, if they are not wanted."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: copies.get(n, n))
    if not flags:
        args, kwargs = map_aggregate((args, kwargs), lambda a: "flag" if isinstance(a, bool | float) else a)
    return node.op, node.target, repr(args), repr(kwargs), UNCAST.get(node, False)


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
        mode = node.graph.create_node("get_attr", f"{PATH.of(node)}.training".lstrip("."))
    stand_beside(mode, node)
    VALUE.set(mode, False)
    left = iter(pairs)

    def by_mode(argument: Any) -> Any:
        off, on = next(left) if isinstance(argument, bool | float) else (None, None)
        if off == on:
            return argument
        if isinstance(on, bool):
            return mode
        with node.graph.inserting_before(node):
            product = node.graph.call_function(operator.mul, (mode, on))
        stand_beside(product, node)
        VALUE.set(product, 0.0)
        return product

    node.args, node.kwargs = map_aggregate((node.args, node.kwargs), by_mode)
    return True
