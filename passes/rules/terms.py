"""What ops cost, and what is known about products: what rules say of these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx


@dataclass(frozen=True, slots=True)
class Term:
    """MACs of one op for one example: `coefficient` × the live entries of each axis (1-D labels) in `factors`."""

    coefficient: int
    factors: tuple[torch.Tensor, ...]


def per_entry(macs: int, factors: Sequence[torch.Tensor]) -> Term:
    """The term of so many multiply-adds in all.

    Where an axis with units holds a batch too (heads that were folded into it), it is taken for one example.
    """
    factors = tuple(factors)
    width = math.prod(f.numel() for f in factors)
    repeated = width // math.gcd(macs, width) if width else 1
    for i, labels in enumerate(factors):
        if repeated > 1 and bool((labels.unique(return_counts=True)[1] % repeated == 0).all()):
            return Term(macs * repeated // width, (*factors[:i], labels.sort().values[::repeated], *factors[i + 1 :]))
    return Term(-(-macs // max(1, width)), factors)


@dataclass(frozen=True, slots=True)
class Contraction:
    """What is known about a product of two values, summed over some axes.

    `terms`: its cost; None has it counted, where all units are frozen. `mixed`: the inputs that must be zero where a
    unit is dead, since the sum runs over units. `carriers`: the inputs that make the result zero where a unit is dead.
    """

    terms: tuple[Term, ...] | None
    mixed: tuple[fx.Node, ...]
    carriers: tuple[fx.Node, ...]
