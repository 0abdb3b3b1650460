"""`GateCallback`: a Lightning `Trainer` trains the gates of the network that its module holds."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from fxcat.controller import GateController
from fxcat.errors import InputError
from fxcat.fractions import cost_fractions
from fxcat.gated import GatedModule
from fxcat.integrations.found import gated_in
from fxcat.records import Pressure, Target

_PHASES = ("warm-up", "gated", "plain")
_PLACES = ("dirpath", "last_model_path")
"""What the state of another callback says of files, whatever it has seen."""


class GateCallback(Callback):
    """Trains gates: `Trainer(callbacks=[GateCallback(target=fxcat.Target(flops=0.5))])`, on a `LightningModule` that
    holds what `prepare` returned. Works with `lightning` and `pytorch_lightning`.

    `target`, `pressure`, `settings`: as for `GateController`. `total_steps`: optimizer steps of the whole run, by
    default those that the trainer estimates; a run that is resumed keeps those that it had. `log`: whether the expected
    cost, as fractions of the start network, and the phase (0 warm-up, 1 gated, 2 plain) are logged after every epoch as
    `gates/flops`, `gates/params`, `gates/phase`.

    Its state is in the trainer's checkpoints. Averaged copies that other callbacks hold become smaller too. When the
    structure is decided, callbacks that monitor a metric (best checkpoint, patience) begin anew: what they have seen is
    of larger networks. A run that ends before, but is not interrupted, is cut to its target then, with a warning.

    Raises `InputError` when `fit` begins (as `GateController` does; no or several networks with gates; no known number
    of steps; a strategy that shards parameters) and after its first epoch (the network is not called, or so rarely that
    the gates would not be decided).
    """

    controller: GateController | None = None
    """What trains the gates, from when `fit` begins."""

    def __init__(
        self,
        *,
        target: Target | None = None,
        pressure: Pressure | None = None,
        total_steps: int | None = None,
        log: bool = True,
        **settings: Any,
    ) -> None:
        self._settings: dict[str, Any] = {"target": target, "pressure": pressure, **settings}
        inspect.signature(GateController).bind(None, None, total_steps=total_steps, **self._settings)  # names
        self._total_steps, self._log = total_steps, log
        self._state: dict[str, Any] | None = None
        self._others: list[tuple[Any, dict[str, Any]]] = []
        self._was_called = self._is_on_time = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before anything is restored."""
        self._state = None
        if stage != "fit":
            return
        if trainer.strategy.restore_checkpoint_after_setup:  # since they replace the parameters by others
            raise InputError(
                f"{type(trainer.strategy).__name__} shards parameters: pieces of them cannot become smaller",
                remedy='use Trainer(strategy="ddp")',
            )
        monitoring = [c for c in trainer.callbacks if getattr(c, "monitor", None) is not None]
        self._others = [(c, deepcopy(c.state_dict())) for c in monitoring]

    def state_dict(self) -> dict[str, Any]:
        """Of the controller."""
        return {} if self.controller is None else self.controller.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """For the controller, which is made later: the trainer has no optimizers yet."""
        self._state = state_dict

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Optimizers have been made, and their states are loaded next."""
        net, state, before = gated_in(pl_module, "GateCallback"), self._state, self.controller
        if state is None and before is not None and before.net is net:
            if before.phase == "plain":  # a second fit trains what is left
                return
            state = before.state_dict()
        self.controller = before = None  # two of them would undo what the other does
        self._was_called = self._is_on_time = False
        optimizers, averages = pl_module.optimizers(), _copies(trainer.callbacks, net)
        self.controller = GateController(
            net,
            optimizers if isinstance(optimizers, list) else [optimizers],  # pyright: ignore[reportArgumentType]
            total_steps=self._steps(trainer, state),
            averages=averages,
            **self._settings,
        )
        if state is not None:
            self.controller.load_state_dict(state)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Between optimizer steps the controller does nothing."""
        controller = _made(self.controller)
        phase, was_called = controller.phase, controller.net.gate_vector.draws.made > 0
        self._was_called |= was_called
        if was_called or phase == "plain":
            controller.step()
        if controller.phase == "plain" != phase:
            for callback, state in self._others:
                now = callback.state_dict()
                callback.load_state_dict(state | {k: now[k] for k in _PLACES if k in now})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs."""
        controller = _made(self.controller)
        if controller.phase != "plain" and not self._is_on_time:
            self._check_pace(trainer, pl_module, controller)
            self._is_on_time = True
        if self._log:
            net = controller.net
            flops, params = cost_fractions(net, net.gate_vector.theta.detach().double()).tolist()
            values = {"flops": flops, "params": params, "phase": float(_PHASES.index(controller.phase))}
            pl_module.log_dict({f"gates/{k}": torch.tensor(v) for k, v in values.items()}, sync_dist=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not where it is interrupted."""
        controller = _made(self.controller)
        if controller.phase != "plain":
            rank_zero_warn(
                f"training ended in step {controller.steps}, before the gates' {controller.first_plain} steps: "
                "the network is cut to its target now, and not trained after that"
            )
            controller.finish()

    def _steps(self, trainer: Trainer, state: dict[str, Any] | None) -> int:
        if self._total_steps is not None or state is not None:
            return self._total_steps or state["settings"]["total_steps"]  # pyright: ignore[reportOptionalSubscript]
        total = trainer.estimated_stepping_batches
        if not 0 < total < math.inf:
            raise InputError(
                "the trainer does not know how many steps it is going to make",
                remedy="give GateCallback(total_steps=…), or Trainer(max_steps=…)",
            )
        return int(total)

    def _check_pace(self, trainer: Trainer, pl_module: LightningModule, controller: GateController) -> None:
        """Raise `InputError` if the gates will not be decided before the run ends."""
        if not self._was_called:
            raise InputError(
                "training_step has not called the network with gates in the first epoch",
                remedy="make the loss from what prepare() returned, in train() mode",
            )
        limits = ((trainer.current_epoch + 1, trainer.max_epochs), (trainer.global_step, trainer.max_steps))
        share = max((done / most for done, most in limits if most and most > 0), default=0.0)
        # of one optimizer all are counted, also those that a loss scaler leaves out
        steps = trainer.global_step if pl_module.automatic_optimization else controller.steps
        if share > 0 and round(steps / share) < controller.first_plain:
            raise InputError(
                f"the run will train the network with gates in {round(steps / share)} steps, "
                f"not in {controller.total_steps}: it would end before the gates are decided",
                remedy=f"GateCallback(total_steps={round(steps / share)})",
            )


def _made(controller: GateController | None) -> GateController:
    assert controller is not None  # fit has begun
    return controller


def _copies(callbacks: Iterable[Any], net: GatedModule) -> list[GatedModule]:
    """Copies of the network that callbacks hold: averages of its weights."""
    held = [v for c in callbacks for v in vars(c).values() if isinstance(v, nn.Module)]
    found = {id(m): m for module in held for m in module.modules() if isinstance(m, GatedModule) and m is not net}
    return list(found.values())
