"""`policy="ratio"`: every group of units learns which share of it remains.

Source: AutoPruning for Deep Neural Network with Dynamic Channel Masking (arXiv 2010.12021). Group g with C
units keeps the r·C most important ones; the mask is linear in r at the boundary unit. Weights learn on training batches
with ratios fixed, ratios on held-out batches with weights fixed, down loss · (FLOPs / wanted)^w. Only the products of w
and loss and cost matter, which are prices of cost; and w is not chosen by hand: the price is the one at which the cost
follows a schedule that falls to the target, as with Bernoulli gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from fxcat.choosing.cost_shares import cost_fractions, cost_gradients, price_mix
from fxcat.choosing.groups import group_ids, is_section, kept_gates
from fxcat.gate_training.decisions import Decisions, drift
from fxcat.gate_training.per_gate import PerGate
from fxcat.gate_training.pressure import TargetSchedule
from fxcat.gate_training.worth import Worth
from fxcat.gated import GatedModule
from fxcat.network.draws import Draw
from fxcat.network.gates import Values
from fxcat.records import Pressure, Target
from fxcat.scores.importance import unit_scales

DECADES = 8
"""Prices are looked for within so many powers of ten of what the network is worth per cost."""
HALVINGS = 20
"""Steps of a bisection."""
BAND = 0.1
"""Share of a group over which the worth at the boundary is averaged: that of one unit is mostly noise."""


class RatioPolicy:
    """One ratio per group that there was at the start, moved by steps as θ is with Bernoulli gates; θ is the mask.

    The derivative of the loss in r is that in the boundary unit's gate. Where the weights have learned, the local one
    vanishes on average, whatever the unit is worth, so what it is worth is used: `Worth` on held-out batches.
    """

    values: ClassVar[Values] = "theta"
    warm_up: ClassVar[Values] = "hard"
    held_out_every: ClassVar[int] = 4

    def __init__(
        self, net: GatedModule, objective: Target | Pressure, *, gated: int, gate_lr: float | None = None
    ) -> None:
        self.net = net
        theta = net.gate_vector.theta
        self.group = group_ids(net)
        self.size = torch.bincount(self.group)
        self.ratio = torch.bincount(self.group, theta.detach().double()) / self.size
        self.worth = Worth(theta.numel(), theta.device, explored=is_section(net))
        self.decisions = Decisions(theta.numel(), theta.device)
        self._gate_lr = gate_lr
        self.pace(gated)
        self.pressure = objective if isinstance(objective, Pressure) else None
        aim = Target(flops=1.0) if isinstance(objective, Pressure) else objective
        self.schedule = TargetSchedule(aim, cost_fractions(net, theta.detach()))

    def pace(self, gated: int) -> None:
        """The gated phase has so many steps."""
        updates = max(1, gated // self.held_out_every)
        self.lr = self._gate_lr or min(0.05, max(1e-3, 4.0 / updates))
        self.worth.window = min(200, max(10, updates // 8))
        self.decisions.patience = max(5, updates // 20)

    @property
    def dead(self) -> torch.Tensor:
        """Units that have been left out for so long that they do not come back."""
        return self.decisions.dead

    def observe(self, draws: Sequence[Draw]) -> None:
        """Nothing: ratios learn on held-out batches alone."""

    def observe_held_out(self, draws: Sequence[Draw]) -> None:
        """Measure what units are worth."""
        self.worth.update(draws)

    def measure(self, step: int, loss: Callable[[], torch.Tensor]) -> None:
        """Nothing: there are no sections."""

    def update(self, step: int, progress: float) -> None:
        """After a held-out batch: move the ratios, then make the mask from the weights as they are now."""
        if step % self.held_out_every:
            return
        position = self._positions()
        costs, worth = self._costs(position), self._worth(position)
        if self.pressure is not None:
            mix = price_mix(self.net, self.pressure)
            self.ratio = self._moved(self.pressure.nu * (mix[:, None] * costs).sum(0), worth)
        else:
            self.ratio = self._cleared(costs, worth, position, self.schedule(progress))
        self.net.gate_vector.theta.data.copy_(self._mask(self.ratio, position))
        beyond = position - self.ratio[self.group] * self.size[self.group]
        self.decisions.update(self.net.gate_vector.theta.detach(), beyond - 1)  # the next one stays in reserve

    def score(self) -> torch.Tensor:
        """Closing what has the least of it per cost shrinks all groups by the same share from where they stand."""
        margin = self.ratio[self.group] - self._positions() / self.size[self.group]
        _, costs = cost_gradients(self.net, torch.ones_like(self.net.gate_vector.theta))
        return (1 + margin) * costs.sum(0)

    def restrict(self, origin: torch.Tensor) -> None:
        """Keep the entries `origin` only."""
        self.group = self.group[origin]
        self.worth.restrict(origin)
        self.decisions.restrict(origin)

    def state_dict(self) -> dict[str, Any]:
        """Ratios, worths and decisions."""
        state: dict[str, Any] = {"ratio": self.ratio.clone(), "start": self.schedule.start}
        for part, values in self._parts.items():
            state |= {f"{part}.{name}": value for name, value in values.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.ratio.copy_(state["ratio"])
        self.schedule.start = state["start"].to(self.ratio.device, copy=True)
        for part, values in self._parts.items():
            values.load_state_dict({k.removeprefix(f"{part}."): v for k, v in state.items()})

    @property
    def _parts(self) -> Mapping[str, PerGate]:
        return {"worth": self.worth, "decisions": self.decisions}

    def _positions(self) -> torch.Tensor:
        """Of every unit among the living ones of its group, the most important first: 0, 1, …; double."""
        scale = torch.zeros_like(self.net.gate_vector.theta, dtype=torch.float64)
        scale[: self.net.gate_vector.unit_count] = unit_scales(self.net)
        order = scale.masked_fill(self.dead, -1.0).argsort(descending=True, stable=True)
        order = order[self.group[order].argsort(stable=True)]
        counts = torch.bincount(self.group, minlength=len(self.size))
        first = counts.cumsum(0) - counts
        position = torch.empty_like(scale)
        position[order] = (torch.arange(len(order), device=order.device) - first[self.group[order]]).double()
        return position

    def _costs(self, position: torch.Tensor) -> torch.Tensor:
        """What the ratios cost, as fractions of the start network's costs; shape (costs, groups)."""
        margin = self.ratio[self.group] * self.size[self.group] - position
        share = ((margin > 0) & (margin <= 1)) * self.size[self.group]
        _, gradients = cost_gradients(self.net, self.net.gate_vector.theta)
        return gradients.new_zeros((len(gradients), len(self.size))).index_add(1, self.group, gradients * share)

    def _worth(self, position: torch.Tensor) -> torch.Tensor:
        """What the ratios are worth, in units of the loss, ≥ 0; shape (groups,)."""
        size = self.size[self.group]
        band = (BAND * size).clamp(min=1)
        margin = self.ratio[self.group] * size - position
        near = ((margin > 0) & (margin <= band)).double()
        zero = torch.zeros_like(self.ratio)
        total = zero.index_add(0, self.group, near * self.worth.value)
        return total / zero.index_add(0, self.group, near).clamp(min=1) * self.size

    def _cleared(
        self, costs: torch.Tensor, worth: torch.Tensor, position: torch.Tensor, wanted: torch.Tensor
    ) -> torch.Tensor:
        """The ratios after a step at the lowest price of cost that leads to what is wanted, as far as one step can."""
        fractions = cost_fractions(self.net, self.net.gate_vector.theta.detach())
        excess = (fractions - wanted).clamp(min=0)
        mix = excess if bool((excess > 0).any()) else (wanted < 1).double()
        cost = (mix[:, None] * costs).sum(0) / mix.sum().clamp(min=1e-30)
        scale = float(worth.sum() / cost.sum().clamp(min=1e-30)) or 1.0

        def is_above(ratio: torch.Tensor) -> bool:
            reached = cost_fractions(self.net, self._mask(ratio, position))
            return bool((reached > wanted)[wanted < 1].any())

        low, high = self._moved(0 * cost, worth), self._moved(scale * 10**DECADES * cost, worth)
        below, above = -DECADES, DECADES
        for _ in range(HALVINGS):
            middle = (below + above) / 2
            ratio = self._moved(scale * 10**middle * cost, worth)
            if is_above(ratio):
                below, low = middle, ratio
            else:
                above, high = middle, ratio
        for _ in range(HALVINGS):  # where groups are worth nothing, steps change at once from one price to the next
            middle = (low + high) / 2
            low, high = (middle, high) if is_above(middle) else (low, middle)
        return high

    def _moved(self, slope: torch.Tensor, worth: torch.Tensor) -> torch.Tensor:
        """The ratios after a step: at least one unit, at most those that are left."""
        left = torch.bincount(self.group, (~self.dead).double(), minlength=len(self.size)).clamp(min=1)
        moved = self.ratio - self.lr * drift(slope, worth)
        return moved.clamp(min=1 / self.size, max=left / self.size)

    def _mask(self, ratio: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """1 for the r·C most important units of every group, the remainder for the next one; shape (gates,)."""
        mask = (ratio[self.group] * self.size[self.group] - position).clamp(0, 1)
        mask[kept_gates(self.net, -position)] = 1.0
        return mask.masked_fill(self.dead, 0.0)
