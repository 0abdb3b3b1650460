"""From a model to a network with gates, from there to a smaller network with gates, or to one without."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from fxcat.errors import CaptureError, InputError, NothingToPruneError, PlanError
from fxcat.gated import GatedModule
from fxcat.network.consumers import Consumer
from fxcat.network.cost_model import CostModel
from fxcat.network.gates import SAMPLES, type_of_gates
from fxcat.network.latency import TimedOp
from fxcat.network.module_state import shapes_of
from fxcat.network.origin import Left, named_tensors
from fxcat.network.program import Program, Shrunk, Structure
from fxcat.network.recipe import Stage, attached, describe_example, parse
from fxcat.passes.analyses import CALLS, CHAINS, COSTS, LABELS, MADE_VALUES, PINS, SECTIONS, TABLES, UNITS
from fxcat.passes.analysis.costing import parameter_axes
from fxcat.passes.capture.capture import Captured, capture
from fxcat.passes.capture.regions import Tie
from fxcat.passes.codegen.install import install, layers, original_class
from fxcat.passes.codegen.shown import shown_by
from fxcat.passes.dump import dumps
from fxcat.passes.gating.gated_inputs import with_entries
from fxcat.passes.gating.insert import Gatings, insert_gates, place_gates
from fxcat.passes.gating.orders import with_known_orders
from fxcat.passes.gating.sites import find_sites
from fxcat.passes.graph.buffers import add_buffer, add_buffers
from fxcat.passes.graph.copy_model import copy_data, copy_model, meta_twin
from fxcat.passes.graph.ops_in_words import ops_in_words
from fxcat.passes.graph.pickling import flat, restored
from fxcat.passes.pipeline import Observer, Step, run
from fxcat.passes.rewriting import apply as rewrite
from fxcat.passes.rewriting.changed_modules import others_than_written, without_parts
from fxcat.passes.rewriting.consumers import find_consumers
from fxcat.passes.rewriting.fold_shuffles import fold_shuffles
from fxcat.passes.rewriting.gates import add_gates, gate_parts, remove_gates
from fxcat.passes.rewriting.origins import section_origins, unit_origins, units_before
from fxcat.passes.rewriting.permutations import selections
from fxcat.passes.rewriting.plan import Plan, make_plan
from fxcat.passes.structure import describe
from fxcat.passes.timing.ops import timed_ops
from fxcat.passes.work import Analysis, Options, Source, Work
from fxcat.records import Pinned

_UNKNOWN: Any = None


@dataclass(frozen=True, slots=True)
class Compiled(Program):
    """The compiler's side of a `GatedModule`: the analysis of its graph. Never changed, so copies share it."""

    analysis: Analysis
    gatings: Gatings

    @classmethod
    def of(cls, work: Work) -> Compiled:
        """Of what all steps have found."""
        return cls(work.analysis, work.gatings)

    @property
    def name(self) -> str:
        """The model's class."""
        return self.analysis.captured.name

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, flat(self.analysis.graph, (self.analysis, self.gatings))

    def finalized(self, network: nn.Module, units: torch.Tensor, sections: torch.Tensor) -> nn.Module:
        removal = Removal(self, network, units, sections, final=True)
        return run(FINALIZING, removal, PlanError, dumps("finalize", removal.name)).small

    def install(self, network: nn.Module) -> None:
        graph = insert_gates(self.analysis.graph, self.gatings.of_node, type_of_gates(network))
        install(network, graph, self.analysis.regions, self.analysis.captured.blocks, for_good=False)

    def left(self, network: nn.Module, units: torch.Tensor, sections: torch.Tensor) -> Left:
        planning = itertools.takewhile(lambda step: "small" not in step.gives, FINALIZING)
        plan = run(tuple(planning), Removal(self, network, units, sections, final=True), PlanError).plan
        before = self.analysis
        rewrite.remove_unused(plan.twin, before.graph, plan.graph, before.regions)
        shapes = {name: tuple(tensor.shape) for name, tensor, _ in named_tensors(plan.twin)}
        return Left(shapes, plan.keep, frozenset({**before.captured.orders, **plan.buffers}))

    def layers(self) -> frozenset[str]:
        return layers(self.analysis.graph)

    def shrunk(self, network: nn.Module, units: torch.Tensor, sections: torch.Tensor) -> Shrunk:
        removal = Removal(self, network, units, sections)
        removal = run(SHRINKING, removal, PlanError, dumps("shrink", removal.name))
        plan, left = removal.plan, removal.left.analysis
        origins = unit_origins(self.analysis, left, plan), section_origins(self.analysis, left, plan)
        parts = gate_parts(left)
        return Shrunk(removal.left, parts, CostModel(left.terms), describe(left), plan.keep, *origins)

    def shapes_after(self, network: nn.Module, closed: Sequence[Sequence[int]]) -> dict[str, torch.Size]:
        twin, program = meta_twin(network), self
        for numbers in closed:
            count = program.analysis.units.count
            keep = torch.ones(count + len(program.analysis.sections))
            keep[list(numbers)] = 0.0
            left = run(SHRINKING, Removal(program, twin, keep[:count], keep[count:]), PlanError)
            program = left.left
        return {name: value.shape for name, value in twin.state_dict().items() if isinstance(value, torch.Tensor)}

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
        remove_gates(twin, self.gatings)
        # an earlier shrink may have frozen some, and left joins that are no sections
        joins = {s.join for s in before.sections}
        work = Work(self.name, twin, before.options, captured=before.captured, before=units_before(before), joins=joins)
        compiled = Compiled.of(run(RENEWING, work, CaptureError, dumps("renew", self.name)))
        if gate_parts(compiled.analysis) != gate_parts(before):
            raise InputError(
                "a module was replaced by another one after prepare(), and the network has other gates then",
                remedy="replace it in the model, and call prepare() again",
            )
        remove_gates(network, self.gatings)
        add_gates(network, compiled.gatings)
        found = replace(describe(compiled.analysis), pinned=describe(before).pinned)
        return compiled, CostModel(compiled.analysis.terms), found

    def timed_ops(self, network: nn.Module, batch: int) -> tuple[TimedOp, ...]:
        twin = meta_twin(network)
        remove_gates(twin, self.gatings)
        return timed_ops(self.analysis, twin, batch)

    def plan(self, network: nn.Module, units: torch.Tensor, sections: torch.Tensor, *, final: bool = False) -> Plan:
        """Plan the removal of what is 0; see `make_plan`. The network is not changed."""
        return _planned(Removal(self, network, units, sections, final)).plan

    def unit_axes(self, network: nn.Module) -> dict[str, dict[int, torch.Tensor]]:
        units = self.analysis.units
        return {
            name: {axis: units.of_label[labels].long() for axis, labels in parameter_axes(name, units).items()}
            for name, _ in (*network.named_parameters(), *network.named_buffers())
        }


def _unpickled(content: bytes, classes: tuple[type, ...]) -> Compiled:
    return Compiled(*restored(content, classes))


def build(
    model: nn.Module,
    example_inputs: Any,
    options: Options,
    *,
    in_regions: bool = True,
    watch: Sequence[Callable[[Source], Observer[Work]]] = (),
    dump: str | os.PathLike[str] | None = None,
) -> GatedModule:
    """Capture, analyse and gate a copy of `model`; if allowed, in regions where it cannot be traced as a whole.

    `watch`: make what looks at the network between the steps. `dump`: see `dumps`. Raises `CaptureError`, `InputError`,
    and `NothingToPruneError` when there is neither a unit nor a section.
    """
    source, name = Source(model, example_inputs, in_regions), type(model).__name__
    with _no_garbage_collection(), ThreadPoolExecutor(1) as background:
        # copying weights waits for memory and lets Python go on: do both at once
        network, copied = copy_model(model)
        copying = background.submit(copy_data, copied)
        observers = (*dumps("prepare", name, dump), *(make(source) for make in watch))
        if observers:
            copying.result()
        compiled = Compiled.of(run(PREPARING, Work(name, network, options, source), CaptureError, observers))
        ops = ops_in_words(compiled.analysis.graph, network)  # before modules take gates
        add_gates(network, compiled.gatings)
        result = _gated(source, network, options, compiled, ops)
        copying.result()
    return result


def _gated(
    source: Source, network: nn.Module, options: Options, compiled: Compiled, ops: tuple[str, ...]
) -> GatedModule:
    analysis, parts = compiled.analysis, gate_parts(compiled.analysis)
    gates = tuple((p.name, p.count) for p in parts)
    example = describe_example(source.example_inputs)
    stage = Stage(asdict(options), source.in_regions, example, shapes_of(source.model), gates, ops=ops)
    before = attached(source.model)
    recipe = (*(() if before is None else parse(before)[0]), stage)
    inputs = {str(n.target) for n in analysis.graph.nodes if n.op == "placeholder"}
    shown = shown_by(original_class(network), inputs, analysis.regions)
    return shown(network, compiled, parts, CostModel(analysis.terms), describe(analysis), recipe)


def _captured(work: Work) -> Work:
    source = work.source
    found = capture(source.model, source.example_inputs, in_regions=source.in_regions, python=work.options.python)
    return replace(work, captured=found)


def _with_entries(work: Work) -> Work:
    return replace(work, captured=with_entries(work.captured)) if work.options.inputs else work


def _with_known_orders(work: Work) -> Work:
    captured = with_known_orders(work.captured, work.source.model)
    return work if captured is work.captured else replace(work, captured=captured)


def with_own_tensors(work: Work) -> Work:
    """What the graph reads, and the model does not hold, is registered; what only the model's Python held goes."""
    network, captured = work.network, work.captured
    own = dict(network.named_buffers(remove_duplicate=False)) | dict(captured.constants)
    add_buffers(network, {n: order for n, order in captured.orders.items() if n not in own})
    _forget(network, captured.left)
    for name, constant in captured.constants.items():
        add_buffer(network, name, constant, persistent=False)
    return work


def _with_something_to_prune(work: Work) -> Work:
    if not work.units.groups and not work.sections:
        reasons = "; ".join(f"{p.where}: {p.reason}" for p in work.units.pinned[:5])
        raise NothingToPruneError(
            f"{work.name} has nothing to prune" + (f" ({reasons})" if reasons else ""),
            remedy="check gates= and ignore=; the first and last layers' outer widths can never be pruned",
        )
    return work


def _with_gates(work: Work) -> Work:
    sites = find_sites(work.flow, work.units, work.sections)
    return replace(work, gatings=place_gates(work.graph, work.flow, work.units, sites))


CAPTURE = Step("capture", _captured, needs=("source",), gives=("captured",), rewrites=True)
ENTRIES = Step("entries", _with_entries, needs=("captured",), rewrites=True)
ORDERS = Step("orders", _with_known_orders, needs=("captured", "source"), rewrites=True)
TENSORS = Step("tensors", with_own_tensors, needs=("captured",))
SUBSTANCE = Step("substance", _with_something_to_prune, needs=("units", "sections"))
GATES = Step("gates", _with_gates, needs=("flow", "units", "sections"), gives=("gatings",), rewrites=True)

PREPARING: tuple[Step[Work], ...] = (
    *(CAPTURE, ENTRIES, ORDERS, TENSORS),
    *(LABELS, TABLES, MADE_VALUES, CALLS, PINS, CHAINS, UNITS, SECTIONS, COSTS),
    *(SUBSTANCE, GATES),
)
"""From a model to what a network with gates takes."""

RENEWING: tuple[Step[Work], ...] = (LABELS, TABLES, CALLS, PINS, CHAINS, UNITS, SECTIONS, COSTS, GATES)
"""The same from a graph."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What is closed on its way out of a network. What is not known yet is None.

    `network`: that of `compiled`, with gates. `units`, `sections`: what stays, 0/1. `final`: nothing goes later.
    `left`: what is known of the rest, with gates. `others`: see `Captured.others`. `small`: the rest without gates.
    """

    compiled: Compiled
    network: nn.Module
    units: torch.Tensor
    sections: torch.Tensor
    final: bool = False
    plan: Plan = _UNKNOWN
    left: Compiled = _UNKNOWN
    others: frozenset[str] = frozenset()
    small: nn.Module = _UNKNOWN

    @property
    def name(self) -> str:
        """The model's class."""
        return self.compiled.name

    @property
    def graph(self) -> fx.Graph:
        """What is left of it."""
        return self.plan.graph


def _planned(removal: Removal) -> Removal:
    """The network is not changed."""
    twin = meta_twin(removal.network)
    remove_gates(twin, removal.compiled.gatings)
    plan = make_plan(removal.compiled.analysis, twin, removal.units, removal.sections, final=removal.final)
    return replace(removal, plan=plan)


def _folded(removal: Removal) -> Removal:
    """The network is not changed."""
    before, plan = removal.compiled.analysis, removal.plan
    if not any(selections(plan.graph, {**before.captured.orders, **plan.buffers})):
        return removal
    return replace(removal, plan=fold_shuffles(plan, _left_by(plan, before), before.options))


def _left_by(plan: Plan, before: Analysis) -> Captured:
    """What is left, as if it had been captured."""
    new = {old: node for node, old in plan.origin.items()}
    ties = tuple(Tie(new[t.source], new[t.entry]) for t in before.captured.ties if t.source in new and t.entry in new)
    orders = {**before.captured.orders, **plan.buffers}
    changed = {"graph": plan.graph, "ties": ties, "orders": orders}
    return replace(before.captured, **changed, guards=(), constants={}, pins=())


def _analysed(removal: Removal) -> Removal:
    """The network is not changed."""
    before, plan = removal.compiled.analysis, removal.plan
    rewrite.remove_unused(plan.twin, before.graph, plan.graph, before.regions)  # what has gone must cost nothing
    new = {old: node for node, old in plan.origin.items()}
    others = before.captured.others | others_than_written(removal.network, before.graph, plan)
    others |= without_parts([path for path, _ in removal.network.named_modules() if path != SAMPLES], plan.twin)
    left = replace(_left_by(plan, before), others=others)
    # what was no section must not become one where a branch beside it has gone
    joins = {new[s.join] for s in before.sections if s.join in new}
    work = Work(removal.name, plan.twin, before.options, captured=left, before=units_before(before, plan), joins=joins)
    return replace(removal, left=Compiled.of(run(RENEWING, work, PlanError)))


def _sliced(removal: Removal) -> Removal:
    """The network itself becomes smaller."""
    before = removal.compiled
    remove_gates(removal.network, before.gatings)
    rewrite.apply(removal.network, before.analysis.graph, removal.plan, before.analysis.regions)
    add_gates(removal.network, removal.left.gatings)
    return removal


def _sliced_copy(removal: Removal) -> Removal:
    before = removal.compiled
    small, copied = copy_model(removal.network)
    copy_data(copied)
    remove_gates(small, before.gatings)
    analysis, plan = before.analysis, removal.plan
    others = analysis.captured.others | others_than_written(small, analysis.graph, plan)
    paths = [path for path, _ in small.named_modules()]
    rewrite.apply(small, analysis.graph, plan, analysis.regions)
    return replace(removal, small=small, others=others | without_parts(paths, small))


def _with_code(removal: Removal) -> Removal:
    before, graph = removal.compiled.analysis, removal.plan.graph
    blocks = before.captured.blocks
    install(removal.small, graph, before.regions, blocks, for_good=True, others=removal.others)
    return removal


PLAN = Step("plan", _planned, gives=("plan",), rewrites=True)

SHRINKING: tuple[Step[Removal], ...] = (
    PLAN,
    Step("what is left", _analysed, needs=("plan",), gives=("left",)),
    Step("slices", _sliced, needs=("plan", "left")),
)
"""What is closed leaves a network, which keeps its other gates. It is changed by the last step alone."""

FINALIZING: tuple[Step[Removal], ...] = (
    PLAN,
    Step("shuffles", _folded, needs=("plan",), gives=("plan",), rewrites=True),
    Step("slices", _sliced_copy, needs=("plan",), gives=("small",)),
    Step("code", _with_code, needs=("plan", "small")),
)
"""A copy without gates, and without what is closed."""


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


@contextmanager
def _no_garbage_collection() -> Generator[None, None, None]:
    """A graph is many small objects that all stay: looking for garbage among them takes a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
