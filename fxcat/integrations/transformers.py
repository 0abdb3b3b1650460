"""Hugging Face transformers: a callback of its `Trainer`.

`Trainer(model=net, args=args, train_dataset=…, callbacks=[GateCallback(target=fxcat.Target(flops=0.5))])`, where `net`
is what `prepare` returned, or a module that holds it.
"""

from __future__ import annotations

import base64
import binascii
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from accelerate.state import AcceleratorState
from safetensors import SafetensorError
from safetensors.torch import load, save
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from fxcat.errors import InputError
from fxcat.gate_training.arguments import check_settings_given
from fxcat.gate_training.controller import GateController
from fxcat.integrations.found import ended_early, gated_in, of_another_trainer
from fxcat.records import Pressure, Target
from fxcat.utils.json_tensors import pack, unpack

_REPLICATED = ("NO", "MULTI_")
"""How the kinds of processes begin in which every one has whole weights."""
_PLAIN = (bool, int, float, type(None))


class GateCallback(TrainerCallback, ExportableState):
    """Trains the gates of the network that a `Trainer` trains; it shrinks with its optimizer while that goes on.

    `target` or `pressure`: what decides the size. `options`: further arguments of `GateController` (`averages`,
    `warmup`, `until`, …); the number of steps is the Trainer's. `controller`: while and after it trains.

    Its state is in `trainer_state.json` of every checkpoint, so `resume_from_checkpoint` needs no word more. For
    `load_best_model_at_end` only checkpoints count that were made after the network last became smaller. A training
    that ends early (`EarlyStoppingCallback`) meets the target at its end.

    Raises `InputError` before the first step for what `GateController` refuses, for DeepSpeed, FSDP, `DataParallel` and
    activation checkpointing, and for a checkpoint without the gates' state or of a run with other settings.
    """

    def __init__(
        self,
        target: Target | Mapping[str, Any] | None = None,
        *,
        pressure: Pressure | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        inspect.signature(GateController).bind(None, None, total_steps=1, **options)  # names, now
        # as mappings they come from a checkpoint, by `restore_callback_states_from_checkpoint`
        target = Target(**target) if isinstance(target, Mapping) else target
        pressure = Pressure(**pressure) if isinstance(pressure, Mapping) else pressure
        self._settings: dict[str, Any] = {"target": target, "pressure": pressure, **options}
        check_settings_given(**self._settings)
        self.controller: GateController | None = None

    def setup(self, *_: Any, **__: Any) -> None:
        """What Lightning looks for first, before it asks for `state_key`."""

    on_exception = setup

    @property
    def state_key(self) -> str:
        raise of_another_trainer("a Trainer of Lightning", "lightning")

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        gated_in(kwargs["model"], "GateCallback")
        self._check(args)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._check(args)
        net = gated_in(kwargs["model"], "GateCallback")
        self.controller = None  # of an earlier run
        self.controller = GateController(net, kwargs["optimizer"], total_steps=state.max_steps, **self._settings)
        if state.global_step:
            self.controller.load_state_dict(_stored(state.stateful_callbacks, type(self).__name__))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.controller is not None and self.controller.step():
            # what was best was another network
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        controller = self.controller
        if controller is not None and controller.phase != "plain":
            if state.is_world_process_zero:
                warnings.warn(ended_early(controller), stacklevel=2)
            controller.finish()

    def state(self) -> dict[str, Any]:
        """What `trainer_state.json` holds of it: plain data."""
        args = {k: v for k, v in self._settings.items() if isinstance(v, _PLAIN)}
        args |= {k: asdict(v) for k, v in self._settings.items() if isinstance(v, Target | Pressure)}
        if self.controller is None:
            return {"args": args, "attributes": {}}
        tensors: dict[str, torch.Tensor] = {}
        packed = pack(self.controller.state_dict(), tensors, "gates")
        found = save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})
        stored = {"values": packed, "tensors": base64.b64encode(found).decode()}
        return {"args": args, "attributes": {"stored": stored}}

    def _check(self, args: TrainingArguments) -> None:
        kind = AcceleratorState().distributed_type.value
        if not kind.startswith(_REPLICATED):
            raise InputError(
                f"{kind} keeps weights in shapes of its own, which cannot shrink",
                remedy="train in one process, or in several with torchrun and DistributedDataParallel",
            )
        if args.n_gpu > 1:
            raise InputError(
                "DataParallel trains copies of the network, of which none may shrink",
                remedy="start one process per GPU with torchrun, or make one GPU visible",
            )
        for name in ("activation_checkpointing", "gradient_checkpointing"):
            if getattr(args, name, False):
                raise InputError(
                    f"{name} would do nothing: forward was captured without it", remedy=f"leave {name} off"
                )
        lost = [k for k, v in self._settings.items() if not isinstance(v, (*_PLAIN, Target, Pressure))]
        if lost and getattr(args, "restore_callback_states_from_checkpoint", False):
            raise InputError(
                f"restore_callback_states_from_checkpoint makes callbacks anew, without {lost[0]}=",
                remedy="leave it off: GateCallback goes on from the checkpoint by itself",
            )


def _stored(callbacks: Any, name: str) -> dict[str, Any]:
    """The controller's state in a checkpoint. Raises `InputError` if there is none, or none that can be read."""
    try:
        stored = callbacks[name]["attributes"]["stored"]
        found: dict[str, Any] = unpack(stored["values"], load(base64.b64decode(stored["tensors"])))
    except (KeyError, TypeError, ValueError, binascii.Error, SafetensorError) as error:
        raise InputError(
            f"the checkpoint does not hold the state of one {name}",
            remedy="resume from one that was written with it, or begin anew with a network from prepare()",
        ) from error
    return found
