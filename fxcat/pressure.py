"""How strongly every gate is pushed towards zero: the slopes of the complexity term (arXiv 2411.09127).

`FixedPressure` holds the three user parameters, `TargetPressure` finds the pressure that meets a target.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from fxcat.fractions import cost_fractions, cost_gradients, target_fractions, undercuts
from fxcat.gated import GatedModule
from fxcat.gates import Values
from fxcat.groups import best_of_groups, is_section, lowest_of_groups, mean_of_groups
from fxcat.records import Pressure, Target
from fxcat.selection import close_until
from fxcat.worth import Worth

RISES_FOR = 0.85
"""Share of the gated phase in which a fixed pressure rises to what was given."""
WAITS_ABOVE = 0.1
"""Worth, as a share of its cost, from which a unit waits for its turn under a fixed pressure."""
COUNTS_TO = 4.0
"""Worth, as a share of its cost, up to which a unit counts: one without which nothing works does not keep the rest."""


class PricePolicy(Protocol):
    """Source of the slopes."""

    warm_up: Values
    """What gates are before the gated phase."""

    def worth(self, measured: Worth) -> torch.Tensor:
        """What the slopes are compared with, shape (gates,)."""
        ...

    def slopes(self, net: GatedModule, worth: torch.Tensor, dead: torch.Tensor, progress: float) -> torch.Tensor:
        """What every gate costs in units of the loss, shape (gates,); `progress`: in [0, 1] through the gated phase."""
        ...

    def dispensable(self, net: GatedModule, dead: torch.Tensor, due: torch.Tensor) -> torch.Tensor:
        """Which of those that are `due` (bool, shape (gates,)) may leave the network for good, as the dead have."""
        ...

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a run that goes on must have again."""
        ...

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what `state_dict` gave."""
        ...


class TargetSchedule:
    """Cost fractions (MACs, parameters) wanted through the gated phase; double, shape (2,), 1 where none is asked for.

    They fall from `start`, the cost fractions at the first θ, to the target, which they reach after `reach` of the
    phase, by the same share in every step: so a small network has as long to lose a tenth of its cost as a large one.
    """

    def __init__(self, target: Target, start: torch.Tensor, reach: float = 0.6) -> None:
        self.target = target_fractions(target, start.device)
        self.start = torch.maximum(start, self.target)
        self._reach = reach

    def __call__(self, progress: float) -> torch.Tensor:
        """What is wanted at `progress`, in [0, 1]."""
        return self.start * (self.target / self.start) ** min(1.0, progress / self._reach)


class FixedPressure:
    """ν, κ and ρ as given. Worths that noise makes negative count as nothing.

    ν rises evenly from 0, and stays at its value for the rest of the gated phase. In a start network nearly every unit
    is worth less than it costs, since its neighbours do the same: at the whole ν from the beginning they would all fall
    at once, before those that remain are worth more, and what is left would be smaller the wider the network was.

    For the same reason units of a group fall in turn, those worth least per cost first, as long as the group's units
    are worth less on average than they cost; the others wait, and cost nothing meanwhile. The average decides, because
    others take over what a unit did: networks of the same widths are as good whichever units went (Liu et al. 2019,
    arXiv 1810.05270). What the least of them is worth differs from one run to the next, the average of a width hardly.
    Only what is worth next to nothing falls by itself. In the warm-up some units are closed at random, so that they
    share the task; without that, how many stay depends on how many happen to have specialised by then.
    """

    def __init__(self, pressure: Pressure) -> None:
        self._pressure = pressure
        self.warm_up: Values = "spread" if pressure.nu > 0 else "hard"

    def worth(self, measured: Worth) -> torch.Tensor:
        """Never negative."""
        return measured.value

    def slopes(self, net: GatedModule, worth: torch.Tensor, dead: torch.Tensor, progress: float) -> torch.Tensor:
        """ν · 2(1−κ) · ∂C/∂θ for units, ν · 2κ · ∂C/∂θ for sections; ν is what it has risen to.

        Of units that wait 0; of those whose turn it is so much that they fall.
        """
        nu = self._pressure.nu * min(1.0, progress / RISES_FOR)
        layers, rho = self._pressure.layers, self._pressure.params
        _, (macs, params) = cost_gradients(net, net.gate_vector.theta)
        emphasis = torch.where(is_section(net), 2 * layers, 2 * (1 - layers))
        slopes = nu * emphasis * ((1 - rho) * macs + rho * params)
        candidates = ~dead
        candidates[best_of_groups(net, worth.masked_fill(dead, -torch.inf))] = False  # these never close
        share = worth / slopes.clamp(min=1e-30)
        mean = mean_of_groups(net, share.clamp(max=COUNTS_TO), ~dead)
        excess = 1 - mean.sqrt()  # as a share of the group: on average worth falls with the square of the width
        falls = lowest_of_groups(net, share, candidates, excess) & (excess > 0)
        in_turn = torch.where(falls, torch.maximum(worth, slopes) / mean.clamp(min=1e-30), 0.0)
        return torch.where(candidates & (share >= WAITS_ABOVE), in_turn, slopes)

    def dispensable(self, net: GatedModule, dead: torch.Tensor, due: torch.Tensor) -> torch.Tensor:
        """All."""
        return due

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Nothing: the arguments of the run say it all."""
        return {}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Nothing to take over."""


class TargetPressure:
    """The pressure at which the expected cost follows a schedule that falls from 1 to the target.

    J is linear in every θ, so gate i closes where worth_i < ν·∂C/∂θ_i. The ν that clears the schedule's cost is
    therefore known from the worths: it is the worth per cost of the last gate that has to go. (Dual ascent on log ν
    arrives at the same ν, but needs as many steps as the whole gated phase of a short run has, and a gain.) The
    schedule is met, not undercut: where noise makes many worths negative, ν is negative too, and only as many close as
    have to.
    """

    warm_up: Values = "hard"

    def __init__(self, schedule: TargetSchedule) -> None:
        self.schedule = schedule

    def worth(self, measured: Worth) -> torch.Tensor:
        """As measured: among gates that seem to do harm, those that do most go first."""
        return measured.estimate

    def slopes(self, net: GatedModule, worth: torch.Tensor, dead: torch.Tensor, progress: float) -> torch.Tensor:
        """Clear the schedule's cost with the worths as they are now."""
        protected = torch.zeros_like(dead)
        protected[best_of_groups(net, worth.masked_fill(dead, -torch.inf))] = True
        alive = (~dead | protected).to(net.gate_vector.theta.dtype)
        final = self.schedule.target
        _, slopes = close_until(net, alive, worth, self.schedule(progress), protected, final=final)
        return slopes

    def dispensable(self, net: GatedModule, dead: torch.Tensor, due: torch.Tensor) -> torch.Tensor:
        """As many as leave enough for the target, those that save least first: what has left does not come back."""
        alive = (~dead).to(net.gate_vector.theta.dtype)
        gates = due.nonzero().reshape(-1)
        gates = gates[cost_gradients(net, alive)[1][:, gates].sum(0).argsort()]
        low, high = 0, len(gates)
        while low < high:
            middle = (low + high + 1) // 2
            left = alive.index_fill(0, gates[:middle], 0.0)
            enough = not bool(undercuts(cost_fractions(net, left), self.schedule.target))
            low, high = (middle, high) if enough else (low, middle - 1)
        return torch.zeros_like(due).index_fill(0, gates[:low], True)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Where the schedule starts."""
        return {"start": self.schedule.start}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what `state_dict` gave."""
        self.schedule.start = state["start"].to(self.schedule.start.device, copy=True)
