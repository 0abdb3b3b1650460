"""`GateCallback`: a Lightning `Trainer` trains the gates of the network that its module holds."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection
from copy import deepcopy
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils._pytree import tree_leaves

from fxcat.checks import check_flag
from fxcat.choosing.cost_shares import cost_fractions
from fxcat.errors import InputError
from fxcat.gate_training.arguments import check_settings_given
from fxcat.gate_training.controller import GateController
from fxcat.gated import GatedModule
from fxcat.integrations.found import copies_in, ended_early, gated_in, of_another_trainer
from fxcat.network.following import Led
from fxcat.records import Pressure, Target

_PHASES = ("warm-up", "gated", "plain")
_PLACES = ("dirpath", "last_model_path")
"""What the state of another callback says of files, whatever it has seen."""


class GateCallback(Callback):
    """Trains gates: `Trainer(callbacks=[GateCallback(target=fxcat.Target(flops=0.5))])`, on a `LightningModule` that
    holds what `prepare` returned. Works with `lightning` and `pytorch_lightning`.

    `target`, `pressure`, `settings`: as for `GateController`. `total_steps`: optimizer steps of the whole run, by
    default those that the trainer estimates; a run that is resumed keeps those that it had. `log`: after every epoch
    the expected cost, as fractions of the start network, and the phase (0 warm-up, 1 gated, 2 plain) are logged as
    `gates/flops`, `gates/params`, `gates/phase`.

    Its state is in the trainer's checkpoints. Averaged copies that other callbacks hold become smaller too. When the
    structure is decided, callbacks that monitor a metric (best checkpoint, patience) begin anew: what they have seen is
    of larger networks. A run that ends before, but is not interrupted, is cut to its target then, with a warning.

    Callbacks that freeze a network with gates (`BackboneFinetuning`) freeze its weights alone.

    Raises `InputError` when `fit` begins (as `GateController` does; no or several networks with gates; no known number
    of steps; a strategy that shards parameters) and after its first epoch (the network is not called, or so rarely that
    the gates would not be decided).
    """

    controller: GateController | None = None
    """What trains the gates, from when `fit` begins."""

    def __init__(
        self,
        target: Target | None = None,
        *,
        pressure: Pressure | None = None,
        total_steps: int | None = None,
        log: bool = True,
        **settings: Any,
    ) -> None:
        check_flag(log, "log")
        self._settings: dict[str, Any] = {"target": target, "pressure": pressure, **settings}
        inspect.signature(GateController).bind(None, None, total_steps=total_steps, **self._settings)  # names
        told = {} if total_steps is None else {"total_steps": total_steps}
        check_settings_given(**self._settings, **told)
        self._total_steps, self._log = total_steps, log
        self._state: dict[str, Any] | None = None
        self._others: list[tuple[Any, dict[str, Any]]] = []
        self._was_called = self._is_on_time = False

    def on_init_end(self, *_: Any, **__: Any) -> None:
        """What the Trainer of transformers calls first."""
        raise of_another_trainer("a Trainer of transformers", "transformers")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before anything is restored."""
        self._state = None
        if stage == "fit" and trainer.strategy.restore_checkpoint_after_setup:  # it replaces the parameters by others
            raise InputError(
                f"{type(trainer.strategy).__name__} shards parameters: pieces of them cannot become smaller",
                remedy='use Trainer(strategy="ddp")',
            )
        monitoring = [c for c in trainer.callbacks if getattr(c, "monitor", None) is not None]  # pyright: ignore[reportAttributeAccessIssue]
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
            state, net.led = before.state_dict(), Led()  # it goes on, with other optimizers
        self._was_called = self._is_on_time = False
        _thaw(net)
        self.controller = GateController(
            net,
            pl_module.optimizers(),  # pyright: ignore[reportArgumentType]
            total_steps=self._steps(trainer, state),
            averages=copies_in(trainer.callbacks, net),  # pyright: ignore[reportAttributeAccessIssue]
            **self._settings,
        )
        if state is not None:
            self.controller.load_state_dict(state)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """What other callbacks remember of the optimizers' groups is of a network that has become smaller since."""
        _forget_names(checkpoint.get("callbacks", {}), dict(pl_module.named_parameters()).keys())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Others freeze and thaw as epochs begin."""
        controller = self.controller
        assert controller is not None
        if controller.phase != "plain":
            _thaw(controller.net)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Between optimizer steps the controller does nothing."""
        controller = self.controller
        assert controller is not None
        phase, was_called = controller.phase, controller.net.gate_vector.draws.made > 0
        self._was_called |= was_called
        if was_called or phase == "plain":
            controller.step()
        if controller.phase == "plain" != phase:
            for callback, state in self._others:
                now = callback.state_dict()
                callback.load_state_dict(state | {k: now[k] for k in _PLACES if k in now})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs, and looks once whether the gates will be decided in time."""
        controller = self.controller
        assert controller is not None
        if controller.phase != "plain" and not self._is_on_time:
            self._check_pace(trainer, pl_module, controller)
            self._is_on_time = True
        if self._log:
            flops, params, *_ = cost_fractions(
                controller.net, controller.net.gate_vector.theta.detach().double()
            ).tolist()
            phase = float(_PHASES.index(controller.phase))
            values = {"gates/flops": flops, "gates/params": params, "gates/phase": phase}
            pl_module.log_dict(values, sync_dist=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not where it is interrupted."""
        controller = self.controller
        assert controller is not None
        if controller.phase != "plain":
            rank_zero_warn(ended_early(controller))
            controller.finish()

    def _steps(self, trainer: Trainer, state: dict[str, Any] | None) -> int:
        """Of the whole run."""
        if self._total_steps is not None:
            return self._total_steps
        total = trainer.estimated_stepping_batches if state is None else state["settings"]["total_steps"]
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
        if share > 0 and (expected := round(steps / share)) < controller.schedule.first_plain:
            raise InputError(
                f"the run will train the network with gates in {expected} steps, not in {controller.total_steps}: "
                "it would end before the gates are decided",
                remedy=f"GateCallback(total_steps={expected})",
            )


def _thaw(net: GatedModule) -> None:
    """Let gates that are to be trained take gradients, where they were frozen with the weights."""
    vector = net.gate_vector
    if vector.values != "hard" and not vector.theta.requires_grad:
        vector.theta.requires_grad_(True)
        net.wrappers.follow(net)


def _forget_names(states: Any, known: Collection[str]) -> None:
    """Take parameters that have gone out of groups of names, as other callbacks keep them of optimizers."""
    groups: list[Any] = tree_leaves(states, is_leaf=_is_group)
    for group in filter(_is_group, groups):
        names: list[Any] = group["params"]
        group["params"] = [n for n in names if not isinstance(n, str) or n in known]


def _is_group(value: Any) -> bool:
    names: Any = value.get("params") if isinstance(value, dict) else None
    return isinstance(names, list)
