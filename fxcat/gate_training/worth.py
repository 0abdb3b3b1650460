"""What a gate is worth: an estimate of E[loss | ξ=0] − E[loss | ξ=1] from ordinary backward passes.

The straight-through derivative g = ∂L/∂ξ at the sampled value is one end of the trapezoid rule: the difference is
−½(g(0) + g(1)). Where a gate is sampled at both values, both ends are seen. Near θ = 1 only one is, where a trained
unit has g ≈ 0 on average and would seem worthless. With the curvature h = ∂²L/∂ξ² both ends are known from one: the
difference is −g + ½h seen from ξ=1, and −g − ½h seen from ξ=0. The empirical Fisher information gives h: the variance
of a batch mean of per-example derivatives is h / batch (cf. optimal brain damage, LeCun et al. 1989; Theis et al.
2018, arXiv 1801.05787). It takes noise for curvature while the network learns fast, for a whole section more than for
a unit; the trapezoid rule does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fxcat.gate_training.per_gate import PerGate
from fxcat.network.draws import Draw, as_one

SURE = 4.0
"""After so many steps in which a gate was closed what was seen then counts as much as what is seen when it is open."""
MEMORY = 4
"""For how many windows what was seen of either value counts at most; meanwhile the network changes."""
RECENT = 0.5
"""The same as a share of all steps until then: at first the network changes fastest."""
TINY = 1e-300
"""Stands in for a norm of zero."""
LARGEST = 10.0
"""A derivative counts with at most so many times the usual norm: a single bad batch must not decide."""


class Worth(PerGate):
    """Averages of derivatives over the last `window` steps in which a gate was open, or closed; an entry per gate.

    `explored`: bool, shape (gates,): those that are closed now and then only to see both ends, by default none; the
    trapezoid rule serves for them. Of the others both ends count as often as they are seen.
    """

    tensors = ("mean", "square", "opened", "closed_mean", "closed", "difference", "weight", "is_measured", "explored")
    numbers = ("steps", "norm")

    def __init__(
        self, gates: int, device: torch.device, *, window: int = 20, explored: torch.Tensor | None = None
    ) -> None:
        self.window, self.steps = window, 0.0
        self.explored = torch.zeros(gates, dtype=torch.bool, device=device) if explored is None else explored
        self.norm = 0.0
        """Running mean of the squared norms of the derivatives."""
        self.mean, self.square, self.opened = torch.zeros((3, gates), device=device)
        self.closed_mean, self.closed = torch.zeros((2, gates), device=device)
        self.difference, self.weight = torch.zeros((2, gates), device=device)
        self.is_measured = torch.zeros(gates, dtype=torch.bool, device=device)

    def update(self, draws: Sequence[Draw]) -> None:
        """Add one training step: the forward passes that it was made from, of all processes.

        What a step says of a gate is the sum over its passes, each with gates of its own (accumulated gradients,
        several views of an image): so each pass says it as often as there are passes. Derivatives that are not finite
        say nothing.
        """
        seen = _Seen(self.mean)
        for draw in as_one(draws):
            assert draw.gradient is not None
            gradient = draw.gradient * len(draws)
            norm = float(gradient.norm())
            if math.isfinite(norm):
                limit = LARGEST * math.sqrt(self.norm) if self.norm else norm
                seen.add(gradient * min(1.0, limit / max(norm, TINY)), draw)
                self.norm += (min(norm, limit) ** 2 - self.norm) / min(self.steps + 1, self.window)
        if not seen.passes:
            return
        self.steps += 1
        rate = self._counted(self.opened, seen.opened / seen.passes)
        step = rate * seen.shift / seen.opened.clamp(min=1)
        # Welford's update: the averages move meanwhile
        spread = (seen.spread - step * seen.weighted) / seen.opened.clamp(min=1)
        self.mean += step.float()
        self.square += (rate * (spread - self.square)).float()
        rate = self._counted(self.closed, seen.closed / seen.passes)
        self.closed_mean += (rate * (seen.closed_sum / seen.closed.clamp(min=1) - self.closed_mean)).float()

    def _counted(self, count: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Count what is `seen`, as a share of a step; how much it counts in the average, 0 for the others."""
        counts_for = max(1.0, min(MEMORY * self.window, RECENT * self.steps))
        count.mul_(1 - 1 / counts_for).add_(seen.float())
        return seen / count.clamp(min=1, max=self.window)

    def measured(self, gate: int, difference: float, *, every: int) -> None:
        """Add the loss difference of one gate, which is measured once in `every` steps, from now on only so."""
        self.is_measured[gate] = True
        keep = (1 - 1 / self.window) ** every
        self.difference[gate] = keep * self.difference[gate] + (1 - keep) * difference
        self.weight[gate] = keep * self.weight[gate] + 1 - keep

    @property
    def estimate(self) -> torch.Tensor:
        """The smoothed estimate in units of the loss; where a gate is worth little, noise can make it negative."""
        half = 0.5 * self.square
        seldom, often = (
            0.5 * (self.closed / SURE).clamp(max=1),
            self.closed / (self.opened + self.closed).clamp(min=1e-12),
        )
        share = torch.where(self.explored, seldom, often)
        found = (1 - share) * (half - self.mean) - share * (half + self.closed_mean)
        return torch.where(self.is_measured, self.difference / self.weight.clamp(min=1e-12), found)

    @property
    def value(self) -> torch.Tensor:
        """The same without negative values: noise alone must not close a gate."""
        return self.estimate.clamp(min=0.0)


class _Seen:
    """What the passes of a step say of every gate; sums, in double precision.

    `opened`, `closed`: passes in which it was. `shift`: derivatives less their `mean` until then, where it was open;
    `weighted`, `spread`: the same and its square times the examples. `closed_sum`: derivatives where it was closed.
    """

    opened: torch.Tensor
    shift: torch.Tensor
    weighted: torch.Tensor
    spread: torch.Tensor
    closed: torch.Tensor
    closed_sum: torch.Tensor

    def __init__(self, mean: torch.Tensor) -> None:
        self.passes, self._mean = 0, mean

    def add(self, gradient: torch.Tensor, draw: Draw) -> None:
        """Add one pass."""
        is_open = draw.sample > 0.5
        # where low precision has made nothing of a closed gate (`gates.CLOSED`), nothing is seen
        is_closed = ~is_open & (gradient != 0)
        shift = torch.where(is_open, gradient - self._mean, 0.0)
        found = {
            "opened": is_open.double(),
            "shift": shift,
            "weighted": draw.batch * shift,
            "spread": draw.batch * shift.square(),
            "closed": is_closed.double(),
            "closed_sum": torch.where(is_closed, gradient, 0.0),
        }
        for name, value in found.items():  # most steps have one pass
            setattr(self, name, getattr(self, name) + value if self.passes else value)
        self.passes += 1
