"""What a gate is worth: an estimate of E[loss | ξ=0] − E[loss | ξ=1] from ordinary backward passes.

The straight-through derivative g = ∂L/∂ξ at the sampled value is one end of the trapezoid rule ½(g(0) + g(1)). Near
θ = 1 only that end is seen, where a trained unit has g ≈ 0 on average and would seem worthless. With the curvature
h = ∂²L/∂ξ² both ends are known from one: the difference is −g + ½h seen from ξ=1, and −g − ½h seen from ξ=0. The
empirical Fisher information gives h: the variance of a batch mean of per-example derivatives is h / batch
(cf. optimal brain damage, LeCun et al. 1989; Theis et al. 2018, arXiv 1801.05787).
"""

from __future__ import annotations

import torch

from fxcat.per_gate import PerGate


class Worth(PerGate):
    """Exponential averages of the curvature and of the loss difference, one entry per gate, over `window` steps."""

    tensors = ("curvature", "curvature_weight", "difference", "weight", "is_measured")

    def __init__(self, gates: int, device: torch.device, *, window: int) -> None:
        self.decay = 1 - 1 / window
        self.curvature, self.curvature_weight, self.difference, self.weight = torch.zeros((4, gates), device=device)
        self.is_measured = torch.zeros(gates, dtype=torch.bool, device=device)

    def update(self, gradient: torch.Tensor, sample: torch.Tensor, batch: int) -> None:
        """Add one step: gradient and sample of shape (gates,), and the examples in the batch."""
        gradient = gradient.float()
        opened = sample > 0.5
        keep = torch.where(opened, self.decay, 1.0)
        self.curvature.mul_(keep).add_((1 - keep) * gradient.square() * batch)
        self.curvature_weight.mul_(keep).add_(1 - keep)
        half = 0.5 * self.curvature / self.curvature_weight.clamp(min=1e-12)
        seen = torch.where(opened, half, -half) - gradient
        keep = torch.where(self.is_measured, 1.0, self.decay)
        self.difference.mul_(keep).add_((1 - keep) * seen)
        self.weight.mul_(keep).add_(1 - keep)

    def measured(self, gate: int, difference: float, *, every: int) -> None:
        """Add the loss difference of one gate, which is measured once in `every` steps, from now on only so."""
        if not self.is_measured[gate]:
            self.is_measured[gate] = True
            self.difference[gate] = self.weight[gate] = 0.0
        keep = self.decay**every
        self.difference[gate] = keep * self.difference[gate] + (1 - keep) * difference
        self.weight[gate] = keep * self.weight[gate] + 1 - keep

    @property
    def estimate(self) -> torch.Tensor:
        """The smoothed estimate in units of the loss; where a gate is worth little, noise can make it negative."""
        return self.difference / self.weight.clamp(min=1e-12)

    @property
    def value(self) -> torch.Tensor:
        """The same without negative values: noise alone must not close a gate."""
        return self.estimate.clamp(min=0.0)
