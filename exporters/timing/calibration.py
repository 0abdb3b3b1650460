"""From the times of single ops to that of a network: what a few whole networks say about their sum.

In a network the values of one op are still in a cache when the next one reads them, and in the order of elements that
it needs; a sum, a scale or a transposition is often done along with what gives or reads its values; every node takes a
runtime some time of its own, and so does every run. Six numbers, none negative, fitted to measured networks by least
squares of the relative errors. There are few networks, and their times are not exact: so each number is drawn to what
is known of it before, as strongly as the errors of measuring and the spread between machines and networks say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fxcat.network.latency import KINDS, Kind

Sums: TypeAlias = "tuple[float, ...]"
"""Of a network: milliseconds of its ops of each of `KINDS` by themselves, and of changes of the order of elements; how
many nodes there are."""

_EXPECTED = (1.0, 0.8, 0.6, 0.4, 0.001, 0.02)
_SPREAD = (0.15, 0.25, 0.4, 0.3, 0.003, 0.03)
"""How far from what is expected each may well be."""
_ERROR = 0.015
"""That of a measured network, as a part of its time."""
_ROUNDS = 2000


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a network takes: so many times the milliseconds of its ops of each kind by themselves (`product`, `value`,
    `passing`) and of changes of the order of elements (`layout`), and milliseconds per `node` and per `run`."""

    product: float = 1.0
    value: float = 1.0
    passing: float = 1.0
    layout: float = 1.0
    node: float = 0.0
    run: float = 0.0

    @property
    def numbers(self) -> tuple[float, ...]:
        """The six."""
        return astuple(self)

    def factor(self, kind: Kind) -> float:
        """Of ops of a kind."""
        return dict(zip(KINDS, self.numbers, strict=False))[kind]

    def milliseconds(self, sums: Sums) -> float:
        """Of a network."""
        return sum(number * part for number, part in zip(self.numbers, (*sums, 1.0), strict=True))


def calibrated(sums: Sequence[Sums], measured: Sequence[float]) -> Calibration:
    """`sums`: of networks, the dense one first; `measured`: their milliseconds. What is asked for are shares of the
    dense network's time, so this counts as much as those of all others."""
    weights = np.asarray([max(1.0, (len(sums) - 1) ** 0.5), *[1.0] * (len(sums) - 1)])[:, None]
    features = np.asarray([(*s, 1.0) for s in sums]) / np.asarray(measured)[:, None]
    spread = np.asarray(_SPREAD)
    rows = np.concatenate([weights * features * spread / _ERROR, np.eye(len(spread))])
    wanted = np.concatenate([weights[:, 0] / _ERROR, np.asarray(_EXPECTED) / spread])
    return Calibration(*(float(x) for x in _least_squares(rows, wanted) * spread))


def leave_one_out(sums: Sequence[Sums], measured: Sequence[float]) -> tuple[float, ...]:
    """For every network but the dense one: the share of this one's time that is predicted for it, if it has no part in
    the calibration, divided by what was measured."""
    found: list[float] = []
    for i in range(1, len(sums)):
        others = [k for k in range(len(sums)) if k != i]
        without = calibrated([sums[k] for k in others], [measured[k] for k in others])
        share = without.milliseconds(sums[i]) / without.milliseconds(sums[0])
        found.append(round(share * measured[0] / measured[i], 4))
    return tuple(found)


def _least_squares(rows: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The x ≥ 0 with the least |rows · x − wanted|², coordinate by coordinate."""
    x = np.zeros(rows.shape[1])
    squares = (rows * rows).sum(0)
    for _ in range(_ROUNDS):
        for i in range(len(x)):
            residual = wanted - rows @ x + rows[:, i] * x[i]
            x[i] = max(0.0, float(rows[:, i] @ residual) / squares[i])
    return x
