"""How strongly every gate is pushed towards zero: the slopes of the complexity term (arXiv 2411.09127).

`FixedPressure` holds the three user parameters, `TargetPressure` finds the pressure that meets a target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch

from fxcat.choosing.cost_shares import cost_fractions, cost_gradients, price_mix, target_fractions, undercuts
from fxcat.choosing.groups import is_section, kept_gates
from fxcat.choosing.select import close_below, close_until
from fxcat.gate_training.worth import Worth
from fxcat.gated import GatedModule
from fxcat.records import Pressure, Target

RISES_FOR = 0.85
"""Share of the gated phase in which a fixed pressure rises to what was given."""
EARLY = 0.05
"""Share of the gated phase in which all sections begin to fall that are going to."""
TINY = 1e-30
"""Stands in for a cost or a worth of zero."""
FALLS = 4.0
"""Slope of what is decided, as a multiple of what it is worth."""


class PricePolicy(Protocol):
    """Source of the slopes."""

    spreads_units: bool
    """Whether units are closed at random in the warm-up."""
    explores: bool
    """Whether sections are closed at random while what they are worth is measured."""

    def worth(self, measured: Worth) -> torch.Tensor:
        """What the slopes are compared with, shape (gates,)."""
        ...

    def slopes(
        self, net: GatedModule, worth: torch.Tensor, dead: torch.Tensor, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How strongly every gate is pushed to zero now, and what its cost is worth in the end, both in units of the
        loss, shape (gates,); `progress`: in [0, 1] through the gated phase."""
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
    """Cost fractions wanted through the gated phase; double, shape (costs,), 1 where none is asked for.

    They fall from `start`, the cost fractions at the first θ, to the target, which they reach after `reach` of the
    phase, by the same share in every step: so a small network has as long to lose a tenth of its cost as a large one.
    """

    def __init__(self, target: Target, start: torch.Tensor, reach: float = 0.6) -> None:
        self.target = target_fractions(target, start.device, len(start))
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
    Sections that would go at the whole ν go at the beginning. In the warm-up some units are closed at random, so that
    they share the task; without that, how many stay depends on how many happen to have specialised by then.
    """

    def __init__(self, pressure: Pressure) -> None:
        self._pressure = pressure
        self.spreads_units = self.explores = pressure.nu > 0

    def worth(self, measured: Worth) -> torch.Tensor:
        """Never negative."""
        return measured.value

    def slopes(
        self, net: GatedModule, worth: torch.Tensor, dead: torch.Tensor, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ν · ∂C/∂θ; ν is what it has risen to. κ is in `worth`."""
        nu, mix = self._pressure.nu, price_mix(net, self._pressure)
        alive, protected = _alive(net, worth, dead)
        plan = close_below(net, alive, worth, nu, mix, protected)
        early = early_sections(net, alive, plan, worth, mix, progress)
        costs = nu * (mix[:, None] * cost_gradients(net, net.gate_vector.theta)[1]).sum(0)
        slopes = min(1.0, progress / RISES_FOR) * costs
        return torch.where(early, FALLS * worth.abs().clamp(min=TINY), slopes), costs

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

    spreads_units = False
    explores = True

    def __init__(self, schedule: TargetSchedule) -> None:
        self.schedule = schedule

    def worth(self, measured: Worth) -> torch.Tensor:
        """As measured: among gates that seem to do harm, those that do most go first."""
        return measured.estimate

    def slopes(
        self, net: GatedModule, worth: torch.Tensor, dead: torch.Tensor, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Clear the schedule's cost with the worths as they are now; sections that the target will cost go first."""
        alive, protected = _alive(net, worth, dead)
        final = self.schedule.target
        plan, costs = close_until(net, alive.clone(), worth, final, protected, final=final)
        mix = (final < 1).double()
        early = early_sections(net, alive, plan, worth, mix / mix.sum(), progress)
        alive[early] = 0.0
        _, slopes = close_until(net, alive, worth, self.schedule(progress), protected, final=final)
        return torch.where(early, FALLS * worth.abs().clamp(min=TINY), slopes), costs

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


def _alive(net: GatedModule, worth: torch.Tensor, dead: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What has not died, 0/1, and what never closes, bool; shape (gates,)."""
    protected = torch.zeros_like(dead)
    protected[kept_gates(net, worth.masked_fill(dead, -torch.inf))] = True
    return (~dead | protected).to(net.gate_vector.theta.dtype), protected


def early_sections(
    net: GatedModule,
    alive: torch.Tensor,
    plan: torch.Tensor,
    worth: torch.Tensor,
    mix: torch.Tensor,
    progress: float,
) -> torch.Tensor:
    """Of the open sections that the plan for the end closes, those whose turn it is; bool, shape (gates,).

    What a section costs can be spent elsewhere only if it goes before units do. The cheapest for what they are worth go
    first, all that go within the share `EARLY` of the gated phase: so what the others are worth then is measured
    meanwhile, and the plan follows. `alive`, `plan`: 0/1, shape (gates,); `mix`: how much every cost counts.
    """
    falls = torch.zeros_like(alive, dtype=torch.bool)
    closing = (is_section(net) & (alive > 0.5) & (plan < 0.5)).nonzero().reshape(-1)
    gone = len(net.start_structure.sections) - int((is_section(net) & (alive > 0.5)).sum())
    turn = math.ceil((gone + len(closing)) * min(1.0, progress / EARLY)) - gone
    if turn > 0:
        cost = (mix[:, None] * cost_gradients(net, alive)[1][:, closing]).sum(0)
        falls[closing[(worth[closing].double() / cost.clamp(min=TINY)).argsort()[:turn]]] = True
    return falls
