"""Selections of channels: shuffles whose surviving part is no rectangle, and what earlier rewrites have put in."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import fx

from fxcat.errors import PlanError
from fxcat.passes.analysis.chains import Chain
from fxcat.passes.graph.invocations import stands_for
from fxcat.passes.graph.meta import CALL, ENTRY, MADE, stand_beside, value_of
from fxcat.passes.rewriting.numbers import paired_inputs
from fxcat.passes.rewriting.setting import Setting
from fxcat.passes.rules.boundary import owners
from fxcat.passes.rules.selection import known_selection
from fxcat.passes.work import Analysis


def replace_broken_chains(
    setting: Setting, graph: fx.Graph, copies: Mapping[fx.Node, fx.Node]
) -> dict[str, torch.Tensor]:
    """A shuffle whose surviving part is no rectangle becomes one index_select with the surviving permutation."""
    analysis = setting.analysis
    buffers: dict[str, torch.Tensor] = {}
    remaining = set(graph.nodes)
    # an earlier shrink may have left some, and the chains that are left are numbered anew
    taken = {str(n.target) for n in analysis.graph.nodes if n.op == "get_attr"}
    for chain in analysis.units.chains:
        sink = copies[chain.sink]
        if sink not in remaining or all(_is_rectangle(setting, n) for n in chain.inner):
            continue
        region = owners(analysis.graph).get(chain.sink)
        path = "" if region is None else analysis.regions[region].path
        path, _ = CALL.get(sink, (path, 0))  # so that the module that shuffles holds it
        prefix = f"{path}.channel_order" if path else "channel_order"
        name = next(n for n in (f"{prefix}{i}" for i in itertools.count()) if n not in taken)
        taken.add(name)
        buffers[name] = _surviving_order(setting, chain.source, chain.sink, chain.axis, chain.order)
        with graph.inserting_before(sink):
            index = graph.create_node("get_attr", name)
            source = _entering(chain, copies)
            select = graph.call_function(torch.index_select, (source, chain.axis, index))
        stand_beside(select, sink)
        stands_for(select, sink)
        sink.replace_all_uses_with(select)
    return buffers


def _entering(chain: Chain, copies: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """What stands for a chain's source now: what an earlier chain has become, or the shortcut of a closed section."""
    taking = next(n for n in chain.inner if chain.source in n.all_input_nodes)
    return dict(paired_inputs(taking, copies[taking]))[chain.source]


def _surviving_order(setting: Setting, source: fx.Node, sink: fx.Node, axis: int, order: torch.Tensor) -> torch.Tensor:
    """What is left of sink[i] = source[order[i]] along an axis, counted in what is left of the source."""
    live, wanted = setting.of_value(source)[axis], setting.of_value(sink)[axis]
    order = order if wanted is None else order[wanted]
    if live is None:
        return order
    position = torch.full((value_of(source).shape[axis],), -1)
    position[live] = torch.arange(len(live))
    return position[order]


def surviving_orders(setting: Setting, used: list[fx.Node]) -> dict[str, torch.Tensor]:
    """New indices for the selections that earlier rewrites have put in and whose values have units that go."""
    before, orders = setting.analysis.captured.orders, dict[str, torch.Tensor]()
    for node in used:
        found = known_selection(node, before)
        if found is not None:
            source, axis, name = found
            old = before[name]
            new = _surviving_order(setting, source, node, axis, old)
            if not torch.equal(new, old):
                orders[name] = new
    return orders


def bypass_whole_entries(
    analysis: Analysis,
    used: list[fx.Node],
    copies: Mapping[fx.Node, fx.Node],
    buffers: Mapping[str, torch.Tensor],
) -> None:
    """A selection of everything that enters selects nothing."""
    for old in used:
        if ENTRY.get(old) or MADE.get(old):
            source, axis, index = old.args
            assert isinstance(source, fx.Node) and isinstance(axis, int) and isinstance(index, fx.Node)
            name = str(index.target)
            if name not in buffers and len(analysis.captured.orders[name]) == value_of(source).shape[axis]:
                new = copies[old]
                new.replace_all_uses_with(new.all_input_nodes[0])
                stands_for(new.all_input_nodes[0], new)


def _is_rectangle(setting: Setting, node: fx.Node) -> bool:
    try:
        setting.of_value(node)
    except PlanError:
        return False
    return True
