"""The plan: for one 0/1 setting of all gates, everything the rewriter will do.

In: an analysis and the setting. Out: `Plan`: the new graph with example values, and the indices that every
parameter and buffer axis keeps. Computing it touches no weights; its checks raise `PlanError` before anything does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from fxcat.errors import PlanError
from fxcat.passes.analysis.costing import own_tensors, parameter_axes
from fxcat.passes.graph.buffers import add_buffers
from fxcat.passes.graph.invocations import stands_for
from fxcat.passes.graph.label_arrays import place
from fxcat.passes.graph.meta import VALUE, value_of
from fxcat.passes.nodes import cleanup
from fxcat.passes.nodes.effects import asserts, reads_type
from fxcat.passes.rewriting.channel_selections import bypass_whole_entries, replace_broken_chains, surviving_orders
from fxcat.passes.rewriting.emptied import drop_emptied, remaining
from fxcat.passes.rewriting.literals import adapt_literals
from fxcat.passes.rewriting.setting import Setting, holds_group
from fxcat.passes.rewriting.slice_modules import slice_modules
from fxcat.passes.rules.execute import propagate
from fxcat.passes.work import Analysis
from fxcat.utils.tensor_slicing import Keep


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do.

    `graph`: the new graph, its example values those of `twin`, the small network's meta twin. `keep`: per parameter or
    buffer and axis, the surviving indices. `entering`: per module the new shape of its first input. `origin`: the old
    node of each new one. `buffers`: new ones, by name. `out_of_place`: modules whose `inplace` has to be cleared.
    """

    graph: fx.Graph
    twin: nn.Module
    keep: Keep
    entering: Mapping[str, tuple[int, ...]]
    origin: Mapping[fx.Node, fx.Node]
    buffers: Mapping[str, torch.Tensor]
    out_of_place: tuple[str, ...]


def make_plan(
    analysis: Analysis, twin: nn.Module, units: torch.Tensor, sections: torch.Tensor, *, final: bool = False
) -> Plan:
    """Plan the removal of all units and sections that are 0. Shapes: (U,) and (S,).

    `twin`: the network's meta twin, without gates; it becomes the small network's. `final`: no other removal will
    follow, and nothing has to stay for it.

    Raises `PlanError` if a group that is still needed would be emptied, or a check fails.
    """
    graph, copies = _copy(analysis.graph)
    for section, is_open in zip(analysis.sections, sections.tolist(), strict=True):
        for part in () if is_open else section.parts:
            # the join's own copy of the shortcut: it may have been replaced by an earlier bypass
            at = part.join.args.index(part.shortcut)
            shortcut = copies[part.join].args[at]
            assert isinstance(shortcut, fx.Node)
            copies[part.join].replace_all_uses_with(shortcut)
            stands_for(shortcut, copies[part.join])
    cleanup.remove_dead(graph)
    setting = Setting(analysis, units)
    read = drop_emptied(setting, twin, graph, copies)
    used = read | _used_names(analysis, twin, [old for old in remaining(graph, copies) if not reads_type(old)])
    cleanup.read_type_elsewhere(graph, twin, used, [r.path for r in analysis.regions], analysis.labels.names.canonical)
    keep = _kept_indices(setting, _used_names(analysis, twin, remaining(graph, copies)) | read)
    buffers = replace_broken_chains(setting, graph, copies)
    buffers |= surviving_orders(setting, remaining(graph, copies))
    if final:
        bypass_whole_entries(analysis, remaining(graph, copies), copies, buffers)
    _drop_outdated_assertions(setting, graph, copies)
    cleanup.remove_dead(graph)
    for old in remaining(graph, copies):
        adapt_literals(setting, copies, old)
    cleanup.remove_dead(graph)  # numbers that nothing is computed with any more, and may have none: heads by width
    cleanup.remove_repeated(graph, twin)
    origin = {copies[old]: old for old in remaining(graph, copies)}
    plain = cleanup.make_out_of_place(origin, twin)
    entering = {str(o.target): setting.shape(o.all_input_nodes[0]) for o in origin.values() if o.op == "call_module"}
    slice_modules(twin, graph, keep, entering)
    add_buffers(twin, {n: b.to("meta") for n, b in buffers.items()})
    _check(setting, graph, twin, origin)
    return Plan(graph, twin, keep, entering, origin, buffers, plain)


def _copy(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = new.node_copy(node, lambda n: copies[n])
    return new, copies


def _kept_indices(setting: Setting, used: set[str]) -> Keep:
    analysis = setting.analysis
    keep: dict[str, dict[int, torch.Tensor]] = {}
    for name in analysis.units.parameters:
        if name not in used:
            continue
        for axis, labels in parameter_axes(name, analysis.units).items():
            live = setting.live(labels)
            if live is None:
                continue
            if not len(live) and holds_group(analysis, labels):
                raise PlanError(
                    "every unit is removed, and the network still needs one",
                    where=name,
                    remedy="leave at least one unit of the group open, or close the section that holds it",
                )
            keep.setdefault(name, {})[axis] = live
    return keep


def _used_names(analysis: Analysis, root: nn.Module, used: list[fx.Node]) -> set[str]:
    """Names of the parameters and buffers that nodes of the old graph use."""
    names, found = analysis.labels.names, set[str]()
    for node in used:
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            found |= {names.of_module(node, name) for name in own_tensors(module, buffers=True)}
        elif node.op == "get_attr" and isinstance(value_of(node), torch.Tensor):
            found.add(names.read_by(node))
    return found


def _drop_outdated_assertions(setting: Setting, graph: fx.Graph, copies: Mapping[fx.Node, fx.Node]) -> None:
    """What the model asserts about sizes held for the widths that it had; what no longer holds goes."""
    for old in remaining(graph, copies):
        said = next(iter(old.all_input_nodes), None) if asserts(old) else None
        if said is not None and isinstance(value_of(said), bool) and not setting.number(said):
            graph.erase_node(copies[old])


def _check(setting: Setting, graph: fx.Graph, twin: nn.Module, origin: Mapping[fx.Node, fx.Node]) -> None:
    """Run the new graph on the sliced meta twin: every shape must be what the labels say."""
    try:
        propagate(graph, twin)
    except Exception as error:
        raise PlanError(f"the rewritten graph does not run: {error}") from error
    for new, old in origin.items():
        value = VALUE.get(new)
        if isinstance(value, torch.Tensor) and setting.analysis.labels.values.get(old) is not None:
            expected = setting.shape(old)
            nothing = not value_of(old).numel() and not value.numel()  # whose labels say nothing of its sizes
            if tuple(value.shape) != expected and not nothing:
                raise PlanError(f"shape {list(value.shape)} where {list(expected)} is left", where=place(old))
    graph.lint()
