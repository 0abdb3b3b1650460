"""`GateController`: trains the gates beside the user's own optimizer, decides, and shrinks the network.

Three phases. Warm-up: all gates open, only their worth is measured. Gated: gates are sampled, θ follows projected
steps down J(W, Θ) = E[loss] + complexity; structures at zero with drift to zero are dead, and leave network and
optimizer physically every so often. Then the final choice is made, and the plain small network trains on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import nn

from fxcat.carry import average_net, shrink_all
from fxcat.decisions import DEAD, Decisions, ProjectedDescent
from fxcat.distributed import from_main, world_size
from fxcat.errors import InputError, TrainingError
from fxcat.fractions import cost_fractions
from fxcat.gated import GatedModule
from fxcat.per_gate import PerGate
from fxcat.pressure import FixedPressure, PricePolicy, TargetPressure
from fxcat.recipe import check_gates
from fxcat.records import Pressure, Target
from fxcat.selection import best_of_groups, check_reachable, select_structure
from fxcat.worth import Worth

Phase = Literal["warm-up", "gated", "plain"]

PRICES_EVERY = 8
"""Steps between two evaluations of the prices, which change slowly."""
WORTH_SHRINKING = 0.02
"""Share of the present MACs that the dead must have before the network is made anew without them."""


class GateController:
    """The engine of training; call `step()` after every `optimizer.step()`.

    `total_steps`: optimizer steps of the whole run. `warmup`, `until`: the shares of it at which gates begin and end.
    `shrinks`: how often, at most, what is dead leaves the network while gates are trained. `gate_lr`: step of θ; by
    default θ can cross [0, 1] in a fortieth of the gated phase. `averages`: copies of the network that follow it
    (`torch.optim.swa_utils.AveragedModel(net)`) and shrink with it.

    Under `torchrun`, train through `DistributedDataParallel(net)`: all processes draw the same samples and decide the
    same. Whenever `step()` returns True, parameters have other sizes: make a new `DistributedDataParallel(net)`.

    Raises `InputError` (bad phases, an optimizer without the network's weights) and `TargetError` (unreachable).
    """

    def __init__(
        self,
        net: GatedModule,
        optimizer: torch.optim.Optimizer,
        *,
        target: Target | None = None,
        pressure: Pressure | None = None,
        total_steps: int,
        warmup: float = 0.1,
        until: float = 0.55,
        shrinks: int = 8,
        gate_lr: float | None = None,
        averages: Sequence[nn.Module] = (),
        seed: int = 0,
    ) -> None:
        if (target is None) == (pressure is None):
            raise InputError("give either target= or pressure=", remedy="for example target=fxcat.Target(flops=0.5)")
        if total_steps < 1 or not 0 <= warmup < until <= 1 or shrinks < 0:
            raise InputError(
                f"total_steps={total_steps}, warmup={warmup}, until={until}, shrinks={shrinks} do not make a schedule",
                remedy="total_steps ≥ 1, 0 ≤ warmup < until ≤ 1 and shrinks ≥ 0",
            )
        _check_optimizer(net, optimizer)
        for average in averages:
            average_net(average)
        if target is not None:
            check_reachable(net, target)
        self.net, self.optimizer, self.target, self.averages = net, optimizer, target, tuple(averages)
        self._settings: dict[str, Any] = {
            "target": None if target is None else asdict(target),
            "pressure": None if pressure is None else asdict(pressure),
            "total_steps": total_steps,
            "warmup": warmup,
            "until": until,
            "shrinks": shrinks,
            "gate_lr": gate_lr,
        }
        self.first_gated = round(warmup * total_steps)
        self.first_plain = max(self.first_gated + 1, round(until * total_steps))
        self.total_steps = total_steps
        self.steps = 0
        gated = self.first_plain - self.first_gated
        self._shrink_at = {self.first_gated + round(gated * i / (shrinks + 1)) for i in range(1, shrinks + 1)}
        self.prices: PricePolicy
        if pressure is None:
            assert target is not None
            start = cost_fractions(net, net.gate_vector.theta.detach())
            self.prices = TargetPressure(target, start=start)
        else:
            self.prices = FixedPressure(pressure)
        theta = net.gate_vector.theta
        gates, device = theta.numel(), theta.device
        self.worth = Worth(gates, device, window=min(200, max(20, gated // 20)))
        self.descent = ProjectedDescent(gates, device, gate_lr or min(0.1, max(1e-3, 40.0 / gated)))
        self.decisions = Decisions(gates, device, patience=max(10, gated // 50))
        self._slopes: torch.Tensor | None = None
        net.gate_vector.seed(seed)
        net.gate_vector.sampling = False

    @property
    def phase(self) -> Phase:
        """Where the next step belongs."""
        if self.steps < self.first_gated:
            return "warm-up"
        return "gated" if self.steps < self.first_plain else "plain"

    @property
    def undecided(self) -> int:
        """Gates that are neither at zero nor at one."""
        theta = self.net.gate_vector.theta.detach()
        return int(((theta > DEAD) & (theta < 1 - DEAD)).sum())

    def step(self) -> bool:
        """One step of the gates. Returns True if the network has just become smaller."""
        phase = self.phase
        self.steps += 1
        if phase == "plain":
            return False
        vector = self.net.gate_vector
        gradient, vector.theta.grad = vector.theta.grad, None
        if gradient is None:
            raise TrainingError(
                "the gates have no gradient",
                remedy="call controller.step() after loss.backward(), in train() mode, with the loss made from net(x)",
            )
        if math.isfinite(float(gradient.sum())) and vector.sample is not None:
            self.worth.update(gradient, vector.sample, self.net.last_batch * world_size())
            if phase == "gated":
                self._update_theta()
        if self.steps == self.first_gated:
            vector.sampling = True
        if self.steps >= self.first_plain:
            self._finish()
            return True
        return self.steps in self._shrink_at and self._shrink_dead()

    def ends_within(self, steps: int) -> bool:
        """Whether the gated phase ends in one of the next `steps` steps."""
        return self.steps < self.first_plain <= self.steps + steps

    def _update_theta(self) -> None:
        theta, dead = self.net.gate_vector.theta.detach(), self.decisions.dead
        worth = self.prices.worth(self.worth)
        if self._slopes is None or self.steps % PRICES_EVERY == 0:
            self._slopes = self.prices.slopes(self.net, worth, dead, self.progress).float()
        drift = self.descent.step(theta, self._slopes, worth)
        best = best_of_groups(self.net, worth.masked_fill(dead, -torch.inf))
        theta[best] = 1.0  # the best unit of a group never dies
        self.decisions.update(theta, drift)
        theta.masked_fill_(self.decisions.dead, 0.0)
        from_main(theta)

    @property
    def progress(self) -> float:
        """How far the gated phase has come, in [0, 1]."""
        return min(1.0, max(0.0, (self.steps - self.first_gated) / (self.first_plain - self.first_gated)))

    def _shrink_dead(self) -> bool:
        """Remove what is dead, if that makes enough of a difference."""
        alive = (~self.decisions.dead).to(self.net.gate_vector.theta.dtype)
        from_main(alive)
        everything = cost_fractions(self.net, torch.ones_like(alive))
        if float(cost_fractions(self.net, alive)[0]) > (1 - WORTH_SHRINKING) * float(everything[0]):
            return False
        self.shrink(alive)
        return True

    def _finish(self) -> None:
        """Fix the structure, shrink network and optimizer, and leave the rest of the run to plain training."""
        vector = self.net.gate_vector
        setting = vector.hard()
        if self.target is not None:
            score = self.worth.value * (vector.theta.detach().float() + 1e-3)
            setting = select_structure(self.net, self.target, score, setting)
        from_main(setting)
        with torch.no_grad():
            vector.theta.copy_(setting)
        vector.sampling = False
        self.shrink(setting)
        vector.theta.requires_grad_(False)

    def shrink(self, keep: torch.Tensor) -> None:
        """Remove from network, optimizer state and averages what `keep` (0/1, shape (gates,)) leaves out.

        Parameters keep their identity. Raises `PlanError` and `InputError`; then nothing has changed.
        """
        units = self.net.gate_vector.unit_count
        shrunk = shrink_all(self.net, keep, self.optimizer, self.averages)
        origin = shrunk.gate_origin(units).to(keep.device)
        for values in self._per_gate.values():
            values.restrict(origin)
        self._slopes = None

    def state_dict(self) -> dict[str, Any]:
        """All that the gates' training goes on from: tensors and plain data, by name.

        Holds θ and what has left the network, but neither its weights nor the optimizer's state.
        """
        vector, stage = self.net.gate_vector, self.net.recipe[-1]
        state: dict[str, Any] = {
            "settings": dict(self._settings),
            "gates": [list(g) for g in stage.gates],
            "closed": [list(c) for c in stage.closed],
            "steps": self.steps,
            "theta": vector.theta.detach().clone(),
            "trains": vector.theta.requires_grad,
            "samples": vector.sampling,
            "random": vector.random_state,
            "slopes": None if self._slopes is None else self._slopes.clone(),
        }
        for part, values in self._per_gate.items():
            state |= {f"{part}.{name}": value for name, value in values.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, with a network that has just been prepared and its new optimizer.

        What had left the network leaves it again, and the optimizer and the averages too. So call this first, and then
        `load_state_dict` of the network, the optimizer and the averages.

        Raises `InputError` if the state is that of another network or run; then nothing has changed.
        """
        vector, stage = self.net.gate_vector, self.net.recipe[-1]
        missing = self.state_dict().keys() - state.keys()
        if missing:
            raise InputError(f"this is no state of a GateController: it has no {min(missing)!r}")
        check_settings(self._settings, state["settings"])
        check_gates(stage.gates, tuple((name, count) for name, count in state["gates"]))
        closed = tuple(tuple(c) for c in state["closed"])
        if closed[: len(stage.closed)] != stage.closed:
            raise InputError(
                "the network has lost other gates than the one that was stored",
                remedy="call prepare() on the model again",
            )
        for numbers in closed[len(stage.closed) :]:
            self.shrink(vector.open_but(numbers))
        self.steps = state["steps"]
        with torch.no_grad():
            vector.theta.copy_(state["theta"])
        vector.theta.requires_grad_(state["trains"])
        vector.sampling, vector.random_state = state["samples"], state["random"]
        self._slopes = None if state["slopes"] is None else state["slopes"].to(vector.theta.device, copy=True)
        for part, values in self._per_gate.items():
            values.load_state_dict({k.removeprefix(f"{part}."): v for k, v in state.items()})

    @property
    def _per_gate(self) -> Mapping[str, PerGate]:
        return {"worth": self.worth, "descent": self.descent, "decisions": self.decisions}


def check_settings(now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Raise `InputError` if a run that is to go on has other settings than it had."""
    for name, value in now.items():
        if then.get(name) != value:
            raise InputError(
                f"the run that was stored had {name}={then.get(name)!r}, this one has {value!r}",
                remedy="continue a run with the arguments that it was started with",
            )


def _check_optimizer(net: GatedModule, optimizer: torch.optim.Optimizer) -> None:
    """The optimizer must hold the network's weights; θ is the controller's and is taken out of it."""
    weights = {id(p) for p in net.weight_parameters()}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not weights & held:
        raise InputError(
            "the optimizer holds none of the gated network's weights",
            remedy="make it after prepare(): optimizer = torch.optim.SGD(net.weight_parameters(), lr=…)",
        )
    theta = net.gate_vector.theta
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not theta]
