"""Whether the arguments of `GateController` and `fit` are what they should be, each by itself.

Both know arguments by name: what one of them is called, it is in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from fxcat.checks import (
    check_batches,
    check_callable,
    check_choice,
    check_device,
    check_flag,
    check_gradients,
    check_instance,
    check_integer,
    check_number,
    check_path,
    shown,
)
from fxcat.choosing.select import check_counted
from fxcat.data.losses import cross_entropy
from fxcat.errors import InputError
from fxcat.gate_training.said_of_gates import FREEZE, FROZEN
from fxcat.gate_training.schedule import SHRINKS, UNTIL, check_schedule
from fxcat.gated import GatedModule
from fxcat.gated_checks import check_gated
from fxcat.records import check_pressure, check_target


def _integer(name: str, **options: Any) -> Callable[[Any], None]:
    return partial(check_integer, name=name, **options)


def _number(name: str, **options: Any) -> Callable[[Any], None]:
    return partial(check_number, name=name, **options)


def _instance(name: str, *kinds: Any, **options: Any) -> Callable[[Any], None]:
    return partial(check_instance, kinds=kinds, name=name, **options)


def _check_several(value: Any, name: str) -> None:
    """Some of what there may be several of; a tensor can be iterated over, and holds none."""
    kinds = (Iterable,) if not isinstance(value, torch.Tensor | np.ndarray) else (list,)
    check_instance(value, kinds, name, remedy=f"write {name}=[…]")


_OPTIONAL: dict[str, Any] = {"optional": True}
_CHECKS: dict[str, Callable[[Any], None]] = {
    "target": partial(check_target, optional=True),
    "pressure": partial(check_pressure, optional=True),
    "epochs": _integer("epochs", least=1),
    "total_steps": _integer("total_steps"),
    "shrinks": _integer("shrinks"),
    "seed": _integer("seed", least=-(2**63), most=2**63 - 1),  # what generators take
    "accumulate": _integer("accumulate", least=1),
    "steps_per_epoch": _integer("steps_per_epoch", least=1, **_OPTIONAL),
    "lr": _number("lr", least=0),
    "gate_lr": _number("gate_lr", above=0, **_OPTIONAL),
    "clip_norm": _number("clip_norm", above=0, **_OPTIONAL),
    "warmup": _number("warmup", **_OPTIONAL),
    "until": _number("until"),
    "distillation_weight": _number("distillation_weight", least=0, most=1),
    "schedule_per": partial(check_choice, name="schedule_per", choices=("epoch", "step")),
    "distillation": partial(check_callable, name="distillation"),
    "unpack": partial(check_callable, name="unpack", **_OPTIONAL),
    "train_loader": partial(check_batches, name="train_loader"),
    "val_loader": partial(check_batches, name="val_loader", **_OPTIONAL),
    "held_out": partial(check_batches, name="held_out", **_OPTIONAL),
    "checkpoint_dir": partial(check_path, name="checkpoint_dir", **_OPTIONAL),
    "log_dir": partial(check_path, name="log_dir", **_OPTIONAL),
    "resume": partial(check_flag, name="resume"),
    "progress": partial(check_flag, name="progress"),
    "section_differences": partial(check_flag, name="section_differences"),
    "metrics": _instance("metrics", Mapping, **_OPTIONAL),
    "averages": partial(_check_several, name="averages"),
    "callbacks": partial(_check_several, name="callbacks"),
    "teacher": _instance("teacher", nn.Module, bool, **_OPTIONAL),
    "device": partial(check_device, **_OPTIONAL),
    "scaler": _instance("scaler", torch.amp.GradScaler, **_OPTIONAL),
}


def check_settings_given(**given: Any) -> None:
    """Raise `InputError` for arguments of `GateController` that are wrong whatever network comes: for those that make
    it later."""
    _check(given)
    if (given.get("target") is None) == (given.get("pressure") is None):
        raise InputError("give either target= or pressure=", remedy="for example target=fxcat.Target(flops=0.5)")
    if "loss" in given:
        check_callable(given["loss"], "loss")
    check_schedule(
        given.get("total_steps"), given.get("warmup"), given.get("until", UNTIL), given.get("shrinks", SHRINKS)
    )


def check_controller_arguments(net: Any, loss: Any, **given: Any) -> None:
    """Raise `InputError` for the first argument of `GateController` that is not of its kind."""
    check_gated(net, "GateController()")
    check_callable(loss, "loss")
    _check(given)
    if (given["target"] is None) == (given["pressure"] is None):
        raise InputError("give either target= or pressure=", remedy="for example target=fxcat.Target(flops=0.5)")
    if loss is not cross_entropy:
        check_of_ratio(net, "loss")
    _check_held_out(net, given)
    net.check_weights()
    _check_undecided(net)
    if given["pressure"] is not None:
        check_counted(net, given["pressure"])


def check_fit_arguments(net: Any, loss: Any = None, **given: Any) -> None:
    """Raise `InputError` for the first argument of `fit` that is not of its kind."""
    check_gated(net, "fit()")
    check_gradients("fit()")
    check_callable(loss, "loss", optional=True)
    _check(given)
    for function in given.get("callbacks") or ():
        check_callable(function, "callbacks", remedy="give functions of (record, net)")
    for average in given.get("averages") or ():
        if not callable(getattr(average, "update_parameters", None)):
            raise InputError(
                f"a {type(average).__name__} among averages= has no update_parameters(net), which takes in the weights",
                remedy="give torch.optim.swa_utils.AveragedModel(net), or use GateController in a loop of your own",
            )
    for name, function in (given.get("metrics") or {}).items():
        check_callable(function, "metrics", remedy=f"give a function of (output, targets) as {name!r}")
    _check_held_out(net, given)
    _check_autocast(given.get("autocast"))


def _check_held_out(net: GatedModule, given: Mapping[str, Any]) -> None:
    if given.get("held_out") is not None:
        check_of_ratio(net, "held_out")


def check_of_ratio(net: GatedModule, name: str) -> None:
    """Raise `InputError` for an argument of one policy where there is another one."""
    if net.policy != "ratio":
        raise InputError(
            f'{name}= would do nothing: only policy="ratio" evaluates a loss of its own',
            remedy=f'leave {name}= out, or prepare the network with policy="ratio"',
        )


def _check(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _CHECKS:
            _CHECKS[name](value)


def _check_autocast(dtype: Any) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in (torch.bfloat16, torch.float16)):
        what = f"autocast={shown(dtype)} is no type for mixed precision"
        raise InputError(what, remedy="give torch.bfloat16 or torch.float16")


def _check_undecided(net: GatedModule) -> None:
    """Raise `InputError` if gates are not to be trained."""
    vector = net.gate_vector
    if not vector.theta.numel() or vector.theta.requires_grad:
        return
    if vector.values != "hard":
        raise InputError(FROZEN, remedy=FREEZE)
    raise InputError(
        "the gates of this network have been trained and decided",
        remedy="train it on without a GateController; to prune further: prepare(finalize(net), example)",
    )
