"""The plan: for one 0/1 setting of all gates, everything the rewriter will do.

In: an analysis and the setting. Out: `Plan`: the new graph with example values, and the indices that every
parameter and buffer axis keeps. Computing it touches no weights; its checks raise `PlanError` before anything does.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxcat.errors import PlanError
from fxcat.passes.analysis.costing import own_tensors, parameter_axes
from fxcat.passes.graph.buffers import add_buffers
from fxcat.passes.graph.invocations import stands_for
from fxcat.passes.graph.label_arrays import Grid, Labels, leaves, place
from fxcat.passes.graph.meta import CALL, ENTRY, MADE, VALUE, stand_beside, value_of
from fxcat.passes.nodes import cleanup
from fxcat.passes.nodes.effects import asserts, reads_type
from fxcat.passes.rewriting.emptied import drop_emptied
from fxcat.passes.rewriting.numbers import as_before, in_proportion, keep_numbers, paired_inputs
from fxcat.passes.rewriting.slice_modules import slice_modules
from fxcat.passes.rules.base import Moved, Rule, Share, Size
from fxcat.passes.rules.boundary import owners
from fxcat.passes.rules.execute import propagate
from fxcat.passes.rules.selection import known_selection
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


class _Setting:
    """Surviving indices, for one 0/1 setting."""

    def __init__(self, analysis: Analysis, units: torch.Tensor) -> None:
        self.analysis = analysis
        self._numbers: dict[fx.Node, Any] = {}
        # the last entry answers for NO_UNIT = -1
        self.open = torch.cat([units.bool().cpu(), torch.ones(1, dtype=torch.bool)])

    def live(self, labels: torch.Tensor) -> torch.Tensor | None:
        """Surviving indices of a 1-D label array, None if all survive."""
        alive = self.open[self.analysis.units.of_label[labels]]
        return None if bool(alive.all()) else alive.nonzero().reshape(-1)

    def live_axes(self, node: fx.Node, labels: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor | None, ...]:
        """Surviving indices of every axis of a value. Raises `PlanError` if they are not a rectangle."""
        if not labels.numel():
            return (None,) * len(shape)  # of a layer of width 0
        alive = self.open[self.analysis.units.of_label[labels]]
        if not bool(alive.any()):
            axes = self.analysis.units.of(labels).shape  # only along axes with units nothing is left
            return tuple(torch.empty(0, dtype=torch.long) if size > 1 else None for size in axes)
        result: list[torch.Tensor | None] = []
        for axis, size in enumerate(alive.shape):
            others = tuple(a for a in range(alive.dim()) if a != axis)
            some = alive.any(dim=others) if others else alive
            some = some.expand(shape[axis]) if size == 1 else some
            result.append(None if bool(some.all()) else some.nonzero().reshape(-1))
        kept = 1
        for axis, size in enumerate(alive.shape):
            if size > 1:
                index = result[axis]
                kept *= size if index is None else len(index)
        if int(alive.sum()) != kept:
            raise PlanError("the surviving part of a value is not a rectangle", where=place(node))
        return tuple(result)

    def is_empty(self, node: fx.Node) -> bool:
        """Whether nothing is left of a node's tensor."""
        labels = self.analysis.labels.values.get(node)
        return (
            isinstance(labels, torch.Tensor)
            and labels.numel() > 0
            and not bool(self.open[self.analysis.units.of_label[labels]].any())
        )

    def is_whole_group(self, node: fx.Node) -> bool:
        """Whether all units of a group are among those of a node's tensor."""
        return _holds_group(self.analysis, self.analysis.labels.of(node))

    def groups(self, node: fx.Node) -> list[str]:
        """The names of the groups whose units lie in a node's tensor."""
        numbers = set(self.analysis.units.of_label[self.analysis.labels.of(node)].reshape(-1).tolist())
        groups = self.analysis.units.groups
        return [g.name for g in groups if not numbers.isdisjoint(range(g.start, g.start + g.count))]

    def width(self, node: fx.Node) -> int:
        """How many channels are left of a node's tensor."""
        return self.shape(node)[1]

    def of_value(self, node: fx.Node) -> Any:
        return self._of(node, self.analysis.labels.values[node], value_of(node))

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """What is left of the shape of a node's tensor."""
        return tuple(n if x is None else len(x) for n, x in zip(value_of(node).shape, self.of_value(node), strict=True))

    def number(self, node: fx.Node) -> Any:
        """What a node that computes a number, from sizes, gives after removal."""
        value = value_of(node)
        if isinstance(value, torch.Tensor):
            shape = self.shape(node) if self.analysis.labels.values.get(node) is not None else self._shape_bound(node)
            return torch.empty(shape, dtype=value.dtype, device="meta")
        if node.op in ("placeholder", "get_attr"):
            return value
        if node not in self._numbers:
            args = fx.map_arg(node.args, self.number)
            kwargs = fx.map_arg(node.kwargs, self.number)
            if node.op == "call_method":
                self._numbers[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                assert callable(node.target)
                self._numbers[node] = node.target(*args, **kwargs)
        return self._numbers[node]

    def _shape_bound(self, node: fx.Node) -> tuple[int, ...]:
        """What is left of the shape of a parameter whose axes were bound one by one."""
        shape = list(value_of(node).shape)
        name = self.analysis.labels.names.read_by(node) if node.op == "get_attr" else ""
        for axis, labels in self.analysis.units.parameters.get(name, {}).items():
            live = self.live(labels) if axis >= 0 else None
            shape[axis] = shape[axis] if live is None else len(live)
        return tuple(shape)

    def _of(self, node: fx.Node, labels: Labels, value: Any) -> Any:
        if isinstance(labels, tuple):
            return tuple(self._of(node, x, v) for x, v in zip(labels, value, strict=True))
        if isinstance(labels, Grid):
            layers = [self.live_axes(node, layer, value.shape) for layer in labels.layers]
            return tuple(_in_all([x[axis] for x in layers], size) for axis, size in enumerate(value.shape))
        return None if labels is None else self.live_axes(node, labels, value.shape)


def _in_all(found: list[torch.Tensor | None], size: int) -> torch.Tensor | None:
    """The indices of an axis of some size that are in all lists; None stands for all of them."""
    indices = [x for x in found if x is not None]
    if len(indices) < 2:
        return indices[0] if indices else None
    count = torch.zeros(size, dtype=torch.int32)
    for index in indices:
        count[index] += 1
    return (count == len(indices)).nonzero().reshape(-1)


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
        if not is_open:
            # the join's own copy of the shortcut: it may have been replaced by an earlier bypass
            at = section.join.args.index(section.shortcut)
            shortcut = copies[section.join].args[at]
            assert isinstance(shortcut, fx.Node)
            copies[section.join].replace_all_uses_with(shortcut)
            stands_for(shortcut, copies[section.join])
    cleanup.remove_dead(graph)
    setting = _Setting(analysis, units)
    read = drop_emptied(analysis.labels, twin, graph, copies, setting)
    used = read | _used_names(analysis, twin, [old for old in _remaining(graph, copies) if not reads_type(old)])
    cleanup.read_type_elsewhere(graph, twin, used, [r.path for r in analysis.regions], analysis.labels.names.canonical)
    keep = _kept_indices(analysis, setting, _used_names(analysis, twin, _remaining(graph, copies)) | read)
    buffers = _replace_broken_chains(analysis, setting, graph, copies)
    buffers |= _surviving_orders(analysis, setting, _remaining(graph, copies))
    if final:
        _bypass_whole_entries(analysis, _remaining(graph, copies), copies, buffers)
    _drop_outdated_assertions(setting, graph, copies)
    cleanup.remove_dead(graph)
    for old in _remaining(graph, copies):
        _adapt(analysis, setting, copies, old)
    cleanup.remove_repeated(graph, twin)
    origin = {copies[old]: old for old in _remaining(graph, copies)}
    plain = cleanup.make_out_of_place(graph, origin, twin)
    entering = {str(o.target): setting.shape(o.all_input_nodes[0]) for o in origin.values() if o.op == "call_module"}
    slice_modules(twin, graph, keep, entering)
    add_buffers(twin, {n: b.to("meta") for n, b in buffers.items()})
    _check(analysis, setting, graph, twin, origin)
    return Plan(graph, twin, keep, entering, origin, buffers, plain)


def _remaining(graph: fx.Graph, copies: Mapping[fx.Node, fx.Node]) -> list[fx.Node]:
    """The nodes of the old graph whose copies are still in the new one."""
    present = set(graph.nodes)
    return [old for old, new in copies.items() if new in present]


def _copy(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = new.node_copy(node, lambda n: copies[n])
    return new, copies


def _kept_indices(analysis: Analysis, setting: _Setting, used: set[str]) -> Keep:
    keep: dict[str, dict[int, torch.Tensor]] = {}
    for name in analysis.units.parameters:
        if name not in used:
            continue
        for axis, labels in parameter_axes(name, analysis.units).items():
            live = setting.live(labels)
            if live is None:
                continue
            if not len(live) and _holds_group(analysis, labels):
                raise PlanError(
                    "every unit is removed, and the network still needs one",
                    where=name,
                    remedy="leave at least one unit of the group open, or close the section that holds it",
                )
            keep.setdefault(name, {})[axis] = live
    return keep


def _holds_group(analysis: Analysis, labels: torch.Tensor) -> bool:
    """Whether a whole group is among these labels, and not only a part of one."""
    numbers = set(analysis.units.of_label[labels].reshape(-1).tolist())
    return any(numbers.issuperset(range(g.start, g.start + g.count)) for g in analysis.units.groups)


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


def _replace_broken_chains(
    analysis: Analysis,
    setting: _Setting,
    graph: fx.Graph,
    copies: Mapping[fx.Node, fx.Node],
) -> dict[str, torch.Tensor]:
    """A shuffle whose surviving part is no rectangle becomes one index_select with the surviving permutation."""
    buffers: dict[str, torch.Tensor] = {}
    selected: dict[fx.Node, fx.Node] = {}  # what stands for the end of a chain, where another one may begin
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
            source = selected.get(chain.source, copies[chain.source])
            select = graph.call_function(torch.index_select, (source, chain.axis, index))
        stand_beside(select, sink)
        stands_for(select, sink)
        sink.replace_all_uses_with(select)
        selected[chain.sink] = select
    return buffers


def _surviving_order(setting: _Setting, source: fx.Node, sink: fx.Node, axis: int, order: torch.Tensor) -> torch.Tensor:
    """What is left of sink[i] = source[order[i]] along an axis, counted in what is left of the source."""
    live, wanted = setting.of_value(source)[axis], setting.of_value(sink)[axis]
    order = order if wanted is None else order[wanted]
    if live is None:
        return order
    position = torch.full((value_of(source).shape[axis],), -1)
    position[live] = torch.arange(len(live))
    return position[order]


def _surviving_orders(analysis: Analysis, setting: _Setting, used: list[fx.Node]) -> dict[str, torch.Tensor]:
    """New indices for the selections that earlier rewrites have put in and whose values have units that go."""
    orders: dict[str, torch.Tensor] = {}
    for node in used:
        found = known_selection(node, analysis.captured.orders)
        if found is not None:
            source, axis, name = found
            old = analysis.captured.orders[name]
            new = _surviving_order(setting, source, node, axis, old)
            if not torch.equal(new, old):
                orders[name] = new
    return orders


def _bypass_whole_entries(
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


def _is_rectangle(setting: _Setting, node: fx.Node) -> bool:
    try:
        setting.of_value(node)
    except PlanError:
        return False
    return True


def _drop_outdated_assertions(setting: _Setting, graph: fx.Graph, copies: Mapping[fx.Node, fx.Node]) -> None:
    """What the model asserts about sizes held for the widths that it had; what no longer holds goes."""
    for old in _remaining(graph, copies):
        said = next(iter(old.all_input_nodes), None) if asserts(old) else None
        if said is not None and isinstance(value_of(said), bool) and not setting.number(said):
            graph.erase_node(copies[old])


def _adapt(analysis: Analysis, setting: _Setting, copies: Mapping[fx.Node, fx.Node], old: fx.Node) -> None:
    """Change the numbers in the arguments that state sizes; numbers computed from sizes stay what they were."""
    rule = analysis.labels.rules.get(old)
    if rule is None or type(rule).reshaped is Rule.reshaped:
        if isinstance(VALUE.get(old), torch.Tensor):
            keep_numbers(setting.number, copies, old)
        return
    source = next((i for i in old.all_input_nodes if analysis.labels.values[i] is not None), None)
    before, after = () if source is None else setting.of_value(source), setting.of_value(old)
    numbers = [i for i in old.all_input_nodes if isinstance(VALUE.get(i), int | torch.Size)]
    if _untouched(before) and _untouched(after) and all(setting.number(n) == value_of(n) for n in numbers):
        return
    labels, value = analysis.labels.values[old], value_of(old)
    single = not isinstance(labels, tuple)
    moved = Moved(
        source=before,
        result=after,
        shape=tuple(n if x is None else len(x) for n, x in zip(value.shape, after, strict=True)) if single else (),
        has_units=tuple(any(x.shape[a] > 1 for x in leaves(labels)) for a in range(value.dim())) if single else (),
        number=setting.number,
    )
    replacement = rule.reshaped(old, moved)
    if replacement is not None:
        new = copies[old]
        new_inputs = dict(paired_inputs(old, new))
        args = [_with_sizes(setting, copies, old, a) for a in replacement.args]
        new.args = fx.map_arg(tuple(args), lambda n: new_inputs.get(n, n))
        new.kwargs = fx.map_arg(replacement.kwargs, lambda n: new_inputs[n])
        if replacement.target is not None:
            new.target = replacement.target


def _with_sizes(setting: _Setting, copies: Mapping[fx.Node, fx.Node], old: fx.Node, argument: Any) -> Any:
    """An argument with a node of the new graph for every `Size` and `Share` in it."""
    if not isinstance(argument, tuple | list):
        return argument
    new = copies[old]
    with new.graph.inserting_before(new):
        return tuple(_computed(setting, copies, new.graph, a) for a in argument)  # pyright: ignore[reportUnknownVariableType]


def _computed(setting: _Setting, copies: Mapping[fx.Node, fx.Node], graph: fx.Graph, size: Any) -> Any:
    if isinstance(size, Size):
        return graph.call_function(operator.getitem, (copies[size.shape], size.axis))
    if isinstance(size, Share):
        number = as_before(setting.number, copies, graph, size.number)
        return in_proportion(graph, number, size.live, value_of(size.number))
    return size


def _untouched(live: Any) -> bool:
    return all(_untouched(x) for x in live) if isinstance(live, tuple) else live is None


def _check(
    analysis: Analysis,
    setting: _Setting,
    graph: fx.Graph,
    twin: nn.Module,
    origin: Mapping[fx.Node, fx.Node],
) -> None:
    """Run the new graph on the sliced meta twin: every shape must be what the labels say."""
    try:
        propagate(graph, twin)
    except Exception as error:
        raise PlanError(f"the rewritten graph does not run: {error}") from error
    for new, old in origin.items():
        value = VALUE.get(new)
        if isinstance(value, torch.Tensor) and analysis.labels.values.get(old) is not None:
            expected = setting.shape(old)
            nothing = not value_of(old).numel() and not value.numel()  # whose labels say nothing of its sizes
            if tuple(value.shape) != expected and not nothing:
                raise PlanError(f"shape {list(value.shape)} where {list(expected)} is left", where=place(old))
    graph.lint()
