"""Losses and accuracy of `fit`: of classifiers, with auxiliary heads or not, and of models that compute their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from fxcat.errors import InputError

Loss = Callable[[Any, Any], torch.Tensor]

AUXILIARY_WEIGHT = 0.3
"""Szegedy et al. 2015 (arXiv 1409.4842, §5) weight the losses of auxiliary classifiers by 0.3."""


def outputs_of(output: Any) -> list[torch.Tensor]:
    """The main output first (`logits` where it has that name), then auxiliary ones."""
    if isinstance(output, torch.Tensor):
        return [output]
    logits: Any = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, torch.Tensor):
        return [logits]
    values: Any = output.values() if isinstance(output, Mapping) else output  # pyright: ignore[reportUnknownVariableType]
    return [v for v in values if isinstance(v, torch.Tensor)]


def cross_entropy(output: Any, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the main output plus 0.3 × that of each auxiliary one."""
    if not isinstance(target, torch.Tensor):
        raise InputError(
            f"the targets are a {type(target).__name__}, of which there is no cross-entropy",
            remedy="give loss=, a function of output and targets, or loss=None if the model returns its loss",
        )
    main, *auxiliary = outputs_of(output)
    try:
        loss = F.cross_entropy(main, target)
        for other in auxiliary:
            loss = loss + AUXILIARY_WEIGHT * F.cross_entropy(other, target)
    except torch.OutOfMemoryError:
        raise
    except (IndexError, RuntimeError, ValueError) as error:  # classes that there are not; shapes; types
        raise InputError(
            f"there is no cross-entropy of an output of shape {tuple(main.shape)} and targets of shape "
            f"{tuple(target.shape)} and type {target.dtype}: {error}",
            remedy="give targets that are classes of the output, or loss=, a function of both",
        ) from error
    return loss


def own_loss(output: Any, _: Any) -> torch.Tensor:
    """The loss that a model has computed itself: a number, `loss` among its results, or the sum of a mapping of numbers
    (the detectors of torchvision). Raises `InputError` if there is none."""
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if found is None and isinstance(output, Mapping) and output:
        values: list[Any] = list(output.values())  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        if all(isinstance(v, torch.Tensor) and v.numel() == 1 for v in values):
            found = torch.stack([v.reshape(()) for v in values]).sum()
    if found is None and isinstance(output, torch.Tensor | tuple):
        found = output[0] if isinstance(output, tuple) else output
    if isinstance(found, torch.Tensor) and found.numel() == 1:
        return found
    raise InputError(
        f"loss=None, and the model returns no loss but a {type(output).__name__}",
        remedy="give loss=, a function of output and targets, or batches with which the model computes its loss",
    )


def checked(loss: Any) -> torch.Tensor:
    """What a loss function has returned. Raises `InputError` for anything but one number in a tensor."""
    if isinstance(loss, torch.Tensor) and loss.numel() == 1 and not loss.is_complex():
        return loss.reshape(())
    what = f"a {type(loss).__name__}"
    if isinstance(loss, torch.Tensor):
        what = "a complex number" if loss.is_complex() else f"a tensor of shape {tuple(loss.shape)}"
    raise InputError(
        f"loss= returned {what}",
        remedy="return one number in a tensor: the mean over the batch, as nn.CrossEntropyLoss()",
    )


def count_correct(output: Any, targets: Any) -> int | None:
    """Right predictions of a classifier in a batch, None if output and targets are not those of one."""
    target: Any = targets.get("labels") if isinstance(targets, Mapping) else targets
    main = next(iter(outputs_of(output)), None)
    if main is None or main.dim() != 2 or main.shape[1] < 2:
        return None
    if not isinstance(target, torch.Tensor) or target.shape != main.shape[:1] or target.is_floating_point():
        return None
    return int((main.detach().argmax(1) == target).sum())
