"""Products of values, summed over some axes: matmul, einsum, attention.

Every axis has a letter, as in `torch.einsum`. Units along a summed axis are coupled, and have to be zero when dead;
units along an axis that both factors keep (a batch of heads) are coupled; units along an axis of one factor pass on.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx

from fxcat.passes.arguments import arguments
from fxcat.passes.arrays import along, frozen
from fxcat.passes.rules.table import Contraction, Labels, Moved, Replacement, Rule, Term, Zero, rule

if TYPE_CHECKING:
    from fxcat.passes.labels import Flow

BATCH = "abcdefgh"
_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


@dataclass(frozen=True, slots=True)
class Factor:
    """A value in a product: a letter for each axis, its labels and shape, and the node that is zero where it is."""

    letters: str
    labels: torch.Tensor
    shape: tuple[int, ...]
    source: fx.Node | None

    def size(self, letter: str) -> int:
        """Length of an axis; 1 if there is none."""
        return self.shape[self.letters.index(letter)] if letter in self.letters else 1


def factor(flow: Flow, node: fx.Node, letters: str) -> Factor:
    """A node's value."""
    return Factor(letters, flow.of(node), tuple(node.meta["value"].shape), node)


def multiply(flow: Flow, node: fx.Node, factors: Sequence[Factor], result: str) -> tuple[torch.Tensor, Contraction]:
    """Labels of a sum of products over all letters that are not in `result`, and what else follows from them."""
    sizes = {x: max(f.size(x) for f in factors) for f in factors for x in f.letters}
    shared = {x for x in sizes if sum(f.size(x) > 1 for f in factors) > 1}
    found: dict[str, list[tuple[Factor, torch.Tensor]]] = {}
    for item in factors:
        letter, labels = _one_letter(flow, item, [x for x in result if x in shared] + list(result))
        if letter:
            found.setdefault(letter, []).append((item, labels))
    known: dict[str, torch.Tensor] = {}
    for letter, holders in found.items():
        known[letter] = holders[0][1]
        for _, labels in holders[1:]:
            flow.unite(labels, known[letter])
        if len(holders) < sum(f.size(letter) > 1 for f in factors):
            flow.freeze(known[letter], node, "an axis with units meets one without")
    kept = sorted((x for x in result if x in known), key=lambda x: -sizes[x])
    for letter in kept[1:]:
        flow.freeze(known.pop(letter), node, "the product of two values that both have units")
    count = 1
    for letter, size in sizes.items():
        count *= 1 if letter in known else size
    labels = frozen((1,) * len(result))
    carriers: tuple[fx.Node, ...] = ()
    if kept:
        labels = along(known[kept[0]], result.index(kept[0]), len(result))
        carriers = tuple(f.source for f, _ in found[kept[0]] if f.source is not None)
    mixed = tuple(h[0][0].source for x, h in found.items() if x not in result and h[0][0].source is not None)
    return labels, Contraction((Term(max(1, count // flow.batch), tuple(known.values())),), mixed, carriers)


def _one_letter(flow: Flow, item: Factor, preferred: Sequence[str]) -> tuple[str, torch.Tensor]:
    """The only letter along which a factor has units, with their labels; of several the first preferred one stays."""
    varying = [x for x, size in zip(item.letters, item.labels.shape, strict=True) if size > 1]
    if not varying:
        return "", item.labels
    letter = next((x for x in preferred if x in varying), varying[0])
    labels = item.labels
    for axis, other in enumerate(item.letters):
        labels = labels.narrow(axis, 0, 1) if other != letter else labels
    flow.unite(item.labels, labels)
    return letter, labels.reshape(-1)


class Product(Rule):
    """Base of the rules below."""

    zero = Zero.ANY

    def product(self, flow: Flow, node: fx.Node) -> tuple[torch.Tensor, Contraction]:
        """Labels and facts, from `multiply`."""
        raise NotImplementedError

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels, flow.contractions[node] = self.product(flow, node)
        return labels

    def macs(self, flow: Flow, node: fx.Node) -> tuple[Term, ...]:
        return flow.contractions[node].terms

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return flow.contractions[node].mixed

    def carriers(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return flow.contractions[node].carriers


@rule(torch.matmul, operator.matmul, "matmul", torch.bmm, "bmm", torch.mm, "mm")
class Matmul(Product):
    """matmul, bmm, mm: the last two axes are multiplied, those before are a batch."""

    def product(self, flow: Flow, node: fx.Node) -> tuple[torch.Tensor, Contraction]:
        a, b = node.all_input_nodes if len(node.all_input_nodes) == 2 else node.all_input_nodes * 2
        ranks = a.meta["value"].dim(), b.meta["value"].dim()
        rank = max(0, *(r - 2 for r in ranks))
        first = BATCH[rank - max(0, ranks[0] - 2) : rank] + ("xs" if ranks[0] > 1 else "s")
        second = BATCH[rank - max(0, ranks[1] - 2) : rank] + ("sy" if ranks[1] > 1 else "s")
        result = BATCH[:rank] + ("x" if ranks[0] > 1 else "") + ("y" if ranks[1] > 1 else "")
        return multiply(flow, node, (factor(flow, a, first), factor(flow, b, second)), result)


@rule(torch.einsum)
class Einsum(Product):
    """einsum of two values with an explicit result; what has an ellipsis, a diagonal or more values is frozen."""

    def product(self, flow: Flow, node: fx.Node) -> tuple[torch.Tensor, Contraction]:
        equation, *operands = node.args
        if len(operands) == 1 and isinstance(operands[0], tuple | list):
            operands = list(operands[0])
        left, arrow, result = str(equation).replace(" ", "").partition("->")
        parts = left.split(",")
        plain = arrow and "." not in left and all(len(set(p)) == len(p) for p in parts)
        if not plain or len(parts) != 2:
            for source in node.all_input_nodes:
                flow.freeze(flow.values[source], node, f"einsum {equation!r}")
            labels = frozen((1,) * node.meta["value"].dim())
            return labels, Contraction((), (), ())
        pairs: Any = zip(operands, parts, strict=True)
        return multiply(flow, node, [factor(flow, n, letters) for n, letters in pairs], result)


@rule(F.scaled_dot_product_attention)
class Attention(Product):
    """softmax(q kᵀ · scale) v. The axes before the last two are a batch (heads); a head goes as a whole."""

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Of plain heads, of as many keys as values."""
        if len(args) < 3 or kwargs.get("enable_gqa") or len({(t.dim(), t.shape[:-2], t.dtype) for t in args[:3]}) > 1:
            return None
        q, k, v = args[:3]
        fits = q.dim() > 2 and q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2]
        return q.new_empty((*q.shape[:-1], v.shape[-1])) if fits else None

    def product(self, flow: Flow, node: fx.Node) -> tuple[torch.Tensor, Contraction]:
        q, k, v, mask = (arguments(node, *_ATTENTION).get(n) for n in ("query", "key", "value", "attn_mask"))
        assert isinstance(q, fx.Node) and isinstance(k, fx.Node) and isinstance(v, fx.Node)
        batch = BATCH[: q.meta["value"].dim() - 2]
        queries, keys, values = (factor(flow, n, batch + x) for n, x in ((q, "xs"), (k, "ys"), (v, "yz")))
        scores, first = multiply(flow, node, (queries, keys), batch + "xy")
        if isinstance(mask, fx.Node):
            _meet(flow, node, scores, mask)
        shape = (*(max(queries.size(x), keys.size(x)) for x in batch), queries.size("x"), keys.size("y"))
        weights = Factor(batch + "xy", scores, shape, None)
        labels, second = multiply(flow, node, (weights, values), batch + "xz")
        return labels, Contraction(first.terms + second.terms, first.mixed + second.mixed, second.carriers)

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        value: Any = arguments(node, *_ATTENTION)["value"]
        return (value,)

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        given = arguments(node, *_ATTENTION)
        query: Any = given.pop("query")
        if given.get("scale") is None:
            given["scale"] = query.meta["value"].shape[-1] ** -0.5
        return Replacement((query, given.pop("key"), given.pop("value")), given)


def _meet(flow: Flow, node: fx.Node, scores: torch.Tensor, mask: fx.Node) -> None:
    """A mask has the heads of the scores, or is the same for all of them."""
    labels = flow.of(mask)
    pad = (1,) * (scores.dim() - labels.dim())
    shape, labels = (*pad, *mask.meta["value"].shape), labels.reshape(*pad, *labels.shape)
    if any(own > 1 and other > 1 for own, other in zip(scores.shape, shape, strict=True)):
        flow.unite(scores, labels)
    elif labels.numel() > 1:
        flow.freeze(labels, node, "a mask with units where the scores have none")


@rule(torch.softmax, F.softmax, "softmax", torch.log_softmax, F.log_softmax, "log_softmax", F.softmin)
class Softmax(Rule):
    """softmax, its logarithm, and softmin, over an axis without units."""

    zero = Zero.BREAKS

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        given: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        if given is None:  # the axis that torch chooses
            given = 0 if node.meta["value"].dim() in (0, 1, 3) else 1
        return whole_slices(flow, node, given)


@rule(torch.cumsum, "cumsum", torch.cumprod, "cumprod")
class Cumulative(Rule):
    """Sums and products of what comes before along an axis without units."""

    zero = Zero.PRESERVES

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return whole_slices(flow, node, arguments(node, "input", "dim")["dim"])


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
