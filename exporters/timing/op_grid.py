"""At which widths ops are measured, and what is known of each from that."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fxcat.network.cost_model import Axis
from fxcat.network.latency import OFFSETS, Instance, Kind, TimedOp

_OF_ONE = tuple(i / 8 for i in range(1, 9))
_OF_TWO = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
"""Widths of the grid as shares of the whole, for an op with one width, and for those with two."""
_PENALTY = 1.05
"""From this factor on widths are said to be penalised."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Milliseconds of an op by itself: of what computes it, of what brings its values into the order of elements that
    it needs and back (`layout`); `nodes`: how many nodes the runtime runs for it."""

    kernel: float
    layout: float
    nodes: int


@dataclass(frozen=True, slots=True)
class OpTable:
    """An op as it was measured: `widths` per axis, ascending, and over their grid, in the order of nested loops,
    milliseconds of the op, of changes of the order of elements, and how many nodes the runtime ran.

    `penalties`: per axis, how many times as long the op takes as those round it in the grid say, if its width is
    `OFFSETS` less than one of these; nothing where that was not measured. `rounding`: how many entries more it seems to
    compute there, from 0 to as many as there are less. `kind`: of the op. One with one width per axis lasts as long
    whatever its widths are.
    """

    widths: tuple[tuple[int, ...], ...]
    kernel: tuple[float, ...]
    layout: tuple[float, ...]
    nodes: tuple[int, ...]
    penalties: tuple[tuple[float, ...], ...] = ()
    rounding: tuple[tuple[float, ...], ...] = ()
    kind: Kind = "product"


@dataclass(frozen=True, slots=True)
class Trial:
    """What is to be measured of an op: it at all widths of a grid, and at `offsets`: per axis at the middle of the grid
    less `OFFSETS`, as far as these are widths."""

    op: TimedOp
    widths: tuple[tuple[int, ...], ...]
    instances: tuple[Instance, ...]
    offsets: tuple[tuple[Instance, ...], ...] = ()

    @property
    def all(self) -> tuple[Instance, ...]:
        """All that is measured, the grid first."""
        return (*self.instances, *itertools.chain(*self.offsets))

    def table(self, measured: Sequence[Measured | None]) -> OpTable | None:
        """What is known when all was measured; None if the op cannot be."""
        grid = [m for m in measured[: len(self.instances)] if m is not None]
        if len(grid) < len(self.instances):
            return None
        start = len(self.instances)
        penalties: list[tuple[float, ...]] = []
        rounding: list[tuple[float, ...]] = []
        for axis, instances in enumerate(self.offsets):
            found = measured[start : start + len(instances)]
            start += len(instances)
            slope, wanted = self._wanted(grid, axis)
            times = [m.kernel if m is not None else w for m, w in zip(found, wanted, strict=False)]
            penalties.append(tuple(round(t / w, 3) if w > 0 else 1.0 for t, w in zip(times, wanted, strict=False)))
            rounding.append(tuple(_more(*each, slope) for each in zip(OFFSETS, times, wanted, strict=False)))
        return OpTable(
            self.widths,
            self._ascending([m.kernel for m in grid]),
            self._ascending([m.layout for m in grid]),
            tuple(m.nodes for m in grid),
            tuple(penalties),
            tuple(rounding),
            self.op.kind,
        )

    def _ascending(self, values: Sequence[float]) -> tuple[float, ...]:
        """The same without what noise alone explains: a wider op does not take less time. Halfway between the most of
        what is narrower and the least of what is wider."""
        found = np.asarray(values).reshape([len(w) for w in self.widths])
        for axis in range(found.ndim):
            least = np.flip(np.minimum.accumulate(np.flip(found, axis), axis), axis)
            found = (np.maximum.accumulate(found, axis) + least) / 2
        return tuple(round(float(v), 5) for v in found.reshape(-1))

    def _wanted(self, grid: Sequence[Measured], axis: int) -> tuple[float, list[float]]:
        """Milliseconds of one entry of an axis at the middle of the grid, and of the op with `OFFSETS` less, going by
        the grid round it; none for an axis with one width."""
        widths = self.widths[axis]
        if len(widths) < 2:
            return 0.0, []
        place, below = len(widths) // 2, 1 if axis == len(self.widths) - 1 else len(self.widths[1])
        upper, lower = (grid[_middle(self.widths) - below * i].kernel for i in (0, 1))
        slope = (upper - lower) / (widths[place] - widths[place - 1])
        return slope, [upper - offset * slope for offset in OFFSETS]


def _more(offset: int, taken: float, wanted: float, slope: float) -> float:
    """How many entries more than there are an op seems to compute, which has `offset` less than a round number."""
    return round(min(max((taken - wanted) / slope, 0.0), float(offset)), 2) if slope > 0 else 0.0


def trial_of(op: TimedOp) -> Trial | None:
    """What to measure of an op; itself as it is if it cannot be had at other widths, None if not even that."""
    shares = _OF_ONE if len(op.axes) == 1 else _OF_TWO
    widths = tuple(_knots(axis, shares) for axis in op.axes)
    instances = [op.build(w) for w in itertools.product(*widths)]
    built = tuple(i for i in instances if i is not None)
    if len(built) < len(instances):
        whole = op.build(op.widths)
        return None if whole is None else Trial(op, tuple((w,) for w in op.widths), (whole,))
    return Trial(op, widths, built, tuple(_offsets(op, widths, axis) for axis in range(len(widths))))


def _offsets(op: TimedOp, widths: tuple[tuple[int, ...], ...], axis: int) -> tuple[Instance, ...]:
    middle = [w[len(w) // 2] for w in widths]
    if len(widths[axis]) < 2 or middle[axis] <= 2 * max(OFFSETS) or _unit(op.axes[axis]) > 1:
        return ()
    others = [[w - offset * (i == axis) for i, w in enumerate(middle)] for offset in OFFSETS]
    built = [op.build(w) for w in others]
    return () if None in built else tuple(b for b in built if b is not None)


def _middle(widths: tuple[tuple[int, ...], ...]) -> int:
    """The place of the middle of a grid in the order of nested loops."""
    place = 0
    for w in widths:
        place = place * len(w) + len(w) // 2
    return place


def _knots(axis: Axis, shares: Iterable[float]) -> tuple[int, ...]:
    """Widths that hardware likes and that whole units have, and the width that the op has now."""
    whole, unit = axis.width, _unit(axis)
    liked = next((liked for liked, least in ((16, 128), (8, 32), (4, 8)) if whole >= least), 1)
    step = math.lcm(liked, unit)
    step = unit if 2 * step > whole else step
    return tuple(sorted({*(min(whole, max(step, round(s * whole / step) * step)) for s in shares), whole}))


def _unit(axis: Axis) -> int:
    """Entries of a unit, as far as all have the same."""
    return math.gcd(*axis.runs[2].tolist()) if axis.runs.size else 1


def rewarded_step(tables: Iterable[OpTable]) -> int:
    """The smallest of 1, 2, 4, 8, 16 of which a width should be a multiple: others are penalised, going by all ops,
    each as much as it takes."""
    tables = [t for t in tables if any(t.penalties)]
    for offset in reversed(range(len(OFFSETS))):
        slower = whole = 0.0
        for table in tables:
            for penalties in table.penalties:
                if penalties:
                    whole += table.kernel[-1]
                    slower += table.kernel[-1] * penalties[offset]
        if whole and slower > _PENALTY * whole:
            return 2 * OFFSETS[offset]
    return 1
