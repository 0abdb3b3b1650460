"""Residual-bypassable sections, found from the graph.

At every sum of two branches with a common dominator, a branch whose values are used nowhere else is a section if
the other branch is the identity or dearer nothing: removing it leaves the shortcut. So is one that what the shortcut is
made of leads to, whatever else it reads.
"""

from __future__ import annotations

import itertools
import operator
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import fx

from fxcat.passes.analysis.guards import asked_sizes
from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.meta import CALL, LINE, NO_GRAD, PHASE, VALUE, path_of, value_of
from fxcat.passes.nodes.effects import FACTS, asserts, changed_later, effects, is_by_the_way, without_result
from fxcat.passes.rules.boundary import region_input, region_output

SUMS = {torch.add, operator.add, operator.iadd, "add", "add_"}


@dataclass(frozen=True, slots=True)
class Section:
    """Nodes between `entry` (exclusive) and `exit` (inclusive), added to `shortcut` at the node `join`."""

    name: str
    join: fx.Node
    entry: fx.Node
    exit: fx.Node
    shortcut: fx.Node
    nodes: frozenset[fx.Node]
    stream: int = 0
    """Of all sections that add to the same values, the number of the first."""
    in_training: Section | None = None
    """The same branch as training computes it, where its nodes are not those of inference: they close together."""

    @property
    def parts(self) -> tuple[Section, ...]:
        """The section and, where training has nodes of its own for it, these."""
        return (self,) if self.in_training is None else (self, self.in_training)


def find_sections(graph: fx.Graph, weight: Mapping[fx.Node, int]) -> tuple[Section, ...]:
    """All sections, outer ones first in graph order of their joins. `weight`: MACs per node, to tell a projection."""
    joins = [n for n in graph.nodes if n.target in SUMS and _two_values(n)]
    if not joins:
        return ()
    finder = _Finder(graph, weight)
    found = [s for s in map(finder.at, joins) if s is not None]
    if any(PHASE.has(s.join) for s in found):
        found = [s for s in _of_both_modes(found, joins) if finder.leaves_by_exits(s)]
    return _in_streams(_named(found, weight), weight)


def _of_both_modes(sections: list[Section], joins: Iterable[fx.Node]) -> list[Section]:
    """The sections, where what training does beforehand (noise, labels that are dropped) gives it nodes of its own for
    the same sums: each with that of training in it. What is a section in one mode only is none."""
    seen = Counter[Any](), Counter[Any]()
    sums: dict[Any, list[fx.Node | None]] = {}
    for join in joins:
        for mode in (0, 1):
            if PHASE.get(join, mode) == mode:
                key = CALL.get(join), LINE.get(join)
                seen[mode][key] += 1
                sums.setdefault((key, seen[mode][key]), [None, None])[mode] = join
    at = {section.join: section for section in sections}
    for one, other in sums.values():
        if one is None or other is None or one is other:
            continue
        inference, training = at.get(one), at.get(other)
        if inference is not None and training is not None and _layers(inference) == _layers(training):
            at[one] = replace(inference, in_training=training)
            del at[other]
        elif inference is None or training is None:
            at.pop(one, None)
            at.pop(other, None)
    return list(at.values())


def _layers(section: Section) -> set[str]:
    """The modules and parameters of a section."""
    return {str(n.target) for n in section.nodes if n.op in ("call_module", "get_attr")}


def _two_values(node: fx.Node) -> bool:
    operands = node.args[:2]
    values = [value_of(a) for a in operands if isinstance(a, fx.Node)]
    if len(values) != 2 or node.kwargs.get("alpha", 1) != 1:
        return False
    tensors = all(isinstance(v, torch.Tensor) for v in values)
    return tensors and values[0].shape == values[1].shape and operands[0] is not operands[1]


def constant_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Parameters, buffers, the mode, and what is computed from them alone, whatever the input is."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        computed = node.op in ("call_function", "call_method") and node.target not in (region_input, region_output)
        computed |= node.op == "call_module" and bool(node.all_input_nodes)
        if node.op == "get_attr" or (computed and all(i in found for i in node.all_input_nodes)):
            found.add(node)
    return found


def _of_one_batch(graph: fx.Graph) -> set[fx.Node]:
    """What does not depend on how many examples the input has: neither on its values nor on that size, or on values
    of all examples together."""
    found: set[fx.Node] = set()
    counting: dict[fx.Node, list[fx.Node]] = {}
    """Per fact the tensors whose batch it may count; most are asked for again and again."""
    for node in graph.nodes:
        made = node.op.startswith("call") and node.target not in (region_input, region_output)
        facts = [i for i in node.all_input_nodes if isinstance(VALUE.get(i), FACTS)]
        for fact in facts:
            if fact not in counting:
                counting[fact] = [tensor for tensor, axis in asked_sizes(fact) if axis in (0, None)]
        batch = any(tensor not in found for fact in facts for tensor in counting[fact])
        same = not batch and all(i in found for i in node.all_input_nodes if i not in facts)
        if node.op == "get_attr" or (made and (same or _joins_examples(node))):
            found.add(node)
    return found


def _joins_examples(node: fx.Node) -> bool:
    """Whether an op leaves one entry of the batch, or reduces it to one."""
    if node.target is operator.getitem:
        index = node.args[1]
        entries = index if isinstance(index, tuple) else (index,)
        first = next(iter(entries), None)
        return isinstance(first, slice) and isinstance(first.stop, int) and isinstance(value_of(node), torch.Tensor)
    if getattr(node.target, "__name__", node.target) not in _REDUCTIONS:
        return False
    axes = arguments(node, "input", "dim").get("dim")
    given = value_of(node.all_input_nodes[0]) if node.all_input_nodes else None
    dims = given.dim() if isinstance(given, torch.Tensor) else 0
    return bool(dims) and any(
        a % dims == 0 for a in (axes if isinstance(axes, tuple | list) else (axes,)) if isinstance(a, int)
    )


_REDUCTIONS = ("mean", "sum", "amax", "amin", "max", "min", "var", "std", "norm", "median", "prod", "logsumexp")


def _of_sizes(graph: fx.Graph) -> set[fx.Node]:
    """What does not depend on the values of inputs, though it may on their sizes; numbers and shapes are such."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        computed = node.op in ("call_function", "call_method") and node.target not in (region_input, region_output)
        is_fact = isinstance(VALUE.get(node), FACTS)
        if node.op == "get_attr" or (computed and (is_fact or all(i in found for i in node.all_input_nodes))):
            found.add(node)
    return found


def dominators(graph: fx.Graph, constants: Container[fx.Node]) -> dict[fx.Node, fx.Node]:
    """For every node the nearest one that all its ways from the inputs pass; not a node where there is none.

    Ways are those of values: where a size comes from does not count, unless a node takes nothing else.
    """
    # a graph without cycles, in order: the nearest one is where the ways from the inputs of a node meet
    found: dict[fx.Node, fx.Node | None] = {}
    depth: dict[fx.Node | None, int] = {None: 0}
    for node in graph.nodes:
        inputs = [i for i in node.all_input_nodes if i not in constants]
        inputs = [i for i in inputs if not isinstance(VALUE.get(i), FACTS)] or inputs
        nearest: fx.Node | None = inputs[0] if inputs else None
        for other in inputs[1:]:
            while nearest is not other:
                if depth[nearest] < depth[other]:
                    nearest, other = other, nearest
                nearest = found[nearest] if nearest is not None else None
        found[node] = nearest
        depth[node] = depth[nearest] + 1
    return {node: nearest for node, nearest in found.items() if nearest is not None}


def _values_of(node: fx.Node) -> list[fx.Node]:
    """What a node takes, without the sizes, unless it takes nothing else."""
    return [i for i in node.all_input_nodes if not isinstance(VALUE.get(i), FACTS)] or node.all_input_nodes


class _Finder:
    """Finds the section that ends at a sum."""

    def __init__(self, graph: fx.Graph, weight: Mapping[fx.Node, int]) -> None:
        self.weight = weight
        self.constants = constant_nodes(graph)
        self.of_one_batch = _of_one_batch(graph)
        self.dominators = dominators(graph, self.constants)
        # what is made of sizes alone is as a constant, unless it is where a branch begins (queries, once per example)
        self.beside_sizes = dominators(graph, _of_sizes(graph))
        self.order = {n: i for i, n in enumerate(graph.nodes)}
        self.changes, self.unread = effects(graph), without_result(graph)
        self.changed = changed_later(graph.nodes)
        self.by_the_way = [n for n in graph.nodes if is_by_the_way(n) and not asserts(n)]

    def at(self, join: fx.Node) -> Section | None:
        """The section whose branch a sum adds to its shortcut, if it is one."""
        entries = dict.fromkeys((self.beside_sizes.get(join), self.dominators.get(join)))
        found = (self._between(entry, join) for entry in entries if isinstance(entry, fx.Node))
        return next((s for s in found if s is not None), None) or self._beside_others(join)

    def _beside_others(self, join: fx.Node) -> Section | None:
        """Where what one of both values is made of leads to the other, which takes values from elsewhere too: the time
        of a diffusion step, the memory of a decoder. What of these nothing else reads belongs to the branch."""
        for shortcut, last in (join.args[:2], join.args[1::-1]):
            assert isinstance(shortcut, fx.Node) and isinstance(last, fx.Node)
            entry, cheap = shortcut, set[fx.Node]()
            while not self._leads_to(entry, last):
                sources = [i for i in _values_of(entry) if i not in self.constants]
                if len(sources) != 1:
                    break
                cheap.add(entry)
                entry = sources[0]
            nodes = self._led_to(entry, last) if self._leads_to(entry, last) else set[fx.Node]()
            if nodes and self._is_section(join, shortcut, last, nodes, cheap):
                return Section("", join, entry, last, shortcut, frozenset(nodes))
        return None

    def _leads_to(self, first: fx.Node, last: fx.Node) -> bool:
        return bool(self.before[last] >> self.order[first] & 1)

    @cached_property
    def before(self) -> dict[fx.Node, int]:
        """For every node itself and those from which values lead to it: a bit for each, in the graph's order."""
        found: dict[fx.Node, int] = {}
        for node, number in self.order.items():
            found[node] = 1 << number
            for source in _values_of(node):
                found[node] |= found[source]
        return found

    def _led_to(self, first: fx.Node, last: fx.Node) -> set[fx.Node]:
        """What lies on the ways of values from a node to another, and what nothing but that reads."""
        seen: set[fx.Node] = set()
        stack = [last]
        while stack:
            node = stack.pop()
            if node not in seen and not self._leads_to(node, first):
                seen.add(node)
                stack += [*node.all_input_nodes, *self.changes.get(node, ())]
        found = sorted(seen, key=self.order.__getitem__)
        # where a size or type comes from is no way of values: what is asked of others is theirs
        nodes = {node for node in found if self._leads_to(first, node) and not isinstance(VALUE.get(node), FACTS)}
        for node in reversed(found):
            if node.op != "placeholder" and all(u in nodes or u in self.unread for u in node.users):
                nodes.add(node)
        return nodes

    def _between(self, entry: fx.Node, join: fx.Node) -> Section | None:
        a, b = join.args[0], join.args[1]
        assert isinstance(a, fx.Node) and isinstance(b, fx.Node)
        branches = [(x, self._branch(x, entry)) for x in (a, b)]
        branches.sort(key=lambda item: self._work(item[1]))
        (shortcut, cheap), (last, nodes) = branches
        if not self._is_section(join, shortcut, last, nodes, cheap):
            return None
        return Section("", join, entry, last, shortcut, frozenset(nodes))

    def _is_section(
        self, join: fx.Node, shortcut: fx.Node, last: fx.Node, nodes: set[fx.Node], cheap: set[fx.Node]
    ) -> bool:
        """Whether a branch of these nodes, that ends with `last`, may go where it is added to the shortcut."""
        if shortcut in self.of_one_batch or NO_GRAD.has(last) or last in self.changed:
            return False  # no gate at the last value makes zero what is written into it afterwards
        work = self._work(nodes)
        if not work or work <= self._work(cheap) or nodes & cheap:
            return False
        mode = PHASE.get(join)  # what the other mode reads is asked when the section of that is known
        leaves_only_by_exit = all(
            self._is_inside(n, u, nodes, {last: join}) or (mode is not None and PHASE.get(u, mode) != mode)
            for n in nodes
            for u in n.users
        )
        crosses = any(n.target in (region_input, region_output) for n in nodes)
        return leaves_only_by_exit and not crosses and not self._changes_for_others(nodes)

    def leaves_by_exits(self, section: Section) -> bool:
        """Whether nothing outside reads the values of a section but the sums at its ends, in both modes."""
        nodes = frozenset[fx.Node]().union(*(part.nodes for part in section.parts))
        exits = {part.exit: part.join for part in section.parts}
        return all(self._is_inside(n, u, nodes, exits) for n in nodes for u in n.users)

    def _is_inside(
        self, node: fx.Node, user: fx.Node, nodes: Container[fx.Node], exits: Mapping[fx.Node, fx.Node]
    ) -> bool:
        return user in nodes or user in self.unread or exits.get(node) is user

    def _changes_for_others(self, nodes: Container[fx.Node]) -> bool:
        """Whether nodes change a buffer for a module that has more to compute: then they stay when the section goes."""
        for node in self.by_the_way:
            path = path_of(node)
            if node in nodes and any(
                _within(n, path) for n in self.order if n.op.startswith("call") and n not in nodes
            ):
                return True
        return False

    def _work(self, nodes: Iterable[fx.Node]) -> int:
        return sum(self.weight.get(n, 0) for n in nodes)

    def _branch(self, last: fx.Node, entry: fx.Node) -> set[fx.Node]:
        """Everything between `entry` and `last`; parameters that it alone reads count too."""
        order, constants = self.order, self.constants
        nodes: set[fx.Node] = set()
        stack = [last]
        while stack:
            node = stack.pop()
            if node is entry or node in nodes or (order[node] < order[entry] and node not in constants):
                continue
            nodes.add(node)
            stack += [*node.all_input_nodes, *self.changes.get(node, ())]
        for node in sorted(nodes & constants, key=order.__getitem__, reverse=True):
            if any(u not in nodes and u not in self.unread for u in node.users):
                nodes.discard(node)
        return nodes


def _within(node: fx.Node, path: str) -> bool:
    return not path or f"{path_of(node)}.".startswith(f"{path}.")


def _named(sections: list[Section], weight: Mapping[fx.Node, int]) -> list[Section]:
    """Name each section after the module path that its weights share; where several share it, those of one layer after
    that layer."""
    bases = [_base(section) for section in sections]
    several = {base for base, count in Counter(bases).items() if count > 1}
    result: list[Section] = []
    seen: Counter[str] = Counter()
    for section, base in zip(sections, bases, strict=True):
        layers = [str(n.target) for n in section.nodes if n.op == "call_module" and weight.get(n)]
        base = layers[0] if base in several and len(layers) == 1 else base
        base = ".".join(filter(None, (base, "section")))
        seen[base] += 1
        name = base if seen[base] == 1 else f"{base}#{seen[base]}"
        result.append(replace(section, name=name))
    return result


def _in_streams(sections: list[Section], weight: Mapping[fx.Node, int]) -> tuple[Section, ...]:
    """Number the streams: a section continues that of the sums that its shortcut leads to past no weights."""
    number_at: dict[fx.Node, int] = {}
    result: list[Section] = []
    for number, section in enumerate(sections):
        stack, seen, stream = [section.shortcut], set[fx.Node](), number
        while stack:
            node = stack.pop()
            if node in seen or weight.get(node, 0):
                continue
            seen.add(node)
            if node not in number_at:
                stack += node.all_input_nodes
            elif value_of(node).shape == value_of(section.join).shape:
                stream = min(stream, number_at[node])
        number_at |= {part.join: stream for part in section.parts}
        result.append(replace(section, stream=stream))
    return tuple(result)


def _base(section: Section) -> str:
    """The path of the innermost container that holds all modules of a section."""
    paths = [str(n.target).split(".") for n in section.nodes if n.op == "call_module"]
    levels = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))
    common = [names[0] for names in levels]
    return ".".join(common[:-1] if len(paths) == 1 else common)
