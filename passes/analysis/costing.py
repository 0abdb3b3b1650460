"""Cost terms of a labelled graph: MACs of every op in inference, parameters of everything.

In: labels, units, sections. Out: `CostTerm`s over unit and section numbers, and the edges of the cost graph.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Container, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import fx, nn

from fxcat.network.cost_model import Axis, CostTerm, Holding
from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.analysis.sections import Section
from fxcat.passes.analysis.units import NO_UNIT, Units
from fxcat.passes.graph.meta import value_of
from fxcat.passes.nodes.effects import is_by_the_way, reads_type, without_result
from fxcat.passes.rules.asking import ask
from fxcat.passes.rules.base import Rule
from fxcat.passes.rules.execute import counted_macs
from fxcat.passes.rules.terms import Term

Context: TypeAlias = tuple[int, ...]
"""The sections that hold one use of something."""

_OUTSIDE: Collection[Context] = ((),)


def full_macs(flow: LabelFlow) -> dict[fx.Node, int]:
    """MACs of every node for one example, with everything alive."""
    result: dict[fx.Node, int] = {}
    for node, rule in flow.rules.items():
        total = 0
        for term in _node_terms(flow, node, rule):
            width = 1
            for factor in term.factors:
                width *= factor.numel()
            total += term.coefficient * width
        result[node] = total * flow.repeats.get(node, 1)
    return result


def _node_terms(flow: LabelFlow, node: fx.Node, rule: Rule | None) -> tuple[Term, ...]:
    """MACs of a node. What no rule tells is counted while it runs on its example values; its units are frozen."""
    value = value_of(node)
    if isinstance(value, torch.Tensor) and not value.numel():
        return ()  # a layer of width 0
    terms = None if rule is None else ask(rule.macs, flow, node)
    if terms is not None:
        return terms
    if node not in flow.counted:
        flow.counted[node] = counted_macs(node, flow.root, flow.ones)
    return (Term(flow.counted[node], ()),) if flow.counted[node] else ()


def cost_terms(
    flow: LabelFlow,
    units: Units,
    sections: Sequence[Section],
    inference: frozenset[fx.Node],
    needed: frozenset[fx.Node],
) -> tuple[CostTerm, ...]:
    """MAC terms of the nodes in `inference` (costs are those of the deployed network), and parameter terms of all that
    an output needs, in inference or training."""
    asserting = without_result(sections[0].join.graph) if sections else None
    contexts = section_contexts(sections, needed, asserting)
    computing = contexts if needed == inference else section_contexts(sections, inference, asserting)
    axes = Axes(units)
    terms: list[CostTerm] = []
    uses: dict[str, list[Context]] = {}
    for node, rule in flow.rules.items():
        found = contexts.get(node, _OUTSIDE) if node in needed else ()
        if node in inference:
            uses_of_it = computing.get(node, _OUTSIDE)
            for term in _node_terms(flow, node, rule):
                counted = [axes.of(f) for f in term.factors]
                factors = tuple(axis for axis in counted if axis.runs.size)
                always = math.prod(axis.constant for axis in counted if not axis.runs.size)
                macs = term.coefficient * always * flow.repeats.get(node, 1)
                terms.append(CostTerm(node.name, macs, 0, factors, Holding.of_uses(uses_of_it)))
        _note_uses(flow, node, uses, found)
    for node in flow.values:
        if node.op == "get_attr" and isinstance(value_of(node), nn.Parameter):
            name = flow.attribute_name(node)
            read = node in needed and not reads_type(node)  # of which the dtype is read, it does not stay for that
            uses.setdefault(name, []).extend(contexts.get(node, _OUTSIDE) if read else ())
    known = {name: name for name in units.parameters}
    for name, parameter in flow.named_parameters():
        name = known.get(name, name)  # one string for all
        # what the graph never mentions stays as it is; what it mentions in vain goes
        contexts_of = uses.get(name, [()])
        if contexts_of:
            terms.append(_parameter_term(name, parameter, units, axes, contexts_of))
    return tuple(terms)


def _note_uses(flow: LabelFlow, node: fx.Node, uses: dict[str, list[Context]], contexts: Collection[Context]) -> None:
    if node.op == "call_module":
        for name in own_tensors(flow.module(node), buffers=False):
            uses.setdefault(flow.name_of(f"{node.target}.{name}"), []).extend(contexts)


def section_contexts(
    sections: Sequence[Section], needed: Container[fx.Node], asserting: Container[fx.Node] | None = None
) -> dict[fx.Node, Collection[Context]]:
    """For every node that goes with sections, for each of its uses those that hold it: it lives as long as one use.

    What several sections share (a constant, one layer that makes scales for all of them) goes with the last of them.
    Uses are those by nodes in `needed`; an assertion is no use, and what changes a buffer is there by itself.
    `asserting`: the nodes of assertions, where they are known.
    """
    holding: dict[fx.Node, frozenset[int]] = {}
    ends: dict[tuple[fx.Node, fx.Node], int] = {}
    for i, section in enumerate(sections):
        for part in section.parts:
            ends[part.exit, part.join] = i
            for node in part.nodes:
                holding[node] = holding.get(node, _NOWHERE) | {i}
    if not sections:
        return {}
    graph = sections[0].join.graph
    asserting = without_result(graph) if asserting is None else asserting
    always = frozenset({_NOWHERE})
    found: dict[fx.Node, frozenset[frozenset[int]]] = {}
    for node in reversed(graph.nodes):
        own = holding.get(node, _NOWHERE)
        found[node] = alone = frozenset({own}) if own else always
        uses: set[frozenset[int]] = set()
        for user in node.users if node not in asserting else ():
            if user not in needed or user in asserting:
                continue
            end = ends.get((node, user)) if own else None
            if end is None and found[user] == alone:
                uses.add(own)
                break  # this use holds no less than any other
            uses.update(own | use if end is None else own | use | {end} for use in found[user])
        if uses and own not in uses and len(uses) <= _USES and not is_by_the_way(node):
            found[node] = frozenset(use for use in uses if not any(other < use for other in uses))
    return {node: [tuple(sorted(use)) for use in uses] for node, uses in found.items() if uses != {_NOWHERE}}


_NOWHERE: frozenset[int] = frozenset()
_USES = 256
"""Of more different uses than that none is told from another."""


def _parameter_term(name: str, parameter: torch.Tensor, units: Units, axes: Axes, uses: list[Context]) -> CostTerm:
    sizes = list(parameter.shape)
    factors: list[Axis] = []
    known = units.parameters.get(name, {})
    for axis, labels in (parameter_axes(name, units) if -1 in known else known).items():
        found = axes.of(labels)
        if found.runs.size:
            sizes[axis] = 1
            factors.append(found)
    count = torch.Size(sizes).numel()
    return CostTerm(name, 0, count, tuple(factors), Holding.of_uses(uses))


def parameter_axes(name: str, units: Units) -> Mapping[int, torch.Tensor]:
    """The axes of a parameter or buffer that carry units, with the labels along each."""
    axes = dict(units.parameters.get(name, {}))
    elements = axes.pop(-1, None)
    if elements is not None and not axes:
        numbers = units.of(elements)
        for axis, size in enumerate(numbers.shape):
            if size > 1:
                index = [slice(None) if a == axis else slice(0, 1) for a in range(elements.dim())]
                axes[axis] = elements[tuple(index)].reshape(-1)
    return {a: labels for a, labels in axes.items() if bool((units.of_label[labels] != NO_UNIT).any())}


def own_tensors(module: nn.Module, *, buffers: bool) -> list[str]:
    """Names of the parameters (and buffers) of a module and what is below it."""
    found = [n for n, _ in module.named_parameters()] if module._modules else _present(module._parameters)
    if buffers:
        found += [n for n, _ in module.named_buffers()] if module._modules else _present(module._buffers)
    return found


def _present(tensors: Mapping[str, torch.Tensor | None]) -> list[str]:
    return [n for n, t in tensors.items() if t is not None]


class Axes:
    """Axes from 1-D labels, each computed once."""

    def __init__(self, units: Units) -> None:
        self._of_label = units.of_label.numpy()
        self._known: dict[bytes, Axis] = {}
        # most parameters of a layer share one label tensor; the tensors are kept so that ids stay theirs
        self._by_tensor: dict[int, tuple[torch.Tensor, Axis]] = {}

    def of(self, labels: torch.Tensor) -> Axis:
        if id(labels) not in self._by_tensor:
            self._by_tensor[id(labels)] = labels, self._from_units(labels)
        return self._by_tensor[id(labels)][1]

    def _from_units(self, labels: torch.Tensor) -> Axis:
        numbers = self._of_label[labels.numpy()]
        key = hashlib.blake2b(numbers.tobytes()).digest()  # the arrays themselves are large
        if key not in self._known:
            live = numbers[numbers != NO_UNIT]
            self._known[key] = Axis.counting(live, numbers.size - live.size)
        return self._known[key]
