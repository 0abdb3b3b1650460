"""How strongly every gate is pushed towards zero: the slopes of the complexity term (arXiv 2411.09127; DESIGN §5.2).

`FixedPressure` holds the three user parameters, `TargetPressure` finds the pressure that meets a target.
"""

from __future__ import annotations

from typing import Protocol

import torch

from fxcat.gated import GatedModule
from fxcat.records import Pressure, Target
from fxcat.selection import best_of_groups, close_until

LEAST = 1e-12
"""Pressure at which gates close that are worth nothing."""


class PricePolicy(Protocol):
    """Source of the slopes."""

    weights: torch.Tensor
    """How much loss a unit of MACs fraction and of parameters fraction is worth; double, shape (2,)."""

    def update(self, net: GatedModule, worth: torch.Tensor, dead: torch.Tensor, progress: float) -> None:
        """Adapt to what the gates are worth, shape (gates,), at `progress` in [0, 1] through the gated phase."""
        ...


class FixedPressure:
    """ν and ρ as given; κ is the controller's."""

    def __init__(self, pressure: Pressure) -> None:
        rho, nu = pressure.params, pressure.nu
        self.weights = torch.tensor([nu * (1 - rho), nu * rho], dtype=torch.float64)

    def update(self, net: GatedModule, worth: torch.Tensor, dead: torch.Tensor, progress: float) -> None:
        """Nothing adapts."""


class TargetPressure:
    """The pressure at which the expected cost follows a schedule that falls from 1 to the target.

    J is linear in every θ, so gate i closes where worth_i < ν·∂C/∂θ_i. The ν that clears the schedule's cost is
    therefore known from the worths: it is the worth per cost of the last gate that has to go. (Dual ascent on log ν
    arrives at the same ν, but needs as many steps as the whole gated phase of a short run has, and a gain.)
    The schedule falls from `start`, the cost fractions at the first θ (shape (2,), default 1), and reaches the target
    after `reach` of the gated phase.
    """

    def __init__(self, target: Target, *, start: torch.Tensor | None = None, reach: float = 0.6) -> None:
        wanted = [target.flops, target.params]
        self._active = torch.tensor([w is not None for w in wanted])
        self._target = torch.tensor([1.0 if w is None else w for w in wanted], dtype=torch.float64)
        self.start = torch.maximum(torch.ones_like(self._target) if start is None else start.cpu(), self._target)
        self._reach = reach
        self.weights = torch.where(self._active, LEAST, 0.0).double()

    def schedule(self, progress: float) -> torch.Tensor:
        """Cost fractions wanted at `progress`, shape (2,)."""
        return self.start - (self.start - self._target) * min(1.0, progress / self._reach)

    def update(self, net: GatedModule, worth: torch.Tensor, dead: torch.Tensor, progress: float) -> None:
        """Clear the schedule's cost with the worths as they are now."""
        protected = torch.zeros_like(dead)
        protected[best_of_groups(net, worth.masked_fill(dead, -torch.inf))] = True
        alive = (~dead | protected).to(net.gate_vector.theta.dtype)
        wanted = self.schedule(progress).to(worth.device)
        _, prices = close_until(net, alive, worth, wanted, protected)
        self.weights = torch.where(self._active, prices.cpu().clamp(min=LEAST), 0.0)
