"""Products of values, summed over some axes: matmul, einsum, attention.

Every axis has a letter, as in `torch.einsum`. Units along a summed axis are coupled, and have to be zero when dead;
units along an axis that both factors keep (a batch of heads) are coupled; units along an axis of one factor pass on.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.label_arrays import Labels, along, frozen
from fxcat.passes.graph.meta import path_of, value_of
from fxcat.passes.rules.base import Moved, Replacement, Rule, Zero
from fxcat.passes.rules.execute import counted_macs
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.layouts import empty
from fxcat.passes.rules.table import rule
from fxcat.passes.rules.terms import Contraction, Term, per_entry

BATCH = "abcdefgh"
_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


@dataclass(frozen=True, slots=True)
class Factor:
    """A value in a product: a letter for each axis, labels of those with units, its shape, and the node that is zero
    where it is; a weight is not. Only a weight has units along several axes."""

    letters: str
    lines: Mapping[str, torch.Tensor]
    shape: tuple[int, ...]
    source: fx.Node | None
    is_weight: bool = False
    one: tuple[int, ...] | None = None
    """Its shape for a batch of one, where it has a batch."""

    def size(self, letter: str) -> int:
        """Length of an axis; 1 if there is none."""
        return self.shape[self.letters.index(letter)] if letter in self.letters else 1

    def size_of_one(self, letter: str) -> int:
        """Length of an axis for a batch of one; 1 if there is none."""
        shape = self.shape if self.one is None else self.one
        return shape[self.letters.index(letter)] if letter in self.letters else 1

    def leads(self, letter: str) -> bool:
        """Whether it is the first axis of a value that is no weight."""
        return not self.is_weight and letter == self.letters[:1]


def weight_factor(flow: Flow, node: fx.Node, letters: str) -> Factor:
    """A weight: it has units along every axis."""
    lines = {x: line for x, line in zip(letters, flow.lines(node), strict=True) if line is not None}
    return Factor(letters, lines, tuple(value_of(node).shape), None, is_weight=True, one=tuple(flow.one(node).shape))


def factors_of(flow: Flow, operands: Sequence[tuple[fx.Node, str]], result: str) -> list[Factor]:
    """The values in a product, which has these letters."""
    preferred = _preferred([(letters, value_of(node).shape) for node, letters in operands], result)
    return [
        weight_factor(flow, node, letters)
        if node in flow.of_weights
        else factor(flow, flow.of(node), letters, tuple(value_of(node).shape), node, preferred, flow.one(node).shape)
        for node, letters in operands
    ]


def _preferred(factors: Sequence[tuple[str, Sequence[int]]], result: str) -> list[str]:
    """Letters along which units may stay: first those that several factors have, of these shapes."""
    shapes = [dict(zip(letters, shape, strict=True)) for letters, shape in factors]
    return [x for x in result if sum(s.get(x, 1) > 1 for s in shapes) > 1] + list(result)


def factor(
    flow: Flow,
    labels: torch.Tensor,
    letters: str,
    shape: tuple[int, ...],
    source: fx.Node | None,
    preferred: Sequence[str],
    one: tuple[int, ...],
) -> Factor:
    """A value with units along one axis; where they vary along several, the first preferred letter stays."""
    varying = [x for x, size in zip(letters, labels.shape, strict=True) if size > 1]
    if not varying:
        return Factor(letters, {}, shape, source, one=one)
    letter = next((x for x in preferred if x in varying), varying[0])
    first = labels
    for axis, other in enumerate(letters):
        first = first.narrow(axis, 0, 1) if other != letter else first
    flow.unite(labels, first)
    return Factor(letters, {letter: first.reshape(-1)}, shape, source, one=one)


def multiply(flow: Flow, node: fx.Node, factors: Sequence[Factor], result: str) -> tuple[torch.Tensor, Contraction]:
    """Labels of a sum of products over all letters that are not in `result`, and what else follows from them."""
    found: dict[str, list[tuple[Factor, torch.Tensor]]] = {}
    for item in factors:
        for letter, labels in item.lines.items():
            found.setdefault(letter, []).append((item, labels))
    known: dict[str, torch.Tensor] = {}
    lacking = {x for x, holders in found.items() if len(holders) < sum(f.size(x) > 1 for f in factors)}
    for letter, holders in found.items():
        known[letter] = holders[0][1]
        for _, labels in holders[1:]:
            flow.unite(labels, known[letter])
        if letter in lacking:
            _freeze_unless_weight(flow, node, holders, "an axis with units meets one without")
        if letter not in result and all(f.is_weight for f, _ in holders):
            flow.freeze_if_units(known[letter], node, "units that a product of weights sums over")
        if any(f.is_weight for f, _ in holders) and (letter == result[:1] or any(f.leads(letter) for f, _ in holders)):
            _freeze_unless_weight(flow, node, holders, "units along the first axis of a value, which is no batch")
    # what a value has stays rather than what a weight makes; of values the longest axis, of a weight the first (heads)
    made = {x for x in known if all(f.is_weight for f, _ in found[x])}
    kept = [x for x in result if x in known]
    kept.sort(key=lambda x: (x in lacking, x in made, x == result[0] if x in made else -len(known[x])))
    for letter in kept[1:]:
        _freeze_unless_weight(flow, node, found[letter], "the product of two values that both have units")
        del known[letter]
    labels = frozen((1,) * len(result))
    carriers: tuple[fx.Node, ...] = ()
    if kept:
        holders = found[kept[0]]
        labels = along(known[kept[0]], result.index(kept[0]), len(result))
        carriers = tuple(f.source for f, _ in holders if f.source is not None)
        if kept[0] in made:
            flow.unite(known[kept[0]], flow.fresh(len(known[kept[0]]), path_of(node)))
    summed = [next((f.source for f, _ in h if not f.is_weight), None) for x, h in found.items() if x not in result]
    mixed = tuple(source for source in summed if source is not None)
    return labels, Contraction(multiplied(factors, known), mixed, carriers)


def multiplied(factors: Sequence[Factor], known: Mapping[str, torch.Tensor]) -> tuple[Term, ...]:
    """The cost of a product in which these letters have units."""
    letters = dict.fromkeys("".join(f.letters for f in factors))
    return (per_entry(math.prod(max(f.size_of_one(x) for f in factors) for x in letters), tuple(known.values())),)


def _freeze_unless_weight(
    flow: Flow, node: fx.Node, holders: Sequence[tuple[Factor, torch.Tensor]], reason: str
) -> None:
    """Freeze an axis. That a weight alone has is told only if it has units elsewhere."""
    if all(f.is_weight for f, _ in holders):
        flow.freeze_if_units(holders[0][1], node, reason)
    else:
        flow.freeze(holders[0][1], node, reason)


class Product(Rule):
    """Base of the rules below."""

    zero = Zero.ANY

    def operands(self, node: fx.Node) -> tuple[Sequence[tuple[fx.Node, str]], str] | None:
        """The values that are multiplied, with letters for their axes, and those of the result; None if that is more
        than letters say."""
        raise NotImplementedError

    def product(self, flow: Flow, node: fx.Node) -> tuple[torch.Tensor, Contraction]:
        """Labels and facts, from `multiply`."""
        found = self.operands(node)
        if found is None:
            for source in node.all_input_nodes:
                flow.freeze(flow.values[source], node, "a product that is more than letters say")
            return frozen((1,) * value_of(node).dim()), Contraction(None, (), ())
        labels, facts = multiply(flow, node, factors_of(flow, *found), found[1])
        if any(len(letters) == 1 for _, letters in found[0]) and not counted_macs(node, flow.root):
            facts = replace(facts, terms=())  # PyTorch counts few of the products with a vector
        return labels, facts

    def weights(self, node: fx.Node) -> tuple[fx.Node, ...]:
        found = self.operands(node)
        return () if found is None else tuple(n for n, _ in found[0])

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels, flow.contractions[node] = self.product(flow, node)
        return labels

    def macs(self, flow: Flow, node: fx.Node) -> tuple[Term, ...] | None:
        return flow.contractions[node].terms

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return flow.contractions[node].mixed

    def carriers(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return flow.contractions[node].carriers


@rule(
    *(torch.matmul, operator.matmul, "matmul", torch.bmm, "bmm", torch.mm, "mm"),
    *(torch.mv, "mv", torch.dot, "dot", torch.vdot, "vdot"),
)
class Matmul(Product):
    """matmul, bmm, mm, mv, dot: the last two axes are multiplied, those before are a batch."""

    def operands(self, node: fx.Node) -> tuple[Sequence[tuple[fx.Node, str]], str]:
        a, b = node.all_input_nodes if len(node.all_input_nodes) == 2 else node.all_input_nodes * 2
        return _multiplied_matrices(a, b)

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Of two batches of matrices that fit."""
        if kwargs or len(args) != 2 or not all(isinstance(a, torch.Tensor) and a.dim() > 1 for a in args):
            return None
        a, b = args
        fits = a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2] and a.dtype == b.dtype
        return empty((*a.shape[:-1], b.shape[-1]), a) if fits else None

    def product(self, flow: Flow, node: fx.Node) -> tuple[torch.Tensor, Contraction]:
        labels, found = super().product(flow, node)
        by_vector = value_of(node.all_input_nodes[-1]).dim() == 1  # which torch does not count
        return labels, replace(found, terms=()) if by_vector else found


def _multiplied_matrices(a: fx.Node, b: fx.Node) -> tuple[Sequence[tuple[fx.Node, str]], str]:
    """Letters of a product of matrices, vectors, or batches of them."""
    ranks = value_of(a).dim(), value_of(b).dim()
    rank = max(0, *(r - 2 for r in ranks))
    first = BATCH[rank - max(0, ranks[0] - 2) : rank] + ("xs" if ranks[0] > 1 else "s")
    second = BATCH[rank - max(0, ranks[1] - 2) : rank] + ("sy" if ranks[1] > 1 else "s")
    result = BATCH[:rank] + ("x" if ranks[0] > 1 else "") + ("y" if ranks[1] > 1 else "")
    return ((a, first), (b, second)), result


@rule(torch.addmm, "addmm", torch.baddbmm, "baddbmm")
class ShiftedMatmul(Product):
    """addmm and baddbmm: a product of matrices, and what is added to it."""

    zero = Zero.BREAKS

    def operands(self, node: fx.Node) -> tuple[Sequence[tuple[fx.Node, str]], str]:
        given = arguments(node, *_SHIFTED)
        a, b = (given[name] for name in ("mat1", "mat2")) if "mat1" in given else (given["batch1"], given["batch2"])
        return _multiplied_matrices(a, b)

    def product(self, flow: Flow, node: fx.Node) -> tuple[torch.Tensor, Contraction]:
        labels, found = super().product(flow, node)
        shift = arguments(node, *_SHIFTED)["input"]
        own = flow.of(shift)
        own = own.reshape((1,) * (labels.dim() - own.dim()) + tuple(own.shape))
        sizes = (1,) * (labels.dim() - value_of(shift).dim()) + tuple(value_of(shift).shape)
        full = value_of(node).shape
        if any(n < m and units > 1 for n, m, units in zip(sizes, full, labels.shape, strict=True)):
            flow.freeze(own, node, "added to many units at once")
        else:
            flow.unite(labels, own)
        return labels, found

    def carriers(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return ()


_SHIFTED = ("input", "mat1", "mat2")


@rule(torch.einsum)
class Einsum(Product):
    """einsum of two values with an explicit result; what has an ellipsis, a diagonal or more values is frozen."""

    def operands(self, node: fx.Node) -> tuple[Sequence[tuple[fx.Node, str]], str] | None:
        equation, *operands = node.args
        if len(operands) == 1 and isinstance(operands[0], tuple | list):
            operands = list(operands[0])
        left, arrow, result = str(equation).replace(" ", "").partition("->")
        parts = left.split(",")
        plain = arrow and "." not in left and all(len(set(p)) == len(p) for p in parts)
        pairs: Any = list(zip(operands, parts, strict=True)) if plain and len(parts) == 2 else None
        return None if pairs is None else (pairs, result)

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Of two plain values of one type: the meta kernel takes them apart and puts them together."""
        equation, *values = args
        left, arrow, result = equation.replace(" ", "").partition("->") if isinstance(equation, str) else ("", "", "")
        parts = left.split(",")
        if not arrow or "." in left + result or len(parts) != 2 or len(values) != 2:
            return None
        sizes: dict[str, int] = {}
        for value, letters in zip(values, parts, strict=True):
            if not isinstance(value, torch.Tensor) or value.dim() != len(letters) or value.dtype != values[0].dtype:
                return None
            if any(sizes.setdefault(x, n) != n for x, n in zip(letters, value.shape, strict=True)):
                return None
        fits = len(set(result)) == len(result) and set(result) <= sizes.keys()
        return empty([sizes[x] for x in result], values[0]) if fits and not kwargs else None


@rule(F.scaled_dot_product_attention)
class Attention(Product):
    """softmax(q kᵀ · scale) v. The axes before the last two are a batch (heads); a head goes as a whole."""

    def operands(self, node: fx.Node) -> None:
        return None

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Of plain heads, of as many keys as values."""
        if len(args) < 3 or kwargs.get("enable_gqa") or len({(t.dim(), t.shape[:-2], t.dtype) for t in args[:3]}) > 1:
            return None
        q, k, v = args[:3]
        fits = q.dim() > 2 and q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2]
        return empty((*q.shape[:-1], v.shape[-1]), q) if fits else None

    def product(self, flow: Flow, node: fx.Node) -> tuple[torch.Tensor, Contraction]:
        q, k, v, mask = (arguments(node, *_ATTENTION).get(n) for n in ("query", "key", "value", "attn_mask"))
        assert isinstance(q, fx.Node) and isinstance(k, fx.Node) and isinstance(v, fx.Node)
        rank = value_of(node).dim()
        batch = BATCH[: rank - 2]

        def letters(operand: fx.Node, ends: str) -> str:
            return batch[rank - value_of(operand).dim() :] + ends

        queries, keys = factors_of(flow, ((q, letters(q, "xs")), (k, letters(k, "ys"))), batch + "xy")
        scores, first = multiply(flow, node, (queries, keys), batch + "xy")
        if isinstance(mask, fx.Node):
            _meet(flow, node, scores, mask)
        shape = (*(max(queries.size(x), keys.size(x)) for x in batch), queries.size("x"), keys.size("y"))
        given, ends = tuple(value_of(v).shape), batch + "xz"
        preferred = _preferred(((batch + "xy", shape), (letters(v, "yz"), given)), ends)
        one = tuple(max(queries.size_of_one(x), keys.size_of_one(x)) for x in batch + "xy")
        weights = factor(flow, scores, batch + "xy", shape, None, preferred, one)
        values = factor(flow, flow.of(v), letters(v, "yz"), given, v, preferred, flow.one(v).shape)
        labels, second = multiply(flow, node, (weights, values), ends)
        terms = (*(first.terms or ()), *(second.terms or ()))
        return labels, Contraction(terms, first.mixed + second.mixed, second.carriers)

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        value: Any = arguments(node, *_ATTENTION)["value"]
        return (value,)

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        given = arguments(node, *_ATTENTION)
        query: Any = given.pop("query")
        if given.get("scale") is None:
            given["scale"] = value_of(query).shape[-1] ** -0.5
        return Replacement((query, given.pop("key"), given.pop("value")), given)


def _meet(flow: Flow, node: fx.Node, scores: torch.Tensor, mask: fx.Node) -> None:
    """A mask has the heads of the scores, or is the same for all of them."""
    labels = flow.of(mask)
    pad = (1,) * (scores.dim() - labels.dim())
    shape, labels = (*pad, *value_of(mask).shape), labels.reshape(*pad, *labels.shape)
    if any(own > 1 and other > 1 for own, other in zip(scores.shape, shape, strict=True)):
        flow.unite(scores, labels)
    elif labels.numel() > 1:
        flow.freeze(labels, node, "a mask with units where the scores have none")


def whole_slices(
    flow: Flow, node: fx.Node, *axes: int, reason: str = "units along an axis whose elements are mixed"
) -> torch.Tensor:
    """Labels of an op that mixes what lies along some axes: others may have units, those may not."""
    labels = flow.of(node.all_input_nodes[0])
    first = labels
    for axis in axes:
        first = first.narrow(axis, 0, 1)
    if first.shape == labels.shape:
        return labels
    flow.unite(labels, first)
    if first.numel() == 1:
        flow.freeze(labels, node, reason)
    return first


@rule(F.normalize)
class Normalize(Rule):
    """F.normalize. Entries that are zero add nothing to a norm; units along other axes too go as whole slices."""

    zero = Zero.PRESERVES

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return flow.of(node.all_input_nodes[0]) if self._counts(flow, node) else whole_slices(flow, node, *_dims(node))

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0],) if self._counts(flow, node) else ()

    @staticmethod
    def _counts(flow: Flow, node: fx.Node) -> bool:
        """Whether all units lie along one of the axes, and the norm is a sum over its entries."""
        labels = flow.of(node.all_input_nodes[0])
        power: Any = arguments(node).get("p", 2.0)
        return any(labels.shape[d] == labels.numel() > 1 for d in _dims(node)) and power >= 1


def _dims(node: fx.Node) -> tuple[int, ...]:
    """The axes over which F.normalize takes the norm."""
    given: Any = arguments(node).get("dim", 1)
    return tuple(given) if isinstance(given, tuple | list) else (given,)
