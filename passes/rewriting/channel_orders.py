"""An order of channels in which shuffles have nothing left to do.

In: the lines of channels of a graph, and its shuffles. Out: a rank for every label that meets a shuffle. Every axis of
a value, and of a parameter, that carries such labels is to be sorted by rank: that makes a shuffle the identity, and
changes nothing for an op that treats channels alike (`Rule.equivariant`).

The rank has to suit the other ops. What a split cuts off must lie together, so the labels of its pieces follow each
other; where an op minds the order of its channels, that stays. These are edges between labels, which are sorted
topologically. The parts of a concatenation follow each other if that is possible.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

import networkx as nx
import numpy as np
from torch import fx

from fxcat.passes.graph.label_arrays import FROZEN, Integers, place
from fxcat.passes.graph.meta import VALUE
from fxcat.passes.nodes.effects import FACTS
from fxcat.passes.rewriting.channel_lines import ChannelLines
from fxcat.passes.rewriting.permutations import Shuffle


class ChannelOrders:
    """`reasons`: for components of labels that must stay in their order, where and why."""

    def __init__(self, lines: ChannelLines, unwanted: Sequence[Shuffle], others: Sequence[Shuffle]) -> None:
        """`unwanted`: shuffles that are to go; `others`: those that may, where they stand between these."""
        self.lines = lines
        self.reasons: dict[int, str] = {}
        self._rank = np.arange(len(lines.component), dtype=np.int32)
        self.wanted = {c for c in map(self.component, unwanted) if c is not None}
        shuffles = (*unwanted, *others)
        for shuffle in shuffles:
            if self.component(shuffle) not in self.wanted:
                self.refuse(self.wanted & lines.met(shuffle.node).keys(), "other channels move with them", shuffle.node)
        shuffled = {s.node for s in shuffles}
        self.concerned = [n for n in lines.of if n not in shuffled and not self.wanted.isdisjoint(lines.met(n))]
        """The nodes, but for shuffles, that read or give what is to be sorted."""
        before = {c: _Before(lines.members(c)) for c in self.wanted}
        for node in self.concerned:
            self._say(node, before)
        for component in self.wanted - self.reasons.keys():
            order = before[component].sorted()
            if order is None:
                self.refuse(
                    (component,), "what is cut off, and ops that mind the order of channels, contradict each other"
                )
            else:
                self._rank[order] = np.arange(len(order), dtype=np.int32)

    def component(self, shuffle: Shuffle) -> int | None:
        """That of the labels that a shuffle moves; None if it moves others than units, or more."""
        line = self.lines.of[shuffle.source][0]
        if line is None or not line.is_whole or line.axis != shuffle.axis or FROZEN in line.labels:
            return None
        return int(self.lines.component[line.labels[0]])

    def refuse(self, components: Collection[int], reason: str, node: fx.Node | None = None) -> None:
        """These labels stay in their order."""
        for component in components:
            self.reasons.setdefault(component, reason if node is None else f"{place(node)}: {reason}")

    def goes(self, shuffle: Shuffle) -> bool:
        """Whether nothing is left of a shuffle."""
        component = self.component(shuffle)
        return component is not None and component not in self.reasons

    def sorting(self, labels: Integers) -> Integers | None:
        """Of an axis with these labels, by rank: new[i] = old[order[i]]; None if it stays as it is."""
        moving = labels[labels != FROZEN]
        component = int(self.lines.component[moving[0]]) if len(moving) else FROZEN
        if component not in self.wanted or component in self.reasons:
            return None
        return np.argsort(self._rank[labels], kind="stable").astype(np.int32)

    def _say(self, node: fx.Node, before: dict[int, _Before]) -> None:
        """What a node asks of the order."""
        met = {c: lines for c, lines in self.lines.met(node).items() if c in self.wanted}
        for component, lines in met.items():
            if not all(line.is_whole for line in lines):
                self.refuse((component,), "units along several axes", node)
            elif any(FROZEN in line.labels for line in lines):
                self.refuse((component,), "beside them lies what is no unit", node)
        met = {c: lines for c, lines in met.items() if c not in self.reasons}
        rule = self.lines.flow.rules.get(node)
        if not met or _minds_no_order(node) or (rule is not None and rule.equivariant_at(self.lines.flow, node)):
            return
        for component, lines in met.items():
            if rule is None or not rule.movement:
                for line in lines:
                    before[component].keep(line.labels)
        if rule is not None and rule.movement:
            for component, pieces, is_needed in self._cut(node, met):
                before[component].follow(pieces, is_needed=is_needed)

    def _cut(self, node: fx.Node, met: Collection[int]) -> Iterator[tuple[int, list[Integers], bool]]:
        """Which pieces of its channels a movement takes apart, which must lie together, or puts together."""
        found = [line for n in node.all_input_nodes for line in self.lines.of.get(n, ()) if line is not None]
        entering = [line for line in found if line.is_whole]
        if not entering:
            return
        ends = np.cumsum([len(line.labels) for line in entering])
        labels = np.concatenate([line.labels for line in entering])
        for moved in self.lines.moved(node):
            if sum(size > 1 for size in moved.shape) != 1:
                continue
            taken = _runs(moved.numpy().reshape(-1))
            sources = np.searchsorted(ends, [first for first, _ in taken], side="right")
            component = int(self.lines.component[labels[taken[0][0]]]) if taken else FROZEN
            if component not in met:
                continue
            if len(taken) == 1:
                (first, last), line = taken[0], entering[sources[0]]
                start = int(ends[sources[0]]) - len(line.labels)
                yield component, np.split(line.labels, [first - start, last - start]), True
            elif len(taken) == len(set(sources.tolist())):
                yield component, [labels[first:last] for first, last in taken], False


def _minds_no_order(node: fx.Node) -> bool:
    """Whether a node is a parameter, or asks for sizes, types and devices only."""
    return node.op == "get_attr" or isinstance(VALUE.get(node), FACTS)


def _runs(numbers: Integers) -> list[tuple[int, int]]:
    """First and last (excluded) of each stretch of ascending numbers; what repeats counts once."""
    kept = numbers[np.concatenate([[True], numbers[1:] != numbers[:-1]])]
    starts = np.flatnonzero(np.concatenate([[True], kept[1:] != kept[:-1] + 1]))
    stops = np.append(starts[1:], len(kept))
    return [(int(kept[a]), int(kept[b - 1]) + 1) for a, b in zip(starts, stops, strict=True) if kept[a] >= 0]


class _Before:
    """Which labels have to come before others. Between two sets lies a node of its own, so that few edges suffice."""

    def __init__(self, labels: Sequence[int]) -> None:
        self._graph: nx.DiGraph[int] = nx.DiGraph()
        self._graph.add_nodes_from(labels)
        self._between = 0
        self._wished: list[list[Integers]] = []

    def keep(self, labels: Integers) -> None:
        """These follow each other as they do."""
        self._graph.add_edges_from((a, b) for a, b in pairwise(labels.tolist()) if a != b)

    def follow(self, pieces: Sequence[Integers], *, is_needed: bool) -> None:
        """All of a piece comes before all of the next one; else, if it can be."""
        if is_needed:
            self._add(pieces)
        else:
            self._wished.append(list(pieces))

    def sorted(self) -> list[int] | None:
        """An order, as near to that of the labels as can be; None if there is none."""
        if not nx.is_directed_acyclic_graph(self._graph):
            return None
        for pieces in self._wished:
            tried = self._graph.copy()
            self._add(pieces)
            if not nx.is_directed_acyclic_graph(self._graph):
                self._graph = tried
        order = nx.lexicographical_topological_sort(self._graph)
        return [label for label in order if label >= 0]

    def _add(self, pieces: Sequence[Integers]) -> None:
        for left, right in pairwise([p for p in pieces if len(p)]):
            self._between -= 1
            self._graph.add_edges_from((a, self._between) for a in left.tolist())
            self._graph.add_edges_from((self._between, b) for b in right.tolist())
