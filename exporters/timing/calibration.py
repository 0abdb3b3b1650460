"""From the times of single ops to that of a network: what a few whole networks say about their sum.

In a network the values of one op are still in a cache when the next one reads them, and in the order of elements that
it needs; a sum, a scale or a transposition is often done along with what gives or reads its values; every node takes a
runtime some time of its own, and so does every run. Five numbers, none negative, fitted to measured networks by least
squares of the relative errors, with a weak pull to what they would be if there were none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_EXPECTED = (1.0, 0.5, 0.5, 0.002, 0.02)
_PULL = (0.02, 0.05, 0.05, 0.02, 0.02)
"""How strongly each is drawn to what is expected, relative to one network: as parts of its time."""
_ROUNDS = 2000


@dataclass(frozen=True, slots=True)
class Calibration:
    """A network takes `kernel` × the milliseconds of its ops + `passing` × those of ops that only pass values on +
    `layout` × those of changes of the order of elements + `node` per node + `run`, all in milliseconds."""

    kernel: float = 1.0
    passing: float = 1.0
    layout: float = 1.0
    node: float = 0.0
    run: float = 0.0

    @property
    def numbers(self) -> tuple[float, float, float, float, float]:
        """The five."""
        return self.kernel, self.passing, self.layout, self.node, self.run


def calibrated(sums: Sequence[tuple[float, float, float, float]], measured: Sequence[float]) -> Calibration:
    """`sums`: of networks the milliseconds of their ops, of those that pass values on, and of changes of order, and
    their nodes; `measured`: their milliseconds."""
    features = np.asarray([(*s, 1.0) for s in sums]) / np.asarray(measured)[:, None]
    scale = np.maximum(features.mean(0), 1e-12)
    pull = np.asarray(_PULL) * np.sqrt(len(sums))
    rows = np.concatenate([features / scale, np.diag(pull)])
    wanted = np.concatenate([np.ones(len(sums)), pull * np.asarray(_EXPECTED) * scale])
    return Calibration(*(float(x) for x in _least_squares(rows, wanted) / scale))


def _least_squares(rows: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The x ≥ 0 with the least |rows · x − wanted|², coordinate by coordinate."""
    x = np.zeros(rows.shape[1])
    squares = (rows * rows).sum(0)
    for _ in range(_ROUNDS):
        for i in range(len(x)):
            residual = wanted - rows @ x + rows[:, i] * x[i]
            x[i] = max(0.0, float(rows[:, i] @ residual) / squares[i])
    return x
