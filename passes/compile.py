"""From a model to a network with gates, from there to a smaller network with gates, or to one without."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from fxcat.errors import CaptureError, InputError, PlanError
from fxcat.gated import GatedModule
from fxcat.network.cost_model import CostModel
from fxcat.network.gates import type_of_gates
from fxcat.network.latency import TimedOp
from fxcat.network.module_state import shapes_of
from fxcat.network.origin import Left, named_tensors
from fxcat.network.program import Consumer, Program, Shrunk, Structure
from fxcat.network.recipe import Stage, attached_recipe, describe_example, parse
from fxcat.passes.analysis.costing import parameter_axes
from fxcat.passes.codegen.install import install, layers, original_class
from fxcat.passes.codegen.shown import shown_by
from fxcat.passes.dump import dumps
from fxcat.passes.gating.insert import Gatings, insert_gates
from fxcat.passes.graph.copy_model import copy_data, copy_model, meta_twin
from fxcat.passes.graph.ops_in_words import ops_in_words
from fxcat.passes.graph.pickling import flat, restored
from fxcat.passes.pipeline import Observer, run
from fxcat.passes.preparing import PREPARING, RENEWING
from fxcat.passes.removing import FINALIZING, SHRINKING, Removal, planned
from fxcat.passes.rewriting import apply as rewrite
from fxcat.passes.rewriting.consumers import find_consumers
from fxcat.passes.rewriting.gates import add_gates, gate_parts, remove_gates
from fxcat.passes.rewriting.origins import section_origins, unit_origins, units_before
from fxcat.passes.rewriting.plan import Plan
from fxcat.passes.structure import describe
from fxcat.passes.timing.ops import timed_ops
from fxcat.passes.work import Analysis, Options, Source, Work
from fxcat.records import Pinned


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
        removal = self._removal(network, units, sections, final=True)
        return run(FINALIZING, removal, PlanError, dumps("finalize", removal.name)).small

    def install(self, network: nn.Module) -> None:
        graph = insert_gates(self.analysis.graph, self.gatings.of_node, type_of_gates(network))
        install(network, graph, self.analysis.regions, self.analysis.captured.blocks, for_good=False)

    def left(self, network: nn.Module, units: torch.Tensor, sections: torch.Tensor) -> Left:
        planning = itertools.takewhile(lambda step: "small" not in step.gives, FINALIZING)
        plan = run(tuple(planning), self._removal(network, units, sections, final=True), PlanError).plan
        before = self.analysis
        rewrite.remove_unused(plan.twin, before.graph, plan.graph, before.regions)
        shapes = {name: tuple(tensor.shape) for name, tensor, _ in named_tensors(plan.twin)}
        return Left(shapes, plan.keep, frozenset({**before.captured.orders, **plan.buffers}))

    def layers(self) -> frozenset[str]:
        return layers(self.analysis.graph)

    def shrunk(self, network: nn.Module, units: torch.Tensor, sections: torch.Tensor) -> Shrunk:
        removal = self._removal(network, units, sections)
        removal = run(SHRINKING, removal, PlanError, dumps("shrink", removal.name))
        plan, program = removal.plan, Compiled.of(removal.left)
        left = program.analysis
        origins = unit_origins(self.analysis, left, plan), section_origins(self.analysis, left, plan)
        parts = gate_parts(left)
        return Shrunk(program, parts, CostModel(left.terms), describe(left), plan.keep, *origins)

    def shapes_after(self, network: nn.Module, closed: Sequence[Sequence[int]]) -> dict[str, torch.Size]:
        twin, program = meta_twin(network), self
        for numbers in closed:
            count = program.analysis.units.count
            keep = torch.ones(count + len(program.analysis.sections))
            keep[list(numbers)] = 0.0
            removal = program._removal(twin, keep[:count], keep[count:])
            program = Compiled.of(run(SHRINKING, removal, PlanError).left)
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

    def has_grouped_convolutions(self, network: nn.Module) -> bool:
        modules = dict(network.named_modules(remove_duplicate=False))
        rules = ((node, rule) for node, rule in self.analysis.labels.rules.items() if rule is not None)
        return any(
            rule.groups(node, modules[str(node.target)] if node.op == "call_module" else None) > 1
            for node, rule in rules
        )

    def timed_ops(self, network: nn.Module, batch: int) -> tuple[TimedOp, ...]:
        twin = meta_twin(network)
        remove_gates(twin, self.gatings)
        return timed_ops(self.analysis, twin, batch)

    def plan(self, network: nn.Module, units: torch.Tensor, sections: torch.Tensor, *, final: bool = False) -> Plan:
        """Plan the removal of what is 0; see `make_plan`. The network is not changed."""
        return planned(self._removal(network, units, sections, final=final)).plan

    def _removal(
        self, network: nn.Module, units: torch.Tensor, sections: torch.Tensor, *, final: bool = False
    ) -> Removal:
        return Removal(self.analysis, self.gatings, network, units, sections, final)

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
    before = attached_recipe(source.model)
    recipe = (*(() if before is None else parse(before)[0]), stage)
    inputs = {str(n.target) for n in analysis.graph.nodes if n.op == "placeholder"}
    shown = shown_by(original_class(network), inputs, analysis.regions)
    return shown(network, compiled, parts, CostModel(analysis.terms), describe(analysis), recipe)


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
