"""How θ moves, and when a gate is dead: the state that every gate has, apart from its worth."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fxcat.gate_training.per_gate import PerGate

DEAD = 0.05
"""θ at or below this, with a drift to zero for long enough, is dead; θ at 1 − DEAD or above is not in play."""


def drift(slope: torch.Tensor, worth: torch.Tensor) -> torch.Tensor:
    """∂J/∂θ = slope − worth, preconditioned by 1 / (|slope| + |worth|): in [−1, 1].

    So the scale of losses and costs cancels at every moment (Adam's second moment remembers the large worths of early
    training for longer than the gated phase of a short run lasts), and the signs, which decide, stay.
    """
    return (slope - worth) / (slope.abs() + worth.abs()).clamp(min=1e-30)


class ProjectedDescent(PerGate):
    """Steps of θ in [0, 1] down `drift`, with momentum."""

    tensors = ("momentum",)
    numbers = ("weight",)

    def __init__(self, gates: int, device: torch.device, lr: float = 0.1) -> None:
        self.lr = lr
        self.momentum = torch.zeros(gates, device=device)
        self.weight = 0.0

    def step(self, theta: torch.Tensor, slope: torch.Tensor, worth: torch.Tensor) -> torch.Tensor:
        """Move θ in place; all of shape (gates,). Returns the smoothed drift, in [−1, 1]."""
        self.momentum.lerp_(drift(slope, worth), 0.1)
        self.weight += 0.1 * (1 - self.weight)
        smoothed = self.momentum / self.weight
        theta.sub_((self.lr * smoothed).to(theta.dtype)).clamp_(0, 1)
        return smoothed


class Decisions(PerGate):
    """Gates that stay at zero: θ is small and its smoothed drift has pointed to zero for `patience` steps.

    Then weights and θ are in the domain of attraction of zero (arXiv 2205.04650, 2411.09127).
    """

    tensors = ("dead", "falling")

    def __init__(self, gates: int, device: torch.device, patience: int = 10) -> None:
        self.patience = patience
        self.dead = torch.zeros(gates, dtype=torch.bool, device=device)
        self.falling = torch.zeros(gates, dtype=torch.int32, device=device)

    def update(
        self,
        theta: torch.Tensor,
        drift: torch.Tensor,
        dispensable: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Add one step: θ and its smoothed drift, shape (gates,).

        `dispensable`: of those that should die now, which may; the others have to fall for as long again.
        """
        sinking = (theta <= DEAD) & (drift > 0)
        self.falling = torch.where(sinking, self.falling + 1, 0)
        due = (self.falling >= self.patience) & ~self.dead
        if dispensable is not None and bool(due.any()):
            may = dispensable(due)
            self.falling[due & ~may] = 0
            due = due & may
        self.dead |= due
