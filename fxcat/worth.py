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

import torch

from fxcat.per_gate import PerGate

SURE = 4.0
"""After so many steps in which a gate was closed what was seen then counts as much as what is seen when it is open."""
MEMORY = 4
"""For how many windows what was seen of either value counts at most; meanwhile the network changes."""
RECENT = 0.5
"""The same as a share of all steps until then: at first the network changes fastest."""


class Worth(PerGate):
    """Averages of derivatives over the last `window` steps in which a gate was open, or closed; an entry per gate.

    `explored`: bool, shape (gates,): those that are closed now and then only to see both ends; the trapezoid rule
    serves for them. Of the others both ends count as often as they are seen.
    """

    tensors = ("mean", "square", "opened", "closed_mean", "closed", "difference", "weight", "is_measured", "explored")
    numbers = ("steps",)

    def __init__(self, gates: int, device: torch.device, *, window: int, explored: torch.Tensor) -> None:
        self.window, self.explored, self.steps = window, explored, 0.0
        self.mean, self.square, self.opened = torch.zeros((3, gates), device=device)
        self.closed_mean, self.closed = torch.zeros((2, gates), device=device)
        self.difference, self.weight = torch.zeros((2, gates), device=device)
        self.is_measured = torch.zeros(gates, dtype=torch.bool, device=device)

    def update(self, gradient: torch.Tensor, sample: torch.Tensor, batch: int) -> None:
        """Add one step: gradient and sample of shape (gates,), and the examples in the batch."""
        gradient, is_open = gradient.float(), sample > 0.5
        self.steps += 1
        rate = self._counted(self.opened, is_open)
        before = self.mean.clone()
        self.mean.add_(rate * (gradient - self.mean))
        # Welford's update: the averages move meanwhile
        self.square.add_(rate * (batch * (gradient - before) * (gradient - self.mean) - self.square))
        # where low precision has made nothing of a closed gate (`gates.CLOSED`), nothing is seen
        self.closed_mean.add_(self._counted(self.closed, ~is_open & (gradient != 0)) * (gradient - self.closed_mean))

    def _counted(self, count: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Count those that are `seen`; how much what is seen counts in the average, 0 for the others."""
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
