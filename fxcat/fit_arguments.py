"""Whether the arguments of `fit` are what they should be, each by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fxcat.checks import (
    check_batches,
    check_callable,
    check_choice,
    check_flag,
    check_gradients,
    check_instance,
    check_integer,
    check_number,
    check_path,
    shown,
)
from fxcat.errors import InputError
from fxcat.gated import check_gated
from fxcat.records import check_pressure, check_target

_KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "epochs": (check_integer, {"least": 1}),
    "accumulate": (check_integer, {"least": 1}),
    "steps_per_epoch": (check_integer, {"least": 1, "optional": True}),
    "seed": (check_integer, {}),
    "lr": (check_number, {"least": 0}),
    "clip_norm": (check_number, {"above": 0, "optional": True}),
    "warmup": (check_number, {"optional": True}),
    "until": (check_number, {}),
    "distillation_weight": (check_number, {"least": 0, "most": 1}),
    "schedule_per": (check_choice, {"choices": ("epoch", "step")}),
    "loss": (check_callable, {"optional": True}),
    "distillation": (check_callable, {}),
    "unpack": (check_callable, {"optional": True}),
    "train_loader": (check_batches, {}),
    "val_loader": (check_batches, {"optional": True}),
    "held_out": (check_batches, {"optional": True}),
    "checkpoint_dir": (check_path, {"optional": True}),
    "log_dir": (check_path, {"optional": True}),
    "resume": (check_flag, {}),
    "progress": (check_flag, {}),
    "section_differences": (check_flag, {}),
    "metrics": (check_instance, {"kinds": Mapping, "optional": True}),
    "averages": (check_instance, {"kinds": Iterable}),
    "callbacks": (check_instance, {"kinds": Iterable}),
    "target": (check_target, {"optional": True}),
    "pressure": (check_pressure, {"optional": True}),
    "teacher": (check_instance, {"kinds": (nn.Module, bool), "optional": True}),
}


def check_fit_arguments(net: Any, **given: Any) -> None:
    """Raise `InputError` for the first argument of `fit` that has the wrong type or a value that never fits."""
    check_gated(net, "fit()")
    check_gradients("fit()")
    for name, value in given.items():
        check, options = _KINDS.get(name, (None, {}))
        if check in (check_target, check_pressure):
            check(value, **options)
        elif check is not None:
            check(value, name=name, **options)
    for name in ("metrics", "callbacks"):
        values = given.get(name) or ()
        for each in values.values() if isinstance(values, Mapping) else values:
            check_callable(each, name)
    _check_autocast(given.get("autocast"))
    _check_device(given.get("device"))


def _check_autocast(dtype: Any) -> None:
    if dtype is not None and dtype not in (torch.bfloat16, torch.float16):
        raise InputError(f"autocast={shown(dtype)} is no type for mixed precision", remedy="give torch.bfloat16")


def _check_device(device: Any) -> None:
    """A device that this machine has."""
    if device is None:
        return
    try:
        if isinstance(device, bool) or torch.empty(0, device=device).is_meta:
            raise ValueError("it holds no values")
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device={shown(device)} cannot be used: {reason}", remedy='give device="cpu"') from error
