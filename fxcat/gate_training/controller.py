"""`GateController`: trains the gates beside the user's own optimizer, decides, and shrinks the network.

Three phases. Warm-up: no gate is trained, only their worth is measured. Gated: the policy moves θ and says what is
dead, which leaves network and optimizer physically every so often. Then the final choice is made, and the plain small
network trains on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fxcat.checks import check_callable, check_instance, check_integer, plain_number
from fxcat.choosing.cost_shares import cost_fractions, wanted_of
from fxcat.choosing.select import check_reachable, reachable_with, select_structure
from fxcat.choosing.widths import nearest_aligned
from fxcat.data.batches import HeldOut
from fxcat.data.losses import Loss, cross_entropy
from fxcat.errors import FxcatError
from fxcat.gate_training.arguments import check_controller_arguments, check_of_ratio
from fxcat.gate_training.bernoulli import BernoulliPolicy
from fxcat.gate_training.decisions import DEAD
from fxcat.gate_training.optimizer_shapes import check_state
from fxcat.gate_training.optimizers import Optimizers, as_list, check_held, check_kept_elsewhere, check_weights, holding
from fxcat.gate_training.policy import GatePolicy
from fxcat.gate_training.ratio import RatioPolicy
from fxcat.gate_training.rehearsal import rehearse
from fxcat.gate_training.said_of_gates import SaidByHeldOut, SaidByTraining, held_out_batch, said_by_held_out
from fxcat.gate_training.schedule import SHRINKS, UNTIL, Phase, Schedule
from fxcat.gate_training.settings import check_settings, check_size, check_stored, settings_of, warn_if_resumed
from fxcat.gate_training.shrinking import average_net, averages_of, shrink_all
from fxcat.gate_training.watched import Steps, watch_all, without_gates
from fxcat.gated import GatedModule
from fxcat.network.ddp import check_same_weights
from fxcat.network.following import Led
from fxcat.network.gates import check_setting
from fxcat.network.notices import BEFORE_STEPS
from fxcat.network.program import Shrunk
from fxcat.records import Pressure, Target
from fxcat.utils.processes import from_main
from fxcat.utils.uninterrupted import uninterrupted
from fxcat.utils.usual_modes import as_called, usual_modes

Closure = Callable[[], torch.Tensor]

POLICIES = {"bernoulli": BernoulliPolicy, "ratio": RatioPolicy}
WORTH_SHRINKING = 0.02
"""Share of the present MACs that the dead must have before the network is made anew without them."""


class GateController:
    """The engine of training; call `step()` after every `optimizer.step()`.

    `total_steps`: optimizer steps of the whole run. `warmup`, `until`: the shares of it at which gates begin and end;
    by default they begin early, since time that is spent in layers that will go is lost: after 3 % of the run, in
    short ones after 100 steps, at the latest after a tenth.
    `shrinks`: how often, at most, what is dead leaves the network while gates are trained. `gate_lr`: step of θ (with
    `policy="ratio"` of the ratios); by default they can cross [0, 1] in a small part of the gated phase. `averages`:
    copies of the network that follow it (`torch.optim.swa_utils.AveragedModel(net)`) and shrink with it.

    `held_out`: batches `(inputs, targets)` that the weights do not see, taken over and over, and `loss(output,
    targets)` on them: what the ratios of `policy="ratio"` learn from.

    `optimizer`: of the weights, or a list of several that share them. What the loss says of the gates is taken in its
    backward pass, of every forward pass, and counts if an optimizer makes a step with the weights' gradients of the
    same backward pass: gradients may be accumulated, clipped, scaled (a `torch.amp.GradScaler` whose `step` is called
    is found; `scaler` is for one that is not), and batches that are skipped do not count.

    Under `torchrun`, train through `DistributedDataParallel(net)`: all processes draw the same samples and decide the
    same. When parameters get other sizes, it is prepared for them anew (`rewrap`).

    Raises `InputError` (bad phases, optimizers without all weights that are trained, or that cannot follow when these
    shrink) and `TargetError` (unreachable).
    """

    @usual_modes()
    def __init__(
        self,
        net: GatedModule,
        optimizer: Optimizers,
        *,
        target: Target | None = None,
        pressure: Pressure | None = None,
        total_steps: int,
        warmup: float | None = None,
        until: float = UNTIL,
        shrinks: int = SHRINKS,
        gate_lr: float | None = None,
        averages: Sequence[nn.Module] = (),
        held_out: Iterable[Any] | None = None,
        loss: Loss = cross_entropy,
        scaler: torch.amp.GradScaler | None = None,
        seed: int = 0,
    ) -> None:
        check_controller_arguments(**locals())
        total_steps, shrinks, seed, until = int(total_steps), int(shrinks), int(seed), float(until)
        warmup, gate_lr = plain_number(warmup), plain_number(gate_lr)
        self.schedule = Schedule.of(total_steps, warmup, until, shrinks)
        net.led.check_free()
        found = as_list(optimizer)
        check_weights(net, found)
        check_kept_elsewhere(net, optimizer)
        self.optimizers = holding(net, found)
        check_state(net.network, self.optimizers, loaded=True)
        averages = averages_of(net, averages)
        if target is not None:
            check_reachable(net, target)
        self.net, self.target, self.averages = net, target, averages
        given = {"total_steps": total_steps, "warmup": warmup, "until": until, "shrinks": shrinks, "gate_lr": gate_lr}
        self._settings = settings_of(net, target, pressure) | given
        if target is not None and not bool((wanted_of(net, target) < 1).any()):
            self.schedule = Schedule(0, 0, shrinks)  # it asks for nothing
        self.total_steps, self.steps, self._shrunk_at = total_steps, 0, -1
        self._said, self._is_checked = SaidByTraining(), self.phase == "plain"
        self.objective: Any = pressure or target
        gated = self.schedule.gated
        self.policy: GatePolicy = POLICIES[net.policy](net, self.objective, gated=gated, gate_lr=gate_lr)
        self._loss = loss
        self._held_out = None if held_out is None else HeldOut(held_out)
        self._scaler = scaler
        self._made = Steps(net, watch_all(self.optimizers, net, scaler, given=optimizer), total_steps)
        without_gates(net, found)
        self._lead()
        net.gate_vector.seed(seed)
        if self.phase == "plain":
            self._settle(net.gate_vector.hard())
        else:
            net.gate_vector.values = self.policy.warm_up if self.phase == "warm-up" else self.policy.values
            self._say_unfinished()

    def __repr__(self) -> str:
        gates = f"gates are trained in steps {self.schedule.first_gated} to {self.schedule.first_plain}"
        now = f"step {self.steps} of {self.total_steps}: {self.phase}; {gates}, {self.undecided} undecided"
        return f"GateController({self.objective}, {now})"

    def _lead(self) -> None:
        """The network is trained by this controller from now on."""
        BEFORE_STEPS.tell(self.notice)
        self.net.led = Led(self)
        self.net.gate_vector.draws.is_heard = self.phase != "plain"

    @property
    def phase(self) -> Phase:
        """Where the next step belongs."""
        return self.schedule.phase(self.steps)

    @property
    def undecided(self) -> int:
        """Gates that are neither at zero nor at one."""
        theta = self.net.gate_vector.theta.detach()
        return int(((theta > DEAD) & (theta < 1 - DEAD)).sum())

    @property
    def wants_held_out(self) -> bool:
        """Whether the next step takes a batch that the weights do not see."""
        every = self.policy.held_out_every
        return every > 0 and self.phase == "gated" and (self.steps + 1) % every == 0

    def step(self, *, closure: Closure | None = None, held_out: tuple[Any, Any] | None = None) -> bool:
        """One step of the gates. Returns True if the network has just become smaller.

        Nothing happens where no optimizer has made a step since the last one, as between the parts of an accumulated
        batch. `closure`: returns the loss of the step's batch, `lambda: criterion(net(x), y)`. With it one section per
        step, in turn, is measured by the difference of two forward passes, with it and without it, in place of an
        estimate from the backward pass. `held_out`: the batch to take when `wants_held_out`, in place of those given
        at the start; there need be no training step before it.

        Raises `TrainingError` without a gradient and for a held-out loss that is not finite, and `InputError` where a
        held-out batch is wanted and there is none.
        """
        check_callable(closure, "closure", optional=True)
        if held_out is not None:
            check_of_ratio(self.net, "held_out")
        self.net.led.check_by(self)
        closure, said = None if closure is None else as_called(closure), as_called(said_by_held_out)
        with usual_modes(), uninterrupted(), self._undone():
            waits = not self._made.have_been_made(may_wait=self.phase == "plain") and held_out is None
            return False if waits else self._stepped(closure, held_out, said)

    def _stepped(self, closure: Closure | None, held_out: tuple[Any, Any] | None, said: SaidByHeldOut) -> bool:
        """What `step` does where an optimizer has made one. `said`: what a held-out batch says of the gates."""
        phase, wants_held_out = self.phase, self.wants_held_out
        self._check_optimizers()
        self.steps += 1
        if self._shrunk_at == self.steps - 1:
            check_same_weights(self.net.network)
        if phase == "plain":
            self.schedule.check_end(self.steps, self.total_steps)
            return False
        self.net.copies.check(self.net, map(average_net, self.averages))
        check_held(self.net, self.optimizers)
        theta = self.net.gate_vector.theta
        if theta.numel():  # else all that could go has gone
            if not wants_held_out or held_out is None:
                self._observe(closure)
            if wants_held_out:
                self._observe_held_out(held_out, said)
            if phase == "gated":
                self.policy.update(self.steps, self.schedule.progress(self.steps))
                from_main(theta.detach())
        if self.steps == self.schedule.first_gated:
            self.net.gate_vector.values = self.policy.values
        if self.phase == "plain":
            self._finish()
            return True
        return self.schedule.may_shrink(self.steps) and self._shrink_dead()

    @contextmanager
    def _undone(self) -> Generator[None, None, None]:
        """A step that ends in an error was none: of the next one more may come."""
        before = self.steps
        try:
            yield
        except BaseException:
            self.steps = before
            raise

    def ends_within(self, steps: int) -> bool:
        """Whether the gated phase ends in one of the next `steps` steps."""
        check_integer(steps, "steps", least=0)
        return self.steps < self.schedule.first_plain <= self.steps + steps

    def notice(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer, any one, is about to make a step: one with weights of the network follows it from now on."""
        check_instance(optimizer, torch.optim.Optimizer, "optimizer")
        if self.net.led.by is not self or any(o.state is optimizer.state for o in self.optimizers):
            return
        weights = {id(p) for p in self.net.network.parameters()}
        if any(id(p) in weights for group in optimizer.param_groups for p in group["params"]):
            self.optimizers.append(optimizer)
            self._made.watch(*watch_all([optimizer], self.net, self._scaler))
            self._is_checked = self.phase == "plain"  # in which nothing becomes smaller any more

    def _check_optimizers(self) -> None:
        """Once, when they have state: whether they can follow when weights become smaller."""
        if not self.steps:
            self.net.check_weights()  # people may wrap the network after this was made
            warn_if_resumed(self.net)
        if self._is_checked or not any(o.state for o in self.optimizers):
            return
        check_state(self.net.network, self.optimizers)
        rehearse(self.optimizers, self.net.network)
        self._is_checked = True

    def _observe(self, closure: Closure | None) -> None:
        """Learn from the training step that was just made."""
        self.policy.observe(self._said.taken(self.net.gate_vector))
        if closure is not None:
            self.policy.measure(self.steps, closure)

    def _observe_held_out(self, batch: tuple[Any, Any] | None, said: SaidByHeldOut) -> None:
        """Learn from a batch that the weights do not see."""
        batch = held_out_batch(batch, self._held_out)
        self.policy.observe_held_out(said(self.net, batch, self._loss, self.steps))

    def _shrink_dead(self) -> bool:
        """Remove what is dead, if that makes enough of a difference."""
        alive = (~self.policy.dead).to(self.net.gate_vector.theta.dtype)
        if self.net.limits.aligned:
            alive = nearest_aligned(self.net, alive, self.policy.score(), up=True)
        if self.target is not None:
            alive = reachable_with(self.net, self.target, alive)
        from_main(alive)
        everything = cost_fractions(self.net, torch.ones_like(alive))
        if float(cost_fractions(self.net, alive)[0]) > (1 - WORTH_SHRINKING) * float(everything[0]):
            return False
        self.shrink(alive)
        return True

    @usual_modes()
    def finish(self) -> bool:
        """End the gated phase now, if it has not ended: the target is met, and what goes leaves the network.

        For loops that end early. Returns True if the network has just become smaller.
        """
        if self.phase == "plain":
            return False
        with uninterrupted(), self._undone():
            self.steps = self.schedule.first_plain
            self._finish()
        return True

    def _finish(self) -> None:
        """Fix the structure, shrink network and optimizer, and leave the rest of the run to plain training."""
        self.net.check_weights()
        vector = self.net.gate_vector
        setting = vector.hard()
        if self.target is not None:
            setting = select_structure(self.net, self.target, self.policy.score(), setting)
        elif self.net.limits.aligned:
            setting = nearest_aligned(self.net, setting, self.policy.score())
        from_main(setting)
        theta = vector.theta.detach().clone()
        with torch.no_grad():
            vector.theta.copy_(setting)
        # before what wraps the network is prepared for the parameters that are left
        vector.theta.requires_grad_(False)
        try:
            self.shrink(setting)
        except FxcatError:
            vector.theta.requires_grad_(True)
            with torch.no_grad():
                vector.theta.copy_(theta)
            raise
        self._settle(vector.hard())

    def _settle(self, setting: torch.Tensor) -> None:
        """No gate is trained any more, in no copy: an average of θ says nothing of what was decided."""
        for vector in (n.gate_vector for n in (self.net, *map(average_net, self.averages))):
            with torch.no_grad():
                vector.theta.copy_(setting)
            vector.values = "hard"
            vector.theta.requires_grad_(False)
            vector.draws.forget()
            vector.draws.is_heard = False
        self._say_unfinished()

    def _say_unfinished(self) -> None:
        by = str(self.objective) if self.target is None else f"target={self.target}"
        self.net.unfinished = None if self.phase == "plain" else f"GateController({by})"

    @usual_modes()
    @uninterrupted()
    def shrink(self, keep: torch.Tensor, *, loaded: bool = False) -> Shrunk:
        """Remove from network, optimizer state and averages what `keep` (0/1, shape (gates,)) leaves out.

        Parameters keep their identity. `loaded`: as a state says that is being loaded.

        Raises `PlanError` and `InputError`; then nothing has changed.
        """
        check_instance(keep, torch.Tensor, "keep")
        check_setting(keep, self.net.gate_vector.theta)
        units = self.net.gate_vector.unit_count
        shrunk = shrink_all(self.net, keep, self.optimizers, self.averages, loaded=loaded)
        self.net.wrappers.follow(self.net)
        self._shrunk_at = self.steps
        self.policy.restrict(shrunk.gate_origin(units).to(keep.device))
        return shrunk

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lead()

    def state_dict(self) -> dict[str, Any]:
        """All that the gates' training goes on from: tensors and plain data, by name.

        Holds θ and what has left the network, but neither its weights nor the optimizer's state.
        """
        vector, stage = self.net.gate_vector, self.net.recipe[-1]
        state: dict[str, Any] = {
            "settings": dict(self._settings),
            "schedule": [self.schedule.first_gated, self.schedule.first_plain],
            "gates": [list(g) for g in stage.gates],
            "closed": [list(c) for c in stage.closed],
            "steps": self.steps,
            "theta": vector.theta.detach().clone(),
            "trains": self.phase != "plain",
            "values": vector.values,
            "random": vector.random_state,
            "appraisal": self.net.appraisal.state(),
        }
        return state | self.policy.state_dict()

    @usual_modes()
    @uninterrupted()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, with a network that has just been prepared and its new optimizer.

        What had left the network leaves it again, and the optimizer and the averages too: so do `load_state_dict` of
        the network and of the optimizers, in any order. `total_steps` may be more than it was: the run is prolonged,
        gates keep the phases that they were begun with, and what is added is plain training.

        Raises `InputError` if the state is that of another network or run; then nothing has changed.
        """
        check_stored(state, self.state_dict())
        vector = self.net.gate_vector
        check_settings(self._settings, state["settings"], may_grow="total_steps")
        self.net.follow(tuple((name, count) for name, count in state["gates"]), state["closed"])
        check_size(state, vector.theta)
        self.steps = state["steps"]
        first_gated, first_plain = state["schedule"]
        self.schedule = Schedule(first_gated, first_plain, self.schedule.shrinks)
        self.policy.pace(self.schedule.gated)
        with torch.no_grad():
            vector.theta.copy_(state["theta"])
        if vector.theta.requires_grad != state["trains"]:
            vector.theta.requires_grad_(state["trains"])
            self.net.wrappers.follow(self.net)
        vector.values, vector.random_state = state["values"], state["random"]
        self.net.appraisal.load(state["appraisal"])
        self.policy.load_state_dict(state)
        vector.draws.is_heard, self.net.is_resumed = self.phase != "plain", False
        if self.phase == "plain":
            self._settle(vector.theta.detach())
        self._say_unfinished()
