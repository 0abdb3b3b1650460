"""What goes together: labels that producers own, and which of them are united with each other or frozen.

It grows while rules run and while chains are settled; `resolve_units` reads it off. Nothing after that asks it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx

from fxcat.passes.graph.label_arrays import FROZEN, Integers, Labels, join, leaves, place


@dataclass(frozen=True, slots=True)
class Block:
    """A run of labels that one producer owns: `count` labels from `start`."""

    start: int
    count: int
    owner: str
    producer: bool


@dataclass(frozen=True, slots=True)
class Freeze:
    """Why some labels are frozen. `besides`: only to be told where that has no other reason."""

    labels: torch.Tensor
    where: str
    reason: str
    besides: bool = False


@dataclass(slots=True)
class Unions:
    """Labels 1 to `count` - 1 in blocks, pairs of them that are united, and those that are united with `FROZEN`."""

    count: int = 1
    blocks: list[Block] = field(default_factory=list[Block])
    freezes: list[Freeze] = field(default_factory=list[Freeze])
    _left: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    _right: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    _roots: Integers = field(default_factory=lambda: np.zeros(1, dtype=np.int32))
    _joined: int = 0
    """So many of the pairs `_roots` knows of: who asks again pays for the new ones alone."""

    def fresh(self, count: int, owner: str, *, producer: bool = True) -> torch.Tensor:
        """`count` new labels, 1-D. Labels that no producer (a contraction) owns or joins are not units."""
        self.blocks.append(Block(self.count, count, owner, producer))
        self.count += count
        return torch.arange(self.count - count, self.count, dtype=torch.int32)

    def unite(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """What `a` and `b` (broadcastable to each other) label at the same place goes together."""
        if a is b:
            return
        a, b = torch.broadcast_tensors(a, b)
        self._left.append(a.reshape(-1))
        self._right.append(b.reshape(-1))

    def freeze(self, labels: Labels, where: str | fx.Node, reason: str, *, besides: bool = False) -> None:
        """These labels are never removed."""
        for tensor in leaves(labels):
            live = tensor.reshape(-1)
            live = live[live != FROZEN]
            if live.numel():
                self.freezes.append(Freeze(live, where if isinstance(where, str) else place(where), reason, besides))
                self.unite(live, torch.zeros_like(live))

    def freeze_block(self, block: Block, reason: str) -> None:
        """Freeze all labels of a producer."""
        self.freeze(torch.arange(block.start, block.start + block.count, dtype=torch.int32), block.owner, reason)

    def has_producer(self, labels: torch.Tensor) -> bool:
        """Whether a producer owns some of these labels, and not parameters and buffers, which are read as values."""
        starts = torch.tensor([block.start for block in self.blocks])
        owners = torch.searchsorted(starts, labels[labels != FROZEN].unique(), right=True) - 1
        return any(self.blocks[i].producer for i in owners.unique().tolist())

    def roots(self, *, frozen: bool = True) -> Integers:
        """For every label the smallest label united with it (so 0 for the frozen). `frozen`: whether what is frozen
        counts as united."""
        if not frozen:
            parent = np.arange(self.count, dtype=np.int32)
            self._join(parent, 0, frozen=False)
            return parent
        self._roots = np.concatenate([self._roots, np.arange(len(self._roots), self.count, dtype=np.int32)])
        self._join(self._roots, self._joined, frozen=True)
        self._joined = len(self._left)
        return self._roots.copy()

    def _join(self, parent: Integers, start: int, *, frozen: bool) -> None:
        """Unite the pairs from `start` on."""
        pending = 0
        for i in range(start, len(self._left)):
            pending += self._left[i].numel()
            if pending >= CHUNK or i == len(self._left) - 1:
                left, right = (torch.cat(side[start : i + 1]).numpy() for side in (self._left, self._right))
                if not frozen:
                    left, right = (side[(left != FROZEN) & (right != FROZEN)] for side in (left, right))
                join(parent, left, right)
                start, pending = i + 1, 0

    def unit_roots(self) -> tuple[Integers, np.ndarray[Any, np.dtype[np.bool_]]]:
        """The roots, and which of them are units, as far as is known by now: not frozen, and a producer's."""
        roots = self.roots()
        are_units = np.zeros(self.count, dtype=bool)
        for block in self.blocks:
            if block.producer:
                are_units[roots[block.start : block.start + block.count]] = True
        are_units[FROZEN] = False
        return roots, are_units

    def has_units(self, labels: torch.Tensor) -> bool:
        """Whether there are units among labels, as far as is known by now."""
        if not bool((labels != FROZEN).any()):
            return False
        roots, are_units = self.unit_roots()
        return bool(are_units[roots[labels.reshape(-1).numpy()]].any())


CHUNK = 1 << 15
"""How many pairs of labels are united at once: enough to be fast, few enough to need little memory."""
