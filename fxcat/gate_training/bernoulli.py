"""`policy="bernoulli"`: gates are sampled, and θ descends J(W, Θ) = E[loss] + complexity to a vertex.

arXiv 2411.09127 (units and layers), 2205.04650 (units), 2406.04549 (layers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch

from fxcat.choosing.cost_shares import cost_fractions
from fxcat.choosing.groups import is_section, kept_gates
from fxcat.choosing.sharing import shared_worth
from fxcat.gate_training.decisions import Decisions, ProjectedDescent
from fxcat.gate_training.per_gate import PerGate
from fxcat.gate_training.pressure import FixedPressure, PricePolicy, TargetPressure, TargetSchedule
from fxcat.gate_training.section_difference import loss_difference
from fxcat.gate_training.worth import Worth
from fxcat.gated import GatedModule
from fxcat.network.draws import Draw
from fxcat.network.gates import Values
from fxcat.records import Pressure, Target

SPREAD_UNITS = 0.1
"""Share of the units that is closed at random in the warm-up under a fixed pressure (dropout of whole channels: Tompson
et al. 2015, arXiv 1411.4280): so units share the task."""
SPREAD_SECTIONS = 0.05
"""Share of the sections that is closed at random in the warm-up (stochastic depth: Huang et al. 2016, arXiv
1603.09382): so both ends of what they are worth are seen."""
EXPLORED = 0.02
"""The same in the gated phase."""
PRICES_EVERY = 8
"""Steps between two evaluations of the prices, which change slowly."""


class BernoulliPolicy:
    """θ follows projected steps; structures at zero with drift to zero are dead.

    `gated`: steps of the gated phase. `gate_lr`: step of θ; by default θ can cross [0, 1] in a fortieth of it.
    """

    values: ClassVar[Values] = "sampled"
    warm_up: ClassVar[Values] = "spread"
    held_out_every: ClassVar[int] = 0

    def __init__(
        self, net: GatedModule, objective: Target | Pressure, *, gated: int, gate_lr: float | None = None
    ) -> None:
        self.net = net
        self.prices: PricePolicy
        if isinstance(objective, Target):
            self.prices = TargetPressure(TargetSchedule(objective, cost_fractions(net, net.gate_vector.theta.detach())))
        else:
            self.prices = FixedPressure(objective)
        units, explores = SPREAD_UNITS * self.prices.spreads_units, self.prices.explores
        net.gate_vector.spread, net.gate_vector.explored = (units, SPREAD_SECTIONS * explores), EXPLORED * explores
        self._layers = objective.layers
        theta = net.gate_vector.theta
        gates, device = theta.numel(), theta.device
        self.worth = Worth(gates, device, explored=is_section(net))
        self.descent = ProjectedDescent(gates, device)
        self.decisions = Decisions(gates, device)
        self._gate_lr = gate_lr
        self.pace(gated)
        self._slopes: torch.Tensor | None = None
        self._shared: torch.Tensor | None = None
        self._sample: torch.Tensor | None = None

    def pace(self, gated: int) -> None:
        """The gated phase has so many steps."""
        self.worth.window = min(200, max(20, gated // 20))
        self.descent.lr = self._gate_lr or min(0.1, max(1e-3, 40.0 / gated))
        self.decisions.patience = max(10, gated // 50)

    @property
    def dead(self) -> torch.Tensor:
        """Gates in the domain of attraction of zero."""
        return self.decisions.dead

    def observe(self, draws: Sequence[Draw]) -> None:
        """Measure what gates are worth."""
        self._sample = draws[-1].sample if draws else self._sample
        self.worth.update(draws)

    def observe_held_out(self, draws: Sequence[Draw]) -> None:
        """Nothing: the training batches say it all."""

    def measure(self, step: int, loss: Callable[[], torch.Tensor]) -> None:
        """The difference that one section makes, those that may stay in turn."""
        sections = (is_section(self.net) & ~self.dead).nonzero().reshape(-1).tolist()
        if sections:
            gate = sections[step % len(sections)]
            sample = self.net.gate_vector.hard() if self._sample is None else self._sample
            difference = loss_difference(self.net, sample, gate, loss)
            self.worth.measured(gate, difference, every=len(sections))

    def update(self, step: int, progress: float) -> None:
        """One projected step."""
        theta, dead = self.net.gate_vector.theta.detach(), self.dead
        single = self.prices.worth(self.worth)
        if self._slopes is None or self._shared is None or step % PRICES_EVERY == 0:
            self._shared = worth = shared_worth(self.net, single, ~dead, self._layers)
            slopes, costs = self.prices.slopes(self.net, worth, dead, progress)
            self._slopes = slopes.float()
            self.net.appraisal.note(self.net.gate_vector.numbers, worth, costs)
        drift = self.descent.step(theta, self._slopes, self._shared)
        best = kept_gates(self.net, single.masked_fill(dead, -torch.inf))
        theta[best] = 1.0  # never all of a group dies
        self.decisions.update(theta, drift, partial(self.prices.dispensable, self.net, dead))
        theta.masked_fill_(self.dead, 0.0)

    def score(self) -> torch.Tensor:
        """What closing costs, for those in play less of it."""
        worth = shared_worth(self.net, self.worth.value, ~self.dead, self._layers)
        return worth * (self.net.gate_vector.theta.detach().float() + 1e-3)

    def restrict(self, origin: torch.Tensor) -> None:
        """Keep the entries `origin` only."""
        for values in self._per_gate.values():
            values.restrict(origin)
        self._slopes = self._shared = self._sample = None

    def state_dict(self) -> dict[str, Any]:
        """Worths, momentum, decisions and prices."""
        held = {"slopes": self._slopes, "shared": self._shared}
        state: dict[str, Any] = {name: None if values is None else values.clone() for name, values in held.items()}
        for part, values in self._per_gate.items():
            state |= {f"{part}.{name}": value for name, value in values.state_dict().items()}
        return state | {f"prices.{name}": value for name, value in self.prices.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        device = self.net.gate_vector.theta.device
        self._slopes, self._shared = (
            None if state[name] is None else state[name].to(device, copy=True) for name in ("slopes", "shared")
        )
        for part, values in (*self._per_gate.items(), ("prices", self.prices)):
            values.load_state_dict({k.removeprefix(f"{part}."): v for k, v in state.items()})

    @property
    def _per_gate(self) -> Mapping[str, PerGate]:
        return {"worth": self.worth, "descent": self.descent, "decisions": self.decisions}
