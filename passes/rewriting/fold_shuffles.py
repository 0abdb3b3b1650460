"""Shuffles go into the weights around them.

In: a plan for good. Out: one that keeps the channels of layers in another order, in which shuffles that removal has
broken (`index_select`), and those that stand between them, change nothing and go. It costs the same, and computes the
same, up to the order in which contractions sum. A concatenation whose parts would not lie as they have to takes slices
of them. Shuffles that cannot go stay, and the log says why.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import fx

from fxcat.errors import PlanError
from fxcat.passes.analyses import CALLS, CHAINS, LABELS, PINS
from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.capture.capture import Captured
from fxcat.passes.graph.invocations import stands_for
from fxcat.passes.graph.label_arrays import Integers, place
from fxcat.passes.graph.meta import stand_beside
from fxcat.passes.nodes import cleanup
from fxcat.passes.pipeline import run
from fxcat.passes.rewriting.channel_lines import ChannelLines
from fxcat.passes.rewriting.channel_orders import ChannelOrders
from fxcat.passes.rewriting.permutations import Shuffle, of_chain, selections
from fxcat.passes.rewriting.plan import Plan
from fxcat.passes.rules.execute import propagate
from fxcat.passes.rules.pieces import Concatenation
from fxcat.passes.work import Options, Work
from fxcat.utils.tensor_slicing import Keep

_log = logging.getLogger("fxcat.passes")
_MOST_SLICES = 32
"""Of a concatenation: with more of them a selection is as good."""

_Slices = list[tuple[fx.Node, int, int]]
"""What a concatenation takes: the source, the first channel of a slice, and the one behind it."""


def fold_shuffles(plan: Plan, left: Captured, options: Options) -> Plan:
    """`left`: the plan's graph as a captured one. The graph is changed in place."""
    selected = list(selections(plan.graph, left.orders))
    work = run((LABELS, CALLS, PINS, CHAINS), Work(left.name, plan.twin, options, captured=left), PlanError)
    chains = [of_chain(chain) for chain in work.chains]
    lines = ChannelLines(work.flow, plan.graph, {n for s in chains for n in s.inner})
    orders = ChannelOrders(lines, selected, chains)
    slices = _slices_of_concatenations(orders)
    for shuffle in (*selected, *chains):
        _check_goes(orders, shuffle)
    _report(orders, selected)
    gone = [s for s in (*selected, *chains) if orders.goes(s)]
    if not gone:
        return plan
    for node, taken in slices.items():
        if orders.reasons.keys().isdisjoint(lines.met(node)):
            _concatenate(node, taken)
    instead: dict[fx.Node, fx.Node] = {}
    for shuffle in sorted(gone, key=lambda s: s.node):
        source = instead.get(shuffle.source, shuffle.source)  # which another shuffle may have given
        instead[shuffle.node] = source
        shuffle.node.replace_all_uses_with(source)
        stands_for(source, shuffle.node)
    cleanup.remove_dead(plan.graph)
    propagate(plan.graph, plan.twin)
    present = set(plan.graph.nodes)
    read = {str(n.target) for n in present if n.op == "get_attr"}
    for name in plan.buffers.keys() - read:
        path, _, leaf = name.rpartition(".")
        plan.twin.get_submodule(path)._buffers.pop(leaf, None)
    return replace(
        plan,
        keep=_in_order(plan.keep, work.flow, orders),
        origin={new: old for new, old in plan.origin.items() if new in present},
        buffers={name: buffer for name, buffer in plan.buffers.items() if name in read},
    )


def _slices_of_concatenations(orders: ChannelOrders) -> dict[fx.Node, _Slices]:
    """What concatenations take where sorted parts are not sorted together. Other movements that do not carry sorted
    channels to sorted ones refuse them."""
    lines, found = orders.lines, dict[fx.Node, _Slices]()
    for node in orders.concerned:
        rule = lines.flow.rules.get(node)
        if rule is None or not rule.movement or not orders.reasons.keys().isdisjoint(lines.met(node)):
            continue
        for line, before, after in zip(
            lines.of[node], lines.moved(node), lines.moved(node, orders.sorting), strict=True
        ):
            order = None if line is None else orders.sorting(line.labels)
            if line is None or order is None:
                continue
            wanted = before.index_select(line.axis, torch.from_numpy(order))
            if torch.equal(wanted, after):
                continue
            slices = _slices(orders, node, wanted.reshape(-1).numpy()) if isinstance(rule, Concatenation) else None
            if slices is None:
                orders.refuse(lines.met(node), "it would move channels that lie apart", node)
                break
            found[node] = slices
    return found


def _slices(orders: ChannelOrders, node: fx.Node, wanted: Integers) -> _Slices | None:
    """The slices of sorted parts that give the channels that are wanted, numbered as by `ChannelLines.moved`; None if
    they are too many, or do not make up the parts."""
    lines, start = orders.lines, 0
    if not node.args or not isinstance(node.args[0], tuple | list) or wanted.ndim != 1:
        return None
    place_of: dict[int, tuple[fx.Node, int]] = {}
    for source in node.all_input_nodes:
        line = lines.of[source][0]
        if line is None:
            return None
        order = orders.sorting(line.labels)
        numbers = np.arange(len(line.labels)) if order is None else order
        place_of |= {start + int(number): (source, i) for i, number in enumerate(numbers)}
        start += len(numbers)
    found: _Slices = []
    for source, i in (place_of[number] for number in wanted.tolist()):
        if found and found[-1][0] is source and found[-1][2] == i:
            found[-1] = (source, found[-1][1], i + 1)
        else:
            found.append((source, i, i + 1))
    whole = len(wanted) == start == len(set(wanted.tolist()))
    return found if whole and len(found) <= _MOST_SLICES else None


def _check_goes(orders: ChannelOrders, shuffle: Shuffle) -> None:
    """Refuse an order in which a shuffle is not the identity: it exchanges channels that have to go together."""
    component, ends = orders.component(shuffle), [orders.lines.of[n][0] for n in (shuffle.source, shuffle.node)]
    if component is None or not orders.goes(shuffle):
        return
    source, result = (None if line is None else orders.sorting(line.labels) for line in ends)
    if source is None or result is None or not np.array_equal(shuffle.order.numpy()[result], source):
        orders.refuse((component,), "it moves channels that belong together", shuffle.node)


def _report(orders: ChannelOrders, selected: list[Shuffle]) -> None:
    for shuffle in selected:
        if not orders.goes(shuffle):
            component = orders.component(shuffle)
            reason = "its channels must stay in their order" if component is None else orders.reasons[component]
            _log.info("%s: a permutation of channels stays an index_select (%s)", place(shuffle.node), reason)


def _concatenate(node: fx.Node, slices: _Slices) -> None:
    """Give a concatenation slices of its parts."""
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    pieces: dict[tuple[fx.Node, int], fx.Node] = {}
    with node.graph.inserting_before(node):
        for source in node.all_input_nodes:
            own = sorted((first, last) for n, first, last in slices if n is source)
            if len(own) == 1:
                pieces[source, 0] = source
                continue
            split = node.graph.call_function(torch.split, (source, [last - first for first, last in own], axis))
            stand_beside(split, node)
            for i, (first, _) in enumerate(own):
                pieces[source, first] = piece = node.graph.call_function(operator.getitem, (split, i))
                stand_beside(piece, node)
    node.args = ([pieces[source, first] for source, first, _ in slices], *node.args[1:])


def _in_order(keep: Keep, flow: LabelFlow, orders: ChannelOrders) -> Keep:
    """The kept indices of every parameter and buffer axis, in their new order."""
    changed = {name: dict(axes) for name, axes in keep.items()}
    for name in flow.parameters:
        for axis, labels in _axes(flow, name):
            order = orders.sorting(orders.lines.numbers(labels))
            if order is not None and not np.array_equal(order, np.arange(len(order))):
                index = changed.get(name, {}).get(axis, torch.arange(len(order)))
                changed.setdefault(name, {})[axis] = index[torch.from_numpy(order)]
    return changed


def _axes(flow: LabelFlow, name: str) -> Iterator[tuple[int, torch.Tensor]]:
    """The axes of a parameter that carry labels: of one that is read as a value, those along which its elements do."""
    axes = dict(flow.parameters[name])
    elements = axes.pop(-1, None)
    yield from axes.items()
    if elements is not None and not axes:
        for axis in range(elements.dim()):
            line = elements.movedim(axis, 0).flatten(1)[:, 0] if elements.dim() > 1 else elements
            if len(line) > 1:
                yield axis, line
