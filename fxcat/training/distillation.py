"""The loss by which a network learns from a teacher's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from fxcat.checks import check_number
from fxcat.data.losses import AUXILIARY_WEIGHT, outputs_of
from fxcat.errors import InputError

TEMPERATURE = 2.0

_OWN = "give fit(distillation=) a function of both outputs, (output, teacher_output) → scalar tensor"


def distillation_loss(output: Any, teacher_output: Any, *, temperature: float = TEMPERATURE) -> torch.Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)); a scalar tensor (Hinton et al. 2015, arXiv 1503.02531, §2).

    Logits have shape (N, classes), or (N, classes, …) with positions behind them, as `F.cross_entropy` takes them: the
    divergence is a sum over classes and a mean over examples and positions. T² keeps its gradients in the size of those
    of a cross-entropy, whatever the `temperature` T. It is computed in single precision at least, and no gradient flows
    into the teacher's outputs.

    Dicts are matched by key, tuples and lists by position, and what only one side has is left out (auxiliary heads that
    a teacher in `eval()` does not compute); a tensor is matched with the other side's first one. The first match counts
    fully, each further one 0.3 times, as in the default loss of `fit`.

    Raises `InputError`, with both shapes, if a match is no pair of logits of one shape, or nothing matches.
    """
    check_number(temperature, "temperature", above=0)
    temperature = float(temperature)
    main, *auxiliary = [
        _divergence(name, ours, theirs, temperature) for name, ours, theirs in _matches(output, teacher_output)
    ]
    return main + AUXILIARY_WEIGHT * sum(auxiliary) if auxiliary else main


def _matches(output: Any, teacher_output: Any) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Names of outputs, the student's and the teacher's tensors."""
    if isinstance(output, Mapping) and isinstance(teacher_output, Mapping):
        ours, theirs = _tensors(output), _tensors(teacher_output)
        found = [(f"output {key!r}", ours[key], theirs[key]) for key in ours if key in theirs]
    else:
        pairs = zip(_listed(output), _listed(teacher_output), strict=False)
        found = [(f"output {i}", ours, theirs) for i, (ours, theirs) in enumerate(pairs)]
    if not found:
        raise InputError(
            f"nothing in the student's output ({_described(output)}) matches the teacher's "
            f"({_described(teacher_output)})",
            remedy=_OWN,
        )
    return found


def _tensors(output: Mapping[Any, Any]) -> dict[Any, torch.Tensor]:
    return {key: value for key, value in output.items() if isinstance(value, torch.Tensor)}


def _listed(output: Any) -> list[torch.Tensor]:
    if isinstance(output, Mapping):
        return list(_tensors(output).values())  # pyright: ignore[reportUnknownArgumentType]
    return outputs_of(output) if isinstance(output, torch.Tensor | tuple | list) else []


def _described(output: Any) -> str:
    """The kind of an output and, of a dict, its keys."""
    keys = f" with {', '.join(map(repr, output))}" if isinstance(output, Mapping) else ""  # pyright: ignore[reportUnknownArgumentType]
    return type(output).__name__ + keys


def _divergence(name: str, ours: torch.Tensor, theirs: torch.Tensor, temperature: float) -> torch.Tensor:
    shapes = f"shape {tuple(ours.shape)}, the teacher's {tuple(theirs.shape)}"
    if ours.shape != theirs.shape:
        raise InputError(f"the student's output has {shapes}", where=name, remedy=f"use another teacher, or {_OWN}")
    if not (ours.is_floating_point() and theirs.is_floating_point() and ours.dim() > 1 and ours.shape[1] > 1):
        raise InputError(
            f"these are no logits of two or more classes along axis 1: the student's output has {shapes}, {ours.dtype}",
            where=name,
            remedy=_OWN,
        )
    logits, wanted = (value.to(torch.promote_types(value.dtype, torch.float32)) for value in (ours, theirs.detach()))
    student, teacher = (F.log_softmax(value / temperature, 1) for value in (logits, wanted))
    positions = ours.numel() // ours.shape[1]
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * (temperature**2 / positions)
