"""The complexity term: how strongly every gate is pushed towards zero (arXiv 2411.09127; DESIGN §5.2, §5.4).

`FixedPressure` holds the three user parameters; `AdaptivePressure` meets a target by dual ascent on log ν.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch

from fxcat.gated import GatedModule
from fxcat.records import Pressure, Target


def cost_fractions(net: GatedModule, theta: torch.Tensor) -> torch.Tensor:
    """Expected MACs and parameters at θ as fractions of the start network; double, shape (2,)."""
    count = net.gate_vector.unit_count
    start = net.start_cost
    scale = torch.tensor([max(start.macs, 1), max(start.params, 1)], dtype=torch.float64, device=theta.device)
    return net.cost_model(theta[:count], theta[count:]) / scale


def cost_gradients(
    net: GatedModule, theta: torch.Tensor, active: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cost fractions, shape (2,), and their gradients in θ, shape (2, gates); zero where not `active`."""
    at = theta.detach().double().requires_grad_()
    gradients = at.new_zeros((2, at.numel()))
    with torch.enable_grad():
        fractions = cost_fractions(net, at)
        for i, fraction in enumerate(fractions.unbind(0)):
            if active is None or active[i]:
                gradients[i] = torch.autograd.grad(fraction, at, retain_graph=True)[0]
    return fractions.detach(), gradients


class Complexity(Protocol):
    """Source of the slopes."""

    active: torch.Tensor
    """Which of MACs and parameters can have a weight, bool, shape (2,)."""

    def weights(self) -> torch.Tensor:
        """How much a unit of MACs fraction and of parameters fraction costs, shape (2,)."""
        ...

    def update(self, fractions: torch.Tensor, progress: float) -> None:
        """After a step: expected cost fractions now, and progress through the gated phase in [0, 1]."""
        ...


class FixedPressure:
    """ν, κ and ρ as given."""

    def __init__(self, pressure: Pressure) -> None:
        self.pressure = pressure
        self.active = self.weights() > 0

    def weights(self) -> torch.Tensor:
        rho, nu = self.pressure.params, self.pressure.nu
        return torch.tensor([nu * (1 - rho), nu * rho], dtype=torch.float64)

    def update(self, fractions: torch.Tensor, progress: float) -> None:
        """Nothing adapts."""


class AdaptivePressure:
    """log ν follows the gap between the expected cost and a schedule that falls from 1 to the target.

    Integral control as in DESIGN §5.4, with a proportional part that damps it. The schedule reaches the target after
    `reach` of the gated phase.
    """

    def __init__(self, target: Target, *, gain: float = 60.0, damping: float = 4.0, reach: float = 0.75) -> None:
        wanted = [target.flops, target.params]
        self.active = torch.tensor([w is not None for w in wanted])
        self.target = torch.tensor([1.0 if w is None else w for w in wanted], dtype=torch.float64)
        self.log_nu = torch.zeros(2, dtype=torch.float64)
        self._gap = torch.zeros(2, dtype=torch.float64)
        self._progress = 0.0
        self._gain, self._damping, self._reach = gain, damping, reach

    def start_at(self, nu: float) -> None:
        """Begin with this pressure: one that already moves the least valuable structures."""
        self.log_nu.fill_(math.log(max(nu, 1e-12)))

    def weights(self) -> torch.Tensor:
        return torch.where(self.active, (self.log_nu + self._damping * self._gap).exp(), 0.0)

    def update(self, fractions: torch.Tensor, progress: float) -> None:
        wanted = 1 - (1 - self.target) * min(1.0, progress / self._reach)
        self._gap = fractions.cpu() - wanted
        self.log_nu += self._gain * (progress - self._progress) * self._gap
        self._progress = progress
