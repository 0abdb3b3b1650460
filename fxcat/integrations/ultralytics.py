"""Ultralytics: their own trainer trains and prunes a YOLO, and their own tools go on with the small one.

    model = YOLO("yolo11n.yaml")
    attach(model, target=fxcat.Target(flops=0.7))
    model.train(data="coco128.yaml", epochs=100)
    model.export(format="onnx")

Whatever decides by flags that they set later (the model's own Python, its head) runs as it is. Every checkpoint holds
a model of theirs without gates, `best.pt` one of the final structure. Reading it takes fxcat: its blocks have generated
code.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics.engine.model import Model
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import LOGGER

from fxcat.api import prepare
from fxcat.checks import check_instance
from fxcat.errors import InputError
from fxcat.gate_training.arguments import check_settings_given
from fxcat.gate_training.controller import GateController
from fxcat.integrations.ultralytics_models import is_small, with_their_tools
from fxcat.records import Pressure, Target

RUN = "fxcat_run"
"""In the optimizer's state, which leaves their checkpoints when a run has ended: the network with gates, and the state
of its controller."""


def attach(
    model: Model,
    *,
    target: Target | None = None,
    pressure: Pressure | None = None,
    prepared: Mapping[str, Any] | None = None,
    **controlled: Any,
) -> None:
    """Let `model.train(…)` prune the model that it trains, also with `resume=True` in a new process.

    `target` or `pressure`: as in `GateController`, of which `controlled` are further arguments; `prepared`: arguments
    of `prepare`, such as `limits` or `round_to`. With neither target nor pressure a small model from an earlier run is
    trained on as it is; their trainer by itself would build it anew at full size, so that is refused.

    `model.train` raises `InputError` for what cannot be pruned: several GPUs at once (their launcher starts processes
    that know nothing of this), `time=`, `distill_model=`, quantization-aware training. So does `model.tune`, which
    trains models of its own, without gates. Once it has pruned, `model.train` trains the small model on as it is; to
    prune that further, attach again.
    """
    check_instance(model, Model, "attach()", remedy='pass what YOLO("yolo11n.yaml") returns')
    check_instance(prepared, Mapping, "prepared", remedy='give {"round_to": 8}', optional=True)
    objective = {"target": target, "pressure": pressure}
    inspect.signature(GateController).bind(None, None, total_steps=1, **objective, **controlled)  # names, now
    inspect.signature(prepare).bind(None, None, **(prepared or {}))
    if target is not None and pressure is not None:
        raise InputError("give either target= or pressure=", remedy="for example target=fxcat.Target(flops=0.7)")
    if target is None and pressure is None and not is_small(model.model):
        raise InputError(
            "neither target= nor pressure= is given, and this model has not been pruned",
            remedy="for example attach(model, target=fxcat.Target(flops=0.7))",
        )
    if target is not None or pressure is not None:
        check_settings_given(**objective, **controlled)
    model.train = partial(_train, model, dict(prepared or {}), {**objective, **controlled})
    model.tune = _no_tuning


def _no_tuning(*_: Any, **__: Any) -> None:
    """In the place of their `Model.tune`."""
    raise InputError(
        "tune() trains models of its own, none of which would be pruned",
        remedy="tune the hyperparameters with a YOLO that nothing is attached to, and pass them to train()",
    )


def _train(
    model: Any, prepared: dict[str, Any], controlled: dict[str, Any], trainer: Any = None, **arguments: Any
) -> Any:
    """Their `Model.train`, with a trainer that prunes."""
    own = trainer or model._smart_load("trainer")
    kind = _Retraining if controlled["target"] is controlled["pressure"] is None else _Pruning
    members = {"prepared": prepared, "controlled": controlled}
    result = type(model).train(model, trainer=type(own.__name__, (kind, own), members), **arguments)
    model.train = partial(_train, model, {}, {"target": None, "pressure": None})  # it has been pruned
    return result


class _Retraining(BaseTrainer):
    """Trains small models as they are."""

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
        if not is_small(weights):
            return super().get_model(cfg=cfg, weights=weights, verbose=verbose)
        classes = weights.yaml["nc"]
        if classes != self.data["nc"]:
            raise InputError(
                f"the small model tells {classes} classes apart, the data have {self.data['nc']}",
                remedy="prune a model with as many classes as the data have",
            )
        return copy.deepcopy(weights).float().requires_grad_(True)


class _Pruning(_Retraining):
    """Trains a model with gates."""

    prepared: dict[str, Any]
    controlled: dict[str, Any]
    controller: GateController
    model: Any
    optimizer: Any
    ema: Any
    _run: dict[str, Any] | None = None
    _is_final = False
    """Whether a network of the final structure has been validated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refused = {
            "several GPUs": self.world_size > 1,
            "time=": bool(self.args.time),
            "distill_model=": self.args.distill_model is not None,
            "quantize=8": self.args.quantize == 8,
        }
        for name in (n for n, is_wanted in refused.items() if is_wanted):
            raise InputError(
                f"a model cannot be pruned with {name}", remedy="see fxcat.integrations.ultralytics.attach"
            )

    def setup_model(self) -> Any:
        ckpt: Any = super().setup_model()
        if self.resume:
            self._run = (ckpt["optimizer"] or {}).get(RUN)
            if self._run is None:
                raise InputError("the run that is resumed was not pruned, or has ended", where=str(self.args.resume))
        return ckpt

    def set_model_attributes(self) -> None:
        super().set_model_attributes()
        if self._run is not None:
            self.model = self._run["net"].to(self.device)
            return
        stride = max(int(self.model.stride.max()), 32)
        side = -(-int(np.max(self.args.imgsz)) // stride) * stride
        example = torch.zeros(1, self.data["channels"], side, side, device=self.device)
        self.model = prepare(self.model, example, python=own_python(self.model), **self.prepared)

    def set_class_weights(self) -> None:
        super().set_class_weights()
        weights = vars(self.model).pop("class_weights", None)
        if weights is not None:  # read where the loss is made
            self.model.network.class_weights = weights

    def resume_training(self, ckpt: Any) -> None:
        steps = optimizer_steps(self)
        average = self.ema.ema
        self.controller = GateController(
            self.model, self.optimizer, total_steps=steps, averages=[average], **self.controlled
        )
        self.optimizer.register_state_dict_post_hook(self._add_run)
        super().resume_training(ckpt)
        if self._run is not None:
            self.controller.averages = (self.ema.ema,)
            self.controller.load_state_dict(self._run["controller"])
            self._is_final = self.best_fitness is not None

    def _add_run(self, _: Any, state: dict[str, Any]) -> None:
        network = self.model.network
        criterion, network.criterion = vars(network).get("criterion"), None  # it holds the model once more
        state[RUN] = {"net": copy.deepcopy(self.model), "controller": self.controller.state_dict()}
        network.criterion = criterion

    def optimizer_step(self) -> None:
        super().optimizer_step()
        if self.controller.step():
            self.ema._pairs = None  # tensors of the network as it was

    def validate(self) -> Any:
        if not self._is_final:  # a better one with more structure is no better one, nor a reason to stop
            self.best_fitness, self.stopper.best_fitness = None, 0.0
            self._is_final = self.controller.phase == "plain"
        found = super().validate()
        if not self._is_final:
            self.best_fitness = None
        return found

    def save_model(self) -> Any:
        average = self.ema.ema
        self.ema.ema = with_their_tools(average.finalized(torch.ones_like(average.gate_vector.theta)))
        try:
            return super().save_model()
        finally:
            self.ema.ema = average

    def final_eval(self) -> None:
        if self.controller.finish():
            LOGGER.warning("The run ended before its gates were decided: they are now, and nothing was trained since.")
            self.ema._pairs = None
            self.metrics, self.fitness = self.validate()
            self.save_model()
        super().final_eval()


def own_python(model: nn.Module) -> list[str]:
    """Paths of the modules that their tools and their training use in other ways than inference does: the model, heads
    with flags, and attention in these, which is masked in training only."""
    modules = dict(model.named_modules())
    heads = [path for path, module in modules.items() if hasattr(module, "export")]
    attentions = [path for path, module in modules.items() if isinstance(module, nn.MultiheadAttention)]
    return ["", *heads, *(a for a in attentions if any(a.startswith(f"{h}.") for h in heads))]


def optimizer_steps(trainer: Any) -> int:
    """How many steps a trainer's optimizer makes in the whole run: gradients are accumulated over fewer batches in its
    own warm-up."""
    batches, most = len(trainer.train_loader) * trainer.epochs, trainer.accumulate
    ramp = trainer._get_warmup_iterations(len(trainer.train_loader))
    steps, last = 0, -1
    for batch in range(min(ramp + 1, batches) if ramp else 0):
        if batch - last >= max(1, int(np.interp(batch, [0, ramp], [1, most]).round())):
            steps, last = steps + 1, batch
    return steps + (batches - 1 - last) // most
