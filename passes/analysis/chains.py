"""Values whose labels vary along several axes: keep them rectangular, or free a channel shuffle.

A tensor can only lose whole slices. Where labels vary along two axes (heads × width, groups × channels), units are
united along all axes but one: the first, unless its slices are taken apart (the three of query, key and value), so that
none of them could go. A chain of pure movements that starts and ends with one labelled axis (a channel
shuffle) stays free: the rewrite may replace it by one `index_select`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.graph.label_arrays import FROZEN, Grid, Labels, compress, is_wide, join, leaves, place, varying_axis
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.moved_labels import move


@dataclass(frozen=True, slots=True)
class Chain:
    """Movements from `source` to `sink` that permute one axis: sink[i] = source[order[i]]."""

    source: fx.Node
    sink: fx.Node
    inner: tuple[fx.Node, ...]
    axis: int
    order: torch.Tensor


def keep_rectangular(flow: LabelFlow, graph: fx.Graph) -> tuple[Chain, ...]:
    """Unite labels until every value is rectangular or inside a free chain; the free chains are returned."""
    wide = [n for n in graph.nodes if is_wide(flow.values.get(n))]
    if not wide and not flow.stretches:
        return ()
    attributes = [n for n in wide if n.op == "get_attr"]
    roots = torch.from_numpy(flow.unions.roots()) if attributes else torch.empty(0)
    for node in attributes:
        _settle_attribute(flow, node, roots)
    # what is united for one value may make another rectangular, or a chain that was free part of a component that is
    # not: so until nothing changes. Chains are found anew each time, and only those of the last round count
    while True:
        roots = torch.from_numpy(flow.unions.roots())
        still = [n for n in wide if n.op != "get_attr" and is_wide(_resolve(flow.values[n], roots))]
        chains: list[Chain] = []
        changed = False
        for component in _components(still):
            found = _free_chains(flow, component)
            if found:
                chains += found
                continue
            changed = True
            pieces = _pieces(flow, component, roots)
            for node in component:
                _unite_but_one(flow, node, roots, pieces)
        if not changed and not _settle_stretches(flow, roots):
            return tuple(chains)


def _settle_stretches(flow: LabelFlow, roots: torch.Tensor) -> bool:
    """Unite what is stretched over the units of a value with these, if they lie along an axis that both have; freeze it
    if they do not. Returns whether there was any."""
    for stretch in flow.stretches:
        other, axes = _resolve(stretch.other, roots), range(stretch.labels.dim())
        assert isinstance(other, torch.Tensor)
        common = [a for a in axes if other.shape[a] > 1 < stretch.labels.shape[a]]
        if not common:
            flow.freeze(stretch.labels, stretch.where, stretch.reason)
            continue
        part = stretch.labels
        for axis in axes:
            part = part if axis in common else part.narrow(axis, 0, 1)
        flow.unite(stretch.labels, part)
        flow.unite(part, stretch.other)
    found = bool(flow.stretches)
    flow.stretches.clear()
    return found


def _resolve(labels: Labels, roots: torch.Tensor) -> Labels:
    if isinstance(labels, tuple):
        return tuple(_resolve(item, roots) for item in labels)
    if isinstance(labels, Grid):
        return Grid(tuple(compress(roots[layer]) for layer in labels.layers))
    return compress(roots[labels]) if isinstance(labels, torch.Tensor) else None


def _settle_attribute(flow: LabelFlow, node: fx.Node, roots: torch.Tensor) -> None:
    """A parameter that still varies along several axes after all its uses cannot be sliced: freeze it.

    Unless that is because a part of it has not been used: that goes with what lies beside it.
    """
    labels = flow.values[node]
    if is_wide(_resolve(labels, roots)):
        assert isinstance(labels, torch.Tensor)
        axis = _axis_of_units(flow, labels, roots)
        axis = _axis_of_most(labels, roots) if axis is None else axis
        if axis is not None:
            flow.unite(labels, _first_along(labels, axis))
            return
        flow.freeze(labels, place(node), "parameter whose axes do not match the units it meets")


def _first_along(labels: torch.Tensor, axis: int) -> torch.Tensor:
    """The first of all lines along an axis."""
    for other in range(labels.dim()):
        labels = labels if other == axis else labels.narrow(other, 0, 1)
    return labels


def _axis_of_units(flow: LabelFlow, labels: torch.Tensor, roots: torch.Tensor) -> int | None:
    """The axis along which all elements of a parameter that were used carry the units that they met; None if there is
    none."""
    own = torch.zeros(flow.unions.count, dtype=torch.bool)
    own[labels.reshape(-1).long()] = True
    met = torch.zeros(flow.unions.count, dtype=torch.bool)
    met[roots[~own].long()] = True
    resolved = roots[labels]
    used = met[resolved.long()]
    for axis in range(labels.dim()):
        rows, mask = (x.movedim(axis, 0).reshape(x.shape[axis], -1) for x in (resolved, used))
        low = torch.where(mask, rows, flow.unions.count).amin(1)
        high = torch.where(mask, rows, -1).amax(1)
        if bool(((low == high) | (high < 0)).all()) and int((high >= 0).sum()) > 1:
            return axis
    return None


def _axis_of_most(labels: torch.Tensor, roots: torch.Tensor) -> int | None:
    """The axis along which most units are left when all that lies beside each index goes together; None if no axis has
    two."""
    found: dict[int, int] = {}
    for axis in [a for a, size in enumerate(labels.shape) if size > 1]:
        rows = roots[labels].movedim(axis, 0).flatten(1)
        parent = np.arange(len(roots), dtype=np.int32)
        join(parent, rows[:, :1].expand_as(rows).reshape(-1).numpy(), rows.reshape(-1).numpy())
        left = np.unique(parent[rows[:, 0].numpy()])
        found[axis] = int((left != FROZEN).sum())
    best = max(found, key=found.__getitem__, default=None)
    return best if best is not None and found[best] > 1 else None


def _components(nodes: list[fx.Node]) -> list[list[fx.Node]]:
    """Connected sets of nodes, each in graph order."""
    members = set(nodes)
    seen: set[fx.Node] = set()
    result: list[list[fx.Node]] = []
    for node in nodes:
        stack, found = [node], set[fx.Node]()
        while stack:
            current = stack.pop()
            if current in members and current not in seen:
                seen.add(current)
                found.add(current)
                stack += [*current.all_input_nodes, *current.users]
        if found:
            result.append([n for n in nodes if n in found])
    return result


def _free_chains(flow: LabelFlow, component: list[fx.Node]) -> list[Chain]:
    """The chains through a component of wide values, or nothing if it has to be united."""
    inside = set(component)

    def is_move(node: fx.Node) -> bool:
        found = flow.rules.get(node)
        return found is not None and found.movement

    tensors = {
        i
        for n in component
        for i in n.all_input_nodes
        if i not in inside and isinstance(flow.values.get(i), torch.Tensor)
    }
    sinks = [u for n in component for u in n.users if u not in inside and isinstance(flow.values.get(u), torch.Tensor)]
    # one value enters, and nothing is computed on the way: then each sink permutes it, and `order` says how
    if len(tensors) != 1 or not all(is_move(n) for n in [*component, *sinks]):
        return []
    source = tensors.pop()
    shape = value_of(source).shape
    labels = flow.of(source)
    axis = varying_axis(labels)
    if axis is None:
        return []
    order = torch.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    moved: dict[fx.Node, Labels] = {source: order}
    for node in component:
        moved[node] = move(node, moved, flow.root)
    chains: list[Chain] = []
    for sink in dict.fromkeys(sinks):
        result = move(sink, moved, flow.root)
        if not isinstance(result, torch.Tensor) or value_of(sink).shape != shape:
            return []
        # units that came in along one axis must leave along it: else the index along it does not tell the unit
        if [s > 1 for s in result.shape] != [a == axis for a in range(len(shape))]:
            return []
        chains.append(Chain(source, sink, tuple(component), axis, result.reshape(-1)))
    return chains


def _pieces(flow: LabelFlow, component: list[fx.Node], roots: torch.Tensor) -> list[frozenset[int]]:
    """Labels of each value that is made of wide ones."""
    made = dict.fromkeys(u for n in component for u in n.users)
    found = (x for u in made for x in leaves(flow.values.get(u)))
    return [frozenset(roots[x].reshape(-1).tolist()) for x in found if x.numel()]


def _unite_but_one(flow: LabelFlow, node: fx.Node, roots: torch.Tensor, pieces: list[frozenset[int]]) -> None:
    for labels in leaves(flow.values[node]):
        resolved = _resolve(labels, roots)
        if not isinstance(resolved, torch.Tensor) or not is_wide(resolved):
            continue
        varying = [a for a, size in enumerate(resolved.shape) if size > 1]
        # along an axis whose slices become values of their own no slice may go: its units would be pinned as the only
        # ones of these values, while those along another axis are as free as they were
        keep = next((a for a in varying if not _taken_apart(resolved, a, pieces)), varying[0])
        for axis in varying:
            if axis != keep:
                flow.unite(resolved, resolved.narrow(axis, 0, 1))


def _taken_apart(labels: torch.Tensor, axis: int, pieces: list[frozenset[int]]) -> bool:
    """Whether every slice is all that some value has: then none may go."""
    slices = [frozenset(part.reshape(-1).tolist()) for part in labels.unbind(axis)]
    return all(any(piece <= part for piece in pieces) for part in slices)
