"""`GateController`: trains the gates beside the user's own optimizer, decides, and shrinks the network.

Three phases. Warm-up: all gates open, only their worth is measured. Gated: gates are sampled, θ follows projected
Adam steps on J(W, Θ) = E[loss] + complexity; structures at zero with drift to zero are dead. Then the final choice
is made, the dead leave network and optimizer physically, and the plain small network trains on.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from fxcat.errors import InputError, TrainingError
from fxcat.gated import GatedModule
from fxcat.objective import AdaptivePressure, FixedPressure, cost_gradients
from fxcat.records import Pressure, Target
from fxcat.selection import best_of_groups, check_reachable, is_section, select_structure
from fxcat.slicing import select
from fxcat.worth import Worth

Phase = Literal["warm-up", "gated", "plain"]

DEAD = 0.05
"""θ at or below this, with a drift to zero for `PATIENCE` steps, is dead; θ at 1 − DEAD or above is not in play."""
PATIENCE = 10
PRICES_EVERY = 4
"""Steps between two evaluations of the cost gradient, which changes slowly."""


class GateController:
    """The engine of training; call `step()` after every `optimizer.step()`.

    `total_steps`: optimizer steps of the whole run. `warmup`, `until`: the shares of it at which gates begin and end.
    `gate_lr`: step of θ; by default θ can cross [0, 1] in a tenth of the gated phase.

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
        gate_lr: float | None = None,
        seed: int = 0,
    ) -> None:
        if (target is None) == (pressure is None):
            raise InputError("give either target= or pressure=", remedy="for example target=fxcat.Target(flops=0.5)")
        if total_steps < 1 or not 0 <= warmup < until <= 1:
            raise InputError(
                f"total_steps={total_steps}, warmup={warmup}, until={until} do not make a schedule",
                remedy="total_steps ≥ 1 and 0 ≤ warmup < until ≤ 1",
            )
        _check_optimizer(net, optimizer)
        if target is not None:
            check_reachable(net, target)
        self.net, self.optimizer, self.target, self.pressure = net, optimizer, target, pressure
        self.first_gated = round(warmup * total_steps)
        self.first_plain = max(self.first_gated + 1, round(until * total_steps))
        self.total_steps = total_steps
        self.steps = 0
        steps = self.first_plain - self.first_gated
        self.gate_lr = gate_lr if gate_lr is not None else min(0.1, max(1e-3, 10.0 / steps))
        self.complexity = AdaptivePressure(target) if target is not None else FixedPressure(_given(pressure))
        self._layers = pressure.layers if pressure is not None else 0.5
        self._reset(net.gate_vector.theta)
        net.gate_vector.seed(seed)
        net.gate_vector.sampling = False

    def _reset(self, theta: torch.Tensor) -> None:
        self.worth = Worth(theta.numel(), theta.device)
        self._momentum = torch.zeros_like(theta, dtype=torch.float32)
        self._scale = torch.zeros_like(theta, dtype=torch.float32)
        self._falling = torch.zeros_like(theta, dtype=torch.int64)
        self._prices: tuple[torch.Tensor, torch.Tensor] | None = None
        self._emphasis = torch.where(is_section(self.net), 2 * self._layers, 2 * (1 - self._layers))
        self.dead = torch.zeros_like(theta, dtype=torch.bool)

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
            self.worth.update(gradient, vector.sample, self.net.last_batch)
            if phase == "gated":
                self._update_theta()
        if self.steps == self.first_gated:
            vector.sampling = True
            self._begin()
        if self.steps >= self.first_plain:
            self._finish()
            return True
        return False

    def _begin(self) -> None:
        """Start with a pressure that already moves the least valuable tenth of the cost."""
        if isinstance(self.complexity, AdaptivePressure):
            _, gradients = cost_gradients(self.net, self.net.gate_vector.theta, self.complexity.active)
            price = gradients.sum(0)
            ratio = (self.worth.value.double() / price.clamp(min=1e-15)).sort().values
            self.complexity.start_at(float(ratio[len(ratio) // 10].clamp(min=1e-9)))

    def _update_theta(self) -> None:
        theta = self.net.gate_vector.theta
        if self._prices is None or self.steps % PRICES_EVERY == 0:
            self._prices = cost_gradients(self.net, theta, self.complexity.active)
        fractions, gradients = self._prices
        progress = (self.steps - self.first_gated) / (self.first_plain - self.first_gated)
        self.complexity.update(fractions, progress)
        weights = self.complexity.weights().to(gradients.device)
        slope = (weights[:, None] * gradients).sum(0).float()
        slope *= self._emphasis
        drift = slope - self.worth.value
        self._momentum.lerp_(drift, 0.1)
        self._scale.lerp_(drift.square(), 0.01)
        count = self.steps - self.first_gated
        momentum = self._momentum / (1 - 0.9**count)
        scale = (self._scale / (1 - 0.99**count)).sqrt()
        move = self.gate_lr * momentum / scale.clamp(min=1e-20)
        with torch.no_grad():
            theta.copy_((theta - move.to(theta.dtype)).clamp(0, 1).masked_fill(self.dead, 0.0))
        self._decide(momentum)

    def _decide(self, drift: torch.Tensor) -> None:
        """Mark what is at zero and stays there; the best unit of a group never dies."""
        theta = self.net.gate_vector.theta
        best = best_of_groups(self.net, self.worth.value.masked_fill(self.dead, -torch.inf))
        with torch.no_grad():
            theta[best] = theta[best].clamp(min=1.0)
        sinking = (theta.detach() <= DEAD) & (drift > 0)
        self._falling = torch.where(sinking, self._falling + 1, 0)
        self.dead |= self._falling >= PATIENCE
        with torch.no_grad():
            theta.masked_fill_(self.dead, 0.0)

    def _finish(self) -> None:
        """Fix the structure, shrink network and optimizer, and leave the rest of the run to plain training."""
        vector = self.net.gate_vector
        setting = vector.hard()
        if self.target is not None:
            score = self.worth.value * (vector.theta.detach().float() + 1e-3)
            setting = select_structure(self.net, self.target, score, setting)
        with torch.no_grad():
            vector.theta.copy_(setting)
        vector.sampling = False
        self.shrink()
        vector.theta.requires_grad_(False)

    def shrink(self) -> None:
        """Remove everything with θ ≤ ½ from the network and from the optimizer's state; parameters keep identity."""
        before = dict(self.net.network.named_parameters())
        shapes = {n: p.shape for n, p in before.items()}
        shrunk = self.net.shrink()
        for name, axes in shrunk.keep.items():
            if name in before:
                state: dict[str, Any] = self.optimizer.state.get(before[name], {})
                for key, value in state.items():
                    if isinstance(value, torch.Tensor) and value.shape == shapes[name]:
                        state[key] = select(value, axes)
        left = {id(p) for p in self.net.network.parameters()}
        gone = {id(p): p for p in before.values() if id(p) not in left}
        for group in self.optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in gone]
        for parameter in gone.values():
            self.optimizer.state.pop(parameter, None)
        self._reset(self.net.gate_vector.theta)


def _given(pressure: Pressure | None) -> Pressure:
    assert pressure is not None
    return pressure


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
