"""From a model to a network with gates, from there to a smaller network with gates, or to one without."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from fxcat.consumers import Consumer
from fxcat.contents import shapes_of
from fxcat.costs import CostModel
from fxcat.errors import InputError, NothingToPruneError
from fxcat.gated import GatedModule
from fxcat.gates import SAMPLES, GateSamples
from fxcat.passes import rewrite
from fxcat.passes.analysis import Analysis, Options, analyse
from fxcat.passes.capture import Captured, capture
from fxcat.passes.consumers import find_consumers
from fxcat.passes.copying import copy_data, copy_model, meta_twin
from fxcat.passes.costing import parameter_axes
from fxcat.passes.entries import with_entries
from fxcat.passes.gate_sites import find_sites
from fxcat.passes.gating import Gatings, insert_gates, place_gates
from fxcat.passes.installing import install, layers, original_class, uninstall
from fxcat.passes.orders import with_known_orders
from fxcat.passes.own_methods import others_than_written
from fxcat.passes.pickling import flat, restored
from fxcat.passes.plan import Plan, make_plan
from fxcat.passes.regions import Tie
from fxcat.passes.shown import shown_by
from fxcat.passes.slicing import add_buffer, add_buffers
from fxcat.passes.structure import describe
from fxcat.passes.units import NO_UNIT
from fxcat.program import GatePart, Program, Shrunk, Structure
from fxcat.recipe import Stage, attached, describe_example, parse
from fxcat.records import Pinned


@dataclass(frozen=True, slots=True)
class Compiled(Program):
    """The compiler's side of a `GatedModule`: the analysis of its graph. Never changed, so copies share it."""

    analysis: Analysis
    gatings: Gatings

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, flat(self.analysis.graph, (self.analysis, self.gatings))

    def finalized(self, network: nn.Module, units: torch.Tensor, sections: torch.Tensor) -> nn.Module:
        plan = self.plan(network, units, sections, final=True)
        small, copied = copy_model(network)
        copy_data(copied)
        _remove_gates(small, self)
        others = self._others(small, plan)
        rewrite.apply(small, self.analysis.graph, plan, self.analysis.regions)
        blocks = self.analysis.captured.blocks
        install(small, plan.graph, self.analysis.regions, blocks, for_good=True, others=others)
        return small

    def _others(self, network: nn.Module, plan: Plan) -> frozenset[str]:
        """`Captured.others` after a plan; of a network that has no gates."""
        captured = self.analysis.captured
        return captured.others | others_than_written(network, self.analysis.graph, plan)

    def install(self, network: nn.Module) -> None:
        graph = insert_gates(self.analysis.graph, self.gatings.of_node)
        install(network, graph, self.analysis.regions, self.analysis.captured.blocks, for_good=False)

    def layers(self) -> frozenset[str]:
        return layers(self.analysis.graph)

    def shrunk(self, network: nn.Module, units: torch.Tensor, sections: torch.Tensor) -> Shrunk:
        plan = self.plan(network, units, sections)
        before, others = self.analysis, self._others(network, plan)
        rewrite.remove_unused(plan.twin, before.graph, plan.graph, before.regions)  # what has gone must cost nothing
        new = {old: node for node, old in plan.origin.items()}
        ties = tuple(Tie(new[t.source], new[t.entry]) for t in before.captured.ties)
        orders = {**before.captured.orders, **plan.buffers}
        changed = {"graph": plan.graph, "ties": ties, "orders": orders, "others": others}
        left = replace(before.captured, **changed, guards=(), constants={}, pins=())
        # what was no section must not become one where a branch beside it has gone
        joins = {new[s.join] for s in before.sections if s.join in new}
        analysis = analyse(left, plan.twin, before.options, _frozen(before, plan), joins)
        compiled = _compile(analysis)
        _remove_gates(network, self)
        rewrite.apply(network, self.analysis.graph, plan, self.analysis.regions)
        _add_gates(network, compiled)
        origins = _unit_origins(self.analysis, analysis, plan), _section_origins(self.analysis, analysis, plan)
        parts = gate_parts(analysis)
        return Shrunk(compiled, parts, CostModel(analysis.terms), describe(analysis), plan.keep, *origins)

    def consumers(
        self, network: nn.Module, units: torch.Tensor, sections: torch.Tensor
    ) -> tuple[tuple[Consumer, ...], tuple[Pinned, ...]]:
        left = set(self.plan(network, units, sections, final=True).origin.values())
        return find_consumers(self.analysis, self.gatings, network, left, units)

    def with_biases(self, network: nn.Module, paths: Sequence[str]) -> tuple[Program, CostModel, Structure]:
        for path in paths:
            layer: Any = network.get_submodule(path)
            width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            layer.bias = nn.Parameter(layer.weight.new_zeros(width))
        return self.renewed(network)

    def renewed(self, network: nn.Module) -> tuple[Program, CostModel, Structure]:
        before = self.analysis
        twin = meta_twin(network)
        _remove_gates(twin, self)
        # an earlier shrink may have frozen some, and left joins that are no sections
        joins = {s.join for s in before.sections}
        analysis = analyse(before.captured, twin, before.options, _frozen(before), joins)
        if gate_parts(analysis) != gate_parts(before):
            raise InputError(
                "a module was replaced by another one after prepare(), and the network has other gates then",
                remedy="replace it in the model, and call prepare() again",
            )
        compiled = _compile(analysis)
        _remove_gates(network, self)
        _add_gates(network, compiled)
        found = replace(describe(analysis), pinned=describe(before).pinned)
        return compiled, CostModel(analysis.terms), found

    def unit_axes(self, network: nn.Module) -> dict[str, dict[int, torch.Tensor]]:
        units = self.analysis.units
        return {
            name: {axis: units.of_label[labels].long() for axis, labels in parameter_axes(name, units).items()}
            for name, _ in (*network.named_parameters(), *network.named_buffers())
        }

    def plan(self, network: nn.Module, units: torch.Tensor, sections: torch.Tensor, *, final: bool = False) -> Plan:
        """Plan the removal of what is 0; see `make_plan`. The network is not changed."""
        twin = meta_twin(network)
        _remove_gates(twin, self)
        return make_plan(self.analysis, twin, units, sections, final=final)


def _unpickled(content: bytes, classes: tuple[type, ...]) -> Compiled:
    return Compiled(*restored(content, classes))


def build(model: nn.Module, example_inputs: Any, options: Options, *, in_regions: bool = True) -> GatedModule:
    """Capture, analyse and gate a copy of `model`; if allowed, in regions where it cannot be traced as a whole.

    Raises `CaptureError`, `InputError`, and `NothingToPruneError` when there is neither a unit nor a section.
    """
    with _no_garbage_collection(), ThreadPoolExecutor(1) as background:
        # copying weights waits for memory and lets Python go on: do both at once
        network, copied = copy_model(model)
        copying = background.submit(copy_data, copied)
        captured = capture(model, example_inputs, in_regions=in_regions, python=options.python)
        captured = with_entries(captured) if options.inputs else captured
        captured = with_known_orders(captured, model)
        own = dict(network.named_buffers(remove_duplicate=False)) | dict(captured.constants)
        add_buffers(network, {n: order for n, order in captured.orders.items() if n not in own})
        _forget(network, captured.left)
        for name, constant in captured.constants.items():
            add_buffer(network, name, constant, persistent=False)
        compiled = _compiled_or_refused(captured, network, options)
        _add_gates(network, compiled)
        analysis, parts = compiled.analysis, gate_parts(compiled.analysis)
        gates = tuple((p.name, p.count) for p in parts)
        example = describe_example(example_inputs)
        stage = Stage(asdict(options), in_regions, example, shapes_of(model), gates)
        before = attached(model)
        recipe = (*(() if before is None else parse(before)[0]), stage)
        inputs = {str(n.target) for n in captured.graph.nodes if n.op == "placeholder"}
        shown = shown_by(original_class(network), inputs, captured.regions)
        result = shown(network, compiled, parts, CostModel(analysis.terms), describe(analysis), recipe)
        copying.result()
    return result


def _forget(network: nn.Module, names: Iterable[str]) -> None:
    """Take attributes out of which the graph leaves no value: those that are there are of another pass.

    Containers are emptied: other Python of the model (`train`) may ask for them."""
    for name in names:
        path, _, leaf = name.rpartition(".")
        held = vars(network.get_submodule(path))
        kind = type(held.get(leaf))
        if kind in (dict, list, set):
            held[leaf] = kind()
        else:
            held.pop(leaf, None)


_moved = 0
"""How many objects have been moved since the last full collection."""


@contextmanager
def _no_garbage_collection() -> Generator[None, None, None]:
    """A graph is many small objects that all stay: looking for garbage among them takes a tenth of the time.

    Afterwards they are moved to the oldest generation without looking at them, where Python does not know of them as
    new: it would hardly ever look for garbage there again. So this does, when a million objects have been moved.
    """
    global _moved
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        _moved += gc.get_count()[0]
        if not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()
        if was_enabled:
            gc.enable()
            if _moved > 1_000_000:
                _moved = 0
                gc.collect()


def _compiled_or_refused(captured: Captured, network: nn.Module, options: Options) -> Compiled:
    analysis = analyse(captured, network, options)
    if not analysis.units.groups and not analysis.sections:
        reasons = "; ".join(f"{p.where}: {p.reason}" for p in analysis.units.pinned[:5])
        raise NothingToPruneError(
            f"{captured.name} has nothing to prune" + (f" ({reasons})" if reasons else ""),
            remedy="check gates= and ignore=; the first and last layers' outer widths can never be pruned",
        )
    return _compile(analysis)


def gate_parts(analysis: Analysis) -> tuple[GatePart, ...]:
    """Names and sizes of the gate vector's parts."""
    groups = [GatePart(g.name, "units", g.count) for g in analysis.units.groups]
    return (*groups, *(GatePart(s.name, "section", 1) for s in analysis.sections))


def _compile(analysis: Analysis) -> Compiled:
    sites = find_sites(analysis.flow, analysis.units, analysis.sections)
    gatings = place_gates(analysis.graph, analysis.flow, analysis.units, sites)
    analysis.flow.detach()
    return Compiled(analysis, gatings)


def _add_gates(network: nn.Module, compiled: Compiled) -> None:
    device = next((p.device for p in network.parameters()), None)
    gatings = compiled.gatings
    samples = GateSamples(gatings.layout).to(device)
    network.add_module(SAMPLES, samples)
    for path, subclass in gatings.folded.items():
        network.get_submodule(path).__class__ = subclass


def _remove_gates(network: nn.Module, compiled: Compiled) -> None:
    uninstall(network)
    del network._modules[SAMPLES]
    for path, subclass in compiled.gatings.folded.items():
        module = network.get_submodule(path)
        if type(module) is subclass:  # else another one was put in its place
            module.__class__ = subclass.__bases__[0]


def _frozen(analysis: Analysis, plan: Plan | None = None) -> dict[str, dict[int, torch.Tensor]]:
    """For every parameter axis that a plan leaves which of its entries were not units: they must not become some."""
    frozen: dict[str, dict[int, torch.Tensor]] = {}
    for name, axes in analysis.units.parameters.items():
        for axis, labels in axes.items():
            if axis >= 0:
                mask = analysis.units.of_label[labels] == NO_UNIT
                index = None if plan is None else plan.keep.get(name, {}).get(axis)
                frozen.setdefault(name, {})[axis] = mask if index is None else mask[index]
    return frozen


def _unit_origins(old: Analysis, new: Analysis, plan: Plan) -> torch.Tensor:
    """For every unit of the new network its number in the old one: both label the same parameter entries."""
    origin = torch.full((new.units.count,), NO_UNIT)
    for name, axes in new.units.parameters.items():
        for axis, labels in axes.items():
            if axis < 0 or axis not in old.units.parameters.get(name, {}):
                continue
            before = old.units.of_label[old.units.parameters[name][axis]]
            index = plan.keep.get(name, {}).get(axis)
            before = before if index is None else before[index]
            after = new.units.of_label[labels]
            origin[after[after != NO_UNIT]] = before[after != NO_UNIT].long()
    return origin


def _section_origins(old: Analysis, new: Analysis, plan: Plan) -> torch.Tensor:
    number = {s.join: i for i, s in enumerate(old.sections)}
    return torch.tensor([number[plan.origin[s.join]] for s in new.sections], dtype=torch.int64)
