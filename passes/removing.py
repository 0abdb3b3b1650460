"""What is closed leaves a network: the plan, what is analysed of the rest, the slices and the code."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from fxcat.errors import PlanError
from fxcat.network.gates import SAMPLES
from fxcat.passes.capture.capture import Captured
from fxcat.passes.capture.regions import Tie
from fxcat.passes.codegen.install import install
from fxcat.passes.gating.insert import Gatings
from fxcat.passes.graph.copy_model import copy_data, copy_model, make_what_is_read, meta_twin
from fxcat.passes.pipeline import Step, run
from fxcat.passes.preparing import RENEWING
from fxcat.passes.rewriting import apply as rewrite
from fxcat.passes.rewriting.changed_modules import others_than_written, without_parts
from fxcat.passes.rewriting.fold_shuffles import fold_shuffles
from fxcat.passes.rewriting.gates import add_gates, remove_gates
from fxcat.passes.rewriting.origins import units_before
from fxcat.passes.rewriting.permutations import selections
from fxcat.passes.rewriting.plan import Plan, make_plan
from fxcat.passes.work import UNKNOWN, Analysis, Work


@dataclass(frozen=True, slots=True)
class Removal:
    """What is closed on its way out of a network. What is not known yet is None.

    `before`, `gatings`: what is known of the network, which has gates. `units`, `sections`: what stays, 0/1. `final`:
    nothing goes later. `left`: what is known of the rest, with gates. `others`: see `Captured.others`. `small`: the
    rest without gates.
    """

    before: Analysis
    gatings: Gatings
    network: nn.Module
    units: torch.Tensor
    sections: torch.Tensor
    final: bool = False
    plan: Plan = UNKNOWN
    left: Work = UNKNOWN
    others: frozenset[str] = frozenset()
    small: nn.Module = UNKNOWN

    @property
    def name(self) -> str:
        """The model's class."""
        return self.before.captured.name

    @property
    def graph(self) -> fx.Graph:
        """What is left of it."""
        return self.plan.graph


def planned(removal: Removal) -> Removal:
    """The network is not changed."""
    twin = meta_twin(removal.network)
    remove_gates(twin, removal.gatings)
    make_what_is_read(twin, removal.before.graph)
    plan = make_plan(removal.before, twin, removal.units, removal.sections, final=removal.final)
    return replace(removal, plan=plan)


def _folded(removal: Removal) -> Removal:
    """The network is not changed."""
    before, plan = removal.before, removal.plan
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
    before, plan = removal.before, removal.plan
    rewrite.remove_unused(plan.twin, before.graph, plan.graph, before.regions)  # what has gone must cost nothing
    new = {old: node for node, old in plan.origin.items()}
    others = before.captured.others | others_than_written(removal.network, before.graph, plan)
    others |= without_parts([path for path, _ in removal.network.named_modules() if path != SAMPLES], plan.twin)
    left = replace(_left_by(plan, before), others=others)
    # what was no section must not become one where a branch beside it has gone
    joins = {new[s.join] for s in before.sections if s.join in new}
    work = Work(removal.name, plan.twin, before.options, captured=left, before=units_before(before, plan), joins=joins)
    return replace(removal, left=run(RENEWING, work, PlanError))


def _sliced(removal: Removal) -> Removal:
    """The network itself becomes smaller."""
    before = removal.before
    remove_gates(removal.network, removal.gatings)
    rewrite.apply(removal.network, before.graph, removal.plan, before.regions)
    add_gates(removal.network, removal.left.gatings)
    return removal


def _sliced_copy(removal: Removal) -> Removal:
    before, plan = removal.before, removal.plan
    small, copied = copy_model(removal.network)
    copy_data(copied)
    remove_gates(small, removal.gatings)
    others = before.captured.others | others_than_written(small, before.graph, plan)
    paths = [path for path, _ in small.named_modules()]
    rewrite.apply(small, before.graph, plan, before.regions)
    return replace(removal, small=small, others=others | without_parts(paths, small))


def _with_code(removal: Removal) -> Removal:
    before, graph = removal.before, removal.plan.graph
    blocks = before.captured.blocks
    install(removal.small, graph, before.regions, blocks, for_good=True, others=removal.others)
    return removal


PLAN = Step("plan", planned, gives=("plan",), rewrites=True)

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
