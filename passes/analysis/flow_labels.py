"""Labels: which unit every index along every tensor axis belongs to.

In: a captured graph. Out: `Facts`: labels of every value and of every parameter axis, resolved into units (sets of
indices that can only be removed together) and groups (units of one coupled axis), and the reason for everything
that is frozen. Label 0 means "not a unit: always live".
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import fx, nn

from fxcat.passes.analysis.folded_groups import kept_folds, tied, weights_that_may_go
from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.analysis.unions import Freeze
from fxcat.passes.analysis.weights import find_weights, flow_weight
from fxcat.passes.graph.label_arrays import Grid, Labels, along, leaves, place, unlabelled
from fxcat.passes.graph.meta import HOOKED, NO_GRAD, TABLE, VALUE, value_of
from fxcat.passes.nodes.effects import FACTS, changed_part_of, is_inplace
from fxcat.passes.nodes.examples import of_one_example
from fxcat.passes.rules.asking import ask
from fxcat.passes.rules.table import find_rule


def flow_labels(
    graph: fx.Graph, root: nn.Module, batch: int, ignored: Sequence[str], orders: Mapping[str, torch.Tensor]
) -> LabelFlow:
    """Run every node's rule, in graph order. `batch`: examples in the example inputs; `orders`: see `Captured`.

    Where groups of channels are folded into the batch, whole groups go, or the same channels of every one: these where
    what lies behind suits no groups (layers and norms that all groups share), and more can go so. Likewise for units of
    a value and those of a parameter that has an axis of its own beside them.
    """
    ones = of_one_example(graph, root, batch)

    def labelled(tied: Collection[fx.Node] = (), alone: Collection[fx.Node] = ()) -> LabelFlow:
        flow = LabelFlow(root, ones=ones, orders=orders, tied=tied, alone=alone)
        _run_rules(flow, graph, ignored)
        return flow

    flow = labelled()
    folds, rivals = kept_folds(flow), frozenset(flow.rivals)
    others = [*([labelled(folds)] if folds else []), *([labelled(alone=rivals)] if rivals else [])]
    return max(flow, *others, key=lambda f: weights_that_may_go(f, graph)) if others else flow


def _run_rules(flow: LabelFlow, graph: fx.Graph, ignored: Sequence[str]) -> None:
    flow.weights = find_weights(graph)
    for node in graph.nodes:
        start = flow.unions.count
        flow.values[node] = _flow_node(flow, node)
        if node in flow.tied:
            flow.values[node] = tied(flow, node)
        if NO_GRAD.has(node):
            made = torch.arange(start, flow.unions.count, dtype=torch.int32)
            flow.freeze(made, node, "computed under torch.no_grad(): gates would get no gradients")
        if ignored and node.op == "call_module" and _within(str(node.target), ignored):
            freeze_node(flow, node, "listed in ignore=")
    _settle_doubly_used(flow)
    for name, axes in flow.weight_axes.items():
        for axis, labels in axes.items():
            flow.bind_axis(name, axis, labels)


def _settle_doubly_used(flow: LabelFlow) -> None:
    """A parameter whose axes a module binds, and that is also read as a value: an entry of a matrix would be of two
    units."""
    for name, axes in flow.parameters.items():
        elements = axes.get(-1)
        bound = [labels for axis, labels in axes.items() if axis >= 0]
        if elements is None or not bound:
            continue
        if elements.dim() == 1:
            flow.unite(elements, bound[0])
            continue
        for labels in (elements, *bound):
            flow.freeze(labels, name, "used as a layer's weight and, elsewhere, as a value")


def _flow_node(flow: LabelFlow, node: fx.Node) -> Labels:
    value = VALUE.get(node)
    if node.op == "placeholder":
        return unlabelled(value)
    if node.op == "output":
        for used in node.all_input_nodes:
            flow.freeze(flow.values[used], node, "output of the network")
        return None
    if node.op == "get_attr":
        return _attribute_labels(flow, node)
    part = changed_part_of(node)
    if part is not None and (part.op != "get_attr" or node.target is operator.setitem):
        freeze_node(flow, node, "assignment into a part of a value")
        if not _is_range(node.all_input_nodes[0], part):
            flow.freeze(flow.values[part], node, "assignment into a part of a value")
    if not any(True for _ in leaves(unlabelled(value))):
        return None
    on_weights = flow.weights.get(node)
    if on_weights is not None:
        flow.rules[node] = on_weights
        return flow_weight(flow, node, on_weights)
    found = flow.rules[node] = find_rule(node, flow.module(node) if node.op == "call_module" else None)
    if found is not None:
        return ask(found.flow, flow, node)
    reason = f"unknown operation {describe(flow, node)}"
    if HOOKED.has(node):
        reason = "it has forward hooks"
    freezes = flow.unions.freezes
    known = len(freezes)
    freeze_node(flow, node, reason)
    if len(freezes) == known and node.op == "call_module" and any(True for _ in flow.module(node).parameters()):
        freezes.append(Freeze(torch.empty(0, dtype=torch.int32), place(node), reason))  # its own weights stay
    return unlabelled(value)


def _is_range(part: fx.Node, whole: fx.Node) -> bool:
    """Whether a view of a value holds ranges of its axes: it stays a view then, whatever goes of the rest of them.

    One with gaps, or of another shape, may have to be made a copy, which changes nothing of the value.
    """
    while part is not whole:
        index = part.args[1] if part.target is operator.getitem else ()
        entries = index if isinstance(index, tuple) else (index,)
        gaps = any(isinstance(entry, slice) and entry.step not in (None, 1) for entry in entries)
        if gaps or not (part.target in _RANGES or is_inplace(part)):
            return False
        part = part.all_input_nodes[0]
    return True


_RANGES = (
    *(operator.getitem, torch.narrow, "narrow", "select", torch.permute, "permute", torch.transpose, "transpose"),
    *(torch.unsqueeze, "unsqueeze", torch.squeeze, "squeeze"),
)


def freeze_node(flow: LabelFlow, node: fx.Node, reason: str) -> None:
    """Freeze all that enters and leaves a node."""
    for used in node.all_input_nodes:
        flow.freeze(flow.values[used], node, reason)
    flow.freeze(flow.values.get(node), node, reason)


def _attribute_labels(flow: LabelFlow, node: fx.Node) -> Labels:
    """Every element of a parameter gets a label of its own: what meets it tells which of its axes hold units."""
    value = value_of(node)
    if str(node.target) in flow.orders:
        return None  # replaced as a whole when what it selects from changes
    if not isinstance(value, torch.Tensor) or value.numel() == 1:
        return unlabelled(value)
    if _is_bound(node) and flow.weights.keys().isdisjoint(node.users):
        return None
    if node in flow.weights:
        return _axes_of_weight(flow, node)
    if not value.is_floating_point() and not TABLE.has(node):
        return unlabelled(value)  # tables of indices are no units
    name = flow.attribute_name(node)
    axes = flow.parameters.get(name, {})
    if -1 not in axes:
        labels = flow.fresh(value.numel(), name, producer=False).reshape(value.shape)
        axes = flow.parameters[name] = {**axes, -1: labels}
    return axes[-1]


def _is_bound(node: fx.Node) -> bool:
    """Whether all that reads a parameter binds its axes one by one."""
    users = [u for u in node.users if not isinstance(VALUE.get(u), FACTS)]
    rules = [find_rule(user, None) if user.op == "call_function" else None for user in users]
    return all(r is not None and _count(node, u) == r.binds(u).count(node) for r, u in zip(rules, users, strict=True))


def _count(source: fx.Node, node: fx.Node) -> int:
    """How often a node takes a value."""
    given: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), given.append)
    return given.count(source)


def _axes_of_weight(flow: LabelFlow, node: fx.Node) -> Grid:
    """Every index along every axis of a weight gets a label of its own."""
    name, value = flow.attribute_name(node), value_of(node)
    axes = flow.weight_axes.setdefault(name, {})
    for axis, size in enumerate(value.shape):
        if size > 1 and axis not in axes:
            axes[axis] = flow.fresh(size, layer_of(name), producer=False)
    return Grid(tuple(along(axes[a], a, value.dim()) for a, size in enumerate(value.shape) if size > 1))


def layer_of(name: str) -> str:
    """The layer that a parameter is the weight of, for people; a parameter of no layer is its own."""
    owner, _, leaf = name.partition(".parametrizations.")[0].rpartition(".")
    if ".parametrizations." in name:
        return name.partition(".parametrizations.")[0]
    return owner if owner and leaf in _WEIGHTS else name


_WEIGHTS = ("weight", "weight_g", "weight_v", "weight_orig")


def describe(flow: LabelFlow, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(flow.module(node)).__name__
    return getattr(node.target, "__name__", str(node.target))


def _within(path: str, prefixes: Sequence[str]) -> bool:
    return any(path == p or path.startswith(p + ".") for p in prefixes)
